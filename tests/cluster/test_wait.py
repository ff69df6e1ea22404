"""Waiting for a cluster: not a moment too early, told why it takes long, and nothing between changes the outcome."""

from __future__ import annotations

import base64
import copy
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from sp_ray_ml.cluster import _ready, _wait
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._ready import Progress
from sp_ray_ml.cluster._snapshot import Cause, Snapshot
from sp_ray_ml.cluster._wait import wait_until
from sp_ray_ml.errors import (
    ClusterError,
    ClusterNotFoundError,
    ClusterTimeoutError,
    ClusterUnhealthyError,
    ConfigError,
    KubernetesAccessError,
    KubernetesError,
)

from .recorded import RecordedServer, Recording

Body = dict[str, Any]
WELL = {"explain": lambda *_: None}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("watch-")]
    for thread in left:
        thread.join(60)
    assert not any(thread.is_alive() for thread in left)


class Clock:
    """The clock of a wait, which a test puts forward when it has seen what the wait is to end with."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_wait, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def wait(server: RecordedServer, target: str = "pods", timeout_s: float = 120, **options: Any) -> Snapshot:
    with server.api() as api:
        return wait_until(api, server.namespace, server.cluster, target, timeout_s, **{**WELL, **options})


def version(snapshot: Snapshot) -> int:
    """How much of the recording a snapshot has seen."""
    items = [*([snapshot.cluster] if snapshot.cluster else []), *snapshot.pods]
    return max((int(item["metadata"]["resourceVersion"]) for item in items), default=0)


def version_at(server: RecordedServer, t: float) -> int:
    """The version of the event at a time of the recording's timeline."""
    return next(change.version for change in server.recording.changes if abs(change.t - t) < 0.0005)


def uids(name: str) -> list[str]:
    found = [
        c.object["metadata"]["uid"] for c in Recording.load(name).changes if c.object["kind"] == "RayCluster"
    ]
    return list(dict.fromkeys(found))


# --- when it returns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "begin", "ready", "end"),
    [
        ("01b-ready-slow", 0.15, 17.539, 20),
        ("02c-swap-groups", 9.57, 15.710, 20),
        ("03-unschedulable-gpu", 5, 20.312, 22),
        ("04-quota-second-worker", 5, 41.3, 44),
        ("08c-head-oom-crashloop", 6, 15.882, 19),
        ("11-suspend", 14, 29.401, 32),
        ("12d-recreate-same-name", 10.1, 22.361, 28),
        ("13-head-pod-deleted", 9.7, 16.959, 20),
        ("13b-worker-pod-deleted", 9.7, 16.887, 20),
        ("14-upgrade-recreate", 9.5, 19.994, 25),
        ("20-group-suspend", 9.4, 9.574, 12),
    ],
)
def test_it_returns_with_the_event_that_makes_the_cluster_ready(
    name: str,
    begin: float,
    ready: float,
    end: float,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Here the operator acknowledges each change: none is believed without, however long that takes.
    monkeypatch.setattr(_ready, "SETTLE_S", 600)
    monkeypatch.setattr(_wait, "SETTLE_S", 600)
    with RecordedServer(name, at=begin) as server:
        waiting = pool.submit(wait, server)
        server.await_watches(2)
        # The clock stands while the status says `ready` and the pods do not.
        assert not waiting.done()
        first = server.recording.count_at(begin)
        last = server.recording.count_at(ready - 0.0005)
        for count in range(first + 1, last + 1):
            server.step_to(server.recording.times[count - 1])
        assert not waiting.done()
        server.step_to(end)
        assert version(waiting.result(120)) >= version_at(server, ready)


def test_a_change_that_the_operator_never_acknowledges_is_believed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_ready, "SETTLE_S", 0.3)
    monkeypatch.setattr(_wait, "SETTLE_S", 0.3)
    looked: list[float] = []
    began = time.monotonic()

    def explain(*_: object) -> None:
        looked.append(time.monotonic() - began)

    with RecordedServer("14b-upgrade-none", at=5) as server:
        snapshot = wait(server, explain=explain)
    assert snapshot.cluster
    assert snapshot.cluster["metadata"]["generation"] == 2
    assert snapshot.cluster["status"]["observedGeneration"] == 1
    assert looked[0] >= 0.3, "it is made sure that the operator does not refuse the change"


