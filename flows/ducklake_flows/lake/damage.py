"""Damage: raw partitions that are not what the ledger says: other rows, or files that are missing or unreadable.

`lake verify` reports it, `lake repair` publishes these partitions again. Reads only.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ducklake_flows.errors import BadInput
from ducklake_flows.lake import ledger
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.evolve import Contents, contents
from ducklake_flows.lake.files import File, bounded, by_partition, of_partition, registered
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.scratch import scratch
from ducklake_flows.settings import LAKE, Settings
from ducklake_flows.staging.inspect import ALGORITHM
from ducklake_flows.storage import Storage, open_storage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.datasets.partitions import Partition

MISSING = "is missing"


@dataclass(frozen=True, slots=True)
class Damaged:
    """A partition that differs from the ledger.

    Args:
        dataset: The dataset's key.
        partition: The partition's key.
        check: What is broken.
        message: What was found.
        lost: Its registered files that are missing or unreadable, by full path. Until they are dropped from the
            catalog, every query on the partition fails.
        state: Of its latest ledger row; "" if the ledger has no published attempt: the rows came from elsewhere.
        shared: Those of the lost files that may hold rows of other partitions, too.
    """

    dataset: str
    partition: str
    check: Literal["rows", "file exists", "file readable"]
    message: str
    lost: tuple[str, ...] = ()
    state: str = ""
    shared: tuple[str, ...] = ()


def stored(storage: Storage) -> dict[str, int]:
    """The size in bytes of every stored file, by full path."""
    return {storage.url + storage.relative(file.path): file.size for file in storage.list()}


def absent(storage: Storage, files: Iterable[tuple[str, int]], there: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The registered files that are missing or have another size: path, and what is wrong.

    Args:
        storage: The data path. Files outside of it are not checked.
        files: Path and size, see `registered`.
        there: The stored files, see `stored`.
    """
    for path, size in dict.fromkeys(files):
        if path.startswith(storage.url) and there.get(path) != size:
            yield path, f"has {there[path]:,} bytes instead of {size:,}" if path in there else MISSING


def find(
    settings: Settings,
    con: DuckDBPyConnection,
    dataset: Dataset,
    columns: Mapping[str, str],
    entries: Mapping[str, ledger.Entry],
    files: Sequence[tuple[str, int]],
    only: Collection[str] | None = None,
    there: Mapping[str, int] | None = None,
) -> list[Damaged]:
    """Compare a dataset's partitions with the ledger: by their files, their row count and their fingerprint.

    Args:
        settings: Where the files are.
        con: A connection without an open transaction.
        dataset: The dataset.
        columns: Its raw table's columns.
        entries: Its published partitions according to the ledger.
        files: Its raw table's files, see `registered`.
        only: Compare only these partitions; None means all, also those that are not in the ledger.
        there: All stored files; None: look for the files of a partition only if it cannot be read.

    Raises:
        StorageError: the storage cannot be read.
    """
    storage = open_storage(settings.data_path, settings)
    of = by_partition(dataset, bounded(con, dataset, files), entries.keys())
    states = {key: entry.state for key, entry in entries.items()}
    damaged: dict[str, Damaged] = {}
    if there is not None:
        for key, mine in of.items():
            if (only is None or key in only) and (gone := dict(absent(storage, _sizes(mine), there))):
                damaged[key] = _lost(dataset, key, mine, gone, states.get(key, ""))
    wanted = (set(only) if only is not None else entries.keys() | of.keys()) - damaged.keys()
    found, errors = _read(con, dataset, columns, wanted, whole=only is None and not damaged)
    for key, error in errors.items():
        bad = dict(_unreadable(storage, _sizes(of.get(key, []))))
        damaged[key] = (
            _lost(dataset, key, of.get(key, []), bad, states.get(key, ""))
            if bad
            else Damaged(dataset.key, key, "file readable", error, (), states.get(key, ""))
        )
    for key, entry in entries.items():
        if key in wanted and key not in damaged:
            there_now = found.pop(key, Contents(0, f"{ALGORITHM}:0:{0:032x}"))
            if message := _differs(there_now, entry):
                damaged[key] = Damaged(dataset.key, key, "rows", message, (), entry.state)
    for key, extra in found.items():
        if key not in entries and extra.rows:
            message = f"has {extra.rows:,} rows that are not in the ledger"
            damaged[str(key)] = Damaged(dataset.key, str(key), "rows", message)
    return [damaged[key] for key in sorted(damaged)]


def find_all(settings: Settings, datasets: Iterable[Dataset], only: Collection[str] | None = None) -> list[Damaged]:
    """The damaged partitions of datasets, all or those in `only`; see `find`.

    Raises:
        NotInitialised: there is no lake yet.
        StorageError: the storage cannot be read.
    """
    with connected(settings, read_only=True) as con:
        tables = table_columns(con)
        known = [dataset for dataset in datasets if dataset.table in tables]
        # Before the storage is listed: a file that is registered meanwhile must not count as missing.
        files = {dataset.key: registered(con, dataset.table) for dataset in known}
        there = stored(open_storage(settings.data_path, settings))
        return [
            damaged
            for d in known
            for damaged in find(settings, con, d, tables[d.table], published(con, d), files[d.key], only, there)
        ]


