"""Storage: one interface to list, read and write files in a local folder or in S3."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ducklake_flows.credentials import REFUSED, Credentials, current, refused
from ducklake_flows.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from minio import Minio
    from pyarrow.fs import FileSystem

    from ducklake_flows.settings import Settings

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
"""Timeouts of a request to an object store, in seconds; then it is retried."""

PIECE = 1 << 20
"""Bytes copied at once."""

CONNECTIONS = 8
"""Connections to an object store that a client keeps open: for as many threads."""

SYNCS = 16
"""Concurrent fsyncs: a disk syncs many files together nearly as fast as one."""


@dataclass(frozen=True, slots=True)
class File:
    """A listed file.

    Args:
        path: In the spelling of the storage's filesystem.
        size: Bytes.
        mtime_ns: Time of the last write, in nanoseconds since 1970; None if the store does not report it.
    """

    path: str
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Storage:
    """A base folder or S3 prefix.

    A folder is listed without Arrow: its import would take a quarter of the time of `lake plan`.

    Args:
        base: The base path in the filesystem's spelling, without a trailing slash.
        url: The base in DuckDB's spelling, with a trailing slash.
        settings: The S3 endpoint and its credentials.
    """

    base: str
    url: str
    settings: Settings

    @property
    def is_local(self) -> bool:
        """Whether the base is a folder on this machine."""
        return not self.url.startswith("s3://")

    @property
    def fs(self) -> FileSystem:
        """The Arrow filesystem, with the current credentials."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem() if self.is_local else _arrow_s3(self.settings, current(self.settings))

    def path(self, relative: str) -> str:
        """A path under the base, in the filesystem's spelling."""
        return f"{self.base}/{relative}"

    def list(self, folder: str = "") -> list[File]:
        """All files under a folder of the base, recursively; an empty list if the folder does not exist.

        Raises:
            StorageError: the folder or bucket cannot be listed, or the base is the landing zone and does not exist.
        """
        where = self.path(folder).rstrip("/")
        try:
            found = _walk(where) if self.is_local else list(_objects(self._client, f"{where}/", recursive=True))
        except OSError as error:
            raise self._fault(f"{self.url}{folder}", "listed", error) from None
        if not found:
            self._check_landing()
        return found

    def find(self, relative: str) -> File | None:
        """The file at a path under the base; None if there is none.

        Raises:
            StorageError: the path cannot be read, or the base is the landing zone and does not exist.
        """
        path = self.path(relative)
        try:
            found = _stat(path) if self.is_local else _listed(self._client, path)
        except OSError as error:
            raise self._fault(f"{self.url}{relative}", "read", error) from None
        if found is None:
            self._check_landing()
        return found

    def _check_landing(self) -> None:
        """Raise if the base is a missing landing zone. A data path may be missing: the first write creates it."""
        if self.url != self.settings.landing:
            return
        if not self.is_local:
            check(self.settings)
        elif not Path(self.base).is_dir():
            raise StorageError(
                f"The landing zone does not exist: {self.base} is not a folder.", "create it, or set LAKE_LANDING"
            )

    def _fault(self, url: str, done: str, error: OSError) -> StorageError:
        if isinstance(error, _Refused):
            return refused(self.settings, f"{url} at {_endpoint(self.settings)} cannot be {done}", error.code)
        cause = self.settings.redact(" ".join(str(error.strerror or error).split()))[:300]
        if self.is_local:
            return StorageError(
                f"{error.filename or url} cannot be {done}: {cause}", "check the folder and its permissions"
            )
        return StorageError(
            f"{url} at {_endpoint(self.settings)} cannot be {done}: {cause}",
            "check the bucket and LAKE_S3_*, then run: lake init",
        )

    @property
    def _client(self) -> Minio:
        return _client(self.settings, retries=5)

    def relative(self, path: str) -> str:
        """A listed path, relative to the base."""
        return path.removeprefix(self.base + "/")

    def sync(self, paths: Sequence[str]) -> None:
        """Fsync stored files and their folders, so that a power cut after the commit loses none of them.

        Does nothing for an object store, whose writes are durable.

        Args:
            paths: Relative to the base.

        Raises:
            OSError: a file or folder cannot be synced.
        """
        if not self.is_local or not paths:
            return
        base = Path(self.base)
        folders = {folder for path in paths for folder in (base / path).parents if folder.is_relative_to(base.parent)}
        with ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, map(self.path, paths)))
            list(pool.map(_sync, map(str, folders)))

    def empty_folders(self, pattern: str) -> Sequence[str]:
        """Folders, by a pattern below the base, without a file in them or below; none in an object store.

        Raises:
            OSError: a folder cannot be read.
        """
        if not self.is_local:
            return []
        found = [str(path) for path in Path(self.base).glob(pattern) if path.is_dir() and not _walk(str(path))]
        return [self.relative(path) for path in found]

    def remove_folder(self, relative: str) -> None:
        """Remove a folder and those below it.

        Raises:
            OSError: there is a file in one of them, which stays.
        """
        for folder, _, _ in os.walk(self.path(relative), topdown=False):
            Path(folder).rmdir()

    def get(self, relative: str, local: Path) -> None:
        """Copy a stored file of an object store, by one request.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the object store does not answer, or refuses the request.
        """
        from minio.error import MinioException, S3Error
        from urllib3.exceptions import HTTPError

        bucket, _, key = self.path(relative).partition("/")
        try:
            answer = self._client.get_object(bucket, key)
            with contextlib.closing(answer), local.open("wb") as file:
                shutil.copyfileobj(answer, file, PIECE)
            answer.release_conn()
        except (MinioException, HTTPError) as error:
            if isinstance(error, S3Error) and error.code == "NoSuchKey":
                raise FileNotFoundError(errno.ENOENT, "there is no such file", self.path(relative)) from None
            raise self._fault(f"{self.url}{relative}", "read", _os_error(error)) from None

    def put(self, local: Path, relative: str) -> None:
        """Store a finished local file. Readers never see it half-written under its name.

        Raises:
            OSError: the folder or bucket cannot be written; no file is left under the name.
            CredentialsError: the object store refuses the credentials.
        """
        if self.is_local:
            target = Path(self.path(relative))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            try:
                shutil.copyfile(local, partial)
                partial.replace(target)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
            return
        # Not through Arrow: it sends parts without their length, which some S3 servers refuse (rclone answers 411).
        from minio.error import S3Error

        bucket, _, key = self.path(relative).partition("/")
        try:
            self._client.fput_object(bucket, key, str(local), content_type="application/octet-stream")
        except S3Error as error:
            if error.code not in REFUSED:
                raise
            raise self._fault(f"{self.url}{relative}", "written", _os_error(error)) from None

    def remove(self, relative: str) -> None:
        """Remove a stored file, if there is one.

        Raises:
            OSError: it cannot be removed.
            StorageError: the object store does not answer, or refuses the request.
        """
        if self.is_local:
            Path(self.path(relative)).unlink(missing_ok=True)
            return
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError

        bucket, _, key = self.path(relative).partition("/")
        try:
            self._client.remove_object(bucket, key)
        except (MinioException, HTTPError) as error:
            raise self._fault(f"{self.url}{relative}", "removed", _os_error(error)) from None