def test_a_change_that_the_operator_refuses_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ready, "SETTLE_S", 0.3)
    monkeypatch.setattr(_wait, "SETTLE_S", 0.3)
    with RecordedServer("10-reject-update", at=10) as server:
        with pytest.raises(ClusterUnhealthyError, match="labels"):
            wait_until(server.api(), server.namespace, "demo", "pods", 120)


def test_a_part_of_the_workers_is_enough_where_it_is_asked_for(clock: Clock) -> None:
    def on_change(states: Sequence[Progress], _: Cause | None) -> None:
        if states[1].ready == 1:
            clock.ahead = 120

    with RecordedServer("04-quota-second-worker", at=10) as server:
        get = Ray(server, server.recording.snapshot_at(10))
        wait(server, "workers=1", ask_ray=get)
        with pytest.raises(ClusterTimeoutError, match="1 of 2 workers are ready"):
            wait(server, "workers=2", ask_ray=get, on_change=on_change)


def test_deleted_means_the_last_pod(pool: ThreadPoolExecutor) -> None:
    with RecordedServer("12-delete", at=3) as server:
        waiting = pool.submit(wait, server, "deleted", uid=uids("12-delete")[0])
        server.await_watches(2)
        server.step_to(6)
        assert not waiting.done()
        server.step_to(server.recording.end)
        snapshot = waiting.result(120)
        assert snapshot.cluster is None
        assert snapshot.pods == []


def test_suspended_means_that_no_pod_is_left(pool: ThreadPoolExecutor) -> None:
    with RecordedServer("11-suspend", at=10.7) as server:
        waiting = pool.submit(wait, server, "suspended")
        server.await_watches(2)
        server.step_to(13)
        assert not waiting.done()
        server.step_to(17.2)
        assert waiting.result(120).pods == []
        server.step_to(server.recording.end)


def test_what_cannot_be_waited_for_is_refused_before_anything_is_asked() -> None:
    with RecordedServer("01-ready") as server:
        with pytest.raises(ConfigError, match="did you mean ready"):
            wait(server, "redy")
        assert server.asked == []


# --- what comes between -------------------------------------------------------------------------------------------


def test_an_api_server_that_is_stopped_and_started_changes_nothing(pool: ThreadPoolExecutor) -> None:
    with RecordedServer("01b-ready-slow", at=1) as server:
        waiting = pool.submit(wait, server)
        server.await_watches(2)
        server.step_to(5)
        server.stop()
        server.step_to(12)
        server.start()
        server.await_watches(2)
        server.stop()
        server.step_to(20)
        server.forget()
        server.start()
        assert version(waiting.result(120)) >= version_at(server, 17.539)


def test_connections_that_break_at_every_event_change_nothing(pool: ThreadPoolExecutor) -> None:
    with RecordedServer("01b-ready-slow", at=0.15) as server:
        waiting = pool.submit(wait, server)
        server.await_watches(2)
        while not waiting.done() and server.now < 17.539:
            server.step()
            server.drop()
        assert version(waiting.result(120)) >= version_at(server, 17.539)


def test_a_cluster_deleted_meanwhile_is_an_error_at_once(pool: ThreadPoolExecutor) -> None:
    with RecordedServer(recording=after(Recording.load("01b-ready-slow"), 5, "RayCluster"), at=5) as server:
        waiting = pool.submit(wait, server)
        server.await_watches(2)
        server.step_to(30)
        with pytest.raises(ClusterNotFoundError, match="deleted while it was waited for"):
            waiting.result(120)


def test_a_cluster_deleted_before_its_pods_are_known_was_there(pool: ThreadPoolExecutor) -> None:
    with RecordedServer(recording=after(Recording.load("01b-ready-slow"), 5, "RayCluster"), at=5) as server:
        server.refuse(r"/pods", 503, "ServiceUnavailable")
        waiting = pool.submit(wait, server)
        server.await_watches(1)
        server.step_to(30)
        server.refuse(r"/pods", 503, times=0)
        with pytest.raises(ClusterNotFoundError, match="deleted while it was waited for"):
            waiting.result(120)