def published(con: DuckDBPyConnection, dataset: Dataset) -> dict[str, ledger.Entry]:
    """The partitions of a dataset that have a published attempt, by key."""
    return {key: entry for (_, key), entry in ledger.latest(con, dataset.key).items() if entry.attempt_id}


def lost_files(settings: Settings, dataset: Dataset, partition: Partition) -> list[File]:
    """The registered files that may hold rows of a partition and are missing or unreadable.

    Raises:
        StorageError: the storage cannot be read, so it is unknown which files are lost.
    """
    storage = open_storage(settings.data_path, settings)
    with connected(settings, read_only=True) as con:
        if dataset.table not in table_columns(con):
            return []
        mine = of_partition(con, dataset, partition)
    lost = dict(_unreadable(storage, _sizes(mine)))
    return [file for file in mine if file.path in lost]


def lost_by_models(settings: Settings) -> dict[str, str]:
    """The registered files of the models' tables that are missing: the table of each full path.

    Raises:
        StorageError: the storage cannot be listed.
    """
    storage = open_storage(settings.data_path, settings)
    with connected(settings, read_only=True) as con:
        names = con.execute(
            "SELECT schema_name || '.' || table_name FROM duckdb_tables() "
            f"WHERE database_name = '{LAKE}' AND schema_name NOT IN ('raw', 'ops')"
        ).fetchall()
        files = {table: registered(con, table) for (table,) in names}
    there = stored(storage)
    return {path: table for table, found in files.items() for path, _ in absent(storage, found, there)}


def _sizes(files: Iterable[File]) -> list[tuple[str, int]]:
    return [(file.path, file.size) for file in files]


def _lost(dataset: Dataset, key: str, files: Iterable[File], faults: Mapping[str, str], state: str) -> Damaged:
    gone = MISSING in faults.values()
    shared = tuple(file.path for file in files if file.path in faults and not file.is_of_one)
    message = "; ".join(f"{path} {fault}" for path, fault in faults.items())
    return Damaged(dataset.key, key, "file exists" if gone else "file readable", message, tuple(faults), state, shared)


def _read(
    con: DuckDBPyConnection, dataset: Dataset, columns: Mapping[str, str], keys: Collection[str], *, whole: bool
) -> tuple[dict[str, Contents], dict[str, str]]:
    """The contents of partitions, and the error of each partition that cannot be read.

    Args:
        con: A connection without an open transaction.
        dataset: The dataset.
        columns: Its raw table's columns.
        keys: The partitions.
        whole: Whether to read the whole table, with rows of partitions that no key names.
    """
    import duckdb

    valid = sorted(key for key in keys if _is_key(dataset, key))
    if not whole and not valid:
        return {}, {}
    try:
        return contents(con, dataset, columns, None if whole else valid), {}
    except duckdb.Error as error:
        if len(valid) <= 1:
            return {}, {key: " ".join(str(error).split())[:300] for key in valid or ["full"]}
    # One broken file fails the whole query: halve the partitions until those that cannot be read are found.
    found: dict[str, Contents] = {}
    errors: dict[str, str] = {}
    for half in (valid[: len(valid) // 2], valid[len(valid) // 2 :]):
        more, bad = _read(con, dataset, columns, half, whole=False)
        found |= more
        errors |= bad
    return found, errors


def _is_key(dataset: Dataset, key: str) -> bool:
    try:
        dataset.partition(key)
    except BadInput:
        return False
    return True


def _differs(there: Contents, entry: ledger.Entry) -> str:
    """How the rows of a partition differ from the ledger; "" if they do not."""
    if there.rows != entry.rows:
        return f"has {there.rows:,} rows, but the ledger says {entry.rows:,}"
    if entry.fingerprint.startswith(f"{ALGORITHM}:") and there.fingerprint != entry.fingerprint:
        return "has rows that differ from the staged ones"
    return ""


def _unreadable(storage: Storage, files: Iterable[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """The files that are missing, or that cannot be read although the storage answers: path, and what is wrong.

    Each file is copied first, so that an error of the storage is never taken for a broken file.

    Raises:
        StorageError: the storage does not answer.
        OSError: a file cannot be copied.
    """
    import duckdb

    with scratch() as work, duckdb.connect() as plain:
        for path, size in dict.fromkeys(files):
            if not path.startswith(storage.url):
                continue
            relative = path.removeprefix(storage.url)
            file = storage.find(relative)
            faults = list(absent(storage, [(path, size)], {path: file.size} if file else {}))
            if faults:
                yield from faults
                continue
            copy = f"{work}/file.parquet"
            with storage.fs.open_input_stream(storage.path(relative)) as stream, open(copy, "wb") as out:  # noqa: PTH123
                shutil.copyfileobj(stream, out)
            try:
                plain.execute("SELECT bit_xor(hash(t)) FROM read_parquet(?, hive_partitioning => false) t", [copy])
            except duckdb.Error as error:
                yield path, f"cannot be read: {str(error).splitlines()[0].replace(copy, 'the file')[:200]}"
