"""Compiled kernels on disk: key -> bytes. Many processes may share a folder; a torn or foreign file is a miss.

What is in the folder is loaded into this process's GPU context, so it counts only where nobody but this user and root
can have written it: the owner and the mode of the opened folder and of the opened file say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drvtopk import files, forks
from drvtopk.errors import CacheWarning, InvalidArgument

CACHE_VARIABLE = "DRVTOPK_CACHE"
_MAGIC = b"drvtopk2"
_LOCK_SECONDS = 300  # the longest wait for another process, which may have been stopped
_MOST_BYTES = 1 << 28  # of an entry
_ENTRY = re.compile("[0-9a-f]{64}")
_LOCK = ".lock-"
_UNFINISHED = re.compile(re.escape(files.TEMPORARY) + ".*")  # of any version: the folder is this package's own
_FRAME_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of the folder."""

    name: str
    bytes: int
    modified: float
    """Seconds since 1970."""
    usable: bool
    """Whether it is whole, and would be loaded."""


class Untrusted(OSError):
    """A file or a folder that somebody else can have written; the text says who and how."""


def _check_trust(what: str, status: os.stat_result) -> None:
    """Untrusted unless this user, or root, owns it and nobody else can write to it."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise Untrusted(f"{what} belongs to another user ({status.st_uid})")
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise Untrusted(f"others can write to {what} (mode {mode:o}): chmod go-w, and python -m drvtopk cache --clear")


def key(fields: Iterable[bytes]) -> str:
    """SHA-256 over the fields, each framed by its length, so that no two lists of fields share a key by accident."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.hexdigest()


