"""The compose file, its variables and its image, checked as data: the tests have no Docker engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings as PrefectSettings
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from deployments.services import BIN
from deployments.stack import POOL
from ducklake_flows.orchestration import certificates
from ducklake_flows.orchestration.server import CLIENT_SETTINGS, SERVER_SETTINGS
from ducklake_flows.settings import Settings
from tests.conftest import settings_from

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OURS = {"prefect-server", "init", "prefect-worker", "metrics", "dask-scheduler", "dask-worker"}
ONE_SHOT = {"init", "object-store-volume"}
SERVICES = OURS | ONE_SHOT | {"backup", "postgres", "object-store"}

S3 = {"lake_s3_key_id", "lake_s3_secret"}
DATABASES = {"lake_catalog_password", "lake_state_password"}
LOGIN = "prefect_api_auth_string"

NEEDS = {
    "postgres": {*DATABASES, "postgres_password", "prefect_server_database_password"},
    "backup": {"postgres_password"},
    "object-store-volume": set(),
    "object-store": S3,
    "prefect-server": {"prefect_server_database_password", LOGIN},
    "init": {*DATABASES, *S3, LOGIN, "lake_notify_url"},
    "prefect-worker": {*DATABASES, *S3, LOGIN},
    "metrics": {"lake_catalog_password", *S3},
    "dask-scheduler": set(),
    "dask-worker": {*S3, LOGIN},
}
"""Exactly the secrets that each service gets."""

SECRETS = set[str]().union(*NEEDS.values())

OTHER = {"DO_NOT_TRACK", "TLS_FOLDER"}
"""No settings of the lake, Prefect or Dask: telemetry is off; the folder in which `init` makes certificates."""

VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")


@cache
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def services() -> dict[str, dict[str, Any]]:
    return dict(compose()["services"])


def example() -> dict[str, str]:
    """Every variable of env.example and its default."""
    lines = (ROOT / "deployments/env.example").read_text().splitlines()
    found = (re.fullmatch(r"# ([A-Z][A-Z0-9_]*)=(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def resolved(text: object, variables: dict[str, str]) -> str:
    return VARIABLE.sub(lambda match: variables.get(match[1], "") or match[3], str(text))


def environment(service: str) -> dict[str, str]:
    return {name: resolved(value, example()) for name, value in services()[service].get("environment", {}).items()}


def mounted(service: str) -> dict[str, str]:
    """The secrets of a service by the names of their files in /run/secrets."""
    given = [{"source": s} if isinstance(s, str) else s for s in services()[service].get("secrets", [])]
    return {secret.get("target", secret["source"]): secret["source"] for secret in given}


def content(secret: str) -> str:
    """What the tests put into the file of a secret: characters that need quotes."""
    return f"{secret}:\"\\'$@/#"


def in_container(service: str, folder: Path) -> dict[str, str]:
    """The environment of a service whose secrets are in a folder."""
    folder.mkdir(parents=True)
    for target, source in mounted(service).items():
        (folder / target).write_text(f"{content(source)}\n")
    return {name: value.replace("/run/secrets", str(folder)) for name, value in environment(service).items()}


def lake_settings(service: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    given = in_container(service, folder)
    # The only setting that is read from the environment before all others.
    monkeypatch.setenv("LAKE_SECRETS_DIR", given["LAKE_SECRETS_DIR"])
    return settings_from(given)


def texts(value: object) -> Iterator[str]:
    """All strings in a part of the compose file."""
    if isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    else:
        yield str(value)


def used(value: object) -> set[str]:
    return {match[1] for text in texts(value) for match in VARIABLE.finditer(text)}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile as keyword and rest, with continued lines joined."""
    text = (ROOT / "deployments/Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_our_services_start_through_the_entrypoint() -> None:
    assert ("ENTRYPOINT", '["/app/deployments/entrypoint"]') in dockerfile()
    assert (ROOT / "deployments/entrypoint").stat().st_mode & 0o111
    assert not [name for name in OURS if "entrypoint" in services()[name]]


def test_the_compose_file_has_exactly_the_expected_services() -> None:
    assert set(services()) == SERVICES


def test_every_variable_is_documented_and_every_documented_variable_is_used() -> None:
    assert used(compose()) == set(example())
    lines = (ROOT / "deployments/env.example").read_text().splitlines()
    for name in example():
        above = lines[next(n for n, line in enumerate(lines) if re.match(rf"(# )?{name}=", line)) - 1]
        assert re.match(r"# [^=]+$", above), f"{name} has no comment"


def test_a_default_is_the_same_in_both_files() -> None:
    defaults = {m[1]: m[3] for t in texts(compose()) for m in VARIABLE.finditer(t) if m[2] == ":-"}
    assert defaults == example()


def test_no_secret_is_in_an_environment_or_a_command_line() -> None:
    assert {match[2] for text in texts(compose()) for match in VARIABLE.finditer(text)} == {":-"}
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY_ID|AUTH_STRING|ROOT_USER|NOTIFY_URL|CONNECTION_URL", variable):
                folder, _, file = value.rpartition("/")
                assert value == "/run/secrets" or (folder, file in mounted(name)) == ("/run/secrets", True), variable
    secrets = {
        name for name, field in Settings.model_fields.items() if SecretStr in getattr(field.annotation, "__args__", ())
    }
    # Compose's MinIO has keys that do not expire.
    assert {f"lake_{name}" for name in secrets - {"s3_session_token"}} <= SECRETS


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_gets_only_the_secrets_it_needs(service: str) -> None:
    assert set(mounted(service).values()) == NEEDS[service]
    if service in OURS and NEEDS[service]:
        assert environment(service)["LAKE_SECRETS_DIR"] == "/run/secrets"
        # The profile with Prefect's is in memory.
        assert Path(environment(service)["PREFECT_PROFILES_PATH"]).parent in map(Path, services()[service]["tmpfs"])


def make_secrets(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", project / "deployments/secrets"], cwd="/", capture_output=True, text=True, check=False)


def test_the_script_makes_every_secret_once_and_takes_over_what_env_has(tmp_path: Path) -> None:
    assert compose()["secrets"] == {name: {"file": f"./secrets/{name}"} for name in SECRETS}
    project, folder = tmp_path / "project", tmp_path / "project" / "secrets"
    (project / "deployments").mkdir(parents=True)
    shutil.copy(ROOT / "deployments/secrets", project / "deployments")
    (project / ".env").write_text("POSTGRES_PASSWORD=old$1=\nLAKE_RETENTION_DAYS=3\n")
    done = make_secrets(project)
    assert done.returncode == 0, done.stderr
    assert "secrets/postgres_password: taken from .env; remove POSTGRES_PASSWORD there." in done.stdout
    made = {file.name: file.read_text() for file in folder.iterdir()}
    assert made.keys() == SECRETS
    assert made.pop("postgres_password") == "old$1="
    assert made.pop("lake_notify_url") == ""
    login = made.pop(LOGIN)
    assert re.fullmatch(r"lake:[0-9a-f]{48}", login)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in made.values())
    assert len(set(made.values())) == len(made)
    assert not any(value in done.stdout + done.stderr for value in [*made.values(), login, "old$1="])
    # Containers have other users: the files can be read by all, the folder by its owner only.
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}

    (folder / "lake_s3_secret").unlink()
    assert make_secrets(project).stdout == "secrets/lake_s3_secret\n"
    assert {name: (folder / name).read_text() for name in made if name != "lake_s3_secret"}.items() <= made.items()
    # MinIO would take its well-known default.
    (folder / "lake_s3_secret").write_text("")
    refused = make_secrets(project)
    assert refused.returncode == 1
    assert "secrets/lake_s3_secret is empty" in refused.stderr


