#!/usr/bin/env python3
"""sidecar-init: PID 1 of a container that runs several daemons.

It starts and restarts them, relays signals, merges their output into the container's log, keeps each daemon's
secrets from the others, and shuts everything down cleanly. One file, standard library only, one thread, one loop:

    while not self.tick(self._time_to_next_deadline()):    # sleeps in poll until something happens
        pass

One turn of the loop moves whole lines from the daemons' pipes to the log, reaps exited children, acts on recorded
signals, advances daemons whose deadline has passed, and writes the status if it changed. Each daemon is driven by a
generator, `_Daemon._whole_story`, which runs from its first start to its last stop and waits at every `yield`.

The core comes first: tunables, table and rules, supervisor, daemon, log, launcher, signals, state. It ends at the line
"end of the core". The classes that it uses, the table file and the commands follow.

Signals to PID 1:

    TERM, INT   shut down; an INT during a shutdown kills at once
    HUP, USR1   what [signals] in the table says: forward it to a daemon, or restart one in place
    USR2        write status.json (the heartbeat that `health` asks for)
    34+n        restart the daemon in row n of the table, counting from 0
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from argparse import Namespace
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from types import CodeType, FrameType
    from typing import Any, NoReturn, TypeAlias, TypeVar

    _T = TypeVar("_T")
    # A part of a story yields the state it waits in, and receives a stop order if a restart was requested.
    _Part: TypeAlias = Generator[str, "_StopOrder | None", _T]
    _Clock: TypeAlias = Callable[[], float]
    _Pause: TypeAlias = tuple[str, float]  # the state between two processes, and when it ends
else:
    import _signal as signal  # the same functions; the enums of `signal` would cost every start 5 ms and 1 MB


def _asks_to_supervise(words: list[str]) -> bool:
    """Whether the command line is empty, or names only a table."""
    return words[:-1] == ["--table"] or (len(words) < 2 and all(word.startswith("--table=") for word in words))


if __name__ == "__main__" and _asks_to_supervise(sys.argv[1:]):
    # First, because a signal that PID 1 neither blocks nor handles is lost. Blocked ones wait for `_Inbox.open`.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

import errno, fcntl, os, resource, select, stat, struct, time  # noqa: E401, E402, I001

__version__ = "1.1.0"

# -- tunables ----------------------------------------------------------------------------------------------------------

_GRACE_SECONDS = 8.0  # from the request to shut down until KILL; Docker itself waits 10 s
_RESTART_GRACE_SECONDS = 5.0
_GIVE_UP_SECONDS = 2.0  # after KILL; what remains then are zombies whose parent never reaps them
_POLL_INTERVAL = 0.05  # how often to check a starting daemon's port, and a group whose leader has exited
_AFTER_SECONDS = 10.0  # for the daemons in `after` to become ready
_EXEC_SECONDS = _CHECK_SECONDS = 10.0
_READY_SECONDS = 5.0  # for one try of a readiness command
_READY_FIRST, _READY_LAST = 0.1, 2.0  # between two tries
_READY_SILENT = 10  # tries whose output is not logged
_BACKOFF_FIRST, _BACKOFF_LAST = 0.5, 30.0
_STEADY_SECONDS = 60.0  # after this uptime the backoff resets
_CRASH_LOOP_EXITS = 5
_TURN_SECONDS = 0.005  # a turn of the loop advances daemons for at most this long; then signals are handled

_PAUSE_SECONDS, _PAUSE_BELOW = 0.0001, 32768  # after a turn with less output than this, so that the next finds more
_READ_SIZE = 65536  # the default capacity of a pipe
_PIPE_SIZE = 1 << 18  # of stdout, if the kernel allows: a whole read with its prefixes fits
_LINE_LIMIT = 65536
_LOG_LIMIT = 1 << 20  # when this much output is buffered, daemons block on write
_LOG_RESERVE = 1 << 18  # on top of that: for the last lines of exited daemons, and for the supervisor's own
_LAST_LINES_SIZE = 4096  # bytes of output that the event of an exit may include
_RETRY_SECONDS = 5.0  # after the status could not be written: a full disk may have room again
_EVENTS_LIMIT, _FILE_LIMIT, _SECRET_LIMIT = 1 << 20, 1 << 20, 1 << 16
_STATE_DIRECTORY = "/run/sidecar-init"
_FIRST_ROW_SIGNAL = 34  # what `docker kill --signal RTMIN` sends, whatever libc calls SIGRTMIN

# -- the table ---------------------------------------------------------------------------------------------------------


class _DaemonSpec:
    """One row of the daemon table; immutable. `_DaemonSpec(name, argv)` is enough."""

    def __init__(
        self, name: str, argv: Sequence[str], restart: str = "never", user: str | None = None, port: int | None = None,
        after: Sequence[str] = (), check: Sequence[str] | None = None, *, ready: Sequence[str] | None = None,
        oneshot: bool = False, essential: bool = False, stop: Mapping[str, Any] | None = None, cwd: str | None = None,
        env: Mapping[str, str] | None = None, prefix: bool = True, files: Mapping[str, str] | None = None,
        capabilities: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name, self.argv = name, tuple(argv)
        self.restart = restart  # "never", "on-failure" or "always"
        self.user = user  # the account it runs as; None: the supervisor's
        self.port = port  # ready when a new socket listens here
        self.ready = tuple(ready or ())  # ready when this command exits 0
        self.after = tuple(dict.fromkeys(after))  # names that must have been ready once before the first start
        self.check = tuple(check or ())  # must exit 0 before a restart stops the running process
        self.oneshot = oneshot  # runs to completion; ready when it has exited with 0
        self.essential = essential  # the container ends when this daemon has ended for good, or crash-loops
        how = {"signal": "TERM", "to": "group", "grace": None, **(stop or {})}
        self.stop_signal: int = getattr(signal, f"SIG{how['signal']}")
        self.stop_to: str = how["to"]  # "group" or "leader"
        self.stop_grace: float | None = how["grace"]  # None: _GRACE_SECONDS or _RESTART_GRACE_SECONDS
        self.cwd, self.env = cwd, dict(env or {})
        self.files = dict(files or {})  # variable: the file whose contents it gets as a descriptor, 3 and up
        self.capabilities = tuple(capabilities)  # those that it keeps, if the supervisor is root
        self.prefix = prefix  # False: its lines are logged without "[name] "

    def __setattr__(self, field: str, value: object) -> None:
        if hasattr(self, field):
            raise AttributeError(f"a daemon's {field} cannot change")
        object.__setattr__(self, field, value)


_PIPELOCK, _PIPELOCK_CONFIG = "/usr/local/bin/pipelock", ["--config", "/etc/pipelock.yaml"]
_SSH_KEY = {"GIT_GATE_SSH_KEY": "/etc/git-gate/ssh/id"}
_DAEMONS: tuple[_DaemonSpec, ...] = (
    _DaemonSpec("egress", ["/bin/sh", "/app/egress-entrypoint.sh"], "always", "mitmproxy", 9099),
    _DaemonSpec("pipelock", [_PIPELOCK, "run", *_PIPELOCK_CONFIG, "--listen", "0.0.0.0:8888"], "always", "pipelock",
                8888, after=["egress"], check=[_PIPELOCK, "check", *_PIPELOCK_CONFIG]),
    _DaemonSpec("git-gate", ["/bin/sh", "/git-gate-entrypoint.sh"], "always", "git-gate", 9418, files=_SSH_KEY),
    _DaemonSpec("git-http", ["python3", "/app/git_http_backend.py"], "always", "git-gate", 9420, files=_SSH_KEY),
    _DaemonSpec("supervise", ["python3", "/app/supervise_server.py"], "always", "supervise", 9100),
)  # fmt: skip

_SECRETS: dict[str, tuple[str, ...]] = {"EGRESS_TOKEN_": ("egress",)}  # prefix of variables: the daemons that get them

_SIGNALS: dict[str, tuple[str, str]] = {"HUP": ("forward", "egress"), "USR1": ("restart", "pipelock")}

# -- rules -------------------------------------------------------------------------------------------------------------


def _requested_names(env: Mapping[str, str]) -> list[str] | None:
    """The names that the environment asks for; None: all daemons."""
    wanted = _setting(env, "DAEMONS")
    return [name for name in map(str.strip, wanted.split(",")) if name] if wanted.strip() else None


def _selected_daemons(env: Mapping[str, str], all_daemons: Sequence[_DaemonSpec] | None = None) -> list[_DaemonSpec]:
    """The rows to run, in table order; unknown names are ignored."""
    names = _requested_names(env)
    return [spec for spec in (_DAEMONS if all_daemons is None else all_daemons) if names is None or spec.name in names]


def _env_for_daemon(name: str, base_env: Mapping[str, str]) -> dict[str, str]:
    """A fresh environment for `name`: all of `base_env` except the secrets that belong to others."""
    others = tuple(prefix for prefix, owners in _SECRETS.items() if name not in owners)
    return {key: value for key, value in base_env.items() if not key.startswith(others)}


def _secret_in_file(variable: str) -> str:
    """X if `variable` is X_FILE, the path of a file that holds the secret X; else an empty string."""
    if not variable.endswith("_FILE") or variable in _SECRETS:
        return ""
    name = variable.removesuffix("_FILE")
    return name if any(name.startswith(prefix) and name != prefix for prefix in _SECRETS) else ""


# -- the supervisor ----------------------------------------------------------------------------------------------------


class _Supervisor:
    """All daemons and the loop."""

    def __init__(
        self, specs: Sequence[_DaemonSpec], *, clock: _Clock = time.monotonic, log: _Log | None = None,
        state: _State | None = None, inbox: _Inbox | None = None,
    ) -> None:  # fmt: skip
        self.specs = list(specs)
        self._clock, self._inbox = clock, inbox
        self._log = log or _Log(1, _Secrets(os.environb, _SECRETS))
        self._state = state or _State("", self._log)
        self._launcher, self._pipes = _Launcher(self.specs, self._log, self._state, clock), _Watch()
        self._daemons = [_Daemon(spec, clock, self._launcher, self._log, self._state, self._pipes) for spec in specs]
        self._by_name = {daemon.spec.name: daemon for daemon in self._daemons}
        self._shutdown: _StopOrder | None = None
        self._fatal_status: int | None = None  # of the essential daemon that ended the container
        self._due: dict[_Daemon, None] = {}  # those to be advanced, in order
        self._heartbeats, self._write_by, self._may_pause = 0, _NEVER, False

    @property
    def procs(self) -> list[tuple[_DaemonSpec, _Process]]:
        """One entry per daemon, in table order: its current process, or its last.

        If there never was one, its pid is 0, and its returncode is 126 or 127 if it cannot be started, else None.
        """
        return [(one.spec, one.process or _Process(0, one.history.outcome[-1] or None)) for one in self._daemons]

    @property
    def shutdown_at(self) -> float | None:
        """The time of the first request to shut down."""
        return self._shutdown.at if self._shutdown else None

    def start_all(self) -> None:
        """Start the daemons that need not wait for others; return when they are executed, or after 1 s.

        This does not reap: the first `tick`, or a request to shut down, notices an earlier exit.
        """
        self._begin()
        deadline = time.monotonic() + 1
        while self._meet_deadlines() or any(not one.history.starts and one.state == _STARTING for one in self._daemons):
            self._sleep(min(self._time_to_next_deadline(), _POLL_INTERVAL))
            self._launcher.reports.take_turns()
            if time.monotonic() > deadline:
                break
        self._log.flush()

    def tick(self, timeout: float = 0.0) -> bool:
        """Run one turn of the loop; sleep for at most `timeout`. True when nothing more can happen."""
        readable = self._sleep(timeout)
        self._launcher.reports.take_turns()
        self._pipes.take_turns(self._log.has_room)
        self._may_pause = 0 < self._log.backlog < _PAUSE_BELOW
        self._log.flush()
        signals = self._inbox.take(readable) if self._inbox else [signal.SIGCHLD]
        for number in sorted(signals, key=lambda number: number != signal.SIGCHLD):  # exits come first
            try:
                self._handle_signal(number)
            except Exception as error:  # the others must not be lost
                _log_internal_error(self._log, error)
        is_behind = self._meet_deadlines() or bool(_recorded_signals)
        self._log.flush()
        if self._state.is_stale:
            self._end_if_essential()
            # While more work is due, delay the status a little: writing it takes longer than all the rest.
            self._write_by = min(self._write_by, self._clock() + (2 * _POLL_INTERVAL if is_behind else 0.0))
        is_done = self._is_done()
        if is_done or self._clock() >= self._write_by:
            self._write_status(is_done=is_done)
        return is_done

    def request_shutdown(self, reason: str) -> None:
        """Send every daemon its stop signal at once; `tick` does the rest. A second request changes nothing."""
        if self._shutdown:
            return
        try:
            self._reap()  # an exit before the request is the daemon's own, even if no turn has noticed it yet
        finally:
            self._shutdown = _StopOrder(self._clock(), is_shutdown=True)
            for daemon in self._daemons:
                daemon.shut_down(self._shutdown)
        self._log.say(f"shutting down: {reason}")
        self._state.record("shutdown", None, os.getpid(), reason=reason)

    def forward_signal(self, sig: int, name: str) -> bool:
        """Signal the daemon's own process. True if a live child was signalled."""
        daemon = self._find(name, f"{_signal_name(sig)} for {name} dropped")
        return daemon is not None and daemon.forward(sig)

    def restart_daemon(self, name: str, *, grace: float = _RESTART_GRACE_SECONDS) -> bool:
        """Restart in place; wait for the exec. False: unknown name, shutting down, or the check or start failed.

        The table's `stop.grace` applies unless `grace` differs from the default.
        """
        daemon = self._restart(name, None if grace == _RESTART_GRACE_SECONDS else grace)
        if not daemon:
            return False
        history = daemon.history
        while history.answered < history.asked and not self._shutdown:
            self.tick(min(self._time_to_next_deadline(), _POLL_INTERVAL))
        return history.answered == history.asked and not history.is_refused

    def exit_code(self) -> int:
        """The status of the essential daemon that ended the container; otherwise the worst of the daemons that failed
        on their own and were not restarted; otherwise the worst of those that the shutdown stopped.
        """
        worst = max((daemon.history.outcome for daemon in self._daemons), default=(0, 0, 0))
        return worst[-1] if self._fatal_status is None else self._fatal_status

    def run(self) -> int:
        """Start everything; return the exit code when all daemons have exited. The program calls this once."""
        self._launcher.guard()
        self._sleep(0)  # if poll is denied, fail now, before the first child
        self._begin()
        is_done = False
        while not is_done:
            try:
                is_done = self.tick(self._time_to_next_deadline())
            except Exception as error:  # PID 1 goes on: an unexpected error costs a line and a pause
                _log_internal_error(self._log, error)
                time.sleep(0.1)
        try:
            now = self._clock()
            deadline = max((self.shutdown_at or now) + _GRACE_SECONDS, now + 5 * _POLL_INTERVAL)
            for daemon in self._daemons:  # log what did not fit before, and what remaining processes have written
                self._log.wait(deadline)
                daemon.output.drain(is_last=True)
            self._log.say(f"exiting with status {self.exit_code()}")
            self._log.close(deadline)
        except Exception as error:  # it costs a part of the log, not the exit status
            _log_internal_error(self._log, error)
        return self.exit_code()

    def _begin(self) -> None:
        for daemon in self._daemons:
            daemon.begin([self._by_name[name] for name in daemon.spec.after if name in self._by_name])

    def _sleep(self, timeout: float) -> list[int]:
        """Sleep until a descriptor is ready or a signal arrives; return the ready descriptors."""
        if self._may_pause and timeout > _PAUSE_SECONDS:
            time.sleep(_PAUSE_SECONDS)  # a daemon that writes line by line would wake PID 1 for each line
        poll = select.poll()
        poll.register(self._launcher.reports.fd, select.POLLIN)
        if self._inbox:
            poll.register(self._inbox.fd, select.POLLIN)
        if self._log.has_room():
            poll.register(self._pipes.fd, select.POLLIN)
        if self._log.backlog:
            poll.register(self._log.fd, select.POLLOUT)
        milliseconds = None if timeout == _NEVER else min(timeout, 3600) * 1000
        # If a signal interrupts poll at its timeout, poll returns nothing; a second poll finds what came with it.
        return [fd for fd, _ in poll.poll(milliseconds) or poll.poll(0)]

    def _reap(self) -> None:
        """Reap exited children, at most a thousand a turn, so that signals are not delayed."""
        for _ in range(1000):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if not os.WIFSTOPPED(status):  # a child that made us its tracer (PTRACE_TRACEME) has not exited
                self._launcher.reaped(pid, status)
            self._state.must_recheck = True  # an orphan may have been the last of a group that is waited for
        signal.raise_signal(signal.SIGCHLD)  # there may be more: the next turn goes on

    def _handle_signal(self, number: int) -> None:
        row = number - _FIRST_ROW_SIGNAL
        action, target = _SIGNALS.get(_signal_name(number).removeprefix("SIG"), ("", ""))
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGINT and self._shutdown:
            self._log.say("SIGINT during the shutdown: killing what is left")
            self._shutdown.grace = 0.0
        elif number in (signal.SIGTERM, signal.SIGINT):
            self.request_shutdown(_signal_name(number))
        elif number == signal.SIGUSR2:
            self._heartbeats += 1
            self._state.touch()
        elif action == "forward":
            self.forward_signal(number, target)
        elif action == "restart":
            self._restart(target)
        elif 0 <= row < len(_DAEMONS):
            self._restart(_DAEMONS[row].name)
        else:
            self._log.say(f"{_signal_name(number)} ignored: the table does not assign it")

    def _restart(self, name: str, grace: float | None = None) -> _Daemon | None:
        if daemon := self._find(name, f"cannot restart {name}"):
            daemon.restart(grace)
        return daemon

    def _find(self, name: str, refusal: str) -> _Daemon | None:
        """The daemon; None, with a line in the log, if it cannot take a request."""
        if not self._shutdown and name in self._by_name:
            return self._by_name[name]
        self._log.say(f"{refusal}: {'the supervisor is shutting down' if self._shutdown else 'it is not selected'}")
        return None

    def _time_to_next_deadline(self) -> float:
        deadline = min((self._write_by, *(daemon.deadline for daemon in self._daemons)))
        wait = 0.0 if self._state.must_recheck or self._due else max(0.0, deadline - self._clock())
        return wait if self._inbox else min(wait, _POLL_INTERVAL)  # without an inbox, no exit wakes the loop

    def _meet_deadlines(self) -> bool:
        """Advance the daemons whose deadline has passed or whose condition may be met. True if some are left."""
        now, must_recheck = self._clock(), self._state.must_recheck
        self._state.must_recheck = False
        if any(daemon.state == _STOPPING and now >= daemon.deadline for daemon in self._daemons):
            self._reap()  # what exited in time is not killed, even if its SIGCHLD comes after the deadline
        waiting = (_WAITING, _STOPPING) if must_recheck or self._shutdown else ()
        self._due |= {one: None for one in self._daemons if now >= one.deadline or one.state in waiting}
        for daemon in list(self._due):
            del self._due[daemon]
            daemon.advance()
            if self._clock() > now + _TURN_SECONDS:  # the others wait for the next turn, after its signals
                break
        self._launcher.ports.forget()  # the next turn asks the kernel again
        return bool(self._due)

    def _is_done(self) -> bool:
        """True if nothing more can happen: all have ended, or wait for a oneshot that has failed."""
        is_settled = not (self._state.must_recheck or self._due)
        return all(
            one.state in _ENDED or (is_settled and one.state == _WAITING and one.deadline == _NEVER)
            for one in self._daemons
        )

    def _end_if_essential(self) -> None:
        for daemon in self._daemons:
            if daemon.spec.essential and not self._shutdown and (why := daemon.problem):
                self._fatal_status = daemon.history.outcome[-1] or int(daemon.history.is_crash_looping)
                self.request_shutdown(f"{daemon.spec.name} is essential and {why}")

    def _write_status(self, *, is_done: bool) -> None:
        self._write_by = self._clock() + _RETRY_SECONDS
        about = {
            "pid": os.getpid(), "start_ticks": self._launcher.start_ticks, "heartbeats": self._heartbeats,
            "state": "stopped" if is_done else "shutting-down" if self._shutdown else "running",
            "started_at": self._launcher.started_at, "updated_at": _timestamp(time.time()),
            "signals": {name: {action: target} for name, (action, target) in _SIGNALS.items()},
        }  # fmt: skip
        if self._state.write(about, {daemon.spec.name: daemon.describe for daemon in self._daemons}):
            self._write_by = _NEVER


