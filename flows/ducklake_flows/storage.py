"""Storage: one way to list, read and write files, whether they lie in a folder or in S3."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ducklake_flows.errors import StorageError

if TYPE_CHECKING:
    from minio import Minio
    from pyarrow.fs import FileInfo, FileSystem

    from ducklake_flows.settings import Settings

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
"""How long an object store may take to answer, before it is asked again."""

SYNCS = 16
"""Files brought to the disk at once: it writes many together nearly as fast as one."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that was listed.

    Args:
        path: As the storage's filesystem spells it.
        size: Bytes.
        mtime_ns: When it was last written, in nanoseconds since 1970; None where the store does not say.
    """

    path: str
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Storage:
    """A base folder or S3 prefix.

    A folder is listed without Arrow, whose import is a quarter of the time that `lake plan` takes.

    Args:
        base: The base path as the filesystem spells it, no slash at the end.
        url: The base as DuckDB spells it, with a slash at the end.
        settings: Whose S3 endpoint and credentials are used.
    """

    base: str
    url: str
    settings: Settings

    @property
    def is_local(self) -> bool:
        """Whether the base is a folder of this machine."""
        return not self.url.startswith("s3://")

    @cached_property
    def fs(self) -> FileSystem:
        """The Arrow filesystem."""
        from pyarrow.fs import LocalFileSystem, S3FileSystem

        if self.is_local:
            return LocalFileSystem()
        settings = self.settings
        return S3FileSystem(
            access_key=settings.s3_key_id.get_secret_value() if settings.s3_key_id else None,
            secret_key=settings.s3_secret.get_secret_value() if settings.s3_secret else None,
            endpoint_override=settings.s3_endpoint,
            region=settings.s3_region,
            scheme="https" if settings.s3_use_ssl else "http",
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
        )

    def path(self, relative: str) -> str:
        """The filesystem's spelling of a path under the base."""
        return f"{self.base}/{relative}"

    def list(self, folder: str = "") -> list[File]:
        """All files under a folder of the base, recursively; an empty list when it does not exist.

        Raises:
            StorageError: the folder or bucket cannot be listed; or it is the landing zone, and is not there.
        """
        where = self.path(folder).rstrip("/")
        try:
            found = _walk(where) if self.is_local else _selected(self.fs, where)
        except OSError as error:
            raise self._fault(f"{self.url}{folder}", "listed", error) from None
        if not found:
            self._check_landing()
        return found

    def find(self, relative: str) -> File | None:
        """The file at one path under the base, None when there is none.

        Raises:
            StorageError: it cannot be looked for; or the base is the landing zone, and is not there.
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
        """A data path that nothing was written to yet is not there; a landing zone that is not there is a mistake."""
        if self.url != self.settings.landing:
            return
        if not self.is_local:
            check(self.settings)
        elif not Path(self.base).is_dir():
            raise StorageError(
                f"The landing zone is not there: {self.base} is no folder.", "make it, or set LAKE_LANDING"
            )

    def _fault(self, url: str, done: str, error: OSError) -> StorageError:
        cause = self.settings.redact(" ".join(str(error.strerror or error).split()))[:300]
        if self.is_local:
            return StorageError(f"{error.filename or url} cannot be {done}: {cause}", "check the folder and its rights")
        return StorageError(
            f"{url} at {_endpoint(self.settings)} cannot be {done}: {cause}", "check it and LAKE_S3_*, then: lake init"
        )

    @cached_property
    def _client(self) -> Minio:
        return _client(self.settings, retries=5)

    def relative(self, path: str) -> str:
        """A listed path, from the base on."""
        return path.removeprefix(self.base + "/")

    def sync(self, paths: Sequence[str]) -> None:
        """Bring stored files and their names to the disk: what is committed later is not lost by a power cut.

        An object store does so by itself.

        Args:
            paths: From the base on.

        Raises:
            OSError: one of them cannot be.
        """
        if not self.is_local or not paths:
            return
        base = Path(self.base)
        folders = {folder for path in paths for folder in (base / path).parents if folder.is_relative_to(base.parent)}
        with ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, map(self.path, paths)))
            list(pool.map(_sync, map(str, folders)))

    def put(self, local: Path, relative: str) -> None:
        """Store a finished local file under a name that no reader can see half-written.

        Raises:
            OSError: the folder or bucket cannot be written; nothing is left under the name.
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
        # Not through Arrow: it sends parts without their length, which not every S3 takes (rclone answers 411).
        bucket, _, key = self.path(relative).partition("/")
        self._client.fput_object(bucket, key, str(local), content_type="application/octet-stream")