def after(recording: Recording, t: float, kind: str) -> Recording:
    """The recording up to a time, and then only how objects of a kind went away."""
    changes = [c for c in recording.changes if c.t <= t or (c.type == "DELETED" and c.object["kind"] == kind)]
    return Recording(recording.name, recording.namespace, tuple(changes), (), recording.epoch)


def test_another_cluster_of_the_name_is_not_the_one_waited_for() -> None:
    first, second = uids("12d-recreate-same-name")
    with RecordedServer("12d-recreate-same-name", at=25) as server:
        with pytest.raises(ClusterNotFoundError, match="another of its name was made"):
            wait(server, uid=first)
        assert wait(server, uid=second).cluster["metadata"]["uid"] == second  # type: ignore[index]
        wait(server, "deleted", uid=first)


def test_a_cluster_in_deletion_is_said_to_be_so() -> None:
    with RecordedServer("12b-delete-foreground", at=7) as server:
        with pytest.raises(ClusterNotFoundError, match="is being deleted"):
            wait(server)


def test_a_cluster_that_is_not_there_is_an_error_at_once() -> None:
    with RecordedServer("01-ready", at=-1) as server:
        with pytest.raises(ClusterNotFoundError, match="there is no cluster demo"):
            wait(server)


def test_missing_permission_is_an_error_at_once() -> None:
    with RecordedServer("01-ready", at=1) as server:
        server.refuse(r"/pods", 403, "Forbidden")
        with pytest.raises(KubernetesAccessError, match="not allowed"):
            wait(server)


def test_a_missing_crd_is_an_error_at_once() -> None:
    with RecordedServer("01-ready", at=1) as server:
        server.refuse(r"/rayclusters", 404, "NotFound")
        with pytest.raises(KubernetesError, match="does not know RayClusters"):
            wait(server)


