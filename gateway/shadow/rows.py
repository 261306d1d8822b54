"""Which rows a request changed, seen through SQLAlchemy's events: the application is not edited and need not know.

Before each UPDATE and DELETE the rows that it will meet are read on the same connection, with the lock that the
statement takes anyway; so are those that the database itself will change (ON DELETE CASCADE, SET NULL). At the commit
all of them are read once more. Rows are kept as the driver gives them, every column, mapped or not: they can be written
back as they were.

What cannot be followed (SQL text that changes something, upserts, INSERT … SELECT, triggers, tables without a key, more
than MAX_ROWS rows, another database than SQLite and MariaDB) makes the record incomplete, never wrong.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from gateway.model import RowChange

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select, Table, TableClause
    from sqlalchemy.sql import ColumnElement

Row = Mapping[str, object]  # by the name of the column
Key = tuple[object, ...]
Place = tuple[str, Key]  # a row: its table and primary key

MAX_ROWS = 1_000  # of one request; above it nobody would read the comparison, and the client waits for the record
MAX_SETS = 50  # of parameters for one statement: each takes a read
OWN = {"gateway_own": True}  # marks our own statements

_DIALECTS = ("sqlite", "mysql", "mariadb")
_CHUNK = 200  # keys in one statement
_READS = re.compile(
    r"\s*(?:select|show|pragma|explain|describe|desc|set|begin|start\s+transaction|use)\b", re.IGNORECASE
)
_HIDDEN = re.compile(r"\b(?:outfile|dumpfile|get_lock|release_lock|nextval|setval)\b", re.IGNORECASE)

log = logging.getLogger("gateway.shadow")


class Opaque(Exception):
    """A statement whose effect cannot be followed. `str(error)` says why, as part of a sentence."""


# --- what the database knows about its tables ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key, seen from the table that it points to: (own, other) column names and what a DELETE does."""

    child: str
    columns: tuple[tuple[str, str], ...]
    on_delete: str
    on_update: str


@dataclass(slots=True)
class Catalog:
    """Keys, foreign keys and oddities of the tables of one database."""

    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    counted: dict[str, bool] = field(default_factory=dict)  # has an automatic id; True: an unsigned one
    references: dict[str, list[Reference]] = field(default_factory=dict)  # by the table that is referred to
    odd: dict[str, str] = field(default_factory=dict)  # why changes of this table cannot be followed

    @classmethod
    def of(cls, connection: "Connection") -> "Catalog":
        """Read once per database and process: a migration of the schema means a restart."""
        name = connection.engine.url.render_as_string()
        if name not in _catalogs:
            _catalogs[name] = (_read_sqlite if connection.dialect.name == "sqlite" else _read_mariadb)(connection)
        return _catalogs[name]

    def key(self, table: str) -> tuple[str, ...]:
        """The names of the primary key. Raises Opaque for a table that cannot be followed."""
        if table in self.odd:
            raise Opaque(f"table {table} {self.odd[table]}")
        if not self.keys.get(table):
            raise Opaque(f"table {table} has no primary key")
        return self.keys[table]

    def refer(self, parent: str, child: str, columns: list[tuple[str, str]], rules: tuple[str, str]) -> None:
        reference = Reference(child, tuple(columns), rules[0].upper(), rules[1].upper())
        self.references.setdefault(parent, []).append(reference)


_catalogs: dict[str, Catalog] = {}

_SQLITE_COLUMNS = """
SELECT m.name, c.name, c.pk, upper(c.type) FROM sqlite_master m, pragma_table_xinfo(m.name) c
WHERE m.type = 'table' AND c.pk > 0 ORDER BY m.name, c.pk"""
_SQLITE_REFERENCES = """
SELECT f."table", m.name, f.id, f."from", f."to", f.on_delete, f.on_update
FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq"""
_SQLITE_ODD = """
SELECT tbl_name, CASE type WHEN 'view' THEN 'is a view' ELSE 'has a trigger' END
FROM sqlite_master WHERE type IN ('trigger', 'view')"""

