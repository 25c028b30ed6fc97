"""Backup and restore as in docs/operations.md: dump the catalog first, then copy the bucket, while writers continue."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

from deployments.services import ObjectStore
from ducklake_flows.lake.connect import connected, rows
from ducklake_flows.lake.verify import verify
from ducklake_flows.storage import check, open_storage
from tests.conftest import ROOT
from tests.flows.test_ingest import flights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stack.conftest import Running


def load(running: Running, day: int, rows: int) -> None:
    running.land(f"flights/2013-04-{day:02}.csv", flights(day, rows).replace("2013,1,", "2013,4,"))
    running.lake("backfill", "flights", "--start", f"2013-04-{day:02}", "--end", f"2013-04-{day:02}", "--mode", "all")


def test_a_restored_lake_has_the_contents_of_its_dump(running: Running, tmp_path: Path) -> None:
    load(running, 1, 5)
    postgres, stack = running.stack.postgres, running.stack
    server = ["-h", str(stack.folder / "postgres"), "-p", str(postgres.port), "-U", "postgres"]
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    old, kept = dumps / "lake-2024-01-01T010000.dump", dumps / "prefect-2024-01-01T010000.dump"
    for file, days in ((old, 16), (kept, 13)):
        file.touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    environment = {
        "PATH": f"{postgres.bin}:/usr/bin:/bin",
        "PGHOST": str(stack.folder / "postgres"),
        "PGPORT": str(postgres.port),
        "PGUSER": "postgres",
        "BACKUP_FOLDER": str(dumps),
        "BACKUP_DAYS": "14",
        "BACKUP_HOUR": "1",
    }
    done = subprocess.run(
        ["sh", ROOT / "deployments/backup.sh", "once"], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("Dumped sqlmesh, lake and prefect")
    assert not old.exists()
    assert kept.exists()
    (dump,) = dumps.glob("lake-*.dump")
    assert dump.stat().st_mode & 0o077 == 0
    # A database that cannot be dumped: the command fails, and no half of a dump has a dump's name.
    refused = subprocess.run(
        ["sh", ROOT / "deployments/backup.sh", "once"],
        env={**environment, "PGUSER": "nobody"},
        capture_output=True,
        check=False,
    )
    assert refused.returncode != 0
    assert len(list(dumps.glob("*.dump"))) == 4
    wanted = running.sql("FROM raw.flights ORDER BY ALL")
    # Published after the dump and before the copy of the bucket: not part of the backup, and harmless to it.
    load(running, 1, 9)
    load(running, 2, 3)

    settings = running.settings
    assert settings.s3_key_id
    assert settings.s3_secret
    keys = settings.s3_key_id.get_secret_value(), settings.s3_secret.get_secret_value()
    with ObjectStore(stack.folder / "restored-s3", stack.folder / "restored-logs", *keys) as store:
        restored = settings.model_copy(
            update={
                "s3_endpoint": store.endpoint,
                "catalog": settings.catalog.replace("dbname=lake", "dbname=restored"),
            }
        )
        check(restored, create=True)
        source, target = (open_storage(s.data_path, s) for s in (settings, restored))
        for info in source.list():
            with source.fs.open_input_stream(info.path) as stream:
                copy = tmp_path / "object"
                copy.write_bytes(stream.read())
            target.put(copy, source.relative(info.path))
        psql: list[str | Path] = [postgres.bin / "psql", *server]
        restore: list[str | Path] = [postgres.bin / "pg_restore", *server]
        create = "CREATE DATABASE restored OWNER lake"
        subprocess.run([*psql, "-d", "postgres", "-c", create], check=True, capture_output=True)
        command = [*restore, "--no-owner", "--role", "lake", "-d", "restored", dump]
        subprocess.run(command, check=True, capture_output=True)
        assert [f for f in verify(restored) if f.severity == "error"] == []
        with connected(restored, read_only=True) as con:
            assert rows(con, "FROM raw.flights ORDER BY ALL") == wanted
