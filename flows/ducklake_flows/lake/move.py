"""Moves a lake to another catalog and data path: files, snapshots, ledger, everything. The source is only read.

The target is no lake until the last step. Its files come first. Then the catalog's tables are filled, all in one
transaction, in a place where no reader looks: a file beside the target's SQLite file, or the schema `SCHEMA` of its
PostgreSQL database. After the two lakes were compared, one rename puts them into their place. A move that was killed
goes on: files that are there are not copied again, everything else is.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import BadInput, CatalogError, CommitConflict, LakeError, StorageError
from ducklake_flows.lake.connect import attach_database, connect, engine, literal, one_snapshot
from ducklake_flows.lake.fence import META, check_release
from ducklake_flows.lake.lookup import create_indexes
from ducklake_flows.scratch import scratch
from ducklake_flows.settings import LAKE
from ducklake_flows.storage import CONNECTIONS, open_storage
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duckdb import DuckDBPyConnection

    from ducklake_flows.settings import Settings
    from ducklake_flows.storage import Storage

SCHEMA = "ducklake_move"
"""The PostgreSQL schema in which the catalog waits until it has been compared."""

SUFFIX = ".move"
"""The same for a SQLite catalog: the end of the file's name."""

MARK = "lake-move.json"
"""The file in the target's data path that tells a move that is under way from another lake's files."""

UNUSED = "ducklake_files_scheduled_for_deletion"
"""DuckLake's list of files that no snapshot names. They are not copied, so the target's list is empty."""


@dataclass(frozen=True, slots=True)
class File:
    """A data or delete file that some snapshot names.

    Args:
        path: Below the data path.
        size: Bytes.
    """

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and what was there already.

    Args:
        files: Copied files.
        bytes: Their size.
        kept: Files that the target had, with equal contents.
    """

    files: int
    bytes: int
    kept: int


@dataclass(slots=True)
class Compared:
    """What was compared, in the source and in the target.

    Args:
        tables: Tables, those of all snapshots.
        states: Different states of these tables, summed.
        rows: Rows that were read in each of the two lakes.
    """

    tables: int = 0
    states: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a table has the same name and columns.

    Args:
        table_id: DuckLake's id.
        schema: Name.
        table: Name.
        first: The first snapshot of this time that is not expired.
        after: The next snapshot that changed the table's rows; None if none did.
        last: The last snapshot of this time.
    """

    table_id: int
    schema: str
    table: str
    first: int
    after: int | None
    last: int

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}, snapshots {self.first} to {self.last}"


