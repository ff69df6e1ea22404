"""Hours and money: from pods' life times and Ray's answers to sums by cluster, person and team. No cluster."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from sp_ray_ml.cli._cluster_options import table
from sp_ray_ml.cli.team_usage import _cells
from sp_ray_ml.cluster._delete import delete
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_text import read_duration
from sp_ray_ml.cluster._usage import Share, advance, now_of, total_of
from sp_ray_ml.cluster._usage_ray import share_of
from sp_ray_ml.cluster._usage_report import report_of
from sp_ray_ml.cluster._usage_store import _entries, _folded
from sp_ray_ml.cluster.team_prices import Prices, read_prices
from sp_ray_ml.cluster.team_usage import _first_day
from sp_ray_ml.errors import ClusterError, ConfigError

from .kept import Kept

NOON = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)


def at(hours: float) -> datetime.datetime:
    return NOON + datetime.timedelta(hours=hours)


def pod(
    start: float | None, end: float | None = None, cpu: str = "2", gpus: int = 0, **spec: Any
) -> dict[str, Any]:
    requests = {"cpu": cpu, "memory": "4Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    status: dict[str, Any] = {"phase": "Running"}
    if start is not None:
        status["startTime"] = at(start).isoformat()
    if end is not None:
        done = {"terminated": {"finishedAt": at(end).isoformat()}}
        status |= {"phase": "Succeeded", "containerStatuses": [{"state": done}]}
    return {
        "spec": {"containers": [{"name": "ray", "resources": {"requests": requests}}], **spec},
        "status": status,
    }


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "mine", "uid": "u", "creator": "ada@example.com", "until": None, "days": {}, **more}


T4 = {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}}


def total(found: dict[str, Any]) -> dict[str, Any]:
    return total_of(found["days"].values())


def test_hours_are_what_pods_asked_for_from_when_a_node_took_them_until_they_ended():
    found = advance(entry(), [pod(-2), pod(-3, -1), pod(None)], NOON)
    assert total(found) == {"cpu": 8.0, "memory": 16.0, "gpu": {}}


def test_summing_in_steps_is_summing_at_once():
    pods = [pod(-5), pod(-4, -1.5, gpus=2, **T4)]
    steps = entry()
    for hour in (-4.5, -2.25, -1, 0):
        alive = [
            each for each in pods if datetime.datetime.fromisoformat(each["status"]["startTime"]) <= at(hour)
        ]
        steps = advance(steps, alive, at(hour))
    once = advance(entry(), pods, NOON)
    # A pod that ended between two looks is summed to its end by the second one.
    assert total(steps)["gpu"] == pytest.approx(total(once)["gpu"])
    assert total(steps)["cpu"] == pytest.approx(total(once)["cpu"])
    assert advance(once, pods, NOON)["days"] == once["days"]


def test_of_two_who_look_at_once_the_later_one_does_not_sum_what_is_summed_once_more():
    # The agent read its clock, asked Ray and wrote; meanwhile a deletion had summed up to two minutes later.
    later = advance(entry(), [pod(-2)], at(1 / 30))
    written = advance(later, [pod(-2)], NOON)
    assert (written["until"], written["days"]) == (later["until"], later["days"])
    assert total(advance(written, [pod(-2)], at(1)))["cpu"] == pytest.approx(6)


def test_a_pod_that_was_evicted_or_lost_with_its_node_held_what_it_held_until_then():
    gone = pod(-3)
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": at(-1).isoformat()}
    gone["status"] |= {"phase": "Failed", "conditions": [ready]}
    assert total(advance(entry(), [gone], NOON))["cpu"] == pytest.approx(4)


def test_a_cluster_that_was_suspended_resumed_deleted_and_made_again_has_the_hours_of_its_pods():
    first = advance(entry(), [pod(-8)], at(-7))  # two CPUs for an hour
    first = advance(first, [], at(-5))  # suspended
    first = advance(first, [pod(-4.5)], at(-4))  # resumed half an hour ago, then deleted
    again = advance(entry(uid="v"), [pod(-1)], NOON)
    found = report_of({"graph": [{**each, "namespace": "n"} for each in (first, again)]}, "cluster")
    assert [(row.name, row.cpu_hours) for row in found.rows] == [("n/mine", pytest.approx(5))]


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"name": "a"}', '{"name": 1, "uid": "", "creator": "", "until": null, "days": {}}',
        '{"name": "a", "uid": "", "creator": "", "until": "soon", "days": {}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": {"cpu": NaN}}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": {"cpu": -5}}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": {"gpu": {"t4": "2"}}}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": {"gpu": 5}}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": {"cpu": {"a": 1}}}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": {"cpu": 1e300}}}',
        '{"name": "a", "uid": "", "creator": "", "until": null, "days": {"2026-11-24": 3}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_hours_that_somebody_else_wrote_are_named_and_not_added_up(text):
    body = {"metadata": {"namespace": "n", "name": "sp-ray-usage-2026-11"}, "data": {"mine.00": text}}
    with pytest.raises(ClusterError, match="ConfigMap n/sp-ray-usage-2026-11"):
        _entries(body)
    body["data"] = {"mine.00": json.dumps(advance(entry(), [pod(-2, gpus=1)], NOON, Share(0.5, 0.5)))}
    assert total(_entries(body)["mine.00"])["cpu"] == 4.0


def config_map(name: str, data: dict[str, str], **labels: str) -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "n",
        "labels": {key.replace("_", "/"): text for key, text in labels.items()},
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def test_hours_that_cannot_be_read_hinder_no_deletion_and_it_is_said(caplog):
    cluster = {
        "apiVersion": RAY_CLUSTER.api_version, "kind": "RayCluster",
        "metadata": {"name": "mine", "namespace": "n", "uid": "u-1"}, "spec": {},
    }  # fmt: skip
    month = f"sp-ray-usage-{datetime.datetime.now(datetime.UTC):%Y-%m}"
    damaged = config_map(month, {"mine.00": '{"name": 1}'}, **{"sp-ray_usage": "true"})
    api = Kept(cluster, config_map("sp-ray-team", {"team": "graph"}), damaged)
    with caplog.at_level("WARNING", logger="sp_ray_ml"):
        assert delete(api, "n", "mine", "u-1", False) is None
    assert api.find(RAY_CLUSTER, "n", "mine") is None
    assert f"n/mine: its last hours are not summed for its team: ConfigMap n/{month}" in caplog.text


def test_no_terminal_is_told_anything_by_a_name_that_a_member_wrote(capsys):
    table([["PERSON"], ["ada\x1b[2J\n"]])
    assert capsys.readouterr().out == "PERSON\nada\ufffd[2J\ufffd\n"


def test_large_and_small_amounts_are_shown_as_people_write_them():
    row = {
        "team": "graph", "namespace": "n", "name": "mine", "creator": "ada", "pods": 40, "cpu": 320.0, "cpu_used": 123.4,
        "gpu": {"t4": 8.0}, "gpu_used": 0.5, "cost_hour": 12.0,
    }  # fmt: skip
    assert _cells(row) == ["graph", "n", "mine", "ada", "40", "320", "123.4", "8 t4", "0.5", "12.00"]
    short = advance(entry(namespace="n"), [pod(-0.001)], NOON)
    assert report_of({"graph": [short]}, "cluster").table()[1] == ["n/mine", "<0.01", "0", "0", "<0.01"]


def test_hours_lie_in_the_day_in_which_they_were():
    found = advance(entry(), [pod(-13)], at(1))["days"]
    assert {day: sums["cpu"] for day, sums in found.items()} == {"2026-11-23": 2.0, "2026-11-24": 26.0}


def test_used_and_idle_are_known_only_around_the_time_when_ray_was_asked():
    before = advance(entry(), [pod(-2)], at(-1))
    found = total(advance(before, [pod(-2, gpus=1)], NOON, Share(0.25, 1.0)))
    assert found["cpu_known"] == pytest.approx(0.5)  # two CPUs for a quarter of an hour
    assert found["cpu_used"] == pytest.approx(0.125)
    assert found["gpu_used"] == pytest.approx(0.25)
    row = report_of({"graph": [{**entry(), "namespace": "n", "days": {"2026-11-24": found}}]}, "team").rows[0]
    assert (row.cpu_hours, row.cpu_used, row.cpu_idle, row.cpu_unknown) == pytest.approx(
        (4.0, 0.125, 0.375, 3.5)
    )


def test_what_is_held_now_is_of_pods_that_run():
    assert now_of([pod(-1, gpus=2, **T4), pod(-1, gpus=1), pod(-2, -1), pod(None)]) == {
        "cpu": 4.0, "memory": 8.0, "gpu": {"t4": 2.0, "any": 1.0},
    }  # fmt: skip


# --- Ray's answers ----------------------------------------------------------------------------------------------------


def answers(nodes: list[Any], actors: list[Any], tasks: list[Any]) -> Any:
    def get(path: str) -> bytes:
        found = nodes if "/nodes" in path else actors if "/actors" in path else tasks
        return json.dumps({"data": {"result": {"result": found}}}).encode()

    return get


def ray_node(cpu: float, gpu: float = 0) -> dict[str, Any]:
    return {
        "node_id": "n",
        "node_ip": "1.2.3.4",
        "state": "ALIVE",
        "resources_total": {"CPU": cpu, "GPU": gpu},
    }


def test_used_is_what_tasks_and_actors_hold_also_in_placement_groups_and_calls_of_actors_hold_nothing_more():
    group = "0123456789abcdef0123456789abcdef0100"
    found = share_of(
        answers(
            [ray_node(4, 2), ray_node(4)],
            [
                {
                    "required_resources": {
                        f"CPU_group_{group}": 1.0,
                        f"CPU_group_0_{group}": 1.0,
                        f"GPU_group_{group}": 1.0,
                    }
                },
                {"required_resources": {}},
            ],
            [
                {"type": "NORMAL_TASK", "required_resources": {"CPU": 2.0}},
                {"type": "ACTOR_TASK", "required_resources": {"CPU": 1.0}},
            ],
        )
    )
    assert (found.cpu, found.gpu) == (3 / 8, 0.5)


def test_a_cluster_without_gpus_has_no_share_of_them():
    assert share_of(answers([ray_node(4)], [], [])) == Share(0.0, None)


def test_an_answer_in_another_form_is_an_error_and_no_zero():
    with pytest.raises(ClusterError, match="another form"):
        share_of(answers([ray_node(4)], [3], []))


# --- money ------------------------------------------------------------------------------------------------------------


def entries() -> dict[str, list[dict[str, Any]]]:
    gpu = {"cpu": 10.0, "memory": 40.0, "gpu": {"t4": 5.0, "h100": 1.0}}
    cpu = {"cpu": 100.0, "memory": 0.0, "gpu": {}}
    return {
        "graph": [
            {**entry(name="a"), "namespace": "n", "days": {"2026-11-01": cpu, "2026-11-24": gpu}},
            {**entry(name="b", creator="bob@example.com"), "namespace": "n", "days": {"2026-11-24": cpu}},
        ],
        "other": [{**entry(name="c"), "namespace": "o", "days": {"2026-11-24": cpu}}],
    }


PRICES = Prices(currency="EUR", cpu_hour=0.1, memory_gib_hour=0.01, gpu_hour={"nvidia-tesla-t4": 2.0})


def test_cost_is_by_team_cluster_and_person_and_the_same_in_sum():
    for by, names in (
        ("team", ["graph", "other"]), ("cluster", ["n/a", "n/b", "o/c"]), ("person", ["ada@example.com", "bob@example.com"]),
    ):  # fmt: skip
        found = report_of(entries(), by, prices=PRICES)
        assert sorted(row.name for row in found.rows) == names
        assert found.total.cost == pytest.approx(100 * 0.1 * 3 + 10 * 0.1 + 40 * 0.01 + 5 * 2.0)
        assert sum(row.cost for row in found.rows) == pytest.approx(found.total.cost)


def test_gpus_without_a_price_are_named_and_not_in_the_cost():
    assert report_of(entries(), "team", prices=PRICES).notes == (
        "not in the cost: 1 GPU-hours of type h100, which has no price",
    )


def test_a_report_counts_from_the_day_it_is_asked_for():
    found = report_of(entries(), "cluster", since=datetime.date(2026, 11, 2))
    assert found.total.cpu_hours == 210.0
    assert found.rows[0].cost is None
    assert found.table()[0] == [
        "CLUSTER", "CPU-HOURS", "USED", "IDLE", "NOT ASKED", "GPU-HOURS", "USED", "IDLE", "BY TYPE",
    ]  # fmt: skip


def test_the_table_says_from_which_day_on_it_counts():
    found = report_of(entries(), "cluster", since=datetime.date(2026, 11, 2))
    assert found.table()[-1][0] == "all since 2026-11-02 UTC"
    assert report_of(entries(), "cluster").table()[-1][0] == "all"


@pytest.mark.parametrize(
    ("text", "said"),
    [("12h", r"hours are kept by the day.* Say 1d, or a day"), ("200000w", "before the first day")],
)
def test_a_time_back_that_is_no_number_of_days_is_refused_with_the_way_out(text, said):
    with pytest.raises(ConfigError, match=said):
        _first_day(read_duration(text), NOON)
    assert _first_day(read_duration("1d"), NOON) == datetime.date(2026, 11, 23)


def test_prices_name_a_part_of_a_gpu_by_its_own_name_and_no_type_twice():
    slice_ = "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"
    prices = Prices(cpu_hour=0, gpu_hour={"Tesla-T4-SHARED": 0.1, "Tesla-T4": 0.4, slice_: 0.2})
    assert prices.gpu_hour == {"Tesla-T4-SHARED": 0.1, "t4": 0.4, slice_: 0.2}
    shared = pod(-1, gpus=1, nodeSelector={"nvidia.com/gpu.product": "Tesla-T4-SHARED"})
    found = advance(entry(namespace="n"), [shared], NOON)
    assert report_of({"graph": [found]}, "team", prices=prices).total.cost == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="tesla-t4 is t4, which is there already"):
        Prices(cpu_hour=0, gpu_hour={"t4": 0.4, "tesla-t4": 0.5})


def test_a_misspelt_price_is_named_with_its_line(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text("cpu_hour: 1\ngpu_hours: {t4: 1}\nmemory_gib_hour: -1\n")
    with pytest.raises(ConfigError) as raised:
        read_prices(file)
    text = str(raised.value)
    assert "prices.yaml:2: gpu_hours: unknown; did you mean gpu_hour?" in text
    assert "prices.yaml:3: memory_gib_hour: must be greater than or equal to 0" in text


def test_the_example_is_a_price_table():
    from pathlib import Path

    assert read_prices(Path(__file__).parents[2] / "examples/teams/prices.yaml").gpu_hour["t4"] > 0


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_more_clusters_than_a_config_map_holds_are_summed_by_person_and_no_hour_is_lost():
    day = {f"2026-11-{n:02}": {"cpu": 1.0, "memory": 2.0, "gpu": {"t4": 1.0}} for n in range(1, 29)}
    many = {
        f"c{n}.{n:08}": entry(
            name=f"c{n}", creator=f"p{n % 3}@example.com", until=at(n / 100).isoformat(), days=day
        )
        for n in range(1500)
    }
    found = _folded(many, {"c0.00000000"})
    assert len(json.dumps(found)) < 2**20
    assert "c0.00000000" in found
    assert sum(each["name"] == "(earlier clusters)" for each in found.values()) == 3
    hours = total_of(d for each in found.values() for d in each["days"].values())
    assert hours["cpu"] == pytest.approx(1500 * 28)
