"""The kernels with one thing taken out: a barrier, a fence, a reset, a step of the meeting. Each must be caught.

Barriers, fences and `clear_bins` are found in the sources, so a new one is on the list from the day it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from drvtopk.source import kernel_sources
from tests.harness import guards
from tests.harness.scenario import Scenario, telling_cluster, telling_gather, telling_registers, telling_scenario

_FOUND = (
    (re.compile(r"\n[^\n/]*__syncthreads\(\);"), "", "no barrier"),
    (re.compile(r"store_release\("), "store_relaxed(", "relaxed store"),
    (re.compile(r"add_release\("), "add_relaxed(", "relaxed add"),
    (re.compile(r"load_acquire\("), "load_relaxed(", "relaxed load"),
    (re.compile(r"(?<=\n)[ ]+clear_bins\([^\n]*;"), "", "bins not cleared"),
    (re.compile(r"(?<=\n)[ ]+clear_coarse<[^\n]*;"), "", "coarse bins not cleared"),
    (re.compile(r"(?<= )s\.above_count = (?=s\.)"), "", "above_count not reset"),
    (re.compile(r"s\.tie_count = (?=s\.|0)"), "", "tie_count not reset"),
    (re.compile(r"s\.candidate_count = (?=0)"), "", "candidate_count not reset"),
    (re.compile(r"(?<= )cluster_barrier\(\);"), ";", "no cluster barrier"),
    (re.compile(r"cluster_arrive\(\);"), "cluster_arrive_relaxed();", "relaxed arrival"),
    (re.compile(r"ptx::cluster_wait\(\);"), "", "no wait for the cluster"),
)


def _telling_both(seed: int) -> Scenario:
    """Rows of one block that are not gathered, rows that are, and rows that registers hold."""
    return (telling_scenario, telling_gather, telling_registers)[seed % 3](seed // 3)


def _telling_clusters(seed: int) -> Scenario:
    """Rows of clusters that are not gathered, and rows that are."""
    return (telling_cluster, telling_gather)[seed % 2](seed // 2)


def _telling_registers(seed: int) -> Scenario:
    """Rows of one block of all kinds, and such as registers hold and are not told apart at once."""
    return (telling_scenario, telling_registers)[seed % 2](seed // 2)


def _telling_pass(seed: int) -> Scenario:
    """Those in which a block reads a long row by a sampled pivot."""
    return telling_scenario(64 * (seed // 8) + 4 * (seed % 8) + 2)


# The scenarios that run a file, where not all of those without clusters do.
_TELLING: Mapping[str, Callable[[int], Scenario]] = {
    "row_cluster.cuh": telling_cluster,
    "clustered.cu": _telling_clusters,
    "row_alone.cuh": _telling_both,
    "row_registers.cuh": _telling_registers,
    "scan.cuh": _telling_registers,
    "row_pass.cuh": _telling_pass,
    "row_gather.cuh": telling_gather,
    "coarse.cuh": telling_gather,
    "deal.cuh": telling_gather,
    "lists.cuh": telling_gather,
    "own_pivot.cuh": telling_gather,
}
# Where they count as found: ptx.cuh only defines them, and its stand-in is what runs here.
_FILES = (
    "sync.cuh",
    "row_group.cuh",
    "held.cuh",
    "narrow.cuh",
    "rank.cuh",
    "select.cuh",
    "finish.cuh",
    *_TELLING,
)

# (file, the text, what stands there instead, what is missing)
_BY_HAND = (
    ("sync.cuh", "i < kStateLineWords + kRounds * kRoundWords", "i < kStateLineWords", "rounds not cleared"),
    (
        "sync.cuh",
        "u32 i = threadIdx.x; i < kStateLine",
        "u32 i = 1 + threadIdx.x; i < kStateLine",
        "arrivals not cleared",
    ),
    ("sync.cuh", "ptx::store_relaxed(g.said(r), kHello)", "(void)0", "the leader says no hello"),
    ("sync.cuh", "ptx::store_relaxed(g.echo(rank), kHello)", "(void)0", "a block says no hello"),
    ("sync.cuh", "{ return ptx::load_relaxed(g.echo(r)) == kHello; }", "{ return true; }", "no wait for hello"),
    ("sync.cuh", "{ return ptx::load_relaxed(g.echo(r)) == kAgain; }", "{ return true; }", "no wait for again"),
    ("sync.cuh", "ptx::store_relaxed(g.said(r), kAgain);", "", "the leader does not say again"),
    ("sync.cuh", "ptx::store_relaxed(g.echo(rank), word);", "", "a block does not answer"),
    ("sync.cuh", "word == kGo && met", "word == kGo", "go believed without again"),
    ("sync.cuh", "met = met || word == kAgain;", "met = true;", "a stale go believed at the second look"),
    ("sync.cuh", "- target) >= 0; }", "- target) >= -1; }", "the barrier lets one block early"),
    ("row_group.cuh", "ptx::store_relaxed(finished + i, 0);", "", "rounds not cleared after use"),
    ("row_group.cuh", "i < kRoundWords;", "i < kBins;", "output counters not cleared after use"),
    (
        "params.cuh",
        "kRounds = DRVTOPK_ROUNDS",
        "kRounds = 2",
        "two rounds in rotation: cleared while the next is filled",
    ),
    (
        "row_group.cuh",
        "  group_barrier(m.state, m.target);\n#pragma unroll 1\n  for",
        "#pragma unroll 1\n  for",
        "no group barrier",
    ),
    (
        "row_group.cuh",
        "    group_barrier(m.state, m.target);\n    if (my_turn",
        "    if (my_turn",
        "members sorted before all are there",
    ),
    ("row_group.cuh", "if (my_turn()) {", "{", "every block writes the sorted row"),
    ("row_pass.cuh", "kept > list.room || ", "", "more is kept than there is room for"),
    ("row_pass.cuh", " || kept + ties < K", "", "too little is kept"),
    ("row_pass.cuh", "if (place < room)", "if (true)", "written behind what there is room for"),
    ("row_pass.cuh", "if (place < K)", "if (true)", "more ties than places"),
    ("held.cuh", "member = own > 4 * bin;", "member = own >= 4 * bin;", "all of a bin are members"),
    ("held.cuh", "if (place < need) sh.staged", "sh.staged", "more ties than places where keys are held"),
    (
        "narrow.cuh",
        "min(in.high - in.low, (1u << shift) - 1)",
        "((1u << shift) - 1)",
        "an interval past the largest number",
    ),
    ("narrow.cuh", "in.low += s.digit << shift;", "", "every interval begins where the first did"),
    ("narrow.cuh", "key > keys.high || (kTies", "key >= keys.high || (kTies", "all of an interval are members"),
    ("narrow.cuh", "if (key == wanted) f(", "f(", "ranks of other keys count"),
    ("row_registers.cuh", "if (s.digit == 0) return;", "", "what is no number is told apart by value"),
    ("row_registers.cuh", " && !(kTies && equal)", "", "any of equal ones, asked for the first"),
    ("row_registers.cuh", "equal = above < K && K <= reached", "equal = K <= reached", "too few places for the larger"),
    ("row_registers.cuh", "equal = counted < K;", "equal = true;", "enough are filled up"),
    ("row_registers.cuh", "need = K - counted;", "need = K;", "those that count take no places"),
    ("row_registers.cuh", "if (equal && lowest < need) {", "if (false) {", "too few -inf, and no NaN"),
    ("row_registers.cuh", " && index_of(which) < row.n", "", "what lies past the row is -inf"),
    ("row_registers.cuh", "if (before == wanted) s.pivot = key;", "", "nothing is chosen of the sample"),
    ("row_registers.cuh", "candidates = larger, count = above;", "count = above;", "smaller ones stay candidates"),
    ("row_registers.cuh", "candidates = same, need -= above,", "candidates = same,", "larger ones take no places"),
    ("row_registers.cuh", "members |= same, need -= reached;", "need -= reached;", "what equals the tried one is lost"),
    ("row_registers.cuh", "candidates &= ~(larger | same), ", "", "members stay candidates"),
    ("row_registers.cuh", "members |= candidates & larger,", "", "what lies above a bin is lost"),
    ("row_registers.cuh", "if (cut) load_part(own, held[0]);", "", "no first load of a window within one"),
    ("row_registers.cuh", "if (d == whole) held[d] = part;", "", "no last load of a row"),
    (
        "row_registers.cuh",
        "candidates && (!equal || among < need)",
        "candidates",
        "more ties than places in registers",
    ),
    ("keys.cuh", "kNanHighest && x != x ? 1.0f : saturated", "saturated", "NaN falls into the lowest bin"),
    ("loads.cuh", "if (kRowStarts && d == 0) hits &= ~0u << before;", "", "picked before the window"),
    ("loads.cuh", "to = atomicAdd(counter, 1u);", "", "two of one load at one place"),
    ("rank.cuh", "others[j] > key[e] ||", "others[j] >= key[e] ||", "equal candidates all rank behind each other"),
    ("row_registers.cuh", "-3.0f - four", "-2.0f - four", "the last quarter of a bin lies above it"),
    ("row_registers.cuh", "1.0f - four", "0.0f - four", "the first quarter of a bin lies below it"),
    ("row_registers.cuh", "sums[0]) & 0xffffu", "sums[0]) & 0xfffeu", "one of sixteen elements is not looked at"),
    ("finish.cuh", "if (i >= m) sh.staged[i] = 0x7fffffff;", "", "no padding behind what is sorted"),
    ("finish.cuh", "other.before(mine) == (lower == up)", "other.before(mine) == up", "the sort goes one way only"),
    (
        "select.cuh",
        "rank(index) >> index_shift > index_prefix",
        "rank(index) >> index_shift >= index_prefix",
        "ties counted as above",
    ),
    ("row_group.cuh", "meet_finish(m.state, m.rank);", "", "no second half of the meeting"),
    ("row_group.cuh", "meet_begin(m.state, m.rank);", ";", "no first half of the meeting"),
    ("clustered.cu", "        ++met;\n", "", "the cluster never counts as met"),
    ("clustered.cu", "met += gathers;", "", "mail is never counted"),
    ("own_pivot.cuh", "if (s.count == 0) return kLowestNumber;", "", "a pivot where there are too few groups"),
    ("clustered.cu", "row / p.groups % kCluster == rank", "true", "every block of a cluster takes the row"),
    ("row_gather.cuh", "if (r < p.groups) {", "if (true) {", "relaxed where something was touched"),
    ("row_gather.cuh", "align_up(own, 4)", "own / 4 * 4", "what fills no 16 bytes is not sent"),
    ("lists.cuh", "(2 * kCluster) / 4 * 4", "(2 * kCluster)", "slots that are sent to no multiple of 16 bytes"),
    ("lists.cuh", "hits != 0 && place < room;", "hits != 0;", "listed behind what there is room for"),
    (
        "row_gather.cuh",
        "const bool full = own > room;",
        "const bool full = false;",
        "more is listed than there is room for",
    ),
    ("lists.cuh", "if (place < to.tie_room()) to", "to", "more ties are listed than there is room for"),
    ("row_gather.cuh", "if (count == 0) return false;", "", "too little reaches the highest pivot"),
    ("row_gather.cuh", "told.z == highest ? told.y : 0u", "told.y", "ties at a lower pivot count"),
    ("row_gather.cuh", "lane < rank ? tied : 0u", "0u", "every block's ties begin at one place"),
    ("row_gather.cuh", "lane < warp ? sums : 0u", "0u", "every warp's members begin at one place"),
    ("row_gather.cuh", "within(keys[d]) && own_place < need", "within(keys[d])", "more equal ones than places"),
    ("row_gather.cuh", "if (among < need)", "if (true)", "more ties than places"),
    ("row_gather.cuh", "with_ties ? 0 : kRanked", "kRanked", "ties that have no key are ranked"),
    ("row_gather.cuh", "return id - own_first < lists.slot;", "return true;", "every block writes all that is ranked"),
    ("deal.cuh", "held[d].set(v, kNothing)", "held[d].set(v, kFill)", "what lies past the row is -inf"),
    ("deal.cuh", "at + Vec > last || ", "", "what lies past the row counts"),
    (
        "lists.cuh",
        "if (at(which) < share.first || at(which) >= share.last / Vec * Vec) hits ^= 1u << which;",
        "",
        "what is not of the row ties",
    ),
    ("row_gather.cuh", "if (has_left) {", "if (false) {", "what fills no load is left out"),
    ("row_gather.cuh", "u32 first = K - need;", "u32 first = K - need + 1;", "places begin one too late"),
    ("coarse.cuh", "if (lane == 31 && upto < need) s.count = 0;", "", "nobody says that there are too few"),
    ("coarse.cuh", "s.need = need - above;", "s.need = need;", "what lies above a bin is not told"),
    ("row_cluster.cuh", "if (met) {", "if (!met) {", "relaxed where something was written"),
    ("row_cluster.cuh", "kept > room || ", "", "more is kept than there is room for"),
    ("row_cluster.cuh", " || kept + ties < K", "", "too little is kept"),
    ("row_cluster.cuh", "kept < K || __reduce_max", "__reduce_max", "blocks end before their ties are fetched"),
    ("row_cluster.cuh", " || __reduce_max_sync(0xffffffffu, count) > slot", "", "blocks end before all is fetched"),
    ("row_cluster.cuh", "i < min(own, slot)", "i < own", "more is sent than a slot holds"),
    ("row_cluster.cuh", "s.tie_count = s.gathered = s.gathered_ties = 0", "s.tie_count = 0", "counters not reset"),
    ("row_cluster.cuh", " && tie_base + i < K", "", "more ties than places"),
    ("row_cluster.cuh", "if (place < list.room)", "", "listed behind what there is room for"),
    (
        "row_cluster.cuh",
        "indices[d] = ptx::remote_load(&list.indices[i], from)",
        "indices[d] = 0",
        "indices are not fetched",
    ),
)


# Guards that only rows made for them need: (file, the text, what stands there instead, scenarios that show it).
_GUARDS: tuple[tuple[str, str, str, Callable[[int], Scenario]], ...] = (
    ("row_gather.cuh", "max(pivot + 1, kLowestNumber)", "pivot + 1", guards.first_batch_without_numbers),
    ("row_gather.cuh", "in.contains(key) && key != 0", "in.contains(key)", guards.first_batch_without_numbers),
    ("own_pivot.cuh", "most[g] + 0.0f", "most[g]", guards.negative_zeros_first),
    ("own_pivot.cuh", "if (bounds.low > bounds.high) return bounds.high;", "", guards.first_batch_without_numbers),
    (
        "scan.cuh",
        "if (threadIdx.x == kThreads - 1 && before + own < need) s.count = 0;",
        "",
        guards.too_few_groups,
    ),
    ("row_cluster.cuh", "max(stretch.first, listed)", "listed", guards.short_last_part),
    ("row_alone.cuh", "p.candidates >= kLeastCandidates && ", "", guards.little_room),
    ("rank.cuh", "kTies ? Threshold::rank(0) : ~0u", "0u", guards.few_nans_fill_the_places),
    ("held.cuh", "ranks = s.count <= kRanked;", "ranks = true;", guards.crowded_bin),
    (
        "finish.cuh",
        "static_cast<i64>(page) * page_size",
        "static_cast<i64>(static_cast<u32>(page) * page_size)",
        guards.pages_past_31_bits,
    ),
    ("finish.cuh", "page < 0 ?", "false ?", guards.pages_past_31_bits),
    ("row_pass.cuh", "if (queued > list.room && threadIdx.x == 0)", "if (false)", guards.misled_by_samples),
    ("deal.cuh", "!cut(batch, 0)", "true", guards.windows_that_cut_the_first_load),
    ("deal.cuh", " || cut(batch, d)", "", guards.windows_that_cut_the_first_load),
    ("row_registers.cuh", "max(key_of_bound(x), bounds.low)", "key_of_bound(x)", guards.zeros_among_tiny),
    ("row_registers.cuh", "key_of_bound(high + 0.0f)", "key_of_bound(high)", guards.zeros_above_denormals),
    ("row_registers.cuh", "max(s.pivot, bounds.low)", "s.pivot", guards.no_sample_in_the_first_warp),
)
# Clamps that no result needs: what is beyond them is not looked at, or only a guess gets worse.
_HARMLESS = {
    ("held.cuh", "min(base + d * kThreads + threadIdx.x, held - 1)"),
    ("loads.cuh", "min(last - at, static_cast<u32>(Vec))"),
    ("own_pivot.cuh", "min(kThreads, (share.last / Vec + kCluster - 1) / kCluster)"),
    ("row_cluster.cuh", "min(s.tie_count, s.need)"),
    ("row_cluster.cuh", "min(s.gathered_ties, static_cast<u32>(K))"),
    ("row_group.cuh", "min(s.tie_count, s.need)"),
    ("row_pass.cuh", "min(low + 2.25f, (low + high) * 0.5f)"),
    ("row_pass.cuh", "min(static_cast<u32>(root * root) + 1u, samples)"),
    ("row_pass.cuh", "min(s.gathered_ties, static_cast<u32>(K))"),
    ("row_registers.cuh", "min(last - at, static_cast<u32>(Vec))"),
    ("row_registers.cuh", "min(need * have / count, have - 1)"),
}
# The scenarios that show a clamp missing, where those of its file do not.
_CLAMPED: Mapping[tuple[str, str], Callable[[int], Scenario]] = {
    ("coarse.cuh", "min((1u << shift) - 1, ~0u - in.low)"): guards.bins_up_to_the_largest_key,
    ("coarse.cuh", "min((x - low) >> shift, Bins - 1)"): guards.bins_up_to_the_largest_key,
    ("held.cuh", "min(i, held - 1)"): guards.lists_of_all_lengths,
    ("row_cluster.cuh", "min(rank * each, n)"): guards.empty_parts,
    ("row_pass.cuh", "min(queued, list.room)"): guards.misled_by_samples,
}
_CLAMP = re.compile(r"(?<!low = )(?<![\w:])min\(")  # not a running minimum


def _clamps(text: str) -> Iterator[tuple[int, int, str]]:
    """(begin, end, what stands there without it) of each min(value, bound)."""
    for match in _CLAMP.finditer(text):
        depth, at, comma = 1, match.end(), 0
        while depth:
            depth += (text[at] == "(") - (text[at] == ")")
            if depth == 1 and text[at] == "," and not comma:
                comma = at
            at += 1
        yield match.start(), at, text[match.end() : comma]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One change of one file."""

    name: str
    file: str
    text: str
    """What stands in the file then."""
    telling: Callable[[int], Scenario]
    """Scenarios that run the change, by seed."""

    @property
    def sources(self) -> dict[str, bytes]:
        """All kernel files, one of them changed."""
        return {**kernel_sources(), self.file: self.text.encode()}