def test_prefect_reads_the_secrets_of_a_service_from_its_files(tmp_path: Path) -> None:
    for number, service in enumerate(("prefect-server", "prefect-worker")):
        folder = tmp_path / str(number)
        given = in_container(service, folder / "secrets") | {"PREFECT_PROFILES_PATH": str(folder / "profiles.toml")}
        given |= {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path), "PREFECT_HOME": str(folder / "home")}
        look = "from prefect.settings import get_current_settings as s; import os; print(dict(os.environ));"
        look += "print(s().server.database.connection_url.get_secret_value());"
        look += "print((s().api.auth_string or s().server.api.auth_string).get_secret_value())"
        command = ["sh", str(ROOT / "deployments/entrypoint"), "python", "-c", look]
        done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=True)
        variables, url, login = done.stdout.splitlines()
        assert login == content(LOGIN)
        assert LOGIN not in variables
        assert (folder / "profiles.toml").stat().st_mode & 0o077 == 0
        if service == "prefect-server":
            found = make_url(url)
            assert found.password == content("prefect_server_database_password")
            assert (found.drivername, found.username, found.host, found.port, found.database) == (
                *("postgresql+asyncpg", "prefect", "postgres", 5432, "prefect"),
            )
    (folder / "secrets" / LOGIN).write_text("two\nlines")
    refused = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"{LOGIN} must contain one line" in refused.stderr


