"""Ctrl-C in the terminal: the command ends soon, reports it, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ducklake_flows import scratch
from ducklake_flows.extract.chunk import warm_up
from ducklake_flows.orchestration.server import until
from tests.conftest import DATASETS
from tests.flows.test_cli import LAKE, Command

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The temporary folder of the command. Its path is short because socket paths are limited in length."""
    with tempfile.TemporaryDirectory(prefix="lake-") as folder:
        yield Path(folder)


@pytest.fixture
def lake(tmp_path: Path, temporary: Path, prefect_server: str) -> Command:
    command = Command(tmp_path, prefect_server, DATASETS)
    command.environment |= {"TMPDIR": str(temporary)}
    return command


def in_use(folder: Path) -> bool:
    """Whether a process has locked a temporary folder."""
    try:
        with (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def test_ctrl_c_leaves_complete_partitions_and_no_process(lake: Command, temporary: Path) -> None:
    lake("init")
    home = lake.folder / ".lake"
    (home / "wait").touch()
    run = subprocess.Popen(
        [LAKE, "backfill", "waiting", "--start", "2024-01-01", "--end", "2024-01-06"],
        cwd=lake.folder,
        env=lake.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no thread is started before
    )
    assert until(lambda: list(home.glob("asked-*")) or run.poll() is not None, 120)
    os.killpg(run.pid, signal.SIGINT)  # like a terminal: to the command and all its child processes
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert "error: Stopped. What was published stays published." in said
    assert "Traceback" not in said
    assert until(lambda: not any(map(in_use, temporary.glob(f"{scratch.SCRATCH}*"))), 30), "its workers are still there"
    assert all(finding["severity"] == "note" for finding in lake.json("verify"))


def test_scratch_folders_of_a_killed_worker_are_deleted_when_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up()  # each run calls it, also on a worker that earlier runs have used
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch.scratch() as held:
        left, young = (tmp_path / f"{scratch.SCRATCH}{name}" for name in ("left", "young"))
        for folder in (left, young):
            folder.mkdir()
            (folder / "lock").touch()
        for folder in (left, held):
            os.utime(folder / "lock", (0, 0))
        warm_up()
        assert sorted(tmp_path.iterdir()) == sorted([held, young])


def test_a_process_that_ends_leaves_no_temporary_folder(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", "from ducklake_flows.scratch import scratch_of_process as s; print(s(), s().is_dir())"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    assert made[0].startswith(f"{tmp_path}/{scratch.SCRATCH}")
    assert made[1] == "True"
    assert list(tmp_path.iterdir()) == []
