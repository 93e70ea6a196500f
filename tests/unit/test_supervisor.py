"""The supervisor used as a library: real children, and the loop turned by hand."""

from __future__ import annotations

import itertools
import os
import pwd
import resource
import signal
import subprocess
import sys
import unittest
from unittest import mock

import sidecar_init
from sidecar_init import _DaemonSpec, _Process, _Supervisor
from tests.support import wait_until
from tests.unit.support import SupervisorTest, close_descriptors, environ_of, group_is_gone


def shell(name: str, script: str, restart: str = "never", **fields: object) -> _DaemonSpec:
    return _DaemonSpec(name, ["/bin/sh", "-c", script], restart, **fields)  # type: ignore[arg-type]


SLEEPER = _DaemonSpec("sleeper", ["/bin/sleep", "60"])
OTHER = _DaemonSpec("other", ["/bin/sleep", "60"])


class Face(SupervisorTest):
    def test_procs_has_one_slot_a_daemon_in_table_order(self) -> None:
        supervisor = self.supervise(SLEEPER, shell("quick", "exit 7"), OTHER)
        self.assertEqual(list(supervisor.specs), [spec for spec, _ in supervisor.procs])
        self.assertEqual([spec.name for spec in supervisor.specs], ["sleeper", "quick", "other"])
        self.tick_until(supervisor, lambda: supervisor.procs[1][1].returncode == 7, "the exit code of quick")
        self.assertEqual([process.returncode for _, process in supervisor.procs], [None, 7, None])
        self.assertEqual([process.poll() for _, process in supervisor.procs], [None, 7, None])
        self.assertTrue(all(process.pid > 0 for _, process in supervisor.procs))

    def test_poll_sees_an_exit_before_the_loop_does_and_takes_nothing_from_it(self) -> None:
        supervisor = self.supervise(shell("quick", "exit 7"))
        [(_, process)] = supervisor.procs
        self.assertEqual(wait_until(process.poll, 10, "the end of quick"), 7)
        self.assertNotIn("exited", self.logged())
        self.tick_until_done(supervisor)
        self.assertIn("quick exited with status 7", self.logged())
        self.assertEqual((process.poll(), supervisor.exit_code()), (7, 7))

    def test_tick_becomes_true_when_all_have_ended(self) -> None:
        supervisor = self.supervise(shell("quick", "exit 0"), SLEEPER)
        self.tick_until_logged(supervisor, "quick exited")
        self.assertFalse(supervisor.tick())
        os.kill(supervisor.procs[1][1].pid, signal.SIGKILL)
        self.tick_until_done(supervisor)
        self.assertTrue(supervisor.tick())

    def test_without_daemons_tick_is_true_at_once(self) -> None:
        self.assertTrue(self.supervise().tick())

    def test_shutdown_at_is_the_time_of_the_first_request(self) -> None:
        supervisor = self.supervise(SLEEPER)
        self.assertIsNone(supervisor.shutdown_at)
        supervisor.request_shutdown("first")
        first = supervisor.shutdown_at
        supervisor.request_shutdown("second")
        self.assertIsNotNone(first)
        self.assertEqual(supervisor.shutdown_at, first)
        self.tick_until_done(supervisor)
        self.assertIn("sidecar-init: shutting down: first\n", self.logged())
        self.assertNotIn("second", self.logged())

    def test_no_process_of_a_group_is_left_after_a_shutdown(self) -> None:
        self.patch("_GRACE_SECONDS", 0.2)
        deaf = "trap '' TERM; sleep 60 & echo up; wait; sleep 60"
        supervisor = self.supervise(shell("deaf", deaf), shell("leader", "sleep 60 & echo up; exit 0"))
        self.tick_until_logged(supervisor, "[deaf] up")
        self.tick_until_logged(supervisor, "[leader] up")
        pids = [process.pid for _, process in supervisor.procs]
        supervisor.request_shutdown("test")
        self.tick_until_done(supervisor)
        self.assertTrue(all(map(group_is_gone, pids)))
        self.assertRegex(self.logged(), r"sidecar-init: deaf has not stopped after 0\.\d s; killing it\n")

    def test_it_needs_no_arguments_but_the_rows(self) -> None:
        with open(os.devnull, "w") as null:
            stdout = os.dup(1)
            os.dup2(null.fileno(), 1)
            try:
                supervisor = _Supervisor([shell("a", "exit 3")])
                supervisor.start_all()
                self.tick_until_done(supervisor)
            finally:
                os.dup2(stdout, 1)
                os.close(stdout)
        self.assertEqual(supervisor.exit_code(), 3)
        close_descriptors(supervisor)


