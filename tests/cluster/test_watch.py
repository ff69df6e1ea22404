"""A watch misses nothing and tells nothing twice, whatever becomes of its connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sp_ray_ml.cluster import _watch
from sp_ray_ml.cluster._kinds import POD, RAY_CLUSTER, Kind
from sp_ray_ml.cluster._watch import Change, Feed, Watch
from sp_ray_ml.errors import KubernetesAccessError, KubernetesError

from .recorded import RecordedServer

NAME = "02-scale"


@pytest.fixture
def server() -> Iterator[RecordedServer]:
    with RecordedServer(NAME, at=-1) as server:
        yield server


def watch(server: RecordedServer, kind: Kind = POD, **options: Any) -> tuple[Watch, Feed]:
    feed = Feed()
    return Watch(server.api(), kind, server.namespace, feed, **options), feed


def told(feed: Feed, until: Callable[[list[Change]], bool], timeout_s: float = 120) -> list[Change]:
    """What comes until something holds of all of it."""
    seen: list[Change] = []
    end = time.monotonic() + timeout_s
    while not until(seen):
        assert time.monotonic() < end, [change.type for change in seen]
        seen += feed.take(0.2)
    return seen


def synced(seen: list[Change]) -> bool:
    return any(change.type == "SYNCED" for change in seen)


def expected(server: RecordedServer, kind: str, start: int, end: int) -> list[tuple[str, str, str]]:
    """Type, uid and version of each event, from the recording's own file."""
    return [
        (change.type, change.object["metadata"]["uid"], change.object["metadata"]["resourceVersion"])
        for change in server.recording.changes[start:end]
        if change.object["kind"] == kind
    ]


def events(seen: list[Change]) -> list[tuple[str, str, str]]:
    return [
        (change.type, change.object["metadata"]["uid"], change.object["metadata"]["resourceVersion"])
        for change in seen
        if change.object
    ]


def seen_all(server: RecordedServer, start: int, end: int) -> Callable[[list[Change]], bool]:
    wanted = len(expected(server, "Pod", start, end))
    return lambda seen: len(events(seen)) >= wanted


def now(server: RecordedServer, kind: str = "Pod") -> dict[str, str]:
    return {
        item["metadata"]["uid"]: item["metadata"]["resourceVersion"]
        for item in server.recording.objects(server.position).values()
        if item["kind"] == kind
    }


def have(watch: Watch) -> dict[str, str]:
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in watch.objects()}


def test_every_event_comes_once_and_in_order(server: RecordedServer) -> None:
    one, feed = watch(server)
    with one:
        told(feed, synced)
        server.step_to(server.recording.end)
        total = len(server.recording.changes)
        assert events(told(feed, seen_all(server, 0, total))) == expected(server, "Pod", 0, total)
        assert one.objects() == []
        assert feed.take(0.2) == []
    listed = [each for each in server.asked if not each.watch]
    assert len(listed) == 1


def test_every_event_comes_once_over_connections_that_break_again_and_again(server: RecordedServer) -> None:
    one, feed = watch(server)
    total = len(server.recording.changes)
    with one:
        seen = told(feed, synced)
        for position in range(0, total, 12):
            server.await_watches(1)
            server.step(6)
            server.drop()
            server.step(6)
            end = min(position + 12, total)
            rest = len(expected(server, "Pod", 0, end)) - len(events(seen))
            seen += told(feed, lambda more, rest=rest: len(events(more)) >= rest)
        assert events(seen) == expected(server, "Pod", 0, total)
        assert feed.take(0.2) == []
    assert len([each for each in server.asked if not each.watch]) == 1, "it resumed, it did not list again"


def test_a_half_open_connection_is_noticed(server: RecordedServer) -> None:
    one, feed = watch(server, open_s=1, silence_s=0.3)
    with one:
        told(feed, synced)
        server.await_watches(1)
        server.silence()
        server.step_to(5)
        assert events(told(feed, seen_all(server, 0, server.position))) == expected(
            server, "Pod", 0, server.position
        )
        assert have(one) == now(server)


def test_a_watch_that_the_server_ends_in_time_goes_on_without_a_list(server: RecordedServer) -> None:
    one, feed = watch(server, open_s=1)
    with one:
        told(feed, synced)
        server.await_watches(1)
        first = server.watchers[0]
        end = time.monotonic() + 120
        while first in server.watchers or not server.watchers:
            assert time.monotonic() < end
            with server._changed:
                server._changed.wait(0.1)
        server.step_to(5)
        assert events(told(feed, seen_all(server, 0, server.position))) == expected(
            server, "Pod", 0, server.position
        )
        assert one.away_since is None
    assert len([each for each in server.asked if not each.watch]) == 1


@pytest.mark.parametrize("as_status", [False, True], ids=["event", "status"])
def test_an_expired_version_leads_to_a_new_list_whose_differences_are_told(
    server: RecordedServer, as_status: bool
) -> None:
    one, feed = watch(server)
    server.step_to(3)
    with one:
        told(feed, synced)
        before = have(one)
        assert before == now(server)
        server.await_watches(1)
        server.stop()
        server.step_to(15)  # pods have come and gone that no watch has seen
        server.forget(as_status=as_status)
        server.start()
        seen = told(feed, synced)
        after = now(server)
        assert have(one) == after
        found = {
            type: {e[1] for e in events(seen) if e[0] == type} for type in ("ADDED", "MODIFIED", "DELETED")
        }
        assert found["ADDED"] == after.keys() - before.keys()
        assert found["DELETED"] == before.keys() - after.keys()
        assert found["MODIFIED"] == {uid for uid in after.keys() & before.keys() if after[uid] != before[uid]}
        assert found["ADDED"] or found["DELETED"]
        assert len(events(seen)) == len({e[1] for e in events(seen)})
        server.await_watches(1)
        start = server.position
        server.step_to(server.recording.end)
        more = told(feed, seen_all(server, start, server.position))
        assert events(more) == expected(server, "Pod", start, server.position)