# -- one daemon --------------------------------------------------------------------------------------------------------

_WAITING, _STARTING, _RUNNING, _CHECKING, _STOPPING = "waiting", "starting", "running", "checking", "stopping"
_BACKOFF, _EXITED, _FAILED, _STOPPED = "backoff", "exited", "failed", "stopped"
_LIVE, _ENDED = (_STARTING, _RUNNING, _CHECKING), (_EXITED, _FAILED, _STOPPED)
_NEVER = float("inf")


class _StopOrder(Exception):
    """A request to stop, and how long that may take. A shutdown throws it into every story; a restart sends it."""

    def __init__(self, at: float, grace: float | None = None, *, is_shutdown: bool = False) -> None:
        self.at, self.grace, self.is_shutdown = at, grace, is_shutdown

    def kill_at(self, spec: _DaemonSpec) -> float:
        """When to send KILL. Not stored: tests change _GRACE_SECONDS, and a SIGINT in a shutdown sets `grace` to 0."""
        usual = _GRACE_SECONDS if self.is_shutdown else _RESTART_GRACE_SECONDS
        return self.at + next(grace for grace in (self.grace, spec.stop_grace, usual) if grace is not None)


class _Daemon:
    """One daemon: its state, its process, its story. `_enter` is the only writer of state and deadline.

    The story receives no events. After each wait it checks its process, the clock, and whether a restart was requested
    (what `yield` returns). So it cannot miss an event, or receive one in a state that cannot handle it.
    """

    def __init__(self, spec: _DaemonSpec, clock: _Clock, launcher: _Launcher, log: _Log, state: _State, pipes: _Watch):
        self.spec, self.clock, self._launcher, self._log = spec, clock, launcher, log
        self.state, self.deadline = _WAITING, _NEVER
        self.process: _Process | None = None
        self.output = _Output(spec, log, pipes)  # one pipe for all its processes, so no exit closes it
        self.history = _History(spec, clock, log, state)
        self._shutdown: _StopOrder | None = None
        self._story = self._whole_story([], 0.0)

    def begin(self, after: list[_Daemon], pause: float = 0.0) -> None:
        self._story = self._whole_story(after, self.clock() + pause)
        next(self._story)

    def advance(self, restart: _StopOrder | None = None) -> None:
        """Resume its story, so that it checks what has changed."""
        self._resume(self._story.send, restart)

    def restart(self, grace: float | None = None) -> None:
        """Request a restart; `history.answered` and `history.is_refused` tell the result."""
        self.history.ask()
        self.advance(_StopOrder(self.clock(), grace))

    def shut_down(self, order: _StopOrder) -> None:
        self._shutdown = order
        if self.state not in _ENDED:
            self._resume(self._story.throw, order)

    def forward(self, number: int) -> bool:
        """Signal its own process. True if that was possible."""
        process, problem = self.process, "it is not running"
        if process and self.state in _LIVE and process.is_executed and process.poll() is None:
            problem = process.signal(number)
        self.history.forwarded(number, problem)
        return not problem

    def run(self, argv: Sequence[str], output: _Output) -> _Process:
        """Start a command as this daemon: the daemon itself, its check, or its readiness command."""
        return self._launcher.start(self.spec, argv, output, self)

    def _resume(self, step: Callable[[Any], object], order: _StopOrder | None) -> None:
        """Resume the story; after an internal error it begins again, with the running process or with a new one."""
        try:
            step(order)
            return
        except StopIteration:
            if self.state == _STOPPED:
                return  # otherwise an earlier error ended the story
        except Exception as error:
            _log_internal_error(self._log, error)
        self.history.answer(f"cannot restart {self.spec.name}: internal error", is_refused=True)
        self.begin([], pause=0.1)

    def _whole_story(self, after: list[_Daemon], begin_at: float) -> _Part[None]:
        try:
            is_asked = yield from self._wait_for(after, begin_at)
            while True:
                is_asked = yield from self._run_once(is_asked)
        except _StopOrder as order:
            if self.process and not self.process.is_group_gone:
                yield from self._stop(self.process, order)
                self.history.was_stopped(self.process)
        self._enter(_STOPPED)
        self.history.report("stopped", "")

    def _run_once(self, is_asked: bool) -> _Part[bool]:
        """One process, from its start to the pause after its exit. True if the next start was requested."""
        if (self.process is None or self.process.is_group_gone) and (pause := (yield from self._start(is_asked))):
            return (yield from self._pause(*pause))
        assert self.process
        after = yield from self._serve(self.process)
        if isinstance(after, _StopOrder):
            return (yield from self._stop(self.process, after, is_asked=True))
        is_asked = yield from self._stop(self.process, _StopOrder(self.clock()))  # what the process has left behind
        return is_asked or (yield from self._pause(*after))

    def _wait_for(self, others: list[_Daemon], begin_at: float) -> _Part[bool]:
        """Wait until all others have been ready once; 10 s at most, or without a limit if a oneshot is among them."""
        give_up_at = _NEVER
        order = yield self._enter(_WAITING, begin_at)
        while not order and self.clock() < begin_at:
            order = yield self._enter(_WAITING, begin_at)
        if self._shutdown:  # requested before an internal error
            raise self._shutdown
        while missing := [other for other in others if other.can_become_ready]:
            names = ", ".join(other.spec.name for other in missing)
            oneshots = [other for other in missing if other.spec.oneshot]
            failed = [f"; {oneshot.spec.name} {oneshot.problem}" for oneshot in oneshots if oneshot.problem]
            self.history.explain("".join([f"waits for {names}", *failed]))
            if order and not oneshots:
                break
            if order:
                self.history.refuse(f"it {self.history.reason}")
            is_limited = not oneshots and all(other.state != _WAITING for other in missing)
            give_up_at = min(give_up_at, self.clock() + _AFTER_SECONDS) if is_limited else _NEVER
            if self.clock() >= give_up_at:
                are = "is" if len(missing) == 1 else "are"
                self._log.say(f"{names} {are} not ready after {_AFTER_SECONDS:g} s; starting {self.spec.name} anyway")
                break
            order = yield self._enter(_WAITING, give_up_at)
        return order is not None

    def _start(self, is_asked: bool) -> _Part[_Pause | None]:
        """Fork, and wait for the exec. Returns None if it succeeded, else the pause before the next try."""
        self.history.starting(is_asked)
        before, self.output.lines.last_lines = self.process, b""
        try:
            process = self.process = self.run(self.spec.argv, self.output)
            give_up_at = self.clock() + _EXEC_SECONDS
            while not process.is_executed:
                if self.clock() >= give_up_at:  # another process of the same user may have suspended it
                    process.kill()
                    raise _CannotStart(f"execute {self.spec.argv[0]}", reason="it took too long", may_pass=True)
                if process.problem:
                    raise process.problem
                yield self._enter(_STARTING, give_up_at)
        except _CannotStart as problem:
            self.process = before
            if problem.status is None and not self.history.starts:
                self.output.close()  # this frees descriptors, in case they have run out
            delay = self.history.not_started(problem)
            return (_FAILED, _NEVER) if delay is None else (_BACKOFF, self.clock() + delay)
        self.history.started(process, is_asked)
        return None

    def _serve(self, process: _Process) -> _Part[_Pause | _StopOrder]:
        """Watch the process until it exits, or until a restart may stop it. Returns what to do then."""
        readiness = _Readiness(self, process, self._launcher.ports)
        try:
            while process.returncode is None:
                look_at = readiness.look()
                state = _RUNNING if process.is_ready or self.spec.oneshot else _STARTING
                order = yield self._enter(state, min(look_at, self.history.reset_backoff(process)))
                if order:  # also if the process has exited meanwhile: then the next start answers the request
                    self.history.accept()
                    problem = yield from self._check(process)
                    if not problem:
                        if process.poll() is not None:
                            self._report_exit(process)
                        order.at = self.clock()  # the grace does not include the check
                        return order
                    self.history.refuse(problem)
        finally:
            readiness.close()
        return self._after_exit(process)

    def _after_exit(self, process: _Process) -> _Pause:
        """Apply the restart policy to an exit that was not requested."""
        history, has_succeeded = self.history, process.returncode == 0
        is_done = self.spec.oneshot and has_succeeded
        policy = self.spec.restart if self._launcher.may_restart and not is_done else "never"
        if policy == "never" or (policy == "on-failure" and has_succeeded):
            self._report_exit(process)
            if is_done:
                history.became_ready(process)
            history.exits = 0
            return _EXITED, _NEVER
        history.reset_backoff(process)
        history.exits += 1
        delay = _backoff(history.exits)
        self._report_exit(process, delay)
        if history.exits == _CRASH_LOOP_EXITS:
            what = f"{self.spec.name} is crash-looping: {history.exits} exits, each within {_STEADY_SECONDS:g} s"
            history.report("crash-looping", what, exits=history.exits)
        return _BACKOFF, self.clock() + delay

    def _check(self, process: _Process) -> _Part[str]:
        """The reason why the check forbids the restart; empty if it passes, or if `process` has exited meanwhile.

        A request during the check repeats it once: the file that it read may have changed.
        """
        problem, repeat = "", bool(self.spec.check)
        for _ in range(2):
            if not repeat or process.returncode is not None:
                break
            check, repeat = _Attempt(self, self.spec.check, "its check", _CHECK_SECONDS), False
            try:
                while (outcome := check.problem()) is None and process.returncode is None:
                    repeat |= (yield self._enter(_CHECKING, check.deadline)) is not None
                problem = outcome or ""
            finally:
                check.close()
        return "" if process.returncode is not None else problem

    def _stop(self, process: _Process, order: _StopOrder, *, is_asked: bool = False) -> _Part[bool]:
        """Stop the process group; returns when it is empty. True if a restart was requested."""
        is_reported = process.returncode is not None
        give_up_at = self.clock() + _GIVE_UP_SECONDS
        if not process.stopped_by:
            process.stop(self.spec.stop_signal, "group" if is_reported else self.spec.stop_to)
        while True:
            if process.returncode is not None and not is_reported:
                is_reported = True
                self._report_exit(process)
                if self.spec.stop_to == "leader" and process.stopped_by != signal.SIGKILL:
                    process.stop(self.spec.stop_signal, "group")  # what it has left behind
            if is_reported and not process.signal_group(0):
                return is_asked
            if process.is_out_of_reach:
                self._log.say_once(f"cannot signal {self.spec.name}: the container needs the capability KILL")
            now, kill_at = self.clock(), order.kill_at(self.spec)
            is_killed = process.stopped_by == signal.SIGKILL
            if is_killed and now >= give_up_at and (is_reported or order.is_shutdown):
                process.is_group_gone = True
                process.returncode = -signal.SIGKILL if process.returncode is None else process.returncode
                return is_asked
            if not is_killed and now >= kill_at and (is_reported or process.poll() is None):
                late = f"{self.spec.name} has not stopped after {now - order.at:.1f} s"
                self.history.report("killed", late, then="killing it")
                process.stop(signal.SIGKILL, "group")
                give_up_at = now + _GIVE_UP_SECONDS
            # If the leader has exited, no signal tells us that its group is empty.
            is_unseen = process.returncode is not None or process.stopped_by == signal.SIGKILL
            if (yield self._enter(_STOPPING, now + _POLL_INTERVAL if is_unseen else kill_at)) and not is_asked:
                is_asked = True
                self.history.accept()

    def _pause(self, state: str, until: float) -> _Part[bool]:
        """Wait before the next start. True if that was requested."""
        while self.clock() < until:
            if (yield self._enter(state, until)):
                self.history.accept()
                return True
        return False

    def _enter(self, state: str, deadline: float = _NEVER) -> str:
        self.deadline = deadline
        if state != self.state:
            self.state = state
            self.history.touch()
        return state

    def _report_exit(self, process: _Process, delay: float | None = None) -> None:
        """Log the exit, after all output of the process that the log has room for."""
        self.output.drain()
        self.history.exited(process, delay, self.output.lines.last_lines, self._launcher.oom)

    @property
    def can_become_ready(self) -> bool:
        """Whether others wait for it. A daemon after a oneshot waits even if the oneshot has failed."""
        return not self.history.was_ready and (self.spec.oneshot or self.state not in _ENDED)

    @property
    def problem(self) -> str:
        """Why it is down for good, or crash-looping; empty if it is neither."""
        is_down = self.state in (_EXITED, _FAILED) and not (self.spec.oneshot and not self.history.outcome[-1])
        return "is crash-looping" if self.history.is_crash_looping else self.history.reason if is_down else ""

    def describe(self) -> dict[str, object]:
        return self.history.describe(self.state, self.process, self.deadline - self.clock())


