"""The pages and their files."""

from .case import Case

CASES: list[Case] = []