class Move:
    """A move of a lake. Call its methods in the order in which they stand here; `close` releases the connections."""

    def __init__(self, source: Settings, target: Settings) -> None:
        """Check source and target, and change nothing.

        Raises:
            BadInput: the target is the source, or a part of it.
            CatalogError: the source or the target's catalog cannot be opened.
            OldRelease: the source was written by an earlier release.
        """
        check_apart(source, target)
        self.source, self.target, self.staged = source, target, _staged(target)
        self._from, self._to = open_storage(source.data_path, source), open_storage(target.data_path, target)
        self._copied: set[str] = set()
        self._held = ExitStack()
        try:
            self._reader = self._held.enter_context(closing(connect(source, read_only=True)))
            check_release(self._reader)
            self.lake = str(_one(self._reader, f"SELECT schema_uuid FROM {META}.ducklake_schema {_OPS}"))
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._held.close()

    @property
    def snapshot(self) -> int:
        """The source's latest snapshot; once the catalog was copied, the one that is moved."""
        return int(_one(self._reader, f"SELECT id FROM {LAKE}.current_snapshot()"))

    def files(self) -> list[File]:
        """The files that any snapshot of the source names.

        Raises:
            CatalogError: one is not below the data path, so that the lake cannot be moved.
        """
        found = self._reader.execute(_FILES.format(meta=META)).fetchall()
        if outside := [path for path, _, relative in found if not relative]:
            raise CatalogError(
                f"{len(outside)} files are not below the data path, for example {outside[0]}.",
                "publish their rows again; once lake maintain has expired the earlier snapshots, move the lake",
            )
        return [File(path, int(size)) for path, size, _ in found]

    def is_done(self) -> bool:
        """Whether the target is this lake already, as of its latest snapshot.

        Raises:
            BadInput: the target holds another lake, or an earlier state of this one.
            CatalogError: the target's catalog cannot be opened.
        """
        found = _lake_in(self.target)
        if found is None:
            return False
        lake, data_path, snapshot = found
        where = self.target.catalog_file or "LAKE_CATALOG's database"
        if (lake, data_path) != (self.lake, self.target.data_path):
            raise BadInput(
                f"The target already holds a lake: {where}, with the data path {data_path}.",
                "name an empty database, or a file that does not exist, in LAKE_CATALOG of the target's settings",
            )
        if snapshot != self.snapshot:
            raise BadInput(
                f"This lake was moved to the target as of snapshot {snapshot}; one of the two has changed since.",
                "use one of them; or remove the target's catalog and data, and move the lake again",
            )
        return True

    def begin(self, holds_state: bool) -> None:
        """Check that the target is empty, and mark it; or find the mark of a move that was stopped.

        Args:
            holds_state: Whether the target's ``LAKE_STATE`` has a state of models.

        Raises:
            BadInput: the target has files or models that are not of a move of this lake.
        """
        mark = {"lake": self.lake, "catalog": self.target.catalog, "state": self.target.state}
        with scratch() as folder:
            local = folder / MARK
            if self._to.find(MARK) is not None:
                if json.loads(_local(self._to, MARK, local).read_text()) == mark:
                    return
                raise BadInput(
                    f"{self.target.data_path} has files of another move: {MARK} names its lake, catalog and state.",
                    "use the same settings as that move, or remove the files",
                )
            if self._to.list():
                raise BadInput(
                    f"The target's data path is not empty: {self.target.data_path}",
                    "name an empty folder or prefix in LAKE_DATA_PATH of the target's settings",
                )
            if holds_state:
                raise BadInput(
                    f"The target's LAKE_STATE already holds a state of models: {self.target.state}",
                    "name an empty database, or a file that does not exist, in LAKE_STATE of the target's settings",
                )
            local.write_text(json.dumps(mark))
            _put(self._to, local, MARK)

    def copy_files(self, *, last: bool = False) -> Copied:
        """Copy the files that the target does not have with the same size and contents.

        Args:
            last: Whether this runs within the gate: then every file must be there.

        Raises:
            StorageError: a file is missing in the source, or cannot be copied.
        """
        there = {self._to.relative(file.path): file.size for file in self._to.list()}
        todo = [file for file in self.files() if file.path not in self._copied]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            copies = [pool.submit(self._copy, file, there.get(file.path)) for file in todo]
            try:
                done = [each.result() for each in copies]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        # Outside of the gate, maintenance may delete a file that was listed before.
        missing = [file.path for file, copied in zip(todo, done, strict=True) if copied is None]
        if missing and last:
            raise StorageError(
                f"{len(missing)} files of the source are missing, for example {missing[0]}.",
                "lake verify, then lake repair; then run the same command again",
            )
        new = [file for file, copied in zip(todo, done, strict=True) if copied]
        self._to.sync([file.path for file in new])
        self._copied |= {file.path for file in todo} - set(missing)
        return Copied(len(new), sum(file.size for file in new), done.count(False))

    def _copy(self, file: File, there: int | None) -> bool | None:
        """Copy a file unless the target has it. Returns whether it was copied; None if the source has none."""
        with scratch() as folder:
            try:
                local = _local(self._from, file.path, folder / "from")
                size = local.stat().st_size
            except FileNotFoundError:
                return None
            except StorageError:
                if self._from.find(file.path) is None:  # some S3 servers say so in a way that its client does not know
                    return None
                raise
            if size != file.size:
                raise StorageError(
                    f"{self._from.url}{file.path} has {size:,} bytes; the catalog says {file.size:,}.",
                    "lake verify, then lake repair; then run the same command again",
                )
            if there == size and _digest(local) == _digest(_local(self._to, file.path, folder / "to")):
                return False
            _put(self._to, local, file.path)
        failpoint("mid copy")
        return True

    def copy_catalog(self) -> None:
        """Copy the catalog's tables, as of the source's latest snapshot, to where they wait. Call it within the gate.

        From now on, this move reads the source as of that snapshot.

        Raises:
            CatalogError: a table or value of the source cannot be copied exactly.
            CommitConflict: the source changed meanwhile.
        """
        import duckdb

        _discard(self.target)
        try:
            # DuckLake itself creates its tables. What is in them is replaced.
            connect(self.staged, create=True).close()
            with closing(engine()) as con:
                attach_database(con, "source", self.source.catalog, self.source.catalog_password, read_only=True)
                attach_database(con, "target", self.staged.catalog, self.target.catalog_password)
                con.execute("BEGIN")
                _copy_tables(con, self.source, self.target)
                snapshot = _one(con, f"SELECT max(snapshot_id) FROM source.{_main(self.source)}.ducklake_snapshot")
                con.execute("COMMIT")
            with closing(connect(self.staged)) as con:
                create_indexes(con, self.staged)
        except duckdb.Error as error:
            raise CatalogError(
                f"The catalog cannot be copied: {self.target.redact(' '.join(str(error).split()))[:400]}",
                "check that the target's role may create tables in its database, then run the same command again",
            ) from None
        # Both DuckLake and this class's own queries of the catalog read this snapshot from now on.
        self._reader.execute("BEGIN")
        newest = _one(self._reader, f"SELECT max(snapshot_id) FROM {META}.ducklake_snapshot")
        if not self.snapshot == newest == snapshot:
            raise CommitConflict("Another writer changed the lake meanwhile.", "run the same command again")
        failpoint("catalog staged")

    def compare(self) -> Compared:
        """Compare the rows of every table in both lakes, in every snapshot.

        Where a table has the same columns, its first and its last state are read whole, and of the snapshots between
        them the rows that each one inserted and deleted.

        Raises:
            LakeError: they differ, or cannot be read; the target stays no lake.
        """
        import duckdb

        found, tables = Compared(), set[int]()
        with closing(connect(self.staged, read_only=True)) as other, one_snapshot(other):
            for span in _spans(self._reader):
                try:
                    mine, theirs = (list(_states(con, span)) for con in (self._reader, other))
                except duckdb.Error as error:
                    text = self.target.redact(self.source.redact(" ".join(str(error).split())))[:300]
                    raise LakeError(
                        f"The lakes cannot be compared: {span}: {text}", "lake verify, then run the same command again"
                    ) from None
                if mine != theirs:
                    raise LakeError(f"The copied lake differs: {span}.", "run the same command again")
                tables.add(span.table_id)
                found.states += len({snapshot for snapshot, *_ in mine})
                found.rows += sum(count for _, _, count, _ in mine)
        found.tables = len(tables)
        failpoint("compared")
        return found

    def finish(self) -> None:
        """Make the target a lake: put its catalog into its place, in one step.

        Raises:
            LakeError: another move to this target runs at the same time.
        """
        compared = self.lake, self.target.data_path, self.snapshot
        self.close()
        if _lake_in(self.staged) != compared:
            raise LakeError("Another move to the same target runs.", "wait until it ends, then run this command again")
        if self.target.catalog_file is not None:
            staged = Path(f"{self.target.catalog_file}{SUFFIX}")
            # Closing it leaves no -wal file. Only this process has it open.
            with closing(sqlite3.connect(staged)) as file:
                file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            staged.replace(self.target.catalog_file)
        else:
            with closing(engine()) as con:
                attach_database(con, "target", self.target.catalog, self.target.catalog_password)
                names = _tables(con, "target", SCHEMA)
                into = [f"ALTER TABLE {SCHEMA}.{quoted(name)} SET SCHEMA public" for name in names]
                con.execute("BEGIN")
                _native(con, "; ".join([*into, f"DROP SCHEMA {SCHEMA}"]))
                con.execute("COMMIT")
        failpoint("moved")
        self.remove_mark()

    def remove_mark(self) -> None:
        """Remove the mark of a finished move from the target's data path."""
        self._to.remove(MARK)


