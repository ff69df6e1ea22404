"""Applying and removing teams on an API server in memory: Leases, what outlives a team, and what is saved before it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster import Team, _team_lease
from sp_ray_ml.cluster._black_box import IN_CLUSTER, save_black_box
from sp_ray_ml.cluster._black_box_store import is_shared
from sp_ray_ml.cluster._kinds import (
    CONFIG_MAP,
    LEASE,
    NAMESPACE,
    QUOTA,
    RAY_CLUSTER,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
)
from sp_ray_ml.cluster._post_mortem import read_post_mortem
from sp_ray_ml.cluster._team_apply import carry_out, look
from sp_ray_ml.cluster._team_lease import Leases
from sp_ray_ml.errors import ClusterError, StorageError

from .kept import Kept

SPACE = "team-graph"
UID = "3f6c1a52-aaaa-bbbb-cccc-0123456789ab"
ALL = frozenset({"adopt", "below_use", "with_clusters", "force"})


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def team(**more: Any) -> Team:
    return Team(**{"name": "graph", "owners": ["ada@example.com"], "quotas": {"cpus": 8}, **more})


def run(api: Kept, wanted: Team | None, **more: Any) -> list[str]:
    """Apply or delete; what was told."""
    steps: list[str] = []
    given = {"confirm": lambda _: True, "on_step": steps.append, **more}
    carry_out(api, "graph", wanted, ALL, **given)
    return steps


def cluster(name: str = "mine", **annotations: str) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}
    return {
        "apiVersion": RAY_CLUSTER.api_version, "kind": "RayCluster",
        "metadata": {
            "name": name, "namespace": SPACE, "uid": UID, "creationTimestamp": "2026-11-21T20:00:00Z",
            "annotations": {f"sp-ray/{key.replace('_', '-')}": value for key, value in annotations.items()},
        },
        "spec": {"headGroupSpec": {"template": template}},
    }  # fmt: skip


def boxes(tmp_path: Path, name: str = "mine") -> list[Path]:
    return sorted((tmp_path / "data/sp-ray/black-boxes" / SPACE).glob(f"{name}-{UID[:8]}/*/manifest.json"))


# --- what clusters leave behind -------------------------------------------------------------------------------------


def test_a_folder_that_a_member_names_is_not_written_by_whoever_deletes_the_team(tmp_path: Path) -> None:
    api = Kept()
    run(api, team())
    theirs = tmp_path / "theirs"
    for number, place in enumerate((str(theirs), f"file://{theirs}", f"simplecache::file://{theirs}")):
        api.put(cluster(f"c{number}", black_box=place))
    run(api, None)
    assert not theirs.exists()
    assert all(len(boxes(tmp_path, f"c{number}")) == 1 for number in range(3))
    assert api.find(NAMESPACE, None, SPACE) is None
    assert is_shared("gs://logs/a")
    assert not any(map(is_shared, ("", "configmap:", "memory://a", "~/logs")))


def test_logs_that_their_url_does_not_take_are_kept_on_this_machine_and_it_is_said(tmp_path: Path) -> None:
    api = Kept()
    run(api, team())
    api.put(cluster(black_box="nowhere://bucket"))
    steps = run(api, None)
    assert any(
        each.startswith("logs of cluster mine cannot be saved at nowhere://bucket: ") for each in steps
    )
    (box,) = boxes(tmp_path)
    assert f"logs of cluster mine: {box.parent}" in steps
    assert steps.index(f"logs of cluster mine: {box.parent}") < steps.index("deleting cluster mine")


def test_where_logs_can_be_kept_nowhere_the_namespace_stays_with_its_walls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Kept()
    run(api, team())
    api.put(cluster())
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "full"))
    with pytest.raises(
        StorageError, match=f"Namespace {SPACE} and its clusters stay until .* XDG_DATA_HOME="
    ):
        run(api, None)
    assert api.find(RAY_CLUSTER, SPACE, "mine")
    assert api.find(QUOTA, SPACE, "sp-ray-team")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    run(api, None)
    assert len(boxes(tmp_path)) == 1
    assert api.find(NAMESPACE, None, SPACE) is None


def test_black_boxes_in_config_maps_of_clusters_that_are_gone_outlive_their_namespace(tmp_path: Path) -> None:
    api = Kept()
    run(api, team())
    api.put(cluster())
    save_black_box(api, SPACE, "mine", IN_CLUSTER, reason="it was idle")
    api.delete(RAY_CLUSTER, SPACE, "mine")
    steps = run(api, team(namespaces=["team-new"]))  # the file has dropped the namespace
    assert api.find(NAMESPACE, None, SPACE) is None
    (box,) = boxes(tmp_path)
    assert f"logs of cluster mine: {box.parent}" in steps
    found = read_post_mortem(None, SPACE, "mine")
    assert (found.place, found.manifest["reason"]) == (str(box.parent), "it was idle")
    assert set(found.manifest["files"]) == {"events.json", "raycluster.json", "summary.md"}
    assert all((box.parent / name).stat().st_size == size for name, size in found.manifest["files"].items())


def test_a_black_box_that_a_member_has_damaged_is_named_and_hinders_nothing(tmp_path: Path) -> None:
    api = Kept()
    run(api, team())
    api.put(cluster())
    save_black_box(api, SPACE, "mine", IN_CLUSTER)
    whole = api.get(CONFIG_MAP, SPACE, "mine-black-box")
    stamp = next(iter(whole["binaryData"])).removesuffix(".tar.gz")
    damaged = {**whole["metadata"], "name": "other-black-box"}
    api.put({**whole, "metadata": damaged, "binaryData": {f"{stamp}.tar.gz": "H4sIAAAA"}})
    elsewhere = {
        **whole["metadata"],
        "name": "third-black-box",
        "annotations": {"sp-ray/cluster-uid": "../../x"},
    }
    api.put({**whole, "metadata": elsewhere})
    api.delete(RAY_CLUSTER, SPACE, "mine")
    steps = run(api, None)
    assert f"logs of cluster other: not kept: {stamp} in ConfigMap other-black-box is no black box" in steps
    assert "logs of cluster third: not kept: ConfigMap third-black-box names no cluster" in steps
    assert len(boxes(tmp_path)) == 1
    assert len(list((tmp_path / "data").rglob("manifest.json"))) == 1


# --- what was there before --------------------------------------------------------------------------------------------


def account(**labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "robot", "namespace": SPACE, "labels": labels},
    }  # fmt: skip


def test_what_was_there_before_its_team_outlives_it_without_a_trace() -> None:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": {"own": "1"}}}
    api = Kept(space, account(own="1"))
    wanted = team(identity={"service_account": "robot"})
    run(api, wanted)
    there = api.get(SERVICE_ACCOUNT, SPACE, "robot")["metadata"]
    assert (there["labels"], there["annotations"]) == (
        {"own": "1", "sp-ray/team": "graph"},
        {"sp-ray/adopted": "true"},
    )
    assert look(api, "graph", wanted)[1].changes == ()  # the next apply keeps the mark
    changes = look(api, "graph", None)[1].changes
    assert {(each.kind, each.name) for each in changes if each.action == "release"} == {
        ("Namespace", SPACE), ("ServiceAccount", "robot"),
    }  # fmt: skip
    run(api, team(identity={"service_account": "other"}))
    there = api.get(SERVICE_ACCOUNT, SPACE, "robot")["metadata"]
    assert (there["labels"], there["annotations"]) == ({"own": "1"}, {})
    run(api, None)
    assert api.find(NAMESPACE, None, SPACE)
    assert api.find(SERVICE_ACCOUNT, SPACE, "robot")
    assert api.find(SERVICE_ACCOUNT, SPACE, "other") is None
    assert api.list(ROLE_BINDING, SPACE)[0] == []


def test_rights_of_our_names_never_outlive_the_team() -> None:
    binding = {
        "apiVersion": ROLE_BINDING.api_version, "kind": "RoleBinding",
        "metadata": {"name": "sp-ray-owner", "namespace": SPACE}, "subjects": [],
    }  # fmt: skip
    api = Kept({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}, binding)
    run(api, team())
    run(api, None)
    assert api.list(ROLE_BINDING, SPACE)[0] == []


def test_who_may_come_into_an_adopted_namespace_besides_its_members_is_said() -> None:
    def body(kind: str, version: str, name: str, **labels: str) -> dict[str, Any]:
        return {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": name, "namespace": SPACE, "labels": labels},
        }

    policies = "networking.k8s.io/v1"
    api = Kept(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}},
        body("RoleBinding", ROLE_BINDING.api_version, "friends"), body("NetworkPolicy", policies, "open"),
        body("NetworkPolicy", policies, "mine", **{"ray.io/cluster": "mine"}),
    )  # fmt: skip
    said = f"not touched in namespace {SPACE}: RoleBinding friends, NetworkPolicy open; who they let in stays let in"
    assert said in look(api, "graph", team())[1].notes
    run(api, team())
    assert said in look(api, "graph", team())[1].notes
    own = Kept()
    run(own, team())
    own.put(body("RoleBinding", ROLE_BINDING.api_version, "friends"))
    assert not any("not touched" in note for note in look(own, "graph", team())[1].notes)


# --- one at a time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_team_lease, "_LEASE_S", 1)


def await_(look_: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (found := look_()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)
    return found


def lease(api: Kept) -> dict[str, Any] | None:
    found = api.find(LEASE, SPACE, "sp-ray-team")
    return found and found["spec"]


def take_over(api: Kept) -> None:
    """As another one does whose clock says that it has run out."""
    spec = {"holderIdentity": "bob on another machine", "acquireTime": "2026-11-24T12:00:00.000000Z"}
    api.patch(LEASE, SPACE, "sp-ray-team", {"spec": spec})


@pytest.mark.usefixtures("short")
def test_a_lease_is_renewed_while_one_step_takes_long_and_given_back_at_the_end() -> None:
    api = Kept()
    with Leases(api, "graph") as held:
        held.take([SPACE])
        first = lease(api)
        assert first is not None
        assert first["holderIdentity"].startswith("ada on ")
        await_(lambda: lease(api) != first)
        held.check()
        with pytest.raises(ClusterError, match="is being applied in namespace team-graph by ada on"):
            with Leases(api, "graph") as other:
                other.take([SPACE])
        assert lease(api), "who was refused has deleted it"
    assert lease(api) is None


@pytest.mark.usefixtures("short")
def test_who_has_lost_a_lease_stops_and_leaves_it_to_who_has_it() -> None:
    api = Kept()
    with Leases(api, "graph") as held:
        held.take([SPACE])
        take_over(api)
        await_(lambda: held._lost)
        with pytest.raises(
            ClusterError, match="lost in namespace team-graph to bob on another machine: nothing more"
        ):
            held.check()
    spec = lease(api)
    assert spec is not None
    assert spec["holderIdentity"] == "bob on another machine"


@pytest.mark.usefixtures("short")
def test_a_lease_that_cannot_be_renewed_counts_as_lost_when_it_has_run_out() -> None:
    api = Kept()
    with Leases(api, "graph") as held:
        held.take([SPACE])
        api.fails[LEASE.path(SPACE, "sp-ray-team")] = ClusterError("the API server cannot be reached")

        def lost() -> str:
            try:
                held.check()
            except ClusterError as error:
                return error.message
            return ""

        assert "lost in namespace team-graph, as it could not be renewed" in await_(lost)


@pytest.mark.usefixtures("short")
def test_an_apply_that_has_lost_its_lease_does_no_further_step() -> None:
    api = Kept()
    run(api, team())
    steps: list[str] = []

    def step(text: str) -> None:
        steps.append(text)
        if text.startswith("ResourceQuota"):
            take_over(api)
            asked = api.asked
            await_(lambda: api.asked >= asked + 2)  # its thread has looked at the Lease since

    with pytest.raises(ClusterError, match="the right to apply was lost"):
        run(api, team(quotas={"cpus": 4}), on_step=step)
    assert steps[-1].startswith("ResourceQuota")


def test_a_namespace_that_goes_takes_its_lease_with_it_and_that_is_no_loss() -> None:
    api = Kept()
    run(api, team(namespaces=[SPACE, "team-old"]))
    run(api, team())
    assert api.find(NAMESPACE, None, "team-old") is None
    assert lease(api) is None
