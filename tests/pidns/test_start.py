"""The first moments of PID 1 and of its children: no signal is lost or delayed, and nothing is left to be read."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from pathlib import Path
from signal import SIGHUP, SIGTERM

from tests.pidns.harness import (
    PATIENCE,
    PYTHON,
    SLEEP,
    Bundle,
    Namespace,
    NamespaceTestCase,
    child,
    daemon,
    launcher,
    open_files,
    shell,
)
from tests.support import MODULE, wait_until

SIGNALS = child("signals.py")
MANY = 500
OF_LIBC = 32  # a signal that programs cannot block


class FirstMomentTest(NamespaceTestCase):
    def test_a_term_is_not_lost_as_soon_as_pid_1_blocks_it(self) -> None:
        for turn in range(12):
            bundle = Bundle([daemon("a", *SLEEP), daemon("b", *SLEEP)], as_file=True)
            form = ("--table FILE", "--table=FILE", "baked")[turn % 3]
            if form == "baked":
                baked = bundle.directory / "baked.pyc"
                told = subprocess.run([*bundle.argv[:-2], "bake", *bundle.argv[-2:], baked], capture_output=True)
                self.assertEqual((told.returncode, told.stderr), (0, b""))
                bundle.argv = [*PYTHON, str(baked)]
            elif form == "--table=FILE":
                bundle.argv[-2:] = ["=".join(bundle.argv[-2:])]
            with self.subTest(form, turn=turn), bundle:
                with open(f"/proc/{bundle.pid1}/status", "rb") as status:
                    # Read without a pause: the earliest moment is what is tested. A script executes itself after it.
                    while not self._keeps(os.pread(status.fileno(), 4096, 0), SIGTERM):
                        self.assertTrue(bundle.running())
                bundle.signal(SIGTERM)
                self.assertIn(bundle.exit(), (0, 143))
                self.assertIn(b"sidecar-init: shutting down: SIGTERM\n", bundle.log)

    def test_signals_are_blocked_before_the_first_import_that_takes_time(self) -> None:
        """PID 1 sends itself a TERM there. Before it, the kernel drops it: PID 1 has no handler, and blocks nothing."""
        source = MODULE.read_text()
        first_import = re.search(r"^import errno", source, re.MULTILINE)
        assert first_import
        for place, is_heard in ((first_import.start(), True), (source.index("\ndef _asks_to_supervise") + 1, False)):
            program = self.scratch() / "sidecar_init.py"
            send = f"import os; __file__ == {str(program)!r} and os.kill(os.getpid(), {SIGTERM:d})"  # once
            program.write_text(f"{source[:place]}{send}\n{source[place:]}")
            bundle = Bundle([daemon("a", *SLEEP)])
            bundle.argv = [*PYTHON, str(program), *bundle.argv[-2:]]
            with self.subTest(is_heard=is_heard), bundle:
                if is_heard:
                    self.assertIn(bundle.exit(), (0, 143))
                else:
                    bundle.wait_for_state("a", "running")
                    bundle.catch_up()
                self.assertEqual(b"shutting down: SIGTERM" in bundle.log, is_heard)

    def _keeps(self, status: bytes, number: int) -> bool:
        """Whether the program blocks or catches the signal.

        Before it, unshare blocks it for a moment, and libc blocks all, with one that only libc can block.
        """
        is_python = status.startswith(b"Name:\tpython")
        masks = [int(mask, 16) for mask in re.findall(rb"^Sig(?:Blk|Cgt):\s+(\w+)", status, re.MULTILINE)]
        return is_python and any(mask >> number - 1 & 1 and not mask >> OF_LIBC - 1 & 1 for mask in masks)


class ScriptTest(NamespaceTestCase):
    def test_a_script_that_has_executed_itself_keeps_nothing_of_it_open(self) -> None:
        with Bundle([daemon("a", *SLEEP)], as_file=True) as bundle:
            bundle.wait_for_state("a", "running")
            command = Path(f"/proc/{bundle.pid1}/cmdline").read_text().split("\0")
            self.assertRegex(command[-2], r"^/proc/self/fd/\d+$")
            opened = open_files(bundle.pid1).values()
            self.assertIn("/dev/null", opened)
            self.assertEqual([path for path in opened if "memfd" in path], [])


class EnvironmentTest(NamespaceTestCase):
    def test_the_environment_block_of_pid_1_is_empty_and_that_of_a_daemon_is_not(self) -> None:
        env = {"EGRESS_TOKEN_0": "correct-horse-battery", "MARK": "outer"}
        daemons = [daemon("a", *SLEEP), daemon("b", *shell("echo $MARK"), restart="never")]
        with Bundle(daemons, env=env, secrets={"EGRESS_TOKEN_": "a"}) as bundle:
            bundle.wait_for(b"[b] outer\n")
            bundle.wait_for_state("a", "running")
            self.assertEqual(Path(f"/proc/{bundle.pid1}/environ").read_bytes().strip(b"\0"), b"")
            (of_daemon,) = bundle.running_commands("sleep 1000")
            for entry in (b"MARK=outer", b"EGRESS_TOKEN_0=correct-horse-battery"):
                self.assertIn(entry, Path(f"/proc/{of_daemon.pid}/environ").read_bytes().split(b"\0"))
            bundle.signal(34)  # what is started later has it too
            bundle.wait_for(b"a restarted (pid ")
            bundle.wait_for_state("a", "running")
            (of_daemon,) = bundle.running_commands("sleep 1000")
            self.assertIn(b"MARK=outer", Path(f"/proc/{of_daemon.pid}/environ").read_bytes().split(b"\0"))

    def test_of_another_program_it_can_be_read(self) -> None:
        """The control: the look above would find it."""
        with Namespace(shell("echo up; exec sleep 1000"), env={"MARK": "outer"}) as other:
            other.wait_for(b"up\n")
            environ = Path(f"/proc/{other.pid1}/environ")  # empty for a moment during the exec
            wait_until(lambda: b"MARK=outer" in environ.read_bytes().split(b"\0"), PATIENCE, "its environment")


class StartingTest(NamespaceTestCase):
    def test_a_child_that_is_suspended_before_its_exec_holds_up_nothing(self) -> None:
        suspend = "import os, signal\nos.chdir = lambda path: os.kill(os.getpid(), signal.SIGSTOP)"
        bundle = Bundle([daemon("stuck", *SLEEP, cwd="/tmp"), daemon("egress", *SIGNALS)])
        bundle.argv = [*launcher(suspend), *bundle.argv[-2:]]
        with bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.until(lambda: self._suspended(bundle), PATIENCE, "the child is suspended")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            bundle.catch_up()
            self.assertEqual(bundle.daemon("stuck")["state"], "starting")
            self.assertNotIn(b"stuck started", bundle.log)
            bundle.signal(SIGTERM)
            bundle.wait_for(b"[egress] SIGTERM\n")
            self.assertEqual(bundle.exit(), 143, "it is continued, and has got its TERM")
            self.assertEqual(bundle.events("killed"), [])

    def test_many_daemons_that_start_do_not_keep_a_signal_from_being_served(self) -> None:
        """The first of them sends the TERM. The control: without it, all start."""
        others = [daemon(f"d{number}", *SLEEP) for number in range(1, MANY)]
        for script in ("kill -TERM 1", "true"):
            first = daemon("d0", *shell(f"{script}; exec sleep 1000"))
            with self.subTest(script), Bundle([first, *others], before_exec=_many_descriptors) as bundle:
                if script == "true":
                    bundle.wait_for_event("started", times=MANY, seconds=60)
                    bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(30), 143)
                self.assertEqual(len(bundle.events("started")) == MANY, script == "true")

    def _suspended(self, bundle: Bundle) -> bool:
        return [one.state for one in bundle.processes().values()].count("T") == 1


def _many_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