def test_a_dask_worker_cannot_reach_the_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [name for name in environment("dask-worker") if "CATALOG" in name or "STATE" in name]
    assert services()["postgres"]["networks"] == ["databases"]
    assert compose()["networks"]["databases"] == {"internal": True}
    for service in ("dask-worker", "dask-scheduler", "object-store"):
        assert services()[service]["networks"] == ["services"]
    settings = lake_settings("dask-worker", tmp_path / "worker", monkeypatch)
    assert (settings.catalog_password, settings.state_password) == (None, None)
    # It uses the same storage settings as the run that sends it work.
    run = lake_settings("prefect-worker", tmp_path / "run", monkeypatch)
    for name in ("data_path", "landing", "s3_endpoint", "s3_key_id", "s3_secret", "s3_region", "s3_use_ssl"):
        assert getattr(settings, name) == getattr(run, name)


def test_ports_are_published_on_localhost_only() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {
        "object-store": ["127.0.0.1:9000:9000", "127.0.0.1:9001:9001"],
        "prefect-server": ["127.0.0.1:4200:4200"],
        "metrics": ["127.0.0.1:9464:9464"],
    }


@pytest.mark.parametrize("service", sorted(SERVICES - ONE_SHOT))
def test_a_long_running_service_has_a_healthcheck_and_restarts(service: str) -> None:
    definition = services()[service]
    assert definition["restart"] == "unless-stopped"
    check = definition["healthcheck"]
    assert check["test"][0] == ("CMD-SHELL" if service == "backup" else "CMD")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize("service", sorted(ONE_SHOT))
def test_a_one_shot_service_has_no_restart_and_no_healthcheck(service: str) -> None:
    assert services()[service].get("restart", "no") == "no"
    assert "healthcheck" not in services()[service]


def test_services_wait_for_their_dependencies_without_a_cycle() -> None:
    order: dict[str, set[str]] = {}
    for name, service in services().items():
        order[name] = set(service.get("depends_on", {}))
        for other, how in service.get("depends_on", {}).items():
            ends = other in ONE_SHOT
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), (name, other)
            assert ends or "healthcheck" in services()[other]
    before = list(TopologicalSorter(order).static_order())
    assert order["init"] == {"postgres", "object-store", "prefect-server"}
    # No run starts, and so none attaches the catalog, before `lake init` has succeeded.
    assert "init" in order["prefect-worker"]
    assert before.index("postgres") < before.index("prefect-server") < before.index("init")


def test_every_volume_is_declared_and_used() -> None:
    mounts = [m.split(":") for service in services().values() for m in service.get("volumes", [])]
    assert {source for source, *_ in mounts if not source.startswith(".")} == set(compose()["volumes"])
    for source, _, *mode in mounts:
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert mode == ["ro"]
    assert any(m.startswith("postgres:/var/lib/postgresql/data") for m in services()["postgres"]["volumes"])
    # The leases are stored in Prefect's home.
    home = environment("prefect-server")["PREFECT_HOME"]
    assert services()["prefect-server"]["volumes"] == [f"prefect-server:{home}"]


def test_our_services_share_one_image_and_do_not_run_as_root() -> None:
    assert {resolved(services()[name]["image"], {}) for name in OURS} == {"ducklake-flows:current"}
    assert [name for name, service in services().items() if "build" in service] == ["prefect-server"]
    build = services()["prefect-server"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]) == ROOT / "deployments/Dockerfile"
    uid = re.search(r"useradd --uid (\d+)", " ".join(rest for _, rest in dockerfile()))
    assert uid
    assert {services()[name]["user"] for name in OURS} == {f"{uid[1]}:{uid[1]}"}


def test_only_the_service_that_changes_a_volumes_owner_runs_as_root() -> None:
    assert [name for name, service in services().items() if service["user"] in ("root", "0", 0)] == [
        "object-store-volume"
    ]
    volume = services()["object-store-volume"]
    assert volume["network_mode"] == "none"
    assert volume["cap_add"] == ["CHOWN"]
    assert volume["entrypoint"] == ["chown", services()["object-store"]["user"], "/data"]
    for service in services().values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_dask_workers_can_be_replicated() -> None:
    worker = services()["dask-worker"]
    assert "container_name" not in worker
    assert "ports" not in worker
    assert resolved(worker["deploy"]["replicas"], {}) == "2"
    assert "--nthreads=1" in worker["command"]


