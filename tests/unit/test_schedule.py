"""When to look for new videos. Both sides read the same words in the same way."""

from datetime import datetime, time, timedelta
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_app import schedule as port
from fastapi_app.settings import DEFAULTS
from legacy_flask import schedule as legacy

SIDES = pytest.mark.parametrize("side", [legacy, port], ids=["legacy", "port"])
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1))
TIMES = st.builds(time, st.integers(0, 23), st.integers(0, 59))
DAYS = st.sets(st.sampled_from(port.DAYS), min_size=1)
WORDS = st.text() | st.sampled_from(["mon", "TUE", "weekdays", "daily", "24:00", "7:30", "1e999", "nan", "-1", "yes"])
NOW = datetime(2026, 1, 1, 12)  # a Thursday


def read(side: ModuleType, **texts: str) -> port.Schedule:
    return side.read_schedule(DEFAULTS | texts)  # type: ignore[no-any-return]


def planned(at: time, days: set[str]) -> port.Schedule:
    return port.Schedule(True, at, tuple(day for day in port.DAYS if day in days), 10)


@given(MOMENTS, TIMES, DAYS)
def test_the_next_run_is_the_first_planned_moment_after_now(now: datetime, at: time, days: set[str]) -> None:
    moment = planned(at, days).next_run(now)
    assert moment is not None
    assert timedelta() < moment - now <= timedelta(days=7)
    assert (moment.time(), port.DAYS[moment.weekday()] in days) == (at, True)
    between = (moment - timedelta(days=number) for number in range(1, 8))
    assert not [earlier for earlier in between if earlier > now and port.DAYS[earlier.weekday()] in days]


@given(MOMENTS, TIMES, DAYS)
def test_runs_follow_each_other_through_all_planned_days_of_a_week(now: datetime, at: time, days: set[str]) -> None:
    schedule, met = planned(at, days), []
    moment = schedule.next_run(now)
    while moment and moment <= now + timedelta(days=7):
        met.append(port.DAYS[moment.weekday()])
        moment = schedule.next_run(moment)
    assert sorted(days) == sorted(met)


@given(MOMENTS, TIMES, DAYS)
def test_more_days_never_put_a_run_off(now: datetime, at: time, days: set[str]) -> None:
    some, all_days = planned(at, days).next_run(now), planned(at, set(port.DAYS)).next_run(now)
    assert some is not None
    assert all_days is not None
    assert all_days <= some


@given(MOMENTS, st.fixed_dictionaries({name: WORDS for name in DEFAULTS if name.startswith("schedule_")}))
def test_nonsense_in_the_settings_is_read_alike_on_both_sides(now: datetime, texts: dict[str, str]) -> None:
    schedules = [read(side, **texts) for side in (legacy, port)]
    assert schedules[0] == schedules[1]
    assert schedules[0].next_run(now) == schedules[1].next_run(now)
    assert schedules[0].days
    assert 1 <= schedules[0].max_videos <= port.MAX_VIDEOS


@SIDES
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7:05", time(7, 5)),
        (" 23:59 ", time(23, 59)),
        ("00:00", time(0)),
        ("06:30:59", time(6, 30)),
        ("24:00", time(3)),
        ("12:60", time(3)),
        ("noon", time(3)),
        ("१२:३०", time(3)),
        ("-1:00", time(3)),
    ],
)
def test_a_time_of_day_is_hours_and_minutes_or_the_usual_one(side: ModuleType, text: str, expected: time) -> None:
    assert expected == read(side, schedule_time=text).time


@SIDES
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("daily", port.DAYS),
        ("weekends", ("saturday", "sunday")),
        ("Sun,MON; wedn", ("monday", "wednesday", "sunday")),
        ('["fri", "weekends"]', ("friday", "saturday", "sunday")),
        ("m,tu", port.DAYS),
        ("never", port.DAYS),
        ("montag, fri", ("friday",)),
    ],
)
def test_days_are_named_in_any_way_that_people_name_them(
    side: ModuleType, text: str, expected: tuple[str, ...]
) -> None:
    assert expected == read(side, schedule_days=text).days


@SIDES
@pytest.mark.parametrize(
    ("text", "expected"), [("7", 7), ("7.9", 7), ("0", 10), ("-3", 10), ("many", 10), ("1e300", 50), ("inf", 10)]
)
def test_the_number_of_videos_is_held_within_its_limits(side: ModuleType, text: str, expected: int) -> None:
    assert expected == read(side, schedule_max_videos=text).max_videos


@SIDES
def test_nothing_is_planned_while_the_schedule_is_switched_off(side: ModuleType) -> None:
    assert read(side, schedule_enabled="off").next_run(NOW) is None


@SIDES
def test_a_run_that_is_due_now_is_planned_for_the_next_day(side: ModuleType) -> None:
    schedule = read(side, schedule_enabled="true", schedule_time="12:00")
    assert NOW + timedelta(days=1) == schedule.next_run(NOW)
    assert NOW == schedule.next_run(NOW - timedelta(microseconds=1))
