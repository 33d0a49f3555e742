"""Writes README's tables of what is supported, between their two markers. Every cell has tests behind it.

python tools/support_table.py                   # rewrite
python tools/support_table.py --check           # exit code 1 if README is not what the rows below say
python tools/support_table.py --tests nan       # the tests behind one row, for pytest; without a name, behind all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from drvtopk.spec import ARCHITECTURES, MAX_K, ROUTES, max_cluster

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- support:begin -->", "<!-- support:end -->"
EXACT, OPTIONS, COMMANDS = (f"tests/gpu/test_{name}.py::" for name in ("exact", "options", "cli"))
GRAPHS = "tests/gpu/test_liveness.py::test_a_captured_graph_is_right_for_any_later_lengths"
REFERENCE, ASKED = (f"tests/cpu/test_{name}.py::" for name in ("reference", "reference_options"))
COMPILED, HARNESS = (f"tests/cpu/test_{name}.py::" for name in ("instantiations", "harness"))
SAID, CALLED = (f"tests/cpu/test_{name}.py::" for name in ("options", "transcripts"))
EVERY = f"{OPTIONS}test_every_option_on_every_path"
WRONG = f"{ASKED}test_every_kind_of_wrong_answer_to_an_option_is_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Something a caller may ask for. Tests are pytest's names; without brackets: the test at all its parameters."""

    name: str
    what: str
    gpu: tuple[str, ...]
    """On the device; "{route}" stands for each route."""
    cpu: tuple[str, ...]
    """Without one: the reference, the oracle, the kernels in the CPU harness, what is compiled and launched."""

    def on(self, route: str) -> tuple[str, ...]:
        """The GPU tests that run this route."""
        return tuple(test.replace("{route}", route) for test in self.gpu)

    @property
    def tests(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(test for route in ROUTES for test in self.on(route)), *self.cpu]))


