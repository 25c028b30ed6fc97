"""SQLMesh's configuration, from the project's settings: no connection is written down here."""

from ducklake_flows import sqlmesh_config

config = sqlmesh_config(__file__)
