"""Histories of a supervisor on a simulated kernel; see tests/simulation/__main__.py for more of them."""

from __future__ import annotations

import unittest
from typing import Any

from tests.simulation.__main__ import shortest_of
from tests.simulation.exhaustive import Search, one_daemon
from tests.simulation.histories import random_scenario
from tests.simulation.kernel import Kernel, load
from tests.simulation.mutants import MUTANTS, SOURCE, find, source


class Simulation(unittest.TestCase):
    kernel: Kernel
    module: Any

    @classmethod
    def setUpClass(cls) -> None:
        cls.kernel = Kernel()
        cls.module = load(SOURCE.read_text(), cls.kernel)

    def test_no_rule_is_broken_in_random_histories(self) -> None:
        for seed in range(100):
            scenario = random_scenario(seed, events=60, daemons=4)
            if violation := scenario.run(self.module, self.kernel):
                short, found = shortest_of(scenario, violation, self.module, self.kernel)
                self.fail(f"seed {seed}: {found}\n{short.as_test(found)}")

    def test_no_rule_is_broken_in_a_long_history_of_many_daemons(self) -> None:
        scenario = random_scenario(3, events=1000, daemons=20)
        self.assertIsNone(scenario.run(self.module, self.kernel))

    def test_no_rule_is_broken_in_any_history_of_two_events(self) -> None:
        for table in one_daemon():
            found = Search(self.module, self.kernel, table).run(2)
            self.assertIsNone(found, found and found[0].as_test(found[1]))

    def test_a_history_can_be_repeated(self) -> None:
        scenario = random_scenario(2, events=200, daemons=4)
        calls = []
        for _ in range(2):
            scenario.run(self.module, self.kernel)
            calls.append((self.kernel.calls, self.kernel.now))
        self.assertEqual(*calls)

    def test_the_shortest_history_is_found(self) -> None:
        kernel = Kernel()
        module = load(source("a replacement does not wait for the group"), kernel)
        found = find("a replacement does not wait for the group")
        assert found
        scenario, violation, _ = found
        short, again = shortest_of(scenario, violation, module, kernel)
        self.assertLessEqual(len(short.history), 4)
        self.assertIn("starts while its old group lives", str(again))
        self.assertIn("self.replay(", short.as_test(again))


class Mutants(unittest.TestCase):
    """A supervisor that breaks a rule is found out."""

    def test_each_mistake_is_found(self) -> None:
        for name in MUTANTS:
            with self.subTest(name):
                self.assertIsNotNone(find(name))


if __name__ == "__main__":
    unittest.main()
