"""A supervisor on the simulated kernel, what happens to it, and the rules that hold whatever happens.

A history is a list of events in words, such as "exit web 7" or "wait 0.5": see the methods `on_…` of `World`. They
happen while PID 1 sleeps; "+3 exit web 7" happens between its third call from then on and the one before. An event
that cannot happen (an exit of what does not run) does nothing, so that any part of a history is a history.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.simulation.kernel import FOREVER, Kernel, Pipe, Process, Violation

# The promises, not the module's constants.
GRACE, RESTART_GRACE, CHECK, AFTER, GIVE_UP, BACKOFF, STEADY = 8.0, 5.0, 10.0, 10.0, 2.0, 0.5, 60.0
SLACK = 0.3  # a few looks at a group that is left behind
INSTANT = 1e-4  # a hundred calls of PID 1: between two things that it does at once
LAST_WRITE = 0.3  # for the reader of a log that has stalled, when all has ended, or the usual grace
LINE_LIMIT, BUFFER_LIMIT = 65536, (1 << 20) + (1 << 18)

SECRET = b"13-57/90!24+68#97$53%10&86"  # its characters are in nothing else that is written
_OF_SECRETS = SECRET + b"0123456789"
_PARTS = {SECRET[i : i + 6] for i in range(len(SECRET) - 5)}
_REDACTED = b"[redacted EGRESS_TOKEN_A]"
_TEXT = re.compile(rb"[^\d\-/!+#$%&]+")  # what is no part of a secret

Table = Mapping[str, Mapping[str, Any]]


class Paused(BaseException):
    """The history is over, and the supervisor goes on."""


class Lines:
    """What was written to a pipe, and how much of it has come out."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.raw, self.dropped = pipe, bytearray(), 0
        self.cuts: set[int] = set()
        self.seams: set[int] = set()  # where one process ended and the next one began
        self.places = {0}  # all may be out up to any of these: only the next line shows where one was cut
        pipe.lines = self.raw.extend

    def cut(self) -> None:
        """A line may end here without a newline."""
        self.cuts.add(self.pipe.taken)

    def part(self) -> None:
        """No line has bytes of two processes."""
        self.seams.add(self.dropped + len(self.raw))

    def take(self, line: bytes) -> bool:
        """Whether this line is the next one."""
        ends = {end for place in self.places for end in self._ends(place, line)}
        if ends:
            self.places = ends
            self._forget(min(ends))
        return bool(ends)

    def _ends(self, place: int, line: bytes) -> Iterator[int]:
        """Where this line may end if it begins here."""
        start = place - self.dropped
        stop = min((seam for seam in self.seams if seam > place), default=self.dropped + len(self.raw)) - self.dropped
        newline = self.raw.find(b"\n", start, stop)
        expected = bytes(self.raw[start : newline if newline >= 0 else stop])
        if newline >= 0 and self._equal(expected, line):
            yield place + len(expected) + 1
        for cut in self.cuts | self.seams:
            if place < cut <= place + len(expected) and self._equal(expected[: cut - place], line):
                yield cut
        words, out = b"".join(_TEXT.findall(expected)), b"".join(_TEXT.findall(line.replace(_REDACTED, b"")))
        if len(line) > LINE_LIMIT - len(SECRET) and words.startswith(out):  # what is longer is split
            size = 0
            for word in _TEXT.finditer(expected):
                taken = min(len(out) - size, len(word[0]))
                size += taken
                if size == len(out):
                    yield place + word.start() + taken
                    return

    def _forget(self, before: int) -> None:
        """What nothing can begin with any more."""
        if before - self.dropped > 1 << 16:
            del self.raw[: before - self.dropped]
            self.dropped = before
        self.cuts = {cut for cut in self.cuts if cut > before}
        self.seams = {seam for seam in self.seams if seam > before}

    @staticmethod
    def _equal(expected: bytes, line: bytes) -> bool:
        return expected == line or (
            b"".join(_TEXT.findall(expected)) == b"".join(_TEXT.findall(line.replace(_REDACTED, b"")))
        )

    @property
    def has_left(self) -> bool:
        return min(self.places) < self.dropped + len(self.raw)

    @property
    def is_all_out(self) -> bool:
        return not self.pipe.data and self.raw.find(b"\n", max(self.places) - self.dropped) < 0


