"""Daemons come back: by policy, in order, in place, and in every state that a signal can meet them in."""

import os
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1
from typing import Any

from tests.pidns.harness import PATIENCE, SLEEP, Bundle, NamespaceTestCase, child, daemon, shell
from tests.support import wait_until

SIGNALS = child("signals.py")
SLOW_BACKOFF = {"_BACKOFF_FIRST": 1000.0}
LONG_GRACE = {"_GRACE_SECONDS": 1000.0, "_RESTART_GRACE_SECONDS": 1000.0, "_CHECK_SECONDS": 1000.0}
QUICK_BACKOFF = {"_BACKOFF_FIRST": 0.05}
ANSWER = ("asked", "answered", "answer", "refused")  # what the status says of a request, not of the process


class PolicyTest(NamespaceTestCase):
    def test_a_daemon_that_was_killed_is_back_after_half_a_second_and_the_others_never_notice(self) -> None:
        with Bundle([daemon("a", *SLEEP, restart="always"), daemon("b", "sleep", "2000")]) as bundle:
            bundle.wait_for_state("b", "running")
            before = bundle.daemon("b")
            _kill(bundle, "a")
            bundle.wait_for(b"sidecar-init: a was terminated by SIGKILL")
            exited = bundle.wait_for_event("exited", "a")
            self.assertEqual((exited["signal"], exited["restarts"]), ("SIGKILL", 0))
            self.assertTrue(0.5 <= exited["next_start_in"] <= 0.55, exited)
            bundle.wait_for_event("started", "a", times=2)
            back = bundle.wait_for_state("a", "running")
            self.assertEqual((back["restarts"], back["last_exit"]), (1, "was terminated by SIGKILL"))
            self.assertEqual(bundle.daemon("b"), before)

    def test_on_failure_brings_back_after_a_failure_only(self) -> None:
        daemons = [
            daemon("good", *shell("exit 0"), restart="on-failure"),
            daemon("bad", *shell("exit 3"), restart="on-failure"),
            daemon("once", *shell("exit 3"), restart="never"),
        ]
        with Bundle(daemons, tunables=QUICK_BACKOFF) as bundle:
            bundle.wait_for_event("started", "bad", times=3)
            self.assertEqual(bundle.wait_for_state("good", "exited")["last_exit"], "exited with status 0")
            self.assertEqual(bundle.wait_for_state("once", "exited")["last_exit"], "exited with status 3")
            self.assertEqual([len(bundle.events("started", name)) for name in ("good", "once")], [1, 1])

    def test_one_that_is_not_restarted_is_not_called_crash_looping(self) -> None:
        """Its fifth exit in a row is the first that is no failure."""
        count = self.scratch() / "count"
        script = f"echo x >>{count}; [ $(wc -l <{count}) -ge 5 ] || exit 3"
        daemons = [daemon("a", *shell(script), restart="on-failure"), daemon("b", *SLEEP)]
        with Bundle(daemons, tunables={"_BACKOFF_FIRST": 0.01}) as bundle:
            row = bundle.wait_for_state("a", "exited")
            self.assertEqual(
                (row["restarts"], row["last_exit"], row["crash_looping"]), (4, "exited with status 0", False)
            )
            self.assertEqual(bundle.events("crash-looping"), [])
            self.assertNotIn(b"crash-looping", bundle.log)

    def test_the_fifth_exit_in_a_row_is_called_crash_looping_once(self) -> None:
        """The control of the one above."""
        daemons = [daemon("a", *shell("exit 3"), restart="on-failure"), daemon("b", *SLEEP)]
        with Bundle(daemons, tunables={"_BACKOFF_FIRST": 0.01, "_BACKOFF_LAST": 0.01}) as bundle:
            bundle.wait_for_event("exited", "a", times=7)
            self.assertEqual(len(bundle.events("crash-looping", "a")), 1)
            before = [one["event"] for one in bundle.events(name="a")].index("crash-looping")
            self.assertEqual([one["event"] for one in bundle.events(name="a")][:before].count("exited"), 5)

    def test_never_in_the_environment_restarts_no_daemon_and_leaves_the_others_up(self) -> None:
        daemons = [daemon("a", *shell("exit 3"), restart="always"), daemon("b", *SLEEP, restart="always")]
        with Bundle(daemons, env={"BOT_BOTTLE_SIDECAR_RESTART": "never"}) as bundle:
            bundle.wait_for(b"a exited with status 3")
            self.assertEqual(bundle.wait_for_event("exited", "a")["next_start_in"], None)
            bundle.wait_for_state("b", "running")
            os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
            self.assertEqual(bundle.exit(), 137)

    def test_a_supervisor_whose_daemons_come_back_does_not_end_by_itself(self) -> None:
        with Bundle([daemon("a", *shell("exit 0"), restart="always")], tunables=QUICK_BACKOFF) as bundle:
            bundle.wait_for_event("started", "a", times=2)
            self.assertTrue(bundle.running())