_OPS = "WHERE schema_name = 'ops' AND end_snapshot IS NULL"

_FILES = """
    SELECT if(f.path_is_relative, s.path || t.path, '') || f.path, f.file_size_bytes,
           f.path_is_relative::BOOLEAN AND t.path_is_relative::BOOLEAN AND s.path_is_relative::BOOLEAN
    FROM (SELECT table_id, path, path_is_relative, file_size_bytes FROM {meta}.ducklake_data_file
          UNION SELECT table_id, path, path_is_relative, file_size_bytes FROM {meta}.ducklake_delete_file) f
    JOIN (SELECT DISTINCT table_id, schema_id, path, path_is_relative FROM {meta}.ducklake_table) t USING (table_id)
    JOIN (SELECT DISTINCT schema_id, path, path_is_relative FROM {meta}.ducklake_schema) s USING (schema_id)
    ORDER BY ALL
"""


def check_apart(source: Settings, target: Settings) -> None:
    """Check that the target's catalog, data path and state are not the source's.

    Raises:
        BadInput: one is.
    """
    places = [(s.s3_endpoint if s.data_path.startswith("s3://") else None, s.data_path) for s in (source, target)]
    (store, path), (other_store, other) = places
    same = {
        "LAKE_CATALOG": source.catalog == target.catalog,
        "LAKE_DATA_PATH": store == other_store and (path.startswith(other) or other.startswith(path)),
        "LAKE_STATE": source.state == target.state,
    }
    if names := [name for name, is_same in same.items() if is_same]:
        raise BadInput(
            f"The target is not apart from the source: {', '.join(names)} is the same, or one is in the other.",
            "set LAKE_CATALOG, LAKE_DATA_PATH and LAKE_STATE, or LAKE_HOME, in the file of the target's settings",
        )


