"""The state machine of a daemon: every state with every event, and histories of (event, states after it)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import signal
import unittest
from collections.abc import Mapping
from unittest import mock

import sidecar_init
from tests.unit.machine import DB, FIRST_PID, MachineTest, daemon, web

KILLED = ("web", signal.SIGKILL)


class EveryStateWithEveryEvent(MachineTest):
    """`-`: cannot happen there."""

    TABLE = """
    state    | usr1     | hup      | exits 0  | exits 7  | orphans  | deadline | listens  | term
    waiting  | starting | waiting  | -        | -        | -        | starting | waiting  | stopped
    forked   | starting | starting | exited   | backoff  | stopping | backoff  | starting | stopping
    starting | checking | starting | exited   | backoff  | stopping | starting | running  | stopping
    running  | checking | running  | exited   | backoff  | stopping | running  | running  | stopping
    checking | checking | checking | starting | starting | stopping | running  | checking | stopping
    stopping | stopping | stopping | starting | starting | stopping | stopping | stopping | stopping
    leftover | stopping | stopping | -        | -        | -        | stopping | stopping | stopping
    ending   | stopping | stopping | stopped  | stopped  | stopping | stopping | stopping | stopping
    backoff  | starting | backoff  | -        | -        | -        | starting | backoff  | stopped
    exited   | starting | exited   | -        | -        | -        | exited   | exited   | exited
    failed   | starting | failed   | -        | -        | -        | failed   | failed   | failed
    stopped  | stopped  | stopped  | -        | -        | -        | stopped  | stopped  | stopped
    """

    REST = """
    state    | row 1    | int      | checked 0 | checked 1 | executed | gone    | gone_elsewhere
    waiting  | starting | stopped  | -         | -         | -        | -       | -
    forked   | starting | stopping | -         | -         | starting | -       | -
    starting | checking | stopping | -         | -         | -        | -       | -
    running  | checking | stopping | -         | -         | -        | -       | -
    checking | checking | stopping | stopping  | running   | -        | -       | -
    stopping | stopping | stopping | -         | -         | -        | -       | -
    leftover | stopping | stopping | -         | -         | -        | backoff | stopping
    ending   | stopping | stopping | -         | -         | -        | -       | -
    backoff  | starting | stopped  | -         | -         | -        | -       | -
    exited   | starting | exited   | -         | -         | -        | -       | -
    failed   | starting | failed   | -         | -         | -        | -       | -
    stopped  | stopped  | stopped  | -         | -         | -        | -       | -
    """

    WAYS: Mapping[str, list[str]] = {
        "waiting": ["start"],
        "forked": ["start", "hangs", "listens 5432"],
        "starting": ["start", "listens 5432"],
        "running": ["start", "listens 5432", "listens"],
        "checking": ["start", "listens 5432", "listens", "usr1"],
        "stopping": ["start", "listens 5432", "listens", "usr1", "checked 0"],
        "leftover": ["start", "listens 5432", "listens", "orphans"],
        "ending": ["start", "listens 5432", "listens", "term"],
        "backoff": ["start", "listens 5432", "exits 7"],
        "exited": ["start", "listens 5432", "exits 0"],
        "failed": ["start", "breaks", "listens 5432", "recovers"],
        "stopped": ["start", "term"],
    }
    CALLED: Mapping[str, str] = {"forked": "starting", "leftover": "stopping", "ending": "stopping"}

    def test_each_leads_where_the_table_says(self) -> None:
        for table in (self.TABLE, self.REST):
            header, *rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
            for way, *expected in rows:
                for event, after in zip(header[1:], expected, strict=True):
                    if after != "-":
                        with self.subTest(f"{event} in {way}"):
                            self.go(way)
                            self.happen(event)
                            self.assertEqual(self.daemons["web"].state, after)

    def test_from_each_a_shutdown_leads_to_the_end(self) -> None:
        for way in self.WAYS:
            with self.subTest(way):
                self.go(way)
                started = len(self.system.started)
                self.shut_down()
                self.assertTrue(self.is_done, self.states())
                self.assertEqual(len(self.system.started), started)
                self.assertEqual(self.system.groups, set())

    def test_from_each_an_unexpected_error_costs_a_line_and_the_daemon_goes_on(self) -> None:
        for way in self.WAYS.keys() - {"exited", "failed", "stopped"}:  # their stories do nothing until they are asked
            for error, times in ((RuntimeError("x"), 1), (MemoryError(), 1), (MemoryError(), 2)):
                with self.subTest(way, error=error, times=times):
                    self.go(way)
                    results = itertools.chain([error] * times, itertools.repeat(mock.DEFAULT))
                    enter = mock.Mock(wraps=self.daemons["web"]._enter, side_effect=results)
                    with mock.patch.object(self.daemons["web"], "_enter", enter), contextlib.suppress(type(error)):
                        self.daemons["web"].advance()
                    said = [line for line in self.log.lines if line.startswith("internal error: ")]
                    self.assertEqual(len(said), 1, said)
                    self.assertRegex(said[0], rf"^internal error: {type(error).__name__} in \w+, line \d+; going on$")
                    for event in ("executed", "deadline", "wait 1"):
                        self.happen(event)
                    if way != "ending":
                        self.assertIn(self.daemons["web"].state, ("starting", "running", "stopping"))
                        self.assertEqual(sum(self.system.commands[pid] == "web" for pid in self.system.groups), 1)
                        self.assertEqual(self.status()["asked"], self.status()["answered"])
                    self.shut_down()
                    self.assertTrue(self.is_done, self.states())
                    self.assertEqual(self.system.groups, set())

    def shut_down(self) -> None:
        """Nothing exits until it is killed."""
        self.happen("term")
        self.happen("wait 8")
        self.system.left_behind.clear()
        for name, number in self.system.signals:
            pids = [pid for pid in self.system.groups if self.system.commands[pid] == name]
            if number == signal.SIGKILL and pids:
                self.system.exit(name, signal.SIGKILL)
                self.turn()

    def go(self, way: str) -> None:
        self.doCleanups()
        self.setUp()
        self.supervise(DB, web("on-failure", port=80, after=["db"], check=["check"]))
        for step in self.WAYS[way]:
            self.happen(step)
        self.assertEqual(self.daemons["web"].state, self.CALLED.get(way, way))


class Exit(MachineTest):
    def test_always_restarts_it_whatever_the_status(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("exits 0", "backoff"), ("deadline", "running"), ("exits 7", "backoff"))

    def test_on_failure_restarts_only_what_failed(self) -> None:
        self.supervise(web("on-failure"))
        self.walk(("start", "running"), ("exits 7", "backoff"), ("deadline", "running"), ("exits 0", "exited"))

    def test_never_restarts_nothing(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("exits 7", "exited"), ("wait 1000", "exited"))

    def test_the_environment_can_forbid_all_restarts(self) -> None:
        self.supervise(web("always"), DB, may_restart=False)
        self.walk(("start", "running starting"), ("exits 7", "exited starting"), ("wait 1000", "exited starting"))

    def test_what_the_environment_forbids_can_still_be_asked_for(self) -> None:
        self.supervise(web("always"), may_restart=False)
        self.walk(("start", "running"), ("exits 7", "exited"), ("usr1", "running"))

    def test_an_exit_is_logged_with_all_that_is_known(self) -> None:
        self.supervise(web())
        self.patch("_backoff", lambda exits: 0.5)
        self.walk(("start", "running"), ("wait 61.5", "running"), ("exits 7", "backoff"))
        self.assert_said("web exited with status 7 after 61.5 s; restarting in 0.5 s")
        [exited] = [more for event, _, more in self.events.recorded if event == "exited"]
        self.assertEqual((exited["code"], exited["signal"], exited["uptime"]), (7, None, 61.5))
        self.assertEqual((exited["restarts"], exited["next_start_in"], exited["last_lines"]), (0, 0.5, []))

    def test_a_signal_has_its_name(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("killed", "exited"))
        self.assert_said("web was terminated by SIGKILL after 0.0 s")
        self.assertEqual(self.status()["last_exit"], "was terminated by SIGKILL")

    def test_a_kill_that_the_kernels_oom_killer_has_counted_is_called_so(self) -> None:
        self.supervise(web("never"))
        self.happen("start")
        self.system.oom_kills += 1
        self.happen("killed")
        self.assert_said("web was terminated by SIGKILL (out of memory) after 0.0 s")

    def test_if_the_counter_cannot_be_read_that_cannot_be_known(self) -> None:
        """As after PID 1 was moved to another cgroup, and the old one removed."""
        counter = sidecar_init._OomCounter()
        self.close_later(*{counter._fd} - {-1})
        with mock.patch.object(counter, "_fd", self.pipe()[0]):  # pread refuses a pipe
            self.assertIsNone(counter.has_counted())

    def test_our_own_kill_is_not_the_oom_killers(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 5", "stopping"))
        self.system.oom_kills += 1
        self.happen("killed")
        self.assert_said("web was terminated by SIGKILL after 5.0 s")

    def test_the_supervisor_exits_when_nothing_will_be_restarted(self) -> None:
        self.supervise(web("never"), DB)
        self.happen("start")
        self.happen("exits 7")
        self.assertFalse(self.is_done)
        self.happen("exits 0 db")
        self.assertTrue(self.is_done)
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_the_supervisor_does_not_exit_while_one_will_be_restarted(self) -> None:
        self.supervise(web("always"))
        self.walk(("start", "running"), ("exits 0", "backoff"))
        self.assertFalse(self.is_done)


class GroupThatOutlivesItsLeader(MachineTest):
    def test_it_is_stopped_before_the_replacement_starts(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM)])
        self.walk(("wait 1", "stopping"), ("gone", "running"))
        self.assertEqual(self.system.started, ["web", "web"])

    def test_that_nothing_of_it_is_left_is_seen_within_a_second_without_a_signal(self) -> None:
        self.patch("_backoff", lambda exits: 10.0)
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 4", "stopping"))
        self.walk(("gone_elsewhere", "stopping"), ("wait 1", "backoff"))

    def test_it_is_killed_after_five_seconds(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 4.9", "stopping"))
        self.assertNotIn(KILLED, self.system.signals)
        self.walk(("wait 0.2", "stopping"), ("wait 0.9", "stopping"))
        self.assertIn(KILLED, self.system.signals)
        self.assert_said("web has not stopped after 5.1 s; killing it")
        self.walk(("gone", "running"))

    def test_the_backoff_counts_from_the_exit(self) -> None:
        self.patch("_backoff", lambda exits: 3.0)
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 2", "stopping"), ("gone", "backoff"))
        self.walk(("wait 0.8", "backoff"), ("wait 0.2", "running"))

    def test_zombies_that_are_never_reaped_are_not_waited_for_without_end(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 5", "stopping"), ("wait 2.1", "exited"))

    def test_it_is_stopped_also_if_its_leader_is_not_restarted(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("orphans", "stopping"), ("gone", "exited"))
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_a_shutdown_meanwhile_keeps_the_failure(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("term", "stopping"), ("gone", "stopped"))
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_a_restart_meanwhile_starts_as_soon_as_it_is_gone(self) -> None:
        self.patch("_backoff", lambda exits: 30.0)
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("usr1", "stopping"), ("gone", "running"))

    def test_it_is_never_signalled_again_after_it_was_seen_empty(self) -> None:
        """Its ID may belong to another group by then."""
        self.patch("_backoff", lambda exits: 30.0)
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("gone", "backoff"))
        self.system.groups.add(FIRST_PID)
        self.system.signals.clear()
        process = self.daemons["web"].process
        assert process
        self.assertFalse(process.signal_group(signal.SIGKILL))
        self.walk(("term", "stopped"))
        self.assertEqual(self.system.signals, [])


class Backoff(MachineTest):
    def delays(self, exits: int) -> list[float]:
        """How long the machine waits after each of so many exits in a row."""
        self.supervise(web())
        self.happen("start")
        delays = []
        for _ in range(exits):
            self.happen("exits 7")
            delays.append(self.seconds_to_deadline())
            self.happen("deadline")
        return delays

    def test_it_doubles_from_half_a_second_to_thirty(self) -> None:
        with mock.patch("os.urandom", lambda size: b"\0" * size):
            self.assertEqual(self.delays(9), [0.5, 1, 2, 4, 8, 16, 30, 30, 30])

    def test_the_jitter_is_up_to_a_tenth(self) -> None:
        with mock.patch("os.urandom", lambda size: b"\xff" * size):
            for delay, least in zip(self.delays(7), [0.5, 1, 2, 4, 8, 16, 30], strict=True):
                self.assertAlmostEqual(delay, least * 1.1)

    def test_the_jitter_varies(self) -> None:
        delays = {sidecar_init._backoff(1) for _ in range(100)}
        self.assertGreater(len(delays), 10)
        self.assertTrue(all(0.5 <= delay <= 0.55 for delay in delays))

    def test_a_thousand_exits_are_no_overflow(self) -> None:
        self.assertLessEqual(sidecar_init._backoff(100_000), 33)

    def test_the_next_start_is_not_early(self) -> None:
        self.patch("_backoff", lambda exits: 2.0)
        self.supervise(web())
        self.walk(("start", "running"), ("exits 7", "backoff"), ("wait 1.9", "backoff"), ("wait 0.2", "running"))

    def test_a_minute_of_uptime_resets_it(self) -> None:
        with mock.patch("os.urandom", lambda size: b"\0" * size):
            self.delays(4)
            for uptime, delay in (("59.9", 8), ("60", 0.5), ("1", 1)):
                self.happen(f"wait {uptime}")
                self.happen("exits 7")
                self.assertEqual(self.seconds_to_deadline(), delay)
                self.happen("deadline")

    def test_a_restart_that_was_asked_for_resets_it(self) -> None:
        with mock.patch("os.urandom", lambda size: b"\0" * size):
            self.delays(6)
            self.walk(("exits 7", "backoff"), ("usr1", "running"), ("exits 7", "backoff"))
            self.assertEqual(self.seconds_to_deadline(), 0.5)


class CrashLoop(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.patch("_backoff", lambda exits: 1.0)

    def loop(self, exits: int) -> None:
        for _ in range(exits):
            self.happen("exits 7")
            self.happen("deadline")

    def test_five_exits_in_a_row_are_called_crash_looping_once(self) -> None:
        self.supervise(web())
        self.happen("start")
        self.loop(4)
        self.assertNotIn("crash-looping", self.kinds())
        self.assertFalse(self.status()["crash_looping"])
        self.loop(3)
        self.assertTrue(self.status()["crash_looping"])
        self.assertEqual(self.kinds().count("crash-looping"), 1)
        self.assert_said("web is crash-looping: 5 exits, each within 60 s")

    def test_the_status_shows_it_until_a_minute_of_uptime(self) -> None:
        self.supervise(web())
        self.happen("start")
        self.loop(5)
        self.walk(("wait 59.9", "running"))
        self.assertTrue(self.status()["crash_looping"])
        self.supervisor._state.is_stale = False
        self.assertAlmostEqual(self.supervisor._time_to_next_deadline(), 0.1)
        with mock.patch.object(self.supervisor, "_write_status", wraps=self.supervisor._write_status) as write:
            self.walk(("wait 0.1", "running"))
            write.assert_called_once()
        self.assertFalse(self.status()["crash_looping"])
        self.assertEqual(self.supervisor._time_to_next_deadline(), float("inf"))
        self.walk(("exits 7", "backoff"))
        self.assertFalse(self.status()["crash_looping"])

    def test_so_it_does_for_one_that_is_up_but_not_ready(self) -> None:
        self.supervise(web(port=80))
        self.happen("start")
        self.loop(5)
        self.walk(("wait 59.9", "starting"))
        self.assertTrue(self.status()["crash_looping"])
        self.walk(("wait 0.1", "starting"))
        self.assertFalse(self.status()["crash_looping"])

    def test_exits_after_a_minute_each_are_none(self) -> None:
        self.supervise(web())
        self.happen("start")
        for _ in range(10):
            self.walk(("wait 60", "running"), ("exits 7", "backoff"), ("deadline", "running"))
        self.assertNotIn("crash-looping", self.kinds())

    def test_a_restart_that_was_asked_for_ends_it(self) -> None:
        self.supervise(web())
        self.happen("start")
        self.loop(5)
        self.walk(("usr1", "stopping"), ("exits 0", "running"))
        self.assertFalse(self.status()["crash_looping"])

    def test_one_that_its_check_refused_does_not(self) -> None:
        self.supervise(web(check=["check"]))
        self.happen("start")
        for exits in range(1, 6):
            self.walk(("usr1", "checking"), ("checked 1", "running"), ("exits 7", "backoff"))
            self.assertEqual(self.status()["crash_looping"], exits == 5)
            self.happen("deadline")


class StartThatFails(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.supervise(web("never"))

    def test_what_cannot_be_executed_has_failed_and_is_not_tried_again(self) -> None:
        self.on_breaks(errno.ENOENT)
        self.walk(("start", "failed"), ("recovers", "failed"), ("wait 1000", "failed"))
        self.assertEqual(self.kinds(), ["failed"])

    def test_no_processes_left_is_a_backoff(self) -> None:
        self.on_breaks(errno.EAGAIN)
        self.walk(("start", "backoff"), ("deadline", "backoff"), ("recovers", "backoff"), ("deadline", "running"))

    def test_no_memory_for_a_list_of_sockets_is_a_backoff(self) -> None:
        self.on_breaks(errno.ENOBUFS)
        self.walk(("start", "backoff"))

    def test_what_it_says_before_its_exec_was_noticed_is_among_its_last_lines(self) -> None:
        self.on_hangs()
        self.happen("start")
        self.daemons["web"].output.lines.feed(b"fatal: no configuration\n")
        self.walk(("executed", "running"), ("exits 7", "exited"))
        self.assertEqual(self.events.recorded[-1][2]["last_lines"], ["fatal: no configuration"])
        self.walk(("usr1", "running"), ("exits 7", "exited"))
        self.assertEqual(self.events.recorded[-1][2]["last_lines"], [], "those of the last process")

    def test_a_child_that_does_not_become_its_command_has_failed(self) -> None:
        self.on_unexecutable()
        self.walk(("start", "failed"), ("wait 1000", "failed"))
        self.assertEqual(self.kinds(), ["failed"])
        why = "cannot execute web: No such file or directory"
        self.assert_said(f"cannot start web: {why}; it stays down until a restart is requested")
        self.assertEqual(self.status()["reason"], why)
        self.assertEqual(self.supervisor.exit_code(), 127)

    def test_a_child_that_lacks_memory_for_its_command_is_tried_again_later_and_later(self) -> None:
        self.patch("_backoff", lambda exits: 2.0**exits)
        self.on_unexecutable(errno.ENOMEM)
        self.happen("start")
        for seconds in (2.0, 4.0, 8.0):
            self.assertEqual(self.states(), "backoff")
            self.assertEqual(self.seconds_to_deadline(), seconds)
            self.happen("deadline")
        self.walk(("recovers", "backoff"), ("deadline", "running"))
        self.assertEqual(self.kinds(), ["not-started"] * 4 + ["started", "ready"])
        self.assert_said("cannot start web: cannot execute web: Cannot allocate memory; trying again in 4.0 s")

    def test_a_failed_one_starts_when_it_is_asked_for(self) -> None:
        self.on_breaks(errno.ENOENT)
        self.walk(("start", "failed"), ("usr1", "failed"), ("recovers", "failed"), ("usr1", "running"))
        self.assertEqual(self.supervisor.exit_code(), 0)

    def test_a_child_that_is_not_executed_within_ten_seconds_is_killed_and_tried_again(self) -> None:
        self.walk(("hangs", "waiting"), ("start", "starting"), ("wait 9.9", "starting"), ("wait 0.1", "backoff"))
        self.assertEqual(self.system.signals, [KILLED])
        self.assertEqual(self.status()["reason"], "cannot execute web: it took too long")
        self.walk(("killed", "backoff"), ("executed", "backoff"), ("wait 1", "running"))

    def test_a_child_whose_exec_and_exit_are_seen_in_one_turn_has_been_started(self) -> None:
        self.walk(("hangs", "waiting"), ("start", "starting"))
        self.assertFalse(self.status()["ready"])
        self.walk(("exits 7", "exited"))
        self.assertEqual((self.kinds()[0], self.kinds()[-1]), ("started", "exited"))


class Restart(MachineTest):
    def test_the_old_one_is_gone_before_the_new_one_starts(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"))
        self.assertEqual(self.system.started, ["web"])
        self.walk(("exits 0", "running"))
        self.assertEqual(self.system.started, ["web", "web"])
        self.assertEqual(self.kinds(), ["started", "ready", "restarting", "exited", "restarted", "ready"])
        said = ["web exited with status 0 after 0.0 s", f"web restarted (pid {FIRST_PID + 1})"]
        self.assertEqual(self.log.lines[-2:], said)

    def test_one_that_comes_while_the_old_one_stops_is_the_same_restart(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("usr1", "stopping"), ("exits 0", "running"))
        self.assert_said("restarting web")
        self.assertEqual((self.status()["asked"], self.status()["answered"]), (2, 2))
        self.walk(("usr1", "stopping"))

    def test_one_that_comes_before_the_new_one_was_executed_is_the_same_restart(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("hangs", "running"), ("usr1", "stopping"), ("exits 0", "starting"))
        self.walk(("usr1", "starting"), ("executed", "running"))
        self.assertEqual(self.system.started, ["web", "web"])
        self.assertEqual((self.status()["asked"], self.status()["answered"]), (2, 2))
        self.walk(("usr1", "stopping"))

    def test_the_old_one_is_killed_at_its_deadline(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 4.9", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM)])
        self.walk(("wait 0.1", "stopping"), ("killed", "running"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM), KILLED])
        self.assertIn("killed", self.kinds())

    def test_an_old_one_that_outlives_kill_is_waited_for(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 5", "stopping"), ("wait 1000", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM), KILLED])
        self.assertEqual(self.system.started, ["web"])
        self.walk(("killed", "running"))

    def test_one_that_exited_in_time_is_not_killed_if_the_signal_of_it_comes_after_the_deadline(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"))
        self.system.exit("web", 0)
        self.clock.now += 5
        self.supervisor.tick()
        self.assertNotIn("killed", self.kinds())
        self.walk(("turn", "running"))
        self.assertNotIn("killed", self.kinds())

    def test_it_does_not_touch_the_others(self) -> None:
        self.supervise(DB, web())
        self.walk(("start", "starting running"), ("usr1", "starting stopping"), ("exits 0", "starting running"))
        self.assertEqual(self.system.started, ["db", "web", "web"])
        self.assertNotIn("db", [name for name, _ in self.system.signals])

    def test_it_does_nothing_while_shutting_down(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("usr1", "stopping"), ("exits 0", "stopped"))
        self.assert_said("cannot restart web: the supervisor is shutting down")
        self.walk(("usr1", "stopped"), ("wait 1000", "stopped"))

    def test_the_new_one_is_ready_only_when_a_new_socket_listens(self) -> None:
        self.supervise(web(port=80))
        self.walk(("start", "starting"), ("listens", "running"), ("usr1", "stopping"), ("exits 0", "starting"))
        self.assertFalse(self.status()["ready"])
        self.walk(("wait 1", "starting"), ("listens", "running"))
        self.assertEqual(self.kinds()[-2:], ["restarted", "ready"])

    def test_each_row_has_its_signal(self) -> None:
        self.supervise(DB, web(), daemon("other"))
        self.walk(("start", "starting running running"), ("row 2", "starting running stopping"))
        self.walk(("row 0", "stopping running stopping"), ("row 3", "stopping running stopping"))
        self.assertEqual([self.status(name)["signal"] for name in ("db", "web", "other")], [34, 35, 36])

    def test_the_signal_of_a_row_that_is_not_selected_does_nothing(self) -> None:
        self.supervise(web())
        self.patch("_DAEMONS", [DB, web()])
        self.walk(("start", "running"), ("row 0", "running"), ("row 1", "stopping"))
        self.assert_said("cannot restart db: it is not selected")


class CheckOfOneThatStarts(MachineTest):
    def test_it_goes_on_starting_if_the_check_fails(self) -> None:
        self.supervise(web(port=80, check=["check"]))
        self.walk(("start", "starting"), ("usr1", "checking"), ("checked 1", "starting"), ("listens", "running"))


class Check(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.supervise(web(check=["check"]))
        self.walk(("start", "running"), ("usr1", "checking"))

    def assert_refused(self, why: str) -> None:
        self.assertEqual(self.states(), "running")
        self.assertEqual(self.kinds()[-1], "refused")
        self.assertIn(f"cannot restart web: {why}; nothing was changed", self.log.lines)
        status = self.status()
        self.assertEqual((status["asked"], status["refused"]), (status["answered"], True))
        self.assertEqual(status["answer"], f"cannot restart web: {why}")

    def test_the_running_one_is_touched_only_after_it(self) -> None:
        self.assertEqual(self.system.signals, [])
        self.walk(("checked 0", "stopping"), ("exits 0", "running"))
        self.assertEqual(self.system.started, ["web", "check", "web"])

    def test_if_it_fails_the_running_one_stays(self) -> None:
        self.walk(("checked 3", "running"))
        self.assertEqual(self.system.signals, [])
        self.assert_refused("its check exited with status 3")

    def test_if_it_hangs_it_is_killed_after_ten_seconds(self) -> None:
        self.walk(("wait 9.9", "checking"), ("wait 0.2", "running"))
        self.assertEqual(self.system.signals, [("check", signal.SIGKILL)])
        self.assert_refused("its check took longer than 10 s")
        self.walk(("checked 0", "running"))  # its late exit means nothing

    def test_if_it_cannot_be_forked_the_running_one_stays(self) -> None:
        self.walk(("checked 1", "running"), ("breaks", "running"), ("usr1", "running"))
        self.assert_refused("cannot execute web: No such file or directory")

    def test_if_its_child_does_not_become_it_the_running_one_stays(self) -> None:
        self.walk(("checked 1", "running"), ("unexecutable", "running"), ("usr1", "running"))
        self.assert_refused("cannot execute check: No such file or directory")

    def test_asked_again_it_runs_again(self) -> None:
        self.walk(("usr1", "checking"), ("usr1", "checking"), ("checked 1", "checking"), ("checked 0", "stopping"))
        self.assertEqual(self.system.started.count("check"), 2)

    def test_if_the_old_one_exits_meanwhile_the_new_one_starts_at_once(self) -> None:
        self.walk(("exits 7", "running"))
        self.assertIn(("check", signal.SIGKILL), self.system.signals)
        self.walk(("checked 1", "running"))

    def test_a_shutdown_meanwhile_stops_both(self) -> None:
        self.walk(("term", "stopping"))
        self.assertEqual(self.system.signals, [("check", signal.SIGKILL), ("web", signal.SIGTERM)])
        self.walk(("exits 0", "stopped"))

    def test_one_that_fails_meanwhile_and_is_not_restarted_has_failed(self) -> None:
        self.walk(("orphans", "stopping"), ("term", "stopping"), ("gone", "stopped"))
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_so_has_one_whose_failure_is_seen_only_after_the_check_has_passed(self) -> None:
        self.system.exit("check", 0)
        self.system.exit("web", 7 << 8, leaving_group=True)
        self.walk(("turn", "stopping"), ("term", "stopping"), ("gone", "stopped"))
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_the_grace_begins_when_it_has_passed(self) -> None:
        self.walk(("wait 9", "checking"), ("checked 0", "stopping"), ("wait 4.9", "stopping"))
        self.assertNotIn(KILLED, self.system.signals)
        self.walk(("wait 0.1", "stopping"))
        self.assertIn(KILLED, self.system.signals)

    def test_it_writes_to_a_pipe_of_its_own(self) -> None:
        self.assertIsNot(self.system.outputs["check"], self.system.outputs["web"])


class Forward(MachineTest):
    def test_it_goes_to_the_process_itself_and_not_to_its_group(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("hup", "running"))
        self.assertEqual(self.system.signals, [("only web", signal.SIGHUP)])
        self.assert_said("SIGHUP delivered to web")

    def test_it_is_dropped_if_there_is_none_or_the_supervisor_shuts_down(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("hup", "starting waiting"), ("term", "stopping stopped"))
        self.happen("hup")
        self.assert_said(
            "SIGHUP for web dropped: it is not running", "SIGHUP for web dropped: the supervisor is shutting down"
        )

    def test_one_that_has_exited_unseen_is_not_running(self) -> None:
        self.supervise(web())
        self.happen("start")
        self.system.exit("web", 0)
        self.assertFalse(self.supervisor.forward_signal(signal.SIGHUP, "web"))
        self.assertEqual(self.system.signals, [])


class Readiness(MachineTest):
    def test_without_a_port_it_is_ready_once_started(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"))
        self.assertEqual(self.kinds(), ["started", "ready"])

    def test_with_a_port_it_is_ready_when_a_socket_listens_there(self) -> None:
        self.supervise(web(port=80))
        self.walk(("start", "starting"), ("wait 0.05", "starting"), ("wait 0.15", "starting"), ("listens", "running"))
        self.assert_said("web ready after 0.26 s")

    def test_a_socket_that_was_there_before_it_started_is_another_process(self) -> None:
        self.supervise(web(port=80))
        self.system.listen(80)
        self.walk(("start", "starting"), ("wait 1", "starting"), ("wait 1", "starting"))
        self.assert_said("web is not ready: another process holds port 80")
        self.assertEqual(self.status()["reason"], "is not ready: another process holds port 80")
        self.walk(("listens", "running"))
        self.assertIsNone(self.status()["reason"])

    def test_the_port_is_looked_at_every_50_ms_and_only_while_it_starts(self) -> None:
        self.supervise(web(port=80))
        self.happen("start")
        self.assertEqual(self.supervisor._time_to_next_deadline(), sidecar_init._POLL_INTERVAL)
        self.happen("listens")
        self.assertEqual(self.supervisor._time_to_next_deadline(), float("inf"))

    def test_all_that_start_look_in_the_same_turn_and_share_one_query(self) -> None:
        self.supervise(web(port=80), DB)
        self.walk(("start", "starting starting"), ("usr1", "stopping starting"), ("wait 0.03", "stopping starting"))
        self.walk(("exits 0", "starting starting"))
        self.assertEqual(self.daemons["web"].deadline, self.daemons["db"].deadline)

    def test_looking_at_a_port_is_no_visible_change(self) -> None:
        self.supervise(web(port=80))
        self.happen("start")
        with mock.patch.object(self.supervisor, "_write_status") as write:
            self.walk(("wait 1", "starting"), ("wait 1", "starting"))
            write.assert_not_called()

    def test_if_the_kernels_tables_cannot_be_read_that_is_said_once(self) -> None:
        self.supervise(web(port=80))
        self.happen("start")
        with mock.patch.object(self.launcher.ports, "sockets", side_effect=OSError(errno.EIO, "Input/output error")):
            self.walk(("wait 1", "starting"), ("wait 1", "starting"))
        self.assert_said("web is not ready: listening sockets cannot be read: Input/output error")


class Shutdown(MachineTest):
    def test_term_goes_to_all_at_once_and_kill_to_what_is_left(self) -> None:
        self.supervise(web(), DB, daemon("other"))
        self.walk(("start", "running starting running"), ("term", "stopping stopping stopping"))
        self.assertEqual(self.system.signals, [(name, signal.SIGTERM) for name in ("web", "db", "other")])
        self.walk(("exits 0", "stopped stopping stopping"), ("wait 7.9", "stopped stopping stopping"))
        self.assertEqual(len(self.system.signals), 3)
        self.happen("wait 0.1")
        self.assertEqual(self.system.signals[3:], [("db", signal.SIGKILL), ("other", signal.SIGKILL)])
        self.assert_said(*(f"{name} has not stopped after 8.0 s; killing it" for name in ("db", "other")))
        self.walk(("killed db", "stopped stopped stopping"), ("killed other", "stopped stopped stopped"))
        self.assertTrue(self.is_done)
        self.assertEqual(self.supervisor.exit_code(), 137)

    def test_a_second_request_moves_no_deadline(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("wait 5", "stopping"), ("term", "stopping"))
        self.assertEqual(self.supervisor.shutdown_at, 1000)
        self.happen("wait 3")
        self.assertIn(KILLED, self.system.signals)

    def test_an_int_during_it_kills_at_once(self) -> None:
        for first in ("term", "int"):
            with self.subTest(first):
                self.supervise(web(), DB)
                self.walk(("start", "running starting"), (first, "stopping stopping"), ("wait 1", "stopping stopping"))
                self.assertNotIn(KILLED, self.system.signals)
                self.walk(("int", "stopping stopping"))
                self.assertEqual(self.system.signals[-2:], [KILLED, ("db", signal.SIGKILL)])
                self.walk(("killed", "stopped stopping"), ("killed db", "stopped stopped"))
                self.assertTrue(self.is_done)
                self.doCleanups()
                self.setUp()

    def test_a_term_during_it_does_not(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("int", "stopping"), ("term", "stopping"), ("wait 7.9", "stopping"))
        self.assertNotIn(KILLED, self.system.signals)

    def test_the_grace_is_read_at_every_turn(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("wait 1", "stopping"))
        self.assertNotIn(KILLED, self.system.signals)
        self.patch("_GRACE_SECONDS", 0.3)
        self.happen("turn")
        self.assertIn(KILLED, self.system.signals)

    def test_it_is_one_deadline_also_for_one_that_was_being_restarted(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 3", "stopping"), ("term", "stopping"))
        self.happen("wait 7.9")
        self.assertNotIn(KILLED, self.system.signals)
        self.happen("wait 0.1")
        self.assertIn(KILLED, self.system.signals)

    def test_one_that_outlives_kill_is_given_up_after_two_seconds(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("wait 8", "stopping"), ("wait 1.9", "stopping"))
        self.walk(("wait 0.1", "stopped"))
        self.assertEqual(self.supervisor.exit_code(), 137)

    def test_one_that_a_restart_has_killed_in_vain_is_given_up_too(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 5", "stopping"), ("term", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM), KILLED])
        self.walk(("wait 1.9", "stopping"), ("wait 8.1", "stopped"))
        self.assertTrue(self.is_done)

    def test_a_group_whose_end_no_signal_tells_is_looked_at(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("term", "stopping"))
        self.walk(("gone_elsewhere", "stopped"))

    def test_what_exited_before_the_request_has_failed_on_its_own(self) -> None:
        self.supervise(web(), daemon("other"))
        self.happen("start")
        self.system.exit("web", 1 << 8)
        self.supervisor.request_shutdown("test")
        self.walk(("killed other", "stopped stopped"))
        self.assertEqual(self.supervisor.exit_code(), 1)

    def test_a_child_that_was_not_executed_yet_is_stopped_too(self) -> None:
        self.supervise(web())
        self.walk(("hangs", "waiting"), ("start", "starting"), ("term", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM)])
        self.walk(("killed", "stopped"))


if __name__ == "__main__":
    unittest.main()