class LeftBehindTest(NamespaceTestCase):
    """The leader exits, its group goes on, on the daemon's port."""

    def test_the_group_is_ended_before_the_replacement_starts_so_that_it_can_bind(self) -> None:
        daemons = [daemon("a", *child("survivor.py", 7001), restart="always", port=7001)]
        with Bundle(daemons, tunables=QUICK_BACKOFF) as bundle:
            bundle.wait_for(b"[a] listening\n", times=2)
            self.assertEqual(bundle.wait_for_event("exited", "a")["code"], 9)
            self.assertNotIn(b"the port is taken", bundle.log)

    def test_usr1_for_it_is_one_start_with_a_free_port(self) -> None:
        with Bundle([daemon("pipelock", *child("survivor.py", 7002)), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for(b"pipelock exited with status 9")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] listening\n", times=2)
            self.assertNotIn(b"the port is taken", bundle.log)


class ReadinessTest(NamespaceTestCase):
    def test_a_port_is_ready_once_something_listens_on_it_and_those_after_it_start_then(self) -> None:
        listen = self.scratch() / "listen"
        daemons = [
            daemon("second", *SLEEP, after=["first"]),
            daemon("first", *child("listener.py", 7003, listen), port=7003),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for_state("first", "starting")
            bundle.wait_for_state("second", "waiting")
            self.assertFalse(bundle.daemon("first")["ready"])
            bundle.catch_up()
            self.assertNotIn(b"second started", bundle.log)
            listen.touch()
            bundle.wait_for_state("second", "running")
            self.assertTrue(bundle.wait_for_state("first", "running")["ready"])
            bundle.wait_for(b"sidecar-init: second started")
            log = bundle.log
            self.assertLess(log.index(b"[first] listening\n"), log.index(b"sidecar-init: second started"))
            self.assertRegex(log, rb"sidecar-init: first ready after \d+\.\d+ s")
            kinds = [(one["event"], one["daemon"]) for one in bundle.events()]
            self.assertLess(kinds.index(("ready", "first")), kinds.index(("started", "second")))


class InPlaceTest(NamespaceTestCase):
    def test_a_daemon_killed_while_it_is_stopped_for_a_restart_starts_once(self) -> None:
        daemons = [daemon("pipelock", *child("signals.py", "--stay"), restart="always"), daemon("b", *SLEEP)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[pipelock] ready\n")
            old = bundle.host_pid(bundle.daemon("pipelock")["pid"])
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] SIGTERM\n")
            os.kill(old, SIGKILL)
            bundle.wait_for(b"pipelock restarted (pid ")
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            self.assertEqual(len(bundle.running_commands("signals.py")), 1)


class CheckTest(NamespaceTestCase):
    def test_a_check_that_passes_lets_the_restart_happen_and_its_output_is_in_the_log(self) -> None:
        with self._bundle(*shell("echo checked; exit 0")) as bundle:
            self._ready(bundle)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"pipelock restarted (pid ")
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            self.assertIn(b"checked", bundle.lines("pipelock"))

    def test_a_check_that_fails_leaves_the_running_one_alone(self) -> None:
        with self._bundle(*shell("echo bad config >&2; exit 7")) as bundle:
            before = self._ready(bundle)
            bundle.signal(SIGUSR1)
            event = bundle.wait_for_event("refused", "pipelock")
            self.assertIn("7", event["reason"])
            bundle.wait_for(b"[pipelock] bad config\n")
            self._untouched(bundle, before)

    def test_a_check_that_cannot_be_executed_leaves_the_running_one_alone(self) -> None:
        with self._bundle("/no/such/checker") as bundle:
            before = self._ready(bundle)
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("refused", "pipelock")
            self._untouched(bundle, before)

    def test_a_check_that_is_killed_leaves_the_running_one_alone(self) -> None:
        with self._bundle(*shell("kill -9 $$")) as bundle:
            before = self._ready(bundle)
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("refused", "pipelock")
            self._untouched(bundle, before)

    def test_while_a_check_runs_signals_and_exits_are_served_and_the_old_one_serves_on(self) -> None:
        with self._bundle("sleep", "2000") as bundle:
            self._ready(bundle)
            bundle.signal(SIGUSR1)
            wait_until(lambda: bundle.running_commands("sleep 2000"), PATIENCE, "the check runs")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")
            self.assertEqual(bundle.lines("pipelock"), [b"ready"])
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)
            self.assertNotIn(b"pipelock restarted", bundle.log)

    def test_a_usr1_during_the_check_repeats_it_but_one_during_that_does_not(self) -> None:
        """The file may be newer than the first check; a storm of signals must not put the restart off for ever."""
        place = self.scratch()
        script = f"echo x >>{place}/runs; until [ -e {place}/go-$(wc -l <{place}/runs) ]; do sleep 0.01; done"

        def runs() -> int:
            path = place / "runs"
            return path.read_text().count("x") if path.exists() else 0

        with self._bundle(*shell(script)) as bundle:
            self._ready(bundle)
            for number in (1, 2):
                bundle.signal(SIGUSR1)
                bundle.until(lambda: runs() == number, PATIENCE, f"check {number}")  # noqa: B023
                bundle.signal(SIGUSR1)
                bundle.catch_up()
                (place / f"go-{number}").touch()
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            bundle.catch_up()
            self.assertEqual((runs(), bundle.daemon("pipelock")["restarts"]), (2, 1))

    def test_if_the_daemon_exits_while_its_check_runs_it_comes_back(self) -> None:
        go = self.scratch() / "go"
        with self._bundle(*shell(f"until [ -e {go} ]; do sleep 0.02; done")) as bundle:
            self._ready(bundle)
            bundle.signal(SIGUSR1)
            wait_until(lambda: bundle.running_commands("until"), PATIENCE, "the check runs")
            _kill(bundle, "pipelock")
            bundle.wait_for(b"pipelock was terminated by SIGKILL")
            go.touch()
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            bundle.catch_up()
            self.assertEqual(len(bundle.running_commands("signals.py")), 2)

    def _bundle(self, *check: str) -> Bundle:
        return Bundle([daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS, restart="always", check=list(check))])

    def _ready(self, bundle: Bundle) -> dict[str, Any]:
        bundle.wait_for(b"] ready\n", times=2)
        return bundle.wait_for_state("pipelock", "running")

    def _untouched(self, bundle: Bundle, before: dict[str, Any]) -> None:
        bundle.catch_up()
        after = bundle.wait_for_state("pipelock", "running")
        self.assertEqual((after["asked"], after["answered"], after["refused"]), (1, 1, True))
        self.assertEqual({**after, **{key: before[key] for key in ANSWER}}, before)
        self.assertNotIn(b"SIGTERM", bundle.lines("pipelock"))


