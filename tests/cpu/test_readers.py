"""What reads files that anybody may have written: any bytes are an answer, one line, or a miss."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvtopk import compiler, records
from drvtopk.__main__ import main
from drvtopk.cache import Cache
from drvtopk.cli.arrays import load
from drvtopk.errors import CacheWarning, InvalidArgument
from drvtopk.export import export_kernels, manifest
from drvtopk.export.manifest import ManifestError
from drvtopk.export.prebuilt import Prebuilt, use_cubins
from drvtopk.spec import Options, Tuning, Variant, instantiations

pytestmark = [pytest.mark.usefixtures("tiny_kernels"), pytest.mark.timeout(60)]

ARCH = "sm_90a"
ONE = Variant(route="filtered", k=64, vec_size=4)
EXAMPLES = int(os.environ.get("DRVTOPK_FUZZ_EXAMPLES", "60"))  # of each test of anything; more for a long run
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)

# -- mutations ---------------------------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.sampled_from(["set", "cut", "insert", "double"]), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, edits: list[tuple[int, str, bytes]]) -> bytes:
    for place, kind, by in edits:
        at = place % (len(data) + 1)
        if kind == "set":
            data = data[:at] + by + data[at + len(by) :]
        elif kind == "cut":
            data = data[:at] + data[at + 7 * len(by) :] if place % 3 else data[:at]
        elif kind == "insert":
            data = data[:at] + by + data[at:]
        else:
            data = data[:at] + data[max(0, at - 9 * len(by)) :]
    return data


WORDS: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, 1e300, "", "x", "\0", "\ud800", [], {}, [[]], "../x"]
)
JSON = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner), max_leaves=4
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        found += places(inner, (*path, name))
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for name in path[:-1]:
        value = value[name]
    value[path[-1]] = new


# -- .npy --------------------------------------------------------------------------------------------------------------


def npy(header: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


def said(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


GOOD = npy(said("(2, 3)"), bytes(24))
BAD_NPY: dict[str, bytes] = {
    "nothing": b"",
    "a magic": b"\x93NUMPY",
    "no version": b"\x93NUMPY\x09\x00",
    "a length": b"\x93NUMPY\x01\x00\xff",
    "before the bracket": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3"),
    "an open string": npy("{'descr': '<f4"),
    "a longer header": npy(said("(2, 3)"))[:-10],
    "a bool in the shape": npy(said("(True, 5)"), bytes(20)),
    "a float in the shape": npy(said("(2.0, 5)"), bytes(40)),
    "a negative shape": npy(said("(-1, 5)"), bytes(40)),
    "no tuple": npy(said("[2, 3]"), bytes(24)),
    "one number": npy(said("6"), bytes(24)),
    "a huge shape": npy(said("(10**9, 10)")),
    "a huger shape": npy(said(f"({10**9}, {10**9})")),
    "beyond 64 bits": npy(said(f"({2**64}, 1)")),
    "nothing of beyond": npy(said(f"(0, {2**62})")),
    "many digits": npy(said(f"({'9' * 5000}, 1)")),
    "many dimensions": npy(said(f"({'1, ' * 100})"), bytes(4)),
    "a list as key": npy("{[]: 1}"),
    "a set": npy("{1, 2}"),
    "other keys": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}", bytes(24)),
    "fewer keys": npy("{'descr': '<f4', 'shape': (2, 3)}", bytes(24)),
    "brackets": npy("(" * 9000),
    "signs": npy("-" * 9000 + "1"),
    "a call": npy("__import__('os').system('false')"),
    "a nul": npy("{'descr'\0: 1}"),
    "an escape": npy(said("(2, 3)", r"'\d'"), bytes(24)),
    "bytes that are no text": npy(b"\xff\xfe\xff", version=3),
    "an object array": npy(said("(2, 3)", "'|O'"), bytes(48)),
    "records": npy(said("(2, 3)", "[('a', '<f4')]"), bytes(24)),
    "records by words": npy(said("(2, 3)", "'f4,f4'"), bytes(48)),
    "text": npy(said("(2, 3)", "'<U1'"), bytes(24)),
    "no bytes": npy(said("(2, 3)", "'|V0'")),
    "no dtype": npy(said("(2, 3)", "5"), bytes(24)),
    "no such dtype": npy(said("(2, 3)", "'<f3'"), bytes(24)),
    "an order": npy(said("(2, 3)", order="1"), bytes(24)),
    "a long header": npy(said("(2, 3)") + " " * 20_000, bytes(24)),
    "an endless header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "cut data": GOOD[:-1],
    "a pickle": b"\x80\x04N.",
    "an archive": b"PK\3\4",
}


@pytest.mark.parametrize("what", BAD_NPY)
def test_a_npy_file_that_is_none_is_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.npy").write_bytes(BAD_NPY[what])
    np.save(tmp_path / "good.npy", np.zeros((2, 3), np.float32))
    for argv in (["x.npy"], ["good.npy", "--lengths", str(tmp_path / "x.npy")]):
        assert main(["topk", str(tmp_path / argv[0]), *argv[1:], "--k", "2", "--out", str(tmp_path / "o.npy")]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and "allowed is a readable .npy file (" in shown.err
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "|V2", "<i8", "|u1", "|b1"])
def test_what_numpy_writes_is_what_is_read(version: int, order: str, dtype: str, tmp_path: Path) -> None:
    array = np.asarray(np.arange(48, dtype=np.uint8).reshape(2, 24).view(dtype), order=order)  # type: ignore[call-overload]
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, array, (version, 0))
    found = load("x", tmp_path / "x.npy")
    assert found.dtype == array.dtype.newbyteorder("=") and found.shape == array.shape
    assert found.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


def test_a_header_of_python_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(said("(2L, 3L)"), bytes(24)))
    assert load("x", tmp_path / "x.npy").shape == (2, 3)


@FUZZ
@given(edits=EDITS)
def test_any_bytes_of_a_npy_file_are_an_array_or_refused(tmp_path_factory: pytest.TempPathFactory, edits: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    path.write_bytes(mutated(GOOD, edits))
    with contextlib.suppress(InvalidArgument), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("x", path).size < 100


# -- the manifest ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, compiled_before: Cache, tiny_kernels: None) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_kernels(folder, {ARCH: [ONE], "sm_80": [ONE]}, cache=compiled_before)
    return folder


@pytest.fixture
def text(exported: Path) -> str:
    return (exported / "manifest.json").read_text()


def signed(document: Any) -> str:
    """With right digests, as if an export had written these fields."""
    with contextlib.suppress(TypeError, AttributeError, ValueError):
        for record in document["kernels"]:
            record["digest"] = records.digest(record)
    return json.dumps(document)


def refusal(folder: Path, text: str | bytes) -> str:
    """How a manifest is refused, by its reader, by `use_cubins` and by an export, with a miss."""
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError) as refused:
        manifest.read(folder)
    with pytest.warns(CacheWarning):
        assert Prebuilt([folder]).find(ONE, ARCH) is None
    with pytest.raises(InvalidArgument):
        use_cubins(folder)
    with pytest.raises(InvalidArgument):
        export_kernels(folder, {ARCH: [ONE]}, cache=Cache(None))
    assert "\n" not in str(refused.value)
    return str(refused.value)


BAD_TEXT: dict[str, Callable[[str], str | bytes]] = {
    "nothing": lambda text: "",
    "no text": lambda text: b"\xff\xfe\x00",
    "null": lambda text: "null",
    "a list": lambda text: "[]",
    "nested lists": lambda text: "[" * 100_000,
    "nested objects": lambda text: '{"a":' * 100_000,
    "nested in a record": lambda text: text.replace(
        '"entry":', '"more": ' + "[" * 100_000 + "]" * 100_000 + ', "entry":'
    ),
    "many digits": lambda text: text.replace('"format": 2', '"format": ' + "1" * 10_000),
    "infinity": lambda text: text.replace('"format": 2', '"format": 2, "nvrtc": [Infinity, 0], "x": NaN'),
    "a nan": lambda text: text.replace('"format": 2', '"format": NaN'),
}


@pytest.mark.parametrize("what", BAD_TEXT)
def test_a_manifest_that_is_none_is_refused(what: str, text: str, tmp_path: Path) -> None:
    assert "cannot be read (" in refusal(tmp_path, BAD_TEXT[what](text))


KERNEL = ("kernels", 0)
VARIANT = (*KERNEL, "variant")
BAD_VALUES: dict[tuple[Any, ...], tuple[Any, ...]] = {
    ("nvrtc",): ([1e999, 0], [12], [12, 9, 0], [True, 0], [12.5, 0], [-1, 0], ["12", "9"], "12", None),
    ("format",): (True, 1.0, "1", None, -1),
    ("sources",): (5, "ab", "AB" * 32, "ab" * 32 + "\n"),
    ("drvtopk",): (5, "", "a\nb", "a" * 100, "é"),
    ("parameters",): ([],),
    ("workspace_alignment",): (None, 0, 1.5, "128"),
    ("kernels",): (None, {}, "x", [None], [[]]),
    (*KERNEL, "arch"): (3.5, 90, "sm_", "sm_90b", "compute_90", "sm_9٠", "sm_90a\n", None),
    (*KERNEL, "registers"): ("x", "32", 32.0, True, 0, -1, 256, None, [32]),
    (*KERNEL, "static_smem_bytes"): (-99999, 10**9, 1.5, False, "0"),
    (*KERNEL, "spill_bytes"): (-1, 2**31, 1e999),
    (*KERNEL, "stack_bytes"): (-1, None),
    (*KERNEL, "cubin_bytes"): (0, "many"),
    (*KERNEL, "sha256"): (5, "", "g" * 64),
    (*KERNEL, "file"): ("", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b", "\ud800", "x" * 300, 5),
    (*KERNEL, "definitions"): ([], {"DRVTOPK_K": 1.5}, {"DRVTOPK_K": True}, {"DRVTOPK_K": []}),
    VARIANT: ({}, [], None),
    (*VARIANT, "k"): (64.0, "64", True, 0, 4097),
    (*VARIANT, "pdl"): (0, 1, "no"),
    (*VARIANT, "route"): ([], {}, 5, "other"),
    (*VARIANT, "more"): (5,),
    (*VARIANT, "tuning", "samples"): (64.0, True, "64", 10**30),
    (*VARIANT, "options", "dtype"): ([], {}, "float64", None),
    (*VARIANT, "options", "values"): (0, "", None),
    **{(*KERNEL, name): (-1, "x", None, 1e999) for name in manifest.derived(ONE)},
}


@pytest.mark.parametrize("place", BAD_VALUES, ids=lambda place: ".".join(map(str, place)))
def test_each_field_of_a_manifest_has_its_type_and_range(place: tuple[Any, ...], text: str, tmp_path: Path) -> None:
    for value in BAD_VALUES[place]:
        document = json.loads(text)
        put(document, place, value)
        (tmp_path / "manifest.json").write_text(signed(document))
        with pytest.raises(ManifestError, match=r"manifest\.json cannot be read \(") as refused:
            manifest.read(tmp_path)
        if place != VARIANT and "Infinity" not in json.dumps(value):
            assert str(place[-1]) in str(refused.value) and "\n" not in str(refused.value)


def test_a_record_that_was_changed_is_not_the_one_that_was_written(text: str, tmp_path: Path) -> None:
    for place in places(json.loads(text)["kernels"][0]):
        document = json.loads(text)
        put(document["kernels"][0], place, 31)
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(ManifestError, match=r"kernels\[0\]"):
            manifest.read(tmp_path)


def test_an_older_manifest_is_refused_by_name_with_what_to_do(text: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, json.dumps({**json.loads(text), "format": 1, "drvtopk": "0.0.9"}))
    assert str(tmp_path / "manifest.json") in error and "of format 1, as drvtopk 0.0.9 wrote it" in error
    assert error.endswith("export anew, into an empty folder")


def test_one_kernel_is_listed_once(text: str, tmp_path: Path) -> None:
    document = json.loads(text)
    document["kernels"].append(document["kernels"][0])
    assert "filtered<64,4> for sm_90a again" in refusal(tmp_path, json.dumps(document))


@FUZZ
@given(edits=EDITS)
def test_any_bytes_of_a_manifest_are_one_or_refused(exported: Path, edits: Any) -> None:
    folder = exported.parent / "bytes"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(mutated((exported / "manifest.json").read_bytes(), edits))
    with contextlib.suppress(ManifestError):
        manifest.read(folder)


@FUZZ
@given(data=st.data(), value=JSON)
def test_any_value_of_any_field_is_right_or_refused(exported: Path, data: st.DataObject, value: Any) -> None:
    folder = exported.parent / "values"
    folder.mkdir(exist_ok=True)
    document = json.loads((exported / "manifest.json").read_text())
    document |= {"kernels": document["kernels"][:1]}
    put(document, data.draw(st.sampled_from(places(document))), value)
    (folder / "manifest.json").write_text(signed(document))
    with contextlib.suppress(ManifestError):
        for kernel in manifest.read(folder).kernels.values():
            assert type(kernel.info.registers) is int and 1 <= kernel.info.registers <= 255


# -- cubins ------------------------------------------------------------------------------------------------------------


ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_103a", "sm_120", "sm_120a", "sm_121a")


def test_machine_code_is_counted_from_the_sections(compiled_before: Cache) -> None:
    cubin = compiler.compile_variant(ONE, ARCH, cache=compiled_before).cubin
    code = records.code_bytes(cubin)
    assert 0 < code < len(cubin)
    for cut in (0, 10, 0x39, 64, len(cubin) // 2):
        with pytest.raises(records.Malformed):
            records.code_bytes(cubin[:cut])


def test_the_architecture_of_a_cubin_is_read_from_its_header(compiled_before: Cache) -> None:
    cubins = {arch: compiler.compile_variant(ONE, arch, cache=compiled_before).cubin for arch in ARCHS}
    for arch, cubin in cubins.items():
        for other in ARCHS:
            fault = records.cubin_fault(cubin, other)
            assert fault == (None if arch == other else f"is a cubin for {arch}, not for {other}")
    later = bytearray(cubins["sm_90a"])
    later[8] = 9
    assert records.cubin_fault(bytes(later), "sm_80") is None, "an ABI that is not known says nothing"
    for no_cubin in (b"", b"\x7fELF", bytes(100), cubins["sm_80"][:63], Path("/bin/sh").read_bytes()):
        assert records.cubin_fault(no_cubin, "sm_80") == "is no cubin"


def test_a_cubin_for_another_architecture_is_passed_over(text: str, exported: Path, tmp_path: Path) -> None:
    document = json.loads(text)
    first, second = document["kernels"]
    cubin = (exported / second["file"]).read_bytes()
    first |= {"sha256": hashlib.sha256(cubin).hexdigest(), "cubin_bytes": len(cubin)}
    (tmp_path / first["file"]).write_bytes(cubin)
    (tmp_path / "manifest.json").write_text(signed(document))
    with pytest.warns(CacheWarning, match="is a cubin for sm_80, not for sm_90a"):
        assert Prebuilt([tmp_path]).find(ONE, ARCH) is None


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def entry(tmp_path: Path) -> tuple[Cache, str, bytes]:
    """(cache, the name of its only entry, what that holds)"""
    cache = Cache(tmp_path / "cache")
    compiler.compile_variant(ONE, ARCH, cache=cache)
    (found,) = cache.entries()
    payload = cache.get(found.name)
    assert payload is not None
    return cache, found.name, payload


def head(payload: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(payload[:4], "little")
    return json.loads(payload[4 : 4 + size]), payload[4 + size :]


def packed(found: Any, cubin: bytes) -> bytes:
    text = json.dumps(found).encode()
    return len(text).to_bytes(4, "little") + text + cubin


BAD_ENTRIES: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "nothing": lambda found, cubin: b"",
    "a length": lambda found, cubin: b"\xff\xff\xff\xff",
    "no text": lambda found, cubin: b"\1\0\0\0\xff" + cubin,
    "nested": lambda found, cubin: (100_000).to_bytes(4, "little") + b"[" * 100_000 + cubin,
    "a list": lambda found, cubin: packed([], cubin),
    "no log": lambda found, cubin: packed({"info": found["info"]}, cubin),
    "a log of numbers": lambda found, cubin: packed({**found, "log": 5}, cubin),
    "a field less": lambda found, cubin: packed({**found, "info": {}}, cubin),
    "words": lambda found, cubin: packed({**found, "info": {**found["info"], "registers": "x"}}, cubin),
    "infinite": lambda found, cubin: packed({**found, "info": {**found["info"], "registers": 1e999}}, cubin),
    "negative": lambda found, cubin: packed({**found, "info": {**found["info"], "static_smem_bytes": -99999}}, cubin),
    "no cubin": lambda found, cubin: packed(found, bytes(len(cubin))),
    "a cut cubin": lambda found, cubin: packed(found, cubin[:-1]),
}


@pytest.mark.parametrize("what", BAD_ENTRIES)
def test_a_whole_entry_of_something_else_is_a_miss_and_is_replaced(entry: Any, what: str) -> None:
    cache, name, payload = entry
    cache.put(name, BAD_ENTRIES[what](*head(payload)))
    for again in (cache, Cache(cache.folder)):
        assert compiler._cached("it", ARCH, name, again) is None
    assert not compiler.compile_variant(ONE, ARCH, cache=cache).from_cache
    assert compiler.compile_variant(ONE, ARCH, cache=Cache(cache.folder)).from_cache


@FUZZ
@given(edits=EDITS, framed=st.booleans())
def test_any_bytes_of_an_entry_are_the_kernel_or_a_miss(entry: Any, edits: Any, framed: bool) -> None:
    cache, name, payload = entry
    if framed:
        cache.put(name, mutated(payload, edits))
    else:
        cache.put(name, payload)
        path = cache.folder / name
        path.write_bytes(mutated(path.read_bytes(), edits))
    compiler._cached("it", ARCH, name, Cache(cache.folder))


def listening(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the system's limit for such a name is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def device(path: Path) -> None:
    """A terminal, which no file can take the place of, even where the tests run as root and what they test is wrong."""
    path.symlink_to(os.ttyname(pty.openpty()[1]))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES: list[Callable[[Path], Any]] = [os.mkfifo, Path.mkdir, listening, device, loop]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_what_is_no_file_never_hangs(make: Callable[[Path], Any], exported: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    assert cache.writable()
    make(tmp_path / "c" / ("0" * 64))
    assert cache.get("0" * 64) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a folder cannot be replaced
        cache.put("0" * 64, b"kernel")
    assert cache.get("0" * 64) == b"kernel"
    for name in ("manifest.json", manifest.read(exported).kernels[ARCH, ONE].file):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for file in exported.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / name).unlink()
        make(folder / name)
        with pytest.warns(CacheWarning, match="read"):
            assert Prebuilt([folder]).find(ONE, ARCH) is None


def test_every_instantiation_survives_the_way_through_a_record(tmp_path: Path, compiled_before: Cache) -> None:
    wanted = [
        *instantiations(
            ARCH, (8,), (8,), ("clustered",), Options(dtype="bfloat16", values=True, order="value"), pdl=True
        )[:2],
    ]
    export_kernels(tmp_path, {ARCH: wanted}, cache=compiled_before)
    assert [variant for _, variant in manifest.read(tmp_path).kernels] == wanted
    assert wanted[0].tuning == Tuning()
