"""Too few descriptors, processes, memory or disk; a clock that jumps; a machine that sleeps."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGTERM, SIGUSR1, SIGUSR2

from tests.faults.support import Bundle, FaultTestCase
from tests.pidns.harness import PATIENCE, PYTHON, SLEEP, child, daemon, launcher, quiet_for, small_disk
from tests.support import wait_until

SIGNALS = child("signals.py")
QUICK = {"_BACKOFF_FIRST": 0.1, "_BACKOFF_LAST": 0.3}
YEAR = 365 * 86400
SUSPENDED = float(os.environ.get("SIDECAR_INIT_SUSPEND", "3"))
CGROUP_V1 = Path("/sys/fs/cgroup/memory")
UNUSED_UID = random.randrange(20_000, 60_000)  # RLIMIT_NPROC counts all processes of a user, in other runs, too


class DescriptorsTest(FaultTestCase):
    def test_with_32_descriptors_20_daemons_run_as_far_as_they_go_and_the_rest_is_tried_again(self) -> None:
        daemons = [daemon("egress", *SIGNALS), *(daemon(f"d{n}", *SLEEP, restart="always") for n in range(19))]
        with Bundle(daemons, before_exec=_limit(resource.RLIMIT_NOFILE, 32), tunables=QUICK) as bundle:
            bundle.wait_for(b"Too many open files; trying again in ", times=5)
            bundle.wait_for(b"[egress] ready\n")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            # With none left for a file either, the state is not written: one warning.
            self.assertLessEqual(bundle.log.count(b"cannot write to "), 1)
            # Twelve descriptors are PID 1's own; each daemon takes three, and a fourth and fifth while it is started.
            wait_until(lambda: len(bundle.running_commands("sleep 1000")) > 3, PATIENCE, "four daemons beside egress")
            os.kill(bundle.running_commands("sleep 1000")[-1].pid, SIGKILL)
            bundle.wait_for(b" was terminated by SIGKILL")
            bundle.signal(SIGTERM)
            self.assertIn(bundle.exit(), (137, 143))


class ProcessesTest(FaultTestCase):
    def test_with_10_processes_as_another_user_the_rest_is_tried_until_there_is_room(self) -> None:
        become = ["setpriv", f"--reuid={UNUSED_UID}", f"--regid={UNUSED_UID}", "--clear-groups", "--inh-caps=-all"]
        python = _python_for(become)
        if python is None:
            self.skipTest(f"no Python 3.11 that uid {UNUSED_UID} may execute")
        daemons = [daemon(f"d{n:02d}", *SLEEP, restart="never") for n in range(15)]
        bundle = Bundle(daemons, before_exec=_limit(resource.RLIMIT_NPROC, 10), tunables=QUICK)
        bundle.directory.chmod(0o777)
        bundle.argv = [*become, python, *bundle.argv[1:]]
        with bundle:
            bundle.wait_for(b": cannot fork: Resource temporarily unavailable; trying again in ", times=6)
            wait_until(lambda: len(bundle.running_commands("sleep 1000")) == 9, PATIENCE, "nine daemons beside PID 1")
            os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
            bundle.wait_for(b"was terminated by SIGKILL")
            wait_until(lambda: len(bundle.running_commands("sleep 1000")) == 9, PATIENCE, "another takes its place")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137, "the one that failed by itself")


class MemoryTest(FaultTestCase):
    def test_the_daemon_that_eats_a_cgroup_of_32_mib_is_killed_and_named_and_pid_1_survives(self) -> None:
        eater = "import time\nheld = []\nwhile True: held.append(bytearray(1 << 20))"
        daemons = [daemon("eater", *PYTHON, "-c", eater), daemon("egress", *SIGNALS)]
        with memory_cgroup(32 << 20) as enter, Bundle(daemons, before_exec=enter) as bundle:
            event = bundle.wait_for_event("exited", "eater", 30)
            is_counted = not CGROUP_V1.exists()  # there is a counter for each cgroup in version 2 only
            self.assertEqual((event["signal"], event["oom"]), ("SIGKILL", True if is_counted else None))
            why = b" (out of memory)" if is_counted else b""
            bundle.wait_for(b"sidecar-init: eater was terminated by SIGKILL" + why + b" after ")
            bundle.wait_for(b"[egress] ready\n")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            os.kill(bundle.host_pid(bundle.daemon("egress")["pid"]), SIGKILL)
            oom = bundle.wait_for_event("exited", "egress")["oom"]
            self.assertIs(oom, False if is_counted else None, "the control: not every KILL")
            self.assertEqual(bundle.exit(), 137)


class DiskTest(FaultTestCase):
    def test_a_full_disk_under_log_and_state_stops_no_daemon_and_both_go_on_when_there_is_room(self) -> None:
        with small_disk(256) as disk:
            log = os.open(disk / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self.addCleanup(os.close, log)
            daemons = [daemon("egress", *SIGNALS), daemon("pipelock", *SLEEP)]
            with Bundle(daemons, stdout=log, state_dir=str(disk / "state")) as bundle:
                bundle.state = disk / "state"
                bundle.wait_for_state("pipelock", "running")
                wait_until(lambda: b"[egress] ready\n" in (disk / "log").read_bytes(), PATIENCE, "egress is ready")
                filler = disk / "filler"
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1024))
                before = bundle.running_commands("sleep 1000")[0].pid
                for _ in range(200):
                    bundle.signal(SIGHUP)
                bundle.signal(SIGUSR1)
                wait_until(lambda: _others(bundle, before), PATIENCE, "pipelock is another process")
                filler.unlink()
                bundle.catch_up()
                bundle.signal(SIGHUP)
                bundle.wait_for_event("signal", "egress")
                bundle.catch_up()
                text = (disk / "log").read_bytes()
                self.assertEqual(text.count(b"cannot write to "), 1)
                self.assertIn(b"SIGHUP delivered to egress\n", text[-2000:])
                self.assertEqual(bundle.daemon("pipelock")["restarts"], 1)
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 143)


class ClockTest(FaultTestCase):
    """The wall clock of the module alone is moved: no namespace covers CLOCK_REALTIME."""

    def test_a_wall_clock_that_jumps_a_year_either_way_changes_no_deadline(self) -> None:
        offset = self.scratch() / "offset"
        offset.write_text("0")
        daemons = [daemon("a", *SLEEP, restart="always"), daemon("pipelock", *child("signals.py", "--stay"))]
        bundle = Bundle(daemons)
        backoff = "module._BACKOFF_FIRST = 2.0"  # long enough to be seen on a busy machine
        bundle.argv = [*launcher(f"{backoff}\n{_shifted_clock(offset)}"), *bundle.argv[-2:]]
        with bundle:
            bundle.wait_for_state("a", "running")
            bundle.wait_for(b"[pipelock] ready\n")
            for turn, jump in enumerate((YEAR, -YEAR), 1):
                with self.subTest(jump=jump):
                    old = bundle.daemon("pipelock")["pid"]
                    heard = bundle.log.count(b"[pipelock] SIGTERM\n")
                    bundle.signal(SIGUSR1)
                    bundle.wait_for(b"[pipelock] SIGTERM\n", times=heard + 1)
                    os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
                    bundle.wait_for_state("a", "backoff")
                    offset.write_text(str(jump))
                    bundle.catch_up()
                    year = 1970 + (time.time() + jump) // (365.2425 * 86400)
                    self.assertEqual(int(bundle.status()["updated_at"][:4]), year, "the control: it jumped")
                    pipelock = bundle.daemon("pipelock")
                    self.assertEqual((pipelock["pid"], pipelock["state"]), (old, "stopping"))
                    bundle.wait_for_event("started", "a", times=turn + 1)  # a backoff of two seconds, or four
                    bundle.wait_for(b"[pipelock] ready\n", times=turn + 1)  # five seconds of grace
                    killed = bundle.events("killed", "pipelock")
                    self.assertEqual(len(killed), turn)
                    exited = bundle.events("exited", "a")[-1]
                    self.assertLess(exited["uptime"], 60)
            health = bundle.command("health")
            self.assertEqual((health.returncode, health.stderr), (0, ""))
            os.kill(bundle.host_pid(bundle.daemon("pipelock")["pid"]), SIGKILL)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)


class SuspendTest(FaultTestCase):
    def test_what_happened_while_pid_1_was_stopped_is_dealt_with_once_when_it_goes_on(self) -> None:
        daemons = [
            daemon("egress", *SIGNALS),
            daemon("pipelock", *SIGNALS),
            daemon("a", *SLEEP, restart="always"),
            daemon("loud", *child("numbered.py", 100_000)),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.wait_for(b"[loud] 0099999\n")
            bundle.suspend()
            os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
            for _ in range(3):
                for number in (SIGHUP, SIGUSR1, SIGUSR2):
                    bundle.signal(number)
            quiet_for(SUSPENDED)
            self.assertEqual(bundle.lines("egress"), [b"ready"], "the control: it was stopped")
            bundle.signal(SIGCONT)
            bundle.wait_for(b"[egress] SIGHUP\n")
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            bundle.wait_for(b"a started", times=2)
            bundle.catch_up()
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGHUP"])
            self.assertEqual(bundle.lines("pipelock"), [b"ready", b"SIGTERM", b"ready"])
            self.assertEqual([int(line) for line in bundle.lines("loud")], list(range(100_000)))

            bundle.suspend()
            bundle.signal(SIGTERM)
            bundle.signal(SIGCONT)
            self.assertEqual(bundle.exit(), 143)

    def test_a_grace_that_ran_out_meanwhile_kills_none_that_had_ended_in_time(self) -> None:
        may_end, offset = self.scratch() / "may-end", self.scratch() / "offset"
        daemons = [daemon("pipelock", *SIGNALS, "--end-when", str(may_end)), daemon("b", *SLEEP)]
        bundle = Bundle(daemons)
        long_grace = "module._RESTART_GRACE_SECONDS = 900.0"
        bundle.argv = [*launcher(long_grace, before_import=_shifted_steady_clock(offset)), *bundle.argv[-2:]]
        offset.write_text("0")
        with bundle:
            bundle.wait_for(b"] ready\n")
            for turn in range(1, 6):
                [old] = bundle.running_commands("signals.py")
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"[pipelock] SIGTERM\n", times=turn)
                bundle.suspend()
                may_end.touch()
                bundle.wait_for_zombie(old.pid)
                offset.write_text(str(turn * 1000))  # the grace, and more
                may_end.unlink()
                bundle.signal(SIGCONT)
                bundle.wait_for(b"[pipelock] ready\n", times=turn + 1)
            self.assertEqual(bundle.events("killed"), [])


def _limit(kind: int, number: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (number, number))


def _others(bundle: Bundle, before: int) -> bool:
    return [one.pid for one in bundle.running_commands("sleep 1000")] not in ([], [before])


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _python_for(become: Sequence[str]) -> str | None:
    """A Python that the account may execute that the command `become` changes to."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        look = "import sys, tomllib; assert sys.version_info >= (3, 11)"
        with contextlib.suppress(OSError):
            if subprocess.run([*become, python, "-I", "-c", look], capture_output=True).returncode == 0:
                return python
    return None


