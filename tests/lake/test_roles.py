"""Permissions: the roles of Compose and of the docs; and a catalog that would encrypt only some of its files."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from ducklake_flows.errors import CatalogError, LakeError
from ducklake_flows.lake.connect import connect, prepare
from ducklake_flows.lake.query import query
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.lake.verify import verify
from ducklake_flows.plan import make_plan
from ducklake_flows.project import all_datasets, get_datasets
from ducklake_flows.states import State
from tests.conftest import Lake, Services, settings_from

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ROLES = {
    "lake": "lake_catalog_password",
    "sqlmesh": "lake_state_password",
    "prefect": "prefect_server_database_password",
}


def test_composes_roles_get_their_passwords_from_files_and_one_database_each(
    services: Services, tmp_path: Path
) -> None:
    postgres = services.postgres
    server = {"PGHOST": str(postgres.data), "PGPORT": str(postgres.port)}
    environment = {**server, "PATH": f"{postgres.bin}:{os.environ['PATH']}", "SECRETS_FOLDER": str(tmp_path)}

    def run(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(ROOT / "deployments" / script), *arguments]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    def connect_as(role: str, database: str) -> psycopg.Connection[psycopg.rows.TupleRow]:
        password = (tmp_path / ROLES[role]).read_text()
        return psycopg.connect(host="127.0.0.1", port=postgres.port, user=role, dbname=database, password=password)

    try:
        missing = run("postgres-init.sh")
        assert missing.returncode == 1
        assert "lake_catalog_password is missing or empty. Run: deployments/secrets" in missing.stderr
        for number in range(2):  # again, with other passwords
            for name in ROLES.values():
                (tmp_path / name).write_text(f"{name} {number} 'quoted' \"\\ $HOME :name")
            done = run("postgres-init.sh")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            for role in ROLES:
                with connect_as(role, role) as con:
                    con.execute("CREATE TABLE IF NOT EXISTS mine (n int)")
                for other in ROLES.keys() - {role}:
                    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                        connect_as(role, other)

        # The nightly dump also reads its password from a file.
        postgres.database("keeper", "kept by 'keeper'")
        with postgres.admin() as con:
            con.execute("ALTER ROLE keeper SUPERUSER")
        (tmp_path / "postgres_password").write_text("kept by 'keeper'")
        folder = tmp_path / "dumps"
        folder.mkdir()
        login = {"PGHOST": "127.0.0.1", "PGUSER": "keeper", "PGPASSWORD_FILE": str(tmp_path / "postgres_password")}
        dumped = run("backup.sh", "once", **login, BACKUP_FOLDER=str(folder), BACKUP_DAYS="1", BACKUP_HOUR="1")
        assert dumped.returncode == 0, dumped.stderr
        assert {path.name.partition("-")[0] for path in folder.iterdir()} == ROLES.keys()
    finally:
        for role in (*ROLES, "keeper"):
            postgres.drop(role)


@pytest.mark.parametrize("lake", ["postgres+s3"], indirect=True)
def test_a_read_only_role_can_query_and_change_nothing(lake: Lake, services: Services) -> None:
    name = re.search(r"dbname=(\w+)", lake.settings.catalog)[1]  # type: ignore[index]
    reader = f"{name}_reader"
    services.postgres.database(reader, services.password)
    grants = re.search(r"```sql\n(GRANT .*?)```", (DOCS / "production.md").read_text(), re.S)[1]  # type: ignore[index]
    with psycopg.connect(
        host="127.0.0.1", port=services.postgres.port, user=name, dbname=name, password=services.password
    ) as owner:
        # Bytes: psycopg's types take a text only if it is a literal.
        owner.execute(grants.replace("DATABASE lake", f"DATABASE {name}").replace("analyst", reader).encode())
    # The table is created after the role.
    lake.land("readings/2024-01-01.jsonl", [{"id": 1}, {"id": 2}])
    receipts = lake.extract("readings", "2024-01-01")
    lake.publish(receipts)

    settings = lake.settings.model_copy(
        update={"catalog": lake.settings.catalog.replace(f"user={name}", f"user={reader}")}
    )
    assert query(settings, "SELECT count(*) AS n FROM raw.readings") == [{"n": 2}]
    assert [f for f in verify(settings) if f.severity == "error"] == []
    assert make_plan(settings, get_datasets(["readings"]))[0].state is State.published
    lake.land("readings/2024-01-01.jsonl", [{"id": 3}])
    with pytest.raises(LakeError, match="permission denied"):
        Lake(settings).publish(lake.extract("readings", "2024-01-01"))
    with pytest.raises(LakeError, match="permission denied"):
        bootstrap(settings, [])
    assert query(settings, "SELECT id FROM raw.readings ORDER BY id") == [{"id": 1}, {"id": 2}]
    assert lake.errors() == []


def test_a_catalog_that_encrypts_only_files_written_by_ducklake_is_refused(tmp_path: Path) -> None:
    import duckdb

    settings = settings_from({}, home=tmp_path)
    with duckdb.connect() as con:
        prepare(con, settings)
        con.execute(f"ATTACH 'ducklake:{settings.catalog}' AS lake (DATA_PATH '{settings.data_path}', ENCRYPTED)")
    with pytest.raises(CatalogError, match="raw data would be unencrypted") as caught:
        bootstrap(settings, list(all_datasets().values()))
    assert "docs/production.md" in caught.value.fix
    with connect(settings) as con:
        assert con.execute("SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake'").fetchall() == [(0,)]
