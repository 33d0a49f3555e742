"""The cache: keys that differ, files that are whole or a miss, folders that many processes share or none can write."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvtopk import cache as caching
from drvtopk.cache import Cache, default_folder
from drvtopk.errors import CacheWarning

NAME = caching.key([b"a name"])
PAYLOAD = bytes(range(256)) * 40


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@given(st.lists(st.binary(max_size=4)), st.lists(st.binary(max_size=4)))
def test_only_the_same_fields_have_the_same_key(one: list[bytes], other: list[bytes]) -> None:
    assert (caching.key(one) == caching.key(other)) == (one == other)


def test_where_one_field_ends_is_part_of_the_key() -> None:
    assert len({caching.key(f) for f in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"])}) == 5


def test_what_one_process_puts_another_gets(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet" / "there"
    assert Cache(folder).get(NAME) is None
    Cache(folder).put(NAME, PAYLOAD)
    assert Cache(folder).get(NAME) == PAYLOAD
    assert files(folder) == [NAME]


def test_without_a_folder_it_lives_in_memory() -> None:
    cache = Cache(None)
    assert cache.get(NAME) is None
    cache.put(NAME, PAYLOAD)
    assert cache.get(NAME) == PAYLOAD
    assert not cache.writable()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "cut in the frame": lambda whole: whole[:20],
    "frame only": lambda whole: whole[:40],
    "cut by one byte": lambda whole: whole[:-1],
    "one byte more": lambda whole: whole + b"\0",
    "zeros at the end": lambda whole: whole[:-100] + bytes(100),
    "another bit in the frame": lambda whole: flipped(whole, 12),
    "another bit in the payload": lambda whole: flipped(whole, 99),
    "a file of someone else": lambda whole: b"\x7fELF" + PAYLOAD,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_or_foreign_file_is_a_miss_and_is_replaced(tmp_path: Path, damage: str) -> None:
    Cache(tmp_path).put(NAME, PAYLOAD)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(DAMAGES[damage](whole))
    cache = Cache(tmp_path)
    assert cache.get(NAME) is None
    cache.put(NAME, PAYLOAD)
    assert Cache(tmp_path).get(NAME) == PAYLOAD
    assert (tmp_path / NAME).read_bytes() == whole


def test_an_entry_under_another_name_is_a_miss(tmp_path: Path) -> None:
    Cache(tmp_path).put(NAME, PAYLOAD)
    other = caching.key([b"another name"])
    (tmp_path / NAME).rename(tmp_path / other)
    assert Cache(tmp_path).get(other) is None


def test_a_folder_that_cannot_be_written_warns_once_and_memory_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # under a plain file nobody can make a folder, not even root
    cache = Cache(tmp_path / "file" / "cache")
    assert not cache.writable()
    with pytest.warns(CacheWarning, match="file") as seen:
        cache.put(NAME, PAYLOAD)
        cache.put(caching.key([b"more"]), b"more")
    assert len(seen) == 1
    assert Path(seen[0].filename).name == Path(__file__).name
    assert cache.get(NAME) == PAYLOAD
    assert cache.get(caching.key([b"more"])) == b"more"


def test_a_write_that_fails_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = Cache(tmp_path)
    with pytest.warns(CacheWarning, match="No space left"):
        cache.put(NAME, PAYLOAD)
    assert files(tmp_path) == []
    assert cache.get(NAME) == PAYLOAD


def test_the_bytes_are_on_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []
    really = os.fsync

    def fsync(handle: int) -> None:
        seen.append(((tmp_path / NAME).exists(), os.fstat(handle).st_size))
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    Cache(tmp_path).put(NAME, PAYLOAD)
    assert seen == [(False, (tmp_path / NAME).stat().st_size)]


def entry(number: int) -> bytes:
    return number.to_bytes(4, "little") * 20_000


def put_and_get(folder: str, start: object, results: object) -> None:
    """One of several processes that write and read the same few entries; counts what it read torn."""
    torn = 0
    start.wait()  # type: ignore[attr-defined]
    for turn in range(40):
        number = turn % 4
        name = caching.key([number.to_bytes(1, "little")])
        found = Cache(Path(folder)).get(name)
        torn += found is not None and found != entry(number)
        Cache(Path(folder)).put(name, entry(number))
        torn += Cache(Path(folder)).get(name) != entry(number)
    results.put(torn)  # type: ignore[attr-defined]


def test_processes_that_write_the_same_entries_never_read_a_part(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(3), spawn.Queue()
    running = [spawn.Process(target=put_and_get, args=(str(tmp_path), start, results)) for _ in range(3)]
    for process in running:
        process.start()
    assert [results.get(timeout=60) for _ in running] == [0, 0, 0]
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert files(tmp_path) == sorted(caching.key([bytes([n])]) for n in range(4))


# -- one at a time -----------------------------------------------------------------------------------------------------


class Enough(Exception):
    """It would have waited."""


def never_wait() -> None:
    raise Enough


def is_free(folder: Path) -> bool:
    try:
        with Cache(folder).alone(NAME, never_wait):
            return True
    except Enough:
        return False


def test_who_has_a_key_is_alone_with_it_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with Cache(folder).alone(NAME, never_wait):
        assert not is_free(folder), "a thread of this process waits too"
        with Cache(folder).alone(caching.key([b"another"]), never_wait):
            pass
        Cache(folder).put(NAME, PAYLOAD)
    assert is_free(folder)
    with pytest.raises(ValueError, match="it"), Cache(folder).alone(NAME, never_wait):
        raise ValueError("it")
    assert is_free(folder) and files(folder) == [NAME]


def test_a_file_that_was_removed_while_one_waited_is_no_lock(tmp_path: Path) -> None:
    first, second = Cache(tmp_path), Cache(tmp_path)
    seen: list[str] = []
    with contextlib.ExitStack() as held:
        held.enter_context(first.alone(NAME, never_wait))

        def pause() -> None:
            seen.append("waits")
            held.close()

        with second.alone(NAME, pause):
            assert seen == ["waits"] and not is_free(tmp_path)
    assert files(tmp_path) == []


def test_a_file_that_was_removed_before_it_was_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    lock, seen = fcntl.flock, 0

    def flock(handle: int, operation: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            (tmp_path / f".lock-{NAME}").unlink()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Cache(tmp_path).alone(NAME, lambda: None):
        assert seen == 2 and files(tmp_path) == [f".lock-{NAME}"] and not is_free(tmp_path)


HOLDS = """
import sys, time
from pathlib import Path
from drvtopk.cache import Cache
with Cache(Path(sys.argv[1])).alone(sys.argv[2], time.sleep):
    print("held", flush=True)
    time.sleep(100)
