"""What is asked: the shape of one call. Pure data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from drvtopk.checks import flag, instance, integer, one_of, store
from drvtopk.spec import MAX_ROWS, MAX_WIDTH, PLAIN, WAITS, Options, check_k

MAX_STRIDE = 2**62 // 4  # elements; rows x stride is computed in 64 bits
MAX_OFFSET = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One call's shape. The lengths themselves live on the device and are no part of it."""

    rows: int
    width: int
    """Columns that exist in each row; nothing past them is read."""
    k: int
    stride: int | None = None
    """Elements from one row's start to the next; the width unless given."""
    offset: int = 0
    """The base address in elements modulo 8 (0: aligned to the widest load)."""
    max_seq_len: int | None = None
    """A hint: no length is expected to exceed it; the width unless given. A wrong hint costs time only. It counts as
    the next power of two, or as the width, so that a hint that changes with every step rarely makes a new problem."""
    waits: str = "allowed"
    """"never": only launches in which no block waits for another, so that one free block slot is enough to finish."""
    sm_budget: int | None = None
    """At most as many blocks as fit on so many SMs at once; the whole device unless given."""
    options: Options = PLAIN
    pdl: bool = False
    """Programmatic dependent launch, on GPUs that have it (Hopper and later): the launch may begin while its
    predecessor on the stream ends, and waits for that before it touches memory. The cooperative route does without."""

    def __post_init__(self) -> None:
        rows, width = integer("rows", self.rows, 0, MAX_ROWS), integer("width", self.width, 0, MAX_WIDTH)
        k = check_k(self.k)
        stride = integer("stride", width if self.stride is None else self.stride, 0, MAX_STRIDE // max(rows, 1))
        offset = integer("offset", self.offset, 0, MAX_OFFSET)
        hint = width if self.max_seq_len is None else integer("max_seq_len", self.max_seq_len, 0, MAX_WIDTH)
        longest = min(1 << (hint - 1).bit_length(), width) if hint else 0
        waits, pdl = one_of("waits", self.waits, WAITS), flag("pdl", self.pdl)
        budget = None if self.sm_budget is None else integer("sm_budget", self.sm_budget, 1, MAX_ROWS)
        instance("options", self.options, Options)
        store(self, rows=rows, width=width, k=k, stride=stride, offset=offset, max_seq_len=longest)
        store(self, waits=waits, pdl=pdl, sm_budget=budget)

    @property
    def row_stride(self) -> int:
        """`stride`, known to be set."""
        assert self.stride is not None  # a type fact: __post_init__ set it
        return self.stride

    @property
    def longest(self) -> int:
        """The longest row that the hint lets us expect."""
        assert self.max_seq_len is not None  # a type fact: __post_init__ set it
        return self.max_seq_len
