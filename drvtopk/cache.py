"""Compiled kernels on disk: key -> bytes. Many processes may share a folder; a torn or foreign file is a miss."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from drvtopk import forks
from drvtopk.errors import CacheWarning

CACHE_VARIABLE = "DRVTOPK_CACHE"
_MAGIC = b"drvtopk2"
_LOCK_SECONDS = 300  # the longest wait for another process, which may have been stopped
_FRAME_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """A file in an existing folder, whole or not at all: no reader sees a part. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def key(fields: Iterable[bytes]) -> str:
    """SHA-256 over the fields, each framed by its length, so that no two lists of fields share a key by accident."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.hexdigest()


def default_folder() -> Path | None:
    """DRVTOPK_CACHE, else the user's cache folder; None for a user who has no home."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has relative paths ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "drvtopk"
    except RuntimeError:
        return None


def _frame(name: str, payload: bytes) -> bytes:
    """What stands before a payload on disk. The digest is over the key too: a renamed entry is a foreign one."""
    return _MAGIC + hashlib.sha256(name.encode() + b"\0" + payload).digest()


class Cache:
    """A folder of entries, and what this process has put into it. `folder` None: memory only. Thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, bytes] = {}
        self._lock = forks.lock()
        self._warned = False

    def get(self, name: str) -> bytes | None:
        """The bytes under a key, or None if they were never put, or not whole."""
        with self._lock:
            found = self._memory.get(name)
        if found is not None or self.folder is None:
            return found
        try:
            framed = (self.folder / name).read_bytes()
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
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, _frame(name, payload) + payload)
        except OSError as error:
            with self._lock:
                warn, self._warned = not self._warned, True
            if warn:
                warnings.warn(
                    f"compiled kernels are kept in memory only: {self.folder} cannot be written ({error})",
                    CacheWarning,
                    stacklevel=2,
                )

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
        return self.folder / f".lock-{name}"

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
            self.folder.mkdir(parents=True, exist_ok=True)
            while time.monotonic() < until:
                handle = os.open(self._lock_file(name), os.O_RDWR | os.O_CREAT, 0o600)
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

    def writable(self) -> bool:
        """Whether an entry could be written now. Creates the folder if it may."""
        if self.folder is None:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".new-"):
                return True
        except OSError:
            return False