"""


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path), NAME], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert not is_free(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert is_free(tmp_path) and files(tmp_path) == [], "its file is taken over, and then removed"


def test_where_there_are_no_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(caching, "_LOCK_SECONDS", 0.2)
    for folder in (None, tmp_path / "file" / "cache"):
        with Cache(folder).alone(NAME, never_wait), Cache(folder).alone(NAME, never_wait):
            pass
    with Cache(tmp_path).alone(NAME, never_wait), Cache(tmp_path).alone(NAME, lambda: time.sleep(0.01)):
        pass  # the other took too long
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        assert is_free(tmp_path)

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with Cache(tmp_path).alone(NAME, never_wait), Cache(tmp_path).alone(NAME, never_wait):
        pass


def test_the_folder_is_the_one_named_else_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DRVTOPK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / "home" / ".cache" / "drvtopk"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / "home" / ".cache" / "drvtopk"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "drvtopk"
    monkeypatch.setenv("DRVTOPK_CACHE", str(tmp_path / "named"))
    assert default_folder() == tmp_path / "named"


def test_a_user_without_a_home_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DRVTOPK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_folder() is None


def test_a_folder_that_can_be_written_does_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = Cache(tmp_path / "new")
        assert cache.writable()
        cache.put(NAME, PAYLOAD)
    assert files(tmp_path / "new") == [NAME]