def _shifted_clock(offset: Path) -> str:
    """Gives the module a wall clock that is off by what stands in a file."""
    return f"""
import time
from types import SimpleNamespace
shifted = SimpleNamespace(**vars(time))
shifted.time = lambda: time.time() + float(open({str(offset)!r}).read() or 0)
module.time = shifted
"""


def _shifted_steady_clock(offset: Path) -> str:
    """The same for the steady clock. The module may take hold of it when it is imported, so this comes first."""
    return f"""
import time
unshifted = time.monotonic
time.monotonic = lambda: unshifted() + float(open({str(offset)!r}).read() or 0)
"""


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Callable[[], None]]:
    """A cgroup with that much memory; yields what a process calls to enter it."""
    name = f"sidecar-init-test-{os.getpid()}"
    first, second = CGROUP_V1 / name, Path("/sys/fs/cgroup") / name
    version_1 = first.parent.exists()
    group = first if version_1 else second
    try:
        group.mkdir()
    except OSError as error:
        raise unittest.SkipTest(f"no memory cgroup can be made here: {error.strerror}") from None
    try:
        try:
            (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
        except OSError as error:
            raise unittest.SkipTest(f"no limit can be set on a memory cgroup here: {error.strerror}") from None
        for swap, most in (("memory.memsw.limit_in_bytes", str(limit)), ("memory.swap.max", "0")):
            with contextlib.suppress(OSError):
                if (group / swap).exists():
                    (group / swap).write_text(most)
        yield lambda: _write(group / "cgroup.procs", str(os.getpid()))
    finally:

        def removed() -> bool:
            with contextlib.suppress(OSError):  # busy, as long as a process is in it
                group.rmdir()
            return not group.exists()

        wait_until(removed, PATIENCE, "the cgroup is empty")
