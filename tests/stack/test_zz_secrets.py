"""No secret in anything that the stack wrote or shows. Runs last, after all other tests have left their output."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from tests.stack.conftest import Running


def forms(secret: str) -> list[bytes]:
    """The spellings of a secret."""
    return [form.encode() for form in {secret, quote(secret, safe=""), secret.replace("'", "''")}]


def test_no_secret_in_a_log_a_database_a_file_or_a_process_list(running: Running) -> None:
    # A query that uses every service and fails: its error must not show a secret either.
    running.lake("sql", "SELECT * FROM read_parquet('s3://lake/nothing/*.parquet')", check=False)
    secrets = {name: forms(value) for name, value in running.stack._secrets.items()}
    secrets["prefect_auth"] += forms(running.stack._secrets["prefect_auth"].partition(":")[2])
    shown: dict[str, bytes] = {
        "the process list": subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout,
        "lake sql": running.lake("sql", "SHOW ALL TABLES").encode()
        + running.lake("sql", "FROM duckdb_secrets()", check=False).encode(),
    }
    for name in ("lake", "sqlmesh", "prefect"):
        dump = [str(running.stack.postgres.bin / "pg_dump"), "-h", str(running.stack.folder / "postgres")]
        command = [*dump, "-p", str(running.stack.postgres.port), "-U", "postgres", name]
        shown[f"the database {name}"] = subprocess.run(command, capture_output=True, check=True).stdout
        assert len(shown[f"the database {name}"]) > 1000
    allowed = {"secrets.json", "env"}
    for path in Path(running.stack.folder).rglob("*"):
        if (
            path.is_file()
            and path.parent.name != "postgres"
            and "postgres" not in path.parts
            and path.name not in allowed
        ):
            shown[str(path.relative_to(running.stack.folder))] = path.read_bytes()
    assert "logs/prefect-worker.log" in shown
    found = [
        (where, name) for where, text in shown.items() for name, texts in secrets.items() for t in texts if t in text
    ]
    assert found == []
