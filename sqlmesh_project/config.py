"""SQLMesh's configuration, built from the lake's settings: no connection is written down here."""

from pathlib import Path

from flows.build.project import lake_settings, project_config

config = project_config(lake_settings(Path(__file__).parent))
