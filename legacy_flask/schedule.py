"""When to look for new videos: what the settings say, and the next time that follows from it. All times are UTC."""

import re
from datetime import datetime, time, timedelta
from typing import NamedTuple

from .settings import DEFAULTS, as_bool, as_number

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
GROUPS = {"daily": DAYS, "weekdays": DAYS[:5], "weekends": DAYS[5:]}
MAX_VIDEOS = 50  # of one artist, at a time
NIGHT = time(3)  # as in DEFAULTS
WINDOW = timedelta(minutes=2)  # so late may be begun what was planned

TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(:[0-5][0-9])?")


class Schedule(NamedTuple):
    """`days` are in the order of the week, at least one; `max_videos` is 1 to MAX_VIDEOS."""

    enabled: bool
    time: time
    days: tuple[str, ...]
    max_videos: int

    def next_run(self, now: datetime) -> datetime | None:
        """The first time after `now`; None when nothing is planned."""
        if not self.enabled:
            return None
        today = datetime.combine(now, self.time)
        week = (today + timedelta(days=number) for number in range(8))
        return next(moment for moment in week if moment > now and DAYS[moment.weekday()] in self.days)


def planned_id(kind: str, moment: datetime) -> str:
    """The id of the job that was planned for then: no two rows have the same."""
    return f"{kind}-{moment:%Y%m%dT%H%M}"


def read_schedule(texts: dict[str, str]) -> Schedule:
    """What people wrote, as far as it can be understood; the defaults for the rest."""
    usual = as_number(DEFAULTS["schedule_max_videos"], 1)
    return Schedule(
        enabled=as_bool(texts["schedule_enabled"]),
        time=parse_time(texts["schedule_time"]),
        days=parse_days(texts["schedule_days"]),
        max_videos=min(int(as_number(texts["schedule_max_videos"], usual, low=1)), MAX_VIDEOS),
    )


def parse_time(text: str) -> time:
    """`3:00`, `03:00` and `03:00:59` are three o'clock."""
    match = TIME.fullmatch(text.strip())
    return time(int(match[1]), int(match[2])) if match else NIGHT


def parse_days(text: str) -> tuple[str, ...]:
    """Groups, and days by their first three letters or more, whatever stands between them. Without any, every day."""
    named = set()
    for word in re.findall("[a-z]+", text.lower()):
        named |= set(GROUPS.get(word) or (day for day in DAYS if len(word) >= 3 and day.startswith(word)))
    return tuple(day for day in DAYS if day in named) or DAYS
