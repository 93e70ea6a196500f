"""Random histories against a real _Supervisor, whose clock, kernel and daemons are simulated.

    python3 -m tests.unit.simulation [--histories N] [--seed S]

A history is made of its seed alone, so that one that failed can be repeated. After each turn of the loop the rules
are checked that hold whatever happens; at the end, that all came to rest and that the exit code is right. Everything
that depends on the module's internals is in `Machine` here, and in `MachineTest`, on which it is built.
"""

from __future__ import annotations

import argparse
import errno
import heapq
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from sidecar_init import _CannotStart, _DaemonSpec, _Output
from tests.unit.machine import MachineTest, System
from tests.unit.support import Clock

GRACE, RESTART_GRACE, CHECK, AFTER, GIVE_UP = 8.0, 5.0, 10.0, 10.0, 2.0  # the promises, not the module's constants
STEADY = 60.0  # so much uptime ends a series of exits
SLACK = 0.2  # four looks at a group that is left behind
FOREVER = float("inf")


class Violation(BaseException):
    """A rule that did not hold; no Exception, which the supervisor would survive."""


def owner(command: str) -> str:
    """The daemon that a check or a readiness command belongs to; a daemon's command is its name."""
    return command.rpartition("-")[2]


def demand(rule: bool, what: str) -> None:
    if not rule:
        raise Violation(what)


class Process:
    """A daemon's or a check's process group: its leader, and perhaps others."""

    def __init__(self, pid: int, command: str, started_at: float, choice: random.Random) -> None:
        self.pid, self.command, self.started_at = pid, command, started_at
        self.leader_lives, self.others_live, self.reaped = True, choice.random() < 0.2, False
        self.term_at: float | None = None
        self.exited_by_itself = self.others_told = False
        self.killed, self.killed_at = False, FOREVER
        self.grace, self.longest_grace = FOREVER, 0.0  # the shortest and the longest that its stop was asked with
        self.takes_term = choice.choice([0.0, 0.0, 0.02, 1.0, 4.0, 6.0, FOREVER])  # so long after it
        self.others_take_term = choice.choice([0.0, 0.3, 7.0, FOREVER])  # so long after their leader
        self.takes_kill = choice.choice([0.0] * 19 + [choice.choice([1.0, 3.0, 12.0])])
        self.term_status = choice.choice([0, signal.SIGTERM, 5 << 8])
        self.code: int | None = None  # as a shell tells it, once it was reaped

    @property
    def lives(self) -> bool:
        return self.leader_lives or self.others_live


