"""Both applications map the same tables: column by column, on both databases."""

from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from fastapi_app.models import metadata as port
from legacy_flask.models import Base

legacy = Base.metadata
DIALECTS = {"sqlite": sqlite.dialect(), "mariadb": mysql.dialect(is_mariadb=True)}


def test_both_sides_have_the_same_tables() -> None:
    assert sorted(port.tables) == sorted(legacy.tables)


@pytest.mark.parametrize("name", sorted(legacy.tables))
def test_both_sides_have_the_same_columns(name: str) -> None:
    assert columns(port, name) == columns(legacy, name)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("name", sorted(legacy.tables))
def test_both_sides_would_create_the_same_table(name: str, dialect: Dialect) -> None:
    assert ddl(port.tables[name], dialect) == ddl(legacy.tables[name], dialect)


def columns(metadata: MetaData, table: str) -> dict[str, dict[str, Any]]:
    return {column.name: describe(column) for column in metadata.tables[table].columns}


def describe(column: Column[Any]) -> dict[str, Any]:
    """What the application itself fills in; the rest is in the DDL."""
    default = column.default.arg if column.default is not None else None
    if (column.table.name, column.name) == ("audit_log", "served_by"):  # says which side wrote the row
        default = "this side"
    return {
        "nullable": column.nullable,
        "default": getattr(default, "__name__", default),
        "updated": column.onupdate is not None,
    }


def ddl(table: Table, dialect: Dialect) -> set[str]:
    """Lines without order: columns, keys and indexes."""
    statements = [CreateTable(table), *map(CreateIndex, table.indexes)]
    lines = "\n".join(str(statement.compile(dialect=dialect)) for statement in statements).splitlines()
    return {line.strip().rstrip(",") for line in lines if line.strip()}
