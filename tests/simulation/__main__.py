"""All short histories of one and two daemons, then random ones, until the time is over.

python3 -m tests.simulation [--minutes N] [--seed S] [--exhaustive]
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time

from tests.simulation.exhaustive import Search, one_daemon, two_daemons
from tests.simulation.histories import Scenario, random_scenario, shortest
from tests.simulation.kernel import Kernel, Violation, load
from tests.simulation.mutants import SOURCE


def report(scenario: Scenario, violation: Violation) -> int:
    print(f"seed {scenario.seed}: {violation}\n")
    print("As a test, for tests/simulation/test_found.py:\n")
    print(scenario.as_test(violation))
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.simulation", description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="how long (1)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the first random history (a random one)")
    parser.add_argument("--events", type=int, default=1000, metavar="N", help="of each long random history (1000)")
    parser.add_argument("--depth", type=int, default=7, metavar="N", help="events of the short histories (7)")
    parser.add_argument("--exhaustive", action="store_true", help="all short histories, however long that takes")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    kernel = Kernel()
    module = load(SOURCE.read_text(), kernel)
    began, seconds = time.monotonic(), 60 * options.minutes

    # Of two daemons there are so many histories that these end sooner. With --exhaustive, all of them are searched.
    for what, tables, depth, share in (
        ("one daemon", list(one_daemon()), options.depth, 1 / 3),
        ("two daemons", list(two_daemons()), options.depth if options.exhaustive else min(3, options.depth), 2 / 3),
    ):
        random.Random(seed).shuffle(tables)
        searched, states, steps, until = 0, 0, 0, None if options.exhaustive else began + seconds * share
        for table in tables:
            if until is not None and time.monotonic() > until:
                break
            search = Search(module, kernel, table)
            if found := search.run(depth, until):
                return report(*found)
            searched, states, steps = searched + search.is_whole, states + len(search.states), steps + search.steps
            if options.exhaustive:
                print(f"{len(search.states)} states, {search.steps} histories: {table}", flush=True)
        print(
            f"{what}, all histories of {depth} events: {searched} of {len(tables)} tables, {states} states,"
            f" {steps} histories, {time.monotonic() - began:.0f} s",
            flush=True,
        )

    simulated, histories, began_random = 0.0, 0, time.monotonic()
    for number in itertools.count(seed):
        if time.monotonic() > began + seconds:
            break
        # Many short histories, and some long ones: what two events do to each other shows in either.
        scenario = random_scenario(number, *((options.events, 20) if number % 10 == 0 else (60, 4)))
        violation = scenario.run(module, kernel)
        simulated, histories = simulated + kernel.now - 1000.0, histories + 1
        if violation:
            return report(*shortest_of(scenario, violation, module, kernel))
    took = time.monotonic() - began_random
    print(f"{histories} random histories, {simulated / 3600:.0f} simulated hours, {took:.0f} s")
    return 0


def shortest_of(scenario: Scenario, violation: Violation, module: object, kernel: Kernel) -> tuple[Scenario, Violation]:
    """The shortest history that breaks the same rule, whatever the daemon's name."""
    found = violation

    def fails(candidate: Scenario) -> bool:
        nonlocal found
        broken = candidate.run(module, kernel)
        if broken is None or _rule(broken, candidate) != _rule(violation, scenario):
            return False
        found = broken
        return True

    short = shortest(scenario, fails)
    return short, found


def _rule(violation: Violation, scenario: Scenario) -> str:
    words = str(violation).split(": b'")[0].replace("-", " ").split()
    return " ".join(word for word in words if word.isalpha() and word not in scenario.table)


if __name__ == "__main__":
    sys.exit(main())