class Kernel(System):
    """Processes that react to signals in their own time, and whatever else happens later."""

    def __init__(self, choice: random.Random) -> None:
        super().__init__()
        self.choice = choice
        self.clock = Clock()
        self.processes: dict[int, Process] = {}
        self.broken: dict[str, tuple[str, int]] = {}  # command: the step that fails, and its errno
        self.port_of: dict[str, int] = {}
        self.pending: set[int] = set()  # signals to the supervisor
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        # What watches the supervisor: its starts, its signals, and what it learns of exits.
        self.on_start: Callable[[str], None]
        self.on_started: Callable[[Process], None]
        self.on_signal: Callable[[Process, int, str], None]
        self.on_reaped: Callable[[Process, int], None]
        self.on_all_reaped: Callable[[], None]

    # what happens later

    def later(self, seconds: float, happening: Callable[[], None]) -> None:
        if seconds < FOREVER:
            self._number += 1
            heapq.heappush(self._later, (self.clock.now + seconds, self._number, happening))

    def next_happening(self) -> float:
        return self._later[0][0] if self._later else FOREVER

    def happen_until(self, moment: float) -> None:
        while self.next_happening() <= moment:
            when, _, happening = heapq.heappop(self._later)
            self.clock.now = max(self.clock.now, when)
            happening()

    # the calls of the supervisor

    def start(self, argv: Sequence[str], output: _Output) -> int:
        command = argv[0]
        self.on_start(command)
        step, number = self.broken.get(command, ("", 0))
        self.refusal = _CannotStart("execute it", number) if step == "fork" else None
        pid = super().start(argv, output)
        self.processes[pid] = Process(pid, command, self.clock.now, self.choice)
        return pid

    def forked(self, pid: int, report_end: int) -> None:
        self.report_ends[pid] = report_end
        process = self.processes[pid]
        step, number = self.broken.get(process.command, ("", 0))
        if step == "exec":
            process.others_live = False
            self.fail(pid, number)
            self.end(process, 127 << 8)
            return
        self.report(pid)
        self.on_started(process)
        port = self.port_of.get(process.command)
        if port:
            [delay] = self.choice.choices([0.0, 0.1, 0.5, 3.0, 100.0], [40, 30, 20, 8, 2])
            self.later(delay, lambda: self._listen(process, port))

    def _listen(self, process: Process, port: int) -> None:
        if process.leader_lives:
            self.listen(port)

    def signal_group(self, pgid: int, number: int) -> None:
        super().signal_group(pgid, number)
        if number in (0, signal.SIGCONT):
            return
        process = self.processes[pgid]
        self.on_signal(process, number, "group")
        if number == signal.SIGKILL:
            process.killed, process.killed_at = True, min(process.killed_at, self.clock.now)
            self.later(0.0, lambda: self._others_end(process))
            self.later(process.takes_kill, lambda: self.end(process, signal.SIGKILL))
            return
        process.others_told = True
        self._stop(process)
        if not process.leader_lives:
            self.later(process.others_take_term, lambda: self._others_end(process))

    def signal(self, pid: int, number: int) -> None:
        """A signal to one process alone."""
        process = self.processes[pid]
        if number == signal.SIGHUP:
            demand(process.leader_lives, f"{process.command} is signalled though it has exited")
            demand(process.term_at is None, f"{process.command} gets a signal though it is being stopped")
            if self.choice.random() < 0.3:  # it has no handler
                self.later(0.0, lambda: self.end(process, number))
        elif number != signal.SIGCONT:
            self.on_signal(process, number, "leader")
            self._stop(process)

    def _stop(self, process: Process) -> None:
        if process.term_at is None:
            process.term_at = self.clock.now
            self.later(process.takes_term, lambda: self.end(process, process.term_status))

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        if not self.exits:
            self.on_all_reaped()
        pid, status = super().waitpid(pid, options)
        process = self.processes[pid]
        process.reaped = True
        if process.lives:
            self.groups.add(pid)
        self.on_reaped(process, os.waitstatus_to_exitcode(status))
        return pid, status

    def urandom(self, size: int) -> bytes:
        return self.choice.randbytes(size)

    # what processes do

    def end(self, process: Process, status: int, *, others_live_on: bool = True) -> None:
        if not process.leader_lives:
            return
        process.leader_lives, process.exited_by_itself = False, process.term_at is None
        process.others_live = process.others_live and others_live_on
        self.report(process.pid)
        self.exits.append((process.pid, status))
        self.pending.add(signal.SIGCHLD)
        self.sockets.pop(self.port_of.get(process.command, 0), None)
        if process.others_told:
            self.later(process.others_take_term, lambda: self._others_end(process))

    def _others_end(self, process: Process) -> None:
        process.others_live = False
        if process.reaped and not process.lives:
            self.groups.discard(process.pid)  # their parent has reaped them; PID 1 is not told