def _sync(path: str) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(settings: Settings, *, create: bool = False) -> list[str]:
    """Make sure of the buckets before any work starts. A data path's folder is made when it is written.

    Args:
        settings: Where data and landing zone lie.
        create: Make a bucket that is not there, and the landing zone's folder.

    Returns:
        What was made.

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
            f"The landing zone cannot be made: {error.strerror or error} ({folder})",
            "set LAKE_HOME or LAKE_LANDING to a folder that can be written",
        ) from None


def _has_bucket(settings: Settings, bucket: str, create: bool) -> bool:
    """Whether a bucket was there, and may be listed; made now if it was not and shall be."""
    from minio.error import MinioException, S3Error
    from urllib3.exceptions import HTTPError

    client = _client(settings, retries=2)
    try:
        if client.bucket_exists(bucket):
            next(iter(client.list_objects(bucket)), None)
            return True
        if create:
            client.make_bucket(bucket)
        return False
    except S3Error as error:
        raise StorageError(
            f"S3 at {_endpoint(settings)} refuses access to the bucket {bucket!r}: {error.code}",
            "check LAKE_S3_KEY_ID, LAKE_S3_SECRET, LAKE_S3_REGION and what they may do",
        ) from None
    except (MinioException, HTTPError) as error:
        cause = " ".join(settings.redact(str(error)).split()).rpartition("Caused by ")[2][:200]
        raise StorageError(
            f"S3 at {_endpoint(settings)} does not answer as S3 does: {cause}",
            "start it, or check LAKE_S3_ENDPOINT and LAKE_S3_USE_SSL",
        ) from None


def _client(settings: Settings, retries: int) -> Minio:
    """A client of the object store that gives up: an answer within a minute, some retries with backoff."""
    import urllib3
    from minio import Minio

    assert settings.s3_key_id and settings.s3_secret  # noqa: S101 - the settings' own rule
    return Minio(
        _endpoint(settings),
        settings.s3_key_id.get_secret_value(),
        settings.s3_secret.get_secret_value(),
        secure=settings.s3_use_ssl,
        region=settings.s3_region,
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            retries=urllib3.Retry(retries, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        ),
    )


def _endpoint(settings: Settings) -> str:
    return settings.s3_endpoint or f"s3.{settings.s3_region}.amazonaws.com"


def open_storage(url: str, settings: Settings) -> Storage:
    """Open the folder or S3 prefix at ``url``.

    Args:
        url: An absolute folder or ``s3://bucket/prefix``.
        settings: Where the S3 endpoint and its credentials come from.
    """
    base = url.rstrip("/")
    return Storage(base.removeprefix("s3://"), base + "/", settings)


def _selected(fs: FileSystem, folder: str) -> list[File]:
    """Every file below a prefix."""
    from pyarrow.fs import FileSelector

    infos = fs.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
    return [_object(info) for info in infos if info.is_file]


def _listed(client: Minio, path: str) -> File | None:
    """One object of S3, by a listing: a HEAD may round its time otherwise, and a version must not depend on that.

    Raises:
        OSError: the bucket cannot be listed.
    """
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    bucket, _, key = path.partition("/")
    try:
        first = next(iter(client.list_objects(bucket, prefix=key)), None)  # the shortest key with this prefix
    except (MinioException, HTTPError) as error:
        raise OSError(str(error)) from None
    if first is None or first.object_name != key or first.last_modified is None:
        return None
    return File(path, first.size or 0, int(first.last_modified.timestamp()) * 10**9)


def _object(info: FileInfo) -> File:
    """An object of S3. Its time is in whole seconds, as in `_listed`."""
    return File(info.path, info.size, info.mtime_ns // 10**9 * 10**9)


def _walk(folder: str, above: tuple[Path, ...] = ()) -> list[File]:
    """Every file below a folder. What goes away meanwhile is left out, as maintenance may be at work.

    Args:
        folder: The folder.
        above: The folders in which a link on the way to this one lies.

    Raises:
        OSError: a folder cannot be read, or a symbolic link leads back to a folder above it.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink() and entry.is_dir():
                    target, here = Path(entry.path).resolve(), (*above, Path(folder).resolve())
                    if any(place.is_relative_to(target) for place in here):
                        raise OSError(errno.ELOOP, "this link leads back to a folder above it", entry.path)
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
