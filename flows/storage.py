"""Storage: one way to list, read and write files, whether they lie in a folder or in S3."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

    from flows.settings import Settings


@dataclass(frozen=True)
class Storage:
    """A base folder or S3 prefix.

    Args:
        fs: The Arrow filesystem.
        base: The base path as the filesystem spells it, no slash at the end.
        url: The base as DuckDB spells it, with a slash at the end.
    """

    fs: FileSystem
    base: str
    url: str

    @property
    def is_local(self) -> bool:
        """Whether the base is a folder of this machine."""
        return not self.url.startswith("s3://")

    def path(self, relative: str) -> str:
        """The filesystem's spelling of a path under the base."""
        return f"{self.base}/{relative}"

    def list(self, folder: str = "") -> list[FileInfo]:
        """All files under a folder of the base, recursively; an empty list when it does not exist."""
        from pyarrow.fs import FileSelector, FileType

        where = self.path(folder).rstrip("/")
        infos = self.fs.get_file_info(FileSelector(where, recursive=True, allow_not_found=True))
        return [i for i in infos if i.type == FileType.File]

    def info(self, relative: str) -> FileInfo:
        """What is known of one path under the base; its ``is_file`` is False when it is not there."""
        return self.fs.get_file_info(self.path(relative))

    def relative(self, path: str) -> str:
        """A listed path, from the base on."""
        return path.removeprefix(self.base + "/")

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
        with local.open("rb") as source, self.fs.open_output_stream(self.path(relative)) as sink:
            shutil.copyfileobj(source, sink, 8 << 20)


def open_storage(url: str, settings: Settings) -> Storage:
    """Open the folder or S3 prefix at ``url``.

    Args:
        url: An absolute folder or ``s3://bucket/prefix``.
        settings: Where the S3 endpoint and its credentials come from.
    """
    base = url.rstrip("/")
    if not url.startswith("s3://"):
        from pyarrow.fs import LocalFileSystem

        return Storage(LocalFileSystem(), base, base + "/")
    from pyarrow.fs import S3FileSystem

    fs = S3FileSystem(
        access_key=settings.s3_key_id.get_secret_value() if settings.s3_key_id else None,
        secret_key=settings.s3_secret.get_secret_value() if settings.s3_secret else None,
        endpoint_override=settings.s3_endpoint,
        region=settings.s3_region,
        scheme="https" if settings.s3_use_ssl else "http",
        connect_timeout=10,
        request_timeout=60,
    )
    return Storage(fs, base.removeprefix("s3://"), base + "/")
