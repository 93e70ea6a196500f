"""Each signal to PID 1, sent from outside the namespace as the container's engine sends it."""

import fcntl
import functools
import os
import pty
import re
import termios
from signal import SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2
from typing import Any

from tests.pidns.harness import PATIENCE, SLEEP, Bundle, Namespace, NamespaceTestCase, child, daemon, shell
from tests.support import wait_until

SIGNALS = child("signals.py")


class ShutdownTest(NamespaceTestCase):
    def test_term_ends_every_daemon_and_then_the_supervisor(self) -> None:
        with Bundle([daemon("a", *SIGNALS), daemon("b", *SIGNALS)]) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("a"), [b"ready", b"SIGTERM"])
            self.assertEqual(bundle.lines("b"), [b"ready", b"SIGTERM"])
            self.assertIn(b"sidecar-init: shutting down: SIGTERM", bundle.log)
            self.assertTrue(bundle.own_lines()[-1].startswith("exiting with status 0"), bundle.own_lines())

    def test_int_is_a_shutdown_too_and_daemons_get_term(self) -> None:
        with Bundle([daemon("a", *SIGNALS)]) as bundle:
            bundle.wait_for(b"[a] ready\n")
            bundle.signal(SIGINT)
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("a"), [b"ready", b"SIGTERM"])
            self.assertIn(b"sidecar-init: shutting down: SIGINT", bundle.log)

    def test_term_reaches_the_whole_group(self) -> None:
        with Bundle([daemon("a", *SIGNALS, "--with-child")]) as bundle:
            bundle.wait_for(b"ready\n", times=2)
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertCountEqual(bundle.lines("a"), [b"ready", b"child ready", b"SIGTERM", b"child SIGTERM"])

    def test_a_suspended_daemon_still_gets_its_term(self) -> None:
        with Bundle([daemon("a", *SIGNALS)], tunables={"_GRACE_SECONDS": 1000.0}) as bundle:
            bundle.wait_for(b"[a] ready\n")
            stopped = bundle.host_pid(bundle.daemon("a")["pid"])
            os.kill(stopped, SIGSTOP)
            wait_until(lambda: bundle.processes()[stopped].state == "T", PATIENCE, "the daemon to be stopped")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)

    def test_a_second_term_changes_nothing(self) -> None:
        let_go = self.scratch() / "let-go"
        with Bundle([daemon("a", *SIGNALS, "--end-when", str(let_go))]) as bundle:
            bundle.wait_for(b"[a] ready\n")
            bundle.signal(SIGTERM)
            bundle.wait_for(b"[a] SIGTERM\n")
            bundle.signal(SIGTERM)
            bundle.catch_up()
            let_go.touch()
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("a").count(b"SIGTERM"), 1)
            self.assertEqual(bundle.log.count(b"shutting down: "), 1)

    def test_an_int_during_a_shutdown_kills_at_once(self) -> None:
        for first in (SIGTERM, SIGINT):
            stubborn = daemon("a", *SIGNALS, "--stay", "--with-child")
            long = daemon("b", *SIGNALS, "--stay", stop={"grace": 1000})
            tunables = {"_GRACE_SECONDS": 1000.0}
            with (
                self.subTest(first),
                Namespace(SLEEP) as outer,
                Bundle([stubborn, long], inside=outer, tunables=tunables) as bundle,
            ):
                bundle.wait_for(b"ready\n", times=3)
                bundle.signal(first)
                bundle.wait_for(b"SIGTERM\n", times=3)
                bundle.catch_up()
                self.assertEqual(bundle.events("killed"), [])
                bundle.signal(SIGINT)
                self.assertEqual(bundle.exit(), 137)
                self.assertEqual(outer.running_commands("signals.py"), [], "the child of a, too")

    def test_hup_and_usr1_do_nothing_while_shutting_down(self) -> None:
        let_go = self.scratch() / "let-go"
        daemons = [daemon("egress", *SIGNALS, "--end-when", str(let_go)), daemon("pipelock", *SIGNALS)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.signal(SIGTERM)
            bundle.wait_for(b"shutting down: SIGTERM")
            bundle.signal(SIGHUP)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"sidecar-init: cannot restart pipelock: the supervisor is shutting down")
            let_go.touch()
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGTERM"])
            self.assertEqual(bundle.log.count(b"pipelock started"), 1)


