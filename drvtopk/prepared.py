"""prepare(): a problem compiled, loaded and planned once, for calls that only launch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, SupportsIndex, TypeVar

from drvtopk.checks import flag, integer, one_of
from drvtopk.driver import NO_CONTEXT
from drvtopk.engine import Engine, current_engine
from drvtopk.errors import DriverError, InvalidArgument
from drvtopk.interop.arrays import DeviceView, rows_view, stream_handle
from drvtopk.interop.calls import CallArrays, bind, launch, logits_and_stream
from drvtopk.launch import Bound
from drvtopk.launch import Prepared as _Prepared
from drvtopk.plan import Plan
from drvtopk.problem import MAX_OFFSET, Problem
from drvtopk.progress import preparing
from drvtopk.spec import ASKED_ROUTES, Options
from drvtopk.words import Dtype, IndexDtype, Nan, Order, Route, TieBreak, Waits
from drvtopk.workers import together

T = TypeVar("T")


class Prepared:
    """One problem, prepared once in the current context; each call is then one launch, ready for graph capture.

    On a thread without a current context a call runs in the one that was prepared for.
    """

    def __init__(self, engine: Engine, inner: _Prepared) -> None:
        self.engine = engine
        self.problem = inner.problem
        self.launch = inner.launch
        self._inner = inner

    @property
    def plan(self) -> Plan:
        """What is launched; `why` says the reason, also of a fallback that the driver forced later."""
        return self._inner.plan

    @property
    def workspace_bytes(self) -> int:
        """Device memory each call is lent, bytes; never read before it is written."""
        return self._inner.workspace_bytes

    def __call__(
        self,
        logits: Any,
        lengths: Any = None,
        *,
        out: Any,
        values: Any = None,
        row_starts: Any = None,
        page_table: Any = None,
        page_size: SupportsIndex = 1,
        workspace: Any = None,
        stream: Any = None,
    ) -> None:
        """Launches with device arrays (see `topk` for shapes and dtypes); `workspace` of `workspace_bytes` bytes.

        `values`, `row_starts` and `page_table` are given exactly where they were prepared for. `stream` as in `topk`.
        This is one driver call, the launch, unless an array names another stream that it waits for; a cooperative one
        asks its stream for its SMs before. `launch` takes addresses.
        """
        beside = CallArrays(lengths, out, values, row_starts, page_table, page_size, workspace)
        self._here(self._launch, logits, beside, stream)

    def bind(
        self,
        logits: Any,
        lengths: Any = None,
        *,
        out: Any,
        values: Any = None,
        row_starts: Any = None,
        page_table: Any = None,
        page_size: SupportsIndex = 1,
        workspace: Any = None,
    ) -> Bound:
        """A launch of these very arrays, checked and packed now: calling what comes back, with a stream's handle, is
        the driver call and nothing else. It keeps the arrays. Nothing is waited for then: what it reads has to be ready
        on that stream.
        """
        beside = CallArrays(lengths, out, values, row_starts, page_table, page_size, workspace)
        return self._here(self._bind, logits, beside)

    def _launch(self, logits: Any, beside: CallArrays, stream: Any) -> None:
        given, handle = logits_and_stream(self.engine, logits, stream, self.problem.options.dtype)
        self._check_logits(given)
        launch(self.engine, self._inner, given, beside, handle)

    def _bind(self, logits: Any, beside: CallArrays) -> Bound:
        given = rows_view("logits", logits, self.problem.options.dtype)
        self._check_logits(given)
        return bind(self.engine, self._inner, given, beside, keep=(logits, beside))

    def _here(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` does; on a thread without a context in the one that was prepared for. The driver refuses its
        first call there, so nothing is half done then."""
        engine = self.engine
        try:
            return work(*given)
        except DriverError as error:
            if error.code != NO_CONTEXT or not engine.driver.may_adopt(engine.context, engine.context_id):
                raise
        with engine.driver.current(engine.context):
            return work(*given)

    def _check_logits(self, given: DeviceView) -> None:
        problem = self.problem
        if given.shape != (problem.rows, problem.width):
            raise InvalidArgument("logits", f"shape {given.shape}", f"({problem.rows}, {problem.width}), as prepared")
        if problem.rows > 1 and given.strides[0] != problem.row_stride:
            raise InvalidArgument("logits", f"a row stride of {given.strides[0]}", f"{problem.row_stride}, as prepared")


