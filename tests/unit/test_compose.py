"""The compose file, its variables and its image, checked as data: the tests have no Docker engine."""

from __future__ import annotations

import re
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

from deployments.stack import POOL
from ducklake_flows.orchestration import certificates
from ducklake_flows.orchestration.server import CLIENT_SETTINGS, SERVER_SETTINGS
from ducklake_flows.settings import Settings
from tests.conftest import settings_from

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OURS = {"prefect-server", "init", "prefect-worker", "dask-scheduler", "dask-worker"}
ONE_SHOT = {"init", "object-store-volume"}
SERVICES = OURS | ONE_SHOT | {"backup", "postgres", "object-store"}

SECRETS = {
    "POSTGRES_PASSWORD",
    "LAKE_CATALOG_PASSWORD",
    "LAKE_STATE_PASSWORD",
    "PREFECT_DATABASE_PASSWORD",
    "PREFECT_API_AUTH_STRING",
    "LAKE_S3_KEY_ID",
    "LAKE_S3_SECRET",
}
OPTIONAL_SECRETS = {"LAKE_NOTIFY_URL"}
"""Without it, failed runs send no notification."""

NEEDS = {
    "postgres": SECRETS - {"PREFECT_API_AUTH_STRING", "LAKE_S3_KEY_ID", "LAKE_S3_SECRET"},
    "backup": {"POSTGRES_PASSWORD"},
    "object-store-volume": set(),
    "object-store": {"LAKE_S3_KEY_ID", "LAKE_S3_SECRET"},
    "prefect-server": {"PREFECT_DATABASE_PASSWORD", "PREFECT_API_AUTH_STRING"},
    "init": SECRETS - {"POSTGRES_PASSWORD", "PREFECT_DATABASE_PASSWORD"} | OPTIONAL_SECRETS,
    "prefect-worker": SECRETS - {"POSTGRES_PASSWORD", "PREFECT_DATABASE_PASSWORD"},
    "dask-scheduler": set(),
    "dask-worker": {"PREFECT_API_AUTH_STRING", "LAKE_S3_KEY_ID", "LAKE_S3_SECRET"},
}
"""Exactly the secrets that each service gets."""

OTHER = {"DO_NOT_TRACK", "TLS_FOLDER"}
"""No settings of the lake, Prefect or Dask: telemetry is off; the folder in which `init` makes certificates."""

VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")


@cache
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def services() -> dict[str, dict[str, Any]]:
    return dict(compose()["services"])


