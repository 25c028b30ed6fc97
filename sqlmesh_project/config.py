"""SQLMesh's configuration, built from the lake's settings: no connection is written down here."""

from flows.build.project import project_config
from flows.settings import load_settings

config = project_config(load_settings())
