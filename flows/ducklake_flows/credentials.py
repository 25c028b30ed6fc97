"""The S3 credentials of this process: one answer for every client, DuckDB included, renewed before they expire.

They are the keys of the settings or, without these, what botocore's chain finds: environment variables, profiles (keys,
roles, SSO, processes), web identity, the container's or the instance's role. botocore reads that environment itself.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import CredentialsError, StorageError, conceal, redacted

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings

log = logging.getLogger(__name__)

MARGIN = 1800.0
"""Seconds before their expiry at which credentials are renewed, or half of their life if that is less. A client may use
what it got for that long: a statement of DuckDB keeps the credentials that it began with."""

REREAD = 60.0
"""Seconds after which credentials that name no expiry are read again: another program may write the profile's file."""

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
"""Timeouts of a request to STS."""

SETTINGS = "LAKE_S3_KEY_ID and LAKE_S3_SECRET"

REFUSED = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)
"""The codes with which S3 refuses credentials. ``AccessDenied`` is no such code: it knows them, but they may not."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs a request to S3.

    Args:
        key_id: The access key's id.
        secret: The access key's secret.
        token: The session token of temporary credentials; "" for others.
        source: Where they are from, for messages: ``the profile analyst``.
        fix: What to do if they are refused.
    """

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(repr=False, default="")
    source: str = ""
    fix: str = ""


def current(settings: Settings) -> Credentials:
    """The credentials to use now. Ask for each request or connection: they change when they are renewed.

    Raises:
        CredentialsError: there are none, or they are expired and cannot be renewed.
        StorageError: the service that issues them does not answer.
    """
    if settings.s3_key_id is None or settings.s3_secret is None:
        return _chain(settings.s3_region).current()
    token = settings.s3_session_token.get_secret_value() if settings.s3_session_token is not None else ""
    return Credentials(
        settings.s3_key_id.get_secret_value(),
        settings.s3_secret.get_secret_value(),
        token,
        SETTINGS,
        f"set new {SETTINGS}{', and LAKE_S3_SESSION_TOKEN' if token else ''}",
    )


def may_change(settings: Settings) -> bool:
    """Whether the credentials may change while this process runs."""
    return settings.s3_key_id is None


def refused(settings: Settings, what: str, code: str) -> CredentialsError:
    """The error to raise if S3 refused the credentials. They are looked up again at the next request.

    Args:
        settings: The settings that they are for.
        what: What was refused.
        code: S3's code; one of `REFUSED`.
    """
    held = current(settings)
    forget()
    why = "the credentials have expired" if code == "ExpiredToken" else "it does not take the credentials"
    return CredentialsError(f"{what}: {code}. S3 says that {why}; they are from {held.source}.", held.fix)


def forget() -> None:
    """Look the credentials up again when they are next needed."""
    _chain.cache_clear()