class Run:
    """One process of a daemon, from its fork on."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.was_executed = self.looks_executed = self.is_reaped = self.is_killed = False
        self.start_is_told = self.exit_is_told = False
        self.stopped_at = self.exited_at = FOREVER
        self.was_reaped_first = False  # before it was told to stop
        self.graces: list[float] = []  # that its stop may have been asked for with

    @property
    def is_up(self) -> bool:
        return self.process.is_alive

    @property
    def is_to_be_told(self) -> bool:
        has_started = self.was_executed or (self.looks_executed and not self.is_killed)
        return has_started and not self.exit_is_told

    @property
    def code(self) -> int:
        status = self.process.status
        return status >> 8 if status & 0x7F == 0 else -(status & 0x7F)


class Seen:
    """What has happened to a daemon, as far as the kernel, its events and its status tell."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.name = spec, spec.name
        self.runs: list[Run] = []  # those that are not told of completely, and the last
        self.starts = 0
        self.forks = 0
        self.asked_at = -FOREVER  # the last request for a restart
        self.is_asked = False  # since the last start, for a restart
        self.sent = self.asked = 0
        self.check: Process | None = None
        self.checks = 0
        self.ready_try: Process | None = None
        self.lines: Lines | None = None
        self.check_lines: list[Lines] = []
        self.last_event = ""  # but "stopped"
        self.failure = 0  # that it could not be executed, as a shell tells it
        self.has_executed = self.has_listened = self.has_passed = self.is_done = False  # ever
        self.status: dict[str, Any] = {}
        self.stops_told = 0

    @property
    def may_have_been_ready(self) -> bool:
        is_open = self.has_listened or not self.spec.port
        has_passed = self.has_passed or not self.spec.ready
        return self.has_executed and is_open and has_passed and (self.is_done or not self.spec.oneshot)

    def is_wanted(self, may_restart: bool) -> bool:
        """Whether its restart policy starts it again after its last exit."""
        code, policy = self.run.code if self.run else 0, self.spec.restart if may_restart else "never"
        return (policy == "always" and not (self.spec.oneshot and code == 0)) or (policy == "on-failure" and code != 0)

    @property
    def run(self) -> Run | None:
        return self.runs[-1] if self.runs else None

    @property
    def process(self) -> Process | None:
        return self.runs[-1].process if self.runs else None

    @property
    def is_up(self) -> bool:
        return bool(self.runs) and self.runs[-1].is_up


