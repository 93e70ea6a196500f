"""The state machine without a system: the clock stands still, and processes, sockets and exits are simulated.

`System` is the kernel as far as a daemon's story sees it. `Launcher`, with the few objects that it hands out, is all
that knows how the module asks its kernel. `MachineTest` lets things happen and says which states they led to.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import sidecar_init
from sidecar_init import (
    _CannotStart,
    _Daemon,
    _DaemonSpec,
    _Inbox,
    _Launcher,
    _Log,
    _OomCounter,
    _Output,
    _Ports,
    _Process,
    _setting,
    _State,
    _Supervisor,
    _Watch,
)
from tests.unit.support import NO_SECRETS, Clock, UnitTest

FIRST_PID = 10_000_000  # no real process has such a number


class Events(_State):
    """Keeps what is recorded instead of writing it."""

    def __init__(self, log: _Log) -> None:
        super().__init__("", log)
        self.recorded: list[tuple[str, str | None, dict[str, object]]] = []

    def record(self, event: str, daemon: str | None, pid: int | None, **more: object) -> None:
        super().record(event, daemon, pid, **more)
        self.recorded.append((event, daemon, more))


class Said(_Log):
    """Keeps the supervisor's lines, and what the daemons have written."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, NO_SECRETS)
        self.lines: list[str] = []
        self.written = b""

    def say(self, text: str) -> None:
        self.lines.append(text)

    def put(self, text: bytes) -> None:
        self.written += text