class _Chain:
    """The credentials of botocore's chain.

    Each renewal asks a new session, which reads the environment, the files and the services again.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        self._lock = threading.Lock()
        self._found: Any = None
        """botocore's credentials, which know when they expire."""
        self._held: Credentials | None = None
        self._margin, self._asked = MARGIN, 0.0

    def current(self) -> Credentials:
        """The credentials, renewed if they are due.

        Raises:
            CredentialsError, StorageError: as `ducklake_flows.credentials.current`.
        """
        with self._lock:
            if self._held is not None and not self._is_due():
                return self._held
            try:
                self._held = self._renewed()
            except StorageError as error:
                if self._held is None or self._is_due(0.0):
                    raise
                # They are valid for a while: try again when half of it is over.
                self._margin, self._asked = self._margin / 2, time.monotonic()
                log.warning("the S3 credentials could not be renewed yet: %s", error.message)
            return self._held

    def _is_due(self, margin: float | None = None) -> bool:
        from botocore.credentials import RefreshableCredentials

        if isinstance(self._found, RefreshableCredentials):
            return bool(self._found.refresh_needed(self._margin if margin is None else margin))
        return margin is None and time.monotonic() - self._asked > REREAD

    def _renewed(self) -> Credentials:
        """Ask the chain.

        Raises:
            CredentialsError, StorageError: as `current`.
        """
        from botocore import exceptions as failed
        from botocore.config import Config
        from botocore.session import Session

        session = Session()
        profile = session.get_config_variable("profile") or "default"
        try:
            if session.get_config_variable("region") is None:
                session.set_config_variable("region", self._region)
            session.set_default_client_config(Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS))
            found = session.get_credentials()
            frozen = None if found is None else found.get_frozen_credentials()
        except (failed.ConnectionError, failed.HTTPClientError) as error:
            raise StorageError(
                f"The service that issues the S3 credentials does not answer: {_text(error)}",
                "check the network and AWS_ENDPOINT_URL_STS, then run the same command again",
            ) from error
        except failed.ProfileNotFound as error:
            raise CredentialsError(f"There are no S3 credentials: {_text(error)}", "check AWS_PROFILE") from None
        except (failed.BotoCoreError, failed.ClientError, OSError, RuntimeError) as error:
            # RuntimeError: they are expired, and the chain gives the same again.
            login = f"aws sso login --profile {profile}" if isinstance(error, failed.SSOError) else ""
            raise CredentialsError(
                f"The S3 credentials cannot be renewed: {_text(error)}",
                login or "renew the credentials that AWS_PROFILE, AWS_ROLE_ARN or AWS_ACCESS_KEY_ID names",
            ) from None
        if found is None or frozen is None or not frozen.access_key or not frozen.secret_key:
            raise CredentialsError(
                f"There are no S3 credentials. Searched: {SETTINGS}; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
                f"the profile {profile} (AWS_PROFILE) in the files of AWS; AWS_WEB_IDENTITY_TOKEN_FILE; the role of "
                "the container; the role of the instance.",
                f"set {SETTINGS}, or give this process a profile or a role",
            )
        source, fix = _SOURCES.get(found.method, (f"the chain of AWS ({found.method})", "renew them"))
        keys = (frozen.access_key, frozen.secret_key, frozen.token or "")
        conceal(*keys)
        self._found, self._asked, self._margin = found, time.monotonic(), MARGIN
        while self._margin > 1 and self._is_due(2 * self._margin):
            self._margin *= 0.9
        return Credentials(*keys, source.format(profile=profile), fix.format(profile=profile))


_NEW = "write new keys into the profile {profile}, then run the same command again"
_SOURCES = {
    "env": (
        "the environment (AWS_ACCESS_KEY_ID)",
        "set new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, then run the same command again",
    ),
    "shared-credentials-file": ("the profile {profile}", _NEW),
    "config-file": ("the profile {profile}", _NEW),
    "assume-role": ("the role of the profile {profile}", "check the profile {profile}: aws sts get-caller-identity"),
    "assume-role-with-web-identity": (
        "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE",
        "check AWS_ROLE_ARN, the token's file and the trust policy of the role",
    ),
    "sso": ("the SSO of the profile {profile}", "aws sso login --profile {profile}"),
    "login": ("the login of the profile {profile}", "aws login --profile {profile}"),
    "custom-process": ("the process of the profile {profile}", "run credential_process of the profile {profile}"),
    "container-role": ("the role of the container", "check the role of the task or of the pod"),
    "iam-role": ("the role of the instance", "check the role in the instance's profile"),
}
"""The source by botocore's name of its provider, and what to do if its credentials are refused."""


@lru_cache(maxsize=4)
def _chain(region: str) -> _Chain:
    # botocore logs the traceback of each error that it then raises.
    logging.getLogger("botocore.credentials").setLevel(logging.CRITICAL)
    return _Chain(region)


def _text(error: Exception) -> str:
    """The text of an error in one line, without secrets, at most 300 characters."""
    return redacted(" ".join(str(error).split()))[:300]
