"""What exists: routes, kernel variants, devices, and every number that host and kernels share."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from drvtopk.checks import as_int, flag, instance, integer, one_of, shown, store
from drvtopk.errors import InvalidArgument

ROUTES = ("persistent", "filtered", "clustered")
ASKED_ROUTES = ("auto", *ROUTES)
CLUSTERS = (2, 4, 8, 16)  # blocks of a hardware cluster in the route `clustered`
VEC_SIZES = (1, 2, 4)  # elements of a load; elements of 2 bytes also go by 8
WAITS = ("allowed", "never")  # may blocks of a launch wait for each other?
TOP_KS = (512, 1024, 2048)  # compiled ahead by `compile` and the tests; any other k compiles on demand
MAX_K = 4096
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of the logits, with the bytes of an element."""
INDEX_DTYPES = {"int32": 4, "int64": 8}
ORDERS = ("none", "index", "value")
TIE_BREAKS = ("any", "smallest", "largest")
NANS = ("lowest", "highest")
MAX_WIDTH = 2**31 - 1  # indices are int32
MAX_COUNTED = 2**16 - 1  # keys that half a word counts: held ones, and those of a cluster's lists, up to 4 x candidates
MAX_ROWS = 2**31 - 1  # one block per row in the filtered route: the limit of a grid's x

THREADS = 1024  # of a block that has an SM to itself, or is one of a large group
NARROW_THREADS = 512  # of a block beside others on its SM, or in a cluster: what each thread does once weighs less
WORKSPACE_ALIGNMENT = 128  # bytes; what one group's state is padded to

# A key is resolved from its top in digits of 11, 11 and 10 bits.
DIGIT_BITS = 11
BINS = 1 << DIGIT_BITS
# One block's fixed shared memory: the bins, then the scan and counter words (asserted against `Scratch`).
SCRATCH_BYTES = 512
# Words of one published histogram in a group's state: the bins, then two output counters and padding.
ROUND_WORDS = BINS + 32
ROUNDS = 3  # histograms in rotation: one being read, one being filled, one being cleared


# What a launch is told: (name, type in C) of each field of `Params` in cuda_src/params.cuh, in order.
PARAMS = (
    ("logits", "const Logit*"),
    ("lengths", "const int*"),
    ("out", "Index*"),
    ("workspace", "void*"),
    ("logits_stride", "i64"),
    ("out_stride", "i64"),
    ("rows", "u32"),
    ("width", "u32"),
    ("group", "u32"),
    ("groups", "u32"),
    ("chunk", "u32"),
    ("candidates", "u32"),
    ("cooperative", "u32"),
    ("reserved", "u32"),
)
VARYING = 6  # of them each launch fills in anew
EXTRAS = (  # behind them, in variants whose options need more arrays
    ("values", "Logit*"),
    ("row_starts", "const int*"),
    ("page_table", "const int*"),
    ("values_stride", "i64"),
    ("page_table_stride", "i64"),
    ("page_size", "u32"),
    ("rows_per_table", "u32"),
)