class System:
    """Groups of processes, sockets that listen, and exits to be reaped."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.commands: dict[int, str] = {}
        self.outputs: dict[str, _Output] = {}  # where the newest of each command writes to
        self.groups: set[int] = set()  # those in which a process is left, or a zombie
        self.signals: list[tuple[str, int]] = []  # to a group; to a process alone: "only web"
        self.exits: list[tuple[int, int]] = []
        self.left_behind: set[int] = set()
        self.sockets: dict[int, int] = {}  # port: inode
        self.oom_kills = 0
        self.refusal: _CannotStart | None = None  # nothing can be forked
        self.cannot_execute = 0  # the errno of what is forked from now on
        self.executes = True  # or children stay between fork and exec
        self.report_ends: dict[int, int] = {}  # those of children that do
        self._inodes = itertools.count(1)

    # the calls of the supervisor

    def start(self, argv: Sequence[str], output: _Output) -> int:
        if self.refusal:
            raise self.refusal
        pid = FIRST_PID + len(self.started)
        self.started.append(argv[0])
        self.commands[pid], self.outputs[argv[0]] = argv[0], output
        self.groups.add(pid)
        return pid

    def forked(self, pid: int, report_end: int) -> None:
        """What becomes of a child."""
        self.report_ends[pid] = report_end
        if self.cannot_execute:
            self.fail(pid, self.cannot_execute)
            self.exit(self.commands[pid], 127 << 8)
        elif self.executes:
            self.report(pid)

    def signal_group(self, pgid: int, number: int) -> None:
        if pgid not in self.groups:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if number not in (0, signal.SIGCONT):
            self.signals.append((self.commands[pgid], number))

    def signal(self, pid: int, number: int) -> None:
        if number != signal.SIGCONT:
            self.signals.append((f"only {self.commands[pid]}", number))

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        if not self.exits:
            raise ChildProcessError
        pid, status = self.exits.pop(0)
        if pid not in self.left_behind:
            self.groups.discard(pid)
        return pid, status

    def exit_status(self, pid: int) -> int | None:
        """Of one that was not reaped yet."""
        return next((os.waitstatus_to_exitcode(status) for exited, status in self.exits if exited == pid), None)

    # what processes do

    def newest(self, command: str) -> int:
        return max(pid for pid in self.groups if self.commands[pid] == command)

    def exit(self, command: str, status: int, *, leaving_group: bool = False) -> None:
        """The newest process of this command exits."""
        pid = self.newest(command)
        self.report(pid)
        self.exits.append((pid, status))
        if leaving_group:
            self.left_behind.add(pid)

    def fail(self, pid: int, number: int) -> None:
        os.write(self.report_ends[pid], f"{number} execute {self.commands[pid]}".encode())

    def report(self, *pids: int) -> None:
        """Close what a child has reported through, as its exec or its exit does."""
        for pid in pids:
            if pid in self.report_ends:
                os.close(self.report_ends.pop(pid))

    def listen(self, port: int) -> None:
        self.sockets[port] = next(self._inodes)


class Process(_Process):
    def __init__(self, system: System, pid: int, report: int, started_at: float) -> None:
        super().__init__(pid, report=report, started_at=started_at)
        self._system = system

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._system.exit_status(self.pid)
        return self.returncode

    def _send(self, number: int, flags: int) -> None:
        (self._system.signal_group if flags else self._system.signal)(self.pid, number)


class Ports(_Ports):
    def __init__(self, system: System) -> None:
        self._system, self.interval = system, sidecar_init._POLL_INTERVAL

    def forget(self) -> None:
        pass

    def sockets(self, port: int) -> frozenset[int]:
        return frozenset({self._system.sockets[port]} if port in self._system.sockets else ())


class OomCounter(_OomCounter):
    def __init__(self, system: System) -> None:
        self._system = system

    def has_counted(self) -> bool:
        kills, self._system.oom_kills = self._system.oom_kills, 0
        return kills > 0


class Launcher(_Launcher):
    """Starts nothing, but reports as the real one does: through a pipe that closes when a child was executed."""

    def __init__(self, system: System, clock: Callable[[], float]) -> None:
        self._system, self._clock = system, clock
        self.children: dict[int, tuple[_Process, _Daemon]] = {}
        self._reaped: list[_Process] = []
        self.reports, self.ports, self.oom = _Watch(), Ports(system), OomCounter(system)
        self.may_restart = _setting(os.environ, "RESTART") != "never"
        self.started_at, self.start_ticks = "", 0

    def start(self, spec: _DaemonSpec, argv: Sequence[str], output: _Output, owner: _Daemon) -> _Process:
        old_sockets = self.ports.sockets(spec.port) if spec.port else frozenset()
        output.writer()
        pid = self._system.start(argv, output)
        report, childs_end = os.pipe()
        process = Process(self._system, pid, report, self._clock())
        process.old_sockets = old_sockets
        self.children[pid] = process, owner
        self.reports.add(report, lambda: self._advance(process, owner))
        self._system.forked(pid, childs_end)
        return process


class MachineTest(UnitTest):
    def new_system(self) -> System:
        return System()

    def setUp(self) -> None:
        self.use_environment()
        self.patch("_POLL_INTERVAL", 1 / 16)  # sums of it are exact: no look is due a rounding error too early
        self.clock, self.system = Clock(), self.new_system()
        self.patch("_Launcher", lambda specs, log, state, clock: Launcher(self.system, clock))
        patch = mock.patch("os.waitpid", self.system.waitpid)
        patch.start()
        self.addCleanup(patch.stop)

    def supervise(self, *specs: _DaemonSpec, may_restart: bool = True) -> None:
        if not may_restart:
            self.use_environment(BOT_BOTTLE_SIDECAR_RESTART="never")
        null = os.open("/dev/null", os.O_WRONLY)
        self.close_later(null)
        self.log, self.inbox = Said(null), _Inbox()
        self.events = Events(self.log)
        self.close_later(self.inbox.fd, self.inbox._wake)
        self.patch("_DAEMONS", specs)
        self.patch("_SIGNALS", {"USR1": ("restart", "web"), "HUP": ("forward", "web")})
        self.supervisor = _Supervisor(specs, clock=self.clock, log=self.log, state=self.events, inbox=self.inbox)
        self.daemons = {daemon.spec.name: daemon for daemon in self.supervisor._daemons}
        self.addCleanup(self.close)

    def close(self) -> None:
        sidecar_init._recorded_signals.clear()
        for daemon in self.supervisor._daemons:
            daemon._story.close()  # a story that waits has something to tidy up
            daemon.output.close()
        self.system.report(*list(self.system.report_ends))
        for watch in (self.launcher.reports, self.supervisor._pipes):
            watch._epoll.close()

    @property
    def launcher(self) -> Launcher:
        assert isinstance(self.supervisor._launcher, Launcher)
        return self.supervisor._launcher

    def states(self) -> str:
        return " ".join(daemon.state for daemon in self.supervisor._daemons)

    def kinds(self, name: str = "web") -> list[str]:
        return [event for event, daemon, _ in self.events.recorded if daemon == name]

    def status(self, name: str = "web") -> dict[str, Any]:
        return self.daemons[name].describe()

    def seconds_to_deadline(self, name: str = "web") -> float:
        return self.daemons[name].deadline - self.clock.now

    def happen(self, event: str) -> str:
        """Let something happen, and turn the loop until it would sleep; the states after it."""
        verb, _, rest = event.partition(" ")
        getattr(self, "on_" + verb)(*rest.split())
        self.turn()
        return self.states()

    def turn(self) -> None:
        for _ in range(20):
            if self.system.exits:
                self.signal(signal.SIGCHLD)
            self.is_done = self.supervisor.tick()
            if self.supervisor._time_to_next_deadline() > 0 and not self.supervisor._sleep(0):
                return
        self.fail(f"the loop spins: {self.states()}")

    def walk(self, *history: tuple[str, str]) -> None:
        for number, (event, expected) in enumerate(history):
            self.assertEqual(self.happen(event), expected, f"after {number}: {event}")

    def signal(self, number: int) -> None:
        """What the handlers do, of the kernel's and of Python's half."""
        sidecar_init._record_signal(number, None)
        os.write(self.inbox._wake, b"!")

    def assert_said(self, *lines: str) -> None:
        for line in lines:
            self.assertEqual(self.log.lines.count(line), 1, f"{line!r} in {self.log.lines}")

    # the events

    def on_start(self) -> None:
        self.supervisor._begin()

    def on_turn(self) -> None:
        """Nothing but more turns of the loop."""

    def on_wait(self, seconds: str) -> None:
        self.clock.now += float(seconds)

    def on_deadline(self, name: str = "web") -> None:
        """The clock reaches the deadline; if there is none, a long time passes."""
        deadline = self.daemons[name].deadline
        self.clock.now = max(self.clock.now, deadline) if deadline < float("inf") else self.clock.now + 1000

    def on_usr1(self) -> None:
        self.signal(signal.SIGUSR1)

    def on_hup(self) -> None:
        self.signal(signal.SIGHUP)

    def on_row(self, number: str) -> None:
        """The signal that restarts the daemon in this row."""
        self.signal(34 + int(number))

    def on_term(self) -> None:
        self.signal(signal.SIGTERM)

    def on_int(self) -> None:
        self.signal(signal.SIGINT)

    def on_listens(self, port: str = "80") -> None:
        self.system.listen(int(port))
        self.clock.now += sidecar_init._POLL_INTERVAL

    def on_exits(self, code: str = "7", name: str = "web") -> None:
        self.system.exit(name, int(code) << 8)

    def on_killed(self, name: str = "web") -> None:
        self.system.exit(name, signal.SIGKILL)

    def on_orphans(self, code: str = "7") -> None:
        """The leader exits, and another process of its group runs on."""
        self.system.exit("web", int(code) << 8, leaving_group=True)

    def on_gone(self) -> None:
        """What was left of the groups exits, and is reaped by PID 1."""
        self.system.groups -= self.system.left_behind
        self.system.exits.append((FIRST_PID - 1, 0))

    def on_gone_elsewhere(self) -> None:
        """What was left of the groups exits, and its parent reaps it: no signal tells us."""
        self.system.groups -= self.system.left_behind

    def on_checked(self, code: str) -> None:
        self.system.exit("check", int(code) << 8)

    def on_breaks(self, number: int = errno.ENOENT) -> None:
        """From now on nothing can be forked."""
        self.system.refusal = _CannotStart("execute web", number)

    def on_unexecutable(self, number: int = errno.ENOENT) -> None:
        """From now on no child becomes its command."""
        self.system.cannot_execute = number

    def on_recovers(self) -> None:
        self.system.refusal, self.system.cannot_execute = None, 0

    def on_hangs(self) -> None:
        """From now on children stay between fork and exec."""
        self.system.executes = False

    def on_executed(self) -> None:
        self.system.executes = True
        self.system.report(*list(self.system.report_ends))


def web(restart: str = "always", **fields: Any) -> _DaemonSpec:
    return _DaemonSpec("web", ["web"], restart, **fields)


def daemon(name: str, restart: str = "never", **fields: Any) -> _DaemonSpec:
    return _DaemonSpec(name, [name], restart, **fields)


DB = daemon("db", port=5432)
