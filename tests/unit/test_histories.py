"""Histories of what a table can ask of a daemon: after, oneshot, essential, stop, ready."""

from __future__ import annotations

import errno
import os
import signal
import unittest
from typing import Any
from unittest import mock

from tests.unit.machine import DB, MachineTest, daemon, web

KILLED = ("web", signal.SIGKILL)


class After(MachineTest):
    def test_it_waits_until_those_named_are_ready(self) -> None:
        self.supervise(web(after=["db"]), DB)
        self.walk(("start", "waiting starting"), ("wait 5", "waiting starting"))
        self.assertEqual(self.status()["reason"], "waits for db")
        self.walk(("listens 5432", "running running"))
        self.assertEqual(self.system.started, ["db", "web"])
        self.assertIsNone(self.status()["reason"])

    def test_it_waits_ten_seconds_at_most(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("wait 9.9", "starting waiting"), ("wait 0.1", "starting running"))
        self.assert_said("db is not ready after 10 s; starting web anyway")

    def test_the_ten_seconds_count_from_when_none_of_those_named_waits_itself(self) -> None:
        cache = daemon("cache", port=6379, after=["db"])
        self.supervise(web(after=["cache", "db"]), cache, DB)
        self.walk(("start", "waiting waiting starting"), ("wait 9.9", "waiting waiting starting"))
        self.walk(("wait 0.1", "waiting starting starting"))  # only now does web begin to count
        self.walk(("wait 9.9", "waiting starting starting"), ("wait 0.1", "running starting starting"))
        self.assert_said("cache, db are not ready after 10 s; starting web anyway")

    def test_a_wait_that_ends_in_time_starts_the_ten_seconds_of_the_next(self) -> None:
        self.supervise(DB, daemon("cache", port=6379, after=["db"]), web(after=["cache"]))
        self.walk(("start", "starting waiting waiting"), ("wait 8", "starting waiting waiting"))
        self.walk(("listens 5432", "running starting waiting"), ("wait 9.9", "running starting waiting"))
        self.walk(("wait 0.1", "running starting running"))

    def test_a_name_that_is_not_selected_is_ignored(self) -> None:
        self.supervise(web(after=["db"]))
        self.walk(("start", "running"))

    def test_it_waits_for_all(self) -> None:
        self.supervise(DB, daemon("cache", port=6379), web(after=["db", "cache"]))
        self.walk(("start", "starting starting waiting"), ("listens 5432", "running starting waiting"))
        self.walk(("listens 6379", "running running running"))

    def test_one_that_was_ready_and_has_exited_is_not_waited_for(self) -> None:
        self.supervise(DB, daemon("cache", port=6379), web(after=["db", "cache"]))
        self.walk(("start", "starting starting waiting"), ("listens 5432", "running starting waiting"))
        self.walk(("exits 0 db", "exited starting waiting"), ("listens 6379", "exited running running"))

    def test_one_that_has_ended_for_good_without_being_ready_is_not_waited_for(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("exits 1 db", "exited running"))
        self.assertFalse(any("anyway" in line for line in self.log.lines))

    def test_nor_is_one_that_has_failed(self) -> None:
        self.supervise(web(after=["db"]), DB)
        self.happen("unexecutable")
        with mock.patch.object(self.system, "cannot_execute", errno.ENOENT):
            self.supervisor._begin()
            self.supervisor.tick()
            self.assertEqual(self.states(), "waiting starting")
        self.walk(("recovers", "running failed"))

    def test_one_in_backoff_is(self) -> None:
        self.patch("_backoff", lambda exits: 3.0)
        self.supervise(daemon("db", "always", port=5432), web(after=["db"]))
        self.walk(("start", "starting waiting"), ("exits 1 db", "backoff waiting"), ("wait 3", "starting waiting"))
        self.walk(("listens 5432", "running running"))

    def test_a_restart_does_not_wait_again(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.happen("start")
        self.walk(("listens 5432", "running running"), ("exits 1 db", "exited running"), ("usr1", "exited stopping"))
        self.walk(("exits 0", "exited running"))

    def test_a_restart_of_one_that_waits_starts_it_at_once(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("usr1", "starting running"))
        self.assertEqual((self.status()["answered"], self.status()["refused"]), (1, False))

    def test_a_shutdown_meanwhile_starts_nothing(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("term", "stopping stopped"), ("exits 0 db", "stopped stopped"))
        self.assertEqual(self.system.started, ["db"])

    def test_a_oneshot_among_them_takes_the_limit_away(self) -> None:
        self.supervise(DB, oneshot(), web(after=["db", "migrate"]))
        self.walk(("start", "starting running waiting"), ("wait 1000", "starting running waiting"))
        self.walk(("exits 0 migrate", "starting exited waiting"), ("wait 9.9", "starting exited waiting"))
        self.walk(("wait 0.1", "starting exited running"))


def oneshot(restart: str = "never", **fields: Any) -> Any:
    return daemon("migrate", restart, oneshot=True, **fields)


class Oneshot(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.patch("_backoff", lambda exits: float(exits))

    def test_it_is_ready_when_it_has_exited_with_0_and_not_before(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]))
        self.walk(("start", "running waiting"), ("wait 3600", "running waiting"))
        self.assertFalse(self.status("migrate")["ready"])
        self.walk(("exits 0 migrate", "exited running"), ("wait 1000", "exited running"))
        self.assertTrue(self.status("migrate")["ready"])
        self.assertEqual(self.kinds("migrate"), ["started", "exited", "ready"])
        self.assertIsNone(self.status("migrate")["reason"])

    def test_always_means_on_failure(self) -> None:
        for restart in ("always", "on-failure"):
            with self.subTest(restart):
                self.doCleanups()
                self.setUp()
                self.supervise(oneshot(restart), web(after=["migrate"]))
                self.walk(("start", "running waiting"), ("exits 1 migrate", "backoff waiting"))
                self.walk(("wait 1", "running waiting"), ("exits 0 migrate", "exited running"))
                self.walk(("wait 1000", "exited running"))

    def test_it_is_tried_again_with_a_backoff_and_waited_for_without_a_limit(self) -> None:
        self.supervise(oneshot("on-failure"), web(after=["migrate"]))
        self.happen("start")
        for delay in (1, 2, 3):
            self.walk(("exits 1 migrate", "backoff waiting"))
            self.assertEqual(self.seconds_to_deadline("migrate"), delay)
            self.walk(("deadline migrate", "running waiting"), ("wait 50", "running waiting"))
        self.walk(("exits 0 migrate", "exited running"))
        self.assertEqual(self.supervisor.exit_code(), 0)

    def test_if_it_fails_for_good_its_dependents_wait_and_say_why(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]), daemon("other"))
        self.walk(("start", "running waiting running"), ("exits 3 migrate", "exited waiting running"))
        self.walk(("wait 1000", "exited waiting running"))
        self.assertFalse(self.status("migrate")["ready"])
        self.assertEqual(self.status()["reason"], "waits for migrate; migrate exited with status 3")
        self.assertEqual(self.status("migrate")["reason"], "exited with status 3")
        self.assert_said("web waits for migrate; migrate exited with status 3")
        self.assertFalse(self.is_done)
        self.assertEqual(self.supervisor._time_to_next_deadline(), float("inf"))

    def test_so_they_do_if_it_cannot_be_executed(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]))
        self.walk(("unexecutable", "waiting waiting"), ("start", "failed waiting"))
        self.assertIn("migrate cannot execute migrate: No such file or directory", self.status()["reason"])
        self.assertTrue(self.is_done)
        self.assertEqual(self.supervisor.exit_code(), 127)

    def test_so_they_do_if_the_environment_forbids_restarts(self) -> None:
        self.supervise(oneshot("on-failure"), web(after=["migrate"]), daemon("other"), may_restart=False)
        self.walk(("start", "running waiting running"), ("exits 3 migrate", "exited waiting running"))

    def test_a_restart_of_those_is_refused_with_that_reason(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]), daemon("other"))
        self.walk(("start", "running waiting running"), ("exits 3 migrate", "exited waiting running"))
        self.walk(("usr1", "exited waiting running"))
        why = "cannot restart web: it waits for migrate; migrate exited with status 3"
        self.assert_said(f"{why}; nothing was changed")
        status = self.status()
        self.assertEqual((status["asked"], status["answered"], status["refused"]), (1, 1, True))
        self.assertEqual(status["answer"], why)
        self.assertNotIn("web", self.system.started)

    def test_a_restart_of_it_that_works_lets_them_start(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]), daemon("other"))
        self.walk(("start", "running waiting running"), ("exits 3 migrate", "exited waiting running"))
        self.walk(("row 0", "running waiting running"), ("exits 0 migrate", "exited running running"))
        self.assertEqual(self.kinds()[0], "started")

    def test_restarting_a_finished_one_runs_it_again_and_leaves_its_dependents_alone(self) -> None:
        for status in (0, 3):
            with self.subTest(status=status):
                self.doCleanups()
                self.setUp()
                self.supervise(oneshot(), web(after=["migrate"]))
                self.walk(("start", "running waiting"), ("exits 0 migrate", "exited running"))
                self.walk(("row 0", "running running"), (f"exits {status} migrate", "exited running"))
                self.assertEqual(self.system.started, ["migrate", "web", "migrate"])
                self.assertEqual(self.system.signals, [])
                self.walk(("usr1", "exited stopping"), ("exits 0", "exited running"))

    def test_the_supervisor_exits_with_its_code_if_only_its_dependents_remain(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]), daemon("app", after=["web"]), DB)
        self.walk(("start", "running waiting waiting starting"), ("exits 3 migrate", "exited waiting waiting starting"))
        self.assertFalse(self.is_done)
        self.walk(("exits 0 db", "exited waiting waiting exited"))
        self.assertTrue(self.is_done)
        self.assertEqual(self.supervisor.exit_code(), 3)

    def test_the_supervisor_does_not_exit_while_it_will_be_tried_again(self) -> None:
        self.supervise(oneshot("on-failure"), web(after=["migrate"]))
        self.walk(("start", "running waiting"), ("exits 3 migrate", "backoff waiting"))
        self.assertFalse(self.is_done)

    def test_the_supervisor_exits_with_0_when_it_alone_was_to_run_and_has(self) -> None:
        self.supervise(oneshot("always"))
        self.walk(("start", "running"), ("exits 0 migrate", "exited"))
        self.assertTrue(self.is_done)
        self.assertEqual(self.supervisor.exit_code(), 0)

    def test_a_restart_while_it_runs_begins_it_again(self) -> None:
        self.supervise(oneshot(), web(after=["migrate"]))
        self.walk(("start", "running waiting"), ("row 0", "stopping waiting"), ("exits 0 migrate", "running waiting"))
        self.walk(("exits 0 migrate", "exited running"))

    def test_what_it_leaves_behind_is_stopped_before_its_dependents_may_wait_no_longer(self) -> None:
        self.supervise(daemon("web", oneshot=True), daemon("other"))
        self.walk(("start", "running running"), ("orphans 0", "stopping running"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM)])
        self.walk(("gone", "exited running"))
        self.assertTrue(self.status()["ready"])


