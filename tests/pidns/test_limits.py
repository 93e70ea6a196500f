"""The limits in seconds of the contract, as long as they really are, and that idling costs nothing.

They run side by side: all together take as long as the longest.
"""

import re
import time
from datetime import datetime
from signal import SIGTERM, SIGUSR1

from tests.pidns.harness import SLEEP, Bundle, Daemon, NamespaceTestCase, child, daemon, quiet_for, shell
from tests.support import wait_until

LIMIT = 20.0  # well over ten seconds, well under what would be another limit


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
            return cls.enterClassContext(Bundle(daemons, as_file=True))

        stubborn = child("signals.py", "--stay")
        cls.idle = started(*(daemon(name, *SLEEP) for name in "abcde"))
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

    def test_1_five_sleeping_daemons_wake_nobody_in_five_seconds(self) -> None:
        self.idle.wait_for_state("e", "running")
        self.idle.catch_up()
        before = self._settled()
        quiet_for(5)
        self.assertEqual(self._switches(), before)
        self.idle.catch_up()
        self.assertGreater(self._switches(), before, "the control: a signal is a wake-up")

    def test_2_who_ignores_term_is_killed_after_eight_seconds(self) -> None:
        self.assertEqual(self.shutdown.exit(LIMIT), 137)
        self.assertGreaterEqual(time.monotonic() - self.asked_at, 8.0)
        self.assertIn(b"sidecar-init: grace (8s) elapsed; SIGKILL on a, b", self.shutdown.log)

    def test_3_an_old_pipelock_that_ignores_term_is_killed_after_five_seconds(self) -> None:
        self.in_place.wait_for(b"pipelock restarted (pid ", LIMIT)
        seconds = self._between(self.in_place, "restarting", "restarted")
        self.assertTrue(5.0 <= seconds < 8.0, seconds)
        self.in_place.wait_for(b"[pipelock] ready\n", times=2)

    def test_4_a_check_that_hangs_is_over_after_ten_seconds_and_leaves_the_running_one_alone(self) -> None:
        event = self.check.wait_for_event("check-failed", "pipelock", LIMIT)
        self.assertIn("10", event["reason"])
        wait_until(lambda: not self.check.running_commands("sleep 2000"), 5, "the check to be gone")
        self.check.catch_up()
        self.assertEqual(self.check.daemon("pipelock")["state"], "running")
        self.assertEqual(self.check.lines("pipelock"), [b"ready"])

    def test_5_who_waits_for_one_that_is_never_ready_starts_after_ten_seconds_with_a_warning(self) -> None:
        self.after.wait_for(b"sidecar-init: starting second", LIMIT)
        self.after.wait_for_state("second", "running")
        said = [line for line in self.after.own_lines() if "first" in line and "second" in line]
        self.assertEqual(said, ["second waits for first", "second does not wait any longer for first"])

    def test_6_one_that_dies_at_once_comes_back_ever_later_and_is_called_crash_looping_once(self) -> None:
        self.loop.wait_for_event("crash-looping", "a", LIMIT)
        self.loop.wait_for_event("exited", "a", LIMIT, times=5)
        delays = [one["next_start_in"] for one in self.loop.events("exited", "a")[:5]]
        for delay, least in zip(delays, (0.5, 1, 2, 4, 8), strict=True):
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
