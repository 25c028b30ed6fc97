"""`make stack`: its ports stay, and its `env` file works in a shell."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from typing import TYPE_CHECKING

from deployments import stack
from deployments.services import BIN, HOST

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_ports_stay_and_one_that_is_taken_is_replaced_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ports.json"
    first = stack.kept_ports(file)
    assert set(first) == {"postgres", "s3", "prefect", "dask", "metrics"}
    assert stack.kept_ports(file) == first == json.loads(file.read_text())
    assert capsys.readouterr().out == ""
    with socket.socket() as taken:
        taken.bind((HOST, first["dask"]))
        taken.listen()
        second = stack.kept_ports(file)
    assert {name for name in first if second[name] != first[name]} == {"dask"}
    assert f"Port {first['dask']} of dask is taken by another process" in capsys.readouterr().out
    assert stack.kept_ports(file) == first


def test_the_env_file_keeps_every_character_and_finds_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    (folder / "lake").write_text("#!/bin/sh\nprintf '%s' \"$LAKE_HOME\"\n")
    (folder / "lake").chmod(0o755)
    monkeypatch.setattr(stack, "BIN", folder)
    home = "/a b/$HOME/`x`'\"\\!"
    (folder / "env").write_text(stack.env_file({"LAKE_HOME": home}))
    twice = f". {shlex.quote(str(folder / 'env'))}; " * 2
    done = subprocess.run(
        ["sh", "-euc", f"{twice} lake; echo; echo $PATH"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{home}\n{folder}:/usr/bin:/bin\n"
    assert (BIN / "lake").exists()
    assert (BIN / "prefect").exists()


def test_the_callers_datasets_and_webhook_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_DATASETS", "/datasets")
    monkeypatch.setenv("LAKE_NOTIFY_URL", "http://127.0.0.1/hook")
    monkeypatch.setenv("LAKE_CATALOG", "sqlite:other")
    found = stack.taken_over()
    assert found == {"LAKE_DATASETS": "/datasets", "LAKE_NOTIFY_URL": "http://127.0.0.1/hook"}