def test_a_server_stopped_and_started_is_waited_for_and_resumed(server: RecordedServer) -> None:
    one, feed = watch(server)
    server.step_to(3)
    with one:
        told(feed, synced)
        start = server.position
        server.stop()
        away = told(feed, lambda seen: any(change.type == "AWAY" for change in seen))
        assert one.away_since is not None
        assert not events(away)
        server.step_to(12)
        server.start()
        seen = told(feed, seen_all(server, start, server.position))
        assert events(seen) == expected(server, "Pod", start, server.position)
        assert one.away_since is None
        assert have(one) == now(server)


def test_a_server_that_is_too_busy_is_asked_again(server: RecordedServer) -> None:
    server.refuse(r"/pods", 429, "TooManyRequests", times=3)
    one, feed = watch(server)
    with one:
        told(feed, synced)
        server.refuse(r"watch=1", 503, "ServiceUnavailable", times=2)
        server.drop()
        server.step_to(3)
        told(feed, lambda _: have(one) == now(server))


def test_bookmarks_move_the_version_from_which_it_goes_on() -> None:
    with RecordedServer("06-head-imagepull", at=-1, bookmarks_s=0.1) as server:
        # Nothing of this kind happens, but versions go on, and the old ones expire.
        one, feed = watch(server, labels="ray.io/cluster=another")
        with one:
            told(feed, synced)
            server.step_to(10)
            end = time.monotonic() + 120
            while one._version != str(server.version):
                assert time.monotonic() < end
                with server._changed:
                    server._changed.wait(0.05)
            server.forget()
            server.drop()
            server.await_watches(1)
        assert len([each for each in server.asked if not each.watch]) == 1


def test_selectors_are_the_servers_work(server: RecordedServer) -> None:
    server.step_to(3)
    pods, feed = watch(server, labels="ray.io/cluster=demo,ray.io/node-type=head")
    clusters, _ = watch(server, RAY_CLUSTER, fields="metadata.name=demo")
    none, other = watch(server, RAY_CLUSTER, fields="metadata.name=another")
    with pods, clusters, none:
        told(feed, synced)
        told(other, synced)
        assert [pod["metadata"]["labels"]["ray.io/node-type"] for pod in pods.objects()] == ["head"]
        assert none.objects() == []
        told(clusters._feed, lambda _: len(clusters.objects()) == 1)


def test_several_watches_share_a_feed(server: RecordedServer) -> None:
    feed, api = Feed(), server.api()
    pods = Watch(api, POD, server.namespace, feed)
    clusters = Watch(api, RAY_CLUSTER, server.namespace, feed)
    with pods, clusters:
        server.step_to(3)
        seen = told(feed, lambda _: have(pods) == now(server) and have(clusters) == now(server, "RayCluster"))
        assert {change.watch for change in seen if change.object} == {pods, clusters}


@pytest.mark.parametrize(("status", "reason"), [(401, "Unauthorized"), (403, "Forbidden")])
def test_credentials_that_are_refused_reach_the_consumer(
    server: RecordedServer, status: int, reason: str
) -> None:
    server.refuse(r"/pods", status, reason)
    one, feed = watch(server)
    with one:
        last = told(feed, lambda seen: any(change.type == "FAILED" for change in seen))[-1]
        assert isinstance(last.error, KubernetesAccessError)
        one._thread.join(5)
        assert not one._thread.is_alive()


def test_a_missing_crd_reaches_the_consumer(server: RecordedServer) -> None:
    server.refuse(r"/rayclusters", 404, "NotFound")
    one, feed = watch(server, RAY_CLUSTER)
    with one:
        last = told(feed, lambda seen: any(change.type == "FAILED" for change in seen))[-1]
        assert isinstance(last.error, KubernetesError)
        assert "RayClusters" in last.error.message


def test_a_server_that_has_just_started_and_refuses_for_a_moment_is_not_believed(
    server: RecordedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "_BELIEVED_S", 1_000)  # however long the three take here
    one, feed = watch(server)
    with one:
        told(feed, synced)
        server.await_watches(1)
        server.refuse(r"/pods", 403, "Forbidden", times=3)
        server.drop()
        server.step_to(3)
        seen = told(feed, lambda _: have(one) == now(server))
        assert server._refused == [], "it was refused, three times"
        assert not [change for change in seen if change.type == "FAILED"]


def test_a_server_that_goes_on_refusing_is_believed(
    server: RecordedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "_BELIEVED_S", 0.2)
    one, feed = watch(server)
    with one:
        told(feed, synced)
        server.await_watches(1)
        server.refuse(r"/pods", 403, "Forbidden")
        server.drop()
        seen = told(feed, lambda seen: any(change.type == "FAILED" for change in seen))
        assert isinstance(seen[-1].error, KubernetesAccessError)


@pytest.mark.parametrize("state", ["open", "half-open", "away", "never started"])
def test_close_ends_the_thread(server: RecordedServer, state: str) -> None:
    before = set(threading.enumerate())
    one, feed = watch(server, open_s=3_600)  # only `close` ends it in time
    if state != "never started":
        one.start()
        told(feed, synced)
        server.await_watches(1)
    if state == "half-open":
        server.silence()
    if state == "away":
        server.stop()
        told(feed, lambda seen: any(change.type == "AWAY" for change in seen))
    one.close()
    if state != "never started":
        one._thread.join(60)
    assert not one._thread.is_alive()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("watch-")]
