"""What every step checks about files: inputs that exist, a disk that suffices, outputs written whole or not at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MissingInput(FileNotFoundError):
    """A file that another notebook makes is not there; the message names the notebook."""


class DiskFull(OSError):
    """The disk filled up while it was written to; the message says what is safe."""


@contextmanager
def naming_full_disk(message: str) -> Iterator[None]:
    """Within this context an error of the disk or of a quota having no room left becomes `DiskFull` with that message."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(message) from error


def replace_durably(path: Path, target: Path) -> None:
    """Rename, and have the folder's entry on the disk before going on."""
    os.replace(path, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require(path: Path, notebook: str) -> Path:
    """`path` itself, if it exists.

    Raises:
        MissingInput: it does not; the message names the notebook that makes it.
    """
    if not Path(path).exists():
        raise MissingInput(
            f"{path} is missing: run notebooks/{notebook}.ipynb first, with the same parameters"
        )
    return Path(path)


def require_disk(folder: Path, needed: int, purpose: str) -> None:
    """Refuse, before it starts, work that would fill the disk.

    Raises:
        OSError: fewer than `needed` bytes are free at `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{purpose} needs {needed / 1e9:.2f} GB at {folder}, where {free / 1e9:.2f} GB are free: "
            "free some space, or point MMLIB_DATA to another disk"
        )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it takes the name `path` only when the block ends without an error, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a run that was killed
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
