"""What tests of the program that this one replaces expect: real children, and the names that it had too."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import sidecar_init
from sidecar_init import _DaemonSpec, _Supervisor
from tests.support import wait_until


def shell(name: str, script: str) -> _DaemonSpec:
    return _DaemonSpec(name, ["sh", "-c", script])


SLEEPER = shell("sleeper", "exec sleep 30")


class Predecessor(unittest.TestCase):
    """A supervisor that is given nothing but its rows writes to stdout, which is a file here."""

    def setUp(self) -> None:
        log = self.enterContext(tempfile.NamedTemporaryFile())
        self.log = Path(log.name)
        stdout = os.dup(1)
        self.addCleanup(os.close, stdout)
        self.addCleanup(os.dup2, stdout, 1)
        os.dup2(log.fileno(), 1)

    def started(self, *specs: _DaemonSpec) -> _Supervisor:
        supervisor = _Supervisor(list(specs))
        self.addCleanup(self.end, supervisor)
        supervisor.start_all()
        return supervisor

    def end(self, supervisor: _Supervisor) -> None:
        supervisor.request_shutdown("the test has ended")
        for _, process in supervisor.procs:
            if process.pid and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self.tick_until_done(supervisor)

    def tick_until_done(self, supervisor: _Supervisor) -> None:
        wait_until(supervisor.tick, 10, "every child has exited for good")

    def tick_until_logged(self, supervisor: _Supervisor, text: str) -> None:
        wait_until(lambda: supervisor.tick() or text in self.log.read_text(), 10, f"{text!r} in the log")

    def exited_unseen(self, supervisor: _Supervisor, number: int) -> None:
        """Wait for the end of a child without asking the supervisor, and without reaping it."""
        stat = Path(f"/proc/{supervisor.procs[number][1].pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("Z"), 10, "a zombie")


class Grace(Predecessor):
    def setUp(self) -> None:
        super().setUp()
        patch = mock.patch.object(sidecar_init, "_GRACE_SECONDS", 1000.0)  # longer than any patience here
        patch.start()
        self.addCleanup(patch.stop)
        self.supervisor = self.started(shell("deaf", "trap '' TERM; echo up; sleep 30"))
        self.tick_until_logged(self.supervisor, "[deaf] up")

    def test_it_is_read_at_each_tick_so_that_it_can_be_shortened_after_the_request(self) -> None:
        self.supervisor.request_shutdown("test")
        with mock.patch.object(sidecar_init, "_GRACE_SECONDS", 0.3):
            self.tick_until_done(self.supervisor)
        requested_at = self.supervisor.shutdown_at
        assert requested_at is not None
        self.assertGreaterEqual(time.monotonic() - requested_at, 0.3)
        self.assertEqual([process.returncode for _, process in self.supervisor.procs], [-signal.SIGKILL])
        self.assertEqual(self.supervisor.exit_code(), 137)

    def test_it_counts_from_the_request_even_if_it_is_shortened_later(self) -> None:
        self.supervisor.request_shutdown("test")
        requested_at = self.supervisor.shutdown_at
        assert requested_at is not None
        wait_until(lambda: self.supervisor.tick() or time.monotonic() > requested_at + 0.3, 10, "0.3 s")
        self.assertIsNone(self.supervisor.procs[0][1].poll())
        with mock.patch.object(sidecar_init, "_GRACE_SECONDS", 0.2):  # they are over
            self.supervisor.tick()
            wait_until(lambda: self.supervisor.procs[0][1].poll() is not None, 10, "the child's end after one tick")
            self.tick_until_done(self.supervisor)
        self.assertEqual(self.supervisor.procs[0][1].returncode, -signal.SIGKILL)


class ExitBeforeTheRequest(Predecessor):
    def code_of(self, *specs: _DaemonSpec) -> int:
        """The exit code if the first exits before the request, and no tick sees it."""
        supervisor = self.started(*specs)
        self.exited_unseen(supervisor, 0)
        supervisor.request_shutdown("test")
        self.tick_until_done(supervisor)
        return supervisor.exit_code()

    def test_a_child_that_failed_unseen_has_failed_by_itself(self) -> None:
        self.assertEqual(self.code_of(shell("crash", "exit 1"), SLEEPER), 1)

    def test_so_has_one_that_the_policy_would_restart(self) -> None:
        for restart in ("always", "on-failure"):
            with self.subTest(restart):
                crash = _DaemonSpec("crash", ["sh", "-c", "exit 1"], restart=restart)
                self.assertEqual(self.code_of(crash, SLEEPER), 1)

    def test_one_that_was_killed_unseen_has_failed_by_itself(self) -> None:
        self.assertEqual(self.code_of(shell("crash", "kill -SEGV $$"), SLEEPER), 139)

    def test_one_that_exited_with_0_has_not(self) -> None:
        self.assertEqual(self.code_of(shell("done", "exit 0"), SLEEPER), 143)

    def test_nor_has_one_that_exits_because_of_the_request(self) -> None:
        polite = shell("polite", "trap 'exit 1' TERM; echo up; while :; do sleep 0.01; done")
        supervisor = self.started(polite, SLEEPER)
        self.tick_until_logged(supervisor, "[polite] up")
        supervisor.request_shutdown("test")
        self.tick_until_done(supervisor)
        self.assertEqual([process.returncode for _, process in supervisor.procs], [1, -signal.SIGTERM])
        self.assertEqual(supervisor.exit_code(), 143)


class Slots(Predecessor):
    def test_before_the_first_start_there_is_one_for_each_daemon_without_a_process(self) -> None:
        specs = [SLEEPER, shell("quick", "exit 7")]
        supervisor = _Supervisor(specs)
        self.assertEqual([spec for spec, _ in supervisor.procs], specs)
        for _, process in supervisor.procs:
            self.assertEqual((process.pid, process.poll(), process.returncode), (0, None, None))

    def test_one_that_waits_for_another_has_no_process_yet_and_is_not_signalled(self) -> None:
        later = _DaemonSpec("later", ["sh", "-c", "exec sleep 30"], after=["first"])
        first = _DaemonSpec("first", ["sh", "-c", "exec sleep 30"], port=1)
        supervisor = self.started(later, first)
        self.assertEqual([bool(process.pid) for _, process in supervisor.procs], [False, True])
        self.assertIsNone(supervisor.procs[0][1].poll())
        self.assertIs(supervisor.forward_signal(signal.SIGHUP, "later"), False)
        supervisor.request_shutdown("test")
        self.tick_until_done(supervisor)
        self.assertEqual(supervisor.procs[0][1].pid, 0)


if __name__ == "__main__":
    unittest.main()
