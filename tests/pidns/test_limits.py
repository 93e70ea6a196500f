"""The loop keeps its limits by the real clock, and idling costs nothing.

The two graces are as long as they are; the other limits are a quarter of what the state machine's tests say they are.
All run side by side, while the idle ones sleep: together they take as long as the longest.
"""

import re
import time
from datetime import datetime
from signal import SIGTERM, SIGUSR1

import sidecar_init
from tests.pidns.harness import SLEEP, Bundle, Daemon, NamespaceTestCase, child, daemon, quiet_for, shell
from tests.support import wait_until

LIMITS = ("_CHECK_SECONDS", "_AFTER_SECONDS", "_BACKOFF_FIRST")
QUARTERS = {name: getattr(sidecar_init, name) / 4 for name in LIMITS}


class LimitTest(NamespaceTestCase):
    idle: Bundle
    shutdown: Bundle
    in_place: Bundle
    check: Bundle
    after: Bundle
    loop: Bundle
    asked_at: float

    @classmethod
    def setUpClass(cls) -> None:
        def started(*daemons: Daemon) -> Bundle:
            return cls.enterClassContext(Bundle(daemons, tunables=QUARTERS))

        stubborn = child("signals.py", "--stay")
        cls.idle = cls.enterClassContext(Bundle([daemon(name, *SLEEP) for name in "abcde"], as_file=True))
        obedient = daemon("c", *child("signals.py"))
        cls.shutdown = started(daemon("a", *stubborn), daemon("b", *stubborn), obedient)
        cls.in_place = started(daemon("pipelock", *stubborn))
        checked = daemon("pipelock", *child("signals.py"), check=["sleep", "2000"])
        cls.check = started(checked)
        held_back = [daemon("first", *SLEEP, port=7001), daemon("second", *SLEEP, after=["first"])]
        cls.after = started(*held_back)
        cls.loop = started(daemon("a", *shell("echo again; exit 3"), restart="always"))
        cls.shutdown.wait_for(b"ready\n", times=3)
        cls.asked_at = time.monotonic()
        cls.shutdown.signal(SIGTERM)
        for bundle in (cls.in_place, cls.check):
            bundle.wait_for(b"[pipelock] ready\n")
            bundle.signal(SIGUSR1)

    def test_1_five_sleeping_daemons_cause_no_wake_up_in_five_seconds(self) -> None:
        self.idle.wait_for_state("e", "running")
        self.idle.catch_up()
        before = self._settled()
        quiet_for(5)
        self.assertEqual(self._switches(), before)
        self.idle.catch_up()
        self.assertGreater(self._switches(), before, "the control: a signal is a wake-up")

    def test_2_a_daemon_that_ignores_term_is_killed_after_eight_seconds(self) -> None:
        self.assertEqual(self.shutdown.exit(20), 137)
        self.assertGreaterEqual(time.monotonic() - self.asked_at, 8.0)
        for name in ("a", "b"):
            self.assertRegex(
                self.shutdown.log, rb"sidecar-init: %s has not stopped after 8\.\d s; killing it" % name.encode()
            )

    def test_3_an_old_pipelock_that_ignores_term_is_killed_after_five_seconds(self) -> None:
        self.in_place.wait_for_event("restarted", "pipelock")
        seconds = self._between(self.in_place, "restarting", "restarted")
        self.assertGreaterEqual(seconds, 5.0)
        self.assertRegex(self.in_place.log, rb"sidecar-init: pipelock has not stopped after 5\.\d s; killing it")
        self.in_place.wait_for(b"[pipelock] ready\n", times=2)

    def test_4_a_check_that_hangs_is_given_up_and_does_not_affect_the_running_process(self) -> None:
        event = self.check.wait_for_event("refused", "pipelock")
        self.assertIn("2.5", event["reason"])
        wait_until(lambda: not self.check.running_commands("sleep 2000"), 5, "the check to be gone")
        self.check.catch_up()
        self.assertEqual(self.check.daemon("pipelock")["state"], "running")
        self.assertEqual(self.check.lines("pipelock"), [b"ready"])

    def test_5_a_daemon_that_waits_for_one_that_is_never_ready_finally_starts_with_a_warning(self) -> None:
        self.after.wait_for(b"sidecar-init: second started")
        self.after.wait_for_state("second", "running")
        said = [line for line in self.after.own_lines() if "first" in line and "second" in line]
        self.assertEqual(said, ["second waits for first", "first is not ready after 2.5 s; starting second anyway"])

    def test_6_one_that_exits_at_once_is_restarted_ever_later_and_reported_as_crash_looping_once(self) -> None:
        self.loop.wait_for_event("crash-looping", "a")
        self.loop.wait_for_event("exited", "a", times=5)
        delays = [one["next_start_in"] for one in self.loop.events("exited", "a")[:5]]
        for delay, least in zip(delays, (0.125, 0.25, 0.5, 1, 2), strict=True):
            self.assertTrue(least <= delay <= least * 1.1, delays)
        self.assertTrue(self.loop.daemon("a")["crash_looping"])
        self.assertEqual(len(re.findall(rb"crash.looping", self.loop.log)), 1)

    def _settled(self) -> int:
        """The count once the supervisor has gone back to sleep."""

        def unchanged() -> bool:
            before = self._switches()
            quiet_for(0.05)
            return before == self._switches()

        wait_until(unchanged, 5, "the supervisor to be asleep again")
        return self._switches()

    def _switches(self) -> int:
        return self.idle.proc("voluntary_ctxt_switches")

    def _between(self, bundle: Bundle, first: str, second: str) -> float:
        start, end = (datetime.fromisoformat(bundle.events(kind)[0]["time"]) for kind in (first, second))
        return (end - start).total_seconds()