ROWS = (
    Row(
        name="k",
        what=f"any from 1 to {MAX_K}, above the row's length too",
        gpu=(
            f"{EXACT}test_any_k[1-{{route}}]",
            f"{EXACT}test_any_k[{MAX_K}-{{route}}]",
            f"{OPTIONS}test_any_k_with_everything_asked_for[{MAX_K}-by_value-{{route}}]",
        ),
        cpu=(f"{COMPILED}test_any_other_k_compiles_on_demand", f"{REFERENCE}test_lengths_are_clamped_to_what_exists"),
    ),
    Row(
        name="float32",
        what="any bits",
        gpu=(f"{EXACT}test_named_inputs_at_every_path[any_bits-{{route}}-512-4]",),
        cpu=(
            f"{REFERENCE}test_the_reference_is_exact_by_sorting[any_bits]",
            f"{HARNESS}test_every_kind_of_input_on_every_path",
        ),
    ),
    Row(
        name="bfloat16",
        what='`<V2`, or 2-byte words with `dtype="bfloat16"`',
        gpu=(
            f"{OPTIONS}test_every_load_of_every_dtype[bfloat16-8-{{route}}]",
            f"{OPTIONS}test_every_load_of_every_dtype[bfloat16-1-{{route}}]",
            f"{OPTIONS}test_device_arrays_in_and_out",
        ),
        cpu=(
            f"{ASKED}test_16_bit_values_order_as_their_float32_do",
            f"{ASKED}test_bfloat16_is_told_by_the_argument_or_by_its_name",
        ),
    ),
    Row(
        name="float16",
        what="IEEE half precision",
        gpu=(
            f"{OPTIONS}test_every_load_of_every_dtype[float16-8-{{route}}]",
            f"{OPTIONS}test_every_load_of_every_dtype[float16-1-{{route}}]",
        ),
        cpu=(f"{ASKED}test_16_bit_values_order_as_their_float32_do",),
    ),
    Row(
        name="layout",
        what="any row stride (0 included), any base that an element may have",
        gpu=(
            f"{EXACT}test_layouts",
            *(f"{OPTIONS}test_rows_lie_anywhere[float16-{load}-{{route}}]" for load in (1, 2, 4, 8)),
        ),
        cpu=(
            f"{HARNESS}test_schedules_layouts_plans_and_dirty_workspaces",
            f"{SAID}test_elements_of_two_bytes_go_by_eight",
        ),
    ),
    Row(
        name="lengths",
        what="`(rows,)`, `(rows, 1)`, `(batch, next_n)`; clamped to [0, width]",
        gpu=(
            f"{COMMANDS}test_topk_of_files_with_every_option[4-{{route}}]",
            f"{COMMANDS}test_topk_of_files_with_every_option[4x1-{{route}}]",
            f"{COMMANDS}test_topk_of_files_with_every_option[2x2-{{route}}]",
            f"{EXACT}test_negative_and_zero_lengths_are_empty_rows[{{route}}-512-4]",
        ),
        cpu=(
            f"{ASKED}test_lengths_and_starts_of_every_shape",
            f"{REFERENCE}test_lengths_are_clamped_to_what_exists",
        ),
    ),
    Row(
        name="row_starts",
        what="a window of its own in each row; indices count from its start",
        gpu=(f"{OPTIONS}test_windows_begin_anywhere[float32-4-{{route}}]", f"{EVERY}[row_starts-{{route}}]"),
        cpu=(f"{ASKED}test_windows_begin_where_they_are_told_and_end_with_the_row", f"{WRONG}[starts forgotten]"),
    ),
    Row(
        name="index_dtype",
        what="int32, int64",
        gpu=(f"{EXACT}test_any_k[513-{{route}}]", f"{EVERY}[int64-{{route}}]"),
        cpu=(f"{ASKED}test_wide_places_are_exact_in_int64", f"{WRONG}[high words left]"),
    ),
    Row(
        name="values",
        what="the members' values bit for bit, -inf beside -1",
        gpu=(
            f"{EVERY}[values-{{route}}]",
            *(
                f"{OPTIONS}test_values_of_short_rows_are_filled_with_minus_infinity[{dtype}-{{route}}]"
                for dtype in ("float32", "bfloat16", "float16")
            ),
        ),
        cpu=(
            f"{ASKED}test_values_are_the_members_bit_for_bit_and_minus_infinity_elsewhere",
            f"{WRONG}[a value beside -1]",
        ),
    ),
    Row(
        name="order",
        what="`none`, `index` (ascending), `value` (the largest first)",
        gpu=(
            f"{EXACT}test_ties_fill_the_prefix[{{route}}-512-4]",
            f"{EVERY}[by_index-{{route}}]",
            f"{EVERY}[by_value-{{route}}]",
        ),
        cpu=(
            f"{ASKED}test_a_selection_without_choices_is_what_sorting_numbers_gives",
            f"{WRONG}[by index for by value]",
        ),
    ),
    Row(
        name="tie_break",
        what="`any`, `smallest`, `largest` index of equal values",
        gpu=(
            f"{EXACT}test_ties_fill_the_prefix[{{route}}-512-4]",
            f"{OPTIONS}test_ties_are_broken_by_index_in_long_rows[smallest-{{route}}]",
            f"{OPTIONS}test_ties_are_broken_by_index_in_long_rows[largest-{{route}}]",
        ),
        cpu=(
            f"{ASKED}test_a_selection_without_choices_is_what_sorting_numbers_gives",
            f"{ASKED}test_what_is_left_open_is_not_held_against_an_answer",
            f"{WRONG}[ties by the largest]",
        ),
    ),
    Row(
        name="deterministic",
        what="the same bits in, the same array out",
        gpu=(
            f"{EVERY}[deterministic-{{route}}]",
            f"{OPTIONS}test_a_hundred_repetitions_are_one_array[{{route}}]",
            f"{OPTIONS}test_the_same_bits_wherever_a_row_stands",
        ),
        cpu=(
            f"{SAID}test_deterministic_decides_only_what_was_left_open",
            f"{ASKED}test_a_selection_without_choices_is_what_sorting_numbers_gives",
        ),
    ),
    Row(
        name="nan",
        what="`lowest`, `highest`, whatever the sign and payload",
        gpu=(
            f"{OPTIONS}test_nan_of_either_sign_is_lowest_or_highest[lowest-{{route}}]",
            f"{OPTIONS}test_nan_of_either_sign_is_lowest_or_highest[highest-{{route}}]",
        ),
        cpu=(
            f"{ASKED}test_a_selection_without_choices_is_what_sorting_numbers_gives",
            f"{WRONG}[nan below]",
        ),
    ),
    Row(
        name="zeros",
        what="-0.0 equals +0.0",
        gpu=(f"{OPTIONS}test_signed_zeros_are_one_value[{{route}}]",),
        cpu=(
            f"{REFERENCE}test_keys_order_as_values_do",
            f"{ASKED}test_what_is_left_open_is_not_held_against_an_answer",
        ),
    ),
    Row(
        name="page_table",
        what="`page_size` of 1 or more; -1 stays -1; one table for each row, or for consecutive rows",
        gpu=(
            *(f"{OPTIONS}test_page_tables[{size}-{{route}}]" for size in (1, 3, 64, 4096)),
            f"{EVERY}[page_table-{{route}}]",
        ),
        cpu=(
            f"{ASKED}test_pages_lead_each_index_through_its_rows_table",
            f"{ASKED}test_a_page_that_is_not_there_gives_minus_one",
            f"{WRONG}[pages of -1]",
        ),
    ),
    Row(
        name="all at once",
        what="every option beside every other",
        gpu=(
            f"{EVERY}[all-{{route}}]",
            f"{EVERY}[all_bfloat16-{{route}}]",
            f"{EVERY}[all_float16-{{route}}]",
        ),
        cpu=(
            f"{HARNESS}test_schedules_layouts_plans_and_dirty_workspaces",
            f"{SAID}test_the_parameter_block_carries_what_was_asked_for",
        ),
    ),
    Row(
        name="CUDA graphs",
        what="a captured launch is right for any later lengths",
        gpu=(f"{GRAPHS}[{{route}}]",),
        cpu=(
            f"{CALLED}test_an_unprepared_call_inside_a_capture_is_refused",
            f"{CALLED}test_clusters_run_inside_a_capture_once_they_are_prepared",
        ),
    ),
)