@pytest.mark.parametrize("service", sorted(OURS))
def test_every_environment_variable_is_a_known_setting(service: str) -> None:
    fields = _get_settings_fields(PrefectSettings)
    for name in environment(service):
        if name.startswith("LAKE_"):
            assert name.removeprefix("LAKE_").lower() in Settings.model_fields
        elif name.startswith("PREFECT_"):
            assert name in fields, name
        elif name.startswith("DASK_"):
            import dask
            import distributed  # noqa: F401 - registers its configuration

            key = name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-")
            assert dask.config.get(key, "missing") != "missing"
        else:
            assert name in OTHER


@pytest.mark.parametrize("service", ["init", "prefect-worker"])
def test_the_settings_load_and_describe_a_production_lake(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = lake_settings(service, tmp_path / "secrets", monkeypatch)
    assert settings.embedded is False
    assert settings.in_s3
    assert settings.dask_address == "tls://dask-scheduler:8786"
    # The init script creates these roles and databases.
    script = (ROOT / "deployments/postgres-init.sh").read_text()
    made = dict(re.findall(r"^database (\w+) (\w+)$", script, re.M))
    assert made == {
        "lake": "lake_catalog_password",
        "sqlmesh": "lake_state_password",
        "prefect": "prefect_server_database_password",
    }
    assert settings.catalog.endswith("host=postgres port=5432 dbname=lake user=lake")
    assert settings.state == "postgres://sqlmesh@postgres:5432/sqlmesh"
    assert settings.catalog_password is not None
    assert settings.catalog_password.get_secret_value() == content("lake_catalog_password")
    assert set(made.values()) <= set(mounted("postgres"))


def test_the_compose_files_variables_do_not_change_an_embedded_lake() -> None:
    """`lake` reads the same .env when it runs next to the compose file."""
    assert settings_from(example()).embedded
    assert not settings_from(example()).in_s3


def test_the_prefect_server_has_the_settings_of_the_embedded_server() -> None:
    given = environment("prefect-server")
    assert {name: given.get(name) for name in SERVER_SETTINGS} == SERVER_SETTINGS
    # In addition: its storage, its authentication, and its URLs for browsers.
    assert set(given) - set(SERVER_SETTINGS) - set(CLIENT_SETTINGS) == {
        "LAKE_SECRETS_DIR",
        "PREFECT_HOME",
        "PREFECT_PROFILES_PATH",
        *(f"PREFECT_SERVER_DATABASE_{part}" for part in ("DRIVER", "HOST", "PORT", "USER", "NAME")),
        "PREFECT_SERVER_UI_API_URL",
        "PREFECT_UI_URL",
    }
    # The server and its services are one process, so all of them see the leases on the volume.
    assert services()["prefect-server"]["command"][:3] == ["prefect", "server", "start"]
    assert not {"--no-services", "--workers"} & set(services()["prefect-server"]["command"])


def test_clients_use_the_servers_password_and_send_no_telemetry() -> None:
    assert mounted("prefect-server")["prefect_server_api_auth_string"] == LOGIN
    for service in ("init", "prefect-worker", "dask-worker"):
        given = environment(service)
        assert mounted(service)[LOGIN] == LOGIN
        assert given["PREFECT_API_URL"] == "http://prefect-server:4200/api"
        assert given.items() >= CLIENT_SETTINGS.items()
    assert all(environment(service)["DO_NOT_TRACK"] == "1" for service in OURS)


def test_the_worker_polls_the_work_pool_of_the_deployments() -> None:
    command = services()["prefect-worker"]["command"]
    assert command[command.index("--pool") + 1] == POOL
    assert services()["init"]["command"] == ["deployments/init"]


def test_the_image_copies_exactly_the_files_that_dockerignore_allows_and_they_exist() -> None:
    ignore = [n for n in (ROOT / ".dockerignore").read_text().splitlines() if n and not n.startswith("#")]
    assert ignore[0] == "*"
    let_in = {name.removeprefix("!") for name in ignore if name.startswith("!")}
    copied = set()
    for keyword, rest in dockerfile():
        if keyword == "COPY" and not rest.startswith("--from="):
            copied |= set(rest.split()[:-1])
    assert copied - {"flows/datasets"} == let_in
    for name in copied:
        assert (ROOT / name).exists()
    assert {"sqlmesh_project", "flows", "deployments"} <= copied


def test_the_image_checks_the_hashes_of_its_dependencies_and_names_no_registry() -> None:
    text = (ROOT / "deployments/Dockerfile").read_text()
    installs = [c for k, rest in dockerfile() if k == "RUN" for c in rest.split("&&") if "pip install" in c]
    assert [("--require-hashes" in c, "--no-deps" in c) for c in installs] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert "-r requirements-bootstrap.lock" in installs[0]
    assert "-r requirements-image.lock" in installs[1]
    assert "/opt/dist/ducklake_flows-*.whl" in installs[2]
    # The build tools are in an environment that is not copied.
    assert [rest for k, rest in dockerfile() if k == "COPY" and "--from=build" in rest] == [
        "--from=build /opt/venv /opt/venv"
    ]
    assert "://" not in text


def test_the_image_runs_as_the_lake_user_with_all_extensions() -> None:
    instructions = dockerfile()
    users = [rest for keyword, rest in instructions if keyword == "USER"]
    assert users == ["lake"]
    extensions = [(k, rest) for k, rest in instructions if "import_extension" in rest]
    assert len(extensions) == 1
    # Run as the user who loads them: extensions are installed in the user's home.
    assert instructions.index(extensions[0]) > instructions.index(("USER", "lake"))
    named = re.search(r"for name in ([\w ]+);", extensions[0][1])
    assert named
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["postgres"], *extras["s3"]]
    assert set(named[1].split()) == {
        name.replace("-", "_")
        for dependency in wanted
        for name in re.findall(r"^duckdb-extension-([\w-]+)>=", dependency)
    }