# -- the log -----------------------------------------------------------------------------------------------------------


class _Log:
    """The container's log: whole lines to stdout, without ever waiting for its reader.

    Output that cannot be written yet stays in `_buffer`. If stdout is broken, or if there is no room for a message of
    the supervisor's own, the lines are dropped and counted.
    """

    def __init__(self, fd: int, secrets: _Secrets) -> None:
        self.secrets = secrets
        bytes(1 << 21)  # allocated and freed: glibc now keeps up to 4 MiB, and no turn has to fault its pages in again
        self._buffer, self._is_mid_line = bytearray(), False
        self._lost, self._why_lost = 0, ""  # lines
        self._said: set[str] = set()
        self._has_colours = os.isatty(fd) and not os.environ.get("NO_COLOR")
        self.fd, self._may_block = _open_for_log(fd)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLOUT)

    def prefix(self, text: str) -> bytes:
        return os.fsencode(f"\033[{32 + sum(map(ord, text)) % 5}m{text}\033[0m" if self._has_colours else text)

    @property
    def backlog(self) -> int:
        return len(self._buffer)

    def has_room(self, reserve: int = 0) -> bool:
        return len(self._buffer) < _LOG_LIMIT + reserve

    def put(self, text: bytes) -> None:
        """Append whole lines."""
        if self._is_mid_line and not self._buffer:  # the buffer was dropped in the middle of a line: end it first
            self._buffer += b"\n"
        self._buffer += text

    def say(self, text: str) -> None:
        """Log a message of the supervisor's own."""
        if self.has_room(_LOG_RESERVE):
            line = _one_line(self.redact_text(text)).encode("utf-8", "backslashreplace")
            self.put(self.prefix("sidecar-init: ") + line + b"\n")
        else:
            self._lost, self._why_lost = self._lost + 1, "the log's reader stalled"

    def say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def redact_text(self, text: str) -> str:
        return self.secrets.redact(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def flush(self) -> None:
        """Write what can be written without waiting."""
        try:
            # If a write may block, ask poll first: a descriptor that it reports as writable accepts 4 KiB.
            while self._buffer and (not self._may_block or self._poll.poll(0)):
                written = os.write(self.fd, self._buffer[:4096] if self._may_block else self._buffer)
                self._is_mid_line = self._buffer[written - 1] != 10
                del self._buffer[:written]
                self._report_loss()
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(str(error.strerror))

    def _drop(self, why: str) -> None:
        self._lost, self._why_lost = self._lost + self._buffer.removeprefix(b"\n").count(b"\n"), why
        self._buffer.clear()

    def _report_loss(self) -> None:
        if self._lost and self.has_room():
            lost, self._lost = self._lost, 0
            self.say(f"{lost} log lines were lost: {self._why_lost}")

    def wait(self, deadline: float) -> None:
        """Flush, waiting for the reader until `deadline`; then drop what is left."""
        self.flush()
        while self._buffer and (seconds := deadline - time.monotonic()) > 0:
            self._poll.poll(seconds * 1000)
            self.flush()
        if self._buffer:
            self._drop("the log's reader stalled")

    def close(self, deadline: float) -> None:
        self.wait(deadline)
        self._report_loss()
        self.wait(time.monotonic() + _POLL_INTERVAL)


# -- the launcher ------------------------------------------------------------------------------------------------------


class _Launcher:
    """Starts commands. Everything that needs a path, a service or a library is opened once, before the first child."""

    def __init__(self, specs: Sequence[_DaemonSpec], log: _Log, state: _State, clock: _Clock) -> None:
        self._clock, self._log, self._kernel, self._accounts = clock, log, _Kernel(), _read_accounts()
        self.may_restart = _setting(os.environ, "RESTART") != "never"
        self._null, self._limits = _open_null_device(), _raise_descriptor_limit()
        self._inputs = _Inputs(specs, {**os.environ, **state.environ}, self._kernel, log)
        self._to_reset = [sig for sig in signal.valid_signals() if signal.getsignal(sig) != signal.SIG_DFL]
        self.oom, self.ports, self.reports = _OomCounter(), _Ports(self._kernel), _Watch()
        self.children: dict[int, tuple[_Process, _Daemon]] = {}  # those that have not been reaped
        self._reaped: list[_Process] = []  # those whose groups may not be empty
        self.started_at, self.start_ticks = _timestamp(time.time()), _start_ticks(os.getpid())

    def guard(self) -> None:
        """Make PID 1's memory unreadable to daemons; adopt orphans."""
        self._kernel.prctl(_PR_SET_DUMPABLE, 0)
        self._kernel.empty_environment_block()
        if os.getpid() != 1:
            self._kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def start(self, spec: _DaemonSpec, argv: Sequence[str], output: _Output, owner: _Daemon) -> _Process:
        """Fork a child that executes the command. `owner` is advanced when that succeeds or fails, and at the exit."""
        account, report, childs_end = _account_of(spec, self._accounts, self._log), -1, -1
        files: list[int] = []
        # Before Linux 6.9 a group is signalled by its ID. This child may get the ID of an empty group, so check now.
        self._reaped = [one for one in self._reaped if one.signal_group(0)]
        # A signal that came between fork and exec would run PID 1's handlers in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            step = "prepare its environment and files"
            environ = self._inputs.prepare(spec, account, files)
            step = "list the listening sockets"
            old_sockets = self.ports.sockets(spec.port) if spec.port else frozenset()
            step = "open a pipe"
            writer = self._kernel.as_user(account.uid if account else None, output.writer)
            report, childs_end = os.pipe2(os.O_CLOEXEC)
            self.reports.add(report, lambda: self._advance(process, owner))  # before the fork, because it can fail
            step = "fork"
            pid = os.fork()
            if pid == 0:
                self._become(spec, argv, environ, writer, account, files, childs_end)
        except Exception as error:
            self.reports.remove(report)
            _close(report)
            if not isinstance(error, OSError):
                raise
            raise _CannotStart(step, error.errno or 0) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _close(childs_end, *files)
        process = _Process(pid, report=report, started_at=self._clock())
        process.old_sockets = old_sockets
        self.children[pid] = process, owner
        return process

    def reaped(self, pid: int, status: int) -> None:
        process, owner = self.children.pop(pid, (None, None))
        if process and owner:
            process.returncode = os.waitstatus_to_exitcode(status)
            self._reaped.append(process)
            self._advance(process, owner)

    def _advance(self, process: _Process, owner: _Daemon) -> None:
        if process.report >= 0:
            self.reports.remove(process.report)
            process.read_report()
        owner.advance()

    def _become(
        self, spec: _DaemonSpec, argv: Sequence[str], environ: Mapping[str, str], output: int, account: _Account | None,
        files: Sequence[int], report: int,
    ) -> NoReturn:  # fmt: skip
        """The child's part of `start`: every step succeeds, or the command is not executed.

        It gets its own session, the null device as stdin, `output` as stdout and stderr, `files` and no other
        descriptor, default dispositions, an empty mask, no core dumps, no way to gain privileges, and its account.
        """
        step, kept = "prepare its process", spec.capabilities if os.geteuid() == 0 else ()
        try:
            os.setsid()
            _offer_to_oom_killer(self._kernel.proc)
            above = 3 + len(files)  # so that no dup2 below overwrites a source
            report, *sources = (
                fd if fd < 0 else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
                for fd in (report, self._null, output, output, *files)
            )
            for target, source in enumerate(sources):
                if source >= 0:
                    os.dup2(source, target)
            for number in self._to_reset:
                signal.signal(number, signal.SIG_DFL)
            for kind, limits in self._limits.items():
                resource.setrlimit(kind, limits)
            self._kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
            if os.geteuid() == 0:
                step = "drop capabilities (the container must have SETPCAP, or none at all)"
                self._kernel.drop_bounding_set(kept)
            if account:
                self._kernel.prctl(_PR_SET_KEEPCAPS, bool(kept))
                step = f"become {account.name} (the container must have SETUID and SETGID)"
                os.setgroups(account.groups)
                os.setresgid(account.gid, account.gid, account.gid)
                os.setresuid(account.uid, account.uid, account.uid)
                self._kernel.prctl(_PR_SET_DUMPABLE, 0)  # the change of user may have made memory readable
            step = "drop capabilities"
            self._kernel.drop_capabilities(kept)
            if spec.cwd:
                step = f"change to its working directory {spec.cwd}"
                os.chdir(spec.cwd)
            step = f"execute {argv[0]}"
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _execute(argv, environ)
        except Exception as error:
            os.write(report, os.fsencode(f"{getattr(error, 'errno', None) or errno.EINVAL} {step}"))
        finally:
            os._exit(127)


# -- signals -----------------------------------------------------------------------------------------------------------

_HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
_recorded_signals: dict[int, None] = {}  # each once, in order


def _record_signal(number: int, _: FrameType | None) -> None:
    _recorded_signals[number] = None


class _Inbox:
    """The signals that handlers have recorded. A descriptor wakes poll, which a Python handler alone does not."""

    def __init__(self) -> None:
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def open(self) -> None:
        """Install the handlers, then unblock all signals. The program calls this once, before the first child."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (*_HANDLED_SIGNALS, *range(_FIRST_ROW_SIGNAL, 65)):
            if number in signal.valid_signals():  # musl keeps 34 for itself
                signal.signal(number, _record_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def take(self, readable: Sequence[int]) -> list[int]:
        """The signals since the last call, each once, in order."""
        if self.fd not in readable:
            return []
        os.read(self.fd, _READ_SIZE)
        taken = list(_recorded_signals)
        for number in taken:  # a repeat before this is merged with the first: nothing has been done for that yet
            del _recorded_signals[number]
        return taken


# -- state files and events --------------------------------------------------------------------------------------------


class _State:
    """`status.json` and `events.jsonl`, written at the end of a turn."""

    def __init__(self, directory: str, log: _Log) -> None:
        self._log, self._directory, self._is_failing = log, None, False
        try:
            self._directory = _Directory(directory) if directory else None
        except OSError as error:
            remedy = "set SIDECAR_INIT_STATE_DIR to another directory"
            log.say(f"cannot keep status and events in {directory}: {error.strerror}; {remedy}")
        names = {"SIDECAR_STATUS_FILE": "status.json", "SIDECAR_EVENTS_FILE": "events.jsonl"}  # as daemons find them
        self.environ = {variable: f"{directory}/{name}" for variable, name in names.items() if self._directory}
        self.is_stale = False  # the files are out of date
        self.must_recheck = False  # a daemon that waits for others, or for its group, may be able to go on
        self._events: list[str] = []
        self._stale: set[str] = set()
        self._described: dict[str, str] = {}

    def touch(self, daemon: str | None = None) -> None:
        """Note that something visible has changed."""
        self.must_recheck = self.is_stale = True
        if daemon:
            self._stale.add(daemon)

    def record(self, event: str, daemon: str | None, pid: int | None, **more: object) -> None:
        """Record an event. Text in `more` that comes from outside has been redacted."""
        self.touch(daemon)
        if self._directory:
            about = {"time": _timestamp(time.time()), "event": event, "daemon": daemon, "pid": pid, **more}
            self._events.append(_json(about) + "\n")

    def write(self, about: Mapping[str, object], daemons: Mapping[str, Callable[[], object]]) -> bool:
        """Append the events and replace the status. False if the directory does not take them."""
        self.is_stale = False
        if not self._directory:
            return True
        for name, describe in daemons.items():
            if name in self._stale or name not in self._described:
                self._described[name] = _json(describe())
        self._stale.clear()
        events, self._events = "".join(self._events), []
        status = _json(about)[:-1] + f', "daemons": [{", ".join(self._described.values())}]}}\n'
        try:
            if events:
                self._directory.append("events.jsonl", events.encode("utf-8", "backslashreplace"), _EVENTS_LIMIT)
            self._directory.replace("status.json", status.encode("utf-8", "backslashreplace"))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._log.say(f"cannot write to {self._directory.path}: {error.strerror}; the status is out of date")
            self._is_failing = True
        return not self._is_failing


# -- end of the core: the classes that it uses follow ------------------------------------------------------------------


class _CannotStart(Exception):
    """Why a command does not start. `status` is as in a shell; None if trying again may help."""

    _PASSING = (
        errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ETXTBSY,
    )  # fmt: skip

    def __init__(self, step: str, number: int = 0, *, reason: str = "", may_pass: bool = False) -> None:
        super().__init__(f"cannot {step}: {reason or os.strerror(number)}")
        not_found = number == errno.ENOENT and step.startswith("execute")
        self.status = None if may_pass or number in self._PASSING else 127 if not_found else 126


class _Process:
    """One child: pid, returncode and poll as in `subprocess.Popen`, how to signal it, and how far its start got."""

    def __init__(self, pid: int, returncode: int | None = None, *, report: int = -1, started_at: float = 0.0) -> None:
        self.pid, self.returncode = pid, returncode
        self.started_at, self.started_time = started_at, time.time()
        self.old_sockets: frozenset[int] = frozenset()  # those that listened on its port before it was started
        self.is_ready = False
        self.stopped_by = 0  # the last signal that was sent to stop it
        self.is_out_of_reach = False  # the kernel refuses to signal it
        self.is_group_gone = False  # seen empty, or given up: its ID may belong to another group now
        self.report = report  # a pipe that exec closes; if the exec fails, it carries the reason
        self.problem: _CannotStart | None = None
        self._pidfd = -1
        if pid and returncode is None:
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError:
                pass  # an old kernel, or no descriptor left: its group is signalled by its ID

    def close(self) -> None:
        _close(self._pidfd, self.report)
        self._pidfd = self.report = -1

    __del__ = close

    @property
    def is_executed(self) -> bool:
        return self.report < 0 and self.problem is None

    def read_report(self) -> None:
        """Read the reason if the exec failed; called when the pipe is readable or the child has exited."""
        number, _, step = os.read(self.report, 4096).decode("utf-8", "replace").partition(" ")
        if number:
            self.problem = _CannotStart(step, int(number) if number.isdecimal() else errno.EINVAL)
        os.close(self.report)
        self.report = -1

    def poll(self) -> int | None:
        """The returncode. This does not reap, so that the loop still sees the exit."""
        if self.returncode is None and self.pid:
            try:
                end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                end = None
            if end and end.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):  # a traced one may have stopped
                self.returncode = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return self.returncode

    def signal(self, number: int) -> str:
        """Signal the process itself. Returns why that failed; empty if the signal was delivered."""
        try:
            self._send(number, 0)
        except OSError as error:
            return str(error.strerror)
        return ""

    def signal_group(self, number: int) -> bool:
        """Signal all processes of its group. False if there are none; the group is then never signalled again."""
        try:
            if not self.is_group_gone:
                self._send(number, _PIDFD_SIGNAL_PROCESS_GROUP)
        except ProcessLookupError:
            if self.returncode is None:
                self.signal(number)  # forked a moment ago, it has no group yet
            else:
                self.is_group_gone = True
                self.close()
        except PermissionError:
            self.is_out_of_reach = True
        return not self.is_group_gone

    def _send(self, number: int, flags: int) -> None:
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number, None, flags)
                return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise  # otherwise the kernel is older than 6.9 (for a group), or a filter forbids it
        if flags:
            os.killpg(self.pid, number)
        elif self.returncode is None:
            os.kill(self.pid, number)

    def stop(self, number: int, to: str) -> None:
        self.stopped_by = number
        for each in (number, signal.SIGCONT):  # a suspended process handles its signal only when it continues
            self.signal(each) if to == "leader" else self.signal_group(each)

    def kill(self) -> None:
        """Kill it, and what it has left behind in its group."""
        if self.pid:
            self.stop(signal.SIGKILL, "group")


class _Attempt:
    """One run of a check or a readiness command, with a pipe of its own and a time limit."""

    def __init__(self, daemon: _Daemon, argv: Sequence[str], what: str, seconds: float, *, is_silent: bool = False):
        self._clock, self._what, self._seconds = daemon.clock, what, seconds
        self.deadline = daemon.clock() + seconds
        self._output = daemon.output.sibling(is_silent=is_silent)
        try:
            self.process = daemon.run(argv, self._output)
        except _CannotStart as problem:
            self.process = _Process(0, 126)
            self.process.problem = problem
        except Exception:
            self._output.close()
            raise

    def problem(self) -> str | None:
        """What is wrong, with the last line of its output; empty if it exited with 0; None while it runs."""
        process, how = self.process, f"took longer than {self._seconds:g} s"
        if process.returncode is not None:
            how = _exit_text(process.returncode)
        elif self._clock() < self.deadline:
            return None
        if process.problem or process.returncode == 0:
            return str(process.problem or "")
        self._output.drain()
        last = self._output.lines.last_lines.decode("utf-8", "replace").splitlines()[-1:]
        return " ".join([self._what, how, *(f"({line})" for line in last)])

    def close(self) -> None:
        self.process.kill()
        self._output.close()


class _Readiness:
    """Decides if a daemon is ready: by its port, its readiness command, or both; by default once it is executed."""

    def __init__(self, daemon: _Daemon, process: _Process, ports: _Ports) -> None:
        self._daemon, self._process, self._ports = daemon, process, ports
        self._awaited = [self._port()] if daemon.spec.port else []
        self._awaited += [self._command()] if daemon.spec.ready else []

    def look(self) -> float:
        """Check readiness. Returns when to check again."""
        if self._process.is_ready or self._daemon.spec.oneshot:  # a oneshot is ready when it has exited with 0
            return _NEVER
        look_at = min((next(awaited, _NEVER) for awaited in self._awaited), default=_NEVER)
        if look_at == _NEVER:
            self._daemon.history.became_ready(self._process)
        return look_at

    def close(self) -> None:
        for awaited in self._awaited:
            awaited.close()

    def _port(self) -> Generator[float, None, None]:
        """Ends when a socket listens that did not listen before the process was started."""
        port, said = self._daemon.spec.port or 0, ""
        while True:
            try:
                sockets = self._ports.sockets(port)
                if sockets - self._process.old_sockets:
                    return
                problem = f"another process holds port {port}" if sockets else ""
            except OSError as error:
                problem = f"listening sockets cannot be read: {error.strerror}"
            if problem not in ("", said):  # only once: it must not alternate with the readiness command's reason
                said = problem
                self._daemon.history.explain(f"is not ready: {problem}")
            now = self._daemon.clock()
            yield now - now % self._ports.interval + self._ports.interval  # so that all check in one turn of the loop

    def _command(self) -> Generator[float, None, None]:
        """Ends when the readiness command has exited with 0."""
        daemon, failures, delay = self._daemon, 0, _READY_FIRST
        while True:
            is_silent = failures < _READY_SILENT
            attempt = _Attempt(daemon, daemon.spec.ready, "its readiness command", _READY_SECONDS, is_silent=is_silent)
            try:
                while (problem := attempt.problem()) is None:
                    yield attempt.deadline
            finally:
                attempt.close()
            if not problem:
                return
            failures += 1
            if failures >= _READY_SILENT:
                daemon.history.explain(f"is not ready: {problem}")
            again_at, delay = daemon.clock() + delay, min(2 * delay, _READY_LAST)
            while (now := daemon.clock()) < again_at or attempt.process.returncode is None:
                yield again_at if now < again_at else now + _READY_LAST  # killed, but it hangs in the kernel


class _History:
    """What is remembered of a daemon across its processes, and how the log, the events and the status report it."""

    def __init__(self, spec: _DaemonSpec, clock: _Clock, log: _Log, state: _State) -> None:
        self._spec, self._name, self._clock, self._log, self._state = spec, spec.name, clock, log, state
        self._pid: int | None = None
        self.starts = 0
        self.exits = self.failed_starts = 0  # in a row
        self.was_ready = False
        self.reason = ""  # why it waits, is not ready, or is down
        self.last_exit: str | None = None
        # Failed on its own, killed by the shutdown, status. The greatest of all daemons' triples decides the exit code:
        # when the shutdown kills a daemon, that 137 is worse than any status that a daemon chose.
        self.outcome = (0, 0, 0)
        self.asked = self.answered = 0  # requests to reload it, and how many of them were answered
        self._answer, self.is_refused = "", False

    @property
    def is_crash_looping(self) -> bool:
        return self.exits >= _CRASH_LOOP_EXITS

    def touch(self) -> None:
        self._state.touch(self._name)

    def report(self, event: str, text: str, *, then: str = "", refuses: bool | None = None, **more: object) -> None:
        """Log the text and record the event. With `refuses`, the text answers all requests since the last answer."""
        if text:
            self._log.say(f"{text}; {then}" if then else text)
        self._state.record(event, self._name, self._pid, **more)
        if refuses is not None:
            self.answer(text, is_refused=refuses)

    def explain(self, reason: str) -> None:
        """Say why it is not up yet, whenever the reason changes."""
        reason = self._log.redact_text(reason)
        if reason != self.reason:
            self.reason = reason
            self._log.say(f"{self._name} {reason}")
            self.touch()

    def ask(self) -> None:
        """Count a request to restart or signal it; `answer` says how it went."""
        self.asked += 1
        self.touch()

    def answer(self, text: str, *, is_refused: bool = False) -> None:
        if self.answered < self.asked:
            self.answered, self._answer, self.is_refused = self.asked, text, is_refused
            self.touch()

    def accept(self) -> None:
        """A requested restart begins; its check may still refuse it."""
        self.report("restarting", f"restarting {self._name}")

    def refuse(self, problem: str) -> None:
        problem = self._log.redact_text(problem)
        what = f"cannot restart {self._name}: {problem}"
        self.report("refused", what, then="nothing was changed", refuses=True, reason=problem)

    def forwarded(self, number: int, problem: str) -> None:
        sent = _signal_name(number)
        what = f"{sent} for {self._name} dropped: {problem}" if problem else f"{sent} delivered to {self._name}"
        is_restarting = self.answered < self.asked  # its answer will be for both
        self.ask()
        refuses = None if is_restarting else bool(problem)
        self.report("signal", what, refuses=refuses, signal=sent, forwarded=not problem, reason=problem or None)

    def starting(self, is_asked: bool) -> None:
        """With a requested start, the backoff begins again."""
        if is_asked:
            self.exits = self.failed_starts = 0

    def started(self, process: _Process, is_asked: bool) -> None:
        self._pid = process.pid
        self.starts += 1
        self.failed_starts, self.outcome, self.reason = 0, (0, 0, 0), ""
        event = "restarted" if is_asked and self.starts > 1 else "started"
        self.report(event, f"{self._name} {event} (pid {process.pid})", refuses=False)

    def not_started(self, problem: _CannotStart) -> float | None:
        """Returns the delay until the next try; None if there will be none."""
        self.reason = self._log.redact_text(str(problem))
        event, what, delay = "failed", f"cannot start {self._name}: {self.reason}", None
        then = "it stays down until a restart is requested"
        if problem.status is None:
            self.failed_starts += 1
            event, delay = "not-started", _backoff(self.failed_starts)
            then = f"trying again in {delay:.1f} s"
        else:
            self.outcome = (1, 0, problem.status)
        self.report(event, what, then=then, refuses=True, reason=self.reason)
        return delay

    def became_ready(self, process: _Process) -> None:
        process.is_ready = self.was_ready = True
        self.reason, uptime = "", self._clock() - process.started_at
        what = f"{self._name} ready after {uptime:.2f} s" if self._spec.port or self._spec.ready else ""
        self.report("ready", what, seconds=round(uptime, 3))

    def reset_backoff(self, process: _Process) -> float:
        """Reset the backoff after enough uptime. Returns when that will be; never if there is nothing to reset."""
        steady_at = process.started_at + _STEADY_SECONDS
        if self.exits and self._clock() >= steady_at:
            self.exits = 0
            self.touch()
        return steady_at if self.exits else _NEVER

    def exited(self, process: _Process, delay: float | None, last_lines: bytes, counter: _OomCounter) -> None:
        self._pid = process.pid  # a shutdown can come before its start was noticed
        code, uptime = process.returncode or 0, self._clock() - process.started_at
        if not process.stopped_by:  # this counts until the next start
            self.outcome = (int(code != 0), 0, _shell_status(code))
        is_killed_by_others = code == -signal.SIGKILL and process.stopped_by != signal.SIGKILL
        oom = counter.has_counted() if is_killed_by_others else False
        self.reason = self.last_exit = _exit_text(code) + (" (out of memory)" if oom else "")
        self.report(
            "exited", f"{self._name} {self.reason} after {uptime:.1f} s",
            then="" if delay is None else f"restarting in {delay:.1f} s",
            code=code if code >= 0 else None, signal=_signal_name(-code) if code < 0 else None, oom=oom,
            uptime=round(uptime, 3), restarts=max(self.starts - 1, 0), next_start_in=delay and round(delay, 3),
            last_lines=last_lines.decode("utf-8", "replace").splitlines()[-5:],
        )  # fmt: skip

    def was_stopped(self, process: _Process) -> None:
        """Called if the shutdown stopped it: its status counts unless it failed before."""
        if not self.outcome[0]:
            status = _shell_status(process.returncode or 0)
            self.outcome = (0, int(status == 137), status)

    def describe(self, state: str, process: _Process | None, next_start_in: float) -> dict[str, object]:
        """The daemon's part of the status."""
        is_done = self._spec.oneshot and state == _EXITED and not self.outcome[-1]
        return {
            "name": self._name, "state": state, "reason": self.reason or None,
            "ready": bool(process and process.is_ready and (is_done or state in _LIVE)),
            "pid": process.pid if process and process.returncode is None else None,
            "port": self._spec.port, "user": self._spec.user, "signal": _row_signal(self._name),
            "started_at": _timestamp(process.started_time) if process else None,
            "starts": self.starts, "restarts": max(self.starts - 1, 0), "last_exit": self.last_exit,
            "crash_looping": self.is_crash_looping, "succeeded": self._spec.oneshot and self.was_ready,
            "next_start_at": _timestamp(time.time() + next_start_in) if state == _BACKOFF else None,
            "asked": self.asked, "answered": self.answered, "answer": self._answer or None, "refused": self.is_refused,
        }  # fmt: skip


# -- pipes, lines and redaction ----------------------------------------------------------------------------------------


class _Watch:
    """Descriptors to read, each with its callback. They take turns, so that none starves."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], object]] = {}
        self.fd = self._epoll.fileno()

    def add(self, fd: int, call: Callable[[], object]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._calls[fd] = call

    def remove(self, fd: int) -> None:
        if self._calls.pop(fd, None):
            self._epoll.unregister(fd)

    def take_turns(self, may_go_on: Callable[[], bool] = lambda: True) -> None:
        for _ in range(len(self._calls)):
            # The one that poll returns goes to the end of the queue: ask first whether it may be read.
            if not may_go_on() or not (ready := self._epoll.poll(0, 1)):
                return
            self._calls[ready[0][0]]()


class _Output:
    """A pipe that a daemon writes to, and its way to the log."""

    def __init__(self, spec: _DaemonSpec, log: _Log, pipes: _Watch, *, is_silent: bool = False) -> None:
        self._spec, self._log, self._pipes, self._is_silent = spec, log, pipes, is_silent
        self._ends: tuple[int, int] | None = None
        self._left: list[int] = []  # how much is still in the pipe of each earlier process: no line spans two of them
        prefix = log.prefix(f"[{spec.name}] ") if spec.prefix else b""
        self.lines = _Lines(prefix, log.secrets, spec.name, has_files=bool(spec.files))

    def sibling(self, *, is_silent: bool = False) -> _Output:
        """Another pipe with the same prefix, for a check or a readiness command."""
        return _Output(self._spec, self._log, self._pipes, is_silent=is_silent)

    def writer(self) -> int:
        """The write end; the pipe is created at the first start."""
        if self._ends is None:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._pipes.add(reader, self._read)
            except OSError:
                _close(reader, writer)
                raise
            self._ends = reader, writer
        if (size := _size_of(self._ends[0])) > sum(self._left):  # the log was full when the last process exited
            self._left.append(size - sum(self._left))
        if not self._left:  # otherwise the rest of an unfinished line is still in the pipe
            self._put(self.lines.finish())
        # All processes share this description; an earlier one may have made it non-blocking.
        os.set_blocking(self._ends[1], True)
        return self._ends[1]

    def drain(self, *, is_last: bool = False) -> None:
        """Read what an exited process has written, without waiting for others that go on writing."""
        budget = _LOG_LIMIT
        while self._ends and budget > 0 and self._log.has_room(_LOG_RESERVE // 2):  # the other half is for messages
            size = self._read()
            budget -= max(size, 4096)  # a process that is left behind may write byte by byte
            self._log.flush()
            if not size:
                is_last = True
                break
        if is_last:
            self._put(self.lines.finish())

    def close(self) -> None:
        if self._ends:
            self.drain(is_last=True)
            if not self._is_silent and _size_of(self._ends[0]):
                whose = f"a check or readiness command of {self._spec.name}"
                self._log.say(f"some output of {whose} was lost: the log is full, or the command goes on writing")
            self._pipes.remove(self._ends[0])
            _close(*self._ends)
            self._ends, self._left = None, []

    def _read(self) -> int:
        assert self._ends
        try:
            chunk = os.read(self._ends[0], min(_READ_SIZE, self._left[0]) if self._left else _READ_SIZE)
        except BlockingIOError:
            self._left.clear()  # a process of the daemon has read its own pipe
            return 0
        self._put(self.lines.feed(chunk))
        if self._left:
            self._left[0] -= len(chunk)
            if not self._left[0]:
                del self._left[0]
                self._put(self.lines.finish())
        return len(chunk)

    def _put(self, text: bytes) -> None:
        if text and not self._is_silent:
            self._log.put(text)


class _Lines:
    """Turns the bytes that a daemon writes into whole, prefixed lines; splits lines over 64 KiB."""

    def __init__(self, prefix: bytes, secrets: _Secrets, daemon: str = "", *, has_files: bool = False) -> None:
        self._prefix, self._secrets, self._daemon = prefix, secrets, daemon
        self._tail = b""  # what came after the last newline
        self._rest = b""  # the rest of a secret whose beginning ended the last line
        self._keeps_last_lines = not (has_files or secrets.belong_to(daemon))
        self.last_lines = b""  # for the events, which every daemon can read; empty if the daemon has secrets or files

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk that was read; return the lines that can be written now."""
        if self._rest:  # a process that the daemon left behind may go on in the middle of a secret
            chunk, self._rest = self._secrets.without_rest(chunk, self._rest)
        data, newline = self._tail + chunk, b""
        end = data.rfind(b"\n") + 1
        if not end and len(data) > _LINE_LIMIT + self._secrets.overlap:
            # The tail is longer than any secret that may be unfinished at its end; that is redacted once it is whole.
            end, newline = self._secrets.cut(data, _LINE_LIMIT), b"\n"
        self._tail = data[end:]
        return self._prefixed(data[:end] + newline) if end else b""

    def finish(self) -> bytes:
        """The last line, with a newline if it had none, and without the beginning of a secret that was cut off."""
        self._tail, rest = self._secrets.without_unfinished(self._tail, self._daemon)
        last, self._rest = self.feed(b"\n") if self._tail else b"", rest
        return last

    def _prefixed(self, text: bytes) -> bytes:
        raw, text = text, self._secrets.redact(text)
        # Reads are no longer than the limit: without a redaction, only the first line can be too long.
        if text is not raw or text.find(b"\n", 0, _LINE_LIMIT + 1) < 0:
            starts = [(line, range(0, len(line) or 1, _LINE_LIMIT)) for line in text[:-1].split(b"\n")]
            text = b"".join(line[at : at + _LINE_LIMIT] + b"\n" for line, places in starts for at in places)
        if self._keeps_last_lines:
            self.last_lines = (self.last_lines + text[-_LAST_LINES_SIZE:])[-_LAST_LINES_SIZE:]
        # One replace of all newlines, at 3 GB/s, and one copy; a loop over lines would halve that.
        text = text.replace(b"\n", b"\n" + self._prefix)
        return b"".join((self._prefix, memoryview(text)[: len(text) - len(self._prefix)]))


class _Secrets:
    """The values that must not appear in anything that is written; `redact` is called on whole lines.

    The longest is replaced first. Of two that overlap in the data, the end of the second may remain.
    """

    _COMMON = b"etaoinsrhldcumfpgwybvk0123456789 -_./:=TAINSERODLCMPxjqz"  # bytes in logs, the most common first
    _LEAST = 6  # bytes; shorter values are not redacted

    def __init__(self, environ: Mapping[bytes, bytes], prefixes: Iterable[str]) -> None:
        self._values: dict[bytes, tuple[bytes, bytes, str]] = {}  # value: its rarest byte, replacement, variable
        self._variables: set[str] = set()
        self.overlap = 0  # how much of an unfinished secret can be at the end of what was read
        starts = tuple(map(os.fsencode, prefixes))
        for name, value in environ.items():
            if starts and name.startswith(starts):
                self.add(name, b"" if _secret_in_file(os.fsdecode(name)) else value)

    def add(self, name: bytes, secret: bytes) -> None:
        self._variables.add(os.fsdecode(name))
        for value in map(bytes.strip, secret.splitlines()):
            if len(value) >= self._LEAST:
                # Search for the rarest byte first: the search for a byte runs at 10 GB/s, that for a word at 1 GB/s.
                rarest = max(range(len(value)), key=lambda i: self._COMMON.find(value[i]) % 256)
                self._values[value] = value[rarest : rarest + 1], b"[redacted %s]" % name[:64], os.fsdecode(name)
        self._values = dict(sorted(self._values.items(), key=lambda item: -len(item[0])))
        self.overlap = max(map(len, self._values), default=1) - 1

    def belong_to(self, daemon: str) -> bool:
        return any(_env_for_daemon(daemon, {variable: ""}) for variable in self._variables)

    def redact(self, data: bytes) -> bytes:
        for value in [value for value, (mark, _, _) in self._values.items() if mark in data and value in data]:
            data = data.replace(value, self._values[value][1])
        return data

    def cut(self, data: bytes, at: int) -> int:
        """Where `data` can be cut in two: at `at`, or after the secret that lies across it."""
        for value in self._values:
            start = data.find(value, max(0, at - len(value) + 1), at + len(value) - 1)
            at = at if start < 0 else start + len(value)
        return at

    def without_unfinished(self, data: bytes, daemon: str) -> tuple[bytes, bytes]:
        """An unfinished last line without the beginning of a secret at its end, and the rest of that secret.

        Only the daemon's own secrets count: otherwise it could try beginnings of others and see which one is redacted.
        """
        data = self.redact(data)
        for value, (_, replacement, variable) in self._values.items():
            beginning = memoryview(value)
            for length in range(min(len(value) - 1, len(data)), self._LEAST - 1, -1):
                if data.endswith(beginning[:length]) and _env_for_daemon(daemon, {variable: ""}):
                    return data[:-length] + replacement, value[length:]
        return data, b""

    @staticmethod
    def without_rest(chunk: bytes, rest: bytes) -> tuple[bytes, bytes]:
        """`chunk` without the rest of a secret at its start, and the part of that rest that is still to come."""
        size = min(len(chunk), len(rest))
        return (chunk[size:], rest[size:]) if chunk[:size] == rest[:size] else (chunk, b"")


# -- the kernel --------------------------------------------------------------------------------------------------------

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 4, 8, 24, 36
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 38, 47, 2
_CAPABILITIES = [  # by their numbers
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
]  # fmt: skip
_EXPOSING = [  # with one of these, a daemon can read what belongs to others, or become their user
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "SETGID", "SETUID", "SYS_MODULE", "SYS_RAWIO",
    "SYS_PTRACE", "SYS_ADMIN", "MKNOD", "PERFMON", "BPF",
]  # fmt: skip
_PIDFD_SIGNAL_PROCESS_GROUP, _FIONREAD = 4, 0x541B
_NO_ID = 2**32 - 1  # for setresuid: leave it as it is


class _Kernel:
    """What only libc or /proc can do or tell; opened once, before the first fork.

    Importing ctypes instead of the `_ctypes` below it would cost every start 2 ms and 0.8 MB. Arguments are bytes,
    32-bit ints, and `_word(n)` for addresses and sizes; results are 32-bit ints.
    """

    def __init__(self) -> None:
        c: Any = __import__("_ctypes")
        function: Any = type("Function", (c.CFuncPtr,), {"_flags_": c.FUNCFLAG_CDECL | c.FUNCFLAG_USE_ERRNO})
        libc, self._get_errno = c.dlopen(None, 0), c.get_errno
        self._find: Callable[[str], Callable[..., int]] = lambda name: function(c.dlsym(libc, name))
        self._functions: dict[str, Callable[..., int]] = {}
        self._word: Any = type("Word", (c._SimpleCData,), {"_type_": "L"})
        self.proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        with open("/proc/self/status") as status:
            sets = {line[:6]: int(line[8:], 16) for line in status if line.startswith("Cap")}
        self._bounding, self._permitted = sets["CapBnd"], sets["CapPrm"]

    def _function(self, name: str) -> Callable[..., int]:
        if name not in self._functions:  # cached, because a child makes 50 calls
            self._functions[name] = self._find(name)
        return self._functions[name]

    def call(self, name: str, *arguments: Any) -> int:
        result = self._function(name)(*arguments)
        if result < 0:
            number = self._get_errno()
            raise OSError(number, os.strerror(number), name)
        return result

    def prctl(self, option: int, argument: int, second: int = 0) -> None:
        self.call("prctl", option, argument, second, 0, 0)

    def has(self, capability: str) -> bool:
        return bool(self._bounding & self._permitted & 1 << _CAPABILITIES.index(capability))

    def drop_bounding_set(self, kept: Sequence[str]) -> None:
        for number in range(64):
            if self._bounding >> number & 1 and number not in map(_CAPABILITIES.index, kept):
                self.prctl(_PR_CAPBSET_DROP, number)

    def drop_capabilities(self, kept: Sequence[str]) -> None:
        """Drop all but these. At an exec, root keeps its permitted set, and another user its ambient set."""
        bits = sum(1 << _CAPABILITIES.index(one) for one in set(kept))
        ambient = () if os.geteuid() == 0 else kept
        halves = [one >> shift & 0xFFFFFFFF for shift in (0, 32) for one in (bits, bits, bits if ambient else 0)]
        self.call("capset", struct.pack("=II", 0x20080522, 0), struct.pack("=6I", *halves))
        for name in ambient:
            self.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAPABILITIES.index(name))

    def as_user(self, uid: int | None, action: Callable[..., _T], *arguments: Any, **more: Any) -> _T:
        """Run `action` with this file system uid: what it creates belongs to that user."""
        if not uid or os.geteuid() != 0:
            return action(*arguments, **more)
        try:
            self._function("setfsuid")(uid)
            return action(*arguments, **more)
        finally:
            self._function("setfsuid")(0)
            self.prctl(_PR_SET_DUMPABLE, 0)  # the change may have made PID 1 dumpable

    def open_beneath(self, folder: int, name: str) -> int:
        """An O_PATH descriptor of the file with this name in or below the folder, not yet opened for reading."""
        how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, 0x08 | 0x02)  # RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS
        try:
            return self.call("syscall", 437, folder, os.fsencode(name), how, self._word(len(how)))  # openat2
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                error.strerror = "its link leads out of its folder"
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)  # before Linux 5.6

    @staticmethod
    def seal(name: str, contents: bytes) -> int:
        """A file in memory that only its owner can read, and that no one can change."""
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            fd = os.memfd_create(name[:200], flags | 8)  # MFD_NOEXEC_SEAL
        except OSError:
            fd = os.memfd_create(name[:200], flags)  # before Linux 6.3
        try:
            os.fchmod(fd, 0o400)
            with open(fd, "wb", closefd=False) as file:
                file.write(contents)
            os.lseek(fd, 0, os.SEEK_SET)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(fd)
            raise
        return fd

    def empty_environment_block(self) -> None:
        """Clear the memory that /proc/PID/environ shows; os.environ and an execve with an environment do not use it."""
        with open("/proc/self/stat", "rb") as file:
            start, end = map(int, file.read().rsplit(b") ", 1)[1].split()[47:49])
        if 0 < start < end:
            self._function("memset")(self._word(start), 0, self._word(end - start))