def _staged(target: Settings) -> Settings:
    """The target's settings while its catalog waits."""
    end = SUFFIX if target.embedded else f" options=-csearch_path={SCHEMA}"
    return target.model_copy(update={"catalog": f"{target.catalog}{end}"})


def _main(settings: Settings) -> str:
    """The schema of the catalog's tables."""
    if settings.embedded:
        return "main"
    found = re.search(r"search_path=(\w+)", settings.catalog)
    return found[1] if found else "public"


def _one(con: DuckDBPyConnection, sql: str) -> Any:
    return con.execute(sql).fetchall()[0][0]


def _native(con: DuckDBPyConnection, sql: str) -> None:
    """Run statements in the target's PostgreSQL."""
    con.execute(f"CALL postgres_execute('target', {literal(sql)})")


def _tables(con: DuckDBPyConnection, database: str, schema: str) -> dict[str, dict[str, str]]:
    """The tables of DuckLake in a catalog: their columns with DuckDB's types, in order."""
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in con.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = ? AND schema_name = ? "
        "AND table_name LIKE 'ducklake\\_%' ESCAPE '\\' ORDER BY table_name, column_index",
        [database, schema],
    ).fetchall():
        found.setdefault(table, {})[column] = kind
    return found


def _lake_in(settings: Settings) -> tuple[str, str, int] | None:
    """The lake in a catalog: its id, its data path and its latest snapshot; None if there is no lake.

    Raises:
        CatalogError: the catalog cannot be opened, or is another program's.
    """
    import duckdb

    file = settings.catalog_file
    if file is not None and not file.exists():
        return None
    with closing(engine()) as con:
        try:
            attach_database(con, "target", settings.catalog, settings.catalog_password, read_only=True)
            schema = f"target.{_main(settings)}"
            tables = _tables(con, "target", _main(settings))
            if "ducklake_metadata" not in tables:
                if file is None or not con.execute("FROM duckdb_tables()").fetchall():
                    return None
                raise CatalogError(
                    f"{file} is a SQLite database, but not a DuckLake catalog.", "set LAKE_CATALOG to another file"
                )
            lake = con.execute(f"SELECT schema_uuid::VARCHAR FROM {schema}.ducklake_schema {_OPS}").fetchall()
            path = _one(con, f"SELECT any_value(value) FROM {schema}.ducklake_metadata WHERE key = 'data_path'")
            snapshot = _one(con, f"SELECT max(snapshot_id) FROM {schema}.ducklake_snapshot")
        except duckdb.Error as error:
            raise CatalogError(
                f"The target's catalog cannot be opened: {settings.redact(' '.join(str(error).split()))[:300]}",
                "check LAKE_CATALOG and LAKE_CATALOG_PASSWORD of the target's settings",
            ) from None
    return lake[0][0] if lake else "", path, snapshot