_MARIADB_COLUMNS = """
SELECT table_name, column_name, ordinal_position, 1 FROM information_schema.key_column_usage
WHERE table_schema = DATABASE() AND constraint_name = 'PRIMARY' ORDER BY table_name, ordinal_position"""
_MARIADB_COUNTED = """
SELECT table_name, column_type LIKE '%unsigned%' FROM information_schema.columns
WHERE table_schema = DATABASE() AND extra LIKE '%auto_increment%'"""
_MARIADB_REFERENCES = """
SELECT r.referenced_table_name, r.table_name, r.constraint_name, k.column_name, k.referenced_column_name,
  r.delete_rule, r.update_rule
FROM information_schema.referential_constraints r JOIN information_schema.key_column_usage k
  ON k.constraint_schema = r.constraint_schema AND k.constraint_name = r.constraint_name AND k.table_name = r.table_name
WHERE r.constraint_schema = DATABASE() ORDER BY r.table_name, r.constraint_name, k.ordinal_position"""
_MARIADB_ODD = """
SELECT event_object_table, 'has a trigger' FROM information_schema.triggers WHERE trigger_schema = DATABASE()
UNION SELECT table_name, 'knows no transactions' FROM information_schema.tables
WHERE table_schema = DATABASE() AND (engine IS NULL OR engine <> 'InnoDB')"""


def _read_sqlite(connection: "Connection") -> Catalog:
    catalog = _read(connection, _SQLITE_COLUMNS, _SQLITE_REFERENCES, _SQLITE_ODD)
    for table, _, _, kind in _ask(connection, _SQLITE_COLUMNS):
        if kind == "INTEGER" and len(catalog.keys[table]) == 1:
            catalog.counted[table] = False
    return catalog


def _read_mariadb(connection: "Connection") -> Catalog:
    catalog = _read(connection, _MARIADB_COLUMNS, _MARIADB_REFERENCES, _MARIADB_ODD)
    catalog.counted = {table: bool(unsigned) for table, unsigned in _ask(connection, _MARIADB_COUNTED)}
    return catalog


def _read(connection: "Connection", columns: str, references: str, odd: str) -> Catalog:
    catalog = Catalog()
    for table, column, _, _ in _ask(connection, columns):
        catalog.keys[table] = (*catalog.keys.get(table, ()), column)
    found: dict[tuple[str, str, object], tuple[list[tuple[str, str]], tuple[str, str]]] = {}
    for parent, child, name, own, other, on_delete, on_update in _ask(connection, references):
        pairs, _ = found.setdefault((parent, child, name), ([], (on_delete, on_update)))
        pairs.append((own, other or catalog.keys[parent][len(pairs)]))
    for (parent, child, _), (pairs, rules) in found.items():
        catalog.refer(parent, child, pairs, rules)
    catalog.odd = dict(_ask(connection, odd))
    return catalog


def _ask(connection: "Connection", sql: str) -> list[Any]:
    return list(connection.exec_driver_sql(sql.replace("%", "%%") if "%" in sql else sql, execution_options=OWN))


# --- reading and writing rows as the driver gives them ------------------------------------------------------------


def plain(name: str, columns: Iterable[str]) -> "TableClause":
    """A table without types: values go to the driver, and come from it, as they are."""
    from sqlalchemy import column, table

    return table(name, *map(column, columns))


def at(table: "TableClause", columns: Sequence[str], key: Key) -> "ColumnElement[bool]":
    """The row with that key."""
    from sqlalchemy import and_

    return and_(*(table.c[name] == value for name, value in zip(columns, key, strict=True)))


def read(
    connection: "Connection", catalog: Catalog, places: Iterable[Place], *, lock: bool = False
) -> dict[Place, Row]:
    """Those of the rows that exist."""
    from sqlalchemy import or_

    by_table: dict[str, list[Key]] = {}
    for name, key in places:
        by_table.setdefault(name, []).append(key)
    found: dict[Place, Row] = {}
    for name, keys in by_table.items():
        columns = catalog.key(name)
        table = plain(name, columns)
        for start in range(0, len(keys), _CHUNK):
            some = keys[start : start + _CHUNK]
            alone = table.c[columns[0]].in_([key[0] for key in some]) if len(columns) == 1 else None
            where = alone if alone is not None else or_(*(at(table, columns, key) for key in some))
            for row in _select(connection, table, where, lock=lock):
                found[name, tuple(row[column] for column in columns)] = row
    return found


def _select(
    connection: "Connection", table: "TableClause | Table", where: "ColumnElement[bool] | None", *, lock: bool = False
) -> list[Row]:
    """All columns. Raises Opaque when there are more than MAX_ROWS."""
    from sqlalchemy import select, text

    quoted = connection.dialect.identifier_preparer.format_table(table)
    statement: Select[Any] = select(text(f"{quoted}.*")).select_from(table).limit(MAX_ROWS + 1)
    if where is not None:
        statement = statement.where(where)
    if lock:
        statement = statement.with_for_update()
    rows: list[Row] = [dict(row) for row in connection.execute(statement, execution_options=OWN).mappings()]
    if len(rows) > MAX_ROWS:
        raise Opaque(f"more than {MAX_ROWS} rows of {table.name}")
    return rows