class _Account:
    """A user with all its groups; without a home if only its ids are known."""

    def __init__(self, name: str, uid: int, gid: int, home: str = "") -> None:
        self.name, self.uid, self.gid, self.groups = name, uid, gid, [gid] if home else []
        self.environ = {"HOME": home, "USER": name, "LOGNAME": name} if home else {"HOME": "/"}

    @classmethod
    def of_ids(cls, ids: str) -> _Account | None:
        """For "UID" or "UID:GID"; None for anything else, and for uid 0."""
        uid, _, gid = (ids if ":" in ids else f"{ids}:{ids}").partition(":")
        return cls(ids, int(uid), int(gid)) if _is_id(uid) and _is_id(gid) and int(uid) else None


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < _NO_ID


def _read_accounts() -> dict[str, _Account]:
    """Read the files themselves: getpwnam may connect to a socket in /run, where a daemon could answer."""
    accounts: dict[str, _Account] = {}
    for path, fields in (("/etc/passwd", 7), ("/etc/group", 4)):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = [line.rstrip("\n").split(":") for line in file if line.count(":") == fields - 1]
        except FileNotFoundError:
            continue
        for name, _, first, second, *more in lines:
            if not more:  # a group: its number and its members
                for account in [accounts[member] for member in second.split(",") if member in accounts]:
                    account.groups += [int(first)] if _is_id(first) else []
            elif _is_id(first) and _is_id(second):
                accounts.setdefault(name, _Account(name, int(first), int(second), more[1] or "/"))
    return accounts


