"""What a daemon gets as its environment: everything except the secrets of others."""

from __future__ import annotations

import os
import unittest
from unittest import mock

from sidecar_init import _Account, _DaemonSpec, _env_for_daemon, _read_accounts, _warnings
from tests.unit.support import UnitTest

PUBLIC = {"PATH": "/bin", "EGRESS_TOKEN": "no secret", "XEGRESS_TOKEN_B": "neither"}
BASE = {**PUBLIC, "EGRESS_TOKEN_A": "token-a", "EGRESS_TOKEN_": "bare"}


class Environment(UnitTest):
    def test_the_owner_gets_everything(self) -> None:
        self.assertEqual(_env_for_daemon("egress", BASE), BASE)

    def test_no_other_daemon_gets_a_secret(self) -> None:
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

    def test_without_secrets_every_daemon_gets_everything(self) -> None:
        self.patch("_SECRETS", {})
        self.assertEqual(_env_for_daemon("pipelock", BASE), BASE)

    def test_each_prefix_has_its_owner(self) -> None:
        self.patch("_SECRETS", {"A_": ("a",), "B_": ("b",)})
        base = {"A_1": "", "B_1": "", "C_1": ""}
        self.assertEqual(_env_for_daemon("a", base).keys(), {"A_1", "C_1"})
        self.assertEqual(_env_for_daemon("b", base).keys(), {"B_1", "C_1"})
        self.assertEqual(_env_for_daemon("c", base).keys(), {"C_1"})

    def test_a_variable_under_the_prefixes_of_two_goes_to_neither(self) -> None:
        self.patch("_SECRETS", {"A_": ("a",), "A_B_": ("b",)})
        base = {"A_1": "", "A_B_1": ""}
        self.assertEqual(_env_for_daemon("a", base).keys(), {"A_1"})
        self.assertEqual(_env_for_daemon("b", base).keys(), set())

    def test_overlapping_prefixes_of_one_owner_are_its_own(self) -> None:
        self.patch("_SECRETS", {"A_": ("a",), "A_B_": ("a",)})
        self.assertEqual(_env_for_daemon("a", {"A_B_1": ""}).keys(), {"A_B_1"})
        self.assertEqual(_env_for_daemon("b", {"A_B_1": ""}).keys(), set())

    def test_a_prefix_can_have_several_owners(self) -> None:
        self.patch("_SECRETS", {"A_": ("a", "b")})
        base = {"A_1": "", "C_1": ""}
        for name in ("a", "b"):
            self.assertEqual(_env_for_daemon(name, base).keys(), {"A_1", "C_1"})
        self.assertEqual(_env_for_daemon("c", base).keys(), {"C_1"})


class Accounts(UnitTest):
    def test_an_id_that_no_process_can_have_is_none(self) -> None:
        files = {path: self.directory() / "file" for path in ("/etc/passwd", "/etc/group")}
        with mock.patch("builtins.open", lambda path, *more, real=open, **fields: real(files[path], *more, **fields)):
            for number in ("9" * 5000, "4294967295", "99999999999", "-1", "\uff11\uff10", "0x1", ""):
                with self.subTest(number):
                    files["/etc/passwd"].write_text(f"bad:x:{number}:7::/:\nworse:x:7:{number}::/:\nweb:x:7:7::/:\n")
                    files["/etc/group"].write_text(f"one:x:{number}:web\nother:x:8:web\n")
                    accounts = _read_accounts()
                    self.assertEqual([*accounts], ["web"])
                    self.assertEqual(accounts["web"].groups, [7, 8])
                    self.assertIsNone(_Account.of_ids(number))