PLAIN_COMPILED = f"{COMPILED}test_every_instantiation_compiles_without_spills"
CLUSTERS_COMPILED = f"{COMPILED}test_clusters_of_every_size_compile_without_spills"
OPTIONS_COMPILED = f"{COMPILED}test_options_are_instantiations_of_their_own"
OPTION_ARCHITECTURES = ("sm_80", "sm_90a", "sm_120a")
"""Where each option, and all of them at once, are compiled by the tests; elsewhere on first use, unseen by them."""
ARCHITECTURE_TESTS = {
    PLAIN_COMPILED: ARCHITECTURES,
    CLUSTERS_COMPILED: tuple(arch for arch in ARCHITECTURES if max_cluster(arch) > 1),
    OPTIONS_COMPILED: OPTION_ARCHITECTURES,
}
"""The tests that compile for architectures, the first part of their parameters, and for which."""


def _cell(tests: Sequence[str]) -> str:
    """The files of the tests, as links: 'test_exact.py' is 'exact'."""
    files = dict.fromkeys(test.split("::")[0] for test in tests)
    return " ".join(f"[{Path(file).stem.removeprefix('test_').replace('_', ' ')}]({file})" for file in files)


def content() -> str:
    """Everything between the markers."""
    lines = [
        f"| | | {' | '.join(ROUTES)} | without a GPU |",
        "|---|---|" + "---|" * (len(ROUTES) + 1),
        *(
            f"| {row.name} | {row.what} | {' | '.join(_cell(row.on(route)) for route in ROUTES)} | {_cell(row.cpu)} |"
            for row in ROWS
        ),
        "",
        f"| compiled by the tests for | {' | '.join(ARCHITECTURES)} |",
        "|---|" + ":---:|" * len(ARCHITECTURES),
        f"| persistent, filtered at k 512, 1024, 2048 | {' | '.join('yes' for _ in ARCHITECTURES)} |",
        "| clustered at k 512, 1024, 2048, 4096, with 2 to 16 blocks | "
        + " | ".join("yes" if max_cluster(arch) > 1 else "none there" for arch in ARCHITECTURES)
        + " |",
        "| each option, and all at once | "
        + " | ".join("yes" if arch in OPTION_ARCHITECTURES else "" for arch in ARCHITECTURES)
        + " |",
    ]
    return "\n".join(lines)


def rewritten(readme: str) -> str:
    """README with the tables as the rows have them between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{content()}\n{END}{after}"


def behind(name: str) -> Iterator[str]:
    """The tests of one row, or of all for ""."""
    for row in ROWS:
        if name in ("", row.name):
            yield from row.tests
    if not name:
        yield from ARCHITECTURE_TESTS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tests", nargs="?", const="", choices=["", *(row.name for row in ROWS)], metavar="ROW")
    arguments = parser.parse_args(argv)
    if arguments.tests is not None:
        print(*dict.fromkeys(behind(arguments.tests)), sep="\n")
        return 0
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = rewritten(text)
    if arguments.check:
        return 0 if new == text else 1
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
