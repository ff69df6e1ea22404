"""Schedules: what is right has next times in its zone, what is wrong is told with an example."""

from __future__ import annotations

import datetime

import pytest

from sp_ray_ml._cron import check_cron, next_times
from sp_ray_ml.errors import ConfigError

NOON = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 3 * * *", "2026-11-29T03:00:00+01:00"),
        ("@daily", "2026-11-29T00:00:00+01:00"),
        ("30 6 * * mon-fri", "2026-11-30T06:30:00+01:00"),
        ("0 */4 * * *", "2026-11-28T16:00:00+01:00"),
        ("0 3 1,15 * *", "2026-12-01T03:00:00+01:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00+01:00"),
        ("5/15 * * * *", "2026-11-28T13:05:00+01:00"),
    ],
)
def test_next_times_are_those_after_now_in_the_time_zone(expression: str, first: str) -> None:
    times = next_times(expression, "Europe/Berlin", after=NOON)
    assert times[0].isoformat() == first
    assert len(times) == 3
    assert times == sorted(set(times))


# What `github.com/robfig/cron/v3` 3.0.1, by which Kubernetes goes, says of the same.
@pytest.mark.parametrize(
    ("expression", "zone", "after", "times"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-30 02:30", "03-31 02:30"]),  # not at all on the 29th
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["10-25 02:30", "10-25 02:30", "10-26 02:30"]),
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:10", ["10-25 02:30", "10-25 02:00", "10-25 02:30", "10-25 03:00"]),
        ("0 * * * *", "Europe/Berlin", "2026-03-29T00:10", ["03-29 03:00", "03-29 04:00"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-03-28T23:10", ["03-29 04:00", "03-29 06:00"]),
        ("15 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", ["11-05 00:15", "11-06 00:15"]),
        ("0 3 */2 * 1", "UTC", "2026-03-28T12:00", ["03-29 03:00", "03-30 03:00", "03-31 03:00", "04-01 03:00"]),
        ("0 3 */1 * 1", "UTC", "2026-03-28T12:00", ["03-30 03:00", "04-06 03:00", "04-13 03:00"]),
        ("0 3 *,1 * 1", "UTC", "2026-03-28T12:00", ["03-30 03:00", "04-06 03:00", "04-13 03:00"]),
        ("0 3 1,15 * */3", "UTC", "2026-03-28T12:00", ["03-29 03:00", "04-01 03:00", "04-04 03:00"]),
        ("0 3 * * 1/2", "UTC", "2026-03-28T12:00", ["03-30 03:00", "04-01 03:00", "04-03 03:00", "04-06 03:00"]),
        ("0 3 * * TUE", "UTC", "2026-03-28T12:00", ["03-31 03:00", "04-07 03:00"]),
        ("0 0 30 2 1", "UTC", "2026-03-28T12:00", ["02-01 00:00", "02-08 00:00"]),  # Mondays of February
        ("*/90 * * * *", "UTC", "2026-03-28T12:00", ["03-28 13:00", "03-28 14:00"]),
    ],
)  # fmt: skip
def test_next_times_are_those_of_kubernetes(expression: str, zone: str, after: str, times: list[str]) -> None:
    start = datetime.datetime.fromisoformat(after).replace(tzinfo=datetime.UTC)
    found = next_times(expression, zone, count=len(times), after=start)
    assert [each.strftime("%m-%d %H:%M") for each in found] == times
    assert found == sorted(found, key=lambda each: each.timestamp())


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("61 * * * *", "'61' is no minute: these are 0 to 59"),
        ("0 25 * * *", "'25' is no hour: these are 0 to 23"),
        ("0 3 * *", "it has 4 fields, a schedule has 5"),
        ("every night", "it has 2 fields"),
        ("", "it has 0 fields"),
        ("0 3 L * *", "'L' is no day of the month"),
        ("0 3 * * 7", "Sunday is 0"),
        ("0 3 * * sunday", "'sunday' is no weekday: these are 0 (Sunday) to 6, or sun to sat"),
        ("0 3 * * fri-mon", "or sun to sat, from the lower to the higher"),
        ("@nightly", "no such nickname"),
        ("@Daily", "no such nickname; did you mean @daily?"),
        ("0 0 30 2 *", "it never comes"),
        ("0 0 31 4,6 *", "it never comes"),
    ],
)
def test_a_wrong_schedule_is_told_with_an_example(expression: str, why: str) -> None:
    with pytest.raises(ConfigError, match="is no schedule") as caught:
        check_cron(expression, where="schedule --cron")
    assert why in caught.value.message
    assert str(caught.value).startswith("schedule --cron: ")
    assert '"0 3 * * *" is every night at three' in str(caught.value)


def test_a_wrong_time_zone_is_told_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"no time zone 'Europe/Berln'; did you mean Europe/Berlin\?"):
        check_cron("0 3 * * *", "Europe/Berln")
    for wrong in (
        "localtime",
        "posix/Europe/Berlin",
        "",
        "UTC+2",
        "../UTC",
    ):  # others, or none, on other machines
        with pytest.raises(ConfigError, match="no time zone"):
            check_cron("0 3 * * *", wrong)