def _discard(target: Settings) -> None:
    """Remove the catalog of a move that was stopped."""
    import duckdb

    if target.catalog_file is not None:
        for end in ("", "-wal", "-shm", "-journal"):
            Path(f"{target.catalog_file}{SUFFIX}{end}").unlink(missing_ok=True)
        return
    with closing(engine()) as con:
        try:
            attach_database(con, "target", target.catalog, target.catalog_password)
            _native(con, f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")
        except duckdb.Error as error:
            raise CatalogError(
                f"The target's catalog cannot be written: {target.redact(' '.join(str(error).split()))[:300]}",
                "check that the target's role may create a schema in its database",
            ) from None


def _copy_tables(con: DuckDBPyConnection, source: Settings, target: Settings) -> None:
    """Copy all tables of the catalog within the open transaction, and check that they are equal."""
    schema = _main(_staged(target))
    mine, theirs = _tables(con, "source", _main(source)), _tables(con, "target", schema)
    inlined = dict(_inlined(con, source, mine, target.embedded))
    for name, columns in inlined.items():
        typed = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns.items())
        con.execute(f"CREATE TABLE target.{schema}.{name} ({typed})")
    for name, columns in (theirs | inlined).items():
        if list(mine.get(name, ())) != list(columns):
            raise CatalogError(
                f"The source's table {name} is not that of this release of DuckLake.",
                "run lake init with the source's settings, or use the release that wrote the lake",
            )
    if unknown := mine.keys() - theirs.keys() - inlined.keys():
        raise CatalogError(f"The catalog has a table that is not known: {min(unknown)}.", "use the latest release")
    for name, columns in (theirs | inlined).items():
        if name in theirs:
            con.execute(f"DELETE FROM target.{schema}.{name}")
        if name == UNUSED:
            continue
        rows = f"(FROM source.{_main(source)}.{name})"
        if name == "ducklake_metadata":
            moved = f"if(key = 'data_path', {literal(target.data_path)}, value)"
            rows = f"(SELECT * REPLACE ({moved} AS value) FROM {rows})"
        there = f"target.{schema}.{name}"
        con.execute(f"INSERT INTO {there} SELECT {_cast(mine[name], columns)} FROM {rows}")
        # Cast back: what differs could not be stored exactly.
        back = f"(SELECT {_cast(columns, mine[name])} FROM {there})"
        counts = con.execute(
            f"SELECT (SELECT count(*) FROM {rows}), (SELECT count(*) FROM {there}), "
            f"(SELECT count(*) FROM ((FROM {rows}) EXCEPT ALL (FROM {back})))"
        ).fetchall()[0]
        if counts[0] != counts[1] or counts[2]:
            raise CatalogError(
                f"{max(counts[2], abs(counts[0] - counts[1])):,} rows of {name} cannot be copied exactly.",
                "run lake maintain with the source's settings, which moves rows of the catalog to files; then again",
            )


