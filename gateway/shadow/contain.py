"""Run a write on the candidate so that nothing of it remains, and say which rows it would have changed."""

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.types import Scope

from ..model import Observation, RowChange


@dataclass(frozen=True, slots=True)
class Contained:
    """What a contained run showed. With `inconclusive` (a sentence why) it says nothing about the candidate.

    After `poisoned` the process must end: the run could not be stopped, and its transaction is perhaps still open.
    """

    observation: Observation
    rows: tuple[RowChange, ...] | None = None
    refused: tuple[str, ...] = ()
    inconclusive: str = ""
    poisoned: bool = False


def supports(app: FastAPI) -> str:
    """Why writes of this application cannot be contained; empty when they can."""
    raise NotImplementedError


async def contained(
    app: FastAPI, scope: Scope, body: bytes, undo: tuple[RowChange, ...], timeout_s: float
) -> Contained:
    """One request to the candidate, alone in this process: undo what the control did, run, record, roll back."""
    raise NotImplementedError
