"""How long a cluster idles and lives: warned of first, suspended then, deleted last, and nothing of it while in use."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml.cluster._lifetime import (
    lifetime_annotations,
    lifetime_lines,
    lifetime_notes,
    resumed_annotations,
)
from sp_ray_ml.cluster._lifetime_rules import (
    ACTIVITY,
    EXTENDED_UNTIL,
    KEPT_UNTIL,
    LAST_ACTIVITY,
    WARNED_AT,
    WARNED_OF,
    Activity,
    Lifetime,
    decide,
    grace,
    home_of,
    lead,
    suspended_annotations,
)
from sp_ray_ml.cluster._lifetime_text import read_duration, span, write_duration, write_time
from sp_ray_ml.cluster.settings import ClusterSettings
from sp_ray_ml.errors import ClusterError

START = datetime.datetime(2026, 11, 24, 12, 0, tzinfo=datetime.UTC)
MINUTE, HOUR, DAY = (datetime.timedelta(minutes=1), datetime.timedelta(hours=1), datetime.timedelta(days=1))
EVERY = 5 * MINUTE
IDLE, ACTIVE = Activity("idle"), Activity("active", "1 job running")
UNKNOWN, ABSENT = Activity("unknown", "it does not answer"), Activity("absent", "its pod is not running")


@dataclass
class World:
    """A cluster that the agent looks after, and everything it did."""

    idle: str = "2h"
    ttl: str = "3d"
    now: datetime.datetime = START
    suspend: bool = False
    gone: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    did: list[tuple[datetime.datetime, str, str]] = field(default_factory=list)

    def cluster(self) -> dict[str, Any]:
        annotations = {"sp-ray/idle-timeout": self.idle, "sp-ray/ttl": self.ttl, **self.notes}
        created = START.strftime("%Y-%m-%dT%H:%M:%SZ")
        meta = {"name": "demo", "namespace": "play", "creationTimestamp": created, "annotations": annotations}
        return {"metadata": meta, "spec": {"suspend": self.suspend}}

    def change(self, changes: Any) -> None:
        for key, value in changes.items():
            if value is None:
                self.notes.pop(key, None)
            else:
                self.notes[key] = value

    def look(self, activity: Activity) -> str:
        """One pass of the agent."""
        assert not self.gone
        decision = decide(Lifetime.of(self.cluster()), activity, self.now)
        self.change(decision.changes)
        if decision.action == "suspend":
            self.suspend = True
            self.change(suspended_annotations(self.now))
        self.gone = decision.action == "delete"
        if decision.action != "nothing":
            self.did.append((self.now, decision.action, decision.message))
        return decision.action

    def run(self, activity: Activity, until: datetime.timedelta) -> list[tuple[str, datetime.timedelta]]:
        """Look every five minutes until then; what was done, and when after the start."""
        first = len(self.did)
        while self.now <= START + until and not self.gone:
            self.look(activity)
            self.now += EVERY
        return [(action, at - START) for at, action, _ in self.did[first:]]


# --- what happens when --------------------------------------------------------------------------------------------


def test_an_idle_cluster_is_warned_of_then_suspended_and_deleted_when_its_time_is_over():
    world = World()
    world.look(ACTIVE)
    assert world.run(IDLE, 5 * DAY) == [
        ("warn", 100 * MINUTE),  # a fifth of two hours is 24 minutes, and the agent comes every five
        ("suspend", 2 * HOUR),
        ("warn", 3 * DAY - 12 * HOUR),
        ("delete", 3 * DAY),
    ]


def test_a_cluster_whose_time_is_over_is_suspended_a_day_before_it_is_deleted():
    assert World(idle="never").run(IDLE, 6 * DAY) == [
        ("warn", 3 * DAY - 12 * HOUR),
        ("suspend", 3 * DAY),
        ("warn", 4 * DAY - 12 * HOUR),
        ("delete", 4 * DAY),
    ]


def test_use_puts_the_suspension_off_and_withdraws_the_warning():
    world = World(ttl="never")
    world.run(IDLE, 110 * MINUTE)
    assert world.notes[WARNED_OF] == "idle"
    world.look(ACTIVE)
    assert WARNED_OF not in world.notes
    used, world.now = world.now, world.now + EVERY
    assert world.run(IDLE, 6 * HOUR)[-1] == ("suspend", used - START + 2 * HOUR)


def test_the_end_of_a_job_between_two_looks_counts_as_use():
    world = World(ttl="never")
    world.run(Activity("idle", last=START + HOUR), 59 * MINUTE)
    assert world.run(Activity("idle", last=START + HOUR), 6 * HOUR)[-1] == ("suspend", 3 * HOUR)


@pytest.mark.parametrize("activity", [ACTIVE, UNKNOWN, ABSENT], ids=lambda activity: activity.state)
def test_in_use_unknown_or_waiting_is_not_idle(activity):
    assert World(ttl="never").run(activity, 3 * DAY) == []


@pytest.mark.parametrize("activity", [ACTIVE, UNKNOWN], ids=lambda activity: activity.state)
def test_a_job_may_end_before_the_cluster_does_but_not_run_for_ever(activity):
    did = World(idle="never").run(activity, 9 * DAY)
    assert did[:2] == [("warn", 3 * DAY - 12 * HOUR), ("suspend", 6 * DAY)]


def test_when_the_job_ends_people_are_told_the_new_time_and_get_it():
    world = World(idle="never")
    world.run(ACTIVE, 4 * DAY)
    ended = world.now - START
    assert world.run(IDLE, 5 * DAY)[:2] == [("warn", ended), ("suspend", ended + 6 * HOUR)]


def test_an_extension_puts_both_ends_off():
    world = World(ttl="6h")
    world.run(IDLE, 110 * MINUTE)
    world.change(
        {
            KEPT_UNTIL: write_time(START + 10 * HOUR), EXTENDED_UNTIL: write_time(START + 12 * HOUR),
            LAST_ACTIVITY: write_time(world.now), WARNED_AT: None, WARNED_OF: None,
        }
    )  # fmt: skip
    did = world.run(IDLE, 20 * HOUR)
    assert [each for each in did if each[0] == "suspend"] == [("suspend", 10 * HOUR)]
    assert did[-1] == ("delete", 12 * HOUR)


def test_a_cluster_that_someone_suspended_is_warned_of_before_it_is_deleted():
    world = World(suspend=True)
    assert world.run(ABSENT, 9 * DAY) == [("warn", 3 * DAY - 12 * HOUR), ("delete", 3 * DAY)]


def test_resuming_begins_anew_whether_or_not_we_are_told():
    for told in (True, False):
        world = World(ttl="never")
        world.run(IDLE, 3 * HOUR)
        assert world.suspend
        world.suspend, resumed = False, world.now
        if told:
            world.change(resumed_annotations(world.now))
        assert world.run(IDLE, 9 * HOUR)[-1] == ("suspend", resumed - START + 2 * HOUR)


def test_without_limits_nothing_happens():
    assert World(idle="never", ttl="never").run(IDLE, 3 * DAY) == []


def test_an_agent_that_was_away_warns_before_it_acts():
    world = World(ttl="3d")
    world.now = START + 30 * DAY
    assert world.look(IDLE) == "warn"
    world.now += EVERY
    assert world.look(IDLE) == "nothing"
    assert [action for action, _ in world.run(IDLE, 40 * DAY)] == ["suspend", "warn", "delete"]


# --- what never happens, whatever happens -------------------------------------------------------------------------

moves = st.lists(
    st.one_of(
        st.tuples(st.just("look"), st.sampled_from([IDLE, ACTIVE, UNKNOWN, ABSENT])),
        st.tuples(st.just("wait"), st.integers(1, 5000).map(lambda n: n * MINUTE)),
        st.tuples(st.just("wait"), st.integers(1, 600).map(lambda n: datetime.timedelta(seconds=n))),
        st.tuples(st.just("suspend"), st.booleans()),
    ),
    max_size=60,
)
SAID = {"idle": "nothing has run", "ttl": "is suspended", "deletion": "is deleted"}
limits = st.sampled_from(["1m", "20m", "2h", "1d", "3d", "never"])


@settings(max_examples=300, deadline=None)
@given(limits, limits, moves)
def test_nothing_is_deleted_unsuspended_or_unwarned_and_nothing_busy_is_idle(idle, ttl, moves):
    world = World(idle=idle, ttl=ttl)
    suspended_since = None
    for move, value in moves:
        if world.gone:
            break
        if move == "wait":
            world.now += value
            continue
        if move == "suspend":
            world.suspend = value
            suspended_since = None
            continue
        before = Lifetime.of(world.cluster())
        action = world.look(value)
        if world.suspend and suspended_since is None:
            suspended_since = world.now
        if action in {"suspend", "delete"}:
            limit = before.idle_limit if before.warned_of == "idle" else before.life_limit
            assert before.warned_at is not None
            assert before.due_at <= world.now
            assert world.now - before.warned_at >= lead(limit) / 2
            told, _, warning = [each for each in world.did if each[1] == "warn"][-1]
            assert SAID[before.warned_of] in warning
            assert world.now - told >= lead(limit) / 2
        if action == "suspend":
            over = before.ends is not None and world.now >= before.ends
            if value.state in {"active", "unknown"}:
                assert over
                assert world.now >= before.ends_at_last
            elif value.state == "absent":
                assert over
            elif not over:
                assert world.now >= before.idle_since + before.idle_limit
        if action == "delete":
            assert before.suspended
            assert suspended_since is not None
            assert before.warned_of == "deletion"
            assert world.now - suspended_since >= grace(before.life_limit)
            assert world.now >= before.ends


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([IDLE, ACTIVE, UNKNOWN, ABSENT]), min_size=1, max_size=7))
def test_nothing_with_a_ttl_lives_for_ever(answers):
    world = World(idle="20m", ttl="2h")
    for number in range(200):
        if world.gone:
            break
        world.look(answers[number % len(answers)])
        world.now += EVERY
    assert world.gone
    assert world.now - START <= 4 * HOUR + grace(2 * HOUR) + lead(2 * HOUR) + 4 * EVERY


# --- text ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**9))
def test_durations_are_read_as_they_were_written(seconds):
    value = datetime.timedelta(seconds=seconds)
    assert read_duration(write_duration(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(100 * MINUTE, "1 h 40 min"), (3 * DAY, "3 d"), (datetime.timedelta(0), "0 s"), (DAY + MINUTE, "1 d 1 min")],
)  # fmt: skip
def test_spans_are_said_in_two_units(value, text):
    assert span(value) == text


def test_a_workbench_gets_limits_and_a_job_cluster_none():
    assert lifetime_annotations(ClusterSettings(name="a")) == {}
    assert lifetime_annotations(ClusterSettings(name="a", tutorials=True)) == {
        "sp-ray/idle-timeout": "2h",
        "sp-ray/ttl": "3d",
    }
    assert lifetime_annotations(ClusterSettings(name="a", tutorials=True, idle_timeout="never", ttl="90m")) == {
        "sp-ray/idle-timeout": "never",
        "sp-ray/ttl": "90m",
    }  # fmt: skip


def test_describe_says_how_long_it_was_idle_and_what_comes():
    world = World()
    world.run(IDLE, 100 * MINUTE)
    lines = lifetime_lines(world.cluster(), START + 100 * MINUTE)
    assert lines == [
        "warning: is suspended at Tue 24 Nov 14:00 UTC: nothing has run since Tue 24 Nov 12:00 UTC, of 2 h that it may idle",
        "idle 1 h 40 min of 2 h: suspended at Tue 24 Nov 14:00 UTC",
        "suspended when its time is over, Fri 27 Nov 12:00 UTC; deleted not before Sat 28 Nov 12:00 UTC; "
        "longer: sp-ray extend cluster demo -n play --by 1d",
    ]


def test_describe_says_when_it_cannot_be_asked():
    world = World(ttl="never")
    world.look(UNKNOWN)
    assert lifetime_lines(world.cluster()) == ["activity unknown (it does not answer): not taken for idle"]
    assert world.notes[ACTIVITY] == "unknown: it does not answer"


def test_an_annotation_set_by_hand_that_is_no_duration_is_said():
    world = World(idle="two hours")
    with pytest.raises(ClusterError, match=r"sp-ray/idle-timeout cannot be read.*two hours"):
        Lifetime.of(world.cluster())
    assert "two hours" in lifetime_lines(world.cluster())[0]


def test_where_a_home_lies():
    def cluster(*volumes: dict[str, Any]) -> dict[str, Any]:
        return {"spec": {"headGroupSpec": {"template": {"spec": {"volumes": list(volumes)}}}}}

    assert home_of(cluster({"name": "home", "persistentVolumeClaim": {"claimName": "a-home"}})) == "volume"
    assert home_of(cluster({"name": "home", "emptyDir": {}})) == "pod"
    assert home_of(cluster({"name": "data", "emptyDir": {}})) == "none"


def notes_of(volumes=True, problem=None, **options):
    return lifetime_notes(ClusterSettings(name="mine", **options), "play", volumes=volumes, problem=problem)


def test_whoever_creates_a_cluster_is_told_when_it_goes_and_what_is_kept():
    ends, home, box = notes_of(tutorials=True)
    assert ends == (
        "suspended when idle for 2 h (warned 24 min before); suspended when it is 3 d old (warned 12 h before) "
        "and deleted 1 d later; longer: sp-ray extend cluster mine -n play --by 1d"
    )
    assert (
        home
        == "the head's home is on the volume mine-home: it outlives a suspension, and goes with the cluster"
    )
    assert "ConfigMap mine-black-box" in box


def test_without_a_storage_class_it_is_said_where_the_home_goes():
    note = notes_of(tutorials=True, volumes=False, black_box="gs://boxes")[1]
    assert note.startswith(
        "no storage class for the head's home: before a suspension it is saved to gs://boxes;"
    )


def test_where_nobody_keeps_the_limits_no_suspension_is_promised():
    first, home = notes_of(tutorials=True, problem="the agent cannot be installed (not allowed)")
    assert first == (
        "nobody looks after this cluster, so that it goes on when it is idle for 2 h or 3 d old: "
        "the agent cannot be installed (not allowed); end it yourself: sp-ray delete cluster mine -n play"
    )
    assert home.startswith("the head's home is on the volume mine-home")
    said = " ".join(notes_of(tutorials=True, volumes=False, problem="no"))
    assert "saved" not in said
    assert "no home that is kept" in said
    assert notes_of(problem="no") == []


def test_describe_promises_nothing_where_nobody_keeps_the_limits():
    world = World()
    world.run(IDLE, 100 * MINUTE)
    lines = lifetime_lines(world.cluster(), START + 100 * MINUTE, problem="no agent is installed")
    assert lines == [
        "nobody looks after this cluster, so that it goes on when it is idle for 2 h or 3 d old: "
        "no agent is installed; end it yourself: sp-ray delete cluster demo -n play"
    ]


def test_without_limits_there_is_nothing_to_say():
    assert notes_of() == []
