"""What a machine or an engine may lack or refuse: one line says what is missing, or all works without it."""

from __future__ import annotations

import re
import resource
import unittest
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGTERM, SIGUSR1

from tests.pidns.hardened import OWNER
from tests.pidns.harness import PATIENCE, SLEEP, Bundle, NamespaceTestCase, child, daemon, shell
from tests.support import wait_until

SET_DUMPABLE, CAPBSET_DROP, SET_NO_NEW_PRIVS = 4, 24, 38
SIGNAL_PROCESS_GROUP = 4


def denied(bundle: Bundle, call: str) -> Bundle:
    """The same bundle, for which the kernel refuses a call."""
    bundle.argv = [*child("denied.py", call), *bundle.argv]
    return bundle


class DeniedTest(NamespaceTestCase):
    def assert_one_line(self, bundle: Bundle, pattern: str) -> None:
        """It exits, has started nothing that it should not, and one line says why."""
        with bundle:
            self.assertNotEqual(bundle.exit(), 0)
            lines = [line for line in (bundle.stderr + bundle.log.decode()).splitlines() if re.search(pattern, line)]
            self.assertEqual(len(lines), 1, bundle.stderr + bundle.log.decode())
            self.assertNotIn("Traceback", bundle.stderr)

    def test_if_it_cannot_protect_itself_it_does_not_start(self) -> None:
        bundle = denied(Bundle([daemon("web", *SLEEP)]), f"prctl={SET_DUMPABLE}")
        self.assert_one_line(bundle, "cannot .*: Operation not permitted")
        self.assertNotIn(b"starting web", bundle.log)

    def test_if_it_cannot_drop_privileges_nothing_is_started(self) -> None:
        for option in (SET_NO_NEW_PRIVS, CAPBSET_DROP):
            with self.subTest(option):
                bundle = denied(Bundle([daemon("web", *SLEEP)]), f"prctl={option}")
                self.assert_one_line(bundle, "cannot start web: .*Operation not permitted")

    def test_if_signals_or_poll_are_refused_one_line_says_so(self) -> None:
        for call in ("rt_sigprocmask", "rt_sigaction", "poll"):
            with self.subTest(call):
                self.assert_one_line(
                    denied(Bundle([daemon("web", *SLEEP)]), call), "cannot .*: Operation not permitted"
                )

    def test_without_proc_one_line_says_so(self) -> None:
        for what in ("while umount -l /proc 2>/dev/null; do :; done", "mount -t tmpfs tmpfs /proc"):
            with self.subTest(what):
                bundle = Bundle([daemon("web", *SLEEP)])
                bundle.argv = ["/bin/sh", "-c", f'{what}; exec "$@"', "sh", *bundle.argv]
                self.assert_one_line(bundle, "cannot .*/proc")

    def test_without_pidfds_all_works_except_the_race_that_they_prevent(self) -> None:
        """As before Linux 5.3, under an old seccomp profile, and before Linux 6.9 (a flag is unknown)."""
        for call, error in (
            ("pidfd_open", "ENOSYS"),
            ("pidfd_send_signal", "EPERM"),
            ("pidfd_send_signal", "ENOSYS"),
            (f"pidfd_send_signal={SIGNAL_PROCESS_GROUP}@3", "EINVAL"),
        ):
            with self.subTest(call=call, error=error):
                rows = [daemon("web", *shell("sleep 1000 & sleep 1000"), user=OWNER), daemon("other", *SLEEP)]
                bundle = Bundle(rows, signals={"USR1": {"restart": "web"}}, env={"SIDECAR_TEST_ERRNO": error})
                with denied(bundle, call):
                    bundle.wait_for_state("web", "running")
                    bundle.wait_for_state("other", "running")
                    bundle.signal(SIGUSR1)
                    bundle.wait_for_event("restarted", "web")
                    self.assert_only_two_groups(bundle)
                    bundle.signal(SIGTERM)
                    self.assertEqual(bundle.exit(), 143)

    def assert_only_two_groups(self, bundle: Bundle) -> None:
        """A shell and two sleeps of web, one of the other."""
        wait_until(lambda: len(bundle.running_commands("sleep 1000")) == 4, PATIENCE, "the old group is gone")


class BugTest(NamespaceTestCase):
    """An unexpected error costs a line and a pause."""

    def test_a_signal_that_cannot_be_handled_keeps_no_other_from_being_handled(self) -> None:
        with Bundle([daemon("egress", *SLEEP)], without="a-working-forward") as bundle:
            bundle.wait_for_state("egress", "running")
            bundle.suspend()
            bundle.signal(SIGHUP)
            bundle.signal(SIGTERM)
            bundle.signal(SIGCONT)
            self.assertEqual(bundle.exit(), 143)
            self.assertEqual(bundle.log.count(b"internal error: AttributeError"), 1)

    def test_control_not_absorbed_it_ends_the_container(self) -> None:
        with Bundle([daemon("egress", *SLEEP)], without=("a-working-forward", "absorbing-of-errors")) as bundle:
            bundle.wait_for_state("egress", "running")
            bundle.signal(SIGHUP)
            self.assertEqual(bundle.exit(), 1)
            self.assertIn("not absorbed: AttributeError", bundle.stderr)


class LimitTest(NamespaceTestCase):
    def test_it_takes_as_many_descriptors_as_it_may_and_gives_daemons_what_it_was_given(self) -> None:
        rows = [daemon("web", *shell("ulimit -Sn; ulimit -Hn; exec sleep 1000"))]
        limit = (64, 4096)
        with Bundle(rows, before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)) as bundle:
            bundle.wait_for(b"[web] 64\n[web] 4096\n")
            limits = Path(f"/proc/{bundle.pid1}/limits").read_text()
            self.assertRegex(limits, r"Max open files +4096 +4096 ")


if __name__ == "__main__":
    unittest.main()
