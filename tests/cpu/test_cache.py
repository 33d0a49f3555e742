"""The cache: keys that differ, files that are whole or a miss, folders that many processes share or none can write."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvtopk import cache as caching
from drvtopk.__main__ import main
from drvtopk.cache import Cache, default_folder
from drvtopk.errors import CacheWarning, InvalidArgument

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


# -- who can have written it -------------------------------------------------------------------------------------------


def foreign(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the file belong to another user than this process's."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    Cache(folder).put(NAME, PAYLOAD)
    return folder


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o770, 0o757, 0o702])
def test_a_folder_that_others_can_write_to_is_not_trusted(filled: Path, mode: int) -> None:
    filled.chmod(mode)
    cache = Cache(filled)
    with pytest.warns(CacheWarning, match=f"others can write to {filled} .mode {mode:o}.: chmod go-w") as seen:
        assert cache.get(NAME) is None
        assert cache.get(NAME) is None
        cache.put(NAME, b"new")
    assert len(seen) == 1 and Path(seen[0].filename).name == Path(__file__).name
    assert cache.get(NAME) == b"new" and not cache.writable()
    with cache.alone(NAME, never_wait), cache.alone(NAME, never_wait):
        pass  # another user could keep the lock
    assert files(filled) == [NAME]
    filled.chmod(0o700)
    assert Cache(filled).get(NAME) == PAYLOAD, "nothing was written there"


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_an_entry_that_others_can_write_to_is_not_trusted(filled: Path, mode: int) -> None:
    (filled / NAME).chmod(mode)
    with pytest.warns(CacheWarning, match="others can write to"):
        assert Cache(filled).get(NAME) is None
    Cache(filled).put(NAME, PAYLOAD)
    assert Cache(filled).get(NAME) == PAYLOAD


@pytest.mark.parametrize("what", ["folder", "entry"])
def test_what_belongs_to_another_user_is_not_trusted(filled: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(filled if what == "folder" else filled / NAME, monkeypatch)
    with pytest.warns(CacheWarning, match="belongs to another user"):
        assert Cache(filled).get(NAME) is None


def test_what_is_opened_counts_and_not_what_has_the_name(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "planted").write_bytes((filled / NAME).read_bytes())
    (tmp_path / "planted").chmod(0o666)
    (filled / NAME).unlink()
    (filled / NAME).symlink_to(tmp_path / "planted")
    with pytest.warns(CacheWarning, match="others can write"):
        assert Cache(filled).get(NAME) is None


def test_our_own_folder_in_one_of_everybody_is_trusted(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    before = os.umask(0)
    try:
        Cache(tmp_path / "ours").put(NAME, PAYLOAD)
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to("ours")
    for folder in ("ours", "link"):
        assert Cache(tmp_path / folder).get(NAME) == PAYLOAD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of root's")
def test_roots_folder_is_fine_to_read(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.chmod(0o755)
    (filled / NAME).chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert Cache(filled).get(NAME) == PAYLOAD


def test_a_home_in_the_name_of_the_folder_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for named, folder in (("~", tmp_path), ("~/a/~", tmp_path / "a" / "~"), ("/~", Path("/~"))):
        monkeypatch.setenv("DRVTOPK_CACHE", named)
        assert default_folder() == folder
    monkeypatch.setenv("DRVTOPK_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(InvalidArgument, match="DRVTOPK_CACHE: got '~nobody-of-this-name/cache', allowed is a folder"):
        default_folder()


# -- what is left over -------------------------------------------------------------------------------------------------


def test_files_of_killed_writers_are_swept_when_something_is_written(filled: Path) -> None:
    hour = 3600
    for name, age in ((".new-old", 2 * hour), (".new-young", hour / 2), ("other", 99 * hour), (".lock-old", 99 * hour)):
        (filled / name).write_bytes(b"")
        os.utime(filled / name, (time.time() - age,) * 2)
    (filled / ".new-folder").mkdir()
    os.utime(filled / ".new-folder", (0, 0))
    assert Cache(filled).get(NAME) == PAYLOAD and ".new-old" in files(filled)
    Cache(filled).put(NAME, PAYLOAD)
    assert set(files(filled)) == {".new-young", ".new-folder", "other", ".lock-old", NAME}


def test_the_command_lists_and_clears(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRVTOPK_CACHE", str(filled))
    torn, other = "0" * 64, "1" * 64
    Cache(filled).put(torn, PAYLOAD)
    (filled / torn).write_bytes((filled / torn).read_bytes()[:-1])
    kept = {other: b"of another program", "notes": b"drvtopk2", "x" * 64: b"drvtopk2"}
    for name, data in kept.items():
        (filled / name).write_bytes(data)
    os.mkfifo(filled / ("2" * 64))
    (filled / f".lock-{other}").write_bytes(b"")

    def document(what: str) -> dict[str, Any]:
        assert main(["cache", what, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["folder"] == str(filled)
        return dict(found)

    listed = {entry["name"]: entry for entry in document("--list")["entries"]}
    assert {name for name, entry in listed.items() if entry["usable"]} == {NAME}
    assert listed[NAME]["bytes"] == (filled / NAME).stat().st_size
    assert abs(listed[NAME]["modified"] - time.time()) < 100
    assert main(["cache", "--list"]) == 0
    shown = capsys.readouterr().out
    assert NAME in shown and f"{len(listed)} entries" in shown
    with Cache(filled).alone(NAME, never_wait):
        assert document("--clear")["removed"] == 2
        assert f".lock-{NAME}" in files(filled), "somebody has it"
    assert set(files(filled)) == {*kept, "2" * 64}
    assert main(["cache", "--clear"]) == 0
    assert "0 entries removed" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["nothing", "a file"])
def test_a_cache_that_is_not_there_is_empty(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv("DRVTOPK_CACHE", str(tmp_path / folder))
    assert main(["cache", "--list", "--json"]) == main(["cache", "--clear"]) == 0
    assert main(["cache"]) == main(["cache", "--list", "--clear"]) == 2
    assert not (tmp_path / "nothing").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_the_commands_say_why_a_cache_is_not_used(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.chmod(0o777)
    monkeypatch.setenv("DRVTOPK_CACHE", str(filled))
    assert main(["cache", "--list"]) == 0
    assert f"none is used: others can write to {filled} (mode 777)" in capsys.readouterr().out
    main(["doctor"])
    assert f"(kernels stay in memory only: others can write to {filled} (mode 777)" in capsys.readouterr().out
