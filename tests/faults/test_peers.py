"""The scenarios of dumb-init's and tini's own tests, where their rules apply to a supervisor of several daemons.

Not here, since there is no one foreground child: job control (dumb-init's test_shell_background), signal rewriting,
tini's -e (exit codes remapped), -p (a signal when the parent exits) and the terminal. That signals are handed on by the
table alone, where those hand on all, is in test_signals.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL, SIGTERM, SIGUSR1

from tests.faults.support import FAULT_CHILDREN, Bundle, FaultTestCase, processes
from tests.pidns.harness import PATIENCE, PYTHON, Namespace, child, daemon, shell
from tests.support import MODULE, wait_until

HEARS = [*PYTHON, str(FAULT_CHILDREN / "hears.py")]


class DumbInitTest(FaultTestCase):
    def test_the_exit_code_of_the_only_daemon_is_that_of_pid_1_from_0_to_255(self) -> None:
        def code_of(code: int) -> int:
            with Bundle([daemon("a", *shell(f"exit {code}"))], state_dir="") as bundle:
                return bundle.exit(60)

        with ThreadPoolExecutor(2) as pool:
            self.assertEqual(list(pool.map(code_of, range(256))), list(range(256)))

    def test_a_daemon_killed_by_a_signal_makes_128_and_that_signal(self) -> None:
        for number in (1, 2, 3, 6, 9, 11, 14, 15, 34, 64):
            killer = shell(f"kill -{number} $$")
            with self.subTest(number=number), Bundle([daemon("a", *killer)]) as bundle:
                self.assertEqual(bundle.exit(), 128 + number)

    def test_a_signal_ends_the_child_processes_of_a_daemon_too(self) -> None:
        # test_child_processes: a shell that runs a program in the foreground, and another behind it
        tree = shell("sleep 3001 & sleep 3002 & (sleep 3003 & sleep 3004) & wait")
        with Bundle([daemon("a", *tree)]) as bundle:
            wait_until(lambda: len(bundle.running_commands("sleep 300")) >= 4, PATIENCE, "the tree has grown")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)

    def test_every_process_of_the_tree_hears_term(self) -> None:
        with Bundle([daemon("a", *child("signals.py", "--with-child"))]) as bundle:
            bundle.wait_for(b"ready\n", times=2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)
            self.assertCountEqual(bundle.lines("a"), [b"ready", b"child ready", b"SIGTERM", b"child SIGTERM"])

    def test_a_tree_that_ignores_term_is_gone_at_a_restart_but_for_what_left_the_group(self) -> None:
        daemons = [daemon("pipelock", *child("tree.py"))]
        with Bundle(daemons, tunables={"_RESTART_GRACE_SECONDS": 0.2, "_GRACE_SECONDS": 0.2}) as bundle:
            bundle.wait_for(b"[pipelock] grown\n")
            self.assertEqual(len(bundle.running_commands("tree.py")), 3)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] grown\n", times=2)
            self.assertEqual(len(bundle.running_commands("tree.py")), 4)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)

    def test_wrong_usage_is_2_and_one_reason(self) -> None:
        for arguments in (["--no-such-option"], ["no-such-command"], ["--table"]):
            with self.subTest(arguments=arguments), Namespace([*PYTHON, str(MODULE), *arguments]) as program:
                self.assertEqual(program.exit(), 2)
                self.assertRegex(program.stderr, r"\Acannot understand the command line: .*\n\Z")

    def test_version_and_help_are_printed_and_nothing_is_started(self) -> None:
        for argument, found in (("--version", b"sidecar-init "), ("--help", b"--table")):
            with Namespace([*PYTHON, str(MODULE), argument]) as program:
                self.assertEqual(program.exit(), 0)
                self.assertIn(found, program.log)

    def test_a_command_that_does_not_exist_is_127_and_one_that_may_not_be_executed_126(self) -> None:
        for command, code in (("/no/such/program", 127), ("/etc/passwd", 126), ("/tmp", 126)):
            with self.subTest(command=command), Bundle([daemon("a", command)]) as bundle:
                self.assertEqual(bundle.exit(), code)


class TiniTest(FaultTestCase):
    ORPHANS = "for n in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.01 &) ; done; sleep 0.5; echo done; exec sleep 3001"

    def test_zombies_are_reaped(self) -> None:
        with Bundle([daemon("a", *shell(self.ORPHANS))]) as bundle:
            bundle.wait_for(b"[a] done\n")
            wait_until(lambda: not _zombies(bundle), PATIENCE, "no zombie")

    def test_if_none_reaps_them_they_stay_zombies(self) -> None:
        """The negative control: without a supervisor the same script leaves them all."""
        script = "import os, time\nif os.fork() == 0: os.execvp('sh', ['sh', '-c', %r])\nwhile True: time.sleep(1000)"
        with Namespace([*PYTHON, "-c", script % self.ORPHANS]) as namespace:
            namespace.wait_for(b"done\n")
            wait_until(lambda: len(_zombies(namespace)) == 10, PATIENCE, "ten zombies")

    def test_a_subreaper_that_is_not_pid_1_reaps_too(self) -> None:
        with Namespace(["sleep", "1000"]) as outer:
            wait_until(lambda: outer.pid1, PATIENCE, "the namespace")
            with Bundle([daemon("a", *shell(self.ORPHANS))], inside=outer) as bundle:
                bundle.wait_for(b"[a] done\n")
                wait_until(lambda: not _zombies(outer), PATIENCE, "no zombie")
                os.kill(bundle.pid1, SIGTERM)
                self.assertEqual(bundle.exit(), 143)

    def test_a_daemon_that_is_killed_from_outside_is_reported_as_137(self) -> None:
        with Bundle([daemon("a", *HEARS)]) as bundle:
            bundle.wait_for(b"[a] ready\n")
            os.kill(bundle.host_pid(bundle.wait_for_state("a", "running")["pid"]), SIGKILL)
            self.assertEqual(bundle.exit(), 137)

    def test_a_signal_that_no_table_names_ends_no_daemon(self) -> None:
        with Bundle([daemon("a", *HEARS)], signals={}) as bundle:
            bundle.wait_for(b"[a] ready\n")
            bundle.wait_for_state("a", "running")
            bundle.signal(SIGUSR1)
            bundle.catch_up()
            self.assertEqual(bundle.lines("a"), [b"ready"])

    def test_nothing_of_the_namespace_is_left_at_the_end(self) -> None:
        script = "for n in 1 2 3; do setsid --fork sh -c 'trap \"\" TERM; sleep 3001'; done; echo up; exec sleep 3002"
        with Bundle([daemon("a", *shell(script))]) as bundle:
            bundle.wait_for(b"[a] up\n")
            inhabitants = processes(bundle.pid1)
            self.assertGreaterEqual(len(inhabitants), 5)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            wait_until(lambda: not any(one.still_runs() for one in inhabitants), PATIENCE, "all are gone")


def _zombies(namespace: Namespace) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [one.pid for one in processes(namespace.pid1) if one.state == "Z" and one.parent == namespace.pid1]
    return []