def _cast(columns: Mapping[str, str], into: Mapping[str, str]) -> str:
    """Select columns as the types that they have in the other catalog."""

    def one(name: str) -> str:
        match columns[name], into[name]:
            case "VARCHAR", "BLOB":
                return f"encode({quoted(name)})"
            case "BLOB", "VARCHAR":
                return f"decode({quoted(name)})"
            case kind, other:
                return quoted(name) if kind == other else f"CAST({quoted(name)} AS {other})"

    return ", ".join(f"{one(name)} AS {quoted(name)}" for name in into)


_KINDS = {
    "boolean": "BOOLEAN",
    **dict.fromkeys(("int8", "int16"), "SMALLINT"),
    **dict.fromkeys(("int32", "uint8", "uint16"), "INTEGER"),
    **dict.fromkeys(("int64", "uint32"), "BIGINT"),
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "time": "TIME",
    "timetz": "TIME WITH TIME ZONE",
    "uuid": "UUID",
    "interval": "INTERVAL",
    **dict.fromkeys(("varchar", "blob", "json"), "BLOB"),
}
"""The types in which DuckLake keeps inlined values in PostgreSQL; decimals as they are, all others as text."""

_IN_SQLITE = {"BOOLEAN", "SMALLINT", "INTEGER", "BIGINT"}
"""Those of them that are BIGINT in SQLite. There, a blob is a blob, and all others are text."""


def inlined_type(kind: str, *, in_sqlite: bool) -> str:
    """The DuckDB type of a column of inlined values in the catalog.

    Args:
        kind: DuckLake's type of the column.
        in_sqlite: Whether the catalog is in SQLite; otherwise it is in PostgreSQL.
    """
    if in_sqlite:
        return "BLOB" if kind == "blob" else "BIGINT" if _KINDS.get(kind) in _IN_SQLITE else "VARCHAR"
    return kind.upper() if kind.startswith("decimal") else _KINDS.get(kind, "VARCHAR")