def packed(fields: Sequence[tuple[str, str]]) -> struct.Struct:
    """What packs these fields one behind the other. Wider ones come first in each half, so C leaves no gaps either."""
    return struct.Struct("<" + "".join({"i64": "q", "u32": "I"}.get(kind, "Q") for _, kind in fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Thresholds of the row paths, in elements. Small ones send tiny rows down every path (for tests). Hints count as
    powers of two (`Problem.max_seq_len`), so they lose nothing at thresholds that are powers of two."""

    short_max: int = 16384
    """Rows up to this length are held in shared memory by one block, where it has room for them."""
    radix_threshold: int = 32768
    """Rows up to this length belong to one block; longer ones may be shared by a group, which waits."""
    sms_to_share: int = 16
    """SMs for each row from which on sharing long rows is faster than a block reading each."""
    cluster_threshold: int = 8192
    """Rows longer than this are shared by the blocks of a cluster, in launches that have clusters."""
    min_chunk: int = 4096
    """A group is not split finer than this, unless the caller names the chunk."""
    max_candidates: int = 8192
    """Candidates that one block keeps in shared memory; more are read again, never dropped."""
    samples: int = 2048
    """Keys that a pivot is guessed from, up to eight times as many of long rows; a power of two, at least 32. Rows of
    fewer elements than twice that do without."""
    cached_bytes: int = 48 << 20
    """A launch with more bytes of logits than this finds nothing that it has read in a cache again."""
    wait_limit: int = 0
    """Debug build: after so many looks a waiting block reports what it waits for and ends the launch. 0: no limit."""

    def __post_init__(self) -> None:
        limits = dict.fromkeys(
            ("radix_threshold", "sms_to_share", "cluster_threshold", "min_chunk", "cached_bytes"), MAX_WIDTH
        )
        limits |= {"short_max": MAX_COUNTED, "max_candidates": MAX_COUNTED // 4}
        store(self, **{name: integer(name, getattr(self, name), 1, most) for name, most in limits.items()})
        samples = as_int(self.samples)
        if samples is None or not 32 <= samples <= 1 << 16 or samples & (samples - 1):
            raise InvalidArgument("samples", shown(self.samples), "a power of two in 32..65536")
        store(self, samples=samples, wait_limit=integer("wait_limit", self.wait_limit, 0, MAX_WIDTH))


DEFAULT_TUNING = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may ask for beyond k. Each is a template parameter: what is not asked for is not compiled in."""

    dtype: str = "float32"
    """Of the logits: "float32", "bfloat16" or "float16"."""
    index_dtype: str = "int32"
    """Of the output: "int32" or "int64"."""
    values: bool = False
    """The values of the members too, beside their indices."""
    row_starts: bool = False
    """Each row's window begins at an element of its own; indices count from there."""
    order: str = "none"
    """"index": ascending; "value": the largest first, equal ones by ascending index."""
    tie_break: str = "any"
    """Which of equal values fill the last places: those with the "smallest" or the "largest" index, or "any"."""
    nan: str = "lowest"
    """NaN, of either sign, below -inf ("lowest") or above +inf ("highest"). All NaNs are equal."""
    page_table: bool = False
    """The output is what a page table makes of the indices."""

    def __post_init__(self) -> None:
        store(self, **{name: one_of(name, getattr(self, name), allowed) for name, allowed in _CHOICES.items()})
        store(self, **{name: flag(name, getattr(self, name)) for name in _FLAGS})

    def made_deterministic(self) -> Options:
        """One array for the same bits: where the choice was left open, ties by smallest index and ascending order."""
        return replace(
            self,
            tie_break="smallest" if self.tie_break == "any" else self.tie_break,
            order="index" if self.order == "none" else self.order,
        )

    @property
    def item_bytes(self) -> int:
        """Of one logit."""
        return DTYPES[self.dtype]

    @property
    def vec_sizes(self) -> tuple[int, ...]:
        """Loads that there are, in elements: up to 16 bytes."""
        return (*VEC_SIZES, 8) if self.item_bytes == 2 else VEC_SIZES

    @property
    def suffix(self) -> str:
        """What differs from the plain selection, as it stands in the kernel's name: '_bfloat16_values_smallest'."""
        said = [getattr(self, name) for name in _CHOICES if getattr(self, name) != getattr(PLAIN, name)]
        said += [name for name in _FLAGS if getattr(self, name)]
        words = {"index": "by_index", "value": "by_value", "highest": "nan_highest"}
        return "".join("_" + words.get(word, word) for word in said)

    @property
    def extras(self) -> bool:
        """Whether a launch is told more than a plain one: further arrays."""
        return self.values or self.row_starts or self.page_table


_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dtype": tuple(DTYPES),
        "index_dtype": tuple(INDEX_DTYPES),
        "order": ORDERS,
        "tie_break": TIE_BREAKS,
        "nan": NANS,
    }
)
_FLAGS = ("values", "row_starts", "page_table")
PLAIN = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One instantiation: what is compiled, loaded, asked for its occupancy, and launched."""

    route: str
    k: int
    vec_size: int
    tuning: Tuning = DEFAULT_TUNING
    options: Options = PLAIN
    residency: int = 2
    """Blocks that an SM shall hold at once, where it has threads for them: what registers are limited to. One alone has
    more loads under way."""
    cluster: int = 1
    """Blocks of a hardware cluster; 1 where the route has none."""
    pdl: bool = False
    """Programmatic dependent launch: the kernel waits for its predecessor itself, having begun before that ended."""

    def __post_init__(self) -> None:
        route = one_of("route", self.route, ROUTES)
        options = instance("options", self.options, Options)
        instance("tuning", self.tuning, Tuning)
        clusters = cluster_sizes(route)
        places = {
            "residency": ((1, 2), "1 or 2"),
            "cluster": (clusters, f"{' or '.join(map(str, clusters))} for the route {route!r}"),
            "vec_size": (options.vec_sizes, f"one of {', '.join(map(str, options.vec_sizes))} for {options.dtype}"),
        }
        for name, (allowed, said) in places.items():
            number = as_int(getattr(self, name))
            if number not in allowed:
                raise InvalidArgument(name, shown(getattr(self, name)), said)
            store(self, **{name: number})
        store(self, route=route, k=check_k(self.k), pdl=flag("pdl", self.pdl))

    @property
    def entry(self) -> str:
        """Name of the one kernel in the cubin; it names every option that is not the plain one."""
        return f"drvtopk_{self.route}{self.options.suffix}"

    @property
    def threads(self) -> int:
        """Of a block."""
        narrow = self.route == "clustered" or (self.route == "filtered" and self.residency > 1)
        return NARROW_THREADS if narrow else THREADS

    @property
    def candidate_bytes(self) -> int:
        """Shared memory for each candidate: a key and an index; in a cluster also room for what the others send, or a
        place in a queue."""
        return 20 if self.cluster > 1 else 8

    @property
    def sorted_places(self) -> int:
        """Members that the sort works on: a power of two, at least two warps' worth; 0 where nothing is sorted."""
        return 0 if self.options.order == "none" else max(64, 1 << (self.k - 1).bit_length())

    @property
    def fixed_smem_bytes(self) -> int:
        """Shared memory a block needs before its chunk of keys or its candidates: bins, scratch, staged output.

        A sort by value puts its keys where the bins were.
        """
        bins = max(BINS, self.sorted_places if self.options.order == "value" else 0)
        return bins * 4 + SCRATCH_BYTES + align(max(self.k, self.sorted_places) * 4, 16)

    def group_state_bytes(self, group: int) -> int:
        """Workspace of one group of `group` blocks: barrier line, rotating histograms, two handshake words a block, and
        the members of a row where one block has to sort them."""
        members = self.k if self.options.order != "none" else 0
        return align(WORKSPACE_ALIGNMENT + (ROUNDS * ROUND_WORDS + 2 * group + members) * 4, WORKSPACE_ALIGNMENT)

    def __str__(self) -> str:
        cluster = f",x{self.cluster}" if self.cluster > 1 else ""
        alone = "" if self.residency > 1 else ",alone"
        pdl = ",pdl" if self.pdl else ""
        return f"{self.route}{self.options.suffix}<{self.k},{self.vec_size}{cluster}{alone}{pdl}>"


