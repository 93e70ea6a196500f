"""The null device: /dev is a tmpfs that daemons of root may change, and every child of PID 1 gets /dev/null as stdin.

The attacker puts something else in its place and has PID 1 start another daemon, which finds it opened for it by a
process that still had PID 1's privileges.
"""

from __future__ import annotations

import unittest
from collections.abc import Sequence
from typing import Any

from tests.pidns.hardened import COMPOSE, DOCKER, OTHER, OWNER, TOKEN, AttackTestCase, HardenedBundle, attacker
from tests.pidns.harness import PATIENCE, SLEEP, Daemon, daemon, shell

# dd first: what is there at the first moment after the exec.
AT_ONCE = ["dd", "of=/run/place/loot", "oflag=append", "conv=notrunc", "status=none", "bs=64k", "count=1"]
AS_IT_COMES = shell("exec cat >>/run/place/loot")
FORGE = shell("echo 'sidecar-init: forged' >/proc/self/fd/0")
TALKER = shell('while sleep 0.02; do echo "$EGRESS_TOKEN_CANARY"; done')


class NullDeviceTest(AttackTestCase):
    def after_the_attack(
        self,
        kind: str,
        attempts: int,
        *,
        thief: Sequence[str],
        user: str | None = None,
        egress: Sequence[str] = SLEEP,
        **options: Any,
    ) -> HardenedBundle:
        fields = {"user": user} if user else {}
        rows: list[Daemon] = [
            daemon("egress", *egress, user=OWNER),
            daemon("pipelock", *thief, **fields),
            daemon("hostile", *attacker("null_device.py", kind, attempts), **fields),
        ]
        bundle = self.enter(HardenedBundle(rows, **options))
        self.private_file(bundle)
        bundle.until(
            lambda: TOKEN.encode() in bundle.found() or bundle.found("report"), 6 * PATIENCE, "the attack has ended"
        )
        return bundle

    def assert_nothing_found(self, bundle: HardenedBundle) -> None:
        self.assertNotIn(TOKEN.encode(), bundle.found())
        self.assertEqual(bundle.found(), b"", "the null device has nothing to say")
        self.assertEqual(bundle.found("report"), b"done")

    def test_a_daemon_does_not_get_the_environment_of_the_process_that_became_it(self) -> None:
        self.assert_nothing_found(self.after_the_attack("environ", 12, thief=AT_ONCE))

    def test_control_opened_by_path_it_reads_the_environment_of_pid_1(self) -> None:
        """If what the kernel shows as environment has not been emptied either."""
        without = ("null-device", "empty-environment-block")
        bundle = self.after_the_attack("environ", 200, thief=AT_ONCE, without=without)
        self.assertIn(TOKEN.encode(), bundle.found())
        bundle = self.after_the_attack("environ", 12, thief=AT_ONCE, without="null-device")
        self.assertNotIn(TOKEN.encode(), bundle.found())

    def test_a_daemon_does_not_get_a_descriptor_of_pid_1(self) -> None:
        for capabilities in (COMPOSE, DOCKER):
            with self.subTest(capabilities):
                self.assert_nothing_found(
                    self.after_the_attack("descriptors", 1, thief=AS_IT_COMES, egress=TALKER, capabilities=capabilities)
                )

    def test_control_opened_by_path_it_is_the_pipe_of_egress_before_redaction(self) -> None:
        """With the capabilities of the example it is not: the pipe belongs to the account of egress."""
        bundle = self.after_the_attack(
            "descriptors", 3, thief=AS_IT_COMES, egress=TALKER, capabilities=DOCKER, without="null-device"
        )
        self.assertIn(TOKEN.encode(), bundle.found())

    def test_a_daemon_cannot_write_a_line_into_the_log_that_is_not_its_own(self) -> None:
        bundle = self.after_the_attack("/proc/self/fd/1", 1, thief=FORGE)
        bundle.wait_for_event("exited", "pipelock", times=2)
        bundle.catch_up()
        self.assert_nothing_found(bundle)
        self.assertNotIn(b"\nsidecar-init: forged\n", bundle.log)

    def test_control_opened_by_path_it_is_the_log_of_the_container(self) -> None:
        bundle = self.after_the_attack("/proc/self/fd/1", 1, thief=FORGE, without="null-device")
        bundle.wait_for(b"\nsidecar-init: forged\n")

    def test_a_daemon_does_not_get_a_file_that_it_may_not_read(self) -> None:
        bundle = self.after_the_attack("/run/place/private", 3, thief=AT_ONCE, capabilities=DOCKER)
        self.assert_nothing_found(bundle)

    def test_control_opened_by_path_with_the_capabilities_of_docker_it_is_any_file(self) -> None:
        bundle = self.after_the_attack(
            "/run/place/private", 3, thief=AT_ONCE, capabilities=DOCKER, without="null-device"
        )
        self.assertIn(TOKEN.encode(), bundle.found())

    def test_a_daemon_of_another_account_cannot_even_begin(self) -> None:
        bundle = self.after_the_attack("/run/place/private", 1, thief=AT_ONCE, user=OTHER)
        self.assertEqual(bundle.found("report"), b"Permission denied")

    def test_a_pipe_in_its_place_does_not_hold_up_a_start(self) -> None:
        bundle = self.after_the_attack("fifo", 1, thief=["sleep", "2000"])
        bundle.until(lambda: bundle.running_commands("sleep 2000"), PATIENCE, "pipelock is executed")

    def test_control_opened_by_path_a_pipe_holds_it_up_forever(self) -> None:
        bundle = self.after_the_attack("fifo", 1, thief=["sleep", "2000"], without="null-device")
        bundle.catch_up()
        self.assertEqual(bundle.running_commands("sleep 2000"), [])

    def test_what_is_not_the_null_device_at_the_start_is_not_used(self) -> None:
        for setup in ("rm /dev/null; echo secret >/dev/null", "rm /dev/null", "rm /dev/null; ln -s zero /dev/null"):
            with self.subTest(setup), HardenedBundle([daemon("egress", *SLEEP)], setup=setup) as bundle:
                self.assertNotEqual(bundle.exit(), 0)
                self.assertRegex(bundle.stderr + bundle.log.decode(), r"cannot \w+: /dev/null: ")


if __name__ == "__main__":
    unittest.main()
