"""Python imports this at the start of every process that has this folder on its PYTHONPATH: it arms the failpoints."""

import os
from pathlib import Path

from ducklake_flows.testing.failpoints import arm

arm(Path(os.environ["TESTS_KILL_AT"]))
