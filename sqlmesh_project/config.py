"""SQLMesh's configuration. All connections come from the project's settings."""

from ducklake_flows import sqlmesh_config

config = sqlmesh_config(__file__)
