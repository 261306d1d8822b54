"""Streams and transcoding."""

from .case import Case

CASES: list[Case] = []
