"""System calls that fail: the stated behaviour, one line in the log, and recovery when the fault is gone."""

from __future__ import annotations

import contextlib
import os
import unittest
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1

from tests.faults.support import WHY_NO_STRACE, Bundle, FaultTestCase, injected
from tests.pidns.harness import PATIENCE, SLEEP, child, daemon, shell
from tests.support import wait_until

SIGNALS = child("signals.py")
QUICK = {"_BACKOFF_FIRST": 0.1, "_BACKOFF_LAST": 0.2}


@unittest.skipIf(WHY_NO_STRACE, WHY_NO_STRACE)
class SystemCallTest(FaultTestCase):
    def test_a_clone_that_fails_is_tried_again_and_the_others_go_on(self) -> None:
        for error in ("EAGAIN", "ENOMEM"):
            daemons = [daemon("a", *SLEEP, restart="always"), daemon("egress", *SIGNALS)]
            with self.subTest(error=error), Bundle(daemons, tunables=QUICK) as bundle:
                bundle.wait_for(b"[egress] ready\n")
                with injected(bundle.pid1, f"clone,clone3,fork,vfork:error={error}"):
                    self._kill(bundle, "sleep 1000")
                    bundle.wait_for(b"cannot start a: cannot fork: ", times=3)
                    bundle.signal(SIGHUP)
                    bundle.wait_for(b"[egress] SIGHUP\n")
                bundle.wait_for_state("a", "running")
                self._end(bundle)

    def test_a_clone_that_fails_from_the_start_is_tried_again(self) -> None:
        listener = self.scratch() / "listen"
        daemons = [daemon("a", *child("listener.py", 7001, listener), port=7001), daemon("b", *SLEEP, after=["a"])]
        with Bundle(daemons, tunables=QUICK) as bundle:
            bundle.wait_for_state("b", "waiting")
            with injected(bundle.pid1, "clone,clone3,fork,vfork:error=EAGAIN"):
                listener.touch()
                bundle.wait_for(b"cannot start b: cannot fork: Resource temporarily unavailable", times=2)
            bundle.wait_for_state("b", "running")
            self.assertEqual(bundle.daemon("b")["restarts"], 0)
            self._end(bundle)

    def test_eintr_everywhere_changes_nothing(self) -> None:
        calls = "poll,read,write,openat,wait4,waitid"
        daemons = [daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS), daemon("a", *SLEEP, restart="always")]
        with Bundle(daemons, tunables=QUICK) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.wait_for_state("a", "running")
            with injected(bundle.pid1, *(f"{call}:error=EINTR:when=1+2" for call in calls.split(","))) as trace:
                bundle.signal(SIGHUP)
                bundle.wait_for(b"[egress] SIGHUP\n")
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"[pipelock] ready\n", times=2)
                self._kill(bundle, "sleep 1000")
                bundle.wait_for(b"a started", times=2)
                bundle.wait_for_event("started", "a", times=2)
                _wait_until_struck(trace, 20)
                struck = {line.partition("(")[0] for line in trace.read_text().splitlines() if "INJECTED" in line}
                self.assertLessEqual({"poll", "read", "openat", "wait4"}, struck)
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGHUP"])
            self._end(bundle)

    def test_no_descriptor_for_a_pipe_is_tried_again(self) -> None:
        daemons = [daemon("pipelock", *SIGNALS, restart="always"), daemon("egress", *SIGNALS)]
        with Bundle(daemons, tunables=QUICK) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            with injected(bundle.pid1, "pipe,pipe2:error=EMFILE"):
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"cannot start pipelock: cannot ", times=2)
                bundle.signal(SIGHUP)
                bundle.wait_for(b"[egress] SIGHUP\n")
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            self.assertNotIn(b"egress started", bundle.log.partition(b"restarting pipelock")[2])
            self._end(bundle)

    def test_eio_on_the_log_loses_and_counts_what_it_struck_and_nothing_after_it(self) -> None:
        with self._speaking() as (bundle, gate):
            with injected(bundle.pid1, "write:error=EIO", path=_log(bundle)) as trace:
                os.write(gate, b"first\n")
                _wait_until_struck(trace)
                bundle.signal(SIGHUP)
                bundle.wait_for_event("signal", "egress")
                _wait_until_struck(trace, 3)
            os.write(gate, b"second\n")
            bundle.wait_for(b"[a] second\n")
            bundle.wait_for(b" log lines were lost: Input/output error\n")
            lost = [int(line.split()[0]) for line in bundle.own_lines() if " lost: " in line]
            self.assertEqual(lost, [3], "[a] first, SIGHUP delivered to egress, [egress] SIGHUP")
            self.assertNotIn(b"[a] first", bundle.log)
            self._end(bundle)

    def test_eagain_on_the_log_is_written_later_whole_and_in_order(self) -> None:
        with self._speaking() as (bundle, gate):
            with injected(bundle.pid1, "write:error=EAGAIN:when=1..50", path=_log(bundle)) as trace:
                os.write(gate, b"first\nsecond\n")
                _wait_until_struck(trace)
                bundle.wait_for(b"[a] second\n")
            self.assertEqual(bundle.lines("a"), [b"up", b"first", b"second"])
            self.assertNotIn(b" lost: ", bundle.log)
            self._end(bundle)

    def test_a_state_directory_without_space_is_one_warning_and_is_written_again(self) -> None:
        with Bundle([daemon("egress", *SIGNALS)]) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.wait_for_state("egress", "running")
            events = len(bundle.events())
            written, opened = str(bundle.state / "status.json.new"), "status.json.new"
            for fault, path in (
                ("write:error=ENOSPC", written),
                ("openat:error=ENOSPC", opened),
                ("rename,renameat,renameat2:error=EROFS", None),
            ):
                warnings = bundle.log.count(b"cannot write to ")
                with self.subTest(fault=fault), injected(bundle.pid1, fault, path=path):
                    for turn in range(3):
                        heard = bundle.log.count(b"[egress] SIGHUP\n")
                        bundle.signal(SIGHUP)
                        bundle.wait_for(b"[egress] SIGHUP\n", times=heard + 1)
                        bundle.wait_for(b"cannot write to ", times=warnings + 1)
                        self.assertEqual(bundle.log.count(b"cannot write to "), warnings + 1, turn)
                bundle.catch_up()
            self.assertGreater(len(bundle.events()), events)
            self._end(bundle)

    def test_a_signal_that_cannot_be_delivered_is_logged_and_ends_no_daemon(self) -> None:
        with Bundle([daemon("egress", *SIGNALS), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.wait_for_state("b", "running")
            for turn, error in enumerate(("ESRCH", "EPERM"), 1):
                with injected(bundle.pid1, f"kill,pidfd_send_signal:error={error}:when=1"):
                    bundle.signal(SIGHUP)
                    bundle.wait_for(b"sidecar-init: SIGHUP for egress dropped: ", times=turn)
                bundle.catch_up()
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGHUP"])
            self._end(bundle)

    def test_a_term_that_the_kernel_refuses_is_followed_by_kill_at_the_deadline(self) -> None:
        with Bundle([daemon("a", *SIGNALS)], tunables={"_GRACE_SECONDS": 0.5}) as bundle:
            bundle.wait_for(b"[a] ready\n")
            with injected(bundle.pid1, "kill,pidfd_send_signal:error=EPERM:when=1"):
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 137)
            self.assertEqual(bundle.lines("a"), [b"ready"])

    def test_if_the_ports_cannot_be_read_it_is_logged_once_and_ready_comes_when_they_can(self) -> None:
        listen = self.scratch() / "listen"
        with Bundle([daemon("a", *child("listener.py", 7002, listen), port=7002), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for_state("a", "starting")
            bundle.wait_for_state("b", "running")
            for error in ("ENOBUFS", "EPERM", "ENOMEM"):
                with injected(bundle.pid1, f"write:error={error}", path=_netlink(bundle)) as trace:
                    _wait_until_struck(trace, 5)
                    bundle.catch_up()
            warnings = [line for line in bundle.own_lines() if "listening sockets cannot be read: " in line]
            self.assertEqual(len(warnings), 3, "one for each reason")
            self.assertFalse(bundle.daemon("a")["ready"])
            listen.touch()
            self.assertTrue(bundle.wait_for_state("a", "running")["ready"])
            self._end(bundle)

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[tuple[Bundle, int]]:
        """A bundle with a daemon that says what is written into a named pipe."""
        gate = self.scratch() / "gate"
        os.mkfifo(gate)
        descriptor = os.open(gate, os.O_RDWR)
        daemons = [daemon("a", *shell(f"echo up; exec cat <{gate}")), daemon("egress", *SIGNALS)]
        try:
            with Bundle(daemons) as bundle:
                bundle.wait_for(b"[a] up\n")
                bundle.wait_for(b"[egress] ready\n")
                bundle.wait_for_state("egress", "running")
                bundle.catch_up()
                yield bundle, descriptor
        finally:
            os.close(descriptor)

    def _kill(self, bundle: Bundle, command: str) -> None:
        os.kill(bundle.running_commands(command)[0].pid, SIGKILL)

    def _end(self, bundle: Bundle) -> None:
        """It is as good as new: a TERM ends it."""
        bundle.signal(SIGTERM)
        self.assertIn(bundle.exit(), (0, 143))


def _log(bundle: Bundle) -> str:
    """The pipe of the log, as strace names it."""
    return os.readlink(f"/proc/{bundle.pid1}/fd/1")


def _netlink(bundle: Bundle) -> str:
    """The only socket of PID 1: it asks the kernel which ports are open."""
    links = [os.readlink(path) for path in Path(f"/proc/{bundle.pid1}/fd").iterdir()]
    (socket,) = (link for link in links if link.startswith("socket:"))
    return socket


def _wait_until_struck(trace: Path, times: int = 1) -> None:
    wait_until(lambda: trace.read_text().count("INJECTED") >= times, PATIENCE, "the fault to strike")