def _account_of(spec: _DaemonSpec, accounts: Mapping[str, _Account], log: _Log) -> _Account | None:
    """None: the supervisor's. Raises _CannotStart if the daemon must not run as this user."""
    name = spec.user
    if name is None:
        return None
    if os.geteuid() != 0:
        log.say_once("all daemons run as the supervisor's user: only root can switch to another")
        return None
    account, make_it = _Account.of_ids(name) or accounts.get(name), f"useradd --system --shell /usr/sbin/nologin {name}"
    if account is None:
        raise _CannotStart(f"become {name}", reason=f"there is no such user in /etc/passwd; create it: {make_it}")
    if account.uid == 0 and name != "root":
        raise _CannotStart(f"become {name}", reason="its uid is 0, and only root may have that")
    return account


class _Inputs:
    """What daemons get: their environment, and what PID 1 reads for them at each start (`files`, secrets in files).

    PID 1 can read more than a daemon can. So that no daemon can put another file in the place of its own, each folder
    is opened before the first child, and used only if no daemon can change it. No link below it may lead out of it.
    """

    def __init__(self, specs: Sequence[_DaemonSpec], environ: Mapping[str, str], kernel: _Kernel, log: _Log) -> None:
        self._environ, self._kernel, self._log = environ, kernel, log
        self._folders: dict[str, int | OSError] = {}
        self._secrets: dict[str, bytes] = {}  # those that were read
        for spec in specs:
            _, secrets, files = self._wanted(spec, None)
            for folder in map(os.path.dirname, (*secrets.values(), *files.values())):
                if folder not in self._folders and os.geteuid() == 0:
                    self._folders[folder] = self._open_folder(folder)
            for variable in secrets:
                log.secrets.add(os.fsencode(variable), b"")  # its owner has a secret, even if none was read yet
            for variable, value in spec.env.items():
                if variable.startswith(tuple(_SECRETS)) and not _secret_in_file(variable):
                    log.secrets.add(os.fsencode(variable), os.fsencode(value))

    def prepare(self, spec: _DaemonSpec, account: _Account | None, fds: list[int]) -> dict[str, str]:
        """Return its environment; append a descriptor for each file, or -1, to `fds`, which the caller closes."""
        kept = ", ".join(spec.capabilities)
        if kept and os.geteuid() != 0:
            self._log.say_once(f"{spec.name} runs without {kept}: only root can keep capabilities")
        elif missing := ", ".join(name for name in spec.capabilities if not self._kernel.has(name)):
            raise _CannotStart(f"keep {missing}", reason="the container does not have this capability")
        environ, secrets, files = self._wanted(spec, account)
        path = variable = ""
        try:
            for variable, path in secrets.items():
                if environ.get(variable):
                    raise _CannotStart(f"use {variable}", reason=f"{variable}_FILE is set too; unset one of them")
                environ[variable] = self._read_secret(variable, path)
            for variable, path in files.items():
                try:
                    contents, uid = self._read(path, _FILE_LIMIT), account.uid if account else None
                    fds.append(self._kernel.as_user(uid, self._kernel.seal, variable, contents))
                    environ[variable] = f"/proc/self/fd/{len(fds) + 2}"
                except FileNotFoundError as error:
                    environ.pop(variable, None)
                    fds.append(-1)
                    self._log.say_once(f"{spec.name} starts without {variable}: cannot find {path}: {error.strerror}")
        except OSError as error:
            where = f" from {path}" if path.startswith("/") else ""  # else it may be the secret itself
            raise _CannotStart(f"read {variable}{where}", reason=str(error.strerror), may_pass=True) from None
        return environ

    def _wanted(
        self, spec: _DaemonSpec, account: _Account | None
    ) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Its environment before anything is read; the paths of secrets and of `files`, by their variables."""
        environ = _env_for_daemon(spec.name, self._environ)
        files = {variable: environ.get(variable) or path for variable, path in spec.files.items()}
        if account:
            environ = {key: value for key, value in environ.items() if key not in ("USER", "LOGNAME")} | account.environ
        environ |= spec.env
        secrets = {_secret_in_file(key): environ.pop(key) for key in list(environ) if _secret_in_file(key)}
        return environ, {variable: path for variable, path in secrets.items() if path}, files

    def _read_secret(self, variable: str, path: str) -> str:
        secret = self._read(path, _SECRET_LIMIT)
        secret = secret[:-1].removesuffix(b"\r") if secret.endswith(b"\n") else secret
        if not secret or b"\0" in secret:
            raise OSError(errno.EINVAL, "it contains a NUL byte" if secret else "it is empty")
        if self._secrets.get(variable) != secret:
            self._secrets[variable] = secret
            self._log.secrets.add(os.fsencode(variable), secret)
        return os.fsdecode(secret)

    def _read(self, path: str, limit: int) -> bytes:
        """Look up the file as its folder's owner and read it as its own owner, so that no capability is needed."""
        folder, name = os.path.split(path)
        if not path.startswith("/"):
            raise OSError(errno.EINVAL, "its path must be absolute")
        if os.geteuid() != 0:
            found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        elif isinstance(fd := self._folders[folder], OSError):
            raise OSError(*fd.args)
        else:
            found = self._kernel.as_user(os.fstat(fd).st_uid, self._kernel.open_beneath, fd, name)
        try:
            about = os.fstat(found)
            if not stat.S_ISREG(about.st_mode):
                is_link = stat.S_ISLNK(about.st_mode)
                what = "a symlink, which needs openat2 (Linux 5.6)" if is_link else "not a regular file"
                raise OSError(errno.EINVAL, f"it is {what}")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # open would wait if its owner holds a lease
            handle, proc = f"self/fd/{found}", self._kernel.proc
            with open(self._kernel.as_user(about.st_uid, os.open, handle, flags, dir_fd=proc), "rb") as file:
                contents = file.read(limit + 1)
        finally:
            os.close(found)
        if len(contents) > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit >> 10} KiB")
        return contents

    @staticmethod
    def _open_folder(path: str) -> int | OSError:
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if link := _foreign_link(path):
                os.close(fd)
                return OSError(errno.EPERM, f"the link {link} may be changed by others; root must own it")
        except FileNotFoundError:
            return OSError(errno.ENOENT, "its directory did not exist at startup")
        except OSError as error:
            return error
        about = os.fstat(fd)
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY or (about.st_uid == 0 and not about.st_mode & 0o022):
            return fd
        os.close(fd)
        return OSError(errno.EPERM, f"{path} may be changed by others; root must own it, with mode 0755 or less")