def misfits() -> list[str]:
    """What is wrong with those written by hand: a text that the sources do not hold, or hold twice."""
    sources = kernel_sources()
    return [
        f"{file} does not hold {text!r} once: change the list of mutations with it"
        for file, text, *_ in (*_BY_HAND, *_GUARDS)
        if sources[file].count(text.encode()) != 1
    ]


def mutations() -> Iterator[Mutation]:
    """Every mutation of the sources as they are now, without the misfits."""
    sources = {name: data.decode() for name, data in kernel_sources().items()}

    def changed(
        file: str, start: int, end: int, by: str, what: str, telling: Callable[[int], Scenario] | None = None
    ) -> Mutation:
        text = sources[file]
        line = text.count("\n", 0, start + (text[start] == "\n")) + 1
        telling = telling or _TELLING.get(file, telling_scenario)
        return Mutation(name=f"{file}:{line} {what}", file=file, text=text[:start] + by + text[end:], telling=telling)

    def places(file: str, text: str) -> Iterator[tuple[int, int]]:
        if sources[file].count(text) == 1:
            start = sources[file].index(text)
            yield start, start + len(text)

    for file in _FILES:
        for pattern, by, what in _FOUND:
            for match in pattern.finditer(sources[file]):
                yield changed(file, match.start(), match.end(), by, what)
    for file, text, by, what in _BY_HAND:
        for start, end in places(file, text):
            yield changed(file, start, end, by, what)
    for file in sorted({*sources} - {"ptx.cuh"}):
        for start, end, by in _clamps(sources[file]):
            clamp = file, sources[file][start:end]
            if clamp not in _HARMLESS:
                yield changed(file, start, end, f"({by})", f"no bound of {by}", _CLAMPED.get(clamp))
    for file, text, by, telling in _GUARDS:
        for start, end in places(file, text):
            yield changed(file, start, end, by, telling.__name__, telling)


def caught(mutation: Mutation, schedules: int = 80) -> str:
    """What the first schedule that notices the mutation says of it; nothing if none of them does."""
    for seed in range(schedules):
        complaint = mutation.telling(seed).complaint(sources=mutation.sources, timeout=20)
        if complaint:
            return f"schedule {seed}: {complaint}"
    return ""