def _sync(path: str) -> None:
    """Fsync a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(settings: Settings, *, create: bool = False) -> list[str]:
    """Check the buckets before any work starts. The folder of a data path is created by its first write.

    Args:
        settings: Where the data and the landing zone are.
        create: Create missing buckets and the landing zone's folder.

    Returns:
        The names of what was created.

    Raises:
        StorageError: a bucket is missing, or the endpoint does not answer or refuses the credentials.
    """
    urls = {name: getattr(settings, name) for name in ("data_path", "landing")}
    buckets = {
        url.removeprefix("s3://").partition("/")[0]: name for name, url in urls.items() if url.startswith("s3://")
    }
    made = []
    for bucket, name in buckets.items():
        if _has_bucket(settings, bucket, create):
            continue
        if not create:
            raise StorageError(f"There is no bucket {bucket!r} at {_endpoint(settings)}.", "lake init")
        made.append(f"the bucket {bucket} (LAKE_{name.upper()})")
    if create and not settings.landing.startswith("s3://"):
        _make_landing(Path(settings.landing))
    return made


def _make_landing(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The landing zone cannot be created: {error.strerror or error} ({folder})",
            "set LAKE_HOME or LAKE_LANDING to a writable folder",
        ) from None


def _has_bucket(settings: Settings, bucket: str, create: bool) -> bool:
    """Whether a bucket existed and can be listed. A missing one is created if `create` is set."""
    from minio.error import MinioException, S3Error
    from urllib3.exceptions import HTTPError

    client = _client(settings, retries=2)
    try:
        if _exists(client, bucket):
            return True
        if create:
            client.make_bucket(bucket)
        return False
    except S3Error as error:
        what = f"S3 at {_endpoint(settings)} refuses access to the bucket {bucket!r}"
        if error.code in REFUSED:
            raise refused(settings, what, error.code) from None
        raise StorageError(
            f"{what}: {error.code}",
            "check the credentials (LAKE_S3_KEY_ID, or those of AWS), LAKE_S3_REGION and their permissions",
        ) from None
    except (MinioException, HTTPError) as error:
        cause = " ".join(settings.redact(str(error)).split()).rpartition("Caused by ")[2][:200]
        raise StorageError(
            f"S3 at {_endpoint(settings)} does not answer like an S3 server: {cause}",
            "start the server, or check LAKE_S3_ENDPOINT, LAKE_S3_USE_SSL and LAKE_S3_CA_FILE",
        ) from None


def _exists(client: Minio, bucket: str) -> bool:
    """Whether a bucket exists and can be listed.

    Raises:
        MinioException: it cannot be listed. A HEAD is refused without a reason, so the bucket is listed then, too.
    """
    from minio.error import MinioException, S3Error

    try:
        if not client.bucket_exists(bucket):
            return False
    except MinioException as error:
        try:
            next(iter(client.list_objects(bucket)), None)
        except S3Error:
            raise
        except MinioException:
            raise error from None
        return True
    next(iter(client.list_objects(bucket)), None)
    return True


@lru_cache(maxsize=8)
def _arrow_s3(settings: Settings, credentials: Credentials) -> FileSystem:
    """Arrow's filesystem of the object store, kept with its connections until the credentials change."""
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(
        access_key=credentials.key_id,
        secret_key=credentials.secret,
        session_token=credentials.token or None,
        endpoint_override=settings.s3_endpoint,
        region=settings.s3_region,
        scheme="https" if settings.s3_use_ssl else "http",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        **({"tls_ca_file_path": str(settings.s3_ca_file)} if settings.s3_ca_file else {}),
    )