class Essential(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.patch("_backoff", lambda exits: 1.0)

    def assert_ends_with(self, code: int, why: str) -> None:
        """The others are stopped, and the exit code is the essential daemon's."""
        self.assert_said(f"shutting down: web is essential and {why}")
        self.assertIsNotNone(self.supervisor.shutdown_at)
        self.assertIn(("other", signal.SIGTERM), self.system.signals)
        self.happen("exits 99 other")
        self.assertTrue(self.is_done, self.states())
        self.assertEqual(self.supervisor.exit_code(), code)

    def test_an_exit_for_good_ends_the_container_with_its_code(self) -> None:
        for restart, code in (("never", 7), ("never", 0), ("on-failure", 0)):
            with self.subTest(restart, code=code):
                self.doCleanups()
                self.setUp()
                self.supervise(web(restart, essential=True), daemon("other"))
                self.walk(("start", "running running"), (f"exits {code}", "exited stopping"))
                self.assert_ends_with(code, f"exited with status {code}")

    def test_a_signal_is_128_more(self) -> None:
        self.supervise(web("never", essential=True), daemon("other"))
        self.walk(("start", "running running"), ("killed", "exited stopping"))
        self.assert_ends_with(137, "was terminated by SIGKILL")

    def test_it_counts_more_than_what_has_failed_before(self) -> None:
        self.supervise(web("never", essential=True), daemon("other"), DB)
        self.walk(("start", "running running starting"), ("exits 200 db", "running running exited"))
        self.walk(("exits 7", "exited stopping exited"))
        self.assert_ends_with(7, "exited with status 7")

    def test_the_first_of_two_counts(self) -> None:
        self.supervise(web("never", essential=True), daemon("other", essential=True))
        self.walk(("start", "running running"), ("exits 7", "exited stopping"))
        self.assert_ends_with(7, "exited with status 7")

    def test_an_environment_that_forbids_restarts_makes_each_exit_one_for_good(self) -> None:
        self.supervise(web("always", essential=True), daemon("other"), may_restart=False)
        self.walk(("start", "running running"), ("exits 0", "exited stopping"))
        self.assert_ends_with(0, "exited with status 0")

    def test_an_exit_that_is_followed_by_a_restart_is_none(self) -> None:
        self.supervise(web("always", essential=True), daemon("other"))
        self.walk(("start", "running running"), ("exits 7", "backoff running"), ("deadline", "running running"))
        self.assertIsNone(self.supervisor.shutdown_at)

    def test_one_that_cannot_be_executed_ends_the_container(self) -> None:
        self.supervise(daemon("other"), web("always", essential=True))
        self.happen("start")
        self.walk(("unexecutable", "running running"), ("exits 1", "running backoff"))
        self.walk(("deadline", "stopping failed"))
        self.assert_ends_with(127, "cannot execute web: No such file or directory")

    def test_a_failure_to_start_that_may_pass_does_not(self) -> None:
        self.supervise(daemon("other"), web("always", essential=True))
        self.happen("start")
        self.on_unexecutable(errno.ENOMEM)
        self.walk(("exits 1", "running backoff"))
        for _ in range(20):
            self.walk(("deadline", "running backoff"))
        self.assertIsNone(self.supervisor.shutdown_at)
        self.walk(("recovers", "running backoff"), ("deadline", "running running"))

    def test_a_crash_loop_ends_the_container_with_its_last_code(self) -> None:
        for code, expected in ((7, 7), (0, 1)):
            with self.subTest(code=code):
                self.doCleanups()
                self.setUp()
                self.supervise(web("always", essential=True), daemon("other"))
                self.happen("start")
                for _ in range(4):
                    self.walk((f"exits {code}", "backoff running"), ("deadline", "running running"))
                self.walk((f"exits {code}", "stopped stopping"))
                self.assert_ends_with(expected, "is crash-looping")

    def test_so_does_a_oneshot_that_crash_loops(self) -> None:
        self.supervise(web("on-failure", essential=True, oneshot=True), daemon("other"))
        self.happen("start")
        for _ in range(4):
            self.walk(("exits 7", "backoff running"), ("deadline", "running running"))
        self.walk(("exits 7", "stopped stopping"))
        self.assert_ends_with(7, "is crash-looping")

    def test_a_restart_that_was_asked_for_is_no_end(self) -> None:
        for restart in ("never", "always"):
            with self.subTest(restart):
                self.doCleanups()
                self.setUp()
                self.supervise(web(restart, essential=True), daemon("other"))
                self.walk(("start", "running running"), ("usr1", "stopping running"), ("exits 7", "running running"))
                self.assertIsNone(self.supervisor.shutdown_at)

    def test_a_restart_that_cannot_be_executed_is_one(self) -> None:
        self.supervise(web("never", essential=True), daemon("other"))
        self.walk(("start", "running running"), ("usr1", "stopping running"), ("unexecutable", "stopping running"))
        self.walk(("exits 0", "failed stopping"))
        self.assert_ends_with(127, "cannot execute web: No such file or directory")

    def test_a_oneshot_ends_the_container_only_by_failing(self) -> None:
        self.supervise(web("on-failure", essential=True, oneshot=True), daemon("other"))
        self.walk(("start", "running running"), ("exits 7", "backoff running"), ("deadline", "running running"))
        self.walk(("exits 0", "exited running"), ("wait 1000", "exited running"))
        self.assertIsNone(self.supervisor.shutdown_at)

    def test_a_oneshot_that_fails_for_good_does(self) -> None:
        self.supervise(web("never", essential=True, oneshot=True), daemon("other"))
        self.walk(("start", "running running"), ("exits 7", "exited stopping"))
        self.assert_ends_with(7, "exited with status 7")

    def test_what_its_group_leaves_behind_is_stopped_first(self) -> None:
        self.supervise(web("never", essential=True), daemon("other"))
        self.walk(("start", "running running"), ("orphans", "stopping running"), ("gone", "exited stopping"))
        self.assert_ends_with(7, "exited with status 7")

    def test_one_that_the_shutdown_stops_is_not_the_reason_for_it(self) -> None:
        self.supervise(web("never", essential=True), daemon("other"))
        self.walk(("start", "running running"), ("exits 9 other", "running exited"), ("term", "stopping exited"))
        self.walk(("exits 0", "stopped exited"))
        self.assertEqual(self.supervisor.exit_code(), 9)


class Stop(MachineTest):
    def test_its_signal_goes_to_the_group_unless_the_table_says_leader(self) -> None:
        for to, target in (("group", "web"), ("leader", "only web")):
            for event in ("term", "usr1"):
                with self.subTest(to, event=event):
                    self.doCleanups()
                    self.setUp()
                    self.supervise(web(stop={"signal": "QUIT", "to": to}))
                    self.walk(("start", "running"), (event, "stopping"))
                    self.assertEqual(self.system.signals, [(target, signal.SIGQUIT)])

    def test_what_a_leader_leaves_behind_gets_the_signal_when_it_has_exited(self) -> None:
        self.supervise(web("never", stop={"signal": "QUIT", "to": "leader"}))
        self.walk(("start", "running"), ("term", "stopping"), ("wait 3", "stopping"), ("orphans 0", "stopping"))
        self.assertEqual(self.system.signals, [("only web", signal.SIGQUIT), ("web", signal.SIGQUIT)])
        self.walk(("wait 5", "stopping"))
        self.assertEqual(self.system.signals[2:], [KILLED])
        self.walk(("gone", "stopped"))

    def test_a_leader_that_has_exited_by_itself_leaves_a_group_that_gets_it_at_once(self) -> None:
        self.supervise(web("never", stop={"signal": "QUIT", "to": "leader"}))
        self.walk(("start", "running"), ("orphans", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGQUIT)])

    def test_the_kill_goes_to_the_group_always(self) -> None:
        self.supervise(web(stop={"to": "leader"}))
        self.walk(("start", "running"), ("term", "stopping"), ("wait 8", "stopping"))
        self.assertEqual(self.system.signals, [("only web", signal.SIGTERM), KILLED])

    def test_a_longer_grace_delays_only_that_daemons_kill(self) -> None:
        self.supervise(web(stop={"grace": 30}), daemon("other"))
        self.walk(("start", "running running"), ("term", "stopping stopping"), ("wait 8", "stopping stopping"))
        self.assertEqual(self.system.signals[2:], [("other", signal.SIGKILL)])
        self.walk(("killed other", "stopping stopped"), ("wait 21.9", "stopping stopped"))
        self.assertNotIn(KILLED, self.system.signals)
        self.walk(("wait 0.1", "stopping stopped"))
        self.assertIn(KILLED, self.system.signals)
        self.assert_said("web has not stopped after 30.0 s; killing it")

    def test_it_holds_for_a_restart_too(self) -> None:
        for grace in (1, 30):
            with self.subTest(grace=grace):
                self.doCleanups()
                self.setUp()
                self.supervise(web(stop={"grace": grace}))
                self.walk(("start", "running"), ("usr1", "stopping"), (f"wait {grace - 0.1}", "stopping"))
                self.assertNotIn(KILLED, self.system.signals)
                self.walk(("wait 0.2", "stopping"))
                self.assertIn(KILLED, self.system.signals)

    def test_it_holds_for_a_restart_by_a_call_too_unless_another_is_given(self) -> None:
        for given, expected in (({}, 30.0), ({"grace": 5.0}, 30.0), ({"grace": 1.0}, 1.0)):
            with self.subTest(given=given):
                self.doCleanups()
                self.setUp()
                self.supervise(web(stop={"grace": 30}))
                self.walk(("start", "running"))
                with mock.patch.object(self.supervisor, "tick", side_effect=InterruptedError):
                    self.assertRaises(InterruptedError, self.supervisor.restart_daemon, "web", **given)
                self.assertEqual(self.seconds_to_deadline(), expected)

    def test_and_for_what_a_daemon_leaves_behind(self) -> None:
        self.supervise(web(stop={"grace": 0.5}))
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 0.4", "stopping"))
        self.assertNotIn(KILLED, self.system.signals)
        self.walk(("wait 0.2", "stopping"))
        self.assertIn(KILLED, self.system.signals)

    def test_no_grace_at_all_kills_at_once(self) -> None:
        self.supervise(web(stop={"grace": 0}))
        self.walk(("start", "running"), ("term", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM), KILLED])

    def test_an_int_during_the_shutdown_cuts_also_a_long_grace(self) -> None:
        self.supervise(web(stop={"grace": 30}))
        self.walk(("start", "running"), ("term", "stopping"), ("int", "stopping"), ("killed", "stopped"))
        self.assertIn(KILLED, self.system.signals)

    def test_the_shutdowns_grace_does_not_change_one_that_the_table_gives(self) -> None:
        self.supervise(web(stop={"grace": 30}))
        self.walk(("start", "running"), ("term", "stopping"))
        self.patch("_GRACE_SECONDS", 0.3)
        self.walk(("wait 1", "stopping"))
        self.assertNotIn(KILLED, self.system.signals)


