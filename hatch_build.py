"""The build hook: the wheel carries those of this repository's own files that `lake new` writes."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = (
    ".env.example",
    "deployments/backup.sh",
    "deployments/entrypoint",
    "deployments/env.example",
    "deployments/init",
    "deployments/postgres-init.sh",
    "deployments/prefect.yaml",
    "deployments/secrets",
    "docker-compose.yml",
    "flows/datasets",
    "sqlmesh_project/audits",
    "sqlmesh_project/config.py",
    "sqlmesh_project/models",
    "sqlmesh_project/signals",
    "sqlmesh_project/tests",
)


class TemplatesHook(BuildHookInterface[Any]):
    """Adds `FILES` to a wheel; an editable install finds them in the checkout. See `ducklake_flows.templates`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files."""
        if version == "standard":
            build_data["force_include"] |= {name: f"ducklake_flows/templates/repository/{name}" for name in FILES}