def _foreign_link(path: str) -> str:
    """A link in the path that a daemon may have put there before the container was restarted; empty if none."""
    at, names = "", path.split("/")[1:]
    while names:
        here = f"{at}/{names.pop(0)}"
        if not os.path.islink(here):
            at = here
        elif os.lstat(here).st_uid and not os.statvfs(at or "/").f_flag & os.ST_RDONLY:
            return here
        else:
            target = os.readlink(here)
            at, names = "" if target.startswith("/") else at, [*target.split("/"), *names]
    return ""


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _open_null_device() -> int:
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    about = os.fstat(fd)
    if not stat.S_ISCHR(about.st_mode) or about.st_rdev != os.makedev(1, 3):
        raise OSError(errno.ENODEV, "not the null device", "/dev/null")
    return fd


def _raise_descriptor_limit() -> dict[int, tuple[int, int]]:
    """Raise it: each daemon costs PID 1 four descriptors. Returns the limits for daemons: our old ones, and no core.

    Each child sets them all, because another process that runs as root may have changed ours by then.
    """
    limits = {kind: resource.getrlimit(kind) for kind in range(16)}
    most = limits[resource.RLIMIT_NOFILE][1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return {**limits, resource.RLIMIT_CORE: (0, 0)}


def _execute(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Like os.execvpe, which would import a module in each child."""
    refused: OSError = FileNotFoundError(errno.ENOENT, "")
    for folder in [""] if "/" in argv[0] else environ.get("PATH", os.defpath).split(":"):
        try:
            os.execve(os.path.join(folder, argv[0]), list(argv), environ)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            refused = error
    raise refused


def _offer_to_oom_killer(proc: int) -> None:
    """Make the OOM killer prefer this process to PID 1."""
    try:
        score = os.open("self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC, dir_fd=proc)
        os.write(score, b"%d" % min(int(os.read(score, 16)) + 100, 1000))
        os.close(score)
    except OSError:
        pass  # only root may


def _start_ticks(pid: int) -> int:
    """When a process started, in ticks since boot; together with its pid, this identifies the process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rsplit(b") ", 1)[1].split()[19])


class _Ports:
    """The listening TCP sockets, by port; one pair of queries serves all daemons in one turn of the loop.

    A dump of the kernel's listening sockets takes 0.04 ms; /proc/net/tcp takes 3 ms, whatever is in it.
    """

    def __init__(self, kernel: _Kernel) -> None:
        self._sockets: dict[int, set[int]] | None = None
        self._netlink, self.interval = -1, _POLL_INTERVAL  # between two checks
        try:
            self._netlink = kernel.call("socket", 16, 3 | os.O_CLOEXEC, 4)  # AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG
            # Connect to the kernel alone: otherwise a daemon that has NET_ADMIN could answer in its place.
            kernel.call("connect", self._netlink, struct.pack("=HHII", 16, 0, 0, 0), 12)
            list(self._by_netlink())  # a kernel that creates the socket may still lack the module that answers
        except OSError:
            _close(self._netlink)
            self._netlink = -1
        paths = [path for path in ("/proc/self/net/tcp", "/proc/self/net/tcp6") if os.path.exists(path)]
        self._tables = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths if self._netlink < 0]

    def forget(self) -> None:
        self._sockets = None

    def sockets(self, port: int) -> frozenset[int]:
        """The inodes of the sockets that listen on `port`."""
        if self._sockets is None:
            began, found = time.monotonic(), dict[int, set[int]]()
            for number, inode in self._by_netlink() if self._netlink >= 0 else self._by_tables():
                found.setdefault(number, set()).add(inode)
            self._sockets = found
            self.interval = max(_POLL_INTERVAL, 20 * (time.monotonic() - began))  # a daemon may open very many
        return frozenset(self._sockets.get(port, ()))

    def _by_netlink(self) -> Iterator[tuple[int, int]]:
        for family in (2, 10):
            # nlmsghdr: SOCK_DIAG_BY_FAMILY, REQUEST | DUMP; inet_diag_req_v2: TCP sockets that LISTEN
            os.write(self._netlink, struct.pack("=IHHIIBBHI48x", 72, 20, 0x301, 0, 0, family, 6, 0, 1 << 10))
            kind = 0
            while kind != 3:  # NLMSG_DONE
                data, at = os.read(self._netlink, _READ_SIZE), 0
                while at < len(data):
                    size, kind = struct.unpack_from("=IH", data, at)
                    if kind == 2:  # NLMSG_ERROR
                        raise OSError(-struct.unpack_from("=i", data, at + 16)[0], "netlink refuses")
                    if kind == 20:
                        yield struct.unpack_from(">H", data, at + 20)[0], struct.unpack_from("=I", data, at + 84)[0]
                    at += max(size, 16)

    def _by_tables(self) -> Iterator[tuple[int, int]]:
        for table in self._tables:
            os.lseek(table, 0, os.SEEK_SET)
            with open(os.dup(table)) as file:
                for fields in map(str.split, file):
                    if fields[3] == "0A":
                        yield int(fields[1].rsplit(":", 1)[1], 16), int(fields[9])


