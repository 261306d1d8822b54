"""The queue of downloads."""

from .case import Case

CASES: list[Case] = []
