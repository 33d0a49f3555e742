"""Runs the kernels' own code on this machine's CPU, with a bounded number of resident blocks and drawn schedules.

    python tools/simulate.py --schedules 1000 --seed 0    # random problems, workspaces and schedules, checked exactly
    python tools/simulate.py --ancestor --slots 8         # one block more than fit, launched all the same: a deadlock
    python tools/simulate.py --mutations                  # the kernels with one barrier, fence or reset taken out

Exit code 0: all exact; the ancestor's deadlock was found; every mutation was caught. Otherwise 1, and for a hang or a
wrong result one line that repeats it. Needs a host C++ compiler ($CXX, g++ unless set) and no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from drvtopk.plan import Problem
from drvtopk.spec import check_k
from tests.harness.mutations import caught, mutations
from tests.harness.scenario import Scenario, ancestor, any_scenario, plan_for


def explore(schedules: int, seed: int, slots: int | None, k: int | None, sanitize: bool, jobs: int) -> int:
    """Schedules `seed`, `seed` + 1, ...; ends at the first complaint."""

    def one(number: int) -> tuple[int, Scenario, str]:
        scenario = any_scenario(number, slots=slots, k=k)
        return number, scenario, scenario.complaint(sanitize=sanitize)

    ran: Counter[str] = Counter()
    with ThreadPoolExecutor(jobs) as pool:
        for first in range(seed, seed + schedules, 64):
            for number, scenario, complaint in pool.map(one, range(first, min(first + 64, seed + schedules))):
                if complaint:
                    options = f"--schedules 1 --seed {number}"
                    options += "" if slots is None else f" --slots {slots}"
                    options += "" if k is None else f" --k {k}"
                    options += " --sanitize" if sanitize else ""
                    print(f"{scenario.plan.why}\n{complaint}\nrepeat: python tools/simulate.py {options}")
                    return 1
                made = scenario.plan
                meets = f"by {made.group}" if made.route == "clustered" else "cooperative" if made.cooperative else ""
                ran[f"{made.route}, {meets or 'none waits'}"] += 1
    print(
        f"{ran.total()} schedules, all exact: " + "; ".join(f"{what}: {count}" for what, count in sorted(ran.items()))
    )
    return 0


def show_ancestor(slots: int) -> int:
    """The deadlock, and what the planner does with the same row instead."""
    scenario = ancestor(slots)
    complaint = scenario.complaint()
    print(f"{scenario.plan.grid} blocks wait for each other, {slots} fit:\n{complaint}")
    if not complaint.startswith("deadlock"):
        print(f"no deadlock was reported\nrepeat: python tools/simulate.py --ancestor --slots {slots}")
        return 1
    problem = Problem(rows=1, width=scenario.plan.width, k=scenario.plan.k)
    print(f"the planner: {plan_for(problem, slots, chunk=scenario.plan.chunk).why}")
    return 0


def show_mutations(jobs: int) -> int:
    """Every mutation with what caught it."""
    listed = list(mutations())
    with ThreadPoolExecutor(jobs) as pool:
        answers = list(pool.map(caught, listed))
    for mutation, answer in zip(listed, answers, strict=True):
        print(f"{mutation.name}: {answer.splitlines()[0] if answer else 'NOT CAUGHT'}")
    print(f"{sum(map(bool, answers))}/{len(listed)} mutations caught")
    return 0 if all(answers) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--schedules", type=int, metavar="N", help="problems to simulate, each with a schedule of its own"
    )
    what.add_argument("--ancestor", action="store_true", help="show the deadlock of a grid that does not fit")
    what.add_argument("--mutations", action="store_true", help="take out one barrier, fence or reset at a time")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first schedule's number (default 0)")
    parser.add_argument("--slots", type=int, metavar="n", help="resident blocks (default: drawn, 8 for --ancestor)")
    parser.add_argument("--k", type=int, help="places (default: drawn)")
    parser.add_argument(
        "--sanitize",
        action="store_true",
        help="AddressSanitizer and UndefinedBehaviorSanitizer instead of the race check",
    )
    parser.add_argument("--jobs", type=int, default=2, help="simulations at a time (default 2)")
    a = parser.parse_args(arguments)
    if a.slots is not None and not 1 <= a.slots <= 64:
        parser.error("--slots: 1 to 64")
    if a.ancestor:
        return show_ancestor(8 if a.slots is None else a.slots)
    if a.mutations:
        return show_mutations(a.jobs)
    return explore(a.schedules, a.seed, a.slots, None if a.k is None else check_k(a.k), a.sanitize, a.jobs)


if __name__ == "__main__":
    sys.exit(main())
