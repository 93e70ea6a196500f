"""The state machine of a daemon: every state with every event, and histories of (event, states after it).

The clock is injected, and the few calls to the system are stand-ins: start, signal a group, look at a port, reap.
"""

from __future__ import annotations

import errno
import os
import signal
import unittest
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import sidecar_init
from sidecar_init import _CannotStart, _DaemonSpec, _Inbox, _Log, _Process, _State, _Supervisor
from tests.unit.support import NO_SECRETS, Clock, UnitTest

FIRST_PID = 10_000_000  # no real process has such a number


class Events(_State):
    """Keeps what is recorded instead of writing it."""

    def __init__(self) -> None:
        super().__init__("", NO_SECRETS, lambda text: None)
        self.recorded: list[tuple[str, str | None, dict[str, object]]] = []

    def record(self, event: str, daemon: str | None, pid: int | None, **more: object) -> None:
        self.recorded.append((event, daemon, more))


class Said(_Log):
    def __init__(self, fd: int) -> None:
        super().__init__(fd, NO_SECRETS)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class System:
    """The kernel as far as the state machine sees it: groups of processes, ports, deaths to be reaped."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.groups: dict[int, str] = {}  # leader or what is left: the command
        self.signals: list[tuple[str, int]] = []
        self.deaths: list[tuple[int, int]] = []
        self.ports: set[int] = set()
        self.refusal: _CannotStart | None = None  # nothing can be forked
        self.confession: _CannotStart | None = None  # what is forked cannot be executed

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int, account: object) -> int:
        if self.refusal:
            raise self.refusal
        pid = FIRST_PID + len(self.started)
        self.started.append(argv[0])
        self.groups[pid] = argv[0]
        return pid

    def await_exec(self, pid: int) -> None:
        if self.confession:
            self.end(self.groups[pid], 127 << 8)
            raise self.confession

    def signal_group(self, pgid: int, number: int) -> bool:
        if pgid in self.groups and number not in (0, signal.SIGCONT):
            self.signals.append((self.groups[pgid], number))
        return pgid in self.groups

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        if not self.deaths:
            raise ChildProcessError
        return self.deaths.pop(0)

    def end(self, command: str, status: int, *, leaving_group: bool = False) -> None:
        """The newest process of this command dies."""
        pid = max(pid for pid, name in self.groups.items() if name == command)
        self.deaths.append((pid, status))
        if not leaving_group:
            del self.groups[pid]


class MachineTest(UnitTest):
    def new_system(self) -> System:
        return System()

    def setUp(self) -> None:
        self.use_environment()
        self.clock, self.system, self.events = Clock(), self.new_system(), Events()
        self.patch("_Nursery", lambda: self.system)
        self.patch("_is_listening", self.system.ports.__contains__)
        for patch in (
            mock.patch("os.waitpid", self.system.waitpid),
            mock.patch.object(_Process, "signal_group", lambda of, number: self.system.signal_group(of.pid, number)),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def supervise(self, *specs: _DaemonSpec, may_restart: bool = True) -> None:
        if not may_restart:
            self.use_environment(BOT_BOTTLE_SIDECAR_RESTART="never")
        null = os.open("/dev/null", os.O_WRONLY)
        self.close_later(null)
        self.log, self.inbox = Said(null), _Inbox()
        self.close_later(self.inbox.fd, self.inbox._wake)
        self.supervisor = _Supervisor(specs, clock=self.clock, log=self.log, state=self.events, inbox=self.inbox)
        self.daemons = {daemon.spec.name: daemon for daemon in self.supervisor._daemons}
        self.addCleanup(self.close_pipes)
        self.patch("_SIGNALS", {"USR1": ("restart", "web"), "HUP": ("forward", "web")})

    def close_pipes(self) -> None:
        for daemon in self.supervisor._daemons:
            for fd in daemon._output or ():
                os.close(fd)

    def states(self) -> str:
        return " ".join(daemon.state for daemon in self.supervisor._daemons)

    def kinds(self, name: str = "web") -> list[str]:
        return [event for event, daemon, _ in self.events.recorded if daemon == name]

    def happen(self, event: str) -> str:
        """Let something happen, and the loop turn once; the states after it."""
        verb, _, rest = event.partition(" ")
        getattr(self, "on_" + verb)(*rest.split())
        if self.system.deaths:
            self.signal(signal.SIGCHLD)
        self.supervisor.tick()
        return self.states()

    def walk(self, *history: tuple[str, str]) -> None:
        for number, (event, expected) in enumerate(history):
            self.assertEqual(self.happen(event), expected, f"after {number}: {event}")

    def signal(self, number: int) -> None:
        """What the handlers do, of the kernel's and of Python's half."""
        self.inbox._record(number, None)
        os.write(self.inbox._wake, b"!")

    # the events

    def on_start(self) -> None:
        self.supervisor.start_all()

    def on_turn(self) -> None:
        """Nothing but one more turn of the loop."""

    def on_wait(self, seconds: str) -> None:
        self.clock.now += float(seconds)

    def on_deadline(self, name: str = "web") -> None:
        """The clock reaches the deadline; where there is none, a long time passes."""
        deadline = self.daemons[name].deadline
        self.clock.now = max(self.clock.now, deadline) if deadline < float("inf") else self.clock.now + 1000

    def on_usr1(self) -> None:
        self.signal(signal.SIGUSR1)

    def on_term(self) -> None:
        self.signal(signal.SIGTERM)

    def on_listens(self, port: str = "80") -> None:
        self.system.ports.add(int(port))
        self.clock.now += sidecar_init._POLL_INTERVAL

    def on_dies(self, code: str = "7", name: str = "web") -> None:
        self.system.end(name, int(code) << 8)

    def on_killed(self, name: str = "web") -> None:
        self.system.end(name, signal.SIGKILL)

    def on_orphans(self) -> None:
        """The leader dies, and somebody of its group lives on."""
        self.system.end("web", 7 << 8, leaving_group=True)

    def on_gone(self) -> None:
        """What was left of the groups ends."""
        self.system.groups.clear()
        self.clock.now += sidecar_init._POLL_INTERVAL

    def on_checked(self, code: str) -> None:
        self.system.end("check", int(code) << 8)

    def on_breaks(self, number: int = errno.ENOENT) -> None:
        """From now on nothing can be started."""
        self.system.refusal = _CannotStart("execute web", number)

    def on_mends(self) -> None:
        self.system.refusal = self.system.confession = None

    def on_confesses(self, number: int = errno.ENOENT) -> None:
        """From now on no child becomes its command."""
        self.system.confession = _CannotStart("execute web", number)


DB = _DaemonSpec("db", ["db"], port=5432)


def web(restart: str = "always", **fields: Any) -> _DaemonSpec:
    return _DaemonSpec("web", ["web"], restart, **fields)


class EveryStateWithEveryEvent(MachineTest):
    """`-`: cannot happen there."""

    TABLE = """
    state    | usr1     | dies 7   | orphans  | deadline | listens  | checked 0 | checked 1 | term
    waiting  | starting | -        | -        | starting | waiting  | -         | -         | stopped
    starting | checking | backoff  | stopping | starting | running  | -         | -         | stopping
    running  | checking | backoff  | stopping | running  | running  | -         | -         | stopping
    checking | checking | starting | stopping | running  | checking | stopping  | running   | stopping
    stopping | stopping | starting | stopping | stopping | stopping | -         | -         | stopping
    backoff  | starting | -        | -        | starting | backoff  | -         | -         | stopped
    exited   | starting | -        | -        | exited   | exited   | -         | -         | exited
    failed   | starting | -        | -        | failed   | failed   | -         | -         | failed
    stopped  | stopped  | -        | -        | stopped  | stopped  | -         | -         | stopped
    """

    WAYS: Mapping[str, list[str]] = {
        "waiting": ["start"],
        "starting": ["start", "listens 5432"],
        "running": ["start", "listens 5432", "turn", "listens"],
        "checking": ["start", "listens 5432", "turn", "listens", "usr1"],
        "stopping": ["start", "listens 5432", "turn", "listens", "usr1", "checked 0"],
        "backoff": ["start", "listens 5432", "turn", "dies 7"],
        "exited": ["start", "listens 5432", "turn", "dies 0"],
        "failed": ["start", "breaks", "listens 5432", "turn", "mends"],
        "stopped": ["start", "term"],
    }

    def test_each_leads_where_the_table_says(self) -> None:
        header, *rows = [[cell.strip() for cell in line.split("|")] for line in self.TABLE.strip().splitlines()]
        self.assertEqual({row[0] for row in rows}, set(self.WAYS))
        for state, *expected in rows:
            for event, after in zip(header[1:], expected, strict=True):
                if after != "-":
                    with self.subTest(f"{event} in {state}"):
                        self.doCleanups()
                        self.setUp()
                        self.supervise(DB, web("on-failure", port=80, after=["db"], check=["check"]))
                        for step in self.WAYS[state]:
                            self.happen(step)
                        self.assertEqual(self.daemons["web"].state, state)
                        self.happen(event)
                        self.happen("turn")
                        self.assertEqual(self.daemons["web"].state, after)


class Death(MachineTest):
    def test_always_brings_back_whatever_the_code(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("dies 0", "backoff"), ("deadline", "running"), ("dies 7", "backoff"))

    def test_on_failure_brings_back_what_failed_alone(self) -> None:
        self.supervise(web("on-failure"))
        self.walk(("start", "running"), ("dies 7", "backoff"), ("deadline", "running"), ("dies 0", "exited"))

    def test_never_brings_nothing_back(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("dies 7", "exited"), ("wait 1000", "exited"))

    def test_the_environment_can_forbid_all_restarts(self) -> None:
        self.supervise(web("always"), DB, may_restart=False)
        self.walk(("start", "running starting"), ("dies 7", "exited starting"), ("wait 1000", "exited starting"))

    def test_what_the_environment_forbids_can_still_be_asked_for(self) -> None:
        self.supervise(web("always"), may_restart=False)
        self.walk(("start", "running"), ("dies 7", "exited"), ("usr1", "running"))

    def test_a_death_is_told_with_all_that_is_known(self) -> None:
        self.supervise(web())
        self.patch("_backoff", lambda deaths: 0.5)
        self.walk(("start", "running"), ("wait 61.5", "running"), ("dies 7", "backoff"))
        self.assertIn("web exited with code 7; up 61.5 s; restart 1 in 0.5 s", self.log.lines)
        [exited] = [more for event, _, more in self.events.recorded if event == "exited"]
        self.assertEqual((exited["code"], exited["signal"], exited["uptime"]), (7, None, 61.5))
        self.assertEqual((exited["restarts"], exited["next_start_in"], exited["last_lines"]), (0, 0.5, []))

    def test_a_signal_is_told_by_name(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("killed", "exited"))
        self.assertIn("web exited on SIGKILL; up 0.0 s", self.log.lines)

    def test_the_supervisor_ends_when_nothing_will_come_back(self) -> None:
        self.supervise(web("never"), DB)
        self.happen("start")
        self.happen("dies 7")
        self.assertFalse(self.supervisor.tick())
        self.happen("dies 0 db")
        self.assertTrue(self.supervisor.tick())
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_the_supervisor_does_not_end_while_one_will_come_back(self) -> None:
        self.supervise(web("always"))
        self.walk(("start", "running"), ("dies 0", "backoff"))
        self.assertFalse(self.supervisor.tick())


class GroupThatOutlivesItsLeader(MachineTest):
    def test_it_is_stopped_before_the_replacement_starts(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM)])
        self.walk(("wait 1", "stopping"), ("gone", "backoff"), ("wait 1", "running"))

    def test_it_is_killed_after_five_seconds(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 4.9", "stopping"))
        self.assertNotIn(("web", signal.SIGKILL), self.system.signals)
        self.walk(("wait 0.2", "stopping"))
        self.assertIn(("web", signal.SIGKILL), self.system.signals)
        self.assertIn("grace (5s) elapsed; SIGKILL on web", self.log.lines)
        self.walk(("gone", "backoff"), ("turn", "running"))

    def test_the_backoff_counts_from_the_death(self) -> None:
        self.patch("_backoff", lambda deaths: 3.0)
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 2", "stopping"), ("gone", "backoff"))
        self.walk(("wait 0.8", "backoff"), ("wait 0.2", "running"))

    def test_dead_ones_that_nobody_buries_are_not_waited_for_for_ever(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("orphans", "stopping"), ("wait 5", "stopping"), ("wait 2.1", "exited"))

    def test_one_that_does_not_come_back_is_stopped_too(self) -> None:
        self.supervise(web("never"))
        self.walk(("start", "running"), ("orphans", "stopping"), ("gone", "exited"))
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_a_shutdown_meanwhile_keeps_the_failure(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("term", "stopping"), ("gone", "stopped"))
        self.assertEqual(self.supervisor.exit_code(), 7)

    def test_a_restart_meanwhile_starts_as_soon_as_it_is_gone(self) -> None:
        self.patch("_backoff", lambda deaths: 30.0)
        self.supervise(web())
        self.walk(("start", "running"), ("orphans", "stopping"), ("usr1", "stopping"), ("gone", "running"))


class Backoff(MachineTest):
    def delays(self, deaths: int) -> list[float]:
        """How long the machine waits after each of so many deaths in a row."""
        self.supervise(web())
        self.happen("start")
        delays = []
        for _ in range(deaths):
            self.happen("dies 7")
            delays.append(self.daemons["web"].deadline - self.clock.now)
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

    def test_a_thousand_deaths_are_no_overflow(self) -> None:
        self.assertLessEqual(sidecar_init._backoff(100_000), 33)

    def test_the_next_start_is_not_early(self) -> None:
        self.patch("_backoff", lambda deaths: 2.0)
        self.supervise(web())
        self.walk(("start", "running"), ("dies 7", "backoff"), ("wait 1.9", "backoff"), ("wait 0.2", "running"))

    def test_a_minute_of_life_starts_the_count_over(self) -> None:
        with mock.patch("os.urandom", lambda size: b"\0" * size):
            self.delays(4)
            for life, delay in (("59.9", 8), ("60", 0.5), ("1", 1)):
                self.happen(f"wait {life}")
                self.happen("dies 7")
                self.assertEqual(self.daemons["web"].deadline - self.clock.now, delay)
                self.happen("deadline")

    def test_five_deaths_in_a_row_are_called_crash_looping_once(self) -> None:
        self.delays(4)
        self.assertNotIn("crash-looping", self.kinds())
        for _ in range(3):
            self.walk(("dies 7", "backoff"))
            self.assertIn('"crash_looping": true', self.daemons["web"].describe())
            self.walk(("deadline", "running"))
            self.assertIn('"crash_looping": false', self.daemons["web"].describe())
        self.assertEqual(self.kinds().count("crash-looping"), 1)
        self.assertEqual(sum("crash-looping" in line for line in self.log.lines), 1)

    def test_crash_looping_ends_with_a_minute_of_life(self) -> None:
        self.delays(6)
        self.walk(("wait 60", "running"), ("dies 7", "backoff"))
        self.assertIn('"crash_looping": false', self.daemons["web"].describe())

    def test_a_restart_that_was_asked_for_starts_the_count_over(self) -> None:
        with mock.patch("os.urandom", lambda size: b"\0" * size):
            self.delays(6)
            self.walk(("dies 7", "backoff"), ("usr1", "running"), ("dies 7", "backoff"))
            self.assertEqual(self.daemons["web"].deadline - self.clock.now, 0.5)


class StartThatFails(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.supervise(web("never"))

    def test_what_cannot_be_executed_has_failed_and_is_not_tried_again(self) -> None:
        self.on_breaks(errno.ENOENT)
        self.walk(("start", "failed"), ("mends", "failed"), ("wait 1000", "failed"))
        self.assertEqual(self.kinds(), ["failed"])

    def test_no_processes_left_is_a_backoff(self) -> None:
        self.on_breaks(errno.EAGAIN)
        self.walk(("start", "backoff"), ("deadline", "backoff"), ("mends", "backoff"), ("deadline", "running"))

    def test_a_child_that_does_not_become_its_command_has_failed(self) -> None:
        self.on_confesses()
        self.walk(("start", "failed"), ("wait 1000", "failed"))
        self.assertEqual(self.kinds(), ["failed"])
        self.assertIn("cannot start web: cannot execute web: No such file or directory; ", self.log.lines[-1])

    def test_a_child_that_lacks_memory_for_its_command_is_tried_again_later_and_later(self) -> None:
        self.patch("_backoff", lambda deaths: 2.0**deaths)
        self.on_confesses(errno.ENOMEM)
        self.happen("start")
        for seconds in (2.0, 4.0, 8.0):
            self.assertEqual(self.states(), "backoff")
            self.assertEqual(self.daemons["web"].deadline - self.clock.now, seconds)
            self.happen("deadline")
        self.walk(("mends", "backoff"), ("deadline", "running"))
        self.assertEqual(self.kinds(), ["started", "ready"])

    def test_a_failed_one_starts_when_it_is_asked_for(self) -> None:
        self.on_breaks(errno.ENOENT)
        self.walk(("start", "failed"), ("usr1", "failed"), ("mends", "failed"), ("usr1", "running"))
        self.assertEqual(self.supervisor.exit_code(), 0)


class Restart(MachineTest):
    def test_the_old_one_is_gone_before_the_new_one_starts(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"))
        self.assertEqual(self.system.started, ["web"])
        self.walk(("dies 0", "running"))
        self.assertEqual(self.system.started, ["web", "web"])
        self.assertEqual(self.kinds(), ["started", "ready", "restarting", "exited", "restarted", "ready"])
        said = ["web exited with code 0; up 0.0 s", f"web restarted (pid {FIRST_PID + 1})"]
        self.assertEqual(self.log.lines[-2:], said)

    def test_one_that_comes_while_the_old_one_stops_is_the_same_restart(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("usr1", "stopping"), ("dies 0", "running"))
        self.walk(("turn", "running"))
        self.assertEqual(self.log.lines.count("restarting web"), 1)
        self.walk(("usr1", "stopping"))

    def test_the_old_one_is_killed_at_its_deadline(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 4.9", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM)])
        self.walk(("wait 0.1", "stopping"), ("killed", "running"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM), ("web", signal.SIGKILL)])
        self.assertIn("killed", self.kinds())

    def test_an_old_one_that_outlives_kill_is_waited_for(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 5", "stopping"), ("wait 1000", "stopping"))
        self.assertEqual(self.system.signals, [("web", signal.SIGTERM), ("web", signal.SIGKILL)])
        self.assertEqual(self.system.started, ["web"])
        self.walk(("killed", "running"))

    def test_one_that_ended_in_time_is_not_killed_where_the_signal_of_it_comes_after_the_deadline(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"))
        self.system.end("web", 0)
        self.clock.now += 5
        self.supervisor.tick()
        self.assertEqual((self.states(), "killed" in self.kinds()), ("running", False))

    def test_it_does_not_touch_the_others(self) -> None:
        self.supervise(DB, web())
        self.walk(("start", "starting running"), ("usr1", "starting stopping"), ("dies 0", "starting running"))
        self.assertEqual(self.system.started, ["db", "web", "web"])
        self.assertNotIn("db", [name for name, _ in self.system.signals])

    def test_it_does_nothing_while_shutting_down(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("usr1", "stopping"), ("dies 0", "stopped"))
        self.assertIn("restart web skipped; supervisor is shutting down", self.log.lines)
        self.walk(("usr1", "stopped"), ("wait 1000", "stopped"))

    def test_readiness_after_it_is_told_anew(self) -> None:
        self.supervise(web(port=80))
        self.walk(("start", "starting"), ("listens", "running"), ("usr1", "stopping"), ("dies 0", "starting"))
        self.assertFalse(self.daemons["web"].ready)
        self.walk(("wait 0.05", "running"))
        self.assertEqual(self.kinds()[-2:], ["restarted", "ready"])


class CheckOfOneThatStarts(MachineTest):
    def test_it_goes_on_starting_where_the_check_fails(self) -> None:
        self.supervise(web(port=80, check=["check"]))
        self.walk(("start", "starting"), ("usr1", "checking"), ("checked 1", "starting"), ("listens", "running"))


class Check(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.supervise(web(check=["check"]))
        self.walk(("start", "running"), ("usr1", "checking"))

    def test_the_running_one_is_touched_only_after_it(self) -> None:
        self.assertEqual(self.system.signals, [])
        self.walk(("checked 0", "stopping"), ("dies 0", "running"))
        self.assertEqual(self.system.started, ["web", "check", "web"])

    def test_where_it_fails_the_running_one_stays(self) -> None:
        self.walk(("checked 3", "running"))
        self.assertEqual(self.system.signals, [])
        self.assertIn("cannot restart web: its check exited with code 3; the running one stays", self.log.lines)
        self.assertEqual(self.kinds()[-1], "check-failed")

    def test_where_it_hangs_it_is_killed_after_ten_seconds(self) -> None:
        self.walk(("wait 9.9", "checking"), ("wait 0.2", "running"))
        self.assertEqual(self.system.signals, [("check", signal.SIGKILL)])
        self.assertEqual(self.kinds()[-1], "check-failed")
        self.walk(("checked 0", "running"))  # its late end means nothing

    def test_where_it_cannot_be_executed_the_running_one_stays(self) -> None:
        self.walk(("checked 1", "running"), ("breaks", "running"), ("usr1", "running"))
        self.assertEqual(self.kinds()[-1], "check-failed")

    def test_where_its_child_does_not_become_it_the_running_one_stays(self) -> None:
        self.walk(("checked 1", "running"), ("confesses", "running"), ("usr1", "running"), ("turn", "running"))
        self.assertEqual(self.kinds()[-1], "check-failed")
        self.assertIn(
            "cannot restart web: cannot execute web: No such file or directory; the running one stays", self.log.lines
        )

    def test_asked_again_it_runs_again(self) -> None:
        self.walk(("usr1", "checking"), ("usr1", "checking"), ("checked 1", "checking"), ("checked 0", "stopping"))
        self.assertEqual(self.system.started.count("check"), 2)

    def test_when_the_old_one_dies_meanwhile_the_new_one_starts_at_once(self) -> None:
        self.walk(("dies 7", "running"))
        self.assertIn(("check", signal.SIGKILL), self.system.signals)
        self.walk(("checked 1", "running"))

    def test_a_shutdown_meanwhile_ends_both(self) -> None:
        self.walk(("term", "stopping"))
        self.assertEqual(self.system.signals, [("check", signal.SIGKILL), ("web", signal.SIGTERM)])
        self.walk(("dies 0", "stopped"))


class Order(MachineTest):
    def test_it_waits_until_those_before_it_are_ready(self) -> None:
        self.supervise(web(after=["db"]), DB)
        self.walk(("start", "waiting starting"), ("wait 5", "waiting starting"), ("listens 5432", "waiting running"))
        self.walk(("turn", "running running"))
        self.assertEqual(self.system.started, ["db", "web"])

    def test_it_waits_ten_seconds_at_most(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("wait 9.9", "starting waiting"), ("wait 0.1", "starting running"))
        self.assertIn("web does not wait any longer for db", self.log.lines)

    def test_it_does_not_wait_for_what_is_not_selected(self) -> None:
        self.supervise(web(after=["db"]))
        self.walk(("start", "running"))

    def test_it_waits_for_all(self) -> None:
        self.supervise(DB, _DaemonSpec("cache", ["cache"], port=6379), web(after=["db", "cache"]))
        self.walk(("start", "starting starting waiting"), ("listens 5432", "running starting waiting"))
        self.walk(("turn", "running starting waiting"), ("listens 6379", "running running running"))

    def test_one_that_was_ready_and_has_ended_is_not_waited_for(self) -> None:
        self.supervise(DB, _DaemonSpec("cache", ["cache"], port=6379), web(after=["db", "cache"]))
        self.walk(("start", "starting starting waiting"), ("listens 5432", "running starting waiting"))
        self.walk(("dies 0 db", "exited starting waiting"), ("listens 6379", "exited running running"))

    def test_a_restart_does_not_wait_again(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.happen("start")
        self.walk(("listens 5432", "running running"), ("dies 1 db", "exited running"), ("usr1", "exited stopping"))
        self.walk(("dies 0", "exited running"))

    def test_a_shutdown_meanwhile_starts_nothing(self) -> None:
        self.supervise(DB, web(after=["db"]))
        self.walk(("start", "starting waiting"), ("term", "stopping stopped"), ("dies 0 db", "stopped stopped"))
        self.assertEqual(self.system.started, ["db"])


class Readiness(MachineTest):
    def test_without_a_port_it_is_ready_once_started(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"))
        self.assertEqual(self.kinds(), ["started", "ready"])

    def test_with_a_port_it_is_ready_when_that_is_listened_on(self) -> None:
        self.supervise(web(port=80))
        self.walk(("start", "starting"), ("wait 0.05", "starting"), ("wait 0.15", "starting"), ("listens", "running"))
        self.assertIn("web ready after 0.25 s", self.log.lines)

    def test_the_port_is_looked_at_every_50_ms_and_only_while_it_starts(self) -> None:
        self.supervise(web(port=80))
        self.happen("start")
        self.assertAlmostEqual(self.supervisor._time_to_next_deadline(), 0.05)
        self.happen("listens")
        self.happen("turn")
        self.assertEqual(self.supervisor._time_to_next_deadline(), float("inf"))

    def test_where_the_kernels_tables_cannot_be_read_that_is_said_once(self) -> None:
        self.patch("_is_listening", mock.Mock(side_effect=FileNotFoundError(2, "No such file", "/proc/net/tcp")))
        self.supervise(web(port=80))
        self.walk(("start", "starting"), ("wait 1", "starting"), ("wait 1", "starting"))
        self.assertEqual(self.log.lines.count("cannot tell who is ready: /proc/net/tcp: No such file"), 1)


class Shutdown(MachineTest):
    def test_term_goes_to_all_at_once_and_kill_to_what_is_left(self) -> None:
        self.supervise(web(), DB, _DaemonSpec("other", ["other"]))
        self.walk(("start", "running starting running"), ("term", "stopping stopping stopping"))
        self.assertEqual(self.system.signals, [(name, signal.SIGTERM) for name in ("web", "db", "other")])
        self.walk(("dies 0", "stopped stopping stopping"), ("wait 7.9", "stopped stopping stopping"))
        self.assertEqual(len(self.system.signals), 3)
        self.happen("wait 0.1")
        self.assertEqual(self.system.signals[3:], [("db", signal.SIGKILL), ("other", signal.SIGKILL)])
        self.assertIn("grace (8s) elapsed; SIGKILL on db, other", self.log.lines)
        self.walk(("killed db", "stopped stopped stopping"), ("killed other", "stopped stopped stopped"))
        self.assertTrue(self.supervisor.tick())
        self.assertEqual(self.supervisor.exit_code(), 137)

    def test_a_second_request_moves_no_deadline(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("wait 5", "stopping"), ("term", "stopping"))
        self.assertEqual(self.supervisor.shutdown_at, 1000)
        self.happen("wait 3")
        self.assertIn(("web", signal.SIGKILL), self.system.signals)

    def test_the_grace_is_read_when_it_is_needed(self) -> None:
        self.patch("_GRACE_SECONDS", 1.0)
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("wait 1", "stopping"))
        self.assertIn("grace (1s) elapsed; SIGKILL on web", self.log.lines)

    def test_it_is_one_deadline_also_for_one_that_was_being_restarted(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("usr1", "stopping"), ("wait 3", "stopping"), ("term", "stopping"))
        self.happen("wait 7.9")
        self.assertNotIn(("web", signal.SIGKILL), self.system.signals)
        self.happen("wait 0.1")
        self.assertIn(("web", signal.SIGKILL), self.system.signals)

    def test_one_that_outlives_kill_is_given_up_after_two_seconds(self) -> None:
        self.supervise(web())
        self.walk(("start", "running"), ("term", "stopping"), ("wait 8", "stopping"), ("wait 1.9", "stopping"))
        self.walk(("wait 0.1", "stopped"))
        self.assertEqual(self.supervisor.exit_code(), 137)

    def test_nothing_is_left_to_wait_for_afterwards(self) -> None:
        self.supervise(web(), web("never"))
        self.happen("start")
        self.happen("term")
        self.system.groups.clear()
        self.assertEqual(self.happen("deadline"), "stopping stopping")


if __name__ == "__main__":
    unittest.main()