def example() -> dict[str, str]:
    """Every variable of env.example; optional ones with the default in their comment."""
    lines = (ROOT / "deployments/env.example").read_text().splitlines()
    found = (re.fullmatch(r"(?:# )?([A-Z][A-Z0-9_]*)=(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def filled() -> dict[str, str]:
    """env.example with all secrets filled in."""
    return {n: f"{v}secret-of-{n.lower()}" if n in SECRETS else v for n, v in example().items()}


def resolved(text: object, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        found = variables.get(match[1], "")
        assert found or match[2] != ":?", match[3]
        return found or (match[3] if match[2] == ":-" else "")

    return VARIABLE.sub(value, str(text))


def environment(service: str) -> dict[str, str]:
    return {name: resolved(value, filled()) for name, value in services()[service].get("environment", {}).items()}


def lake_settings(service: str) -> Settings:
    return settings_from(environment(service))


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
    assert defaults == {name: value for name, value in example().items() if name not in SECRETS}


def test_nothing_starts_without_its_secrets() -> None:
    for text in texts(compose()):
        for name, operator, message in VARIABLE.findall(text):
            if name in SECRETS:
                assert (operator, message) == (":?", f"set {name} in .env")
            else:
                assert operator == ":-"
    assert used(compose()) >= SECRETS | OPTIONAL_SECRETS
    # A user name without a password is not a secret; all others are empty.
    assert {example()[name] for name in SECRETS} == {"", "lake:"}


def test_a_secret_is_always_a_variable() -> None:
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY_ID|AUTH_STRING|ROOT_USER|NOTIFY_URL|CONNECTION_URL", name):
                assert used(value) & (SECRETS | OPTIONAL_SECRETS), name
    assert (
        make_url(environment("prefect-server")["PREFECT_SERVER_DATABASE_CONNECTION_URL"]).password
        == (filled()["PREFECT_DATABASE_PASSWORD"])
    )
    secrets = {
        name for name, field in Settings.model_fields.items() if SecretStr in getattr(field.annotation, "__args__", ())
    }
    assert {f"LAKE_{name.upper()}" for name in secrets} <= SECRETS | OPTIONAL_SECRETS


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_gets_only_the_secrets_it_needs(service: str) -> None:
    assert used(services()[service]) & (SECRETS | OPTIONAL_SECRETS) == NEEDS[service]
    # All users of a machine can read command lines.
    command = [*texts(services()[service].get("command", [])), *texts(services()[service].get("healthcheck", {}))]
    assert not used(command) & (SECRETS | OPTIONAL_SECRETS)


def test_a_dask_worker_cannot_reach_the_databases() -> None:
    assert not [name for name in environment("dask-worker") if "CATALOG" in name or "STATE" in name]
    assert services()["postgres"]["networks"] == ["databases"]
    assert compose()["networks"]["databases"] == {"internal": True}
    for service in ("dask-worker", "dask-scheduler", "object-store"):
        assert services()[service]["networks"] == ["services"]
    settings = lake_settings("dask-worker")
    assert (settings.catalog_password, settings.state_password) == (None, None)
    # It uses the same storage settings as the run that sends it work.
    run = lake_settings("prefect-worker")
    for name in ("data_path", "landing", "s3_endpoint", "s3_key_id", "s3_secret", "s3_region", "s3_use_ssl"):
        assert getattr(settings, name) == getattr(run, name)


def test_ports_are_published_on_localhost_only() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {
        "object-store": ["127.0.0.1:9000:9000", "127.0.0.1:9001:9001"],
        "prefect-server": ["127.0.0.1:4200:4200"],
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
def test_the_settings_load_and_describe_a_production_lake(service: str) -> None:
    settings = lake_settings(service)
    assert settings.embedded is False
    assert settings.in_s3
    assert settings.dask_address == "tls://dask-scheduler:8786"
    # The init script creates these roles and databases.
    script = (ROOT / "deployments/postgres-init.sh").read_text()
    made = dict(re.findall(r"^database (\w+) (\w+)$", script, re.M))
    assert made == {
        "lake": "LAKE_CATALOG_PASSWORD",
        "sqlmesh": "LAKE_STATE_PASSWORD",
        "prefect": "PREFECT_DATABASE_PASSWORD",
    }
    assert settings.catalog.endswith("host=postgres port=5432 dbname=lake user=lake")
    assert settings.state == "postgres://sqlmesh@postgres:5432/sqlmesh"
    url = make_url(environment("prefect-server")["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    assert (url.drivername, url.username, url.host, url.database) == (
        "postgresql+asyncpg",
        "prefect",
        "postgres",
        "prefect",
    )
    assert set(made.values()) <= set(environment("postgres"))


def test_the_compose_files_variables_do_not_change_an_embedded_lake() -> None:
    """`lake` reads the same .env when it runs next to the compose file."""
    assert settings_from(filled()).embedded
    assert not settings_from(filled()).in_s3


def test_the_prefect_server_has_the_settings_of_the_embedded_server() -> None:
    given = environment("prefect-server")
    assert {name: given.get(name) for name in SERVER_SETTINGS} == SERVER_SETTINGS
    # In addition: its storage, its authentication, and its URLs for browsers.
    assert set(given) - set(SERVER_SETTINGS) - set(CLIENT_SETTINGS) == {
        "PREFECT_HOME",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_SERVER_UI_API_URL",
        "PREFECT_UI_URL",
    }
    # The server and its services are one process, so all of them see the leases on the volume.
    assert services()["prefect-server"]["command"][:3] == ["prefect", "server", "start"]
    assert not {"--no-services", "--workers"} & set(services()["prefect-server"]["command"])


def test_clients_use_the_servers_password_and_send_no_telemetry() -> None:
    password = environment("prefect-server")["PREFECT_SERVER_API_AUTH_STRING"]
    for service in ("init", "prefect-worker", "dask-worker"):
        given = environment(service)
        assert given["PREFECT_API_AUTH_STRING"] == password
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
