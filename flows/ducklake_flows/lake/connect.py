"""Connect to the lake: one way to attach it for all readers and writers, with errors that a user can act on."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from ducklake_flows import credentials
from ducklake_flows.errors import CatalogError, LakeError, NotInitialised
from ducklake_flows.settings import LAKE, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duckdb import DuckDBPyConnection
    from pydantic import SecretStr

ENGINE_CONFIG = {"autoinstall_known_extensions": "false", "TimeZone": "UTC"}
"""Nothing is downloaded at run time, and a timestamp reads the same on every machine."""

START_CONFIG: dict[str, str | bool | int | float | list[str]] = {"allow_unsigned_extensions": True}
"""The extensions come from wheels whose hashes were checked at installation. Without this setting, DuckDB hashes their
files (20 to 40 MB each) at every connection: 0.4 s instead of a few milliseconds."""

NO_RETRY = "SET GLOBAL ducklake_max_retry_count = 0"
"""DuckLake does not repeat a commit that another writer has overtaken; see `ducklake_flows.lake.fence`. Global: SQLMesh
writes through cursors, which are sessions of their own."""

LIBPQ: dict[str, int | str] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""Timeouts to detect an unresponsive Postgres or a network that drops packets: seconds, `tcp_user_timeout` in ms."""

CATALOG_SECRET = "lake_catalog"  # noqa: S105 - a name, not a password
"""Name of the DuckDB secret that holds the catalog's password."""

THREADS: int | None = None
"""Threads of a connection once the catalog is read; None: all cores. Tests that share the cores set it to one."""

BUSY_MS = 10_000
"""How long to wait for the lock of a SQLite catalog, in milliseconds. Readers overlap a commit; writers are gated."""


def connect(settings: Settings, *, read_only: bool = False, create: bool = False) -> DuckDBPyConnection:
    """Open a new DuckDB connection with the lake attached as ``lake``.

    Args:
        settings: Where the catalog and the data are.
        read_only: Refuse every write.
        create: Create the catalog if there is none. Only `bootstrap` does this.

    Raises:
        NotInitialised: there is no catalog yet.
        CatalogError: the target is not a catalog, is locked, or cannot be reached.
    """
    import duckdb

    if settings.catalog_file is not None:
        _check_place(settings.catalog_file, create=create)
    # One thread until the catalog is read: its tiny queries take a third less time without a second thread.
    con = duckdb.connect(config={**START_CONFIG, "threads": 1})
    try:
        prepare(con, settings)
        if settings.catalog_file is not None:
            _check_content(con, settings.catalog_file, create=create)
        con.execute(attach_sql(settings, read_only=read_only, create=create))
        con.execute(f"USE {LAKE}")
        con.execute("RESET threads" if THREADS is None else f"SET threads = {THREADS}")
    except duckdb.Error as error:
        con.close()
        raise _explain(error, settings) from None
    return con


@contextlib.contextmanager
def connected(settings: Settings, *, read_only: bool = False) -> Iterator[DuckDBPyConnection]:
    """A connection for the length of a block; see `connect`.

    Raises:
        NotInitialised, CatalogError: as `connect`; also if the catalog fails within the block.
        StorageError: the object store fails within the block.
    """
    import duckdb

    con = connect(settings, read_only=read_only)
    try:
        yield con
    except (duckdb.IOException, duckdb.ConnectionException) as error:
        raise service_error(error, settings) from None
    finally:
        con.close()


@contextlib.contextmanager
def one_snapshot(con: DuckDBPyConnection) -> Iterator[None]:
    """Read one snapshot of the lake for the length of a block, whatever is committed meanwhile.

    A statement outside a transaction takes several milliseconds more, since DuckLake looks for a newer snapshot.
    """
    import duckdb

    con.execute("BEGIN")
    try:
        yield
    except BaseException:
        # Explicit: if Postgres is gone, DuckDB's own rollback on close aborts the process (1.5.5).
        with contextlib.suppress(duckdb.Error):
            con.execute("ROLLBACK")
        raise
    con.execute("COMMIT")