# --- the recorder -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Transaction:
    """The rows that it has met so far, with what they were before: None for those it has made."""

    met: list[tuple[Place, Row | None]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)  # how many of them, when a savepoint was set
    savepoints: int = 0

    def set_mark(self) -> None:
        self.savepoints += 1  # SQLAlchemy names them so, after it has told us
        self.marks[f"sa_savepoint_{self.savepoints}"] = len(self.met)

    def back_to(self, name: str) -> None:
        if name not in self.marks:
            raise Opaque("a savepoint with a name of its own")
        del self.met[self.marks[name] :]

    def befores(self) -> dict[Place, Row | None]:
        first: dict[Place, Row | None] = {}
        for place, before in self.met:
            first.setdefault(place, before)
        return first


class Recorder:
    """The row changes of one request, over all its connections and transactions."""

    def __init__(self) -> None:
        self.why = ""  # what made the record incomplete
        self._seen = False
        self._open: dict[Connection, _Transaction] = {}
        self._changes: dict[Place, RowChange] = {}

    def changes(self) -> tuple[RowChange, ...] | None:
        """What was committed, one entry per row, in the order in which they were met; None when it is not known.

        It is not known either when the application was never seen to ask its database, for it may have other ways.
        """
        if self.why or not self._seen or any(transaction.met for transaction in list(self._open.values())):
            return None
        return tuple(change for change in list(self._changes.values()) if change.before != change.after)

    # --- told by the listeners

    def before_statement(self, connection: "Connection", statement: str, context: Any) -> None:
        self._seen = True
        if self.why:
            return
        if connection.dialect.name not in _DIALECTS:
            raise Opaque(f"{connection.dialect.name} is not followed")
        if context is None or context.compiled is None or context.is_text or context.isddl:
            self.text(statement)
        elif context.is_crud and connection._is_autocommit_isolation():  # noqa: SLF001
            raise Opaque("a connection that commits by itself")
        elif context.isupdate or context.isdelete:
            self._meet_existing(connection, context)
        elif context.isinsert:
            _require_plain_insert(context)
        elif _HIDDEN.search(statement):
            raise Opaque("a SELECT that changes something")

    def rewrite(self, _connection: "Connection", _element: Any, many: Any, one: Any) -> tuple[Any, Any]:
        """The parameters that a statement is to be executed with."""
        return many, one

    def text(self, statement: str) -> None:
        """SQL that the application wrote itself."""
        if not _READS.match(statement) or _HIDDEN.search(statement):
            raise Opaque("a change in SQL text")

    def after_insert(self, connection: "Connection", result: Any) -> None:
        if self.why:
            return
        context = result.context
        table = context.compiled.compile_state.statement.table
        columns = Catalog.of(connection).key(name_of(table))
        names = [column.name for column in table.primary_key]
        for key in _inserted(result):
            raw = {name: _raw(connection, table.c[name], value) for name, value in zip(names, key, strict=True)}
            self._meet(connection, (name_of(table), tuple(raw[name] for name in columns)), None)

    def commit(self, connection: "Connection") -> None:
        transaction = self._open.pop(connection, None)
        if transaction is None or self.why:
            return
        for change in self._compare(connection, transaction.befores()):
            place = (change.table, change.key)
            earlier = self._changes.get(place)
            before = earlier.before if earlier else change.before
            self._changes[place] = RowChange(change.table, change.key, before, change.after)

    def rollback(self, connection: "Connection") -> None:
        self._open.pop(connection, None)

    def savepoint(self, connection: "Connection") -> None:
        self._transaction(connection).set_mark()

    def rollback_savepoint(self, connection: "Connection", name: str) -> None:
        self._transaction(connection).back_to(name)

    def failed(self, error: BaseException) -> None:
        """What the driver has raised."""

    # --- details

    def _transaction(self, connection: "Connection") -> _Transaction:
        return self._open.setdefault(connection, _Transaction())

    def _meet(self, connection: "Connection", place: Place, before: Row | None) -> None:
        met = self._transaction(connection).met
        met.append((place, before))
        if len(met) > MAX_ROWS:
            raise Opaque(f"more than {MAX_ROWS} rows")

    def _meet_existing(self, connection: "Connection", context: Any) -> None:
        statement = context.compiled.compile_state.statement
        table = statement.table
        name, catalog = name_of(table), Catalog.of(connection)
        columns = catalog.key(name)
        if statement.dialect_kwargs or connection.get_execution_options().get("schema_translate_map"):
            raise Opaque("a statement with options of one database")
        if context.isupdate:
            _require_plain_update(context, catalog, name, columns)
        if len(context.compiled_parameters) > MAX_SETS:
            raise Opaque(f"a statement with more than {MAX_SETS} sets of parameters")
        for values in context.compiled_parameters:
            rows = _select(connection, table, _where(statement, context, values), lock=True)
            if context.isdelete:
                self._meet_dependent(connection, catalog, name, rows)
            for row in rows:
                self._meet(connection, (name, tuple(row[column] for column in columns)), row)

    def _meet_dependent(self, connection: "Connection", catalog: Catalog, parent: str, rows: Sequence[Row]) -> None:
        """The rows that the database deletes or empties together with these."""
        from sqlalchemy import tuple_

        for reference in catalog.references.get(parent, ()) if rows else ():
            if reference.on_delete not in ("CASCADE", "SET NULL", "SET DEFAULT"):
                continue
            own, other = zip(*reference.columns, strict=True)
            table = plain(reference.child, own)
            wanted = [tuple(row[name] for name in other) for row in rows]
            where = tuple_(*(table.c[name] for name in own)).in_(wanted)
            children = _select(connection, table, where, lock=True)
            if reference.on_delete == "CASCADE":
                self._meet_dependent(connection, catalog, reference.child, children)
            columns = catalog.key(reference.child)
            for child in children:
                self._meet(connection, (reference.child, tuple(child[name] for name in columns)), child)

    def _compare(self, connection: "Connection", befores: Mapping[Place, Row | None]) -> Iterator[RowChange]:
        afters = read(connection, Catalog.of(connection), befores)
        for place, before in befores.items():
            after = afters.get(place)
            if before is None and after is None:
                continue  # made and removed again
            yield RowChange(*place, before, after)