class ReadinessCommand(MachineTest):
    def begin(self, **fields: Any) -> None:
        self.supervise(web(ready=["probe"], **fields))
        self.walk(("start", "starting"))

    def tries(self) -> int:
        return self.system.started.count("probe")

    def on_answers(self, code: str) -> None:
        self.system.exit("probe", int(code) << 8)

    def say(self, text: bytes) -> None:
        os.write(self.system.outputs["probe"].writer(), text)

    def test_it_runs_at_once_and_its_success_makes_the_daemon_ready(self) -> None:
        self.begin()
        self.assertEqual(self.system.started, ["web", "probe"])
        self.assertFalse(self.status()["ready"])
        self.walk(("wait 0.5", "starting"), ("answers 0", "running"))
        self.assertTrue(self.status()["ready"])
        self.assert_said("web ready after 0.50 s")

    def test_it_is_not_run_once_the_daemon_is_ready(self) -> None:
        self.begin()
        self.walk(("answers 0", "running"), ("wait 1000", "running"), ("wait 1000", "running"))
        self.assertEqual(self.tries(), 1)
        self.assertEqual(self.supervisor._time_to_next_deadline(), float("inf"))

    def test_it_is_tried_again_after_a_tenth_of_a_second_and_then_less_and_less_often(self) -> None:
        self.begin()
        delays = []
        for _ in range(8):
            self.happen("answers 1")
            delays.append(round(self.seconds_to_deadline(), 6))
            self.happen("deadline")
        self.assertEqual(delays, [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2])
        self.assertEqual(self.tries(), 9)

    def test_one_that_takes_five_seconds_is_killed(self) -> None:
        self.begin()
        self.walk(("wait 4.9", "starting"))
        self.assertEqual(self.system.signals, [])
        self.walk(("wait 0.1", "starting"), ("killed probe", "starting"))
        self.assertEqual(self.system.signals, [("probe", signal.SIGKILL)])
        self.walk(("wait 0.1", "starting"), ("answers 0", "running"))
        self.assertEqual(self.tries(), 2)

    def test_there_are_never_two_at_once(self) -> None:
        self.begin()
        self.walk(("wait 4", "starting"), ("wait 0.9", "starting"))
        self.assertEqual(self.tries(), 1)
        self.walk(("wait 0.2", "starting"), ("wait 10", "starting"))  # killed, but it cannot exit: its disk hangs
        self.assertEqual(self.tries(), 1)
        self.walk(("killed probe", "starting"), ("wait 2", "starting"))
        self.assertEqual(self.tries(), 2)

    def test_it_is_killed_with_its_daemon(self) -> None:
        for event, state in (("exits 7", "backoff"), ("usr1", "stopping"), ("term", "stopping")):
            with self.subTest(event):
                self.doCleanups()
                self.setUp()
                self.begin()
                self.walk((event, state))
                self.assertIn(("probe", signal.SIGKILL), self.system.signals)
                self.walk(("killed probe", state))
                self.assertEqual(self.tries(), 1)

    def test_the_next_process_has_to_pass_it_too(self) -> None:
        self.begin()
        self.walk(("answers 0", "running"), ("usr1", "stopping"), ("exits 0", "starting"))
        self.assertFalse(self.status()["ready"])
        self.walk(("answers 0", "running"))
        self.assertEqual(self.tries(), 2)

    def test_with_a_port_both_must_succeed(self) -> None:
        self.begin(port=80)
        self.walk(("answers 0", "starting"), ("wait 10", "starting"))
        self.assertEqual(self.tries(), 1)
        self.walk(("listens", "running"))

    def test_so_they_must_if_the_port_is_first(self) -> None:
        self.begin(port=80)
        self.walk(("listens", "starting"), ("answers 1", "starting"), ("wait 0.1", "starting"))
        self.walk(("answers 0", "running"))

    def test_its_output_appears_only_from_the_tenth_failure_on(self) -> None:
        self.begin()
        for number in range(1, 12):
            self.say(b"no connection %d\n" % number)
            self.happen("answers 1")
            if number < 10:
                self.assertEqual((self.log.written, self.log.lines[1:]), (b"", []))
            self.happen("deadline")
        self.assertEqual(self.log.written, b"[web] no connection 11\n")
        why = "is not ready: its readiness command exited with status 1 (no connection 10)"
        self.assert_said(f"web {why}")
        self.assertIn("its readiness command exited with status 1 (no connection 11)", self.status()["reason"])
        self.walk(("answers 0", "running"))
        self.assertIsNone(self.status()["reason"])

    def test_a_reason_that_stays_the_same_is_logged_once(self) -> None:
        self.begin()
        for _ in range(20):
            self.happen("answers 1")
            self.happen("deadline")
        self.assert_said("web is not ready: its readiness command exited with status 1")

    def test_what_is_wrong_with_the_port_and_with_it_is_logged_once_each(self) -> None:
        self.supervise(web(ready=["probe"], port=80))
        self.system.listen(80)
        self.happen("start")
        for _ in range(20):
            self.happen("answers 1")
            self.happen("wait 2")
            self.happen("wait 1")
        self.assert_said("web is not ready: another process holds port 80")
        self.assert_said("web is not ready: its readiness command exited with status 1")

    def test_one_that_cannot_be_executed_counts_as_a_failure(self) -> None:
        self.supervise(web(ready=["probe"]))
        self.walk(("hangs", "waiting"), ("start", "starting"))
        self.on_executed()
        self.walk(("unexecutable", "starting"))
        for _ in range(12):
            self.happen("deadline")
        self.assertIn("cannot execute probe: No such file or directory", self.status()["reason"])
        self.assertEqual(self.states(), "starting")

    def test_tries_that_cannot_be_forked_leave_no_descriptor(self) -> None:
        self.begin()
        self.walk(("answers 1", "starting"))
        self.on_breaks(errno.EAGAIN)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            self.happen("deadline")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.walk(("recovers", "starting"), ("deadline", "starting"), ("answers 0", "running"))

    def test_nor_do_tries_that_an_unexpected_error_ends(self) -> None:
        self.begin()
        self.walk(("answers 1", "starting"))
        before = len(os.listdir("/proc/self/fd"))
        with mock.patch.object(self.system, "start", side_effect=MemoryError):
            for _ in range(20):
                self.happen("deadline")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertIn("internal error: MemoryError", " ".join(self.log.lines))

    def test_a_daemon_that_is_listed_after_it_waits_for_it(self) -> None:
        self.supervise(daemon("db", ready=["probe"]), web(after=["db"]))
        self.walk(("start", "starting waiting"), ("wait 4", "starting waiting"), ("answers 0", "running running"))

    def test_a_failing_check_leaves_it_where_it_was(self) -> None:
        self.begin(check=["check"])
        self.walk(("usr1", "checking"), ("checked 1", "starting"), ("answers 0", "running"))

    def test_one_that_succeeds_during_a_check_counts_after_it(self) -> None:
        self.begin(check=["check"])
        self.walk(("usr1", "checking"), ("answers 0", "checking"), ("checked 1", "running"))