class _OomCounter:
    """How many processes of our cgroup (version 2) the OOM killer has killed."""

    def __init__(self) -> None:
        self._fd, self._kills = -1, 0
        try:
            with open("/proc/self/cgroup") as memberships:
                folder = "".join(line[3:-1] for line in memberships if line.startswith("0::"))
            self._fd = os.open(f"/sys/fs/cgroup{folder}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass
        self.has_counted()

    def has_counted(self) -> bool | None:
        """Whether it has killed one since the last call; None if that cannot be known."""
        try:
            before, counts = self._kills, os.pread(self._fd, 4096, 0).split() if self._fd >= 0 else []
        except OSError:  # we were moved to another cgroup, and that one was removed
            return None
        self._kills = int(counts[counts.index(b"oom_kill") + 1]) if b"oom_kill" in counts else 0
        return self._kills > before if self._fd >= 0 else None


def _size_of(pipe: int) -> int:
    """How many bytes are in it; 0 on a processor for which FIONREAD has another number."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(pipe, _FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


def _open_for_log(fd: int) -> tuple[int, bool]:
    """A descriptor for the log, and whether a write to it may block.

    O_NONBLOCK belongs to the open file description, which others share: a pipe or terminal is opened again.
    """
    kind, is_terminal = os.fstat(fd).st_mode, os.isatty(fd)
    try:
        if stat.S_ISFIFO(kind) or is_terminal:
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's, or its reader is gone
        if not is_terminal:
            return fd, True
        os.set_blocking(fd, False)  # for a terminal, poll promises room for one byte only
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        pass  # not a pipe, or too many large pipes: then a block takes two writes
    return fd, stat.S_ISSOCK(kind)


class _Directory:
    """A directory of ours, opened once and then used through its descriptor, whatever happens to its path."""

    def __init__(self, path: str) -> None:
        os.makedirs(path, mode=0o755, exist_ok=True)
        self.path, self._fd = path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(self._fd).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another user")
            if os.path.realpath(path) in ("/tmp", "/var/tmp", "/dev/shm"):
                raise PermissionError(errno.EPERM, "all users write to it")
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(self._fd, 0o755)  # whatever the umask is
        except OSError as error:
            os.close(self._fd)
            if isinstance(error, BlockingIOError):
                error.strerror = "another supervisor uses it"
            raise

    def replace(self, name: str, contents: bytes) -> None:
        """Replace a file atomically: readers see the old contents or the new."""
        with open(self._open(f"{name}.new", 0), "wb") as file:
            file.truncate()
            file.write(contents)
        os.replace(f"{name}.new", name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def append(self, name: str, lines: bytes, limit: int) -> None:
        """Append all lines or none. A file that reaches the limit is renamed to NAME.1."""
        with open(self._open(name, os.O_APPEND), "ab", buffering=0) as file:
            size = file.tell()
            if file.write(lines) < len(lines):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size + len(lines) >= limit:
            os.replace(name, f"{name}.1", src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _open(self, name: str, flags: int) -> int:
        """Open a regular file of ours that has no other name; remove anything else that a daemon put there."""
        flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        for attempt in (0, os.O_EXCL):
            try:
                fd = os.open(name, flags | attempt, 0o644, dir_fd=self._fd)
                about = os.fstat(fd)
                if stat.S_ISREG(about.st_mode) and (about.st_uid, about.st_nlink) == (os.geteuid(), 1):
                    break
                os.close(fd)
            except OSError as error:
                if attempt or error.errno not in (errno.ELOOP, errno.ENXIO):  # a symlink; a FIFO without a reader
                    raise
            os.unlink(name, dir_fd=self._fd)
        os.fchmod(fd, 0o644)
        return fd


# -- small tools -------------------------------------------------------------------------------------------------------


def _setting(env: Mapping[str, str], name: str, default: str = "") -> str:
    """The first that is set of BOT_BOTTLE_SIDECAR_x, an older name for it, and SIDECAR_INIT_x."""
    owners = ("BOT_BOTTLE_SIDECAR", *(["CLAUDE_BOTTLE_SIDECAR"] if name == "DAEMONS" else []), "SIDECAR_INIT")
    return next((env[f"{owner}_{name}"] for owner in owners if f"{owner}_{name}" in env), default)


def _row_signal(name: str) -> int | None:
    """The signal to PID 1 that restarts this daemon; 64 is the last."""
    number = next((_FIRST_ROW_SIGNAL + row for row, spec in enumerate(_DAEMONS) if spec.name == name), 0)
    return number if number in signal.valid_signals() else None


_SIGNAL_NAMES = {
    getattr(signal, name): name for name in reversed(dir(signal)) if name.startswith("SIG") and "_" not in name
}


def _signal_name(number: int) -> str:
    return _SIGNAL_NAMES.get(number, f"signal {number}")


def _shell_status(returncode: int) -> int:
    """An exit as a shell reports it: n, or 128 + signal."""
    return returncode if returncode >= 0 else 128 - returncode


def _exit_text(returncode: int) -> str:
    return f"exited with status {returncode}" if returncode >= 0 else f"was terminated by {_signal_name(-returncode)}"


def _log_internal_error(log: _Log, error: Exception) -> None:
    """Log an unexpected error, a bug or a lack of memory: its type and its place."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    try:
        where = f" in {trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}" if trace else ""
        log.say(f"internal error: {type(error).__name__}{where}; going on")
    except MemoryError:
        pass


def _backoff(exits: int) -> float:
    """Seconds until the next start after this many exits in a row: doubling, with up to 10 % jitter."""
    delay = min(_BACKOFF_FIRST * 2.0 ** min(exits - 1, 16), _BACKOFF_LAST)
    return delay * (1 + os.urandom(1)[0] / 2550)


_ESCAPES = {
    code: f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


def _one_line(text: str) -> str:
    """`text`, with everything escaped that could end a line or control a terminal."""
    return text.translate(_ESCAPES)


def _complain(text: str) -> None:
    """Print a line on stderr. If that is broken, the exit status still reports the failure."""
    try:
        if sys.stderr:  # else it is closed, and print would take stdout
            print(_one_line(text), file=sys.stderr)
    except OSError:
        pass


def _json(value: object) -> str:
    """`value` as JSON. The module `json` would cost PID 1 15 ms and 1.5 MB."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_json, value)) + "]"
    return '"' + _one_line(str(value).replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _timestamp(seconds: float) -> str:
    """RFC 3339, UTC, with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


# -- the table file ----------------------------------------------------------------------------------------------------


class _Refusal(Exception):
    """Why a command cannot do what it was asked to do, in one line."""

    def __init__(self, why: str, exit_code: int = 1) -> None:
        super().__init__(why)
        self.exit_code = exit_code


def _demand(is_right: object, problem: str) -> None:
    if not is_right:
        raise _Refusal(problem)


def _fits(value: object, rule: Any) -> bool:
    """Whether a value fits its rule.

    A string is a pattern for strings. A list contains the rule for the elements of a list, a dict the rules for the
    keys and values of a table. Anything else is a function that decides.
    """
    import re

    if isinstance(rule, str):
        return isinstance(value, str) and re.fullmatch(rule, value, re.DOTALL) is not None
    if isinstance(rule, list):
        return isinstance(value, list) and all(_fits(one, rule[0]) for one in value)
    if isinstance(rule, dict):
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return all(any(_fits(key, name) and _fits(one, its) for name, its in rule.items()) for key, one in pairs)
    return bool(rule(value))


def _is_user(value: object) -> bool:
    """Whether it is the name of an account, or ids; uid 0 must be written as root."""
    return _fits(value, "[^\0:]*[^\0:0-9][^\0:]*") or (_fits(value, _TEXT) and _Account.of_ids(str(value)) is not None)


_TEXT, _VARIABLE, _PATH, _NAME = "[^\0]*", "[^\0=]+", "/[^\0]*", "[A-Za-z0-9._-]{1,64}"
_COMMAND = ("a list of words, the first not empty", lambda value: _fits(value, [_TEXT]) and value[:1] not in ([], [""]))
_TRUTH = ("true or false", lambda value: isinstance(value, bool))
_STOP = {
    "signal": lambda value: f"SIG{value}" in _SIGNAL_NAMES.values() and value not in ("KILL", "STOP"),
    "to": "group|leader",
    "grace": lambda value: type(value) in (int, float) and 0 <= value <= 86400,
}
_FIELDS: dict[str, tuple[str, Any]] = {  # what a value must be, and the rule that it must fit
    "name": ("1 to 64 characters, only letters, digits and ._-", _NAME),
    "argv": _COMMAND,
    "restart": ('"never", "on-failure" or "always"', "never|on-failure|always"),
    "user": ('a string: the name of an account, "UID" or "UID:GID"', _is_user),
    "port": ("a number from 1 to 65535, without quotes", lambda value: type(value) is int and 0 < value < 65536),
    "ready": _COMMAND,
    "after": ("a list of names", [_NAME]),
    "check": _COMMAND,
    "oneshot": _TRUTH,
    "essential": _TRUTH,
    "stop": ('like { signal = "QUIT", to = "leader", grace = 30 }; signal: without SIG; grace: 0 to 86400', _STOP),
    "cwd": ("an absolute path", _PATH),
    "env": ("a table of strings", {_VARIABLE: _TEXT}),
    "prefix": _TRUTH,
    "files": ("a table of absolute paths", {_VARIABLE: "/[^\0]*[^\0/]"}),
    "capabilities": ('a list of names without CAP_, like ["NET_BIND_SERVICE"]', [_CAPABILITIES.__contains__]),
}


def _use_table(path: str) -> None:
    """Replace the table with the one in a TOML file. If that has a mistake, raise _Refusal and change nothing."""
    import tomllib

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
        for key in table:
            is_known = key in ("daemon", "secrets", "signals")
            _demand(is_known, f'unknown key "{key}"; known: [[daemon]], [secrets], [signals]')
        rows, secrets, signals = table.get("daemon", []), table.get("secrets", {}), table.get("signals", {})
        specs = _specs_of(rows)
        _load_table((rows, _owners_of(secrets, specs), _signals_of(signals, specs)))
    except (MemoryError, OSError, RecursionError, ValueError, _Refusal) as error:
        mistakes = {
            MemoryError: "it does not fit in memory",
            RecursionError: "not TOML: nested too deep",
            UnicodeDecodeError: "not TOML: it is not UTF-8",
            ValueError: "not TOML: a number has too many digits",
            tomllib.TOMLDecodeError: f"not TOML: {error}",
        }
        mistake = mistakes.get(type(error)) or getattr(error, "strerror", None) or str(error)
        raise _Refusal(f"cannot use table {path}: {mistake}", exit_code=2) from None


def _load_table(table: Any) -> None:
    global _DAEMONS, _SECRETS, _SIGNALS, _TABLE
    rows, _SECRETS, _SIGNALS = _TABLE = table
    _DAEMONS = tuple(_DaemonSpec(**row) for row in rows)


def _specs_of(rows: list[dict[str, Any]]) -> dict[str, _DaemonSpec]:
    from graphlib import CycleError, TopologicalSorter

    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    _demand(is_list and rows != [], "there must be one or more [[daemon]] sections")
    specs: dict[str, _DaemonSpec] = {}
    for number, row in enumerate(rows, 1):
        name = row.get("name")
        where = f'daemon "{name}"' if isinstance(name, str) else f"daemon {number}"
        for key, value in row.items():
            _demand(key in _FIELDS, f'{where}: unknown key "{key}"; known: {", ".join(_FIELDS)}')
            _demand(_fits(value, _FIELDS[key][1]), f"{where}: {key} must be {_FIELDS[key][0]}")
        for key in ("name", "argv"):
            _demand(key in row, f"{where}: {key} is missing")
        _demand(name not in specs, f"{where}: duplicate name")
        spec = specs[row["name"]] = _DaemonSpec(**row)
        _demand(not (spec.oneshot and (spec.port or spec.ready)), f"{where}: a oneshot cannot have port or ready")
        _demand(spec.env.keys().isdisjoint(spec.files), f"{where}: env and files set the same variable")
    for spec in specs.values():
        for name in spec.after:
            _demand(name in specs, f'daemon "{spec.name}": after names "{name}", which is not in the table')
    try:
        TopologicalSorter({spec.name: spec.after for spec in specs.values()}).prepare()
    except CycleError as error:
        circle = error.args[1][:0:-1]  # each waits for the next
        first = circle.index(min(circle))
        names = [*circle[first:], *circle[:first], circle[first]]
        raise _Refusal(f'daemon "{names[0]}": circular after: {" -> ".join(names)}') from None
    return specs


def _owners_of(section: dict[str, Any], specs: Mapping[str, _DaemonSpec]) -> dict[str, tuple[str, ...]]:
    _demand(isinstance(section, dict), "secrets must be a [secrets] section")
    owners: dict[str, tuple[str, ...]] = {}
    for prefix, value in section.items():
        names = value if isinstance(value, list) else [value]
        _demand(prefix != "", "secrets: a prefix must not be empty")
        are_known = names != [] and all(isinstance(name, str) and name in specs for name in names)
        _demand(are_known, f'secrets: "{prefix}" must name a daemon of the table, or a list of them')
        owners[prefix] = tuple(names)
    for prefix, its in owners.items():
        for other, theirs in owners.items():
            overlap = other.startswith(prefix) and set(theirs) != set(its)
            _demand(not overlap, f'secrets: "{other}" begins with "{prefix}", which has other owners')
        for spec in specs.values():
            for variable in (*spec.env, *spec.files):
                is_taken = variable.startswith(prefix) and spec.name not in its
                field = "env" if variable in spec.env else "files"
                what = f"{field} sets {variable}, which belongs to {', '.join(its)}"
                _demand(not is_taken, f'daemon "{spec.name}": {what}')
    return owners


def _signals_of(section: dict[str, Any], specs: Mapping[str, _DaemonSpec]) -> dict[str, tuple[str, str]]:
    _demand(isinstance(section, dict), "signals must be a [signals] section")
    signals = {}
    for name, action in section.items():
        _demand(name in ("HUP", "USR1"), f'signals: unknown key "{name}"; known: HUP, USR1')
        is_one = isinstance(action, dict) and list(action) in (["forward"], ["restart"])
        _demand(is_one, f'signals: {name} must be {{ forward = "NAME" }} or {{ restart = "NAME" }}')
        ((verb, target),) = action.items()
        _demand(isinstance(target, str) and target in specs, f"signals: {name} must name a daemon of the table")
        signals[name] = (verb, target)
    return signals


# -- commands that ask the supervisor ----------------------------------------------------------------------------------
# They read its state and send signals: no socket, no new way in. What they import costs PID 1 nothing.


def _state_directories() -> list[str]:
    """Where the state may be, the best place first; empty if the setting is an empty value."""
    chosen = _setting(os.environ, "STATE_DIR", default=_STATE_DIRECTORY)
    others = [f"/tmp/sidecar-init-{os.geteuid()}"] if chosen == _STATE_DIRECTORY and os.geteuid() else []
    return [os.path.abspath(chosen), *others] if chosen else []


def _read_state(name: str, directory: str) -> str | None:
    """A state file's text; None if there is none. It may be forged: up to 16 MiB of a regular file of ours are read."""
    path = f"{directory}/{name}"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()):
                raise _Refusal(f"cannot read {path}: it is not a regular file, or belongs to another user")
            return file.read(1 << 24).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Refusal(f"cannot read {path}: {error.strerror}") from None


def _read_status(*, may_be_stale: bool = False) -> dict[str, Any]:
    """The status, of a running supervisor if there is one. "stale" says why it may be out of date."""
    import json

    directories, gone = _state_directories(), None
    for directory in directories:
        if (text := _read_state("status.json", directory)) is None:
            continue
        status: dict[str, Any] = {**json.loads(text), "directory": directory, "stale": ""}
        try:
            if _start_ticks(status["pid"]) == status["start_ticks"]:
                return status
        except (OSError, ValueError):
            pass
        status["stale"] = f"supervisor (pid {status['pid']}) is not running; last update {status['updated_at']}"
        gone = gone or status
    _demand(directories, "cannot read the state: the state directory is set to an empty value, so no state is kept")
    if gone is None:
        raise _Refusal(f"cannot find a supervisor: there is no {directories[0]}/status.json")
    _demand(may_be_stale, f"cannot reach the supervisor: {gone['stale']}")
    return gone


def _send(number: int) -> dict[str, Any]:
    """Signal the supervisor; return its status from before."""
    status = _read_status()
    try:
        os.kill(status["pid"], number)
    except OSError as error:
        what = f"cannot send {_signal_name(number)} to the supervisor (pid {status['pid']})"
        raise _Refusal(f"{what}: {error.strerror}") from None
    return status


def _statuses(deadline: float) -> Iterator[dict[str, Any]]:
    """Yield the live status repeatedly until the deadline; at least once."""
    yield _read_status()
    while time.monotonic() <= deadline:
        time.sleep(0.002)
        yield _read_status()


def _row_of(status: dict[str, Any], name: str) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in status["daemons"]}
    why = f"it is not in the table, or not selected; there are {', '.join(rows)}"
    _demand(name in rows, f"cannot find daemon {name}: {why}")
    return rows[name]


def _print_table(rows: list[list[str]]) -> None:
    """Print columns that are as wide as they need to be."""
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _since(timestamp: str) -> str:
    """The time since, or until, a timestamp, in one unit."""
    from datetime import datetime

    seconds = abs(time.time() - datetime.fromisoformat(timestamp).timestamp())
    units = ((86400, "d"), (3600, "h"), (60, "m"))
    size, unit = next((pair for pair in units if seconds >= pair[0]), (1, "s"))
    return f"{seconds // size:.0f}{unit}"


def _state_of(row: dict[str, Any]) -> str:
    return "crash-looping" if row["crash_looping"] else str(row["state"])


def _status(options: Namespace) -> int:
    status = _read_status(may_be_stale=True)
    chosen = [_row_of(status, name) for name in options.names] or status["daemons"]
    if options.json:
        import json

        del status["directory"]
        print(json.dumps({**status, "daemons": chosen, "stale": status["stale"] != ""}, indent=2))
    else:
        rows = [["NAME", "STATE", "READY", "PID", "PORT", "UP", "RESTARTS", "SIGNAL", "LAST EXIT"]]
        for row in chosen:
            uptime = _since(row["started_at"]) if row["pid"] else None
            last_exit = str(row["last_exit"] or "-").removeprefix("exited with ").removeprefix("was terminated by ")
            numbers = [row["pid"], row["port"], uptime, str(row["restarts"]), row["signal"]]
            cells = [*(str(number or "-") for number in numbers), last_exit.partition(" (")[0]]
            rows.append([row["name"], _state_of(row), "yes" if row["ready"] else "no", *cells])
        _print_table(rows)
        for row in chosen:
            again = f"; next start in {_since(row['next_start_at'])}" if row["next_start_at"] else ""
            if row["reason"] and not row["ready"]:
                print(_one_line(f"{row['name']} {row['reason']}{again}"))
    if status["stale"]:
        _complain(f"stale status: {status['stale']}")
    return 1 if status["stale"] else 0


def _health(_: object) -> int:
    """Check that the loop answers, and that every daemon is ready."""
    before, deadline = _send(signal.SIGUSR2), time.monotonic() + 1
    status = next((now for now in _statuses(deadline) if now["heartbeats"] != before["heartbeats"]), {})
    _demand(status, f"unhealthy: the supervisor (pid {before['pid']}) does not answer")
    _demand(status["state"] == "running", f"unhealthy: the supervisor is {status['state']}")
    reasons = []
    for row in (row for row in status["daemons"] if not row["ready"] and not row["succeeded"]):
        state = _state_of(row).replace(_BACKOFF, "in backoff")
        reasons.append(f"{row['name']} is {state} ({row['reason'] or ''})".removesuffix(" ()"))
    _demand(not reasons, f"unhealthy: not ready: {', '.join(reasons)}")
    count = len(status["daemons"])
    print(f"healthy: {count} daemon{' is' if count == 1 else 's are'} ready")
    return 0


def _read_events() -> list[str]:
    """The lines of both files, the older first. A rotation between the two reads makes it begin with the newer."""
    directory = _read_status(may_be_stale=True)["directory"]
    newer, older = _read_state("events.jsonl", directory) or "", _read_state("events.jsonl.1", directory) or ""
    text = older if newer and older.startswith(newer) else older + newer
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _newer(lines: list[str], last: str) -> list[str]:
    """The lines after the last one that was seen, even if the files were rotated meanwhile."""
    return lines[len(lines) - lines[::-1].index(last) :] if last in lines else lines


def _event_text(line: str) -> str:
    import json
    from datetime import datetime

    try:
        event = json.loads(line)
        when = datetime.fromisoformat(event.pop("time")).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        kind, daemon, last_lines = event.pop("event"), event.pop("daemon") or "-", event.pop("last_lines", None) or []
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):  # not ours
        return _one_line(line.rstrip("\n"))
    details = []
    for key, value in event.items():
        if value is not None and value is not False:
            text = "" if value is True else f" {value:g}" if isinstance(value, float) else f" {value}"
            details.append(key.replace("_", " ") + text)
    first = f"{when}  {kind:<13} {daemon:<12} {', '.join(details)}"
    return "\n".join(map(_one_line, [first, *(f"    | {line}" for line in last_lines)]))


def _events(options: Namespace) -> int:
    def show(lines: list[str]) -> list[str]:
        wanted = [f'"daemon": "{name}"' for name in options.names] or [""]
        chosen = [line for line in lines if any(text in line for text in wanted)]
        return [_one_line(line.rstrip("\n")) if options.json else _event_text(line) for line in chosen]

    lines = _read_events()
    _demand(lines or options.follow, "cannot find events: no supervisor has written any")
    for name in options.names:
        if not (options.follow or any(f'"daemon": "{name}"' in line for line in lines)):
            _row_of(_read_status(may_be_stale=True), name)
    for text in show(lines)[-int(options.n) :] if options.n >= 1 else []:
        print(text, flush=options.follow)
    reader = select.poll()
    reader.register(1, 0)  # reports only that the reader has left
    while options.follow and not reader.poll(200):
        last, lines = lines[-1] if lines else "", _read_events()
        for text in show(_newer(lines, last)):
            print(text, flush=True)
    return 0