def default_folder() -> Path | None:
    """DRVTOPK_CACHE, else the user's cache folder; None for a user who has no home.

    Raises InvalidArgument for a DRVTOPK_CACHE in the home of a user who has none.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            raise InvalidArgument(CACHE_VARIABLE, repr(named), "a folder; ~ of a user who has a home") from error
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has relative paths ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "drvtopk"
    except RuntimeError:
        return None


def _frame(name: str, payload: bytes) -> bytes:
    """What stands before a payload on disk. The digest is over the key too: a renamed entry is a foreign one."""
    return _MAGIC + hashlib.sha256(name.encode() + b"\0" + payload).digest()


def _give_up() -> None:
    """Instead of waiting for a lock."""
    raise OSError


class Cache:
    """A folder of entries, and what this process has put into it. `folder` None: memory only. Thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, bytes] = {}
        self._lock = forks.lock()
        self._warned = False

    def get(self, name: str) -> bytes | None:
        """The bytes under a key, or None if they were never put, are not whole, or may be somebody else's."""
        with self._lock:
            found = self._memory.get(name)
        if found is not None or self.folder is None:
            return found
        try:
            framed = self._read(name)
        except Untrusted as error:
            self._warn(f"compiled kernels on disk are passed over: {error}")
            return None
        except OSError:
            return None
        payload = framed[_FRAME_BYTES:]
        if framed[:_FRAME_BYTES] != _frame(name, payload):
            return None
        with self._lock:
            self._memory[name] = payload
        return payload

    def put(self, name: str, payload: bytes) -> None:
        """Keeps the bytes, on disk too where that can be."""
        with self._lock:
            self._memory[name] = payload
        if self.folder is None:
            return
        try:
            with self._trusted(make=True):
                files.sweep(self.folder, _UNFINISHED)
                files.write_whole(self.folder / name, _frame(name, payload) + payload)
        except Untrusted as error:
            self._warn(f"compiled kernels are kept in memory only: {error}")
        except OSError as error:
            self._warn(f"compiled kernels are kept in memory only: {self.folder} cannot be written ({error})")

    def _warn(self, text: str) -> None:
        """Once, as of the caller of `get` or `put`."""
        with self._lock:
            warn, self._warned = not self._warned, True
        if warn:
            warnings.warn(text, CacheWarning, stacklevel=3)

    @contextlib.contextmanager
    def _trusted(self, *, make: bool = False) -> Iterator[int]:
        """The open folder; `make` creates it, for this user alone. Raises Untrusted, and OSError if it is not there."""
        assert self.folder is not None  # a type fact: it was asked before
        if make:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            _check_trust(str(self.folder), os.fstat(handle))
            yield handle
        finally:
            os.close(handle)

    def _read(self, name: str) -> bytes:
        """The file of an entry. Raises Untrusted, and OSError for what is no file."""
        assert self.folder is not None
        with self._trusted() as folder, files.open_regular(name, folder=folder) as file:
            _check_trust(str(self.folder / name), os.fstat(file.fileno()))
            return files.read_open(file, _MOST_BYTES)

    @contextlib.contextmanager
    def alone(self, name: str, pause: Callable[[], None]) -> Iterator[None]:
        """One at a time for each key, of all processes that share the folder: who waited finds the entry of the other.

        `pause` is called between two looks. The system releases the lock of a process that ends. Where there are no
        locks, or the folder cannot be written, or the other takes more than five minutes, nobody is waited for.
        """
        handle = self._locked(name, pause)
        try:
            yield
        finally:
            if handle is not None:
                with contextlib.suppress(OSError):
                    self._lock_file(name).unlink()  # before it is free: nobody else can have it by its name
                os.close(handle)

    def _lock_file(self, name: str) -> Path:
        assert self.folder is not None  # a type fact: it was asked before
        return self.folder / f"{_LOCK}{name}"

    def _locked(self, name: str, pause: Callable[[], None]) -> int | None:
        """The open and locked file of a key; None where there is none to lock."""
        if self.folder is None:
            return None
        try:
            import fcntl
        except ImportError:
            return None
        until = time.monotonic() + _LOCK_SECONDS
        try:
            with self._trusted(make=True):
                pass  # where others can write, they could keep a lock for ever
            while time.monotonic() < until:
                handle = os.open(self._lock_file(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
                with contextlib.ExitStack() as unlocked:
                    unlocked.callback(os.close, handle)
                    with contextlib.suppress(BlockingIOError, FileNotFoundError):
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        if os.path.samestat(os.fstat(handle), self._lock_file(name).stat()):
                            unlocked.pop_all()
                            return handle
                    pause()  # somebody has it, or has just removed it
        except OSError:
            pass
        return None

    def fault(self) -> str | None:
        """Why no entry could be written now; None if one could. Creates the folder if it may."""
        if self.folder is None:
            return "there is no folder for it"
        try:
            with self._trusted(make=True):
                return files.folder_fault(self.folder)
        except OSError as error:
            return str(error)

    def distrust(self) -> str | None:
        """Who else can have written the folder, and how; None if nobody."""
        if self.folder is not None:
            try:
                with self._trusted():
                    pass
            except Untrusted as error:
                return str(error)
            except OSError:  # it is not there
                pass
        return None

    def writable(self) -> bool:
        """Whether an entry could be written now. Creates the folder if it may."""
        return self.fault() is None

    def entries(self) -> list[Entry]:
        """What is in the folder, the newest first. Raises OSError for a folder that cannot be read."""
        found = []
        for name in self._names(_ENTRY):
            assert self.folder is not None
            with contextlib.suppress(OSError):  # removed meanwhile
                status = (self.folder / name).lstat()
                try:
                    framed = self._read(name)
                except OSError:
                    usable = False
                else:
                    usable = framed[:_FRAME_BYTES] == _frame(name, framed[_FRAME_BYTES:])
                found.append(Entry(name=name, bytes=status.st_size, modified=status.st_mtime, usable=usable))
        return sorted(found, key=lambda entry: (-entry.modified, entry.name))

    def clear(self) -> tuple[int, int]:
        """Removes every entry, and what killed processes left: (entries, bytes). A file of another kind stays, whatever
        its name. Raises OSError for what cannot be removed."""
        with self._lock:
            self._memory.clear()
        count = size = 0
        for name in self._names(_ENTRY):
            assert self.folder is not None
            path = self.folder / name
            with contextlib.suppress(FileNotFoundError):  # another process clears it too
                if self._is_entry(path):
                    size += path.lstat().st_size
                    path.unlink()
                    count += 1
        for name in self._names(re.compile(re.escape(_LOCK) + _ENTRY.pattern)):
            handle = self._locked(name.removeprefix(_LOCK), _give_up)
            if handle is not None:
                with contextlib.suppress(OSError):
                    self._lock_file(name.removeprefix(_LOCK)).unlink()
                os.close(handle)
        if self.folder is not None:
            files.sweep(self.folder, _UNFINISHED)
        return count, size

    def _names(self, pattern: re.Pattern[str]) -> list[str]:
        if self.folder is None:
            return []
        try:
            return sorted(path.name for path in self.folder.iterdir() if pattern.fullmatch(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _is_entry(self, path: Path) -> bool:
        """By its first bytes, of any version of this package."""
        try:
            with files.open_regular(path) as file:
                return file.read(7) == _MAGIC[:7]
        except FileNotFoundError:
            raise
        except OSError:
            return False