class UnexpectedErrors(MachineTest):
    """A bug, or no memory, in what a story calls."""

    def test_each_costs_a_line_and_the_daemon_goes_on(self) -> None:
        places: dict[str, tuple[Any, list[tuple[str, str]]]] = {
            "sockets": (lambda: self.launcher.ports, [("start", "waiting"), ("wait 0.1", "starting")]),
            "start": (lambda: self.launcher, [("start", "waiting"), ("wait 0.1", "starting")]),
            "started": (lambda: self.daemons["web"].history, [("start", "waiting"), ("wait 0.1", "starting")]),
            "drain": (
                lambda: self.daemons["web"].output,
                [("start", "starting"), ("listens", "running"), ("exits 7", "waiting"), ("wait 0.1", "backoff")],
            ),
        }
        for name, (place, history) in places.items():
            for error in (RuntimeError("x"), MemoryError()):
                with self.subTest(name, error=error):
                    self.doCleanups()
                    self.setUp()
                    self.supervise(web(port=80))
                    original, errors = getattr(place(), name), iter([error])

                    def fail_once(*arguments: Any, original: Any = original, errors: Any = errors, **more: Any) -> Any:
                        for one in errors:
                            raise one
                        return original(*arguments, **more)

                    with mock.patch.object(place(), name, fail_once):
                        self.walk(*history)
                    said = [line for line in self.log.lines if line.startswith("internal error: ")]
                    self.assertEqual(len(said), 1, said)
                    self.assertIn(type(error).__name__, said[0])
                    self.assertLessEqual(len(self.system.groups), 1)

    def test_one_that_stays_costs_a_line_and_a_pause_of_a_tenth_of_a_second_each_time(self) -> None:
        self.supervise(web())
        self.happen("start")
        with mock.patch.object(self.daemons["web"].history, "reset_backoff", side_effect=RuntimeError("x")):
            self.happen("exits 7")
            for lines in range(1, 10):
                said = [line for line in self.log.lines if line.startswith("internal error: ")]
                self.assertEqual(len(said), lines)
                self.happen("wait 0.1")
        self.walk(("wait 0.1", "backoff"))


if __name__ == "__main__":
    unittest.main()