class World:
    """One supervisor and its history."""

    def __init__(
        self, module: Any, kernel: Kernel, table: Table, *, may_restart: bool = True, old_kernel: bool = False,
        slow_forks: bool = False, pids: int = 0, obey: bool = True, secrets: str = "",
    ) -> None:  # fmt: skip
        self.module, self.kernel = module, kernel
        environ = {"EGRESS_TOKEN_A": SECRET.decode()} if secrets else {}
        kernel.reset(environ if may_restart else {**environ, "SIDECAR_INIT_RESTART": "never"}, pids or 400)
        kernel.has_group_pidfds, kernel.fork_seconds = not old_kernel, 0.002 if slow_forks else 0.0
        kernel.most_calls = 3000 + 600 * len(table)
        kernel.on_idle, kernel.on_fork, kernel.on_exec = self._idle, self._forked, self._executed
        kernel.on_exit, kernel.on_reap, kernel.on_signal = self._exited, self._reaped, self._signalled
        kernel.on_empty, kernel.on_file, kernel.stdout.on_write = self._was_empty, self._file_written, self._wrote
        self.may_restart, self.obey, self.secrets = may_restart, obey, secrets
        kinds = {name: {**fields} for name, fields in table.items()}
        for name, fields in kinds.items():
            for command in ("check", "ready"):
                if fields.get(command):
                    fields[command] = [f"/{command}-{name}"]
            if fields.get("files"):
                fields["files"] = {"KEY": f"/files/{name}"}
        self.specs = [module._DaemonSpec(name, [f"/{name}"], **fields) for name, fields in kinds.items()]
        self.seen = {spec.name: Seen(spec) for spec in self.specs}
        self.order = list(self.seen)
        self.history: list[str] = []
        self._events: Iterable[str] = ()
        self._until: float | None = None
        self._partial = b""
        self.mute: set[str] = set()  # that do not listen on their ports, unless an event says so
        self.stubborn: set[str] = set()  # whose processes ignore the signals that stop them
        self.wanted_at: float | None = None  # when the shutdown was requested by a signal
        self.is_at_once = False  # an INT came during the shutdown
        self.hups = 0
        self.only_survives = False  # memory was short: PID 1 must go on, and end when it is told to
        self.is_excused = False  # an error was injected that nothing can hide
        self.loses_events = self.loses_lines = False
        self.has_stalled = False
        self.began_at = 0.0
        self.is_settled = False
        self.code: int | None = None
        self.supervisor: Any = None

    # -- running

    def run(self, history: Iterable[str], *, pause: bool = False) -> None:
        """Let it all happen, and what follows; with `pause`, stop at the end of the history."""
        module, kernel = self.module, self.kernel
        module._recorded_signals.clear()
        module._DAEMONS = tuple(self.specs)
        module._SIGNALS = {"USR1": ("restart", self.order[0]), "HUP": ("forward", self.order[-1])}
        module._SECRETS = {"EGRESS_TOKEN_": (self.secrets,)} if self.secrets else {}
        inbox = module._Inbox()
        inbox.open()
        os = module.os
        log = module._Log(1, module._Secrets(os.environb, module._SECRETS))
        self.supervisor = module._Supervisor(self.specs, log=log, state=module._State("/state", log), inbox=inbox)
        self._turns = self._steps(history, pause)
        self.began_at = kernel.now
        try:
            self.code = self.supervisor.run()
            self._check_end()
        except Paused:
            pass
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"PID 1 ends with {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """What waits in the stories is tidied up now, not when the next machine runs."""
        for daemon in self.supervisor._daemons:
            try:
                daemon._story.close()
            except (Violation, OSError):
                pass

    def _steps(self, history: Iterable[str], pause: bool) -> Any:
        """What happens, one step at each `next`. Yields the time at which PID 1 may be woken at the latest."""
        for event in history:
            self.history.append(event)
            yield from self._happen(event)
        if pause:
            raise Paused
        yield from self._settle()
        yield from self._happen("term")
        yield 40.0
        self._violate("the shutdown does not come to an end")

    def _happen(self, event: str) -> Any:
        verb, *rest = event.split()
        if verb == "wait":
            yield float(rest[0])
        elif verb == "deadline":
            yield -1.0
        elif verb.startswith("+"):
            self.kernel.interrupt(int(verb[1:]), lambda: self._apply(rest[0], rest[1:]))
            yield 0.0
        else:
            self._apply(verb, rest)
            yield 0.0

    def _apply(self, verb: str, rest: Sequence[str]) -> None:
        getattr(self, "on_" + verb)(*rest)

    def _idle(self, wake_at: float) -> bool:
        """PID 1 sleeps. False when it has slept until then."""
        kernel = self.kernel
        if self._until is None:
            self._check_asleep(wake_at)
            kernel.run_interrupts()
            wait = next(self._turns)
            if wait == 0.0:
                kernel.calls_at_idle = kernel.calls
                return True
            self._until = kernel.now + 3600.0 if wait < 0 else kernel.now + wait
            if wait < 0:
                self._until = min(wake_at, self._until)
        kernel.calls_at_idle = kernel.calls
        kernel.now = max(kernel.now, min(wake_at, self._until))
        if kernel.now >= self._until:
            self._until = None
        if kernel.now >= wake_at:
            return False
        self._check_asleep(wake_at)
        return True

    def _violate(self, what: str) -> None:
        self.kernel.violate(what)

    def _demand(self, rule: object, what: str) -> None:
        if not rule and not (self.only_survives and "shutdown" not in what):
            self.kernel.violate(what)

    # -- events: processes

    def _find(self, command: str) -> Process | None:
        """The newest process that was started by this command."""
        seen = self.seen.get(command.rpartition("-")[2])
        if seen is None:
            return None
        of_command = {"check": seen.check, "ready": seen.ready_try}
        return of_command.get(command.partition("-")[0], seen.process) if "-" in command else seen.process

    def _members(self, name: str) -> list[Process]:
        leader = self._find(name)
        members = [one for one in self.kernel.processes.values() if one.leader is leader and one is not leader]
        return [one for one in members if one.is_alive]

    def on_exit(self, command: str, status: str) -> None:
        """The leader exits: with 7, or by signal 9 (-9)."""
        if process := self._find(command):
            number = int(status)
            if not process.is_executed and number >= 0:
                return
            self.kernel.exit(process, number << 8 if number >= 0 else -number)

    def on_fork(self, name: str) -> None:
        leader = self._find(name)
        if leader and leader.is_alive and leader.is_executed and not leader.is_stuck:
            self.kernel.new_process(leader)

    def on_member(self, name: str, status: str = "0") -> None:
        """Another process of the group exits."""
        for process in self._members(name)[:1]:
            self.kernel.exit(process, int(status) << 8)

    def on_leave(self, name: str) -> None:
        """A process leaves the group; PID 1 will reap it."""
        for process in self._members(name)[:1]:
            if process.group is process.leader.group:
                self.kernel.leave_group(process)
                process.parent = None

    def on_elsewhere(self, name: str) -> None:
        """A process of the group whose parent is not in it, and reaps it."""
        for process in self._members(name)[:1]:
            process.parent_is_elsewhere = True

    def on_suspend(self, name: str) -> None:
        process = self._find(name)
        if process and process.is_alive and process.is_executed:
            process.is_stopped = True
            self.kernel.signal_supervisor(signal.SIGCHLD)

    def on_continue(self, name: str) -> None:
        if process := self._find(name):
            self.kernel.receive(process, signal.SIGCONT)

    def on_trace(self, name: str) -> None:
        """It has made PID 1 its tracer, and stops."""
        process = self._find(name)
        if process and process.is_alive and process.is_executed:
            process.trace_stop = signal.SIGTRAP
            self.kernel.signal_supervisor(signal.SIGCHLD)

    def on_stuck(self, name: str) -> None:
        """It hangs in the kernel, and cannot even be killed."""
        if process := self._find(name):
            process.is_stuck = True

    def on_deny(self, name: str) -> None:
        """It belongs to a user whose processes PID 1 may not signal."""
        process = self._find(name)
        if process and process.is_executed:
            process.is_denied = True

    def on_stubborn(self, name: str) -> None:
        """From now on its processes ignore what should stop them."""
        self.stubborn ^= {name}

    def on_missing(self, command: str, number: str = "2") -> None:
        """It cannot be executed."""
        self.kernel.missing[command] = int(number)

    def on_slow(self, command: str, after: str = "exec") -> None:
        """Its children hang between fork and exec."""
        self.kernel.slow[command] = after

    def on_released(self, command: str) -> None:
        self.kernel.slow.pop(command, None)
        if process := self._find(command):
            self.kernel.release(process)

    def on_fail(self, call: str, number: str, times: str = "1") -> None:
        """With this errno, or with a MemoryError (0)."""
        self.kernel.faults.setdefault(call, []).extend([int(number)] * int(times))
        if call in ("write_state", "open_state", "rename_state"):
            self.loses_events = True
        elif call == "write_log":
            self.loses_lines = True
        if call == "poll":
            self.is_excused = True
        if number == "0":
            self.only_survives = self.loses_events = self.loses_lines = self.is_excused = True

    def on_lacking(self, name: str) -> None:
        """Its file is not there."""
        self.kernel.lacking.add(name)

    def on_mend(self) -> None:
        self.kernel.faults.clear()
        self.kernel.lacking.clear()
        self.kernel.missing.clear()
        for command in list(self.kernel.slow):
            self.on_released(command)

    # -- events: sockets and output

    def on_listen(self, name: str) -> None:
        process, port = self._find(name), self.seen[name].spec.port if name in self.seen else None
        if port and process and process.is_alive and process.is_executed:
            self.kernel.listen(port, process)
            self.seen[name].has_listened = True

    def on_mute(self, name: str) -> None:
        """From now on it does not listen by itself."""
        self.mute ^= {name}

    def on_squat(self, name: str) -> None:
        """A stranger listens on its port."""
        if name in self.seen and self.seen[name].spec.port:
            self.seen[name].has_listened = True  # PID 1 cannot see whose socket it is
            self.kernel.listen(self.seen[name].spec.port, None)

    def on_write(self, command: str, text: str) -> None:
        """`_` is a space, `~` a newline, `$` the secret, `*` 50,000 bytes, `<` the secret's first half.

        The other half follows with the next sign, `>` if it is nothing else.
        """
        process = self._find(command)
        if process and process.is_alive and process.is_executed and len(process.unwritten) < 1 << 18:
            secret = SECRET if self.secrets == command.rpartition("-")[2] else b""
            half = len(secret) // 2
            parts = {"_": b" ", "~": b"\n", "$": secret, "<": secret[:half], ">": b"", "*": b"x" * 50_000}
            line = b""
            for sign in text:
                line += process.owes + parts.get(sign, sign.encode())
                process.owes = secret[half:] if sign == "<" else b""
            self.kernel.put(process, line.upper() if "-" in command else line)

    def on_stall(self) -> None:
        """The log is no longer read."""
        self.kernel.stdout.is_read, self.has_stalled = False, True

    def on_drip(self, size: str) -> None:
        """Its reader reads so much, and no more."""
        stdout = self.kernel.stdout
        if not stdout.is_read:
            stdout.buffered = max(0, stdout.buffered - int(size))

    def on_drain(self) -> None:
        self.kernel.stdout.is_read, self.kernel.stdout.buffered = True, 0

    # -- events: signals to PID 1

    def on_term(self) -> None:
        self._request_shutdown()
        self.kernel.signal_supervisor(signal.SIGTERM)

    def on_int(self) -> None:
        self.is_at_once |= self.wanted_at is not None or self.supervisor.shutdown_at is not None
        self._request_shutdown()
        self.kernel.signal_supervisor(signal.SIGINT)

    def _request_shutdown(self) -> None:
        if self.wanted_at is None:
            self.wanted_at = self.kernel.now

    def on_hup(self) -> None:
        self.hups += 1
        self.kernel.signal_supervisor(signal.SIGHUP)

    def on_usr1(self) -> None:
        self._ask(self.order[0])
        self.kernel.signal_supervisor(signal.SIGUSR1)

    def on_usr2(self) -> None:
        self.kernel.signal_supervisor(signal.SIGUSR2)

    def on_restart(self, name: str) -> None:
        """The signal that restarts the daemon in this row."""
        if name in self.seen:
            self._ask(name)
            self.kernel.signal_supervisor(34 + self.order.index(name))

    def _ask(self, name: str) -> None:
        seen = self.seen[name]
        seen.is_asked, seen.asked_at, seen.sent = True, self.kernel.now, seen.sent + 1

    # -- what PID 1 does

    def _grace(self, seen: Seen, usual: float) -> float:
        return usual if seen.spec.stop_grace is None else float(seen.spec.stop_grace)

    def _forked(self, process: Process) -> None:
        command, now = process.command, self.kernel.now
        seen = self.seen[command.rpartition("-")[2]]
        self._demand(self.supervisor.shutdown_at is None, f"{command} starts after the shutdown was requested")
        if process.stdout and process.stdout.lines is None:
            lines = Lines(process.stdout)
            if command == seen.name:
                seen.lines = lines
            elif command.startswith("check-"):
                seen.check_lines = [*(one for one in seen.check_lines if one.has_left), lines]
        if self.obey and command == seen.name and command not in self.stubborn:
            process.ignores = {signal.SIGHUP}
        else:
            process.ignores = set(range(1, 65)) - {signal.SIGKILL}
        has_secret = "EGRESS_TOKEN_A" in process.environ
        self._demand(has_secret == (self.secrets == seen.name), f"{command} gets what is not its own")
        if command.startswith("check-"):
            self._demand(not (seen.check and seen.check.is_alive), f"{command} runs twice at once")
            self._demand(seen.is_asked, f"{command} runs without a request for a restart")
            seen.checks += 1
            self._demand(seen.checks <= 2 or self.loses_events, f"{command} is repeated more than once")
            seen.check = process
        elif command.startswith("ready-"):
            seen.ready_try = process
        else:
            self._main_forked(seen, process, now)

    def _main_forked(self, seen: Seen, process: Process, now: float) -> None:
        name = seen.name
        if seen.lines:
            seen.lines.cut()
            seen.lines.part()
        old = [one for one in self.kernel.processes.values() if one.leader.command == name and one is not process]
        left = [one for one in old if one.group is one.leader.group and signal.SIGKILL not in one.pending]
        left = [one for one in left if not one.leader.is_denied]  # KILL has reached a part of that group, if any
        self._demand(not left, f"{name} starts while its old group lives")
        if not seen.forks and seen.last_event != "not-started":
            if not self.loses_events:  # else a start that failed may have been the first
                self._check_after(seen, now)
        elif seen.run and not seen.is_asked:
            failed_start = not seen.run.was_executed or seen.last_event == "not-started"
            self._demand(failed_start or seen.is_wanted(self.may_restart), f"{name} starts though it is not to run")
            self._demand(now >= seen.run.exited_at + BACKOFF - 1e-6 or failed_start, f"{name} starts before its time")
        seen.runs = [one for one in seen.runs if one.is_to_be_told] + [Run(process)]
        seen.forks += 1
        seen.is_asked, seen.checks = seen.sent > 0, 0  # PID 1 may not have looked at what was sent a moment ago

    def _check_after(self, seen: Seen, now: float) -> None:
        for other in [self.seen[name] for name in seen.spec.after if name in self.seen]:
            is_over = (
                other.run and not other.is_up and not (other.run.was_executed and other.is_wanted(self.may_restart))
            )
            is_right = other.may_have_been_ready or (not other.spec.oneshot and (is_over or seen.is_asked))
            is_late = not other.spec.oneshot and now >= self.began_at + AFTER - 1e-6
            self._demand(is_right or is_late, f"{seen.name} does not wait for {other.name}")

    def _run_of(self, process: Process) -> Run | None:
        seen = self.seen.get(process.command)
        return next((run for run in seen.runs if run.process is process), None) if seen else None

    def _executed(self, process: Process) -> None:
        if run := self._run_of(process):
            run.was_executed = run.looks_executed = self.seen[process.command].has_executed = True
            if self.obey and process.command not in self.mute:
                self.on_listen(process.command)

    def _exited(self, process: Process) -> None:
        if run := self._run_of(process):
            run.exited_at = self.kernel.now
            if process.status & 0x7F and not run.was_executed:  # killed on its way: it looks as if it had been executed
                run.looks_executed = self.seen[process.command].has_executed = True
            self.seen[process.command].is_done |= process.status == 0
        elif process.command.startswith("ready-"):
            self.seen[process.command[6:]].has_passed |= process.status == 0

    def _reaped(self, process: Process) -> None:
        if run := self._run_of(process):
            run.is_reaped = True

    def _signalled(self, process: Process, number: int, to: str) -> None:
        leader, now = process.leader, self.kernel.now
        command = leader.command
        seen = self.seen[command.rpartition("-")[2]]
        is_own = process.group is leader.group or not leader.has_own_group
        self._demand(is_own or number == 0, f"{command}: signal {number} reaches a process of another group")
        if number in (0, signal.SIGCONT):
            return
        shutdown_at = self.supervisor.shutdown_at
        if command.startswith(("check-", "ready-")):
            self._demand(number == signal.SIGKILL, f"{command} gets another signal than KILL")
            return
        run = seen.run
        if run is None or leader is not run.process:
            self._violate(f"{command}: signal {number} reaches a process of an earlier start")
            return
        if number == signal.SIGHUP and to == "leader" and self.hups and seen.spec.stop_signal != signal.SIGHUP:
            self._demand(run.stopped_at == FOREVER, f"{command} gets a signal though it is being stopped")
            return
        is_asked = seen.is_asked or shutdown_at is not None
        is_left = not leader.is_alive
        never_executed = not leader.is_executed
        self._demand(is_asked or is_left or never_executed, f"{command} is stopped though nothing asked for it")
        was_killed, run.is_killed = run.is_killed, run.is_killed or number == signal.SIGKILL
        if number == signal.SIGKILL and not never_executed and not was_killed:
            grace = min([self._grace(seen, GRACE if shutdown_at is not None else RESTART_GRACE), *run.graces])
            start = min(run.stopped_at, FOREVER if shutdown_at is None else shutdown_at)
            late = start + max([self._grace(seen, GRACE if shutdown_at is not None else RESTART_GRACE), *run.graces])
            late = late if shutdown_at is None else shutdown_at + self._grace(seen, GRACE)
            self._demand(now <= late + SLACK, f"{command} is not killed when its grace is over")
            self._demand(
                self.is_at_once or now >= start + grace - INSTANT, f"{command} is killed before its grace is over"
            )
        elif number != signal.SIGKILL:
            self._demand(number == seen.spec.stop_signal, f"{command} is stopped by signal {number}")
            if run.stopped_at == FOREVER:
                run.stopped_at, run.was_reaped_first = now, run.is_reaped
                if shutdown_at is None:
                    run.graces = [self._grace(seen, RESTART_GRACE)]

    def _was_empty(self, pipe: Pipe) -> None:
        for seen in self.seen.values():
            if seen.lines and seen.lines.pipe is pipe and not (seen.is_up and self.supervisor.shutdown_at is None):
                seen.lines.cut()
            for lines in seen.check_lines:
                if lines.pipe is pipe:
                    lines.cut()

    def _wrote(self, text: bytes) -> None:
        *lines, self._partial = (self._partial + text).split(b"\n")
        for line in lines:
            self._check_line(line)

    def _check_line(self, line: bytes) -> None:
        for run in re.findall(rb"[\d\-/!+#$%&]{6,}", line):
            parts = {run[i : i + 6] for i in range(len(run) - 5)}
            self._demand(not parts & _PARTS, f"a part of a secret is in the log: {line[:100]!r}")
        if line.startswith(b"sidecar-init: "):
            is_bug = line.startswith(b"sidecar-init: internal error") and not self.is_excused
            self._demand(not is_bug, line.decode())
            return
        prefix, _, content = line.partition(b"] ")
        seen = self.seen.get(prefix[1:].decode("latin-1")) if prefix[:1] == b"[" else None
        if seen is None:
            self._demand(self.loses_lines, f"a line has no prefix: {line[:100]!r}")
            return
        sources = [*([seen.lines] if seen.lines else []), *seen.check_lines]
        is_next = any(source.take(content) for source in sources)
        self._demand(is_next or self.loses_lines, f"not the next line of {seen.name}: {line[:100]!r}")

    # -- what PID 1 tells

    def _file_written(self, name: str, contents: bytes) -> None:
        if name == "events.jsonl":
            for line in contents.splitlines():
                self._told(json.loads(line))
        elif name == "status.json.new":
            self._check_status(json.loads(contents))

    def _told(self, event: dict[str, Any]) -> None:
        kind, seen = event["event"], self.seen.get(event["daemon"])
        if seen is None or kind == "signal" or self.loses_events:
            return
        seen.last_event = kind if kind != "stopped" else seen.last_event
        if kind in ("started", "restarted"):
            seen.starts += 1
            untold = [one for one in seen.runs if not one.start_is_told and one.process.pid == event["pid"]]
            run = next(iter(sorted(untold, key=lambda one: not one.was_executed)), None)
            if run is None or not run.looks_executed:
                return self._violate(f"{seen.name} is {kind}, which did not happen")
            run.start_is_told, seen.failure = True, 0
        elif kind == "exited":
            untold = [one for one in seen.runs if not one.exit_is_told and one.process.pid == event["pid"]]
            run = next(iter(sorted(untold, key=lambda one: not one.start_is_told)), None)
            told = -getattr(signal, event["signal"]) if event["signal"] else event["code"]
            if run is None:
                return self._violate(f"an exit of {seen.name} is reported that was none, or twice")
            self._demand(not run.is_up, f"{seen.name} runs, but has {kind}")
            self._demand(told == run.code, f"{seen.name} exited with {run.code}, reported is {told}")
            run.exit_is_told = True
        elif kind == "ready":
            self._demand(seen.may_have_been_ready, f"{seen.name} is told to be ready, and was not")
        elif kind == "failed":
            seen.failure = 127 if "No such file" in event["reason"] else 126
        elif kind == "restarting":
            seen.checks = 0
        elif kind == "stopped":
            seen.stops_told += 1
            self._demand(seen.stops_told == 1, f"{seen.name} is stopped twice")

    def _check_status(self, status: dict[str, Any]) -> None:
        is_told = status["state"] == ("shutting-down" if self.supervisor.shutdown_at is not None else "running")
        self._demand(is_told or status["state"] == "stopped", "the status is wrong about the shutdown")
        for about in status["daemons"]:
            self.seen[about["name"]].status = about

    # -- rules

    def _check_asleep(self, wake_at: float) -> None:
        now, shutdown_at = self.kernel.now, self.supervisor.shutdown_at
        for daemon in self.supervisor._daemons:
            is_in_time = wake_at <= max(daemon.deadline, now) + 0.01
            self._demand(is_in_time or self.is_excused, f"the loop sleeps beyond the deadline of {daemon.spec.name}")
        if shutdown_at is not None:
            grace = max(self._grace(seen, GRACE) for seen in self.seen.values())
            self._demand(now <= shutdown_at + self._longest(grace), "the shutdown does not come to an end")
        taken = sum(seen.lines.pipe.taken - max(seen.lines.places) for seen in self.seen.values() if seen.lines)
        is_bounded = taken <= BUFFER_LIMIT + 3 * LINE_LIMIT * len(self.seen)
        self._demand(is_bounded or self.loses_lines, f"{taken} bytes are buffered")  # what is lost is counted as taken
        # Those that wait for a oneshot that has failed do not keep PID 1 up.
        over = ("exited", "failed", "stopped", *(() if self.kernel.stdout.is_read else ("waiting",)))
        if all(seen.status.get("state") in over for seen in self.seen.values()):
            self.loses_lines |= not self.kernel.stdout.is_read
            return  # PID 1 only waits for the log's reader, and not for long
        if self.loses_events and not self.kernel.stdout.is_read:  # and the status may not tell that it only waits
            is_over = not any(seen.is_up for seen in self.seen.values())
            self.loses_lines |= shutdown_at is not None or is_over
            if is_over:
                return
        if self.wanted_at is not None:
            self._demand(shutdown_at is not None or self.is_excused, "a request to shut down is ignored")
        if not self.loses_events:
            for seen in self.seen.values():
                self._check_daemon(seen, wake_at, shutdown_at is not None)

    def _longest(self, grace: float) -> float:
        """How long a shutdown may take. After an internal error, PID 1 begins again to stop what it was stopping."""
        longest = grace + GIVE_UP + SLACK + (GIVE_UP if self.only_survives else 0)
        return max(longest, GRACE) + LAST_WRITE if self.has_stalled else longest

    def _is_due(self, seen: Seen, run: Run) -> bool:
        """Whether its exit must have been reported: unless it came after giving up."""
        shutdown_at = self.supervisor.shutdown_at
        grace = 0 if run.process.is_denied else self._grace(seen, GRACE)  # a restart may have tried to kill it before
        gives_up_at = FOREVER if shutdown_at is None else shutdown_at + grace + GIVE_UP
        return run.is_reaped and (run.was_executed or run.start_is_told) and run.exited_at < gives_up_at

    def _check_daemon(self, seen: Seen, wake_at: float, is_shutdown: bool) -> None:
        name, now, about = seen.name, self.kernel.now, seen.status
        state, run = about["state"], seen.run
        for one in seen.runs:
            self._demand(one.exit_is_told or not self._is_due(seen, one), f"the exit of {name} is not reported")
        if state in ("starting", "running", "checking"):
            self._demand(run and not run.is_reaped, f"{name} is {state}, but has exited")
        if about["pid"] and run and run.was_executed:
            self._demand(about["pid"] == run.process.pid, f"the status has an old pid of {name}")
        if run and run.is_up and run.was_executed and not is_shutdown and seen.last_event != "not-started":
            self._demand(about["pid"], f"the status has no pid of {name}, which runs")
        self._demand(about["starts"] == seen.starts, f"{name}: the status and the events count starts differently")
        if state in ("stopping", "backoff", "checking"):
            self._demand(wake_at < FOREVER, f"{name} is {state} without a deadline")
        if state == "waiting" and wake_at == FOREVER:
            others = [self.seen[one] for one in seen.spec.after if one in self.seen]
            may_come = any(one.status["state"] not in ("exited", "failed", "stopped") for one in others)
            blocked = [one for one in others if one.spec.oneshot]
            self._demand(may_come or blocked, f"{name} waits for what cannot happen")
        if run and not run.is_killed and run.process.has_own_group and (is_shutdown or run.stopped_at < FOREVER):
            late = run.stopped_at + max(self._grace(seen, RESTART_GRACE), *run.graces, 0.0)
            late = self.supervisor.shutdown_at + self._grace(seen, GRACE) if is_shutdown else late
            group = [one for one in run.process.group.members if one.is_alive and not one.is_denied]
            self._demand(not group or now <= late + SLACK, f"{name} is not killed when its grace is over")
        if seen.sent and not is_shutdown:
            self._demand(about["asked"] > seen.asked, f"a request to restart {name} is lost")
        seen.sent, seen.asked = 0, about["asked"]
        if about["asked"] == about["answered"]:
            seen.is_asked = False
        if about["asked"] > about["answered"] and not is_shutdown:
            self._demand(state not in ("failed", "exited", "running"), f"a request to restart {name} is forgotten")
        stdout_takes = self.kernel.stdout.is_read and not self.loses_lines
        if seen.lines and stdout_takes:
            self._demand(seen.lines.is_all_out, f"lines of {name} are missing from the log")

    def _settle(self) -> Any:
        """Nothing more happens but by itself: all comes to rest as it should."""
        for event in ("drain", "mend"):
            yield from self._happen(event)
        for process in list(self.kernel.processes.values()):
            self.kernel.unstick(process)
            self.kernel.receive(process, signal.SIGCONT)
            if process.is_denied or process.leader.command.startswith(("check-", "ready-")):
                self.kernel.exit(process, 0)
        for _ in range(8):
            yield 0.02
            for seen in self.seen.values():
                if seen.is_up and seen.spec.port:
                    self.on_listen(seen.name)
                for command in (seen.check, seen.ready_try):
                    if command and command.is_alive:
                        self.kernel.exit(command, 0)
            yield 5.0
        yield 35.0
        if self.supervisor.shutdown_at is None and not self.loses_events:
            self._check_settled()

    def _check_settled(self) -> None:
        for seen in self.seen.values():
            about = seen.status
            self._demand(about["asked"] == about["answered"], f"a request to restart {seen.name} is never answered")
            is_failed = about["state"] == "failed"
            if seen.run and not seen.is_up and seen.is_wanted(self.may_restart) and not is_failed:
                self._violate(f"{seen.name} is to run, and does not")
            if seen.is_up and about["state"] in ("exited", "failed", "stopped"):
                self._violate(f"{seen.name} runs, though it is {about['state']}")

    def _check_exit_code(self) -> None:
        """The worst of those that failed on their own; else of those that were stopped, where KILL is the worst."""
        failures, stopped = [], []
        for seen in self.seen.values():
            run = seen.run
            if seen.spec.essential or seen.last_event == "not-started" or self.is_excused:
                return  # an essential daemon decides alone
            if seen.failure:
                failures.append(seen.failure)
            elif run and not run.start_is_told:
                return  # it was on its way
            elif run:
                code = run.code if run.code >= 0 else 128 - run.code
                if run.is_up or not run.exit_is_told:  # given up
                    stopped.append(137)
                elif run.stopped_at == FOREVER or run.was_reaped_first:
                    failures.append(code)
                elif run.exited_at <= run.stopped_at:
                    return  # it exited in the same moment
                else:
                    stopped.append(code)
        expected = max(failures, default=0) or (137 if 137 in stopped else max(stopped, default=0))
        self._demand(self.code == expected, f"the exit code is {self.code} instead of {expected}")

    def _check_end(self) -> None:
        now, shutdown_at = self.kernel.now, self.supervisor.shutdown_at
        if shutdown_at is not None:
            grace = max(self._grace(seen, GRACE) for seen in self.seen.values())
            self._demand(now <= shutdown_at + self._longest(grace), f"the shutdown took {now - shutdown_at:.1f} s")
        for seen in self.seen.values():
            run = seen.run
            if run and run.process.has_own_group and not run.is_killed:
                left = [one for one in run.process.group.members if one.is_alive]
                self._demand(not left, f"{seen.name} is left behind")
            for one in seen.runs:
                is_due = self._is_due(seen, one) and not self.loses_events
                self._demand(one.exit_is_told or not is_due, f"the exit of {seen.name} is not reported")
        if not self.loses_events:
            self._check_exit_code()
