"""Every signal from 1 to 64 to PID 1, a thousand of each, in every state: none kills it, none is relayed by mistake.

From 34 on, as many as the table has rows restart a daemon; they have a test of their own.
"""

from __future__ import annotations

import os
import signal
from signal import SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

from tests.faults.support import FAULT_CHILDREN, Bundle, FaultTestCase
from tests.pidns.harness import PYTHON, SLEEP, daemon, shell

TIMES = 1000
PATIENCE = 60.0
HEARS = [*PYTHON, str(FAULT_CHILDREN / "hears.py")]
# From outside its namespace, PID 1 cannot refuse KILL; TERM and INT end it, as they should.
HARMLESS = [number for number in range(1, 65) if number not in (SIGKILL, SIGTERM, SIGINT)]
FIRST_ROW = 34


class EverySignalTest(FaultTestCase):
    def test_while_all_run(self) -> None:
        with Bundle([daemon(name, *HEARS) for name in ("egress", "pipelock", "other")]) as bundle:
            bundle.wait_for(b"] ready\n", PATIENCE, times=3)
            bundle.wait_for_state("other", "running")
            self._send_all(bundle)
            bundle.until(lambda: self._hears_again(bundle), PATIENCE, "the last pipelock has its handlers")
            bundle.wait_for(b"[egress] 1\n")
            self.assertEqual(set(bundle.lines("egress")), {b"ready", b"1"})
            self.assertEqual(set(bundle.lines("pipelock")), {b"ready", b"15"})
            self.assertEqual(bundle.lines("other"), [b"ready"])
            self._end(bundle, 0)

    def test_while_some_are_waiting_starting_backing_off_or_have_failed(self) -> None:
        daemons = [
            daemon("starting", *HEARS, port=7001),
            daemon("waiting", *HEARS, after=["starting"]),
            daemon("backoff", *shell("exit 3"), restart="always"),
            daemon("failed", "/no/such/program"),
            daemon("exited", "true"),
        ]
        patience = {"_BACKOFF_FIRST": 1000.0, "_AFTER_SECONDS": 1000.0}
        with Bundle(daemons, tunables=patience) as bundle:
            bundle.wait_for(b"[starting] ready\n")
            for name in ("starting", "waiting", "backoff", "failed", "exited"):
                bundle.wait_for_state(name, name)
            self._send_all(bundle)
            for name in ("starting", "waiting", "backoff", "failed", "exited"):
                self.assertEqual(bundle.daemon(name)["state"], name)
            self.assertEqual(bundle.lines("starting"), [b"ready"])
            self._end(bundle, 127)

    def test_while_one_is_being_stopped_for_a_restart(self) -> None:
        daemons = [daemon("pipelock", *HEARS, "stay"), daemon("other", *HEARS)]
        with Bundle(daemons, tunables={"_RESTART_GRACE_SECONDS": 1000.0, "_GRACE_SECONDS": 0.5}) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] 15\n")
            self._send_all(bundle)
            self.assertEqual(bundle.daemon("pipelock")["state"], "stopping")
            self.assertEqual(bundle.lines("pipelock"), [b"ready", b"15"])
            self.assertEqual(bundle.lines("other"), [b"ready"])
            self._end(bundle, 137)

    def test_while_a_check_runs(self) -> None:
        with Bundle([daemon("pipelock", *HEARS, check=SLEEP)], tunables={"_CHECK_SECONDS": 1000.0}) as bundle:
            bundle.wait_for(b"] ready\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for_state("pipelock", "checking")
            self._send_all(bundle)
            self.assertEqual(bundle.daemon("pipelock")["state"], "checking")
            self.assertEqual(bundle.lines("pipelock"), [b"ready"])
            self._end(bundle, 0)

    def test_while_shutting_down(self) -> None:
        with Bundle([daemon("a", *HEARS, "stay")], tunables={"_GRACE_SECONDS": 1000.0}) as bundle:
            bundle.wait_for(b"] ready\n")
            bundle.signal(SIGTERM)
            bundle.wait_for(b"[a] 15\n")
            self._send_all(bundle)
            for number in (SIGTERM, FIRST_ROW):
                self._send(bundle, number)
            bundle.catch_up(PATIENCE)
            self.assertEqual(bundle.lines("a"), [b"ready", b"15"])
            self.assertEqual(bundle.log.count(b"shutting down: "), 1)
            self.assertEqual(bundle.events("restarting"), [])
            os.kill(bundle.host_pid(bundle.daemon("a")["pid"]), SIGKILL)
            self.assertEqual(bundle.exit(), 137)

    def test_a_thousand_terms_and_ints_are_one_shutdown(self) -> None:
        """The second INT kills at once, so that the daemon may not come to say that it has got TERM."""
        for number, lines in ((SIGTERM, [[b"ready", b"15"]]), (SIGINT, [[b"ready"], [b"ready", b"15"]])):
            with Bundle([daemon("a", *HEARS, "stay")], tunables={"_GRACE_SECONDS": 0.5}) as bundle:
                bundle.wait_for(b"] ready\n")
                self._send(bundle, number)
                self.assertEqual(bundle.exit(), 137)
                self.assertEqual(bundle.log.count(b"shutting down: "), 1)
                self.assertIn(bundle.lines("a"), lines)

    def test_a_thousand_of_a_rows_signal_restart_that_daemon_and_no_other(self) -> None:
        names = ["egress", "pipelock", "other"]
        with Bundle([daemon(name, *HEARS) for name in names]) as bundle:
            bundle.wait_for(b"] ready\n", PATIENCE, times=3)
            for number, name in enumerate(names, FIRST_ROW):
                before = self._pids(bundle)
                self._send(bundle, number)
                bundle.wait_for(b"%s restarted (pid " % name.encode(), PATIENCE)
                bundle.catch_up(PATIENCE)
                bundle.wait_for_state(name, "running", PATIENCE)
                after = self._pids(bundle)
                self.assertNotEqual(before.pop(name), after.pop(name))
                self.assertEqual(before, after)
            before = self._pids(bundle)
            self._send(bundle, FIRST_ROW + len(names))
            bundle.catch_up(PATIENCE)
            self.assertEqual(self._pids(bundle), before, "there is no such row")

    def _pids(self, bundle: Bundle) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in bundle.status()["daemons"]}

    def test_from_inside_not_even_kill_ends_it(self) -> None:
        everything = (
            "import os\n"
            f"for number in set(range(1, 65)) - {{{SIGTERM:d}, {SIGINT:d}, {FIRST_ROW}, {FIRST_ROW + 1}}}:\n"
            f"    for _ in range({TIMES}): os.kill(1, number)\n"
        )
        with Bundle([daemon("egress", *HEARS), daemon("other", *HEARS)]) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.wait_for_state("other", "running")
            done = bundle.inside([*PYTHON, "-c", everything], PATIENCE)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            bundle.catch_up(PATIENCE)
            self.assertEqual(set(bundle.lines("egress")), {b"ready", b"1"})
            self.assertEqual(bundle.lines("other"), [b"ready"])
            self._end(bundle, 0)

    def _hears_again(self, bundle: Bundle) -> bool:
        log = bundle.log
        return log.rfind(b"[pipelock] ready\n") > log.rfind(b"pipelock restarted")

    def _send_all(self, bundle: Bundle) -> None:
        rows = range(FIRST_ROW, FIRST_ROW + len(bundle.status()["daemons"]))
        for number in set(HARMLESS).difference(rows):
            self._send(bundle, number)
            if number == SIGSTOP:
                bundle.signal(SIGCONT)
            self.assertTrue(bundle.running(), signal.strsignal(number))
        bundle.signal(SIGCONT)
        bundle.catch_up(PATIENCE)

    def _send(self, bundle: Bundle, number: int) -> None:
        pid1 = bundle.pid1
        for _ in range(TIMES):
            os.kill(pid1, number)

    def _end(self, bundle: Bundle, code: int) -> None:
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(PATIENCE), code)


class ForwardTest(FaultTestCase):
    def test_with_the_table_the_other_way_round_hup_restarts_and_usr1_is_forwarded(self) -> None:
        signals = {"HUP": {"restart": "a"}, "USR1": {"forward": "b"}}
        with Bundle([daemon("a", *HEARS), daemon("b", *HEARS)], signals=signals) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[b] %d\n" % SIGUSR1)
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[a] ready\n", times=2)
            self.assertEqual(bundle.lines("a"), [b"ready", b"15", b"ready"])
            self.assertEqual(bundle.lines("b"), [b"ready", b"%d" % SIGUSR1])
