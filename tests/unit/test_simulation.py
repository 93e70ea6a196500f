"""Random histories of a simulated world break no rule of the supervisor; see tests/unit/simulation.py."""

from __future__ import annotations

import os
import unittest
from unittest import mock

import sidecar_init
from sidecar_init import _Daemon, _Readiness, _Supervisor
from tests.unit.simulation import History, Violation

FIRST_SEED = int(os.environ.get("SIDECAR_INIT_SEED", "1"))


class Simulation(unittest.TestCase):
    def test_no_rule_is_broken_in_2000_random_histories(self) -> None:
        for seed in range(FIRST_SEED, FIRST_SEED + 2000):
            History(seed).run()

    def test_none_is_broken_if_the_shutdown_is_requested_by_a_call(self) -> None:
        for seed in range(FIRST_SEED, FIRST_SEED + 500):
            History(seed, called=True).run()

    def test_a_history_can_be_repeated(self) -> None:
        for seed in range(FIRST_SEED, FIRST_SEED + 20):
            first, second = History(seed), History(seed)
            first.run()
            second.run()
            self.assertEqual(first.trace, second.trace)


class Control(unittest.TestCase):
    """A supervisor that breaks a rule is found out."""

    def assert_found(self, what: str) -> None:
        with self.assertRaisesRegex(Violation, what):
            for seed in range(FIRST_SEED, FIRST_SEED + 500):
                History(seed).run()

    def test_a_grace_that_is_too_short(self) -> None:
        with mock.patch.object(sidecar_init, "_GRACE_SECONDS", 7.9):
            self.assert_found("is killed before its grace is over")

    def test_a_grace_that_is_too_long(self) -> None:
        with mock.patch.object(sidecar_init, "_GRACE_SECONDS", 8.5):
            self.assert_found("the shutdown took")

    def test_a_wait_for_others_that_is_too_short(self) -> None:
        with mock.patch.object(sidecar_init, "_AFTER_SECONDS", 9.0):
            self.assert_found("does not wait for")

    def test_a_oneshot_that_is_not_waited_for(self) -> None:
        with mock.patch.object(_Daemon, "can_become_ready", False):
            self.assert_found("does not wait for")

    def test_a_readiness_command_that_is_not_waited_for(self) -> None:
        with mock.patch.object(_Readiness, "_command", lambda readiness: (at for at in range(0))):
            self.assert_found("is not ready")

    def test_an_exit_code_that_is_wrong(self) -> None:
        with mock.patch.object(_Supervisor, "exit_code", lambda supervisor: 0):
            self.assert_found("the exit code is not")

    def test_a_restart_that_is_claimed(self) -> None:
        with mock.patch.object(_Supervisor, "restart_daemon", lambda supervisor, name, *, grace=5.0: True):
            self.assert_found("restart_daemon says")

    def test_a_shutdown_that_is_not_made(self) -> None:
        with mock.patch.object(_Supervisor, "request_shutdown", lambda supervisor, reason: None):
            self.assert_found("the shutdown does not come to an end")


if __name__ == "__main__":
    unittest.main()