def cluster_sizes(route: str) -> tuple[int, ...]:
    """Blocks of a cluster that kernels of this route may have; 1: no cluster."""
    return CLUSTERS if route == "clustered" else (1,)


def check_k(k: object) -> int:
    """`k` as an int in 1..4096, or InvalidArgument."""
    return integer("k", k, 1, MAX_K)


def align(value: int, to: int) -> int:
    """`value` rounded up to a multiple of `to`."""
    return -(-value // to) * to


def arch_of(major: int, minor: int) -> str:
    """The target with everything a device can do: architecture-specific ('a') from compute capability 9.0 on."""
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """The limits of one device (or of the part of it that a context may use) that plans depend on."""

    name: str
    arch: str
    """Compilation target: 'sm_90a'."""
    sms: int
    smem_optin: int
    """Shared memory one block may opt in to, bytes."""
    smem_per_sm: int
    """Shared memory of one SM, bytes."""
    max_threads_per_sm: int
    max_blocks_per_sm: int
    regs_per_sm: int = 65536
    smem_reserved: int = 1024
    """Shared memory the driver takes for each resident block, bytes."""

    @property
    def has_pdl(self) -> bool:
        """Whether it knows programmatic dependent launch: from compute capability 9.0 on."""
        return has_pdl(self.arch)

    @property
    def max_cluster(self) -> int:
        """Blocks of the largest hardware cluster that plans use; 1: none. Clusters of 16 need the data-centre parts."""
        return max_cluster(self.arch)

    def __post_init__(self) -> None:
        for name in ("sms", "smem_optin", "smem_per_sm", "max_threads_per_sm", "max_blocks_per_sm", "regs_per_sm"):
            store(self, **{name: integer(name, getattr(self, name), 1, MAX_WIDTH)})
        store(self, smem_reserved=integer("smem_reserved", self.smem_reserved, 0, MAX_WIDTH))

    def with_limits(self, *, sms: int | None = None, smem_optin: int | None = None) -> DeviceInfo:
        """The same device with some limits named by hand: a green context, an assumed smaller GPU."""
        changed = self
        if sms is not None:
            changed = replace(changed, sms=sms)
        if smem_optin is not None:
            smem_optin = integer("smem_optin", smem_optin, 1, MAX_WIDTH)
            changed = replace(changed, smem_optin=smem_optin, smem_per_sm=max(smem_optin, changed.smem_per_sm))
        return changed


def _known(name: str, arch: str, sms: int, optin: int, per_sm: int, threads: int, blocks: int) -> DeviceInfo:
    return DeviceInfo(
        name=name,
        arch=arch,
        sms=sms,
        smem_optin=optin,
        smem_per_sm=per_sm,
        max_threads_per_sm=threads,
        max_blocks_per_sm=blocks,
    )


_99K, _100K, _163K, _164K, _227K, _228K = (n * 1024 for n in (99, 100, 163, 164, 227, 228))

# SM counts are those of the product as sold; per-SM limits are the compute capability's
# (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
KNOWN_DEVICES: Mapping[str, DeviceInfo] = MappingProxyType(
    {
        d.name: d
        for d in (
            _known("a100", "sm_80", 108, _163K, _164K, 2048, 32),
            _known("l20", "sm_89", 92, _99K, _100K, 1536, 24),
            _known("l40s", "sm_89", 142, _99K, _100K, 1536, 24),
            _known("rtx4090", "sm_89", 128, _99K, _100K, 1536, 24),
            _known("h100", "sm_90a", 132, _227K, _228K, 2048, 32),
            _known("h200", "sm_90a", 132, _227K, _228K, 2048, 32),
            _known("b200", "sm_100a", 148, _227K, _228K, 2048, 32),
            _known("b300", "sm_103a", 148, _227K, _228K, 2048, 32),
            _known("gb10", "sm_121a", 48, _99K, _100K, 1536, 24),
            _known("rtx5090", "sm_120a", 170, _99K, _100K, 1536, 24),
            _known("rtxpro6000", "sm_120a", 188, _99K, _100K, 1536, 24),
        )
    }
)

# Architectures that every instantiation is compiled for by the tests.
_SUFFIXES = "abcdefghijklmnopqrstuvwxyz"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "sm_121a")