def service_error(error: Exception, settings: Settings) -> LakeError:
    """The error to show for a DuckDB error during a read or write. It names the service that does not answer now.

    DuckDB's texts do not distinguish the catalog from the object store, so both are probed.
    """
    from ducklake_flows import storage

    try:
        storage.check(settings)
        connect(settings, read_only=True).close()
    except LakeError as found:
        return found
    text = settings.redact(" ".join(str(error).split()))[:400]
    return CatalogError(
        f"The lake could not be read or written: {text}", "run the same command again, then run: lake verify"
    )


def prepare(con: DuckDBPyConnection, settings: Settings) -> None:
    """Load the extensions and create the secrets of a new DuckDB connection."""
    for name, value in ENGINE_CONFIG.items():
        con.execute(f"SET GLOBAL {name} = '{value}'")
    extensions = ["ducklake", "sqlite_scanner" if settings.embedded else "postgres_scanner"]
    if settings.in_s3:
        extensions.append("httpfs")
    for name in extensions:
        _load(con, name)
    con.execute(NO_RETRY)
    if not settings.embedded:
        # A scan by page uses no index. Global: DuckLake reads the catalog in a session of its own.
        con.execute("SET GLOBAL pg_use_ctid_scan = false")
    if settings.catalog_password is not None and not settings.embedded:
        password = literal(settings.catalog_password.get_secret_value())
        con.execute(f"CREATE OR REPLACE SECRET {CATALOG_SECRET} (TYPE postgres, PASSWORD {password})")
    if settings.in_s3:
        _s3_secret(con, settings)
        if settings.s3_ca_file is not None:
            con.execute(f"SET GLOBAL ca_cert_file = {literal(str(settings.s3_ca_file))}")


def renew(con: DuckDBPyConnection, settings: Settings) -> None:
    """Give an open connection the current S3 credentials. Call it before a transaction.

    A secret is part of its transaction (DuckDB 1.5.5). Another cursor's is not seen before the end, and to replace it,
    too, is a conflict; ROLLBACK brings back the one from before.

    Raises:
        CredentialsError, StorageError: as `ducklake_flows.credentials.current`.
    """
    if settings.in_s3 and credentials.may_change(settings):
        _s3_secret(con, settings)


def _s3_secret(con: DuckDBPyConnection, settings: Settings) -> None:
    """Create the S3 secret, or replace it, which takes 0.2 ms."""
    found = credentials.current(settings)
    options = {
        "KEY_ID": found.key_id,
        "SECRET": found.secret,
        # Also if it is empty: otherwise httpfs takes AWS_SESSION_TOKEN, even beside keys that it is not of.
        "SESSION_TOKEN": found.token,
        "REGION": settings.s3_region,
        "URL_STYLE": "path",
        **({"ENDPOINT": settings.s3_endpoint} if settings.s3_endpoint else {}),
    }
    given = ", ".join(f"{key} {literal(value)}" for key, value in options.items())
    con.execute(f"CREATE OR REPLACE SECRET lake_s3 (TYPE s3, {given}, USE_SSL {settings.s3_use_ssl})")


def check_access(error: Exception, settings: Settings) -> None:
    """Raise if DuckDB failed since the object store refuses the credentials. Otherwise the error is about the file.

    Raises:
        CredentialsError, StorageError: the object store refuses access.
    """
    import duckdb

    from ducklake_flows import storage

    if settings.in_s3 and isinstance(error, duckdb.HTTPException) and error.status_code in (400, 401, 403):
        storage.check(settings)


