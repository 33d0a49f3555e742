"""Rows that each guard of the kernels is for, and rows of mixed signs and scales, exact on every path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from drvtopk.errors import InvalidArgument
from drvtopk.plan import Problem
from drvtopk.spec import DEFAULT_TUNING, DTYPES, MAX_COUNTED, PLAIN, ROUTES, Options, Tuning
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors, narrowed
from tests.harness import guards
from tests.harness.runner import simulate
from tests.harness.scenario import TUNING, Scenario, plan_for
from tests.needs import needs_cpp

pytestmark = needs_cpp

GUARDED = {
    name: made
    for name, made in vars(guards).items()
    if callable(made) and getattr(made, "__module__", "") == guards.__name__ and not name.startswith("_")
}
OPTIONS = {
    "plain": PLAIN,
    "windows": Options(row_starts=True, values=True),
    "nan_highest": Options(nan="highest", row_starts=True),
    "ordered": Options(tie_break="smallest", order="value"),
}


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("name", GUARDED)
def test_rows_that_a_guard_is_for(name: str) -> None:
    made: Callable[[int], Scenario] = GUARDED[name]
    assert [made(seed).complaint() for seed in range(4)] == [""] * 4


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("route", ROUTES)
def test_scale_mixes(route: str, dtype: str, options: Options) -> None:
    options, rows, width, k = replace(options, dtype=dtype), 24, 1500, 64
    x = narrowed(make("scale_mixes", rows, width, seed=len(dtype), k=k), dtype)
    starts = (np.arange(rows) % 9).astype(np.int32) if options.row_starts else None
    lengths = np.resize(np.array([width, 290, 610, width - 3], np.int32), rows)
    problem = Problem(rows=rows, width=width, k=k, options=options)
    tuning = replace(TUNING, max_candidates=400)
    made = plan_for(problem, 7, route=route, chunk=500 if route == "persistent" else None, tuning=tuning)
    run = simulate(made, x, lengths, row_starts=starts, seed=1)
    assert run.status == "done", run.report
    given = run.values if options.values else None
    assert find_errors(x, k, lengths, run.out, options=options, row_starts=starts, values=given) == []


@pytest.mark.parametrize(("route", "group", "width", "k"), [("filtered", None, 20_000, 4), ("clustered", 8, 65_536, 8)])
def test_forced_tokens_among_log_probabilities(route: str, group: int | None, width: int, k: int) -> None:
    """Of the planner's own kernels: negative values, the k largest +inf, one more positive."""
    random = np.random.default_rng(k)
    x = (-np.abs(random.standard_normal((8, width))) - 6).astype(np.float32)
    for row in x:
        forced = random.choice(width, k + 1, replace=False)
        row[forced[:k]], row[forced[k]] = np.inf, 1.0
    problem = Problem(rows=len(x), width=width, k=k)
    made = plan_for(problem, 9, route=route, group=group, tuning=DEFAULT_TUNING)
    run = simulate(made, x, seed=1)
    assert run.status == "done", run.report
    assert find_errors(x, k, None, run.out) == []


@pytest.mark.parametrize(("name", "most"), [("short_max", MAX_COUNTED), ("max_candidates", MAX_COUNTED // 4)])
def test_no_tuning_counts_more_than_half_a_word_holds(name: str, most: int) -> None:
    assert getattr(Tuning(**{name: most}), name) == most
    with pytest.raises(InvalidArgument, match=name):
        Tuning(**{name: most + 1})
