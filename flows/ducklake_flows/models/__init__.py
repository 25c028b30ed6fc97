"""The build: SQLMesh over the lake in a separate process. Every write passes the gate and is one snapshot."""
