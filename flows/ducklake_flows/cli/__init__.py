"""The `lake` command: what it parses, calls and prints."""
