"""Orphans: every one is reaped, and no daemon's exit code is lost to that."""

import os
import random
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM

from tests.pidns.harness import (
    PATIENCE,
    PYTHON,
    SLEEP,
    Bundle,
    Namespace,
    NamespaceTestCase,
    Process,
    child,
    daemon,
    shell,
)
from tests.support import wait_until

ORPHANS = 1000


class OrphanTest(NamespaceTestCase):
    def test_more_orphans_than_one_turn_reaps_leave_no_zombie(self) -> None:
        """They exit while PID 1 is suspended, so that one SIGCHLD stands for all of them."""
        gate = self._gate()
        with Bundle([daemon("a", *child("orphans.py", 2 * ORPHANS, gate))]) as bundle:
            bundle.wait_for(b"[a] orphaned\n", 3 * PATIENCE)
            bundle.suspend()
            gate.write_text("exit\n")

            def zombies() -> int:
                return sum(one.state == "Z" for one in bundle.processes().values())

            wait_until(lambda: zombies() == 2 * ORPHANS, 3 * PATIENCE, "all have exited")
            bundle.signal(SIGCONT)
            wait_until(lambda: len(bundle.processes()) == 1, PATIENCE, "only the daemon is left")

    def test_1000_orphans_that_exit_at_once_leave_no_zombie(self) -> None:
        gate = self._gate()
        with Bundle([daemon("a", *child("orphans.py", ORPHANS, gate))]) as bundle:
            bundle.wait_for(b"[a] orphaned\n")
            self.assertEqual(_inherited(bundle), ORPHANS)
            gate.write_text("exit\n")
            bundle.wait_for(b"[a] released\n")
            wait_until(lambda: len(bundle.processes()) == 1, PATIENCE, "only the daemon is left")

    def test_if_none_reaps_them_they_are_1000_zombies(self) -> None:
        """The control: the test above can fail."""
        gate = self._gate()
        with Namespace(shell(f"{' '.join(child('orphans.py', ORPHANS, gate))} & exec sleep 1000")) as careless:
            careless.wait_for(b"orphaned\n")
            gate.write_text("exit\n")
            careless.wait_for(b"released\n")

            def zombies() -> int:
                return [one.state for one in careless.processes().values()].count("Z")

            wait_until(lambda: zombies() == ORPHANS, PATIENCE, "1000 zombies")

    def test_no_exit_code_is_lost_in_a_storm_of_orphans(self) -> None:
        codes = {f"daemon-{number}": random.randrange(1, 256) for number in range(60)}
        others = [daemon(name, *shell(f"sleep 0.0{code % 10}; exit {code}")) for name, code in codes.items()]
        with Bundle([daemon("storm", *child("orphan_storm.py", 1)), *others]) as bundle:
            for name, code in codes.items():
                bundle.wait_for(f"sidecar-init: {name} exited with status {code}".encode())
            wait_until(lambda: len(bundle.events("exited")) == len(codes), PATIENCE, "every event")
            self.assertEqual({one["daemon"]: one["code"] for one in bundle.events("exited")}, codes)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), max(codes.values()))

    def test_a_supervisor_that_is_not_pid_1_inherits_the_orphans_too(self) -> None:
        gate = self._gate()
        with Namespace(SLEEP) as outer, Bundle([daemon("a", *child("orphans.py", 3, gate))], inside=outer) as bundle:
            bundle.wait_for(b"[a] orphaned\n")
            self.assertEqual(_inherited(bundle), 3)
            gate.write_text("exit\n")
            wait_until(lambda: len(bundle.processes()) == 1, PATIENCE, "only the daemon is left")

    def _gate(self) -> Path:
        path = self.scratch() / "gate"
        os.mkfifo(path)
        return path


class EndTest(NamespaceTestCase):
    def test_a_tree_that_ignores_term_is_killed_after_the_grace(self) -> None:
        with Bundle([daemon("tree", *child("tree.py"))], tunables={"_GRACE_SECONDS": 0.3}) as bundle:
            bundle.wait_for(b"[tree] grown\n")
            self.assertEqual(len(bundle.running_commands("tree.py")), 3)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)
            self.assertRegex(bundle.log, rb"sidecar-init: tree has not stopped after 0\.\d s; killing it")

    def test_not_being_pid_1_it_leaves_nothing_of_a_daemons_group(self) -> None:
        """Where it is PID 1 the kernel would end them all anyway; here only the supervisor can."""
        stubborn = daemon("stubborn", *child("signals.py", "--stay", "--with-child"))
        short = {"_GRACE_SECONDS": 0.3}
        with Namespace(SLEEP) as outer, Bundle([stubborn], inside=outer, tunables=short) as bundle:
            bundle.wait_for(b"ready\n", times=2)
            group = bundle.running_commands("signals.py")
            self.assertEqual(len(group), 2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)
            self.assertEqual([one for one in group if Path(f"/proc/{one.pid}").exists()], [])

    def test_a_process_that_left_its_group_does_not_hold_up_the_end(self) -> None:
        with Bundle([daemon("tree", *child("tree.py"))]) as bundle:
            bundle.wait_for(b"[tree] grown\n")
            os.killpg(bundle.host_pid(bundle.daemon("tree")["pid"]), SIGKILL)
            self.assertEqual(bundle.exit(), 137)


TRACED = """
import ctypes, os, signal, time
ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME: its parent, PID 1, is its tracer now
print("traced", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


class TracedTest(NamespaceTestCase):
    def test_a_daemon_that_makes_pid_1_its_tracer_and_stops_is_still_noticed_when_it_exits(self) -> None:
        with Bundle([daemon("web", *PYTHON, "-c", TRACED, restart="always"), daemon("other", *SLEEP)]) as bundle:
            bundle.wait_for(b"[web] traced\n")
            pid = bundle.host_pid(bundle.daemon("web")["pid"])
            bundle.until(lambda: Process(pid).state in "tT", PATIENCE, "web is stopped")
            bundle.catch_up()
            os.kill(pid, SIGKILL)
            bundle.wait_for(b"web was terminated by SIGKILL")
            bundle.wait_for(b"[web] traced\n", times=2)
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertNotIn(b"internal error", bundle.log)


def _inherited(bundle: Bundle) -> int:
    """How many children of the supervisor are orphans of orphans.py."""
    return sum(one.parent == bundle.pid1 and "orphans.py" in one.command for one in bundle.processes().values()) - 1