class TerminalTest(NamespaceTestCase):
    def test_a_terminal_that_goes_away_is_a_hup_and_no_more(self) -> None:
        """The kernel sends it to a supervisor that is not PID 1: what [signals] says is done, and all run on."""
        master, slave = pty.openpty()
        with (
            Namespace(SLEEP) as outer,
            Bundle(
                [daemon("egress", *SIGNALS)],
                inside=outer,
                before_exec=functools.partial(fcntl.ioctl, slave, termios.TIOCSCTTY, 0),
                pass_fds=[slave],
            ) as bundle,
        ):
            bundle.wait_for(b"[egress] ready\n")
            supervisor = bundle.pid1  # the one that waits for it outside takes the HUP, too
            os.close(slave)
            os.close(master)
            bundle.wait_for(b"[egress] SIGHUP\n")
            os.kill(supervisor, SIGTERM)
            bundle.wait_for(b"sidecar-init: exiting with status 0\n")
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGHUP", b"SIGTERM"])


class HupTest(NamespaceTestCase):
    def test_hup_goes_to_the_process_of_egress_alone(self) -> None:
        daemons = [daemon("egress", *SIGNALS, "--with-child"), daemon("pipelock", *SIGNALS)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"ready\n", times=3)
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            bundle.wait_for(b"sidecar-init: SIGHUP delivered to egress")
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertNotIn(b"child SIGHUP", bundle.lines("egress"))
            self.assertEqual(bundle.lines("pipelock"), [b"ready", b"SIGTERM"])

    def test_hup_is_dropped_if_egress_has_ended(self) -> None:
        with Bundle([daemon("egress", "true"), daemon("other", *SIGNALS)]) as bundle:
            bundle.wait_for(b"egress exited with status 0")
            bundle.wait_for(b"[other] ready")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"sidecar-init: SIGHUP for egress dropped: ")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)

    def test_hup_is_dropped_while_egress_is_stopped_for_a_restart(self) -> None:
        let_go = self.scratch() / "let-go"
        signals = {"HUP": {"forward": "egress"}, "USR1": {"restart": "egress"}}
        with Bundle([daemon("egress", *SIGNALS, "--end-when", str(let_go))], signals=signals) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[egress] SIGTERM\n")
            bundle.signal(SIGHUP)
            event = bundle.wait_for_event("signal", "egress")
            self.assertEqual((event["forwarded"], event["signal"]), (False, "SIGHUP"))
            let_go.touch()
            bundle.wait_for(b"[egress] ready\n", times=2)
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGTERM", b"ready"])

    def test_hup_is_dropped_if_egress_is_not_selected(self) -> None:
        daemons = [daemon("egress", *SIGNALS), daemon("other", *SIGNALS)]
        with Bundle(daemons, env={"BOT_BOTTLE_SIDECAR_DAEMONS": "other"}) as bundle:
            bundle.wait_for(b"[other] ready")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"sidecar-init: SIGHUP for egress dropped: ")
            self.assertNotIn(b"egress started", bundle.log)

    def test_a_signal_that_the_table_does_not_assign_leaves_a_line(self) -> None:
        with Bundle([daemon("egress", *SIGNALS)], signals={"USR1": {"restart": "egress"}}) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"sidecar-init: SIGHUP ignored: the table does not assign it\n")
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGTERM"])


