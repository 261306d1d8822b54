"""Jobs, seen and cancelled."""

from .case import Case

CASES: list[Case] = []
