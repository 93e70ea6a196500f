"""Accounts: PID 1 asks no service who someone is, and what has root's uid is not another account."""

from __future__ import annotations

import unittest
from pathlib import Path
from signal import SIGUSR2

from tests.pidns.hardened import OTHER, OWNER, TOKEN, AttackTestCase, HardenedBundle, attacker
from tests.pidns.harness import PATIENCE, SLEEP, daemon, quiet_for, shell

STEAL = shell("while sleep 0.05; do cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' >>/run/place/loot; done")


def passwd(lines: str) -> str:
    """Shell commands that mount other accounts over those of the machine."""
    return f"printf '{lines}' >/run/passwd; mount --bind /run/passwd /etc/passwd"


class NameServiceTest(AttackTestCase):
    """The C library asks /run/nscd/socket, and daemons of root own /run."""

    def bundle(self, mode: str, user: str | None = None, without: str = "") -> HardenedBundle:
        fields = {"user": user} if user else {}
        rows = [
            daemon("hostile", *attacker("fake_nscd.py", mode), port=7000, **fields),
            daemon("thief", *STEAL, **fields),
            daemon("egress", *SLEEP, user=OWNER, after=["hostile"]),
        ]
        bundle = self.enter(HardenedBundle(rows, without=without or ()))
        bundle.until(lambda: bundle.found("nscd"), PATIENCE, "the attacker is ready")
        return bundle

    def uid_of_egress(self, bundle: HardenedBundle) -> int:
        started = bundle.wait_for_event("started", "egress")
        return Path(f"/proc/{bundle.host_pid(started['pid'])}").stat().st_uid

    def test_a_false_name_server_does_not_make_egress_root(self) -> None:
        bundle = self.bundle("uid-0")
        self.assertNotEqual(self.uid_of_egress(bundle), 0)
        bundle.catch_up()
        self.assertNotIn(TOKEN.encode(), bundle.found())
        self.assertEqual(bundle.found("nscd"), b"up\n", "PID 1 did not ask")

    def test_control_asked_it_makes_egress_root_and_a_daemon_of_root_reads_its_token(self) -> None:
        bundle = self.bundle("uid-0", without="local-accounts")
        self.assertEqual(self.uid_of_egress(bundle), 0)
        bundle.until(lambda: TOKEN.encode() in bundle.found(), PATIENCE, "the token")

    def test_a_name_server_that_does_not_answer_does_not_stop_pid_1(self) -> None:
        bundle = self.bundle("silent")
        bundle.wait_for_event("started", "egress")
        bundle.catch_up()
        self.assertEqual(bundle.found("nscd"), b"up\n", "PID 1 did not ask")

    def test_control_asked_it_keeps_pid_1_waiting(self) -> None:
        bundle = self.bundle("silent", without="local-accounts")
        bundle.until(lambda: b"question" in bundle.found("nscd"), PATIENCE, "PID 1 asks")
        self.assertEqual(bundle.events("started", "egress"), [])
        version = bundle._version()
        bundle.signal(SIGUSR2)
        quiet_for(1)
        self.assertEqual(bundle._version(), version, "no heartbeat, while it waits for the answer")

    def test_an_ordinary_account_cannot_take_its_place(self) -> None:
        bundle = self.bundle("uid-0", user=OTHER)
        self.assertNotEqual(self.uid_of_egress(bundle), 0)
        self.assertEqual(bundle.found("nscd"), b"refused: Permission denied\n")


class RootByAnotherNameTest(AttackTestCase):
    TWICE_ROOT = passwd("root:x:0:0::/root:/bin/sh\\nproxy:x:0:0::/:/bin/sh\\n")

    def start(self, without: str = "") -> HardenedBundle:
        rows = [daemon("egress", *SLEEP, user="proxy"), daemon("thief", *STEAL)]
        return self.enter(HardenedBundle(rows, setup=self.TWICE_ROOT, without=without or ()))

    def test_an_account_with_uid_0_that_is_not_called_root_is_refused(self) -> None:
        bundle = self.start()
        bundle.wait_for_state("egress", "failed")
        bundle.wait_for(b"cannot start egress: ")
        self.assertNotIn(TOKEN.encode(), bundle.found())

    def test_control_started_it_is_open_to_every_daemon_of_root(self) -> None:
        bundle = self.start(without="refusal-of-uid-0")
        bundle.until(lambda: TOKEN.encode() in bundle.found(), PATIENCE, "the token")


class ImpossibleIdTest(AttackTestCase):
    """The kernel takes 4294967295 for "leave it as it is": who becomes that stays root."""

    def test_an_account_with_such_an_id_is_not_used(self) -> None:
        for ids in ("4294967295:41", "41:4294967295", "8589934591:41", "-1:41"):
            setup = passwd(f"root:x:0:0::/root:/bin/sh\\nproxy:x:{ids}::/:/bin/sh\\n")
            rows = [daemon("egress", *SLEEP, user="proxy"), daemon("thief", *STEAL)]
            with self.subTest(ids), HardenedBundle(rows, setup=setup) as bundle:
                bundle.wait_for_state("egress", "failed")
                self.assertNotIn(TOKEN.encode(), bundle.found())


class ExposureTest(AttackTestCase):
    """Who has the owner's uid can read its environment, whatever the account is called."""

    SAME = passwd("root:x:0:0::/root:/bin/sh\\none:x:41:41::/:/bin/sh\\nother:x:41:41::/:/bin/sh\\n")

    def assert_warned(self, owner: dict[str, str], other: dict[str, str], setup: str = "") -> None:
        rows = [daemon("egress", *SLEEP, **owner), daemon("web", *SLEEP, **other)]
        with HardenedBundle(rows, setup=setup) as bundle:
            bundle.wait_for_state("web", "running")
            self.assertRegex(bundle.log, rb"(?m)^sidecar-init: .*EGRESS_TOKEN_\* from web")

    def test_root_by_name_and_no_user_are_the_same_account(self) -> None:
        self.assert_warned({"user": "root"}, {})
        self.assert_warned({}, {"user": "root"})

    def test_two_names_of_one_uid_are_the_same_account(self) -> None:
        self.assert_warned({"user": "one"}, {"user": "other"}, self.SAME)

    def test_control_two_accounts_are_no_reason_to_warn(self) -> None:
        rows = [daemon("egress", *SLEEP, user=OWNER), daemon("web", *SLEEP)]
        with HardenedBundle(rows) as bundle:
            bundle.wait_for_state("web", "running")
            self.assertNotIn(b"EGRESS_TOKEN_", bundle.log)


if __name__ == "__main__":
    unittest.main()