def _inlined(
    con: DuckDBPyConnection, source: Settings, tables: Mapping[str, Mapping[str, str]], in_sqlite: bool
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The source's tables of inlined rows and deletions, with the types of their columns in the target."""
    schema = f"source.{_main(source)}"
    for name in tables:
        if name.startswith("ducklake_inlined_delete_"):
            yield name, tables[name]
    kinds: dict[str, dict[str, str]] = {}
    for name, column, kind in con.execute(
        f"""SELECT i.table_name, c.column_name, c.column_type
            FROM {schema}.ducklake_inlined_data_tables i
            JOIN {schema}.ducklake_schema_versions v
                 ON v.table_id = i.table_id AND v.schema_version = i.schema_version
            JOIN {schema}.ducklake_column c
                 ON c.table_id = i.table_id AND c.parent_column IS NULL AND c.begin_snapshot <= v.begin_snapshot
                    AND (c.end_snapshot IS NULL OR c.end_snapshot > v.begin_snapshot)"""
    ).fetchall():
        kinds.setdefault(name, {})[column] = inlined_type(kind, in_sqlite=in_sqlite)
    own = dict.fromkeys(("row_id", "begin_snapshot", "end_snapshot"), "BIGINT")
    for name, columns in kinds.items():
        if name in tables:
            yield name, {column: (own | columns).get(column, "") for column in tables[name]}


def _spans(con: DuckDBPyConnection) -> Iterator[Span]:
    """The times in which each table has the same name and columns, in the snapshots that are not expired."""
    snapshots = [n for (n,) in con.execute(f"SELECT snapshot_id FROM {META}.ducklake_snapshot ORDER BY 1").fetchall()]
    # Such as inserted_into_table:5,deleted_from_table:5
    changed = {
        snapshot: set(tables)
        for snapshot, tables in con.execute(
            f"SELECT snapshot_id, regexp_extract_all(changes_made, ':(\\d+)', 1)::BIGINT[] "
            f"FROM {META}.ducklake_snapshot_changes"
        ).fetchall()
    }
    cuts: dict[int, set[int]] = {}
    for table, begun, ended in con.execute(
        f"SELECT table_id, begin_snapshot, end_snapshot FROM {META}.ducklake_column"
    ).fetchall():
        cuts.setdefault(table, set()).update(n for n in (begun, ended) if n is not None)
    for table, schema, name, begun, ended in con.execute(
        f"""SELECT DISTINCT t.table_id, s.schema_name, t.table_name, greatest(t.begin_snapshot, s.begin_snapshot),
                   least(t.end_snapshot, s.end_snapshot)
            FROM {META}.ducklake_table t JOIN {META}.ducklake_schema s ON s.schema_id = t.schema_id
                 AND s.begin_snapshot < coalesce(t.end_snapshot, s.begin_snapshot + 1)
                 AND coalesce(s.end_snapshot, t.begin_snapshot + 1) > t.begin_snapshot
            ORDER BY ALL"""
    ).fetchall():
        end = ended if ended is not None else snapshots[-1] + 1
        bounds = sorted({begun, end} | {cut for cut in cuts.get(table, ()) if begun < cut < end})
        for low, high in pairwise(bounds):
            held = snapshots[bisect_left(snapshots, low) : bisect_left(snapshots, high)]
            if held:
                # An expired snapshot between two others is in no list of changes.
                whole = held[-1] - held[0] == len(held) - 1
                after = (n for n in held[1:] if not whole or table in changed[n])
                yield Span(table, schema, name, held[0], next(after, None), held[-1])


def _states(con: DuckDBPyConnection, span: Span) -> Iterator[tuple[int, str, int, Any]]:
    """The states of a table in a span: snapshot, what it counts, number of rows, sum of their hashes."""
    table = f"{LAKE}.{quoted(span.schema)}.{quoted(span.table)}"

    def whole(snapshot: int) -> tuple[int, str, int, Any]:
        (found,) = con.execute(
            f"SELECT count(*), sum(hash(r)) FROM (FROM {table} AT (VERSION => {snapshot})) r"
        ).fetchall()
        return snapshot, "rows", *found

    yield whole(span.first)
    if span.after is None:
        return
    changes = con.execute(
        f"""SELECT snapshot_id, change_type, count(*), sum(hash(r))
            FROM (FROM ducklake_table_changes('{LAKE}', {literal(span.schema)}, {literal(span.table)}, {span.after},
                                              {span.last})) r
            GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    yield from changes
    if changes:
        yield whole(span.last)


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _local(storage: Storage, path: str, local: Path) -> Path:
    """A stored file as one of this machine; that of an object store is copied."""
    if storage.is_local:
        return Path(storage.path(path))
    storage.get(path, local)
    return local


def _put(storage: Storage, local: Path, path: str) -> None:
    """Store a file.

    Raises:
        StorageError: it cannot be stored.
    """
    errors: tuple[type[Exception], ...] = (OSError,)
    if not storage.is_local:
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError

        errors = (OSError, MinioException, HTTPError)
    try:
        storage.put(local, path)
    except errors as error:
        if isinstance(error, FileNotFoundError) and not local.exists():
            raise
        text = storage.settings.redact(" ".join(str(error).split()))[:300]
        raise StorageError(
            f"{storage.url}{path} cannot be written: {text}",
            "check space and permissions of the target's data path, then run the same command again",
        ) from None
