"""What a child starts with, read from its own /proc/self, while the supervisor itself was started in a dirty state."""

import os
import signal
from typing import Any

from tests.pidns.harness import SLEEP, Bundle, NamespaceTestCase, daemon, shell
from tests.support import wait_until


def _dirty() -> None:
    """Block and ignore signals, as a careless parent of the supervisor may."""
    blocked = {signal.SIGWINCH, signal.SIGUSR2, signal.SIGRTMIN, signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGTTOU, signal.SIGRTMAX):
        signal.signal(number, signal.SIG_IGN)


class BirthTest(NamespaceTestCase):
    bundle: Bundle
    code: int

    @classmethod
    def setUpClass(cls) -> None:
        read_end, write_end = os.pipe()
        cls.addClassCleanup(os.close, read_end)
        cls.addClassCleanup(os.close, write_end)
        daemons = [
            daemon("status", "cat", "/proc/self/status"),
            daemon("stat", "cat", "/proc/self/stat"),
            daemon("descriptors", "ls", "/proc/self/fd"),
            daemon("stdin", "readlink", "/proc/self/fd/0"),
            daemon("outputs", "readlink", "/proc/self/fd/1", "/proc/self/fd/2"),
            daemon("empty", *shell("read -r line || echo nothing to read")),
        ]
        os.write(write_end, b"for the supervisor alone\n")
        own_files: dict[str, Any] = {"stdin": read_end, "pass_fds": [read_end, write_end]}
        cls.bundle = cls.enterClassContext(Bundle(daemons, as_file=True, before_exec=_dirty, **own_files))
        cls.code = cls.bundle.exit()

    def test_all_of_them_ran(self) -> None:
        self.assertEqual(self.code, 0)

    def test_no_signal_is_blocked(self) -> None:
        self.assertEqual(self._status("SigBlk"), 0)

    def test_no_signal_is_ignored(self) -> None:
        self.assertEqual(self._status("SigIgn"), 0)

    def test_it_leads_a_session_and_a_group_of_its_own(self) -> None:
        fields = self._only("stat").rpartition(")")[2].split()
        pid, group, session = self._only("stat").split()[0], fields[2], fields[3]
        self.assertEqual((group, session), (pid, pid))

    def test_it_has_no_descriptor_beyond_the_three(self) -> None:
        """The fourth is the directory that ls itself reads."""
        self.assertEqual(self.bundle.lines("descriptors"), [b"0", b"1", b"2", b"3"])

    def test_its_stdin_is_empty(self) -> None:
        self.assertEqual(self._only("stdin"), "/dev/null")
        self.assertEqual(self._only("empty"), "nothing to read")

    def test_both_outputs_are_one_pipe(self) -> None:
        first, second = self.bundle.lines("outputs")
        self.assertEqual(first, second)
        self.assertTrue(first.startswith(b"pipe:["), first)

    def _only(self, name: str) -> str:
        (line,) = self.bundle.lines(name)
        return line.decode()

    def _status(self, field: str) -> int:
        (line,) = (line for line in self.bundle.lines("status") if line.startswith(f"{field}:".encode()))
        return int(line.split()[1], 16)


class DirtySupervisorTest(NamespaceTestCase):
    def test_a_supervisor_that_was_started_with_signals_blocked_still_handles_them(self) -> None:
        with Bundle([daemon("a", *SLEEP)], before_exec=_dirty) as bundle:
            bundle.wait_for(b"a started")
            bundle.wait_for_state("a", "running")
            bundle.catch_up()
            bundle.signal(signal.SIGTERM)
            self.assertEqual(bundle.exit(), 143)


class StoppingTest(NamespaceTestCase):
    def test_what_a_daemon_started_in_its_group_ends_with_it(self) -> None:
        with Bundle([daemon("pipelock", *shell("sleep 2000 & echo up; exec sleep 1000"))]) as bundle:
            bundle.wait_for(b"[pipelock] up\n")
            first = self._sleepers(bundle)
            bundle.signal(signal.SIGUSR1)
            bundle.wait_for(b"pipelock restarted (pid ")
            bundle.wait_for(b"[pipelock] up\n", times=2)
            second = self._sleepers(bundle)
            self.assertEqual((len(first), len(second), first & second), (1, 1, set()))

    def _sleepers(self, bundle: Bundle) -> set[int]:
        def alone() -> set[int]:
            """By the whole command: the shell that starts it has it in its own."""
            return {one.pid for one in bundle.processes().values() if one.command == "sleep 2000"}

        return wait_until(alone, 5, "the sleep to be executed")