class Machine(MachineTest):
    """A supervisor over a simulated kernel: how it is made, turned and looked into."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def new_system(self) -> Kernel:
        return self.kernel

    def begin(self, specs: Sequence[_DaemonSpec], may_restart: bool, forward: str, restart: str) -> None:
        self.setUp()
        self.kernel.clock = self.clock
        patch = mock.patch("os.urandom", self.kernel.urandom)
        patch.start()
        self.addCleanup(patch.stop)
        self.supervise(*specs, may_restart=may_restart)
        self.patch("_SIGNALS", {"USR1": ("restart", restart), "HUP": ("forward", forward)})

    def start_all(self) -> None:
        self.supervisor._begin()

    def turn_once(self) -> bool:
        """One turn of the loop, with the signals that are pending."""
        for number in sorted(self.kernel.pending):
            self.signal(number)
        self.kernel.pending.clear()
        return type(self.supervisor).tick(self.supervisor)

    def seconds_to_sleep(self) -> float:
        return 0.0 if self.has_reports() else self.supervisor._time_to_next_deadline()

    def has_reports(self) -> bool:
        """Of children that were executed, or were not."""
        return self.launcher.reports.fd in self.supervisor._sleep(0)

    @contextmanager
    def turning_by(self, turn: Callable[[float], bool]) -> Iterator[None]:
        """While this is open, the supervisor's own turns are made by `turn`, which is told how long it may sleep."""
        with mock.patch.object(self.supervisor, "tick", turn):
            yield

    def state(self, name: str) -> str:
        return self.daemons[name].state

    def was_ready(self, name: str) -> bool:
        return self.daemons[name].history.was_ready

    def deadline(self, name: str) -> float:
        return self.daemons[name].deadline

    def exit_code(self) -> int:
        return self.supervisor.exit_code()

    @property
    def shutdown_at(self) -> float | None:
        return self.supervisor.shutdown_at


class Expected:
    """What is to become of a daemon, derived from what happened to it and nothing else."""

    def __init__(self, spec: _DaemonSpec) -> None:
        self.spec = spec
        self.wanted = True  # it is to run, now or later
        self.was_tried = self.was_ready = False
        self.try_passed = False  # its readiness command has exited with 0 in this life
        self.asked = False  # for a restart that has led to no start yet, and was not refused
        self.check_passed = self.check_again = self.may_check_again = False
        self.failure = 0
        self.process: Process | None = None
        self.check: Process | None = None

    def grace(self, usual: float) -> float:
        return usual if self.spec.stop_grace is None else self.spec.stop_grace

    def ask(self, grace: float) -> None:
        self.wanted = self.asked = True
        if self.check:
            self.check_again = True
        else:
            self.may_check_again = True
        if self.process and self.process.lives:
            self.process.grace = min(self.process.grace, grace)
            self.process.longest_grace = max(self.process.longest_grace, grace)

    def refuse(self) -> None:
        self.asked = False
        if self.process:
            self.process.grace, self.process.longest_grace = FOREVER, 0.0

    def checked(self, passed: bool) -> None:
        self.check = None
        if self.check_again and self.may_check_again:
            self.may_check_again = False
        elif passed:
            self.check_passed = True
        else:
            self.refuse()

    def exited(self, code: int, may_restart: bool) -> None:
        """By itself."""
        always = self.spec.restart == "always" or (self.spec.restart == "on-failure" and code != 0)
        if self.spec.oneshot and code == 0:
            always, self.was_ready = False, self.was_ready or not self.asked
        self.failure, self.wanted = code, self.asked or (always and may_restart)