def prepare(
    *,
    rows: SupportsIndex,
    width: SupportsIndex,
    k: SupportsIndex,
    stride: SupportsIndex | None = None,
    offset: SupportsIndex = 0,
    max_seq_len: SupportsIndex | None = None,
    dtype: Dtype = "float32",
    index_dtype: IndexDtype = "int32",
    values: bool = False,
    row_starts: bool = False,
    order: Order = "none",
    tie_break: TieBreak = "any",
    deterministic: bool = False,
    nan: Nan = "lowest",
    page_table: bool = False,
    route: Route = "auto",
    waits: Waits = "allowed",
    sm_budget: SupportsIndex | None = None,
    pdl: bool = False,
    stream: Any = None,
) -> Prepared:
    """Compiles, loads and plans `rows` x `width` for the current context.

    `stride` (elements) is the width unless given; `offset` is the base address in elements modulo 8; `max_seq_len` is
    a hint that costs only time when it is wrong, and counts as the next power of two. `dtype` to `page_table` are the
    options of `topk`; what a call will give as an array is named here by True. `route` is "auto", "persistent",
    "filtered" or "clustered"; a named route that cannot run raises PlanError. `waits="never"` plans only launches in
    which no block waits for another, which finish with one free block slot; `sm_budget` caps the grid at what so many
    SMs hold; `pdl` lets a launch begin while its predecessor on the stream ends (see `topk`).

    `stream` is one that the launches will go to (as in `topk`). It matters where it belongs to a green context while
    another context is current: the plan then keeps within the green context's SMs. Without it the plan is for what the
    current context holds; on such a stream the driver may refuse it, and this preparation falls back once and for all.
    In a capture the driver refuses no cluster: the graph then cannot be instantiated.
    """
    return _preparation(locals())()


def prepare_many(problems: Sequence[Mapping[str, Any]]) -> list[Prepared]:
    """`prepare` for several problems, side by side: each is a mapping of its keyword arguments. In the given order.

    Kernels are compiled on all cores, each once; this is the fastest warm-up of a server. Raises as `prepare` does, and
    TypeError for arguments that it has not got, before anything is compiled. The first preparation that fails ends the
    others, as does Ctrl-C.
    """
    accepted = inspect.signature(prepare)
    ready = []
    for given in problems:
        bound = accepted.bind(**given)
        bound.apply_defaults()
        ready.append(_preparation(bound.arguments))
    engine = current_engine()

    def in_context(make: Callable[[], Prepared]) -> Prepared:
        with engine.driver.current(engine.context):
            return make()

    with preparing():
        return together([partial(in_context, make) for make in ready])


def _preparation(arguments: Mapping[str, Any]) -> Callable[[], Prepared]:
    """What prepares a problem in the context that is current now. The arguments of `prepare` are checked here."""
    asked = dict(arguments)
    route, stream, deterministic = asked.pop("route"), asked.pop("stream"), asked.pop("deterministic")
    options = Options(**{field.name: asked.pop(field.name) for field in fields(Options)})
    route = one_of("route", route, ASKED_ROUTES)
    asked["offset"] = integer("offset", asked["offset"], 0, MAX_OFFSET) % 8
    if flag("deterministic", deterministic):
        options = options.made_deterministic()
    problem = Problem(options=options, **asked)
    engine = current_engine()
    share = None if stream is None else engine.share_of(stream_handle(stream))
    return lambda: Prepared(engine, engine.prepare(problem, route=route, share=share))