class RestartInPlaceTest(NamespaceTestCase):
    def test_usr1_restarts_pipelock_and_touches_no_other(self) -> None:
        names = ["egress", "pipelock", "other"]
        with Bundle([daemon(name, *SIGNALS) for name in names]) as bundle:
            bundle.wait_for(b"] ready\n", times=3)
            before = _identities(bundle)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"sidecar-init: pipelock restarted (pid ")
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            after = _identities(bundle)
            self.assertNotEqual(before.pop("pipelock"), after.pop("pipelock"))
            self.assertEqual(before, after)
            self.assertIn(b"sidecar-init: restarting pipelock", bundle.log)
            self.assertIn(f"pipelock restarted (pid {bundle.daemon('pipelock')['pid']})".encode(), bundle.log)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("egress"), [b"ready", b"SIGTERM"])

    def test_usr1_while_the_old_one_is_stopping_is_one_restart_and_later_another(self) -> None:
        let_go = self.scratch() / "let-go"
        daemons = [daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS, "--end-when", str(let_go))]
        with Bundle(daemons, tunables={"_RESTART_GRACE_SECONDS": 1000.0}) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] SIGTERM\n")
            for turn in range(1, 4):
                bundle.signal(SIGUSR1)
                bundle.signal(SIGHUP)
                bundle.wait_for(b"SIGHUP delivered to egress", times=turn)
            let_go.touch()
            bundle.wait_for(b"pipelock restarted (pid ")
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            bundle.catch_up()
            self.assertEqual(bundle.log.count(b"pipelock restarted"), 1)
            self.assertEqual(bundle.lines("pipelock").count(b"SIGTERM"), 1)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"pipelock restarted (pid ", times=2)

    def test_a_pipelock_that_ignores_term_holds_up_no_other_signal_and_no_exit(self) -> None:
        daemons = [daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS, "--stay"), daemon("other", *SLEEP)]
        with Bundle(daemons, tunables={"_GRACE_SECONDS": 0.3, "_RESTART_GRACE_SECONDS": 1000.0}) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.wait_for_state("other", "running")
            old = bundle.daemon("pipelock")["pid"]
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] SIGTERM\n")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
            bundle.wait_for(b"other was terminated by SIGKILL")
            self.assertEqual(bundle.daemon("pipelock") | {"state": "stopping", "pid": old}, bundle.daemon("pipelock"))
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)
            self.assertNotIn(b"pipelock restarted", bundle.log)


class RowTest(NamespaceTestCase):
    """Signal 34 restarts the first row of the table, 35 the second, and so on."""

    def test_a_rows_signal_restarts_that_daemon_and_touches_no_other(self) -> None:
        names = ["a", "b", "c"]
        with Bundle([daemon(name, *SIGNALS) for name in names]) as bundle:
            bundle.wait_for(b"] ready\n", times=3)
            for number, name in enumerate(names, 34):
                self.assertEqual(bundle.daemon(name)["signal"], number)
                before = _identities(bundle)
                bundle.signal(number)
                bundle.wait_for(f"{name} restarted (pid ".encode())
                bundle.wait_for(f"[{name}] ready\n".encode(), times=2)
                after = _identities(bundle)
                self.assertNotEqual(before.pop(name), after.pop(name))
                self.assertEqual(before, after)

    def test_rows_are_counted_whether_they_are_selected_or_not(self) -> None:
        daemons = [daemon(name, *SIGNALS) for name in ("a", "b", "c")]
        with Bundle(daemons, env={"SIDECAR_INIT_DAEMONS": "b,c"}) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.signal(34)
            bundle.wait_for(b"sidecar-init: cannot restart a: it is not selected\n")
            bundle.signal(35)
            bundle.wait_for(b"b restarted (pid ")
            bundle.catch_up()
            self.assertNotIn(b"a started", bundle.log)
            self.assertEqual(bundle.daemon("c")["restarts"], 0)
            self.assertEqual([row["signal"] for row in bundle.status()["daemons"]], [35, 36])

    def test_a_number_without_a_row_does_nothing_and_64_is_the_last(self) -> None:
        daemons = [daemon(f"d{row}", *SLEEP) for row in range(32)]
        with Bundle(daemons[:2]) as bundle:
            bundle.wait_for_state("d1", "running")
            bundle.signal(36)
            bundle.signal(64)
            bundle.wait_for(b" ignored: the table does not assign it\n", times=2)
            bundle.catch_up()
            self.assertEqual(bundle.events("restarting"), [])
        with Bundle(daemons) as bundle:
            bundle.wait_for_state("d31", "running")
            bundle.wait_for_state("d30", "running")  # a request before that is answered by the first start
            self.assertEqual((bundle.daemon("d30")["signal"], bundle.daemon("d31")["signal"]), (64, None))
            bundle.signal(64)
            bundle.wait_for(b"d30 restarted (pid ")

    def test_a_number_without_a_row_does_not_end_a_supervisor_that_is_not_pid_1(self) -> None:
        with Namespace(SLEEP) as outer, Bundle([daemon("a", *SIGNALS)], inside=outer) as bundle:
            bundle.wait_for(b"[a] ready\n")
            os.kill(bundle.pid1, 43)
            bundle.wait_for(b"sidecar-init: signal 43 ignored: the table does not assign it\n")
            os.kill(bundle.pid1, SIGTERM)
            bundle.wait_for(b"sidecar-init: exiting with status 0\n")

    def test_it_starts_one_that_has_exited_and_is_dropped_while_shutting_down(self) -> None:
        let_go = self.scratch() / "let-go"
        daemons = [daemon("a", *shell("echo again")), daemon("b", *SIGNALS, "--end-when", str(let_go))]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[b] ready\n")
            bundle.wait_for_state("a", "exited")
            bundle.signal(34)
            bundle.wait_for(b"[a] again\n", times=2)
            bundle.signal(SIGTERM)
            bundle.wait_for(b"[b] SIGTERM\n")
            bundle.signal(34)
            bundle.wait_for(b"cannot restart a: the supervisor is shutting down")
            let_go.touch()
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("a"), [b"again", b"again"])