def attach_sql(settings: Settings, *, read_only: bool = False, create: bool = False) -> str:
    """The ATTACH statement. It holds no password: `prepare` puts it into a secret, which no error message shows."""
    target = settings.catalog
    options = [f"DATA_PATH {literal(settings.data_path)}"]
    if settings.embedded:
        options.append(f"META_BUSY_TIMEOUT {BUSY_MS}")
        if not read_only:
            options.append("META_JOURNAL_MODE 'WAL'")
    else:
        target = _with_timeouts(target)
        if settings.catalog_password is not None:
            options.append(f"META_SECRET '{CATALOG_SECRET}'")
        if schema := re.search(r"search_path=(\w+)", target):
            # Otherwise DuckLake uses "public", and `lookup.native` the schema of the search path.
            options += [f"METADATA_SCHEMA '{schema[1]}'", f"META_SCHEMA '{schema[1]}'"]
    if read_only:
        options.append("READ_ONLY")
    if not create:
        options.append("CREATE_IF_NOT_EXISTS false")
    return f"ATTACH IF NOT EXISTS {literal('ducklake:' + target)} AS {LAKE} ({', '.join(options)})"


def engine() -> DuckDBPyConnection:
    """Open a DuckDB connection without a lake."""
    import duckdb

    con = duckdb.connect(config=START_CONFIG)
    for name, value in ENGINE_CONFIG.items():
        con.execute(f"SET GLOBAL {name} = '{value}'")
    return con


def attach_database(
    con: DuckDBPyConnection, name: str, target: str, password: SecretStr | None = None, *, read_only: bool = False
) -> None:
    """Attach a database itself, without DuckLake.

    Args:
        con: A DuckDB connection.
        name: The alias.
        target: ``sqlite:`` or ``duckdb:`` and a file, or ``postgres:`` and libpq's ``host=...``.
        password: PostgreSQL's.
        read_only: Refuse every write.

    Raises:
        duckdb.Error: it cannot be opened.
    """
    kind, _, place = target.partition(":")
    options = ["READ_ONLY"] if read_only else []
    if kind != "duckdb":
        options.append(f"TYPE {kind}")
        _load(con, f"{kind}_scanner")
    if kind == "postgres":
        place = _with_timeouts(place)
        con.execute("SET GLOBAL pg_use_ctid_scan = false")
        if password is not None:
            secret = literal(password.get_secret_value())
            con.execute(f"CREATE OR REPLACE SECRET {name}_password (TYPE postgres, PASSWORD {secret})")
            options.append(f"SECRET {name}_password")
    given = f" ({', '.join(options)})" if options else ""
    con.execute(f"ATTACH {literal(place)} AS {name}{given}")


def _with_timeouts(place: str) -> str:
    """A connection string of libpq with the `LIBPQ` settings that it lacks."""
    return " ".join([place, *(f"{name}={value}" for name, value in LIBPQ.items() if f"{name}=" not in place)])


def literal(value: str) -> str:
    """A SQL string literal, for the statements that take no bound parameters (ATTACH, CREATE SECRET)."""
    return "'" + value.replace("'", "''") + "'"