class ForwardSignal(SupervisorTest):
    def test_a_live_child_gets_it_and_its_group_does_not(self) -> None:
        child = "trap 'echo child too' HUP; trap 'echo asked' USR1; echo up; while :; do sleep 0.02; done"
        script = f'trap "echo got it" HUP; trap : USR1; sh -c "{child}" & while :; do wait; done'
        supervisor = self.supervise(shell("web", script))
        self.tick_until_logged(supervisor, "[web] up")
        self.assertIs(supervisor.forward_signal(signal.SIGHUP, "web"), True)
        self.tick_until_logged(supervisor, "[web] got it")
        self.assertIn("sidecar-init: SIGHUP delivered to web\n", self.logged())
        os.killpg(supervisor.procs[0][1].pid, signal.SIGUSR1)
        self.tick_until_logged(supervisor, "[web] asked")  # a HUP would have come before it
        self.assertNotIn("child too", self.logged())

    def test_one_that_is_not_running_or_not_selected_does_not(self) -> None:
        supervisor = self.supervise(SLEEPER, shell("quick", "exit 0"), _DaemonSpec("missing", ["/nowhere"]))
        self.tick_until_logged(supervisor, "quick exited")
        for name, why in (("quick", "running"), ("missing", "running"), ("x", "selected")):
            self.assertIs(supervisor.forward_signal(signal.SIGHUP, name), False)
            supervisor.tick()
            self.assertIn(f"sidecar-init: SIGHUP for {name} dropped: it is not {why}\n", self.logged())

    def test_one_that_has_exited_is_not_running_even_if_the_loop_has_not_seen_it(self) -> None:
        supervisor = self.supervise(shell("quick", "exit 0"))
        wait_until(lambda: supervisor.procs[0][1].poll() is not None, 10, "the end of quick")
        self.assertIs(supervisor.forward_signal(signal.SIGHUP, "quick"), False)

    def test_while_shutting_down_it_is_dropped(self) -> None:
        supervisor = self.supervise(SLEEPER)
        supervisor.request_shutdown("test")
        self.assertIs(supervisor.forward_signal(signal.SIGHUP, "sleeper"), False)
        self.tick_until_done(supervisor)
        self.assertIn("SIGHUP for sleeper dropped: the supervisor is shutting down\n", self.logged())


class Rows(unittest.TestCase):
    def test_one_that_waits_for_another_twice_waits_for_it_once(self) -> None:
        self.assertEqual(_DaemonSpec("web", ["web"], after=["db", "queue", "db"]).after, ("db", "queue"))


