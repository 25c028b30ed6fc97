"""TLS between a run, Dask's scheduler and its workers: whoever reaches a scheduler without it can run code on them.

One certificate and its key are for all three, and the authority that signed it is their own: each end proves to the
other that it has the key. The authority's key is not kept, so no further certificate can be made.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ducklake_flows.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.x509 import Certificate

FILES = ("ca.pem", "cert.pem", "key.pem")
DAYS = 3650
RENEW_DAYS = 30


def ensure(folder: Path) -> bool:
    """Make the authority, the certificate and its key, unless valid ones are there. Only their owner can read the key.

    Returns:
        Whether they were made. Then Dask's scheduler, its workers and the runs have to start again.

    Raises:
        BadInput: the folder has some of the files, but not all.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if len(there) == len(FILES) and _ends(folder) > datetime.now(UTC) + timedelta(days=RENEW_DAYS):
        return False
    if 0 < len(there) < len(FILES):
        raise BadInput(
            f"{folder} has {', '.join(there)}, but not all of {', '.join(FILES)}.",
            "empty the folder, then run the same command again",
        )
    _make(folder)
    return True


def environment(folder: Path) -> dict[str, str]:
    """Dask's settings for the scheduler, its workers and the runs; the scheduler's address then starts with tls://."""
    prefix = "DASK_DISTRIBUTED__COMM__"
    found = {f"{prefix}TLS__CA_FILE": str(folder / "ca.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found |= {f"{prefix}TLS__{role}__CERT": str(folder / "cert.pem")}
        found |= {f"{prefix}TLS__{role}__KEY": str(folder / "key.pem")}
    return {f"{prefix}REQUIRE_ENCRYPTION": "true", **found}


def _ends(folder: Path) -> datetime:
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate((folder / "cert.pem").read_bytes()).not_valid_after_utc


def _make(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def signed(name: str, public: ec.EllipticCurvePublicKey, *, is_authority: bool) -> Certificate:
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ducklake-flows Dask authority")])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(authority, SHA256())
        )

    ca = signed("ducklake-flows Dask authority", authority.public_key(), is_authority=True)
    cert = signed("ducklake-flows Dask", key.public_key(), is_authority=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(
        FILES, (ca.public_bytes(Encoding.PEM), cert.public_bytes(Encoding.PEM), private), strict=True
    ):
        # Whole or not at all: Dask may read the file at any moment.
        half = folder / f".{name}"
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as sink:
            sink.write(content)
        half.replace(folder / name)