def _reload(options: Namespace) -> int:
    """apply and restart: send the signal that does it, and wait until the daemon's status says how it went."""
    name, cannot = options.name, f"cannot {options.command} {options.name}"
    deadline, in_time = time.monotonic() + options.timeout, f"after {options.timeout:g} s"

    def rows(until: float = deadline) -> Iterator[dict[str, Any]]:
        for status in _statuses(until):
            _demand(status["state"] == "running", f"{cannot}: the supervisor is {status['state']}")
            yield _row_of(status, name)

    verb, number = "restart", next(rows())["signal"]
    if options.command == "apply":
        actions = [(verb, target, sig) for sig, do in _read_status()["signals"].items() for verb, target in do.items()]
        ways = [(verb, getattr(signal, f"SIG{sig}")) for verb, target, sig in actions if target == name]
        reloaded = ", ".join(target for _, target, _ in actions) or "no daemon"
        _demand(ways, f"{cannot}: the table's signals reload {reloaded}; try restart")
        verb, number = min(ways)  # forward, if there are both
    _demand(number, f"{cannot}: its row has no signal; only the first 31 rows have one")
    before = next(rows())
    is_between = verb == "forward" and before["asked"] != before["answered"]
    _demand(not is_between, f"{cannot}: a restart of it is in progress; try again")
    before = _row_of(_send(number), name)
    row = next((row for row in rows() if before["asked"] < row["asked"] == row["answered"]), {})
    _demand(row, f"{cannot}: the supervisor has not answered {in_time}; see its log")
    _demand(not row["refused"], row["answer"])
    if verb == "forward":
        for row in rows(min(deadline, time.monotonic() + 0.3)):  # without a handler for it, a program exits at once
            why = f"{_signal_name(number)} was delivered, and it {row['last_exit']}; see its log"
            _demand(row["pid"] == before["pid"], f"{cannot}: {why}")
        print(_one_line(row["answer"]))
        return 0
    settled = (_EXITED, _FAILED, _STOPPED, _BACKOFF)
    row = next((row for row in rows() if row["ready"] or row["state"] in settled), {})
    why = row["reason"] or f"is {row['state']}" if row else f"is not ready {in_time}"
    _demand(row and row["ready"], f"cannot confirm that {name} is ready: it was restarted, but {why}; see its log")
    print(f"{name} restarted and ready" + (f" (pid {row['pid']})" if row["pid"] else ""))
    return 0


# -- commands that need no supervisor ----------------------------------------------------------------------------------


def _obstacles(specs: Sequence[_DaemonSpec], log: _Log) -> list[str]:
    """Why some daemons would not start."""
    import shutil

    accounts, obstacles = _read_accounts(), []
    inputs = _Inputs(specs, os.environ, _Kernel(), log)
    for spec in specs:
        path = spec.env.get("PATH", os.environ.get("PATH", os.defpath))
        for program in dict.fromkeys(argv[0] for argv in (spec.argv, spec.check, spec.ready) if argv):
            place = os.path.join(spec.cwd or "", program) if "/" in program else program
            if shutil.which(place, path=path) is None:
                obstacles.append(f"{spec.name}: cannot execute {program}: not found, or not executable")
        if spec.cwd and not os.path.isdir(spec.cwd):
            obstacles.append(f"{spec.name}: cannot change to its working directory {spec.cwd}: no such directory")
        files: list[int] = []
        try:
            inputs.prepare(spec, _account_of(spec, accounts, log), files)
        except _CannotStart as problem:
            obstacles.append(f"{spec.name}: {problem}")
        _close(*files)
    return obstacles


def _warnings(specs: Sequence[_DaemonSpec]) -> list[str]:
    """Warnings about unknown names, an egress without its proxy, and secrets that cannot be kept from other daemons."""
    accounts, uids = _read_accounts(), {spec.name: os.geteuid() for spec in specs}
    for spec in specs if os.geteuid() == 0 else ():
        if spec.user and (account := _Account.of_ids(spec.user) or accounts.get(spec.user)):
            uids[spec.name] = account.uid
    known = {spec.name for spec in _DAEMONS}
    warnings = [f"there is no daemon {name}; ignored" for name in set(_requested_names(os.environ) or ()) - known]
    if "egress" in uids and "pipelock" in known - uids.keys() and "EGRESS_UPSTREAM_PROXY" not in os.environ:
        way = "select pipelock, or set EGRESS_UPSTREAM_PROXY to another proxy, or to nothing for none"
        warnings.append(f"egress will answer every request with 502: pipelock is not selected; {way}")
    set_ones = {p: owners for p, owners in _SECRETS.items() if any(key.startswith(p) for key in os.environ)}
    for prefix, owners in set_ones.items():
        for owner, other in ((one, other) for one in uids.keys() & owners for other in uids.keys() - owners):
            if uids[other] == uids[owner]:
                why = f"it runs as the same user as {owner}; give {owner} its own"
                warnings.append(f"cannot keep {prefix}* from {other}: {why}")
    for spec in specs if os.geteuid() == 0 else ():
        risky = ", ".join(name for name in spec.capabilities if name in _EXPOSING)
        exposed = {name for owners in set_ones.values() if spec.name not in owners for name in owners}
        exposed |= {other.name for other in specs if other.files}
        if risky and (others := ", ".join(sorted(uids.keys() & exposed - {spec.name}))):
            warnings.append(f"cannot keep the secrets of {others} from {spec.name}: it has {risky}; remove these")
    return sorted(warnings)


def _plan(_: Namespace) -> int:
    log, specs = _Log(2, _Secrets(os.environb, _SECRETS)), _selected_daemons(os.environ)
    names = [spec.name for spec in specs]
    rows = [["ORDER", "NAME", "USER", "PORT", "AFTER", "RESTART", "COMMAND"]]
    for order, spec in enumerate(specs, 1):
        user = f"- (not {spec.user}: not root)" if spec.user and os.geteuid() else spec.user or "-"
        after = ",".join(name for name in spec.after if name in names) or "-"
        command = log.redact_text(" ".join(spec.argv))
        command = command if len(command) <= 80 else command[:77] + "..."
        rows.append([str(order), spec.name, user, str(spec.port or "-"), after, spec.restart, command])
    if specs:
        _print_table(rows)
        grace = max(_GRACE_SECONDS if spec.stop_grace is None else spec.stop_grace for spec in specs)
        setting = "the container's stop_grace_period or terminationGracePeriodSeconds"
        print(f"{setting} must be at least {grace + _GIVE_UP_SECONDS:.0f} s")
    else:
        print("no daemons selected; nothing to do")
    problems = [*_obstacles(specs, log), *_warnings(specs)]
    log.flush()  # messages about what is missing but does not prevent a start: files, capabilities
    for problem in problems or ["ok"]:
        print(_one_line(log.redact_text(problem)))
    return 1 if problems else 0


_TABLE: Any = "shipped"  # a baked file has its table in place of this constant
_IN_MEMORY = "/proc/self/fd/"  # where `_start_over` puts a baked file
_IS_BAKED = __file__.startswith(_IN_MEMORY) or __file__.endswith(".pyc")


def _baked(program: CodeType) -> bytes:
    """This program and the table, as the contents of a compiled file."""
    import marshal
    from importlib.util import MAGIC_NUMBER

    constants = tuple(_TABLE if constant == "shipped" else constant for constant in program.co_consts)
    # Python does not look for the source of a file that it is told to run, so no time or hash is needed.
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(program.replace(co_consts=constants))


def _bake(options: Namespace) -> int:
    """Write this program and the table as one compiled file; the same input gives the same bytes."""
    cannot, new = f"cannot bake {options.out}", f"{options.out}.{os.getpid()}"
    _demand(options.out.endswith(".pyc"), f"{cannot}: Python runs it only if its name ends in .pyc; rename it")
    _demand(not _IS_BAKED, f"{cannot}: this file is compiled already; bake with sidecar_init.py")
    try:
        with open(__file__, encoding="utf-8") as file:
            program = compile(file.read(), "sidecar_init.py", "exec", dont_inherit=True, optimize=2)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC), "wb") as pyc:
            os.fchmod(pyc.fileno(), 0o644)
            pyc.write(_baked(program))
        os.replace(new, options.out)
    except OSError as error:
        if os.path.lexists(new):
            os.unlink(new)
        what = f"{error.filename}: {error.strerror}" if error.filename == __file__ else error.strerror
        raise _Refusal(f"{cannot}: {what}; name a file that you may write to") from None
    print(f"wrote {options.out} with {', '.join(spec.name for spec in _DAEMONS)}")
    return 0


# -- the program -------------------------------------------------------------------------------------------------------


def _start_over(program: CodeType) -> None:
    """Execute this program once more, baked in memory: the parsers and the syntax tree would double PID 1's size."""
    fd = -1
    options = "-PSs" + "E" * sys.flags.ignore_environment  # only if given: the interpreter may need its variables
    try:
        if not os.path.samefile(sys.executable, "/proc/self/exe"):  # argv[0] may be misleading
            return
        fd = _Kernel.seal("sidecar_init.pyc", _baked(program))
        path = f"{_IN_MEMORY}{fd}"
        os.close(os.open(path, os.O_RDONLY))  # after the exec it would be too late to find out that it cannot be opened
        os.set_inheritable(fd, True)
        os.execv(sys.executable, [sys.executable, options, path])
    except (OSError, TypeError, ValueError):  # memory files may be forbidden, and sys.executable may be empty
        _close(fd)


def _supervise() -> int:
    """Supervise until all daemons have exited."""
    if __file__.startswith(_IN_MEMORY):
        os.close(int(__file__.removeprefix(_IN_MEMORY)))  # `_start_over` has left it open
    _close_on_exec()
    inbox = _Inbox()
    inbox.open()
    log = _Log(1, _Secrets(os.environb, _SECRETS))
    specs = _selected_daemons(os.environ)
    if (mode := _setting(os.environ, "RESTART")) not in ("", "never"):
        log.say(f"the restart mode {mode} is ignored; the only known mode is never")
    for warning in _warnings(specs):
        log.say(warning)
    if not specs:
        log.say("no daemons selected; nothing to do")
        log.close(time.monotonic() + _GRACE_SECONDS)
        return 0
    places = _state_directories()
    usable = [one for one in places if any(os.access(path, os.W_OK) for path in (one, f"{os.path.dirname(one)}/."))]
    state = _State(next(iter(usable + places[-1:]), ""), log)
    return _Supervisor(specs, log=log, state=state, inbox=inbox).run()


def _keep_standard_descriptors() -> None:
    """Open the null device as each of the descriptors 0 to 2 that is closed."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _close_on_exec() -> None:
    """Let children inherit no descriptors but 0 to 2, which each of them replaces."""
    for name in os.listdir("/proc/self/fd"):
        try:
            os.set_inheritable(int(name), int(name) <= 2)
        except OSError:
            pass  # the descriptor of the listing itself


def _command_line(words: list[str]) -> tuple[Callable[[Any], int], Namespace | None]:
    """The requested command, with its options."""
    if words == ["health"]:  # which engines run every few seconds: argparse would be a third of its cost
        return _health, None
    import argparse

    def number(text: str) -> float:
        if not 0 <= float(text) < 1e6:
            raise ValueError
        return float(text)

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"cannot understand the command line: {message}; see {self.prog} --help\n")

        def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
            sys.stdout.flush()
            super().exit(status, message)

    arguments: dict[str, dict[str, Any]] = {
        "names": {"metavar": "NAME", "nargs": "*", "help": "only these daemons"},
        "name": {"metavar": "NAME"},
        "out": {"metavar": "OUT.pyc"},
        "--table": {"metavar": "FILE", "help": "the table to use, a TOML file", "default": argparse.SUPPRESS},
        "--json": {"action": "store_true", "help": "print JSON"},
        "-n": {"metavar": "N", "help": "how many (20)", "type": number, "default": 20},
        "--follow -f": {"action": "store_true", "help": "also show new ones as they come, until Ctrl-C"},
        "--timeout": {"metavar": "S", "help": "how many seconds to wait (15)", "type": number, "default": 15.0},
    }
    commands: dict[str, tuple[Callable[[Namespace], int], str, list[str]]] = {
        "plan": (_plan, "show what would run, as which user, and what is missing (then exit 1)", ["--table"]),
        "status": (_status, "show the daemons", ["names", "--json"]),
        "health": (_health, "exit 0 if every daemon is ready; else 1, with the reason", []),
        "events": (_events, "show the last events", ["names", "-n", "--follow -f", "--json"]),
        "apply": (_reload, "reload a daemon by its signal, and confirm that it worked", ["name", "--timeout"]),
        "restart": (_reload, "restart a daemon in place, and wait until it is ready", ["name", "--timeout"]),
        "bake": (_bake, "write this program and a table as one compiled file", ["out", "--table"]),
    }
    names = ", ".join(spec.name for spec in _DAEMONS)
    baked = f", baked with the table of {names}" if _IS_BAKED else ""
    what = "PID 1 of a container that runs several daemons. Without a command: supervise."
    parser = Parser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", **arguments["--table"])
    parser.add_argument("--version", action="version", version=f"sidecar-init {__version__}{baked}")
    places = parser.add_subparsers(title="commands", metavar="[COMMAND]", dest="command")
    for name, (_, what, its_arguments) in commands.items():
        place = places.add_parser(name, help=what, description=what)
        for argument in its_arguments:
            place.add_argument(*argument.split(), **arguments[argument])
    options = parser.parse_args(words)
    if options.command is None:
        parser.error("a command is missing")
    if "table" in options:
        if options.command not in ("plan", "bake"):
            parser.error("--table can be used only alone, or with plan or bake")
        _use_table(options.table)
    return commands[options.command][0], options


def _answer(words: list[str]) -> int:
    """Run a command. stdout may be closed or full, and a daemon may have forged the state."""
    import io

    if sys.stdout is None:
        raise _Refusal("cannot write the answer: stdout is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the locale may not be able to encode what daemons said
    command: Callable[[Any], int] | None = None
    code = 0
    try:
        command, options = _command_line(words)
        code = command(options)
        sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # the interpreter must not try to write again
        if isinstance(error, BrokenPipeError):
            return code  # the reader has left
        what = f"read {error.filename}" if error.filename else "write the answer"
        raise _Refusal(f"cannot {what}: {error.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        if command in (None, _plan, _bake):
            raise  # none of them reads the state
        raise _Refusal("cannot use the state: it was not written by a supervisor of this version") from None


def main(argv: Sequence[str] | None = None, program: CodeType | None = None) -> int:
    """Do what `sidecar_init.py` with these arguments does; return its exit status.

    If it gets its own code as `program`, it may replace the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not _asks_to_supervise(words):
            return _answer(words)  # PID 1 does not import argparse
        _keep_standard_descriptors()
        if words:
            _use_table(words[-1].removeprefix("--table="))
        if program and not _IS_BAKED and "shipped" in program.co_consts:  # else it is baked under another name
            _start_over(program)
        return _supervise()
    except _Refusal as refusal:
        _complain(str(refusal))
        return refusal.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        what = f"{error.filename}: {error.strerror}; the container must have /dev and /proc"
        _complain(f"cannot supervise: {what if error.filename else error.strerror}")
        return 1


if isinstance(_TABLE, tuple):
    _load_table(_TABLE)
if __name__ == "__main__":
    os._exit(main(program=sys._getframe().f_code))  # skips freeing memory: the kernel does that faster
