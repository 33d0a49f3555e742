"""The one writer of files, whole or not at all, and the one reader, which waits for no pipe and opens no device."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".new-"
"""What the name of an unfinished file begins with."""
_UNFINISHED = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")  # so exact that it is nobody else's file
STALE_SECONDS = 3600
"""An unfinished file of this age has lost its writer."""

Content = bytes | Callable[[BinaryIO], object]
"""What a file shall hold, or what writes it to the open file."""

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """A file in an existing folder, whole or not at all: no reader sees a part. Raises OSError."""
    write_together({path: data}, mode=mode)


def write_together(contents: Mapping[Path, Content], *, mode: int | None = None) -> None:
    """Several files, which get their names only when all are on disk; what had a name before stays until then.

    No link is followed: what has the name is replaced. Without `mode` a file has that of the file which it replaces,
    else what the umask leaves. What killed writers left beside it is removed. Raises OSError, which names the file.
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    for folder in {path.parent for path in contents}:
        sweep(folder)
    try:
        for path, content in contents.items():
            temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
            handle = os.open(temporary, _CREATE, 0o666 if mode is None else mode)
            staged.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                _set_mode(temporary, path, mode)
                os.fsync(file.fileno())
        while staged:
            temporary, path = staged[0]
            _check_replaceable(path)
            temporary.replace(path)
            staged.pop(0)
    except BaseException as error:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):  # numpy's has neither number nor name
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
        raise


def _set_mode(temporary: Path, target: Path, mode: int | None) -> None:
    if mode is None:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(target.stat().st_mode)
    if mode is not None:
        temporary.chmod(mode)


def _check_replaceable(path: Path) -> None:
    """Raises OSError for a device, which a file would take the place of where the user is root."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise OSError(errno.EINVAL, "a device, and not a file", str(path))


def followed(path: Path) -> Path:
    """The name to write to so that a symbolic link stays one, and the file that it leads to is replaced."""
    return Path(os.path.realpath(path))


def sweep(folder: Path, names: re.Pattern[str] = _UNFINISHED) -> None:
    """Removes files that a killed writer left, by their names and their age."""
    with contextlib.suppress(OSError), os.scandir(folder) as listed:
        for entry in listed:
            if names.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode) and found.st_mtime < time.time() - STALE_SECONDS:
                        Path(entry.path).unlink()


def open_regular(path: str | Path, *, folder: int | None = None) -> BinaryIO:
    """A regular file, open for reading; `path` may be a name in an open `folder`. Raises OSError for anything else."""
    for_what = os.fspath(path)
    # Asked before too: to open some devices does something.
    if not stat.S_ISREG(os.stat(path, dir_fd=folder).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", for_what)
    handle = os.open(path, _READ, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", for_what)
    return os.fdopen(handle, "rb")


def read_open(file: BinaryIO, limit: int) -> bytes:
    """What an open file holds. Raises OSError if that is more than `limit` bytes."""
    if os.fstat(file.fileno()).st_size > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes")
    return file.read(limit)


def read_regular(path: Path, limit: int) -> bytes:
    """What a regular file of at most `limit` bytes holds. Raises OSError."""
    with open_regular(path) as file:
        return read_open(file, limit)


def folder_fault(folder: Path) -> str | None:
    """Why no file can be written in a folder; None if one can, which is tried."""
    probe = folder / (TEMPORARY + secrets.token_hex(8))
    try:
        os.close(os.open(probe, _CREATE, 0o600))
        probe.unlink()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def output_fault(path: Path) -> str | None:
    """What a name would have to be for `write_together` to write there; None if it is that."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            return "a file; this is a folder"
        if not stat.S_ISREG(found.st_mode):
            return "a regular file; this is a device, a pipe or a socket"
        if not os.access(path, os.W_OK):
            return "a file that may be written"
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        return "a file in a folder that exists"
    except (OSError, ValueError) as error:
        return f"a name that a file can have ({error})"
    folder = followed(path).parent
    if not folder.is_dir():
        return "a file in a folder that exists"
    fault = folder_fault(folder)
    return fault and f"a file in a folder that may be written ({fault})"


def is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file, by links too; of two files that are not there yet, whether they would be one
    where letter case or the composition of letters makes no difference."""
    first, second = _status(one), _status(other)
    if first is not None and second is not None:
        return os.path.samestat(first, second)
    if first is not None or second is not None:
        return False
    one, other = followed(one), followed(other)
    return one == other or (is_same_folder(one.parent, other.parent) and _folded(one.name) == _folded(other.name))


def is_same_folder(one: Path, other: Path) -> bool:
    first, second = _status(one), _status(other)
    return first is not None and second is not None and os.path.samestat(first, second)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