class RestartDaemon(SupervisorTest):
    def test_it_is_done_when_it_returns(self) -> None:
        supervisor = self.supervise(SLEEPER, OTHER)
        (_, old), (_, other) = supervisor.procs
        self.assertIs(supervisor.restart_daemon("sleeper"), True)
        (_, new), (_, same) = supervisor.procs
        self.assertIs(same, other)
        self.assertEqual((old.returncode, new.poll(), other.poll()), (-signal.SIGTERM, None, None))
        self.assertTrue(group_is_gone(old.pid))
        supervisor.tick()
        self.assertIn(f"sidecar-init: sleeper restarted (pid {new.pid})\n", self.logged())

    def test_an_unknown_name_is_false(self) -> None:
        self.assertIs(self.supervise(SLEEPER).restart_daemon("x"), False)

    def test_while_shutting_down_it_is_false(self) -> None:
        supervisor = self.supervise(SLEEPER)
        supervisor.request_shutdown("test")
        self.assertIs(supervisor.restart_daemon("sleeper"), False)
        self.tick_until_done(supervisor)
        self.assertIn("cannot restart sleeper: the supervisor is shutting down\n", self.logged())
        self.assertNotIn("restarted", self.logged())

    def test_an_old_one_that_ignores_term_is_killed_after_the_grace(self) -> None:
        supervisor = self.supervise(shell("deaf", "trap '' TERM; echo up; sleep 60 & wait; sleep 60"))
        self.tick_until_logged(supervisor, "[deaf] up")
        [(_, old)] = supervisor.procs
        self.assertIs(supervisor.restart_daemon("deaf", grace=0.2), True)
        self.assertEqual(old.returncode, -signal.SIGKILL)
        self.assertTrue(group_is_gone(old.pid))
        self.assertRegex(self.logged(), r"sidecar-init: deaf has not stopped after 0\.\d s; killing it\n")

    def test_one_that_has_ended_is_started(self) -> None:
        supervisor = self.supervise(shell("quick", "exit 0"))
        self.tick_until_done(supervisor)
        self.assertIs(supervisor.restart_daemon("quick"), True)
        self.tick_until_done(supervisor)
        self.assertIn("quick restarted", self.logged())

    def test_one_that_has_exited_is_started_even_if_the_loop_has_not_seen_it(self) -> None:
        for is_forwarded in (False, True):
            with self.subTest("forward" if is_forwarded else "poll"):
                supervisor = self.supervise(shell("quick", "exit 7"))
                pid = supervisor.procs[0][1].pid
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                if is_forwarded:
                    supervisor.forward_signal(signal.SIGHUP, "quick")
                else:
                    supervisor.procs[0][1].poll()
                supervisor._restart("quick")
                self.tick_until_done(supervisor)
                self.assertEqual(self.logged().count("quick exited with status 7"), 2)
                self.assertIn("quick restarted", self.logged())
                self.log.write_text("")

    def test_one_that_cannot_be_started_is_false(self) -> None:
        self.assertIs(self.supervise(_DaemonSpec("missing", ["/nowhere"])).restart_daemon("missing"), False)

    def test_a_check_that_fails_leaves_the_running_one(self) -> None:
        checked = _DaemonSpec("checked", ["/bin/sleep", "60"], check=["/bin/sh", "-c", "echo bad file; exit 3"])
        supervisor = self.supervise(checked)
        [(_, old)] = supervisor.procs
        self.assertIs(supervisor.restart_daemon("checked"), False)
        self.assertIs(supervisor.procs[0][1], old)
        self.assertIsNone(old.poll())
        self.assertIn("[checked] bad file\n", self.logged())
        why = "cannot restart checked: its check exited with status 3 (bad file); nothing was changed"
        self.assertIn(f"sidecar-init: {why}\n", self.logged())

    def test_a_check_that_passes_leads_to_the_new_one(self) -> None:
        supervisor = self.supervise(_DaemonSpec("checked", ["/bin/sleep", "60"], check=["/bin/true"]))
        [(_, old)] = supervisor.procs
        self.assertIs(supervisor.restart_daemon("checked"), True)
        self.assertIsNot(supervisor.procs[0][1], old)