@pytest.fixture
def _heeds_control_c() -> Iterator[None]:
    """A shell's background jobs have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_control_c")
def test_control_c_passes_through_and_leaves_no_thread() -> None:
    with RecordedServer("19-managed-by-other", at=5) as server:
        waits = threading.Event()  # both watches are entered by then

        def interrupt() -> None:
            assert waits.wait(120)
            server.await_watches(2)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            wait(server, on_change=lambda *_: waits.set())
        thread.join()


# --- what it says -------------------------------------------------------------------------------------------------


def cause(*, permanent: bool, component: str = "head") -> Cause:
    return Cause(
        "image", component, "the image cannot be pulled", "Name another", permanent, ("manifest unknown",)
    )


def test_a_permanent_cause_fails_at_once() -> None:
    with RecordedServer("06-head-imagepull", at=5) as server:
        with pytest.raises(ClusterUnhealthyError) as caught:
            wait(server, timeout_s=600, explain=lambda *_: cause(permanent=True))
        assert caught.value.message == "the image cannot be pulled\n  manifest unknown"
        assert caught.value.hint == "Name another"
        assert "head" in str(caught.value.where)


def test_a_cause_that_may_heal_is_told_and_waited_out(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(_wait, "_FIRST_LOOK_S", 0.1)
    monkeypatch.setattr(_wait, "_TOLD_S", 0.4)
    told: list[tuple[float, Cause | None]] = []
    began = time.monotonic()
    found = cause(permanent=False)

    def on_change(_: Sequence[Progress], cause: Cause | None) -> None:
        told.append((time.monotonic() - began, cause))
        clock.ahead = 30 if cause else 0

    with RecordedServer("06-head-imagepull", at=5) as server:
        with pytest.raises(ClusterTimeoutError) as caught:
            wait(server, timeout_s=30, explain=lambda *_: found, on_change=on_change)
    assert (
        caught.value.message == "not ready (pods) after 30 s: the image cannot be pulled\n  manifest unknown"
    )
    assert caught.value.hint == "Name another"
    assert told[0][1] is None
    assert told[-1][1] == found
    assert all(t >= 0.4 for t, cause in told if cause)


def test_a_cause_that_has_healed_is_no_longer_told(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for name, value in (("_FIRST_LOOK_S", 0.0), ("_TOLD_S", 0.0), ("_LOOK_S", 0.1), ("_COST", 0.0)):
        monkeypatch.setattr(_wait, name, value)
    causes = iter([cause(permanent=False)])
    told: list[Cause | None] = []

    def on_change(_: Sequence[Progress], cause: Cause | None) -> None:
        told.append(cause)
        clock.ahead = 120 if cause is None and any(told) else 0

    with RecordedServer("01b-ready-slow", at=5) as server:
        with pytest.raises(ClusterTimeoutError, match="head: not ready yet"):
            wait(server, explain=lambda *_: next(causes, None), on_change=on_change)
    assert [bool(each) for each in told] in ([False, True, False], [True, False])


def test_a_group_that_cannot_come_does_not_end_the_wait_for_workers_of_others() -> None:
    with RecordedServer("03-unschedulable-gpu", at=5) as server:
        groups = server.recording.snapshot_at(5).cluster["spec"]["workerGroupSpecs"]  # type: ignore[index]
        assert len(groups) == 1
        with pytest.raises(ClusterUnhealthyError):
            wait(
                server, "workers=2", 10, ask_ray=lambda _: b"", explain=lambda *_: cause(permanent=True, component="worker group gpu"),
            )  # fmt: skip
    with RecordedServer("02c-swap-groups", at=12) as server:
        with pytest.raises(ClusterTimeoutError):
            wait(
                server, "workers=4", 1.5, ask_ray=lambda _: b"", explain=lambda *_: cause(permanent=True, component="worker group a"),
            )  # fmt: skip


def test_the_causes_of_the_package_are_found_without_naming_them() -> None:
    with RecordedServer("10-reject-min-over-max", at=5) as server:
        with pytest.raises(ClusterUnhealthyError, match="minReplicas"):
            wait_until(server.api(), server.namespace, server.cluster, "pods", 60)


def test_each_step_of_each_component_is_told(pool: ThreadPoolExecutor) -> None:
    told: list[tuple[tuple[str, int, int, str], ...]] = []
    wait_for_the_head = ("worker group worker", 2, 0, "2 waiting for the head")
    both_wait = threading.Event()

    def on_change(states: Sequence[Progress], cause: Cause | None) -> None:
        assert cause is None
        told.append(tuple((s.component, s.wanted, s.ready, s.waits_for) for s in states))
        if told[-1][1] == wait_for_the_head:
            both_wait.set()

    with RecordedServer("01b-ready-slow", at=0.07) as server:
        waiting = pool.submit(wait, server, on_change=on_change)
        server.await_watches(2)
        server.step_to(5)
        assert both_wait.wait(120)
        server.step_to(20)
        waiting.result(120)
        server.step_to(30)
    assert len(told) == len(dict.fromkeys(told)), "nothing is told twice"
    heads = [states[0] for states in told]
    workers = [states[1] for states in told]
    assert wait_for_the_head in workers
    assert heads[-1] == ("head", 1, 1, "")
    assert workers[-1] == ("worker group worker", 2, 2, "")


def test_an_api_server_that_stays_away_is_named_at_the_time_out(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    went_away = _wait.Watch._went_away

    def refused(watch: _wait.Watch, error: ClusterError) -> None:
        went_away(watch, error)
        if watch.kind == RAY_CLUSTER and "refused" in error.message:
            clock.ahead = 120
            watch._feed.put(None)

    monkeypatch.setattr(_wait.Watch, "_went_away", refused)
    with RecordedServer("01b-ready-slow", at=5) as server:
        waiting = pool.submit(wait, server)
        server.await_watches(2)
        server.stop()
        with pytest.raises(ClusterTimeoutError, match="the API server cannot be reached: connection refused"):
            waiting.result(120)


# --- Ray's half ---------------------------------------------------------------------------------------------------


class Ray:
    """Ray's dashboard as far as a wait asks it; the nodes of a snapshot's pods are alive unless they are taken away."""

    def __init__(self, server: RecordedServer, snapshot: Snapshot) -> None:
        self.asked: list[float] = []
        self.nodes = [
            {
                "node_id": pod["metadata"]["uid"],
                "node_ip": pod["status"]["podIP"],
                "is_head_node": pod["metadata"]["labels"]["ray.io/node-type"] == "head",
                "state": "ALIVE",
                "resources_total": {"CPU": 2.0 if "head" in pod["metadata"]["name"] else 1.0},
            }
            for pod in snapshot.pods
            if pod["status"].get("podIP")
        ]
        self.more: Callable[[Ray], None] = lambda _: None

    def __call__(self, path: str) -> bytes:
        self.asked.append(time.monotonic())
        self.more(self)
        assert path.startswith("/api/v0/nodes?")
        return json.dumps({"result": True, "msg": "", "data": {"result": {"result": self.nodes}}}).encode()

    def proxied(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        return 200, self(path)


def test_ready_is_when_ray_has_every_worker_with_its_cpus(pool: ThreadPoolExecutor) -> None:
    with RecordedServer("01-ready", at=1) as server:
        ray = Ray(server, server.recording.snapshot_at(1))
        late, small = ray.nodes.pop(), ray.nodes[-1]
        assert not late["is_head_node"]
        small["resources_total"] = {"CPU": 0.0}

        def more(ray: Ray) -> None:
            if len(ray.asked) == 3:
                ray.nodes.append(late)
            if len(ray.asked) == 5:
                small["resources_total"] = {"CPU": 1.0}

        ray.more = more
        told: list[str] = []
        wait(server, "ready", ask_ray=ray, on_change=lambda states, _: told.append(states[1].waits_for))
        assert len(ray.asked) == 5
        assert told[0] == ""
        assert told[1].startswith("0 of 2 in Ray's node table")
        assert any("with 0 of 1 CPUs" in words for words in told)


def test_ray_is_asked_from_50_ms_up_to_1_s_apart(clock: Clock) -> None:
    def more(ray: Ray) -> None:
        if len(ray.asked) == 7:
            clock.ahead = 120

    with RecordedServer("01-ready", at=1) as server:
        ray = Ray(server, server.recording.snapshot_at(1))
        ray.nodes.pop()
        ray.more = more
        with pytest.raises(ClusterTimeoutError, match="1 of 2 in Ray's node table"):
            wait(server, "ready", ask_ray=ray)
        pauses = [b - a for a, b in pairwise(ray.asked)]
        # A busy machine makes them longer, never shorter.
        least = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
        assert all(pause >= bound for pause, bound in zip(pauses, least, strict=False))
        assert len(ray.asked) == 7


def test_ray_is_not_asked_before_the_pods_are_ready_nor_for_pods_alone(pool: ThreadPoolExecutor) -> None:
    with RecordedServer("13-head-pod-deleted", at=10) as server:
        ray = Ray(server, server.recording.snapshot_at(20))
        waiting: Future[Snapshot] = pool.submit(wait, server, "ready", ask_ray=ray)
        server.await_watches(2)
        server.step_to(16)
        assert ray.asked == []
        server.step_to(20)
        waiting.result(120)
        count = len(ray.asked)
        wait(server, "pods", ask_ray=ray)
        assert len(ray.asked) == count


def test_what_ray_said_before_a_worker_crashed_counts_no_more(pool: ThreadPoolExecutor) -> None:
    """The same pod at the same address: only when Ray was asked tells the two apart."""
    with RecordedServer("08-worker-oom-crashloop", at=3) as server:
        ray = Ray(server, server.recording.snapshot_at(3))
        asked, go, crashed = threading.Event(), threading.Event(), threading.Event()

        def more(_: Ray) -> None:
            asked.set()
            assert go.wait(120)

        ray.more = more

        def on_change(states: Sequence[Progress], _: Cause | None) -> None:
            if states[1].ready == 1:
                crashed.set()

        waiting = pool.submit(wait, server, "ready", ask_ray=ray, on_change=on_change)
        server.await_watches(2)
        assert asked.wait(120)
        server.step_to(10)  # the worker has crashed; Ray has not answered yet
        assert crashed.wait(120)
        server.step_to(17)
        go.set()
        assert version(waiting.result(120)) >= version_at(server, 14.651)
        assert len(ray.asked) == 2


def test_the_dashboard_is_asked_through_the_api_servers_proxy() -> None:
    with RecordedServer("01-ready", at=1) as server:
        ray = Ray(server, server.recording.snapshot_at(1))
        server.proxy = ray.proxied
        wait(server, "ready")
        assert len(ray.asked) == 1
        head = next(p for p in server.recording.snapshot_at(1).pods if "head" in p["metadata"]["name"])
        asked = [each.path for each in server.asked if "/proxy/" in each.path]
        assert asked == [
            f"/api/v1/namespaces/{server.namespace}/pods/{head['metadata']['name']}:8265/proxy/api/v0/nodes"
        ]


def test_the_token_is_read_once_the_operator_has_made_it() -> None:
    recording = copy.deepcopy(Recording.load("17-auth-token"))
    for change in recording.changes:
        if change.object["kind"] == "Secret":
            change.object["data"]["auth_token"] = base64.b64encode(b"the-token").decode()
    with RecordedServer(recording=recording, at=2) as server:
        ray = Ray(server, recording.snapshot_at(2))
        tokens: list[str | None] = []

        def proxied(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
            tokens.append(headers.get("X-Ray-Authorization"))
            return ray.proxied(method, path, headers)

        server.proxy = proxied
        server.refuse(r"/secrets/", 404, "NotFound", times=2)
        wait(server, "ready")
        assert server._refused == []
        assert tokens == ["Bearer the-token"]


def test_ray_is_asked_over_one_kept_connection() -> None:
    with RecordedServer("01-ready", at=1) as server:
        ray = Ray(server, server.recording.snapshot_at(1))
        late = ray.nodes.pop()
        ray.more = lambda ray: ray.nodes.append(late) if len(ray.asked) == 5 else None

        def proxied(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
            server.await_watches(2)  # which have taken connections of their own by then
            return ray.proxied(method, path, headers)

        server.proxy = proxied
        wait(server, "ready")
        assert len(ray.asked) == 5
        assert len({each.port for each in server.asked if "/proxy/" in each.path}) == 1


def test_a_dashboard_that_is_slow_delays_neither_the_time_out_nor_control_c() -> None:
    done = threading.Event()

    def slow(_: str) -> bytes:
        done.wait(30)
        return b"{}"

    with RecordedServer("01-ready", at=1) as server:
        began = time.monotonic()
        try:
            with pytest.raises(ClusterTimeoutError):
                wait(server, "ready", 0.5, ask_ray=slow)
            assert not done.is_set()
            assert time.monotonic() - began < 25, "it did not wait for the answer"
        finally:
            done.set()


def test_a_token_that_ray_goes_on_refusing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sp_ray_ml.cluster import _ray_join

    monkeypatch.setattr(_ray_join, "_REFUSED_S", 0.3)

    def refuse(_: str) -> bytes:
        raise KubernetesAccessError("Ray refuses the token", status=403)

    with RecordedServer("01-ready", at=1) as server:
        with pytest.raises(KubernetesAccessError, match="Ray refuses the token"):
            wait(server, "ready", ask_ray=refuse)


def test_what_is_not_rays_dashboard_is_named_at_the_time_out(clock: Clock) -> None:
    def on_change(states: Sequence[Progress], _: Cause | None) -> None:
        if any("not Ray's dashboard" in state.waits_for for state in states):
            clock.ahead = 120

    with RecordedServer("01-ready", at=1) as server:
        with pytest.raises(ClusterTimeoutError, match="not Ray's dashboard"):
            wait(server, "ready", ask_ray=lambda _: b"<html>", on_change=on_change)


def test_a_mistake_in_asking_is_not_swallowed() -> None:
    def wrong(_: str) -> bytes:
        raise ZeroDivisionError

    with RecordedServer("01-ready", at=1) as server:
        with pytest.raises(ZeroDivisionError):
            wait(server, "ready", ask_ray=wrong)