def name_of(table: Any) -> str:
    """The name of the only table of a statement. Raises Opaque for several, or another schema."""
    from sqlalchemy import Table

    if not isinstance(table, Table) or table.schema:
        raise Opaque("a statement about more than one table")
    return table.name


def _require_plain_insert(context: Any) -> None:
    statement = context.compiled.compile_state.statement
    name_of(statement.table)
    special = statement.select is not None or statement._prefixes or statement.dialect_kwargs  # noqa: SLF001
    if special or statement._post_values_clause is not None:  # noqa: SLF001
        raise Opaque("an INSERT that may change rows that exist")


def _require_plain_update(context: Any, catalog: Catalog, name: str, key: tuple[str, ...]) -> None:
    """Neither the key nor what others refer to is set, or the row could not be found again."""
    values = context.compiled.compile_state._dict_parameters or {}  # noqa: SLF001
    names = {getattr(column, "name", column) for column in (*values, *(context.compiled.column_keys or ()))}
    referred = {own for reference in catalog.references.get(name, ()) for _, own in reference.columns}
    if names & (referred | set(key)):
        raise Opaque(f"a key of {name} is changed")


def _where(statement: Any, context: Any, values: Mapping[str, Any]) -> "ColumnElement[bool] | None":
    """The condition of an UPDATE or DELETE with the values of this execution, free of the ORM."""
    from sqlalchemy import BindParameter, and_, bindparam
    from sqlalchemy.sql.util import _deep_deannotate
    from sqlalchemy.sql.visitors import replacement_traverse

    names = {**{bind.key: name for bind, name in context.compiled.bind_names.items()}, **context.compiled.bind_names}
    expanded = context._expanded_parameters  # noqa: SLF001 - what an IN became

    def fill(element: Any, **_: Any) -> Any:
        if not isinstance(element, BindParameter):
            return None
        name = names.get(element) or names[element.key]
        value = [values[part] for part in expanded[name]] if name in expanded else values[name]
        return bindparam(None, value, type_=element.type, unique=True, expanding=element.expanding)

    if not statement._where_criteria:  # noqa: SLF001
        return None
    where: Any = and_(*statement._where_criteria)  # noqa: SLF001
    filled: ColumnElement[bool] = _deep_deannotate(replacement_traverse(where, {}, fill))
    return filled