class Output(SupervisorTest):
    def test_its_last_lines_come_before_its_exit(self) -> None:
        supervisor = self.supervise(shell("quick", "echo one; echo two >&2; printf three; exit 7"))
        self.tick_until_done(supervisor)
        started, *lines, exited = self.logged().splitlines()
        self.assertEqual(started, f"sidecar-init: quick started (pid {supervisor.procs[0][1].pid})")
        self.assertEqual(lines, ["[quick] one", "[quick] two", "[quick] three"])
        self.assertRegex(exited, r"^sidecar-init: quick exited with status 7 after \d+\.\d s$")

    def test_so_do_those_that_came_after_the_turns_read(self) -> None:
        supervisor = self.supervise(shell("quick", "echo one; printf two; exit 7"))
        with mock.patch.object(supervisor._pipes, "take_turns"):
            self.tick_until_done(supervisor)
        self.assertRegex(self.logged(), r"\[quick\] one\n\[quick\] two\nsidecar-init: quick exited")

    def test_a_grandchild_that_keeps_the_pipe_does_not_delay_the_exit_and_can_go_on_writing(self) -> None:
        up, go = self.directory() / "up", self.directory() / "go"
        os.mkfifo(up)
        os.mkfifo(go)
        grandchild = f"echo > {up}; read line < {go}; echo later"
        supervisor = self.supervise(shell("web", f"setsid sh -c '{grandchild}' & read line < {up}; exit 7"), SLEEPER)
        self.tick_until_logged(supervisor, "web exited with status 7")
        self.assertNotIn("later", self.logged())
        go.write_text("\n")
        self.tick_until_logged(supervisor, "[web] later\n")

    def test_if_there_is_room_for_one_alone_they_take_turns(self) -> None:
        names = "abcdefgh"
        supervisor = self.supervise(*(_DaemonSpec(name, ["/bin/sleep", "60"]) for name in names))
        room = itertools.cycle([True, True, False])  # asked before poll, before a read, before the next read
        with mock.patch.object(supervisor._log, "has_room", lambda reserve=0: bool(reserve) or next(room)):
            for _ in names * 2:
                for daemon in supervisor._daemons:
                    os.write(daemon.output.writer(), b"line\n")
                supervisor.tick()
        order = [line[1] for line in self.logged().splitlines() if line.endswith("] line")]
        self.assertEqual("".join(name for name, _ in itertools.groupby(order)), names * 2)