TLS = {"init", "prefect-worker", "dask-scheduler", "dask-worker"}


def test_dask_takes_work_only_with_the_certificate_that_init_makes() -> None:
    folder = environment("init")["TLS_FOLDER"]
    wanted = certificates.environment(Path(folder))
    for name in SERVICES:
        mounts = [m for m in services()[name].get("volumes", []) if m.startswith("dask:")]
        given = {key: value for key, value in services()[name].get("environment", {}).items() if "__COMM__" in key}
        assert given == (wanted if name in TLS else {}), name
        # Only `init` writes it.
        assert mounts == ([f"dask:{folder}" + (":ro" if name != "init" else "")] if name in TLS else []), name
    assert "--protocol=tls" in services()["dask-scheduler"]["command"]
    assert "tls://dask-scheduler:8786" in services()["dask-worker"]["command"]
    # They start only once it is there. The image makes the volume's folder private to its user.
    assert "init" in services()["dask-scheduler"]["depends_on"]
    assert any(f"--owner=lake --group=lake --mode=0700 {folder}" in rest for _, rest in dockerfile())
    assert "$TLS_FOLDER" in (ROOT / "deployments/init").read_text()


def test_dasks_http_servers_cannot_be_reached_from_other_containers() -> None:
    for name, port in (("dask-scheduler", 8787), ("dask-worker", 8788)):
        assert {"--no-dashboard", f"--dashboard-address=127.0.0.1:{port}"} <= set(services()[name]["command"])
        assert f"http://127.0.0.1:{port}/" in services()[name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_has_limits_and_can_write_only_its_volumes(service: str) -> None:
    definition = services()[service]
    assert re.fullmatch(r"\d+[mg]", resolved(definition["mem_limit"], {}))
    assert 1 <= definition["cpus"] <= 4
    assert 0 < definition["pids_limit"] <= 512
    assert definition["read_only"] is True
    if service in OURS:
        written = [m.split(":")[0] for m in definition["tmpfs"]]
        written += [m.split(":")[1] for m in definition.get("volumes", []) if not m.endswith(":ro")]
        folders = {value for name, value in environment(service).items() if name in ("LAKE_HOME", "PREFECT_HOME")}
        assert "/tmp" in written  # noqa: S108
        assert all(any(Path(f).is_relative_to(w) for w in written) for f in folders), (folders, written)
        for mount in definition["tmpfs"]:
            assert mount == "/tmp" or mount.endswith(  # noqa: S108
                f":uid={definition['user'].replace(':', ',gid=')}"
            )
    if service != "object-store-volume":
        assert definition["logging"]["options"] == {"max-size": "10m", "max-file": "5"}


def test_a_dask_workers_container_has_more_memory_than_dask_gives_it() -> None:
    def size(text: str) -> int:
        return int(re.sub(r"\D", "", text))

    given = example()
    assert size(given["DASK_WORKER_CONTAINER_MEMORY"]) > size(given["DASK_WORKER_MEMORY"])
