"""Many rows in one transaction, in portions that leave the loop free between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Select, Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from .db import Db

PORTION = 500  # rows, or values to look for


async def insert_many(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """All of them, or an IntegrityError."""
    for start in range(0, len(rows), PORTION):
        await connection.execute(insert(table), rows[start : start + PORTION])


async def select_among(
    db: Db | AsyncConnection, statement: Select[Any], column: Column[str], values: Sequence[str]
) -> dict[str, Any]:
    """What the statement selects where the column has one of the values: the rows by that value.

    The column is unique, and the statement selects it.
    """
    found: dict[str, Any] = {}
    for start in range(0, len(values), PORTION):
        rows = await db.execute(statement.where(column.in_(values[start : start + PORTION])))
        found |= {getattr(row, column.key): row for row in rows}
    return found