class Child(SupervisorTest):
    def test_it_has_a_session_of_its_own_null_as_stdin_and_no_stray_descriptor(self) -> None:
        stray = os.open("/dev/null", os.O_RDONLY)
        self.close_later(stray)
        os.set_inheritable(stray, True)
        sidecar_init._close_on_exec()  # as the program does first
        script = (
            "import os; print(os.getsid(0) == os.getpid(),"
            "os.readlink('/proc/self/fd/0'), sorted(os.listdir('/proc/self/fd')))"
        )
        supervisor = self.supervise(_DaemonSpec("child", [sys.executable, "-ISc", script]))
        self.tick_until_done(supervisor)
        self.assertIn("[child] True /dev/null ['0', '1', '2', '3']\n", self.logged())  # 3 lists them

    def test_signals_are_as_a_program_expects_them_and_privileges_are_gone(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_CORE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_CORE, limits)
        resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
        supervisor = self.supervise(shell("child", "cat /proc/self/status; ulimit -Hc"))
        self.tick_until_done(supervisor)
        facts = dict(line.removeprefix("[child] ").split(":\t") for line in self.logged().splitlines() if ":\t" in line)
        for name in ("SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapAmb"):
            self.assertEqual(int(facts[name], 16), 0, name)
        self.assertEqual(facts["NoNewPrivs"], "1")
        self.assertIn("[child] 0\n", self.logged())

    def test_its_environment_lacks_the_secrets_of_others(self) -> None:
        self.use_environment(EGRESS_TOKEN_A="canary")
        egress = _DaemonSpec("egress", ["/bin/sleep", "60"])
        supervisor = self.supervise(egress, SLEEPER)
        (_, owner), (_, other) = supervisor.procs
        self.assertEqual(environ_of(owner.pid)["EGRESS_TOKEN_A"], "canary")
        self.assertNotIn("EGRESS_TOKEN_A", environ_of(other.pid))

    @unittest.skipUnless(os.geteuid() == 0, "only root can become another user")
    def test_it_runs_as_its_user(self) -> None:
        supervisor = self.supervise(shell("child", "id -un; echo $USER $LOGNAME $HOME", user="nobody"))
        self.tick_until_done(supervisor)
        self.assertIn(f"[child] nobody\n[child] nobody nobody {pwd.getpwnam('nobody').pw_dir}\n", self.logged())

    @unittest.skipUnless(os.geteuid() == 0, "without root it runs as the supervisor's user")
    def test_a_user_that_is_missing_fails_it_alone(self) -> None:
        supervisor = self.supervise(shell("child", "id -u", user="no-such-user"), shell("well", "echo fine"))
        self.tick_until_done(supervisor)
        self.assertIn("cannot start child: cannot become no-such-user: there is no such user", self.logged())
        self.assertIn("[well] fine\n", self.logged())
        self.assertNotIn("[child]", self.logged())

    def test_a_missing_program_takes_no_other_down_with_it(self) -> None:
        supervisor = self.supervise(_DaemonSpec("missing", ["/nowhere/program"], "always"), shell("well", "echo fine"))
        self.tick_until_done(supervisor)
        self.assertIn("[well] fine\n", self.logged())
        self.assertEqual(self.logged().count("/nowhere/program"), 1)

    def test_one_that_has_no_group_of_its_own_yet_is_signalled_all_the_same(self) -> None:
        child = subprocess.Popen(["/bin/sleep", "60"])  # in our group, as one that was forked a moment ago
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.assertIs(_Process(child.pid).signal_group(signal.SIGTERM), True)
        self.assertEqual(child.wait(10), -signal.SIGTERM)
        self.assertIs(_Process(child.pid, child.returncode).signal_group(signal.SIGTERM), False)

    def test_a_lack_of_descriptors_is_a_backoff_and_not_a_failure(self) -> None:
        supervisor = self.supervise(_DaemonSpec("web", ["/bin/true"]))
        self.tick_until_done(supervisor)
        lowest = os.dup(0)
        os.close(lowest)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            self.assertIs(supervisor.restart_daemon("web"), False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.assertEqual(supervisor._daemons[0].state, "backoff")
        self.tick_until(supervisor, lambda: supervisor._daemons[0].history.starts == 2, "a second start")
        self.assertRegex(
            self.logged(), r"cannot start web: cannot \w+.*: Too many open files; trying again in 0\.5 s\n"
        )

    def test_a_script_without_its_interpreter_fails_and_each_of_many_says_why(self) -> None:
        path = self.directory() / ("long" * 60)
        path.write_text("#!/nowhere/interpreter\n")
        path.chmod(0o755)
        many = [_DaemonSpec(f"d{number}", [str(path)], "always") for number in range(300)]
        supervisor = self.supervise(*many, _DaemonSpec("after", ["/bin/sleep", "60"], after=["d0"]))
        daemons = supervisor._daemons
        self.tick_until(supervisor, lambda: all(one.state == "failed" for one in daemons[:300]), "300 failures")
        self.tick_until_logged(supervisor, "after started")
        why = f"cannot execute {path}: No such file or directory; it stays down until a restart is requested\n"
        self.assertEqual(self.logged().count(why), 300)
        supervisor.request_shutdown("enough")
        self.tick_until_done(supervisor)
        self.assertEqual(supervisor.exit_code(), 127)


class Pause(SupervisorTest):
    """A daemon that writes line by line must not wake the loop for each line."""

    def test_there_is_one_after_a_turn_with_little_output_and_none_otherwise(self) -> None:
        supervisor = self.supervise(SLEEPER)
        writer = supervisor._daemons[0].output.writer()
        for size, pauses in ((0, []), (100, [sidecar_init._PAUSE_SECONDS]), (40000, []), (0, [])):
            with self.subTest(size=size):
                os.write(writer, b"." * (size - 1) + b"\n" * (size > 0))
                supervisor.tick()
                with mock.patch("time.sleep") as sleep:
                    supervisor.tick(0.001)
                self.assertEqual([call.args[0] for call in sleep.call_args_list], pauses)


if __name__ == "__main__":
    unittest.main()