class TermTest(NamespaceTestCase):
    """TERM in each state: nothing is started any more, and the end comes as soon as the processes are gone."""

    def test_while_a_daemon_is_starting(self) -> None:
        with Bundle([daemon("a", *SLEEP, port=7010)], tunables=LONG_GRACE) as bundle:
            bundle.wait_for_state("a", "starting")
            self._ends(bundle, 143)

    def test_while_one_waits_for_another(self) -> None:
        with Bundle([daemon("a", *SLEEP, port=7011), daemon("b", *SLEEP, after=["a"])], tunables=LONG_GRACE) as bundle:
            bundle.wait_for_state("b", "waiting")
            self._ends(bundle, 143)
            self.assertNotIn(b"b started", bundle.log)

    def test_while_one_backs_off(self) -> None:
        daemons = [daemon("a", *shell("exit 3"), restart="always"), daemon("b", *SLEEP)]
        with Bundle(daemons, tunables=SLOW_BACKOFF | LONG_GRACE) as bundle:
            bundle.wait_for_state("a", "backoff")
            self._ends(bundle, 3)
            self.assertEqual(bundle.log.count(b"a started"), 1)

    def test_while_one_backs_off_and_nothing_else_runs(self) -> None:
        with Bundle([daemon("a", *shell("exit 3"), restart="always")], tunables=SLOW_BACKOFF | LONG_GRACE) as bundle:
            bundle.wait_for_state("a", "backoff")
            self._ends(bundle, 3)

    def test_while_one_is_stopping_for_a_restart(self) -> None:
        let_go = self.scratch() / "let-go"
        with Bundle([daemon("pipelock", *SIGNALS, "--end-when", str(let_go))], tunables=LONG_GRACE) as bundle:
            bundle.wait_for(b"[pipelock] ready\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for_state("pipelock", "stopping")
            bundle.signal(SIGTERM)
            bundle.wait_for(b"shutting down: SIGTERM")
            let_go.touch()
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("pipelock").count(b"ready"), 1)

    def test_while_a_check_runs(self) -> None:
        with Bundle([daemon("pipelock", *SIGNALS, check=["sleep", "2000"])], tunables=LONG_GRACE) as bundle:
            bundle.wait_for(b"[pipelock] ready\n")
            bundle.signal(SIGUSR1)
            wait_until(lambda: bundle.running_commands("sleep 2000"), PATIENCE, "the check runs")
            self._ends(bundle, 0)

    def test_while_the_left_behind_group_of_a_leader_that_exited_is_stopped(self) -> None:
        daemons = [daemon("a", *child("survivor.py", 7012, "stay"), restart="always"), daemon("b", *SLEEP)]
        with Bundle(daemons, tunables={"_GRACE_SECONDS": 0.3}) as bundle:
            bundle.wait_for_state("a", "stopping")
            bundle.signal(SIGTERM)
            self.assertIn(bundle.exit(), (9, 137))
            self.assertEqual(bundle.log.count(b"a started"), 1)

    def _ends(self, bundle: Bundle, code: int) -> None:
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(), code)


def _kill(bundle: Bundle, name: str) -> None:
    os.kill(bundle.host_pid(bundle.daemon(name)["pid"]), SIGKILL)
