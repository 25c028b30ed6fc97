"""The build: SQLMesh over the lake, in a process of its own, every write through the gate and in one snapshot."""
