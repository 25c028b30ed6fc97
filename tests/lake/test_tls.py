"""S3 and PostgreSQL with certificates of a private authority: who is told of it trusts it, others do not."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deployments.services import ObjectStore, new_secret
from ducklake_flows.errors import CatalogError, LakeError, StorageError
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.models.config import project_config
from ducklake_flows.project import all_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.storage import check
from tests.conftest import Lake, Services, make_project

if TYPE_CHECKING:
    from pathlib import Path


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """PEM files of an authority, and of a certificate for 127.0.0.1 with its key."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def signed(name: str, public: ec.EllipticCurvePublicKey, *, ca: bool) -> bytes:
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(named)
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return builder.sign(authority, SHA256()).public_bytes(Encoding.PEM)

    paths = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(signed("authority", authority.public_key(), ca=True))
    paths[1].write_bytes(signed("server", key.public_key(), ca=False))
    paths[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def test_a_private_authority_is_trusted_by_every_client_that_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, certificate, key = certificates(tmp_path)
    key_id, secret = new_secret(), new_secret()
    with ObjectStore(tmp_path / "s3", tmp_path, key_id, secret, tls=(certificate, key)) as store:
        for name, value in {
            "LAKE_HOME": str(tmp_path / "home"),
            "LAKE_PROJECT": str(make_project(tmp_path / "project")),
            "LAKE_S3_ENDPOINT": store.endpoint,
            "LAKE_S3_KEY_ID": key_id,
            "LAKE_S3_SECRET": secret,
            "LAKE_S3_CA_FILE": str(ca),
            "LAKE_DATA_PATH": "s3://lake/data/",
            "LAKE_LANDING": "s3://lake/landing/",
        }.items():
            monkeypatch.setenv(name, value)
        lake = Lake(load_settings())
        assert lake.settings.s3_use_ssl
        check(lake.settings, create=True)
        bootstrap(lake.settings, list(all_datasets().values()))
        lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 1}])
        pq.write_table(pa.table({"name": ["a"], "total": [1.5]}), tmp_path / "month.parquet")
        lake.land("monthly/2024-01.parquet", (tmp_path / "month.parquet").read_bytes())
        assert lake.load("readings", "2024-01-01").receipts
        assert lake.load("monthly", "2024-01").receipts
        assert lake.column("SELECT total FROM raw.monthly") == [1.5]
        assert lake.errors() == []

        monkeypatch.delenv("LAKE_S3_CA_FILE")
        distrusting = load_settings()
        with pytest.raises(StorageError, match=r"(?i)certificate") as refused:
            check(distrusting)
        assert "LAKE_S3_CA_FILE" in refused.value.fix
        with pytest.raises((duckdb.Error, LakeError), match=r"(?i)certificate|ssl"):
            connect(distrusting, read_only=True).execute("FROM lake.raw.monthly")
        monkeypatch.setenv("LAKE_S3_CA_FILE", str(tmp_path / "nope.pem"))
        with pytest.raises(LakeError, match="LAKE_S3_CA_FILE is no file"):
            load_settings()


class TlsFront:
    """TLS in front of a PostgreSQL server, whose wheel has none: answers libpq's request for it, refuses all else.

    Args:
        port: The server's port.
        certificate: PEM file of the certificate.
        key: PEM file of its key.
    """

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self._server = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> TlsFront:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if client.recv(8) != b"\0\0\0\x08\x04\xd2\x16\x2f":  # SSLRequest
                return
            client.sendall(b"S")
            with (
                self._context.wrap_socket(client, server_side=True) as safe,
                socket.create_connection(("127.0.0.1", self._server)) as server,
            ):
                self.connections += 1
                back = threading.Thread(target=self._pass, args=[server, safe], daemon=True)
                back.start()
                self._pass(safe, server)
                back.join()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


def test_postgresql_behind_a_private_authority_is_verified(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catalog and SQLMesh's state, by libpq's keywords and variables: as docs/cookbook/credentials.md says."""
    ca, certificate, key = certificates(tmp_path)
    (tmp_path / "other").mkdir()
    other, *_ = certificates(tmp_path / "other")
    environment = services.environment("postgres+folder", tmp_path / "home")
    password, database = environment["LAKE_CATALOG_PASSWORD"], environment["LAKE_CATALOG"].rpartition("=")[2]
    with TlsFront(services.postgres.port, certificate, key) as front:
        where = f"postgres:host=127.0.0.1 port={front.port} dbname={database} user={database}"
        for name, value in {
            **environment,
            "LAKE_CATALOG": f"{where} sslmode=verify-full sslrootcert={ca}",
            "LAKE_STATE": f"postgres://{database}@127.0.0.1:{front.port}/{database}",
            "LAKE_STATE_PASSWORD": password,
        }.items():
            monkeypatch.setenv(name, value)
        lake = Lake(load_settings())
        check(lake.settings, create=True)
        bootstrap(lake.settings, list(all_datasets().values()))
        lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 1}])
        assert lake.load("readings", "2024-01-01").receipts
        assert lake.errors() == []
        for wrong, says in (
            (f"sslmode=verify-full sslrootcert={other}", "certificate verify failed|signature failure"),
            ("sslmode=disable", "closed the connection"),
        ):
            monkeypatch.setenv("LAKE_CATALOG", f"{where} {wrong}")
            with pytest.raises(CatalogError, match=says):
                connect(load_settings())

        monkeypatch.setenv("LAKE_CATALOG", f"{where} sslmode=verify-full sslrootcert={ca}")
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        state = project_config(load_settings()).gateways["lake"].state_connection
        assert state is not None
        monkeypatch.setenv("PGSSLROOTCERT", str(other))
        with pytest.raises(Exception, match=r"certificate verify failed|signature failure"):
            state.create_engine_adapter().fetchone("SELECT 1")
        monkeypatch.setenv("PGSSLROOTCERT", str(ca))
        before = front.connections
        adapter = state.create_engine_adapter()
        assert adapter.fetchone("SELECT 1") == (1,)
        adapter.close()
        assert front.connections > before