@lru_cache(maxsize=8)
def _client(settings: Settings, retries: int) -> Minio:
    """A client of the object store that gives up: at most a minute per answer, and limited retries with backoff.

    Kept with its connections: a source asks it some times for each partition.
    """
    import urllib3
    from minio import Minio
    from minio.credentials.credentials import Credentials as Keys
    from minio.credentials.providers import Provider

    class Current(Provider):
        """Asked at each request."""

        def retrieve(self) -> Keys:
            found = current(settings)
            return Keys(found.key_id, found.secret, found.token or None)

    return Minio(
        _endpoint(settings),
        credentials=Current(),
        secure=settings.s3_use_ssl,
        region=settings.s3_region,
        http_client=urllib3.PoolManager(
            maxsize=CONNECTIONS,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            retries=urllib3.Retry(retries, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
            ca_certs=str(settings.s3_ca_file) if settings.s3_ca_file else None,
        ),
    )


def _endpoint(settings: Settings) -> str:
    return settings.s3_endpoint or f"s3.{settings.s3_region}.amazonaws.com"


def open_storage(url: str, settings: Settings) -> Storage:
    """Open the folder or S3 prefix at ``url``.

    Args:
        url: An absolute folder or ``s3://bucket/prefix``.
        settings: The S3 endpoint and its credentials.
    """
    base = url.rstrip("/")
    return Storage(base.removeprefix("s3://"), base + "/", settings)


def _listed(client: Minio, path: str) -> File | None:
    """One S3 object, found by listing. A HEAD may round its time differently, and a version must not depend on that.

    Raises:
        OSError: the bucket cannot be listed.
    """
    first = next(_objects(client, path), None)  # the shortest key with this prefix
    return first if first is not None and first.path == path else None


def _objects(client: Minio, path: str, *, recursive: bool = False) -> Iterator[File]:
    """The S3 objects whose paths begin with this one; none if the bucket is missing. Times are in whole seconds.

    Not by Arrow: it takes a time with another number of decimals than three for 1970.

    Raises:
        OSError: the bucket cannot be listed.
    """
    from minio.error import MinioException, S3Error
    from urllib3.exceptions import HTTPError

    bucket, _, prefix = path.partition("/")
    try:
        for found in client.list_objects(bucket, prefix=prefix, recursive=recursive):
            if found.last_modified is not None and not found.is_dir:
                time = int(found.last_modified.timestamp()) * 10**9
                yield File(f"{bucket}/{found.object_name}", found.size or 0, time)
    except (MinioException, HTTPError) as error:
        if not isinstance(error, S3Error) or error.code != "NoSuchBucket":
            raise _os_error(error) from None


class _Refused(OSError):
    """The object store refuses the credentials, with this code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _os_error(error: Exception) -> OSError:
    """An error of the object store's client as one of files."""
    from minio.error import S3Error

    if isinstance(error, S3Error) and error.code in REFUSED:
        return _Refused(str(error.code))
    return OSError(str(error))


def _walk(folder: str, above: tuple[Path, ...] = ()) -> list[File]:
    """All files under a folder. Files that disappear meanwhile are skipped: maintenance may be running.

    Args:
        folder: The folder.
        above: The folders that contain the symbolic links followed so far.

    Raises:
        OSError: a folder cannot be read, or a symbolic link points back to a folder above it.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink() and entry.is_dir():
                    target, here = Path(entry.path).resolve(), (*above, Path(folder).resolve())
                    if any(place.is_relative_to(target) for place in here):
                        raise OSError(errno.ELOOP, "this symbolic link points back to a folder above it", entry.path)
                    found += _walk(entry.path, here)
                elif entry.is_dir():
                    found += _walk(entry.path, above)
                elif file := _stat(entry.path):
                    found.append(file)
    except FileNotFoundError:
        pass
    return found


def _stat(path: str) -> File | None:
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return File(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
