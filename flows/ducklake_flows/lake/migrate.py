"""Migrate a filled raw table, atomically for readers: see `ducklake_flows.lake.migration` for what a migration is.

Names and dropped columns are in the catalog alone: one commit. Other types need new files:

    shadow    an empty table with the new columns, raw.<key>__migration
    copy      partition by partition: read, compare with the ledger, convert exactly, stage, register in the shadow
    check     read the shadow's rows
    swap      one transaction: drop the table, give the shadow its name, write the new fingerprints into the ledger

A partition that is published meanwhile is copied again before the swap. A copy's file has the name of its attempt, so
the shadow itself shows what is done: a migration that was stopped goes on where it was. The old files stay until their
snapshots expire.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.partitions import FULL
from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import BadInput, CommitConflict, LakeError
from ducklake_flows.lake import ledger, migration
from ducklake_flows.lake.connect import commit_message, connected, literal, one_snapshot, rows
from ducklake_flows.lake.evolve import READ, Contents, contents, key_of
from ducklake_flows.lake.fence import next_token
from ducklake_flows.lake.files import full_paths, looks_like, place_in, registered
from ducklake_flows.lake.ledger import append, fingerprints, retyped_row
from ducklake_flows.lake.repair import settle
from ducklake_flows.lake.rows import condition
from ducklake_flows.lake.schema import create_table, qualified, record_change, shadow_key, table_columns
from ducklake_flows.lake.transaction import committed
from ducklake_flows.scratch import scratch
from ducklake_flows.settings import LAKE
from ducklake_flows.sources.values import Unfit
from ducklake_flows.staging.inspect import fingerprint_sql, inspect
from ducklake_flows.staging.layout import attempt_of, staged_path
from ducklake_flows.storage import open_storage
from ducklake_flows.testing.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition
    from ducklake_flows.lake.ledger import Entry
    from ducklake_flows.lake.migration import Migration
    from ducklake_flows.settings import Settings

LAST = 16
"""Partitions that were published meanwhile and are copied within the gate, right before the swap."""

FIRST_NUMBER = 1_000_000
"""The number of a copy's file in its attempt is this plus the snapshot of the shadow: no attempt has so many files."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A partition in its new columns.

    Args:
        entry: Its state in the ledger when it was copied.
        path: The staged file, below the data path; "" if the partition has no rows.
    """

    entry: Entry
    path: str


@dataclass(frozen=True)
class Migrator:
    """A migration of one raw table.

    Args:
        settings: Where the lake is.
        dataset: The dataset of the table.
        migration: What changes.
        before: The table's columns, name and DuckDB type.
        earlier: For undoing: the last snapshot before the migration that is undone. The partitions that were not
            published since take their rows from there.
        flow_run_id: Recorded in the ledger.
    """

    settings: Settings
    dataset: Dataset
    migration: Migration
    before: Mapping[str, str]
    earlier: int | None = None
    flow_run_id: str = ""
    _seen: dict[str, tuple[str, Contents]] = field(default_factory=dict, repr=False, compare=False)
    """The attempt and the contents of each partition in the shadow, as `check` has read them."""

    @property
    def after(self) -> dict[str, str]:
        """The columns that the table gets."""
        return self.migration.after(self.before)

    @cached_property
    def shadow(self) -> Dataset:
        """The table with the new columns until it takes the place of the other; without rules, only for its name."""
        return replace(
            self.dataset,
            key=shadow_key(self.dataset.key),
            contract=Contract(),
            primary_key=(),
            audits=(),
            children={},
            resources={},
            quarantine_limit=None,
        )

    def survey(self) -> dict[str, int]:
        """Check that every value fits, before anything is written.

        The columns are read once. To undo, only rows that were published since are converted back and checked.

        Returns:
            ``partitions`` and ``rows`` of the table, and for each dropped column its non-null values, by its name.

        Raises:
            BadInput: a partition differs from the ledger, or a value does not fit its new type; names it.
        """
        with connected(self.settings, read_only=True) as con, one_snapshot(con):
            entries = _published(con, self.dataset)
            there = contents(con, self.dataset, self.before)
            self._agree(entries, there)
            if not self.migration.rewrites:
                found = contents(con, self.dataset, self.after, source=self._renamed())
                self._seen.update((key, (entries[key].attempt_id, what)) for key, what in found.items())
            else:
                new = self._since(con)
                self._fits(con, [self.dataset.partition(k) for k, e in entries.items() if e.attempt_id in new])
            counted = [f"count({quoted(name)})" for name in self.migration.drop]
            sums = con.execute(f"SELECT {', '.join(['count(*)', *counted])} FROM {qualified(self.dataset)}")
            total, *dropped = sums.fetchall()[0]
        return {"partitions": len(there), "rows": int(total), **dict(zip(self.migration.drop, dropped, strict=True))}

    def _agree(self, entries: Mapping[str, Entry], there: Mapping[str, Contents]) -> None:
        """Check that the ledger and the table say the same of some partitions."""
        for key in sorted({*there, *(key for key, entry in entries.items() if entry.rows)}):
            entry, found = entries.get(key), there.get(key)
            if entry is None or found is None or (entry.rows, entry.fingerprint) != (found.rows, found.fingerprint):
                raise BadInput(f"{self.dataset.key} {key} differs from the ledger.", f"lake repair {self.dataset.key}")

    def _renamed(self) -> str:
        """The table under its new names, as a table expression."""
        kept = [name for name in self.before if name not in self.migration.drop]
        named = (f"{quoted(name)} AS {quoted(self.migration.rename.get(name, name))}" for name in kept)
        return f"(SELECT {', '.join(named)} FROM {qualified(self.dataset)})"

    @property
    def _dividing(self) -> tuple[str | None, str | None]:
        return self.dataset.segment_column, self.dataset.partition_column

    def _since(self, con: DuckDBPyConnection) -> set[str]:
        """The attempts whose rows are converted: all, or to undo those that were published since."""
        found = con.execute(
            f"SELECT attempt_id FROM {LAKE}.ops.ledger WHERE dataset = {literal(self.dataset.key)} "
            f"GROUP BY attempt_id HAVING min(token) > {-1 if self.earlier is None else self.earlier}"
        ).fetchall()
        return {attempt for (attempt,) in found}

    def _fits(self, con: DuckDBPyConnection, partitions: Sequence[Partition]) -> None:
        """Check that each value of the retyped columns fits its new type, in some partitions."""
        names = {new: name for name, new in self.migration.rename.items()}
        columns = {name: names.get(name, name) for name in self.migration.retype}
        places = list(self.dataset.partition_columns)
        selected = [quoted(name) for name in (*columns.values(), *places)]
        where = condition(self.dataset, partitions) if self.earlier is not None else "true"
        con.execute(f"SELECT {', '.join(selected)} FROM {qualified(self.dataset)} WHERE {where}")
        for batch in con.to_arrow_reader(migration.BATCH):
            for number, name in enumerate(columns):
                try:
                    migration.fitted(self.dataset, batch.column(number), self.after[name], name)
                except Unfit as error:
                    of = {p: batch.column(len(columns) + n)[error.row or 0].as_py() for n, p in enumerate(places)}
                    place = [of.get(column or "", "") for column in self._dividing]
                    raise migration.unfit(f"{self.dataset.key} {key_of(self.dataset, *place)}", error) from None

    # In the catalog alone.

    def alter(self) -> int | None:
        """Rename and drop columns in one commit. Call it within the gate, after `survey`.

        Returns:
            The snapshot; None if it was done before.

        Raises:
            CommitConflict: other writers were first in every retry.
            BadInput: a partition differs from the ledger.
        """
        snapshot = committed(self.settings, self._altered)
        failpoint("table swapped")
        return snapshot

    def _altered(self, con: DuckDBPyConnection) -> int | None:
        if not self._is_before(con):
            return None
        token = next_token(con)
        failpoint("after the fence")
        entries = _published(con, self.dataset)
        known = {key: what for key, (attempt, what) in self._seen.items() if _attempt(entries.get(key)) == attempt}
        # Published since the survey, or given up.
        other = {key: entry for key, entry in entries.items() if entry.rows and key not in known}
        if other:
            self._agree(other, contents(con, self.dataset, self.before, other))
            known |= contents(con, self.dataset, self.after, other, source=self._renamed())
        for name in self.migration.drop:
            con.execute(f"ALTER TABLE {qualified(self.dataset)} DROP COLUMN {quoted(name)}")
        for name, new in self.migration.rename.items():
            con.execute(f"ALTER TABLE {qualified(self.dataset)} RENAME COLUMN {quoted(name)} TO {quoted(new)}")
        self._record(con, token, [(entries[key], what.fingerprint) for key, what in known.items()])
        return token

    # With new files.

    def prepare(self) -> None:
        """Create the shadow, unless an earlier run of the same migration has. Call it within the gate.

        Raises:
            BadInput: the folder of the lake looks like a column, so that no staged file can be registered.
            CommitConflict: other writers were first in every retry.
        """
        if looks_like(self.settings, self.after):
            raise BadInput(
                "A folder above the lake looks like a column with its value, so its files cannot be registered.",
                "move the lake to another folder first",
            )
        committed(self.settings, self._prepared)
        settle(self.settings, {self.shadow.table})

    def _prepared(self, con: DuckDBPyConnection) -> int | None:
        self._check_before(con)
        shadow = self.shadow
        if shadow.table in table_columns(con):
            last = con.execute(
                f"SELECT arg_max(change, token) FROM {LAKE}.ops.schema_changes "
                f"WHERE table_name = {literal(shadow.table)}"
            ).fetchall()[0][0]
            if (last, table_columns(con)[shadow.table]) == (self._purpose, self.after):
                return None
            con.execute(f"DROP TABLE {qualified(shadow)}")
        token = next_token(con)
        # The folder of a table is called as the table was when it was created: both get the same one.
        table, aside = qualified(self.dataset), f"{shadow.key}_aside"
        con.execute(f"ALTER TABLE {table} RENAME TO {quoted(aside)}")
        create_table(con, self.dataset, self.after)
        con.execute(f"ALTER TABLE {table} RENAME TO {quoted(shadow.key)}")
        con.execute(f"ALTER TABLE {LAKE}.raw.{quoted(aside)} RENAME TO {quoted(self.dataset.key)}")
        record_change(con, shadow.table, self._purpose)
        commit_message(con, f"migrate {self.dataset.key}: begin", token=token, dataset=self.dataset.key)
        return token

    @property
    def _purpose(self) -> str:
        """What the shadow is for."""
        of = f"{self.dataset.key} as of {self.earlier}" if self.earlier is not None else self.dataset.key
        return f"for {of}: {self.migration.record}"

    def pending(self) -> list[Entry]:
        """The partitions that the shadow does not have as they are published, in the ledger's order."""
        with connected(self.settings, read_only=True) as con, one_snapshot(con):
            return self._pending(con)

    def _pending(self, con: DuckDBPyConnection) -> list[Entry]:
        self._check_shadow(con)
        copied = self._copied(con)
        return [
            entry
            for key, entry in _published(con, self.dataset).items()
            if copied.get(key, set()) != ({entry.attempt_id} if entry.rows else set())
        ]

    def _copied(self, con: DuckDBPyConnection) -> dict[str, set[str]]:
        """The attempts of the files in the shadow, by partition."""
        found: dict[str, set[str]] = {}
        for path, _ in registered(con, self.shadow.table):
            place = place_in(self.dataset, path)
            if attempt := attempt_of(path):
                key = FULL if place is None else self.dataset.scheme.holding(place[1], place[0]).key
                found.setdefault(key, set()).add(attempt)
        return found

    def copy(self, entries: Sequence[Entry]) -> list[Copy]:
        """Stage the rows of partitions in the new columns.

        Raises:
            BadInput: the rows differ from the ledger, or a value does not fit its new type.
        """
        stage = open_storage(self.settings.data_path, self.settings)
        copies = []
        with connected(self.settings, read_only=True) as con:
            begun = con.execute(
                f"SELECT max(token) FROM {LAKE}.ops.schema_changes WHERE table_name = {literal(self.shadow.table)}"
            ).fetchall()[0][0]
            since = self._since(con)
            for entry in entries:
                if not entry.rows:
                    copies.append(Copy(entry, ""))
                    continue
                partition = self.dataset.partition(entry.partition)
                path = staged_path(self.dataset, partition, entry.attempt_id, FIRST_NUMBER + int(begun))
                with scratch() as work:
                    is_old = entry.attempt_id not in since
                    stage.put(self._converted(con, entry, partition, work, is_old=is_old), path)
                failpoint("copy staged")
                copies.append(Copy(entry, path))
        stage.sync([copy.path for copy in copies if copy.path])
        return copies

    def _converted(
        self, con: DuckDBPyConnection, entry: Entry, partition: Partition, work: Path, *, is_old: bool
    ) -> Path:
        """A local file with a partition's rows in the new columns: the present rows, or those of before a migration."""
        dataset, source = self.dataset, work / "source.parquet"
        at = f"AT (VERSION => {self.earlier})" if is_old else ""
        rows = f"SELECT * FROM {qualified(dataset)} {at} WHERE {condition(dataset, [partition])}"
        con.execute(f"COPY ({rows}) TO {literal(str(source))} (FORMAT parquet)")
        wanted = fingerprints(con, entry.attempt_id) if is_old else {entry.fingerprint}
        (seen,) = inspect(self.shadow, [partition], [str(source)])
        if seen.fingerprint not in wanted:
            raise BadInput(f"{dataset.key} {partition} differs from the ledger.", f"lake repair {dataset.key}")
        changes = () if is_old else [self.migration]
        made = migration.convert(dataset, partition, source, work / "target.parquet", self.after, changes)
        (found,) = inspect(self.shadow, [partition], [str(made)])
        kept = self._kept(seen.columns, changes)
        same = [
            con.execute(f"SELECT {fingerprint_sql(dict.fromkeys(kept, ''))} FROM ({selected})", [str(file)]).fetchall()
            for selected, file in (
                (
                    f"SELECT {', '.join(f'{quoted(o)} AS {quoted(n)}' for n, o in kept.items()) or '1'} FROM {READ}",
                    source,
                ),
                (f"FROM {READ}", made),
            )
        ]
        if (found.rows, found.columns) != (entry.rows, self.after) or same[0] != same[1]:
            what = f"{dataset.key} {partition} was not converted as planned."
            raise LakeError(what, "this is a bug in the pipeline: report it; nothing was changed")
        return made

    def _kept(self, columns: Mapping[str, str], changes: Sequence[Migration]) -> dict[str, str]:
        """The columns that must not change, each with its name among these."""
        named = {name: name for name in columns}
        for change in changes:
            named = {change.rename.get(new, new): old for new, old in named.items() if new not in change.drop}
        return {new: old for new, old in named.items() if self.after.get(new) == columns[old]}

    def add(self, copies: Sequence[Copy]) -> None:
        """Register staged copies in the shadow, in place of those of the same partitions. Call it within the gate.

        Raises:
            CommitConflict: other writers were first in every retry.
        """
        committed(self.settings, lambda con: self._added(con, copies))

    def _added(self, con: DuckDBPyConnection, copies: Sequence[Copy]) -> int | None:
        there = {path for path, _ in registered(con, self.shadow.table)}
        # The answer to a COMMIT may have been lost.
        new = [copy for copy in copies if self.settings.data_path + copy.path not in there]
        if not new:
            return None
        token = next_token(con)
        if there:
            partitions = [self.dataset.partition(copy.entry.partition) for copy in new]
            con.execute(f"DELETE FROM {qualified(self.shadow)} WHERE {condition(self.dataset, partitions)}")
        if paths := [copy.path for copy in new if copy.path]:
            divided = bool(self.dataset.partition_columns)
            con.execute(
                f"CALL ducklake_add_data_files('{LAKE}', ?, ?, schema => 'raw', hive_partitioning => {divided})",
                [self.shadow.key, full_paths(self.settings, paths)],
            )
        failpoint("after registration")
        commit_message(con, f"migrate {self.dataset.key}: {len(new)} partitions", token=token)
        return token

    def check(self) -> None:
        """Read the shadow: its rows and their fingerprints, for the ledger."""
        with connected(self.settings, read_only=True) as con, one_snapshot(con):
            copied = self._copied(con)
            found = contents(con, self.shadow, self.after)
        self._seen.clear()
        self._seen.update((key, (min(copied[key]), what)) for key, what in found.items() if key in copied)

    def swap(self) -> int | None:
        """Let the shadow take the table's place, with the new fingerprints in the ledger. Call it within the gate.

        Returns:
            The snapshot; None if more than `LAST` partitions were published since `check`: copy those first.

        Raises:
            CommitConflict: other writers were first in every retry.
            BadInput: the table's columns have changed.
        """
        pending = self.pending()
        if len(pending) > LAST:
            return None
        if pending:
            self.add(self.copy(pending))
            self.check()
        snapshot = committed(self.settings, self._swapped)
        failpoint("table swapped")
        return snapshot

    def _swapped(self, con: DuckDBPyConnection) -> int | None:
        shadow = self.shadow
        tables = table_columns(con)
        if shadow.table not in tables and tables.get(self.dataset.table) == self.after:
            return migration.recorded(con, self.dataset.table)[-1][0]  # the answer to the COMMIT was lost
        self._check_before(con)
        self._check_shadow(con)
        token = next_token(con)
        failpoint("after the fence")
        if self._pending(con):
            raise CommitConflict(f"{self.dataset.key} was published meanwhile.", "run the same command again")
        new = []
        for key, entry in _published(con, self.dataset).items():
            attempt, there = self._seen.get(key, ("", Contents(0, "")))
            if entry.rows and (attempt, there.rows) != (entry.attempt_id, entry.rows):
                raise LakeError(
                    f"{self.dataset.key} {key}: {there.rows:,} of {entry.rows:,} rows are in {shadow.table}.",
                    f"lake migrate {self.dataset.key} --abandon, then migrate again; nothing was changed",
                )
            if entry.rows:
                new.append((entry, there.fingerprint))
        con.execute(f"DROP TABLE {qualified(self.dataset)}")
        con.execute(f"ALTER TABLE {qualified(shadow)} RENAME TO {quoted(self.dataset.key)}")
        self._record(con, token, new)
        return token

    def abandon(self) -> bool:
        """Drop what a stopped migration has left. Call it within the gate. Returns whether there was anything."""
        return committed(self.settings, self._abandoned) is not None

    def _abandoned(self, con: DuckDBPyConnection) -> int | None:
        if self.shadow.table not in table_columns(con):
            return None
        token = next_token(con)
        con.execute(f"DROP TABLE {qualified(self.shadow)}")
        commit_message(con, f"migrate {self.dataset.key}: abandon", token=token)
        return token

    def _record(self, con: DuckDBPyConnection, token: int, new: Sequence[tuple[Entry, str]]) -> None:
        """Write the migration and the new fingerprints of partitions."""
        record_change(con, self.dataset.table, self.migration.record)
        common = {"flow_run_id": self.flow_run_id, "recorded_at": datetime.now(UTC), "token": token}
        append(con, "ledger", [{**retyped_row(entry, digest), **common} for entry, digest in new])
        # The next transform compares the models' columns with the table's.
        built = con.execute(
            f"SELECT environment FROM {LAKE}.ops.builds GROUP BY ALL HAVING arg_max(project, token) <> ''"
        ).fetchall()
        append(con, "builds", [{**common, "environment": name, "project": "columns changed"} for (name,) in built])
        commit_message(con, f"migrate {self.dataset.key}", token=token, flow_run_id=self.flow_run_id)
        failpoint("before COMMIT")

    def _check_shadow(self, con: DuckDBPyConnection) -> None:
        if self.shadow.table not in table_columns(con):
            what = f"The migration of {self.dataset.key} was abandoned, or finished by another run."
            raise BadInput(what, f"lake migrate {self.dataset.key}")

    def _is_before(self, con: DuckDBPyConnection) -> bool:
        return table_columns(con).get(self.dataset.table) == dict(self.before)

    def _check_before(self, con: DuckDBPyConnection) -> None:
        if not self._is_before(con):
            raise BadInput(
                f"The columns of {self.dataset.table} have changed since the migration began.",
                f"lake migrate {self.dataset.key} --abandon, then migrate again",
            )