class Warnings(UnitTest):
    """What is said at the start, and by plan, of secrets that accounts cannot keep apart."""

    def setUp(self) -> None:
        self.use_environment(A_1="hush")
        self.patch("_SECRETS", {"A_": ("a",)})
        accounts = {"root": 0, "web": 1000, "alias": 1000, "db": 1001}
        self.patch("_read_accounts", lambda: {name: _Account(name, uid, uid, "/") for name, uid in accounts.items()})
        self.enterContext(mock.patch("os.geteuid", return_value=0))

    def warnings(self, **users: str | None) -> list[str]:
        specs = tuple(_DaemonSpec(name, ["true"], user=user) for name, user in users.items())
        self.patch("_DAEMONS", specs)
        return _warnings(specs)

    def check(self, **users: str | None) -> None:
        [line] = self.warnings(**users)
        self.assertEqual(line, "cannot keep A_* from b: it runs as the same user as a; give a its own")

    def test_daemons_with_different_users_are_kept_apart(self) -> None:
        self.assertEqual(self.warnings(a="web", b="db", c=None), [])

    def test_an_owner_that_shares_its_user_is_reported(self) -> None:
        self.check(a="web", b="web")

    def test_two_names_of_one_uid_are_one_user(self) -> None:
        self.check(a="web", b="alias")

    def test_ids_are_the_user_that_has_them(self) -> None:
        self.check(a="web", b="1000")
        self.check(a="1000:0", b="1000")
        self.assertEqual(self.warnings(a="2000", b="1000"), [])

    def test_root_by_name_is_the_same_as_no_user(self) -> None:
        self.check(a="root", b=None)
        self.check(a=None, b="root")

    def test_without_root_all_share_the_user_of_the_supervisor(self) -> None:
        with mock.patch("os.geteuid", return_value=1000):
            self.check(a="web", b="db")

    def test_owners_of_the_same_secrets_may_share_a_user(self) -> None:
        self.patch("_SECRETS", {"A_": ("a", "b")})
        self.assertEqual(self.warnings(a="web", b="web", c="db"), [])

    def test_secrets_that_are_not_set_are_not_mentioned(self) -> None:
        del os.environ["A_1"]
        self.assertEqual(self.warnings(a="web", b="web"), [])

    def test_an_owner_that_does_not_run_gives_nothing_away(self) -> None:
        self.assertEqual(self.warnings(b="web", c="web"), [])

    def test_a_capability_that_opens_what_others_have_is_reported(self) -> None:
        specs = (
            _DaemonSpec("nginx", ["true"], capabilities=["NET_BIND_SERVICE", "SETUID", "CHOWN"]),
            _DaemonSpec("a", ["true"], user="web"),
            _DaemonSpec("b", ["true"], user="db", files={"KEY": "/run/key"}),
        )
        why = "it has SETUID, CHOWN; remove these"
        self.assertEqual(_warnings(specs), [f"cannot keep the secrets of a, b from nginx: {why}"])
        self.assertEqual(_warnings(specs[:2]), [f"cannot keep the secrets of a from nginx: {why}"])
        with mock.patch("os.geteuid", return_value=1000):
            self.assertNotIn("nginx: it has", str(_warnings(specs)), "it does not get them")

    def test_a_capability_is_not_mentioned_if_nothing_is_open_to_it(self) -> None:
        risky = _DaemonSpec("nginx", ["true"], capabilities=["SETUID"], files={"KEY": "/run/key"})
        bind = _DaemonSpec("bind", ["true"], user="db", capabilities=["NET_BIND_SERVICE", "NET_RAW", "KILL"])
        owner = _DaemonSpec("a", ["true"], user="web")
        self.assertEqual(_warnings((bind, owner)), [])
        self.patch("_SECRETS", {"A_": ("a", "nginx")})
        self.assertEqual(_warnings((risky, owner)), [], "it owns the same secrets")
        self.patch("_SECRETS", {})
        self.assertEqual(_warnings((risky, owner)), [])

    def test_names_that_are_asked_for_and_not_in_the_table_are_reported(self) -> None:
        os.environ["SIDECAR_INIT_DAEMONS"] = "a,other"
        self.assertEqual(self.warnings(a="web"), ["there is no daemon other; ignored"])


if __name__ == "__main__":
    unittest.main()