def rows(con: DuckDBPyConnection, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """Run a query and return its rows as dicts."""
    result = con.execute(sql, parameters)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def commit_message(con: DuckDBPyConnection, message: str, **extra: Any) -> None:
    """Set the author, the message and the extra info (JSON) of the transaction's snapshot."""
    info = literal(json.dumps(extra))
    con.execute(f"CALL {LAKE}.set_commit_message('ducklake-flows', {literal(message)}, extra_info => {info})")


def _load(con: DuckDBPyConnection, name: str) -> None:
    import duckdb

    try:
        con.execute(f"LOAD {name}")
    except duckdb.Error:
        import duckdb_extensions

        # Copies the wheel's file into DuckDB's extension folder, once per machine.
        duckdb_extensions.import_extension(name)
        con.execute(f"LOAD {name}")


def _check_place(path: Path, *, create: bool) -> None:
    """Check the path of a SQLite catalog without opening it. Creates its folder if `create` is set."""
    if path.is_dir():
        raise CatalogError(f"The catalog is a folder: {path}", "set LAKE_CATALOG to sqlite:<file>")
    if path.exists():
        return
    if not create:
        raise NotInitialised(f"There is no lake yet: {path} does not exist.", "lake init")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogError(
            f"The lake's folder cannot be created: {error.strerror or error} ({path.parent})",
            "set LAKE_HOME to a writable folder",
        ) from None


def _check_content(con: DuckDBPyConnection, path: Path, *, create: bool) -> None:
    """Check the file of a SQLite catalog before DuckLake writes its tables into it.

    Only DuckDB's own SQLite opens the file. If Python opened it too, closing it would drop the locks that this process
    holds on it, and the next writer would remove the WAL while a reader uses it (seen as SIGBUS).
    """
    import duckdb

    if not path.exists():
        return
    try:
        con.execute(f"ATTACH {literal(str(path))} AS probe (TYPE sqlite, READ_ONLY)")
        found = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'probe'").fetchall()
        con.execute("DETACH probe")
    except duckdb.Error as error:
        raise CatalogError(
            f"The catalog cannot be read: {' '.join(str(error).split())[:300]} ({path})",
            "restore it from a backup, or set LAKE_CATALOG (or LAKE_HOME) to another path",
        ) from None
    names = {name for (name,) in found}
    if names and "ducklake_metadata" not in names:
        raise CatalogError(
            f"{path} is a SQLite database, but not a DuckLake catalog.", "set LAKE_CATALOG to another file"
        )
    if not names and not create:
        raise NotInitialised(f"There is no lake yet: {path} is empty.", "lake init")


_POSTGRES = {
    "password authentication failed": "check the user in LAKE_CATALOG, and LAKE_CATALOG_PASSWORD",
    "no password supplied": "set LAKE_CATALOG_PASSWORD",
    "does not exist": "check dbname and user in LAKE_CATALOG; create the database, then run: lake init",
}
"""Error texts of Postgres, with the next step for each. Any other text means that the server cannot be reached."""


def _explain(error: Exception, settings: Settings) -> CatalogError:
    """The error to show for a failed attach: its cause, without connection strings or secrets."""
    text = settings.redact(" ".join(str(error).split()))
    lower = text.lower()
    if "creating a new ducklake is explicitly disabled" in lower or "no ducklake" in lower:
        place = settings.catalog_file or "the Postgres catalog"
        return NotInitialised(f"There is no lake yet in {place}.", "lake init")
    if "data_path" in lower and "does not match" in lower:
        return CatalogError(
            f"The catalog's data path is not LAKE_DATA_PATH ({settings.data_path}): {text}",
            "set LAKE_DATA_PATH to the path that the lake was created with",
        )
    if "version mismatch" in lower:
        found = re.search(r"catalog version is (\S+), .*requires version (\S+?)\.? ", text)
        said = f" {found[1]}, but this release reads and writes {found[2]}" if found else f": {text}"
        return CatalogError(
            f"The catalog has DuckLake's format{said}.",
            "use the release that wrote it, or migrate the catalog as described in docs/operations.md",
        )
    if "unable to connect to postgres" in lower:
        cause = text.rpartition(" failed: ")[2].removeprefix("FATAL: ")[:200]
        if "could not translate host name" in text:
            cause = text[text.index("could not translate") :][:200]
        fix = next((fix for said, fix in _POSTGRES.items() if said in cause), "start Postgres, or check LAKE_CATALOG")
        return CatalogError(f"The Postgres catalog cannot be opened ({settings.catalog}): {cause}", fix)
    if "locked" in lower:
        return CatalogError(
            f"The catalog is locked by another process: {settings.catalog_file}",
            "wait until it ends, then run the same command again",
        )
    return CatalogError(f"The lake cannot be opened: {text[:400]}", "check LAKE_CATALOG and LAKE_DATA_PATH")