def migrator(
    settings: Settings, dataset: Dataset, rename: Mapping[str, str], drop: Sequence[str], flow_run_id: str = ""
) -> Migrator:
    """Plan a migration; see `ducklake_flows.lake.migration.plan`. An empty one needs nothing.

    Raises:
        BadInput: a column is none of the table's, or must stay; or the contract says otherwise.
    """
    with connected(settings, read_only=True) as con:
        there = table_columns(con).get(dataset.table, {})
    return Migrator(settings, dataset, migration.plan(dataset, there, rename, drop), there, None, flow_run_id)


def undoing(settings: Settings, dataset: Dataset, flow_run_id: str = "") -> Migrator:
    """Plan to undo the last migration of a table.

    Raises:
        BadInput: there was none, or its snapshot has expired and columns would come back without their values.
    """
    with connected(settings, read_only=True) as con:
        found = migration.recorded(con, dataset.table)
        if not found:
            raise BadInput(f"{dataset.table} was never migrated.", f"lake status {dataset.key}")
        token, last = found[-1]
        there = table_columns(con)[dataset.table]
        snapshots = {row["snapshot_id"] for row in rows(con, f"SELECT snapshot_id FROM {LAKE}.snapshots()")}
    if last.undone.rewrites and token - 1 not in snapshots:
        raise BadInput(
            f"Snapshot {token - 1}, from before the migration of {dataset.table}, has expired.",
            "declare the earlier columns in the contract, then: lake migrate " + dataset.key,
        )
    earlier = token - 1 if last.undone.rewrites else None
    return Migrator(settings, dataset, last.undone, there, earlier, flow_run_id)


def _published(con: DuckDBPyConnection, dataset: Dataset) -> dict[str, Entry]:
    """The published partitions of a dataset, by key."""
    return {key: entry for (_, key), entry in ledger.latest(con, dataset.key).items() if entry.attempt_id}


def _attempt(entry: Entry | None) -> str:
    return entry.attempt_id if entry is not None else ""
