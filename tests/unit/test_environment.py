"""What a daemon gets as its environment: everything but the secrets of others."""

from __future__ import annotations

import os
import unittest
from unittest import mock

from sidecar_init import _DaemonSpec, _env_for_daemon, _exposed_secrets
from tests.unit.support import UnitTest

PUBLIC = {"PATH": "/bin", "EGRESS_TOKEN": "no secret", "XEGRESS_TOKEN_B": "neither"}
BASE = {**PUBLIC, "EGRESS_TOKEN_A": "token-a", "EGRESS_TOKEN_": "bare"}


class Environment(UnitTest):
    def test_the_owner_gets_everything(self) -> None:
        self.assertEqual(_env_for_daemon("egress", BASE), BASE)

    def test_nobody_else_gets_a_secret(self) -> None:
        for name in ("pipelock", "git-gate", "git-http", "supervise", "unknown", ""):
            with self.subTest(name):
                self.assertEqual(_env_for_daemon(name, BASE), PUBLIC)

    def test_each_result_is_a_fresh_dictionary(self) -> None:
        base = dict(BASE)
        for name in ("egress", "pipelock"):
            first, second = _env_for_daemon(name, base), _env_for_daemon(name, base)
            self.assertIsNot(first, second)
            first.clear()
            self.assertEqual(base, BASE)
            self.assertNotEqual(second, {})

    def test_without_secrets_everybody_gets_everything(self) -> None:
        self.patch("_SECRETS", {})
        self.assertEqual(_env_for_daemon("pipelock", BASE), BASE)

    def test_each_prefix_has_its_owner(self) -> None:
        self.patch("_SECRETS", {"A_": "a", "B_": "b"})
        base = {"A_1": "", "B_1": "", "C_1": ""}
        self.assertEqual(_env_for_daemon("a", base).keys(), {"A_1", "C_1"})
        self.assertEqual(_env_for_daemon("b", base).keys(), {"B_1", "C_1"})
        self.assertEqual(_env_for_daemon("c", base).keys(), {"C_1"})

    def test_a_variable_under_the_prefixes_of_two_goes_to_neither(self) -> None:
        self.patch("_SECRETS", {"A_": "a", "A_B_": "b"})
        base = {"A_1": "", "A_B_1": ""}
        self.assertEqual(_env_for_daemon("a", base).keys(), {"A_1"})
        self.assertEqual(_env_for_daemon("b", base).keys(), set())

    def test_overlapping_prefixes_of_one_owner_are_its_own(self) -> None:
        self.patch("_SECRETS", {"A_": "a", "A_B_": "a"})
        self.assertEqual(_env_for_daemon("a", {"A_B_1": ""}).keys(), {"A_B_1"})
        self.assertEqual(_env_for_daemon("b", {"A_B_1": ""}).keys(), set())

    def test_an_owner_that_shares_its_account_is_told(self) -> None:
        self.patch("_SECRETS", {"A_": "a"})
        other = _DaemonSpec("b", ["true"], user="daemon")
        with mock.patch.dict(os.environ, {"A_1": "hush"}), mock.patch("os.geteuid", return_value=0):
            self.assertEqual(_exposed_secrets([_DaemonSpec("a", ["true"], user="nobody"), other]), [])
            [line] = _exposed_secrets([_DaemonSpec("a", ["true"], user="daemon"), other])
            self.assertIn("cannot keep A_* from b: it has the same account as a", line)
        self.assertEqual(_exposed_secrets([_DaemonSpec("a", ["true"]), _DaemonSpec("b", ["true"])]), [])  # none is set


if __name__ == "__main__":
    unittest.main()
