"""The certificates of a Dask cluster: made once, renewed before they end, and their key is private."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import dask
import distributed  # noqa: F401 - registers its configuration
import pytest
from cryptography.x509 import load_pem_x509_certificate

from ducklake_flows.errors import BadInput
from ducklake_flows.orchestration import certificates

if TYPE_CHECKING:
    from pathlib import Path


def test_they_are_made_once_and_renewed_before_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tls"
    monkeypatch.setattr(certificates, "DAYS", 29)
    assert certificates.ensure(folder)
    first = (folder / "cert.pem").read_bytes()
    monkeypatch.undo()
    assert certificates.ensure(folder)
    second = (folder / "cert.pem").read_bytes()
    assert second != first
    assert not certificates.ensure(folder)
    assert (folder / "cert.pem").read_bytes() == second
    assert {path.name for path in folder.iterdir()} == set(certificates.FILES)
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    ca, cert = (load_pem_x509_certificate((folder / name).read_bytes()) for name in ("ca.pem", "cert.pem"))
    cert.verify_directly_issued_by(ca)
    (folder / "ca.pem").unlink()
    with pytest.raises(BadInput, match="not all of"):
        certificates.ensure(folder)


def test_every_setting_is_one_of_dasks(tmp_path: Path) -> None:
    for name in certificates.environment(tmp_path):
        key = name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-")
        assert dask.config.get(key, "missing") != "missing", key