def max_cluster(arch: str) -> int:
    """Blocks of the largest cluster that kernels are compiled with for this architecture; 1: none."""
    return CLUSTERS[-1] if arch.rstrip(_SUFFIXES) in ("sm_90", "sm_100", "sm_103") else 1


def has_pdl(arch: str) -> bool:
    """Whether this architecture knows programmatic dependent launch."""
    return int(arch.rstrip(_SUFFIXES)[3:]) >= 90


def min_blocks(arch: str, threads: int = THREADS) -> int:
    """Blocks of so many threads that an SM of this architecture has thread slots for: what registers are limited to.

    A100 and the Hopper and Blackwell data-centre parts hold 2048 threads an SM, the others 1536.
    """
    return (2048 if arch.rstrip(_SUFFIXES) in ("sm_80", "sm_90", "sm_100", "sm_103") else 1536) // threads


def instantiations(
    arch: str,
    ks: Iterable[int] = TOP_KS,
    vec_sizes: Sequence[int] = (),
    routes: Sequence[str] = (),
    options: Options = PLAIN,
    *,
    groups: Sequence[int] = (),
    pdl: bool = False,
) -> list[Variant]:
    """Every combination that plans may ask for on `arch`, in reading order, of what is named, or else of all there is.

    Raises InvalidArgument for what the architecture does not have.
    """
    loads, largest = vec_sizes or options.vec_sizes, max_cluster(arch)
    if "clustered" in routes and largest == 1:
        raise InvalidArgument("route", "clustered", f"persistent or filtered: {arch} has no clusters for it")
    if pdl and not has_pdl(arch):
        raise InvalidArgument("pdl", "asked for", f"from sm_90 on; {arch} has no programmatic dependent launch")
    found = []
    for route in routes or ROUTES:
        sizes = [n for n in groups or CLUSTERS if n <= largest] if route == "clustered" else [1]
        found += [
            Variant(
                route=route,
                k=k,
                vec_size=load,
                options=options,
                residency=residency,
                cluster=size,
                pdl=pdl and route != "persistent",
            )
            for size in sizes
            for residency in ((2,) if route == "persistent" else (1, 2))
            for k in ks
            for load in loads
        ]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelInfo:
    """What the compiler says of one cubin."""

    registers: int
    """Per thread."""
    spill_bytes: int
    """Spill stores plus spill loads, bytes."""
    stack_bytes: int
    static_smem_bytes: int
    cubin_bytes: int
    seconds: float = field(default=0.0, compare=False)
    """Time the compiler took; 0 when the cubin came from the cache."""


class Selected(NamedTuple):
    """What comes back where values are asked for."""

    indices: Any
    """(rows, k)."""
    values: Any
    """(rows, k), of the logits' type; -inf where the index is -1."""
