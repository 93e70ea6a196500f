"""All fault tests: python3 -m tests.faults [--minutes N] [--seed S]; --help tells more."""

from __future__ import annotations

import argparse
import os
import random
import sys
import unittest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.faults", description="What the supervisor survives.")
    parser.add_argument("--minutes", type=float, default=2.0, metavar="N", help="how long the chaos lasts (2)")
    parser.add_argument("--seed", type=int, metavar="S", help="repeat the random parts of a run that printed it")
    parser.add_argument("--suspend", type=float, default=3.0, metavar="SECONDS", help="how long PID 1 is stopped (3)")
    parser.add_argument("--memory", type=int, default=0, metavar="MIB", help="so much address space for each process")
    parser.add_argument("--only", choices=("scenarios", "chaos"), help="leave the other part out")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    os.environ |= {
        "SIDECAR_INIT_FAULTS": "1",
        "SIDECAR_INIT_SEED": str(seed),
        "SIDECAR_INIT_SUSPEND": str(options.suspend),
        "SIDECAR_INIT_MEMORY": str(options.memory),
    }
    print(f"seed {seed}", flush=True)
    passed = failed = skipped = 0
    if options.only != "chaos":
        suite = unittest.defaultTestLoader.discover(os.path.dirname(__file__), top_level_dir=os.getcwd())
        result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
        # A test of several subtests may fail more than once.
        failed = len({test.id().partition(" ")[0] for test, _ in result.failures + result.errors})
        skipped = len(result.skipped)
        passed = result.testsRun - failed - skipped
    if options.only != "scenarios":
        from tests.faults import chaos
        from tests.pidns.harness import NamespaceTestCase

        if getattr(NamespaceTestCase, "__unittest_skip__", False):
            print(f"chaos: skipped, {NamespaceTestCase.__unittest_skip_why__}")  # type: ignore[attr-defined]
            skipped += 1
        elif chaos.run(options.minutes, seed):
            passed += 1
        else:
            failed += 1
    print(f"seed {seed}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