class HeartbeatTest(NamespaceTestCase):
    def test_usr2_writes_the_status_again_and_changes_nothing_else(self) -> None:
        with Bundle([daemon("a", *SIGNALS)]) as bundle:
            bundle.wait_for(b"[a] ready")
            before = bundle.wait_for_state("a", "running")
            written = bundle.status()["updated_at"]

            def is_newer() -> bool:
                bundle.signal(SIGUSR2)  # again, if both came within one millisecond
                return bool(bundle.status()["updated_at"] > written)

            wait_until(is_newer, PATIENCE, "a newer status.json")
            self.assertEqual(bundle.daemon("a"), before)
            self.assertEqual(bundle.lines("a"), [b"ready"])


class StormTest(NamespaceTestCase):
    def test_500_usr1_and_hup_in_a_tight_loop_under_a_flood_leave_everything_in_order(self) -> None:
        daemons = [
            daemon("egress", *SIGNALS),
            daemon("pipelock", "sleep", "2000"),
            daemon("git-gate", *child("flood.py")),
            daemon("supervise", *SLEEP),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.wait_for(b"[git-gate] flood")
            before = _identities(bundle)
            for _ in range(500):
                bundle.signal(SIGUSR1)
                bundle.signal(SIGHUP)
            bundle.catch_up()  # a last restart may still be under way
            bundle.wait_for_state("pipelock", "running")
            after = _identities(bundle)
            self.assertEqual(len(bundle.running_commands("sleep 2000")), 1)
            self.assertNotEqual(before.pop("pipelock"), after.pop("pipelock"))
            self.assertEqual(before, after)
            bundle.signal(SIGHUP)
            wait_until(lambda: bundle.lines("egress").count(b"SIGHUP") > 1, PATIENCE, "egress hears a HUP")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            nothing_else = re.sub(rb"(?m)^(\[[\w-]+\] |sidecar-init: ).*\n", b"", bundle.log)
            self.assertEqual(nothing_else, b"")


def _identities(bundle: Bundle) -> dict[str, Any]:
    """The pid of each daemon, once it runs, and the pipe that it writes to."""
    rows = [bundle.wait_for_state(row["name"], "running") for row in bundle.status()["daemons"]]
    return {row["name"]: (row["pid"], os.readlink(f"/proc/{bundle.host_pid(row['pid'])}/fd/1")) for row in rows}
