"""What breaks supervisors of the naive kind: one thread that reads lines, one that waits, a handler that works."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1

from tests.faults.support import FAULT_CHILDREN, Bundle, FaultTestCase, processes
from tests.pidns.harness import PATIENCE, PYTHON, SLEEP, Collector, child, daemon, shell
from tests.support import MODULE, wait_until

SIGNALS = child("signals.py")


def exits(how: str, number: int) -> list[str]:
    return [*PYTHON, str(FAULT_CHILDREN / "exits.py"), how, str(number)]


class RestartTest(FaultTestCase):
    def test_two_usr1_while_the_old_pipelock_takes_300_ms_to_stop_never_make_two_of_it(self) -> None:
        daemons = [daemon("pipelock", *exits("slow-term", 300), restart="always"), daemon("egress", *SIGNALS)]
        with Bundle(daemons) as bundle:
            for turn in range(1, 6):
                bundle.wait_for(b"[pipelock] up\n", times=turn)
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"restarting pipelock", times=turn)
                bundle.signal(SIGUSR1)

                def restarted(turn: int = turn) -> bool:
                    self.assertLessEqual(len(bundle.running_commands("slow-term")), 1)
                    return bundle.log.count(b"pipelock restarted (pid ") >= turn

                wait_until(restarted, PATIENCE, "the replacement")
            bundle.wait_for(b"[pipelock] up\n", times=6)
            bundle.signal(SIGTERM)
            bundle.exit()
            # Each is up only when the one before it is down, and none is left.
            self.assertEqual(bundle.lines("pipelock"), [b"up", b"down"] * 6)

    def test_nothing_is_started_after_a_term_that_comes_during_a_restart(self) -> None:
        daemons = [daemon("pipelock", *exits("slow-term", 300), restart="always"), daemon("b", *SLEEP)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[pipelock] up\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"restarting pipelock")
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertEqual(bundle.lines("pipelock"), [b"up", b"down"])
            after = bundle.log.partition(b"shutting down")[2]
            self.assertNotIn(b"restarted", after)
            self.assertNotIn(b"starting", after)

    def test_an_exit_is_noticed_at_once_while_a_stubborn_one_is_being_restarted(self) -> None:
        daemons = [daemon("pipelock", *SIGNALS, "--stay"), daemon("b", *SLEEP, restart="always")]
        with Bundle(daemons, tunables={"_RESTART_GRACE_SECONDS": 1000.0}) as bundle:
            bundle.wait_for(b"[pipelock] ready\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] SIGTERM\n")
            os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
            bundle.wait_for(b"b was terminated by SIGKILL")
            bundle.wait_for(b"b started", times=2)
            self.assertEqual(bundle.daemon("pipelock")["state"], "stopping")

    def test_a_usr1_after_the_binary_has_vanished_is_noticed_by_no_other(self) -> None:
        program = self.scratch() / "pipelock"
        program.symlink_to("/bin/sleep")
        daemons = [daemon("pipelock", str(program), "2000", restart="always"), daemon("egress", *SIGNALS)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            egress = bundle.wait_for_state("egress", "running")
            program.unlink()
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"cannot start pipelock: cannot execute ")
            self.assertEqual(bundle.wait_for_state("pipelock", "failed")["ready"], False)
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            program.symlink_to("/bin/sleep")
            bundle.signal(SIGUSR1)
            bundle.wait_for_state("pipelock", "running")
            after = bundle.daemon("egress")
            self.assertEqual((after["pid"], after["starts"]), (egress["pid"], egress["starts"]))
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)

    def test_20_restarts_beside_a_grandchild_that_keeps_the_pipe_leave_descriptors_and_zombies_flat(self) -> None:
        keeper = shell("setsid --fork sh -c 'echo up; exec sleep 3000'; exec sleep 2000")
        with Bundle([daemon("pipelock", *keeper, restart="always"), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for(b"[pipelock] up\n")
            bundle.wait_for_state("b", "running")
            bundle.catch_up()
            before = _descriptors(bundle)
            for turn in range(20):
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"[pipelock] up\n", times=turn + 2)
            bundle.catch_up()
            self.assertEqual(_descriptors(bundle), before)
            self.assertEqual(len(bundle.running_commands("sleep 3000")), 21, "the control: they live, and keep it")
            self.assertEqual([one for one in processes(bundle.pid1) if one.state == "Z"], [])
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)


class SignalTest(FaultTestCase):
    def test_a_term_as_soon_as_the_first_child_runs_is_never_lost(self) -> None:
        for turn in range(30):
            with self.subTest(turn=turn), Bundle([daemon("a", *SLEEP), daemon("b", *SLEEP)], as_file=True) as bundle:
                pid1 = bundle.pid1
                children = f"/proc/{pid1}/task/{pid1}/children"
                with open(children) as file:  # read without a pause: the earliest moment is what is tested
                    while not os.pread(file.fileno(), 10, 0):
                        pass
                bundle.signal(SIGTERM)
                self.assertIn(bundle.exit(), (0, 143))
                self.assertIn(b"shutting down: SIGTERM", bundle.log)

    def test_hup_is_served_while_a_reader_takes_400_kilobytes_a_second(self) -> None:
        with Bundle([daemon("egress", *exits("nag", 1000))]) as bundle:
            bundle.reader.before_each_read = functools.partial(time.sleep, 65536 / 400_000)
            bundle.wait_for_stall("nag")
            for turn in range(1, 4):
                bundle.signal(SIGHUP)
                bundle.wait_for_event("signal", "egress", times=turn)
            # What waits for the reader is bounded, so the answer comes through within seconds.
            bundle.wait_for(b"[egress] served\n", 30)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(30), 143)


class LogTest(FaultTestCase):
    def test_10_000_lines_that_the_last_daemon_says_just_before_it_exits_come_before_the_line_of_its_exit(self) -> None:
        for _ in range(5):
            with Bundle([daemon("a", *exits("say-and-exit", 10_000))]) as bundle:
                self.assertEqual(bundle.exit(), 0)
                self.assertEqual(bundle.lines("a"), [b"line %05d" % n for n in range(10_000)])
                self.assertLess(bundle.log.index(b"[a] line 09999\n"), bundle.log.index(b"a exited with status 0"))

    def test_500_lines_that_a_daemon_says_on_term_are_all_there_before_the_line_of_its_exit(self) -> None:
        for _ in range(5):
            with Bundle([daemon("a", *exits("say-on-term", 500)), daemon("b", *SLEEP)]) as bundle:
                bundle.wait_for(b"[a] up\n")
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 143)
                self.assertEqual(bundle.lines("a")[1:], [b"line %05d" % n for n in range(500)])
                self.assertLess(bundle.log.index(b"[a] line 00499\n"), bundle.log.index(b"a exited with status 0"))

    def test_a_line_that_a_killed_daemon_finished_is_whole_though_the_reader_stalled(self) -> None:
        command = child("numbered.py", 400_000)
        with Bundle([daemon("a", *command, restart="never"), daemon("b", *SLEEP)], reading=False) as bundle:
            bundle.wait_for_stall("numbered.py")
            os.kill(bundle.running_commands("numbered.py")[0].pid, SIGKILL)
            bundle.until(lambda: bundle.events("exited", "a"), PATIENCE, "its exit is known")
            bundle.reader.resume()
            bundle.wait_for(b"a was terminated by SIGKILL")
            bundle.catch_up()
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137, "the one that failed by itself")
            said = [int(line) for line in bundle.lines("a")[:-1]]  # the last may be half: its write was cut short
            self.assertEqual(said, list(range(len(said))))
            self.assertEqual({len(line) for line in bundle.lines("a")[:-1]}, {7})

    def test_what_waits_in_the_pipes_at_the_end_comes_through_if_the_reader_is_back_in_time(self) -> None:
        count = 8
        daemons = [daemon(f"d{n}", *child("numbered.py", 300_000)) for n in range(count)]
        with Bundle(daemons, reading=False) as bundle:
            bundle.wait_for_stall("numbered.py", count)
            bundle.signal(SIGTERM)
            bundle.until(lambda: len(bundle.processes()) == 0, PATIENCE, "the daemons are gone")
            bundle.reader.resume()
            self.assertEqual(bundle.exit(), 143)
            log = bundle.log
            self.assertIn(b"sidecar-init: exiting with status 143\n", log)
            for n in range(count):
                said = bundle.lines(f"d{n}")
                self.assertGreater(len(said), 4096, "a full pipe alone holds more")
                self.assertEqual([int(line) for line in said[:-1]], list(range(len(said) - 1)))

    def test_a_daemon_that_runs_for_5_ms_comes_back_and_every_exit_is_logged(self) -> None:
        quick = {"_BACKOFF_FIRST": 0.001, "_BACKOFF_LAST": 0.001}
        with Bundle([daemon("a", *exits("blink", 5), restart="always")], tunables=quick) as bundle:
            bundle.wait_for_event("exited", "a", 30, times=50)
            bundle.signal(SIGTERM)
            bundle.exit()
            ends = re.findall(rb": a (?:exited|was terminated) ", bundle.log)
            starts = bundle.log.count(b": a started (pid ")
            self.assertIn(len(ends) - starts, (0, 1), "the TERM may end one before it has executed its command")

    def test_a_stdout_that_a_parent_left_nonblocking_loses_nothing_and_stays_so(self) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        reader = Collector(read_end, reading=False)
        try:
            with Bundle([daemon("a", *child("numbered.py", 200_000))], stdout=write_end) as bundle:
                bundle.wait_for_stall("numbered.py")
                self.assertFalse(os.get_blocking(write_end))
                reader.resume()  # 2 MB through a pipe of 64 KiB: it is full again and again
                self.assertTrue(reader.wait_for(lambda data: data.count(b"\n[a] ") >= 200_000, PATIENCE))
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 143)
                self.assertFalse(os.get_blocking(write_end))
            os.close(write_end)
            reader.finish(PATIENCE)
            said = re.findall(rb"^\[a\] (.*)$", reader.data, re.MULTILINE)
            self.assertEqual(said, [b"%07d" % n for n in range(200_000)])
        finally:
            os.close(read_end)

    def test_bytes_pass_unchanged_under_an_ascii_locale(self) -> None:
        ascii_only = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        odd = "\\303\\244 \\377\\376 \\342\\200\\250"
        with Bundle([daemon("a", *shell(f"printf '{odd}\\n'; exit 3"))], env=ascii_only) as bundle:
            self.assertEqual(bundle.exit(), 3)
            self.assertEqual(bundle.lines("a"), [b"\xc3\xa4 \xff\xfe \xe2\x80\xa8"])

    def test_the_commands_work_under_an_ascii_locale(self) -> None:
        ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        with Bundle([daemon("a", *shell("echo '\u00e4\u20ac'; exit 3")), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for_event("exited", "a")
            table = bundle.argv[-1]
            for words in ("status", "status --json", "events", "events --json", f"plan --table {table}"):
                command = [PYTHON[0], str(MODULE), *words.split()]  # without -I, so that the locale counts
                done = bundle.inside(command, PATIENCE, **ascii_only)
                self.assertEqual((done.returncode, done.stderr), (0, ""), command)

    def test_a_reader_that_leaves_while_all_is_quiet_takes_no_daemon_with_it(self) -> None:
        with Bundle([daemon("egress", *SIGNALS), daemon("b", *SLEEP, restart="always")]) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.catch_up()
            bundle.close_reader()
            bundle.signal(SIGHUP)
            bundle.wait_for_event("signal", "egress")
            bundle.catch_up()
            self.assertEqual([bundle.daemon(name)["restarts"] for name in ("egress", "b")], [0, 0])
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)


class ExitTest(FaultTestCase):
    def test_one_that_segv_ended_beside_one_that_exits_0_makes_139(self) -> None:
        segv = shell("kill -SEGV $$")
        for daemons in (
            [daemon("a", *segv), daemon("b", "true")],
            [daemon("a", "true"), daemon("b", *segv)],
        ):
            with Bundle(daemons) as bundle:
                self.assertEqual(bundle.exit(), 128 + signal.SIGSEGV)
                self.assertIn(b"was terminated by SIGSEGV", bundle.log)


def _descriptors(bundle: Bundle) -> int:
    return len(os.listdir(f"/proc/{bundle.pid1}/fd"))