def _inserted(result: Any) -> list[Any]:
    from sqlalchemy.exc import InvalidRequestError

    try:
        keys = result.inserted_primary_key_rows
    except InvalidRequestError:  # with RETURNING the result is the application's
        keys = result.context.inserted_primary_key_rows
    if not keys or any(value is None for key in keys for value in key):
        raise Opaque("an INSERT whose keys are not told")
    return list(keys)


def _raw(connection: "Connection", column: Any, value: object) -> object:
    process = column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
    return process(value) if process else value


# --- who listens --------------------------------------------------------------------------------------------------

_current: ContextVar[Recorder | None] = ContextVar("gateway.rows", default=None)
_alone: Recorder | None = None
_listening = False


@contextmanager
def recording(recorder: Recorder | None = None, *, alone: bool = False) -> Iterator[Recorder]:
    """Record what the code in this context changes, and what threads change that got a copy of it.

    `alone`: and what all others change. Nothing is imported, listened to or slowed down before the first use, or while
    the process has no SQLAlchemy.
    """
    global _alone  # noqa: PLW0603
    recorder = recorder or Recorder()
    listen()
    token = _current.set(recorder)
    _alone = recorder if alone else _alone
    try:
        yield recorder
    finally:
        _current.reset(token)
        _alone = None if alone else _alone


def _recorder() -> Recorder | None:
    return _current.get() or _alone


def listen() -> None:
    """Attach the listeners, once, to all engines of the process."""
    global _listening  # noqa: PLW0603 - like the listeners, one per process
    if _listening or "sqlalchemy" not in sys.modules:
        return
    from sqlalchemy import Engine, event

    _listening = True
    event.listen(Engine, "before_execute", _before_execute, retval=True)
    for name, listener in _LISTENERS:
        event.listen(Engine, name, listener)


def _before_execute(connection: Any, element: Any, many: Any, one: Any, options: Mapping[str, Any]) -> Any:
    recorder = _recorder()
    if recorder is not None and "gateway_own" not in options:
        many, one = recorder.rewrite(connection, element, many, one)
    return element, many, one


def _before_cursor_execute(connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _: bool) -> None:
    recorder = _recorder()
    if recorder is None or (context is not None and "gateway_own" in context.execution_options):
        return
    _guarded(recorder, recorder.before_statement, connection, statement, context)


def _after_execute(connection: Any, _element: Any, _many: Any, _one: Any, options: Any, result: Any) -> None:
    recorder = _recorder()
    context = getattr(result, "context", None)
    if recorder is not None and context is not None and context.isinsert and "gateway_own" not in options:
        _guarded(recorder, recorder.after_insert, connection, result)


def _on_commit(connection: Any) -> None:
    if recorder := _recorder():
        _guarded(recorder, recorder.commit, connection)


def _on_rollback(connection: Any) -> None:
    if recorder := _recorder():
        recorder.rollback(connection)


def _on_savepoint(connection: Any, _name: str | None) -> None:
    if recorder := _recorder():
        recorder.savepoint(connection)


def _on_rollback_savepoint(connection: Any, name: str, _context: None) -> None:
    if recorder := _recorder():
        _guarded(recorder, recorder.rollback_savepoint, connection, name)


def _on_two_phases(_connection: Any, _name: object) -> None:
    if recorder := _recorder():
        _guarded(recorder, _refuse_two_phases)


def _on_error(context: Any) -> None:
    if recorder := _recorder():
        recorder.failed(context.original_exception)


def _refuse_two_phases() -> NoReturn:
    raise Opaque("a transaction in two phases")


def _guarded(recorder: Recorder, step: Any, *arguments: Any) -> None:
    """A fault of the record never becomes one of the request; a database that gives up is the request's own."""
    from sqlalchemy.exc import OperationalError

    try:
        step(*arguments)
    except (OperationalError, PermissionError):  # a deadlock, a lost connection; a refusal of what must not run
        raise
    except Opaque as error:
        recorder.why = recorder.why or str(error)
    except Exception as error:
        log.debug("a change was not recorded", exc_info=True)
        recorder.why = recorder.why or f"not recorded: {type(error).__name__}: {error}"


_LISTENERS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("before_cursor_execute", _before_cursor_execute),
    ("after_execute", _after_execute),
    ("commit", _on_commit),
    ("rollback", _on_rollback),
    ("savepoint", _on_savepoint),
    ("rollback_savepoint", _on_rollback_savepoint),
    ("begin_twophase", _on_two_phases),
    ("handle_error", _on_error),
)
