"""An object store and STS that give out and check short-lived tokens: moto behind a gatekeeper that shares no code.

moto keeps the objects and issues the tokens, but takes any signature and any expired token. The gatekeeper checks
every request as AWS does: a known key, its token, its expiry and its signature (SigV4), and records what it saw.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, quote, unquote

from minio import Minio
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from deployments.services import HOST, new_secret

if TYPE_CHECKING:
    from collections.abc import Iterable

REGION = "us-east-1"


@dataclass(frozen=True)
class Key:
    """A key that the store takes.

    Args:
        secret: Its secret.
        token: Its session token; "" for a key that is not temporary.
        expires: When it expires; None: never.
    """

    secret: str
    token: str = ""
    expires: datetime | None = None

    @property
    def is_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= self.expires


@dataclass(frozen=True)
class Request:
    """A request that the store got: the key's id, the client, the path, and the refusal, "" if there was none."""

    key_id: str
    client: str
    path: str
    refusal: str


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing is written to the test's output."""


@dataclass
class TokenStore:
    """S3, STS and IMDS on one loopback port.

    Args:
        life: Seconds for which each token lives.
    """

    life: float = 3600
    keys: dict[str, Key] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    refuse_tokens: bool = False
    """Whether STS refuses to issue a token."""
    identity: str = field(default_factory=new_secret)
    """The web identity that STS takes."""

    def __post_init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(HOST, 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"{HOST}:{self._server.port}"

    def make_bucket(self, name: str) -> None:
        """Make a bucket, as an administrator: the request is not recorded."""
        key_id, key = self.issue(token=False)
        Minio(self.endpoint, key_id, key.secret, secure=False, region=REGION).make_bucket(name)
        del self.keys[key_id]
        self.seen.clear()

    def issue(self, *, life: float | None = None, token: bool = True) -> tuple[str, Key]:
        """A new key, with a token that expires unless `token` is false."""
        expires = datetime.now(UTC) + timedelta(seconds=self.life if life is None else life)
        key_id = f"AKIA{hashlib.sha1(new_secret().encode()).hexdigest()[:16].upper()}"  # noqa: S324
        key = Key(new_secret(), new_secret(), expires) if token else Key(new_secret())
        self.keys[key_id] = key
        return key_id, key

    def used(self) -> set[str]:
        """The ids of the keys that requests were answered for."""
        return {request.key_id for request in self.seen if not request.refusal}

    def expired(self) -> int:
        """How many of the keys that were used have expired."""
        return sum(self.keys[key_id].is_expired for key_id in self.used())

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/expired":
            start("200 OK", [("Content-Type", "text/plain")])
            return [str(self.expired()).encode()]
        if path.startswith("/latest/"):
            return self._metadata(environ, start)
        if path == "/container":
            given = environ.get("HTTP_AUTHORIZATION") == self.identity
            start("200 OK" if given else "403 Forbidden", [("Content-Type", "application/json")])
            return [_document(*self.issue())] if given else []
        if "AWS4-HMAC-SHA256" not in environ.get("HTTP_AUTHORIZATION", "") and path == "/":
            return self._token(environ, start)
        refusal = self._refusal(environ)
        found = re.search(r"Credential=([^/,]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        client = environ.get("HTTP_USER_AGENT", "").split("/")[0].split(" ")[0]
        self.seen.append(Request(found[1] if found else "", client, path, refusal))
        if not refusal:
            answer: Iterable[bytes] = self._app(environ, start)
            return answer
        start(
            "400 Bad Request" if refusal == "ExpiredToken" else "403 Forbidden", [("Content-Type", "application/xml")]
        )
        said = {"ExpiredToken": "The provided token has expired."}.get(refusal, "Access Denied")
        body = f"<?xml version='1.0'?><Error><Code>{refusal}</Code><Message>{said}</Message></Error>"
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body.encode()]

    def _token(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """AssumeRoleWithWebIdentity, which is not signed: moto's answer, with our expiry."""
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        given = dict(parse_qsl(environ.get("QUERY_STRING", ""))) | dict(parse_qsl(body.decode()))
        # A URL is logged: no identity may be in it.
        refused = self.refuse_tokens or given.get("WebIdentityToken") != self.identity or environ.get("QUERY_STRING")
        if refused or given.get("Action") != "AssumeRoleWithWebIdentity":
            start("400 Bad Request", [("Content-Type", "text/xml")])
            code, said = "InvalidIdentityToken", "The web identity token is not known."
            return [
                f"<ErrorResponse><Error><Code>{code}</Code><Message>{said}</Message></Error></ErrorResponse>".encode()
            ]
        import io

        kept: list[Any] = []
        answered = b"".join(
            self._app({**environ, "wsgi.input": io.BytesIO(body)}, lambda *given, **_: kept.append(given))
        ).decode()
        expires = datetime.now(UTC) + timedelta(seconds=self.life)
        key_id, secret, token = (
            re.search(f"<{name}>([^<]+)</{name}>", answered)[1]  # type: ignore[index]
            for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")
        )
        self.keys[key_id] = Key(secret, token, expires)
        answered = re.sub(
            "<Expiration>[^<]*</Expiration>", f"<Expiration>{expires:%Y-%m-%dT%H:%M:%S.%fZ}</Expiration>", answered
        )
        status, headers, *_ = kept[0]
        start(status, [(n, v) for n, v in headers if n.lower() != "content-length"])
        return [answered.encode()]

    def _metadata(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """The instance's metadata service, version 2: a token by PUT, then the role and its credentials."""
        path = environ["PATH_INFO"]
        if path.endswith("/api/token"):
            start("200 OK" if environ["REQUEST_METHOD"] == "PUT" else "405 Method Not Allowed", [])
            return [self.identity.encode()]
        if environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") != self.identity:
            start("401 Unauthorized", [])
            return []
        start("200 OK", [("Content-Type", "text/plain")])
        if path.endswith("/security-credentials/"):
            return [b"lake-role"]
        key_id, key = self.issue()
        return [_document(key_id, key)]

    def _refusal(self, environ: dict[str, Any]) -> str:
        """The code with which a signed request is refused; "" if it is not."""
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([\w-]+)/s3/aws4_request, ?"
            r"SignedHeaders=([\w;-]+), ?Signature=([0-9a-f]{64})",
            environ.get("HTTP_AUTHORIZATION", ""),
        )
        if not found:
            return "AccessDenied"
        key_id, day, region, names, signature = found.groups()
        key = self.keys.get(key_id)
        if key is None:
            return "InvalidAccessKeyId"
        if environ.get("HTTP_X_AMZ_SECURITY_TOKEN", "") != key.token:
            return "InvalidToken"
        if key.is_expired:
            return "ExpiredToken"
        headers = {name: environ.get("HTTP_" + name.upper().replace("-", "_"), "") for name in names.split(";")}
        for name in ("content-type", "content-length"):
            if name in headers:
                headers[name] = environ.get(name.upper().replace("-", "_"), "")
        raw = environ.get("REQUEST_URI") or environ["RAW_URI"]
        path, _, query = raw.partition("?")
        pairs = sorted(
            (quote(unquote(n), safe="-_.~"), quote(unquote(v), safe="-_.~"))
            for n, _, v in (pair.partition("=") for pair in query.split("&") if pair)
        )
        canonical = "\n".join(
            [
                environ["REQUEST_METHOD"],
                quote(unquote(path), safe="/-_.~"),
                "&".join(f"{name}={value}" for name, value in pairs),
                *(f"{name}:{' '.join(value.split())}" for name, value in headers.items()),
                "",
                names,
                environ.get("HTTP_X_AMZ_CONTENT_SHA256", ""),
            ]
        )
        scope = f"{day}/{region}/s3/aws4_request"
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256",
                environ.get("HTTP_X_AMZ_DATE", ""),
                scope,
                hashlib.sha256(canonical.encode()).hexdigest(),
            ]
        )
        derived = f"AWS4{key.secret}".encode()
        for part in (*scope.split("/"), text):
            derived = hmac.digest(derived, part.encode(), "sha256")
        return "" if hmac.compare_digest(derived.hex(), signature) else "SignatureDoesNotMatch"


def _document(key_id: str, key: Key) -> bytes:
    """Credentials as the metadata service spells them."""
    import json

    assert key.expires is not None
    said = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": key_id, "SecretAccessKey": key.secret}
    return json.dumps({**said, "Token": key.token, "Expiration": f"{key.expires:%Y-%m-%dT%H:%M:%SZ}"}).encode()