class History:
    """One history: its daemons, what happens to them, and the rules that must hold.

    `called`: the shutdown is requested by a call, which may come before a turn has seen what happened, not by TERM.
    """

    def __init__(self, seed: int, *, called: bool = False) -> None:
        self.seed, self.called, self.choice = seed, called, random.Random(seed)
        self.kernel = Kernel(self.choice)
        self.machine = Machine(self.kernel)
        self.trace: list[str] = []
        self.done, self.ended_at = False, 0.0
        self.requests: list[tuple[str, float]] = []  # which the supervisor acts on when it has reaped
        self.unreported: set[str] = set()  # those that were forked, and whose exec is reported in the next turn
        self.is_open = False  # whether one that was forked, but not executed before the shutdown, was restarted
        self.requested_at: float | None = None  # the first request to shut down

    def run(self) -> None:
        try:
            self._begin()
            for _ in range(self.choice.randint(4, 25)):
                self._pass(self.choice.choice([0.0, 0.0, 0.0, 0.05, 0.6, 3.0, 5.0, 9.0, 70.0]))
                if self.done:
                    break
                for _ in range(self.choice.choice([1, 1, 1, 2, 3])):
                    self._something()
                self._turns()
            self._settle()
            self._end()
        except BaseException as error:
            error.add_note("\n".join([f"seed {self.seed}, what happened last:", *self.trace[-40:]]))
            raise
        finally:
            self.machine.doCleanups()

    # what happens

    def _begin(self) -> None:
        names = ["web", "db", "cache", "worker"][: self.choice.randint(1, 4)]
        specs: list[_DaemonSpec] = []
        for number, name in enumerate(names):
            port = 1000 + number if self.choice.random() < 0.4 else None
            if port:
                self.kernel.port_of[name] = port
            after = [other for other in names[:number] if self.choice.random() < 0.3]
            check = [f"check-{name}"] if self.choice.random() < 0.4 else None
            restart = self.choice.choice(["never", "on-failure", "always", "always"])
            ready = [f"ready-{name}"] if self.choice.random() < 0.3 else None
            stop = None
            if self.choice.random() < 0.3:
                names_of_signals, graces = ["TERM", "QUIT", "INT"], [None, 0.5, 15.0]
                to = self.choice.choice(["group", "leader"])
                stop = {"signal": self.choice.choice(names_of_signals), "to": to, "grace": self.choice.choice(graces)}
            oneshot = not port and not ready and self.choice.random() < 0.3
            fields = {"oneshot": oneshot, "port": port, "after": after, "check": check, "ready": ready, "stop": stop}
            specs.append(_DaemonSpec(name, [name], restart, **fields))  # type: ignore[arg-type]
        self.choice.shuffle(specs)
        self.expected = {spec.name: Expected(spec) for spec in specs}
        self.may_restart = self.choice.random() < 0.9
        self.restarted = self.choice.choice(names)
        for kind in ("start", "started", "signal", "reaped", "all_reaped"):
            setattr(self.kernel, f"on_{kind}", getattr(self, f"_on_{kind}"))
        self.machine.begin(specs, self.may_restart, self.choice.choice(names), self.restarted)
        if self.choice.random() < 0.2:
            self._breaks()
        self.began_at = self.kernel.clock.now
        self.machine.start_all()
        self._turns()

    def _something(self) -> None:
        happenings: list[tuple[int, Callable[[], None]]] = [
            (8, self._exits),
            (8, self._usr1),
            (2, self._hup),
            (2, self._breaks),
            (3, self._mends),
            (2, self._restart_daemon),
            (1, self._term),
            (1, self._usr2),
        ]
        weights, what = zip(*happenings, strict=True)
        self.choice.choices(what, weights)[0]()

    def _note(self, text: str) -> None:
        self.trace.append(f"{self.kernel.clock.now:10.3f}  {text}")

    def _exits(self) -> None:
        living = [one for one in self.kernel.processes.values() if one.leader_lives and one.takes_kill == 0]
        if living:
            process = self.choice.choice(living)
            status = self.choice.choice([0, 0, 7 << 8, 1 << 8, signal.SIGSEGV, signal.SIGKILL])
            if process.command != owner(process.command):
                status = self.choice.choice([0, 0, 1 << 8])
            self._note(f"{process.command} ({process.pid}) exits with status {status}")
            self.kernel.end(process, status, others_live_on=self.choice.random() < 0.7)

    def _usr1(self) -> None:
        self._note(f"USR1 for {self.restarted}")
        self.kernel.pending.add(signal.SIGUSR1)

    def _hup(self) -> None:
        self._note("HUP")
        self.kernel.pending.add(signal.SIGHUP)

    def _usr2(self) -> None:
        self.kernel.pending.add(signal.SIGUSR2)

    def _term(self) -> None:
        if self.called:
            self._note("request_shutdown")
            self.machine.supervisor.request_shutdown("by a call")
        else:
            self._note("TERM")
            self.kernel.pending.add(signal.SIGTERM)

    def _breaks(self) -> None:
        """Something cannot be started, for now or for good."""
        kinds = self.choice.choice(["", "", "", "check-", "check-", "ready-"])
        command = kinds + self.choice.choice(list(self.expected))
        number = self.choice.choice([errno.ENOENT, errno.EACCES, errno.EAGAIN, errno.ENOMEM])
        self.kernel.broken[command] = self.choice.choice(["fork", "exec"]), number
        self._note(f"{command} cannot be started: {self.kernel.broken[command]}")

    def _mends(self) -> None:
        self.kernel.broken.clear()

    def _restart_daemon(self) -> None:
        name = self.choice.choice([*self.expected, "unknown"])
        grace = self.choice.choice([0.5, RESTART_GRACE, 20.0])
        if self.choice.random() < 0.2:
            self.kernel.later(self.choice.choice([0.01, 2.0]), self._term)
        expected = self.expected.get(name)
        before = expected.process if expected else None
        self._turns()  # what is pending came before the call
        if self.done:
            return
        self._note(f"restart_daemon({name!r}, grace={grace})")
        is_default = grace == RESTART_GRACE  # then the table's counts, if it has one
        self.requests.append((name, expected.grace(grace) if expected and is_default else grace))
        self._on_all_reaped()

        turns = itertools.count()

        def turn(seconds: float) -> bool:
            demand(next(turns) < 5000, "restart_daemon does not come to an end")
            self._sleep(seconds)
            self.done = self._turn()
            return self.done

        with self.machine.turning_by(turn):
            worked = self.machine.supervisor.restart_daemon(name, grace=grace)
        self._note(f"restart_daemon is {worked}")
        replaced = bool(expected and expected.process and expected.process is not before)
        demand(worked <= replaced, "restart_daemon says that it has restarted what it has not")
        demand(not (worked and before and before.lives), "restart_daemon is done while the old group lives")
        given_up = expected is None or not expected.asked or self.machine.shutdown_at is not None
        demand(worked or given_up, "restart_daemon returns before its restart has begun or was refused")
        self._check_rules()

    # how time passes

    def _sleep(self, most: float) -> None:
        """Until something happens, or the time is over."""
        if self.kernel.pending or self.machine.has_reports():
            return
        now = self.kernel.clock.now
        moment = min(self.kernel.next_happening(), now + most + 1e-6)
        demand(moment < FOREVER, "the loop sleeps, and nothing will wake it")
        self.kernel.clock.now = max(now, moment)
        self.kernel.happen_until(self.kernel.clock.now)

    def _pass(self, seconds: float) -> None:
        """So much time passes; the loop turns when it would."""
        end = self.kernel.clock.now + seconds
        while not self.done:
            most = min(self.machine.seconds_to_sleep(), end - self.kernel.clock.now)
            if most <= 0 or self.kernel.clock.now >= end:
                break
            self._sleep(most)
            self._turns()

    def _turn(self) -> bool:
        for expected in map(self.expected.__getitem__, self.unreported):
            if expected.process and self.machine.shutdown_at is None:
                expected.failure = 0
        self.is_open |= bool(self.unreported) and self.machine.shutdown_at is not None
        self.unreported.clear()
        if signal.SIGUSR1 in self.kernel.pending:
            self.requests.append((self.restarted, self.expected[self.restarted].grace(RESTART_GRACE)))
        if signal.SIGCHLD not in self.kernel.pending:
            self._on_all_reaped()
        done = self.machine.turn_once()
        if done and not self.done:
            self.ended_at = self.kernel.clock.now
        self._check_rules()
        return done

    def _turns(self) -> None:
        """Turn until the loop would sleep."""
        for _ in range(20):
            if self.done:
                return
            self.done = self._turn()
            if self.machine.seconds_to_sleep() > 0 and not self.kernel.pending:
                return
        raise Violation("the loop spins")

    # the rules

    def _groups(self, command: str) -> list[Process]:
        return [one for one in self.kernel.processes.values() if one.command == command and one.lives]

    def _on_start(self, command: str) -> None:
        self._note(f"start of {command}")
        demand(self.machine.shutdown_at is None, f"{command} starts after the shutdown was requested")
        name = owner(command)
        expected = self.expected[name]
        number = self.kernel.broken.get(command, ("", 0))[1]
        if command.startswith("ready-"):
            tries = [one for one in self._groups(command) if not one.killed]
            demand(not tries, f"{command} runs twice at once")
            demand(self.machine.state(name) in ("starting", "checking"), f"{command} runs though {name} does not start")
        elif command != name:
            demand(expected.asked, f"{command} runs without a request for a restart")
            expected.check_passed = expected.check_again = False
            if number:
                expected.refuse()
        if command != name:
            return
        demand(not self._groups(name), f"{name} starts while its old group lives")
        demand(expected.wanted, f"{name} starts though it is not to run")
        early = self.kernel.clock.now < self.began_at + AFTER - 1e-3
        oneshots = self._awaited_oneshots(expected)
        missing = [one for one in expected.spec.after if (early or one in oneshots) and not self._was_ready(one)]
        demand(
            expected.was_tried or (expected.asked and not oneshots) or not missing,
            f"{name} does not wait for {missing}",
        )
        expected.was_tried = True
        expected.asked = expected.check_passed = False
        expected.process = None
        if number in (errno.ENOENT, errno.EACCES):
            expected.wanted, expected.failure = False, 127 if number == errno.ENOENT else 126
        if self.kernel.broken.get(command, ("", 0))[0] != "fork":
            self.unreported.add(name)

    def _on_started(self, process: Process) -> None:
        name = owner(process.command)
        expected = self.expected[name]
        if process.command == name:
            expected.process, expected.try_passed = process, False
        else:
            if process.command.startswith("check-"):
                expected.check = process
            process.others_live, process.takes_kill = False, 0.0
            status, delay = self.choice.choice([0, 0, 1 << 8]), self.choice.choice([0.0, 0.3, 2.0, FOREVER])
            self.kernel.later(delay, lambda: self.kernel.end(process, status))

    def _on_signal(self, process: Process, number: int, to: str) -> None:
        now, shutdown_at = self.kernel.clock.now, self.machine.shutdown_at
        self._note(f"signal {number} to {process.command} ({process.pid})")
        name = owner(process.command)
        expected = self.expected[name]
        daemon_lives = bool(expected.process and expected.process.leader_lives)
        if process.command.startswith("ready-"):
            demand(number == signal.SIGKILL, f"{process.command} gets another signal than KILL")
        elif process.command != name:
            needed = process is expected.check and daemon_lives and shutdown_at is None
            may_end = number == signal.SIGKILL and (not needed or now >= process.started_at + CHECK)
            demand(may_end, f"{process.command} is stopped while it is needed")
            if needed:
                expected.checked(False)
            expected.check = None
        elif number != signal.SIGKILL:
            demand(number == expected.spec.stop_signal, f"{name} is stopped by signal {number}")
            is_for_group = expected.spec.stop_to == "group" or not process.leader_lives
            is_for_leader = expected.spec.stop_to == "leader" and not process.reaped
            is_right = is_for_group if to == "group" else is_for_leader
            demand(is_right, f"{name} is stopped by a signal to the {to}")
            if shutdown_at is None and process.leader_lives:
                demand(expected.asked, f"{name} is stopped without a request for a restart")
                demand(
                    not expected.spec.check or expected.check_passed,
                    f"{name} is stopped though its check has not passed",
                )
            if not process.leader_lives and process.term_at is None:
                usual = expected.grace(RESTART_GRACE)  # or that of a restart that was asked for before it exited
                process.grace = min(process.grace, usual)
                process.longest_grace = max(process.longest_grace, usual)
        else:
            is_told = process.term_at is not None and (process.others_told or not process.reaped)
            demand(is_told, f"{name} is killed without a signal to stop before")
            kill_at = (process.term_at or 0) + process.grace
            if shutdown_at is not None:
                kill_at = shutdown_at + expected.grace(GRACE)
            demand(now >= kill_at - 1e-3, f"{name} is killed before its grace is over")

    def _on_reaped(self, process: Process, code: int) -> None:
        process.code = code if code >= 0 else 128 - code
        shutdown_at = self.machine.shutdown_at
        if shutdown_at is not None and self.kernel.clock.now >= max(process.killed_at, shutdown_at) + GIVE_UP:
            process.code = 137  # it was given up before
        expected = self.expected[owner(process.command)]
        self._note(f"{process.command} ({process.pid}) was reaped: {process.code}")
        self.unreported.discard(process.command)
        if process.command.startswith("ready-"):
            expected.try_passed |= code == 0
        elif process is expected.check:
            expected.checked(code == 0)
        elif process is expected.process and process.exited_by_itself:
            expected.exited(process.code, self.may_restart)

    def _on_all_reaped(self) -> None:
        requests, self.requests = self.requests, []
        for name, grace in requests:
            is_joined = name in self.unreported  # what starts now reads what the request is about
            if name not in self.expected or self.machine.shutdown_at is not None or is_joined:
                continue
            if not self._awaited_oneshots(self.expected[name]):
                self.expected[name].ask(grace)

    def _awaited_oneshots(self, expected: Expected) -> list[str]:
        """Those that must exit with 0 before its first start, however long that takes."""
        names = [] if expected.was_tried else expected.spec.after
        return [name for name in names if self.expected[name].spec.oneshot and not self.expected[name].was_ready]

    def _waits(self, expected: Expected) -> bool:
        """Whether it waits for a oneshot, or for one that does."""
        others = [] if expected.was_tried else [self.expected[name] for name in expected.spec.after]
        return bool(self._awaited_oneshots(expected)) or any(map(self._waits, others))

    def _is_blocked(self, expected: Expected) -> bool:
        """Whether it waits for a oneshot that has failed, or for one that does."""
        others = [] if expected.was_tried else [self.expected[name] for name in expected.spec.after]
        failed = [one for one in others if one.spec.oneshot and not one.wanted and not self._was_ready(one.spec.name)]
        return bool(failed) or any(map(self._is_blocked, others))

    def _was_ready(self, name: str) -> bool:
        """Whether others need not wait for it any more: it was ready once, or never will be."""
        expected = self.expected[name]
        expected.was_ready |= not expected.spec.oneshot and self.machine.was_ready(name)
        return expected.was_ready or not (expected.wanted or expected.spec.oneshot)

    def _check_rules(self) -> None:
        now, shutdown_at = self.kernel.clock.now, self.machine.shutdown_at
        if self.requested_at is None:
            self.requested_at = shutdown_at
        demand(shutdown_at == self.requested_at, "a second request moves the shutdown")
        bugs = [line for line in self.machine.log.lines if line.startswith("internal error")]
        demand(not bugs, "; ".join(bugs))
        asleep = self.machine.seconds_to_sleep() > 0 and not self.kernel.pending
        idle = True
        for name, expected in self.expected.items():
            groups = self._groups(name)
            demand(len(groups) <= 1, f"{name} has {len(groups)} groups")
            self._was_ready(name)
            is_open = expected.spec.port is None or expected.spec.port in self.kernel.sockets
            may_be_ready = (is_open or not asleep) and (expected.try_passed or not expected.spec.ready)
            demand(may_be_ready or self.machine.state(name) != "running", f"{name} is not ready")
            runs = expected.process and not expected.process.reaped and expected.process.term_at is None
            deadline = self.machine.deadline(name)
            if shutdown_at is None and expected.wanted:
                waits_for_one_that_waits = any(self.machine.state(other) == "waiting" for other in expected.spec.after)
                may_wait = waits_for_one_that_waits or bool(self._awaited_oneshots(expected))
                moves = bool(runs) or may_wait or deadline < FOREVER or not asleep
                demand(moves, f"{name} is to run, does not, and has no deadline")
                waits = not expected.was_tried and all(self.expected[other].was_ready for other in expected.spec.after)
                demand(not (waits and asleep), f"{name} waits, though those before it are ready")
            for process in groups:
                if process.term_at is not None and not process.killed and shutdown_at is None:
                    patience = process.term_at + process.longest_grace + SLACK
                    demand(now <= patience, f"{name} is not killed when its grace is over")
            idle = idle and self.machine.state(name) in ("running", "exited", "failed", "stopped")
            idle = idle and expected.check is None
        if idle:
            for name, expected in self.expected.items():
                ends_series_at = expected.process.started_at + STEADY if expected.process else FOREVER
                is_needed = self.machine.deadline(name) in (FOREVER, ends_series_at)
                demand(is_needed, "a wake-up is due though nothing is to be done")

    # the end

    def _settle(self) -> None:
        """Nothing happens any more but by itself: everything comes to rest as it should."""
        self.kernel.broken.clear()
        for name, port in self.kernel.port_of.items():
            if self._groups(name) and port not in self.kernel.sockets:
                self.kernel.listen(port)
        self._pass(300)
        if self.machine.shutdown_at is not None:
            return
        demand(self.done or self.machine.seconds_to_sleep() == FOREVER, "the loop does not come to rest")
        for name, expected in self.expected.items():
            runs = [one for one in self._groups(name) if one.leader_lives and one.term_at is None]
            wanted = expected.wanted and not self._waits(expected)
            demand(bool(runs) == wanted, f"{name} is to run: {wanted}; it runs: {bool(runs)}")
            ready = self.machine.state(name) == "running"
            demand(ready or not wanted, f"{name} is not ready, though its port is open")
            demand(not expected.asked, f"the restart of {name} that was asked for never came")
            demand(expected.wanted or not self._groups(name), f"what {name} left behind lives on")
        any_wanted = any(one.wanted and not self._is_blocked(one) for one in self.expected.values())
        demand(self.done != any_wanted, f"daemons are to run: {any_wanted}; the loop has ended: {self.done}")

    def _end(self) -> None:
        if not self.done:
            self._term()
            self._pass(self.choice.choice([0.0, 1.0]))
            for happening in self.choice.sample([self._term, self._usr1, self._hup, self._exits], 2):
                happening()
            self._turns()
            self._pass(60)
            demand(self.done, "the shutdown does not come to an end")
        if (requested_at := self.machine.shutdown_at) is not None:
            took = self.ended_at - requested_at
            grace = max(one.grace(GRACE) for one in self.expected.values())
            demand(took <= grace + GIVE_UP + SLACK, f"the shutdown took {took:.1f} s")
        self.kernel.happen_until(self.kernel.clock.now)  # what was killed last
        for process in self.kernel.processes.values():
            gone = not process.lives or (process.killed and process.takes_kill > 0)
            demand(gone, f"{process.command} ({process.pid}) was left behind")
        is_right = self.machine.exit_code() == self._exit_code()
        demand(is_right or self.is_open, f"the exit code is not {self._exit_code()}")
        self._usr1()
        self._turn()  # nothing starts any more, if it was a shutdown

    def _exit_code(self) -> int:
        """The worst of those that failed by themselves; else of those that were stopped, where KILL is the worst."""
        processes = [one.process for one in self.expected.values() if one.process and not one.process.exited_by_itself]
        ended = [137 if process.code is None else process.code for process in processes]
        failures = max(one.failure for one in self.expected.values())
        return failures or (137 if 137 in ended else max(ended, default=0))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.unit.simulation", description=str(__doc__).splitlines()[0])
    parser.add_argument("--histories", type=int, default=10_000, metavar="N", help="how many (10000)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the first; the next has the next (random)")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seeds {first} to {first + options.histories - 1}", flush=True)
    began = time.monotonic()
    for seed in range(first, first + options.histories):
        try:
            History(seed).run()
        except Violation as violation:
            print(violation, *violation.__notes__, sep="\n")
            return 1
    print(f"{options.histories} histories in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
