#!/usr/bin/env python3
"""sidecar-init: PID 1 of a container that holds several daemons.

It starts them, keeps them running, relays signals, carries their output to the container's log, keeps each
one's secrets from the others, and ends cleanly. One file, standard library only, one thread, one loop:

    while not self.tick(self._time_to_next_deadline()):    # sleeps in poll until something happens
        pass

    tick: output that daemons wrote goes out as whole lines, `[name] ` before each
          children that ended are reaped; a daemon's death moves its state machine
          signals that were recorded are acted on
          deadlines that have passed are acted on: start, look at a port, kill
          what is to be written is written, as far as it goes without waiting

Signals to PID 1 (a handler only records; the loop acts):

    TERM, INT   shutdown: TERM to every daemon's group, KILL after 8 s, exit as soon as all are gone
    HUP         forwarded to egress, which reloads its routes
    USR1        pipelock is restarted in place, after its check
    USR2        status.json is written anew: the health check's heartbeat
    CHLD        reap

Exit codes: the worst of the daemons that failed by themselves and were not brought back, as a shell tells it
(n, 128 + signal, 127 not found, 126 not executable); if none did, the worst of those ended by the shutdown
(0, 143 died of TERM, 137 had to be killed). 2: wrong usage or table file. Commands: 0, or 1 and the reason.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import FrameType
    from typing import Any, NoReturn
else:
    import _signal as signal  # the same functions; the enums of `signal` would cost every start 5 ms and 1 MB

__version__ = "1.0.0"

# -- tunables ----------------------------------------------------------------------------------------------------

_GRACE_SECONDS = 8.0  # from the first request to shut down until KILL; Docker's own patience is 10 s
_RESTART_GRACE_SECONDS = 5.0  # the same for one daemon's group
_POLL_INTERVAL = 0.05  # how often a starting daemon's port is looked at, and a group whose leader is gone
_AFTER_SECONDS = 10.0  # how long a daemon waits for those it comes after
_CHECK_SECONDS = 10.0  # how long a check may take
_BACKOFF_FIRST, _BACKOFF_LAST = 0.5, 30.0
_STEADY_SECONDS = 60.0  # a life as long as this is no crash
_CRASH_LOOP_DEATHS = 5

_READ_SIZE = 65536  # larger reads go through mmap and page faults
_PIPE_SIZE = 1 << 18  # of stdout, where the kernel allows: takes a whole read with its prefixes at once
_LINE_LIMIT = 65536
_SMALL = 8192  # short lines that wait are put together up to this: else each would cost ten times its bytes
_LOG_LIMIT = 1 << 20  # what waits for a slow reader, all in all: daemons, last words and own lines share it
_LOG_LIMIT_DAEMONS = _LOG_LIMIT * 3 // 4  # over this no daemon's pipe is read
_LOG_LIMIT_LAST_WORDS = _LOG_LIMIT * 15 // 16  # over this not even a dead one's
_LAST_WORDS_SIZE = 4096
_EVENTS_LIMIT = 1 << 20
_STATE_DIRECTORY = "/run/sidecar-init"


# -- the daemon table --------------------------------------------------------------------------------------------


class _DaemonSpec:
    """One row of the daemon table; immutable. `_DaemonSpec(name, argv)` is enough."""

    __slots__ = ("after", "argv", "check", "name", "port", "restart", "user")

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        restart: str = "never",
        user: str | None = None,
        port: int | None = None,
        after: Sequence[str] = (),
        check: Sequence[str] | None = None,
    ) -> None:
        self.name, self.argv = name, tuple(argv)
        self.restart = restart  # "never", "on-failure" or "always"
        self.user = user  # the account it runs as; None: the supervisor's
        self.port = port  # ready once something listens here; None: ready once started
        self.after = tuple(after)  # names to wait for before the first start
        self.check = tuple(check) if check else None  # must exit 0 before an in-place restart stops the running one

    def __setattr__(self, field: str, value: object) -> None:
        if hasattr(self, field):
            raise AttributeError(f"a daemon's {field} cannot change")
        object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        return f"_DaemonSpec({self.name!r}, {list(self.argv)!r})"


_DAEMONS: tuple[_DaemonSpec, ...] = (
    _DaemonSpec("egress", ["/bin/sh", "/app/egress-entrypoint.sh"], "always", user="mitmproxy", port=9099),
    _DaemonSpec(
        "pipelock",
        ["/usr/local/bin/pipelock", "run", "--config", "/etc/pipelock.yaml", "--listen", "0.0.0.0:8888"],
        "always",
        port=8888,
        after=["egress"],
        check=["/usr/local/bin/pipelock", "check", "--config", "/etc/pipelock.yaml"],
    ),
    _DaemonSpec("git-gate", ["/bin/sh", "/git-gate-entrypoint.sh"], "always", port=9418),
    _DaemonSpec("git-http", ["python3", "/app/git_http_backend.py"], "always", port=9420),
    _DaemonSpec("supervise", ["python3", "/app/supervise_server.py"], "always", port=9100),
)

_SECRETS: dict[str, str] = {"EGRESS_TOKEN_": "egress"}  # prefix of the variables: the only daemon that gets them

_SIGNALS: dict[str, tuple[str, str]] = {"HUP": ("forward", "egress"), "USR1": ("restart", "pipelock")}


# -- rules -------------------------------------------------------------------------------------------------------


def _requested_names(env: Mapping[str, str]) -> list[str] | None:
    """The names that the environment asks for; None: all are meant."""
    wanted = env.get("BOT_BOTTLE_SIDECAR_DAEMONS", env.get("CLAUDE_BOTTLE_SIDECAR_DAEMONS", ""))
    return [name for name in map(str.strip, wanted.split(",")) if name] if wanted.strip() else None


def _selected_daemons(env: Mapping[str, str], all_daemons: Sequence[_DaemonSpec] | None = None) -> list[_DaemonSpec]:
    """The rows to run, in table order; unknown names are passed over."""
    names = _requested_names(env)
    return [spec for spec in (_DAEMONS if all_daemons is None else all_daemons) if names is None or spec.name in names]


def _unknown_names(env: Mapping[str, str]) -> list[str]:
    """Names that are asked for and stand in no row; the log and `plan` warn of them."""
    known = [spec.name for spec in _DAEMONS]
    return [name for name in _requested_names(env) or () if name not in known]


def _exposed_secrets(specs: Sequence[_DaemonSpec]) -> list[str]:
    """Secrets that are set and cannot be kept: whoever has the owner's account can read the owner's environment."""
    root = os.geteuid() == 0
    return [
        f"cannot keep {prefix}* from {other.name}: it has the same account as {owner.name}; give {owner.name} its own"
        for prefix, name in _SECRETS.items()
        if any(key.startswith(prefix) for key in os.environ)
        for owner in specs
        for other in specs
        if owner.name == name != other.name and (not root or other.user == owner.user)
    ]


def _env_for_daemon(name: str, base_env: Mapping[str, str]) -> dict[str, str]:
    """A fresh environment for `name`: all of `base_env` but the secrets that belong to others."""
    others = tuple(prefix for prefix, owner in _SECRETS.items() if owner != name)
    return {key: value for key, value in base_env.items() if not key.startswith(others)}


def _find_program(command: str, env: Mapping[str, str]) -> str:
    """The file that `command` means under the PATH of `env`; raises OSError as exec would."""
    refused: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command)
    folders = [""] if "/" in command else env.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    for folder in folders:
        path = os.path.join(folder, command)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        if os.path.exists(path):
            refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    raise refused


def _shell_code(returncode: int) -> int:
    """An exit as a shell tells it: n, or 128 + signal."""
    return returncode if returncode >= 0 else 128 - returncode


_SIGNAL_NAMES = {
    getattr(signal, name): name for name in reversed(dir(signal)) if name.startswith("SIG") and "_" not in name
}


def _signal_name(number: int) -> str:
    return _SIGNAL_NAMES.get(number, f"signal {number}")


def _exit_text(returncode: int) -> str:
    return f"with code {returncode}" if returncode >= 0 else f"on {_signal_name(-returncode)}"


def _backoff(deaths: int) -> float:
    """Seconds until the next start after so many deaths in a row: doubling, with up to 10 % jitter."""
    delay = min(_BACKOFF_FIRST * 2.0 ** min(deaths - 1, 16), _BACKOFF_LAST)
    return delay * (1 + os.urandom(1)[0] / 2550)


def _is_listening(port: int) -> bool:
    """Whether some socket listens on this TCP port, read from the kernel's tables: nobody is connected to."""
    for table, nobody in (("/proc/net/tcp", b"00000000:0000"), ("/proc/net/tcp6", b"0" * 32 + b":0000")):
        try:
            with open(table, "rb") as file:
                if b":%04X %s 0A" % (port, nobody) in file.read():
                    return True
        except FileNotFoundError:
            if table == "/proc/net/tcp":
                raise
    return False


def _open_oom_counter() -> int | None:
    """The file in which the kernel counts what its OOM killer did in our cgroup; None where there is none to read."""
    for root, file in (("/sys/fs/cgroup", "memory.events"), ("/sys/fs/cgroup/memory", "memory.oom_control")):
        try:
            with open("/proc/self/cgroup") as memberships:
                paths = [line.split(":", 2)[2].strip() for line in memberships if line.split(":")[1] in ("", "memory")]
            for path in (*paths, "/"):  # a container may see only the root of its own cgroup
                if os.path.exists(f"{root}{path}/{file}"):
                    return os.open(f"{root}{path}/{file}", os.O_RDONLY)
        except (OSError, IndexError):
            continue
    return None


_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(32), 127, *range(128, 160), 0x2028, 0x2029)}


def _one_line(text: str) -> str:
    """`text` without anything that could end a line or steer a terminal."""
    return text.translate(_ESCAPES)


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


def _start_ticks(pid: int) -> int:
    """When a process started, in ticks since the boot: with it a pid means one process only."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rsplit(b") ", 1)[1].split()[19])


def _timestamp(seconds: float) -> str:
    """RFC 3339, UTC, with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


# -- the table file ----------------------------------------------------------------------------------------------


class _Refusal(Exception):
    """Why a command cannot do what it was asked, in one line."""

    exit_code = 1


class _TableError(_Refusal):
    """What is wrong with a table file."""

    exit_code = 2


def _demand(right: bool, mistake: str) -> None:
    if not right:
        raise _TableError(mistake)


_NAME_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


def _is_name(value: object) -> bool:
    """Names stand in `[name] ` and in comma-separated lists: letters, digits and `._-`, at most 64."""
    return isinstance(value, str) and 0 < len(value) <= 64 and not value.strip(_NAME_LETTERS)


def _is_command(value: object) -> bool:
    words = value if isinstance(value, list) else []
    return bool(words and words[0]) and all(isinstance(word, str) and "\0" not in word for word in words)


_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "name": ("a name of letters, digits and ._-, at most 64", _is_name),
    "argv": ("a list of words, the first not empty", _is_command),
    "restart": ("never, on-failure or always", lambda value: value in ("never", "on-failure", "always")),
    "user": ("the name of an account", lambda value: isinstance(value, str) and value != "" and "\0" not in value),
    "port": ("a number from 1 to 65535", lambda value: type(value) is int and 0 < value < 65536),
    "after": ("a list of names", lambda value: isinstance(value, list) and all(map(_is_name, value))),
    "check": ("a list of words, the first not empty", _is_command),
}


def _use_table(path: str) -> None:
    """Replace the shipped table by the one in a file; raises _TableError and changes nothing if it is not right."""
    global _DAEMONS, _SECRETS, _SIGNALS
    try:
        table = _load_toml(path)
        specs = _specs_of(table)
        _DAEMONS, _SECRETS, _SIGNALS = specs, *_owners_and_signals_of(table, [spec.name for spec in specs])
    except _TableError as mistake:
        raise _TableError(f"cannot use table {path}: {mistake}") from None


def _load_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise _TableError(str(error.strerror)) from None
    except (ValueError, RecursionError) as error:  # TOML that is wrong, or not UTF-8
        raise _TableError(f"not TOML: {str(error) or 'nested too deep'}") from None


def _specs_of(table: dict[str, Any]) -> tuple[_DaemonSpec, ...]:
    for key in table:
        known = key in ("daemon", "secrets", "signals")
        _demand(known, f"unknown key {key!r}; known are [[daemon]], [secrets] and [signals]")
    rows: list[dict[str, Any]] = table.get("daemon", [])
    sections = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    _demand(sections and rows != [], "'daemon' must be one or more [[daemon]] sections")
    specs: dict[str, _DaemonSpec] = {}
    for number, row in enumerate(rows, 1):
        where = f"daemon {row.get('name', number)!r}"
        for key, value in row.items():
            _demand(key in _FIELDS, f"{where}: unknown key {key!r}; known are {', '.join(_FIELDS)}")
            meaning, is_right = _FIELDS[key]
            _demand(is_right(value), f"{where}: {key!r} must be {meaning}")
        for key in ("name", "argv"):
            _demand(key in row, f"{where}: {key!r} is missing")
        _demand(row["name"] not in specs, f"{where}: 'name' stands twice")
        specs[row["name"]] = _DaemonSpec(**row)
    for spec in specs.values():
        for name in spec.after:
            _demand(name in specs, f"daemon {spec.name!r}: 'after' names {name!r}, which is no daemon of the table")
    waiting = dict(specs)
    while free := [name for name, spec in waiting.items() if not waiting.keys() & set(spec.after)]:
        for name in free:
            del waiting[name]
    _demand(not waiting, f"daemon {next(iter(waiting), '')!r}: 'after' runs in a circle")
    return tuple(specs.values())


def _owners_and_signals_of(
    table: dict[str, Any], names: list[str]
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    for section in ("secrets", "signals"):
        _demand(isinstance(table.get(section, {}), dict), f"{section!r} must be a [{section}] section")
    owners: dict[str, str] = table.get("secrets", {})
    for prefix, owner in owners.items():
        _demand(prefix != "", "secrets: a prefix must not be empty")
        _demand(owner in names, f"secrets: {prefix!r} must name a daemon of the table, not {owner!r}")
        for other in owners:
            overlaps = other.startswith(prefix) and owners[other] != owner
            _demand(not overlaps, f"secrets: {other!r} begins with {prefix!r}, which has another owner")
    signals = {}
    for name, action in table.get("signals", {}).items():
        _demand(name in ("HUP", "USR1"), f"signals: unknown key {name!r}; known are HUP and USR1")
        one = isinstance(action, dict) and list(action) in (["forward"], ["restart"])
        _demand(one, f'signals: {name!r} must be {{ forward = "NAME" }} or {{ restart = "NAME" }}')
        ((verb, target),) = action.items()
        _demand(target in names, f"signals: {name!r} must name a daemon of the table, not {target!r}")
        signals[name] = (verb, target)
    return owners, signals


# -- the log -----------------------------------------------------------------------------------------------------


class _Secrets:
    """The values that must not appear in anything that is written; `redact` is called on whole lines."""

    _COMMON = b"etaoinsrhldcumfpgwybvk0123456789 -_./:=TAINSERODLCMPxjqz"  # in logs, the commonest first

    def __init__(self, environ: Mapping[bytes, bytes], prefixes: Iterable[str]) -> None:
        starts = tuple(map(os.fsencode, prefixes))
        values = {
            part: b"[redacted %s]" % name
            for name, value in environ.items()
            if name.startswith(starts)
            for part in map(bytes.strip, value.splitlines())
            if len(part) >= 6
        }
        # A value's rarest byte is looked for first: one byte is found at 10 GB/s, a word at 1.
        self._marked = [(self._rarest(value), value, values[value]) for value in sorted(values, key=len, reverse=True)]
        self.overlap = max(map(len, values), default=1) - 1  # of an unfinished value this much may be there already

    def _rarest(self, value: bytes) -> bytes:
        return max((value[i : i + 1] for i in range(len(value))), key=lambda byte: self._COMMON.find(byte) % 256)

    def redact(self, data: bytes) -> bytes:
        """Each stretch that values cover becomes the name of the first (longest) there."""
        if not any(mark in data and value in data for mark, value, _ in self._marked):
            return data
        parts, done = [], 0
        for start, end, name in self._stretches(data):
            parts += [data[done:start], name]
            done = end
        return b"".join([*parts, data[done:]])

    def cut(self, data: bytes, at: int) -> int:
        """Where `data` can be cut in two: at `at`, or beside the stretch of values that lies across it."""
        for start, end, _ in self._stretches(data):
            if start < at < end:
                return start or end
        return at

    def _stretches(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """What values cover, from start to end; those that overlap are one stretch."""
        found = []
        for _, value, name in self._marked:
            start = data.find(value)
            while start >= 0:
                found.append((start, -len(value), name))
                start = data.find(value, start + 1)
        stretches: list[tuple[int, int, bytes]] = []
        for start, minus_length, name in sorted(found):
            if stretches and start < stretches[-1][1]:
                first, end, first_name = stretches.pop()
                stretches.append((first, max(end, start - minus_length), first_name))
            else:
                stretches.append((start, start - minus_length, name))
        return stretches


class _Lines:
    """Makes whole, prefixed lines of the bytes that one daemon writes.

    A carriage return that does not end a line is followed by the prefix once more: a terminal then writes the
    prefix over itself. All else passes unchanged; a line over 64 KiB is broken into pieces.
    """

    def __init__(self, name: str, secrets: _Secrets) -> None:
        self._prefix = b"[%s] " % os.fsencode(name)
        self._new_line = b"\n" + self._prefix
        self._secrets = secrets
        self._tail = b""  # what came after the last newline
        self.last_words = b""

    def feed(self, chunk: bytes) -> list[bytes | memoryview]:
        """What can be written now that `chunk` was read."""
        end = chunk.rfind(b"\n") + 1
        if end:
            text = b"".join((self._tail, memoryview(chunk)[:end]))  # one copy
            self._tail = chunk[end:]
            return self._prefixed(self._secrets.redact(text))
        self._tail += chunk
        if len(self._tail) <= _LINE_LIMIT + self._secrets.overlap:
            return []
        # What stays behind is longer than any secret whose end is still to come, and stays as it was read: what is
        # redacted too early may be the beginning of a longer one.
        end = self._secrets.cut(self._tail, _LINE_LIMIT)
        text, self._tail = self._tail[:end], self._tail[end:]
        return self._prefixed(self._secrets.redact(text) + b"\n")

    def finish(self) -> list[bytes | memoryview]:
        """Called when the daemon has ended: its last line, with a newline if it had none."""
        return self.feed(b"\n") if self._tail else []

    def _prefixed(self, text: bytes) -> list[bytes | memoryview]:
        if text.find(b"\n", 0, _LINE_LIMIT + 1) < 0:  # reads are no larger: only the first line can be too long
            end = text.find(b"\n")
            pieces = [text[i : min(i + _LINE_LIMIT, end)] for i in range(0, end, _LINE_LIMIT)]
            text = b"\n".join(pieces) + text[end:]
        recent = text[-_LAST_WORDS_SIZE:]
        self.last_words = (self.last_words + recent)[-_LAST_WORDS_SIZE:]
        if b"\r" in text:
            again = b"\r" + self._prefix
            text = text.replace(b"\r", again).replace(again + b"\n", b"\r\n")
        body = text.replace(b"\n", self._new_line)  # one unlimited replace, at 3 GB/s; splitlines would halve it
        return [self._prefix, memoryview(body)[: -len(self._prefix)]]


class _Log:
    """The container's log: whole lines to stdout, never waiting for whoever reads it.

    While the reader stalls, what was put waits here; `has_room` tells whether a daemon's pipe may be read. What
    cannot be written because stdout is broken is dropped, and counted in a line as soon as a write succeeds.
    """

    def __init__(self, fd: int, secrets: _Secrets) -> None:
        self._secrets = secrets
        self._waiting: list[bytes | memoryview] = []
        self._size = 0
        self._lost = self._unsaid = 0
        self._reason = ""
        self._last_byte = 10
        self.fd, self._write = self._open(fd)

    @staticmethod
    def _open(fd: int) -> tuple[int, Callable[[int, Sequence[bytes | memoryview]], int]]:
        """A descriptor and a function that writes to it without ever waiting.

        O_NONBLOCK belongs to the open file description, which others share: a pipe or terminal is opened anew.
        """
        kind = os.fstat(fd).st_mode
        if stat.S_ISSOCK(kind):
            import socket

            stream = socket.socket(fileno=os.dup(fd))
            return stream.fileno(), lambda _, parts: stream.sendmsg(parts, [], socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(kind) or os.isatty(fd):
            try:
                fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:  # another user's, or its reader is gone
                if not os.isatty(fd):
                    return fd, _write_if_ready
                os.set_blocking(fd, False)  # a writable terminal has room for one byte; nothing is promised of more
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            except OSError:
                pass  # a terminal, or too many large pipes: then a block takes two writes
        return fd, os.writev

    def has_room(self, limit: int = _LOG_LIMIT_DAEMONS) -> bool:
        return self._size < limit

    @property
    def stalled(self) -> bool:
        return self._size > 0

    def put(self, parts: Sequence[bytes | memoryview]) -> None:
        """Whole lines, to be written after those that wait already."""
        if not self._waiting and self._last_byte != 10:  # what was dropped began in the middle of a line
            parts = [b"\n", *parts]
        size = sum(map(len, parts))
        if self._waiting and size + len(self._waiting[-1]) < _SMALL:
            self._waiting[-1] = b"".join((self._waiting[-1], *parts))
        else:
            self._waiting.extend(parts)
        self._size += size

    def say(self, text: str) -> None:
        """A line of the supervisor's own."""
        if self._size >= _LOG_LIMIT:
            self._unsaid += 1
            return
        line = "sidecar-init: " + _one_line(text) + "\n"
        self.put([self._secrets.redact(line.encode("utf-8", "backslashreplace"))])

    def flush(self) -> None:
        """Write what can be written without waiting."""
        room = True
        while self._waiting and room:
            batch = self._waiting[:512]
            try:
                written = self._write(self.fd, batch)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(str(error.strerror))
                return
            self._size -= written
            room = written == sum(map(len, batch))
            done = 0
            while written and written >= len(self._waiting[done]):
                written -= len(self._waiting[done])
                done += 1
            last = self._waiting[done] if written else self._waiting[done - 1]
            self._last_byte = last[written - 1]
            if written:
                self._waiting[done] = memoryview(last)[written:]
            del self._waiting[:done]
            self._confess()

    def _drop(self, reason: str) -> None:
        self._reason = reason
        self._lost += self._size
        self._waiting.clear()
        self._size = 0

    def _confess(self) -> None:
        """Say what was lost, now that something could be written again."""
        lost, self._lost = self._lost, 0
        if lost:
            self.say(f"cannot write the log: {self._reason}; {lost} bytes of it are lost")
        if self._unsaid and self.has_room():
            unsaid, self._unsaid = self._unsaid, 0
            self.say(f"{unsaid} lines of the supervisor's own are missing here: nobody read the log")

    def wait(self, deadline: float) -> None:
        """Called at the end: wait for the reader until `deadline`, then drop what is left."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        self.flush()
        while self._waiting and time.monotonic() < deadline:
            poll.poll(max(0, deadline - time.monotonic()) * 1000)
            self.flush()
        if self._waiting:
            self._drop("nobody read it in time")

    def close(self, deadline: float) -> None:
        """The last call: if something was dropped, a last line counts it, if that can be written."""
        self.wait(deadline)
        if self._lost:
            self._confess()
            self.wait(time.monotonic() + _POLL_INTERVAL)


def _write_if_ready(fd: int, parts: Sequence[bytes | memoryview]) -> int:
    """For a pipe that could not be opened anew: one that poll calls writable takes 4 KiB (PIPE_BUF) at once."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.write(fd, memoryview(parts[0])[:4096])


# -- processes ---------------------------------------------------------------------------------------------------

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 24, 36, 38


class _Account:
    """A user with all its groups; looked up at each start, since the file can change."""

    def __init__(self, name: str) -> None:
        import pwd

        os.close(os.open("/", os.O_RDONLY))  # getpwnam would call a lack of descriptors a lack of the user
        entry = pwd.getpwnam(name)
        self.name, self.uid, self.gid, self.home = name, entry.pw_uid, entry.pw_gid, entry.pw_dir
        self.groups = os.getgrouplist(name, entry.pw_gid)


class _Process:
    """A child as `subprocess.Popen` shows it. `poll` looks without reaping: the loop still sees the death."""

    def __init__(self, pid: int, returncode: int | None = None) -> None:
        self.pid = pid
        self.returncode = returncode

    def poll(self) -> int | None:
        if self.returncode is None and self.pid:
            try:
                end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                end = None
            if end:
                self.returncode = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return self.returncode

    def signal_group(self, number: int) -> bool:
        """Signal every process of its group; False when there is none left."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self.returncode is not None:
                return False
            os.kill(self.pid, number)  # forked a moment ago, it has no group yet; or it waits to be reaped
        return True


class _CannotStart(Exception):
    """Why a command does not start; `code` is a shell's, or None where trying again may help."""

    _PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ETXTBSY)

    def __init__(self, step: str, number: int, reason: str = "") -> None:
        super().__init__(f"cannot {step}: {reason or os.strerror(number)}")
        self.code = None if number in self._PASSING else 127 if number == errno.ENOENT else 126


class _Nursery:
    """Where children become commands. What only ctypes can ask of the kernel is loaded once, before the first fork."""

    def __init__(self) -> None:
        import ctypes

        self._libc, self._get_errno = ctypes.CDLL(None, use_errno=True), ctypes.get_errno
        self._no_capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        with open("/proc/self/status") as status:
            bounding = next((int(line.split()[1], 16) for line in status if line.startswith("CapBnd:")), 0)
        self._bounding_set = [number for number in range(64) if bounding >> number & 1]
        self._report: tuple[int, int] | None = None  # where the children of a batch tell why they fail; exec closes it
        self._commands: dict[int, str] = {}  # of that batch
        self._problems: dict[int, _CannotStart] = {}

    def prctl(self, option: int, argument: int) -> None:
        self._raise_if(self._libc.prctl(option, argument, 0, 0, 0))

    def _raise_if(self, failed: int) -> None:
        if failed:
            number = self._get_errno()
            raise OSError(number, os.strerror(number))

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: int, account: _Account | None) -> int:
        """Fork a child that becomes the command; `await_exec` tells whether it did. Several can do so side by side."""
        step = f"execute {argv[0]}"
        try:
            program = _find_program(argv[0], env)
            step = "open a pipe"
            self._report = self._report or os.pipe2(os.O_CLOEXEC)
            step = "fork"
            # A signal that came between fork and exec would run PID 1's handlers in the child.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                if pid == 0:
                    self._become(program, argv, env, output, account, self._report[1])
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except OSError as error:
            raise _CannotStart(step, error.errno or 0) from None
        self._commands[pid] = argv[0]
        return pid

    def await_exec(self, pid: int) -> None:
        """Return when the child has become its command; raises _CannotStart if it could not."""
        if self._report:
            self._problems = self._settle(*self._report)
            self._report, self._commands = None, {}
        if problem := self._problems.pop(pid, None):
            raise problem

    def _settle(self, report: int, childrens_end: int) -> dict[int, _CannotStart]:
        """Read what the batch tells until the last has been executed; a second at most, if one is stopped."""
        os.close(childrens_end)
        told, deadline = b"", time.monotonic() + 1
        more = select.poll()
        more.register(report, select.POLLIN)
        while more.poll(max(0, deadline - time.monotonic()) * 1000) and (chunk := os.read(report, _READ_SIZE)):
            told += chunk
        os.close(report)
        problems = {}
        for line in os.fsdecode(told).split("\n")[:-1]:
            pid, number, step = line.split(" ", 2)
            problems[int(pid)] = _CannotStart(step or f"execute {self._commands[int(pid)]}", int(number))
        return problems

    def _become(
        self,
        program: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        output: int,
        account: _Account | None,
        report: int,
    ) -> NoReturn:
        """The child's part of `start`: every step works, or the command is not executed.

        It gets a session of its own, /dev/null as stdin, `output` as the rest and no other descriptor, default
        dispositions, an empty mask, no core dumps, no way to any privilege, and the account, if one is given.
        """
        step = "prepare its process"
        try:
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            for sig in signal.valid_signals():
                if signal.getsignal(sig) != signal.SIG_DFL:
                    signal.signal(sig, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _offer_to_oom_killer()
            step = "renounce privileges"
            self.prctl(_PR_SET_NO_NEW_PRIVS, 1)
            if os.geteuid() == 0:
                step = "drop capabilities (the container must have SETPCAP, or none at all)"
                self._drop_bounding_set()
            if account:
                step = f"become {account.name} (the container must have SETUID and SETGID)"
                os.setgroups(account.groups)
                os.setresgid(account.gid, account.gid, account.gid)
                os.setresuid(account.uid, account.uid, account.uid)
                self.prctl(_PR_SET_DUMPABLE, 0)  # the change of user may have made readable what PID 1 left here
            step = "drop capabilities"
            self._drop_capabilities()
            step = ""
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(program, list(argv), dict(env))
        except Exception as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            os.write(report, os.fsencode(f"{os.getpid()} {number} {step}\n"))
        finally:
            os._exit(127)

    def _drop_bounding_set(self) -> None:
        for number in self._bounding_set:
            self.prctl(_PR_CAPBSET_DROP, number)

    def _drop_capabilities(self) -> None:
        self._raise_if(self._libc.capset(*self._no_capabilities))


def _offer_to_oom_killer() -> None:
    """The kernel should take a daemon rather than PID 1."""
    try:
        score = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        os.write(score, b"%d" % min(int(os.read(score, 16)) + 100, 1000))
        os.close(score)
    except OSError:
        pass  # not allowed to whoever is not root


# -- state for people and tools ----------------------------------------------------------------------------------


# Nothing that a daemon puts in the way may lead us elsewhere (a link) or hold us up (a FIFO).
_STATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class _State:
    """`status.json` and `events.jsonl`. Written at the end of a turn; a directory that fails is said once."""

    def __init__(self, directory: str, secrets: _Secrets, say: Callable[[str], None]) -> None:
        self.directory = directory
        self._secrets = secrets
        self._say = say
        self._events: list[dict[str, Any]] = []
        self._failing = False

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def record(self, event: str, daemon: str | None, pid: int | None, **more: object) -> None:
        if self.directory:
            self._events.append({"time": time.time(), "event": event, "daemon": daemon, "pid": pid, **more})

    def write(self, status: str) -> None:
        """Replace the status, append the events; never raises."""
        events = "".join(_json({**event, "time": _timestamp(event["time"])}) + "\n" for event in self._events)
        self._events = []
        try:
            if not os.path.isdir(self.directory):
                os.makedirs(self.directory)
                os.chmod(self.directory, 0o755)  # whatever our umask is
            if events:
                self._append(self._bytes(events))
            fd = os.open(self.path("status.json.new"), _STATE_FLAGS | os.O_TRUNC, 0o644)
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o644)
                file.write(self._bytes(status + "\n"))
            os.replace(self.path("status.json.new"), self.path("status.json"))
            self._failing = False
        except OSError as error:
            if not self._failing:
                advice = "all else goes on; BOT_BOTTLE_SIDECAR_STATE_DIR may name another"
                self._say(f"cannot write the state to {self.directory}: {error.strerror}; {advice}")
            self._failing = True

    def _append(self, events: bytes) -> None:
        path = self.path("events.jsonl")
        fd = os.open(path, _STATE_FLAGS | os.O_APPEND, 0o644)
        try:
            os.fchmod(fd, 0o644)
            size = os.fstat(fd).st_size
            if os.write(fd, events) < len(events):
                os.ftruncate(fd, size)  # the disk is full: rather no event than half of one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        if size + len(events) >= _EVENTS_LIMIT:
            os.replace(path, path + ".1")

    def _bytes(self, text: str) -> bytes:
        return self._secrets.redact(text.encode("utf-8", "backslashreplace"))


# -- one daemon --------------------------------------------------------------------------------------------------

_WAITING, _STARTING, _RUNNING, _CHECKING, _STOPPING = "waiting", "starting", "running", "checking", "stopping"
_BACKOFF, _EXITED, _FAILED, _STOPPED = "backoff", "exited", "failed", "stopped"
_LIVE = (_STARTING, _RUNNING, _CHECKING)
_ENDED = (_EXITED, _FAILED, _STOPPED)


class _Shared:
    """What the daemons of one supervisor have in common."""

    def __init__(self, clock: Callable[[], float], log: _Log, state: _State, secrets: _Secrets) -> None:
        self.clock, self.log, self.state, self.secrets = clock, log, state, secrets
        self.nursery = _Nursery()
        self.environ = dict(os.environ)  # decoded once
        self.may_restart = self.environ.get("BOT_BOTTLE_SIDECAR_RESTART") != "never"
        self.owners: dict[int, _Daemon] = {}  # pid of a daemon or of its check
        self.readers: dict[int, _Daemon] = {}  # descriptor to read
        self.new_readers: list[int] = []  # those that the loop does not poll yet
        self.due = 0.0  # when the next deadline of any daemon passes
        self.changed = True
        self._oom_counter = _open_oom_counter()  # stays open: a death is told a fifth of a millisecond sooner
        self._oom_kills = self._count_oom_kills()
        self._said: set[str] = set()

    def say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.log.say(text)

    def was_oom(self) -> bool | None:
        """Called when a daemon died of KILL: whether the OOM killer has struck since the last time."""
        before, self._oom_kills = self._oom_kills, self._count_oom_kills()
        return None if before is None or self._oom_kills is None else self._oom_kills > before

    def _count_oom_kills(self) -> int | None:
        try:
            counters = os.pread(self._oom_counter, 4096, 0) if self._oom_counter else b""
            return int(counters.partition(b"oom_kill ")[2].split()[0])
        except (OSError, IndexError):
            return None


class _Daemon:
    """One daemon: its state, its deadline, its pipe. `_enter` alone writes the first two.

    state     | restart asked for | leader ended        | deadline passed     | shutdown
    ----------|-------------------|---------------------|---------------------|----------------
    waiting   | start             |                     | start, with warning | stopped
    starting  | check, or stop    | policy              | look at the port    | stop
    running   | check, or stop    | policy              |                     | stop
    checking  | check once more   | start               | kill the check      | stop
    stopping  | start afterwards  | go on if group gone | KILL the group      | stopped afterwards
    backoff   | start             |                     | start               | stopped
    exited    | start             |                     |                     |
    failed    | start             |                     |                     |
    stopped   |                   |                     |                     |

    check: exit 0 -> stop, then start; else back to starting or running, untouched. stop: TERM to the group, KILL
    at the deadline; what follows waits until the group is empty. policy: backoff or exited, by way of stopping
    where the group outlives its leader. start -> starting (a port) or running; failed if it cannot be executed.
    """

    def __init__(self, spec: _DaemonSpec, shared: _Shared) -> None:
        self.spec, self._shared = spec, shared
        self.state, self.deadline = _WAITING, float("inf")
        self.process: _Process | None = None
        self.lines = _Lines(spec.name, shared.secrets)
        self.ready = self.was_ready = False  # now; since the beginning, which is all that others wait for
        self.failure = 0  # how it failed by itself, where it was not brought back
        self.ended = 0  # how the shutdown ended it
        self.after: list[_Daemon] = []
        self._output: tuple[int, int] | None = None  # one pipe for all its lives: it never ends, never leaks
        self._check: _Process | None = None
        self._check_again = self._may_check_again = False
        self._asked = False  # its next start was asked for
        self._then = ""  # the state that follows stopping
        self.grace = _RESTART_GRACE_SECONDS
        self._kill_at = self._back_at = 0.0
        self._killed = False
        self._deaths = self._failed_starts = 0  # in a row
        self._starts = 0
        self._started_at = self._started_time = 0.0  # by the steady clock, and by the wall's
        self._last_exit: str | None = None
        self._description = ""

    # what happens to it

    def begin(self) -> _Process | None:
        """The first start: `born` follows for whom this returns; others wait until those they come after are ready."""
        missing = self._not_ready()
        if not missing:
            return self._fork()
        self._say(f"{self.spec.name} waits for {missing}")
        self._enter(_WAITING, self._shared.clock() + _AFTER_SECONDS)
        return None

    def restart(self, grace: float) -> None:
        """Asked for by a signal or a caller; nothing happens here that waits."""
        if self.state == _CHECKING:
            self._check_again = True  # the file that is being checked may not be the newest
            return
        if not self._asked:
            self._say(f"restarting {self.spec.name}")
            self._record("restarting")
        self._asked, self._deaths, self.grace, self._may_check_again = True, 0, grace, True
        if self.state == _STOPPING:
            self._then = _STARTING
        elif self.state not in _LIVE:
            self._start()
        elif self.spec.check:
            self._start_check()
        else:
            self._stop(_STARTING)

    def shut_down(self, kill_at: float) -> None:
        self._asked = False
        if self.state in (_WAITING, _BACKOFF):
            self._enter(_STOPPED)
            self._record("stopped")
        elif self.state in (*_LIVE, _STOPPING):
            self.grace = _GRACE_SECONDS
            self._stop(_STOPPED, kill_at)
            if self.process and self.process.returncode is not None:
                self._pursue_stop()

    def reaped(self, pid: int, returncode: int) -> None:
        """A child of ours ended: the daemon, or its check. First comes what it wrote, as far as the log has room."""
        all_read = self.drain()
        if self.process and pid == self.process.pid:
            self.process.returncode = returncode
            if all_read:  # else the rest of its last line is still to come
                self._shared.log.put(self.lines.finish())
            if self.state == _STOPPING:
                self._say_exit()
                self._pursue_stop()
            else:
                self._die()
        elif self._check and pid == self._check.pid:
            self._check.returncode = returncode
            self._shared.log.put(self.lines.finish())
            said = self.lines.last_words.decode("utf-8", "replace").splitlines()[-1:]
            problem = f"its check exited {_exit_text(returncode)}" + "".join(f" ({line})" for line in said)
            self._finish_check(problem if returncode else "")

    def advance(self, now: float) -> bool:
        """Act on a deadline, or on what others have become. True when its group had to be killed."""
        late = now >= self.deadline
        if self.state == _WAITING:
            missing = self._not_ready()
            if missing and late:
                self._say(f"{self.spec.name} does not wait any longer for {missing}")
            if late or not missing:
                self._start()
        elif self.state == _STARTING and late:
            self._look_at_port()
        elif self.state == _CHECKING and late:
            self._finish_check(f"its check took longer than {_CHECK_SECONDS:g} s")
        elif self.state == _STOPPING and (late or (self.process and self.process.returncode is not None)):
            return self._pursue_stop()
        elif self.state == _BACKOFF and late:
            self._start()
        return False

    def _not_ready(self) -> str:
        return ", ".join(other.spec.name for other in self.after if not other.was_ready)

    # how it goes from state to state

    def _enter(self, state: str, deadline: float = float("inf")) -> None:
        self.state, self.deadline = state, deadline
        self.ready = self.ready and state in _LIVE
        self._description = ""
        self._shared.due = min(self._shared.due, deadline)
        self._shared.changed = True

    def _start(self) -> None:
        """-> starting, running, failed, or backoff where it may work later"""
        if process := self._fork():
            self.born(process)

    def _fork(self) -> _Process | None:
        """The first half of a start; `born` is the second. None: it has failed already."""
        if not self._asked:
            self._say(f"starting {self.spec.name}")
        try:
            return self._spawn(self.spec.argv)
        except _CannotStart as problem:
            self._not_started(problem)
            return None

    def born(self, process: _Process) -> None:
        """Called when it has been forked; returns when it has been executed, or has failed."""
        try:
            self._shared.nursery.await_exec(process.pid)
        except _CannotStart as problem:
            self._not_started(problem)
            return
        self.process = process
        self._starts += 1
        self._started_at, self._started_time = self._shared.clock(), time.time()
        self.failure, self._failed_starts, self.lines.last_words = 0, 0, b""
        if self._asked:
            self._say(f"{self.spec.name} restarted (pid {process.pid})")
        self._record("restarted" if self._asked else "started")
        self._asked = False
        if self.spec.port is None:
            self._become_ready()
        else:
            self._enter(_STARTING, self._started_at + _POLL_INTERVAL)

    def _not_started(self, problem: _CannotStart) -> None:
        """-> backoff, failed"""
        if problem.code is None:
            self._failed_starts += 1
            delay = _backoff(self._failed_starts)
            self._say(f"cannot start {self.spec.name}: {problem}; the next try is in {delay:.1f} s")
            self._enter(_BACKOFF, self._shared.clock() + delay)
        else:
            self._asked, self.failure = False, problem.code
            again = " until it is restarted by a signal" if ("restart", self.spec.name) in _SIGNALS.values() else ""
            self._say(f"cannot start {self.spec.name}: {problem}; it stays down{again}")
            self._enter(_FAILED)
            self._record("failed", reason=str(problem), code=problem.code)

    def _look_at_port(self) -> None:
        now = self._shared.clock()
        try:
            listening = _is_listening(self.spec.port or 0)
        except OSError as error:
            listening = False
            self._shared.say_once(f"cannot tell who is ready: {error.filename}: {error.strerror}")
        if listening:
            self._say(f"{self.spec.name} ready after {now - self._started_at:.2f} s")
            self._become_ready()
        else:  # the longer it takes, the less often: a port that never opens must not keep us busy
            self._enter(_STARTING, now + min(max(_POLL_INTERVAL, (now - self._started_at - 30) / 20), 5.0))

    def _become_ready(self) -> None:
        self.ready = self.was_ready = True
        self._record("ready", seconds=round(self._shared.clock() - self._started_at, 3))
        self._enter(_RUNNING)
        self._shared.due = 0.0  # somebody may wait for this

    def _start_check(self) -> None:
        """starting, running -> checking"""
        self._check_again, self.lines.last_words = False, b""
        try:
            check = self._spawn(self.spec.check or ())
            self._shared.nursery.await_exec(check.pid)
        except _CannotStart as problem:
            self._refuse_restart(str(problem))
        else:
            self._check = check
            self._enter(_CHECKING, self._shared.clock() + _CHECK_SECONDS)

    def _finish_check(self, problem: str) -> None:
        """checking -> stopping if there is no problem, else as before"""
        self._kill_check()
        if self._check_again and self._may_check_again:
            self._may_check_again = False  # once: a storm of signals shall not put the restart off for ever
            self._start_check()
        elif problem:
            self._refuse_restart(problem)
        else:
            self._stop(_STARTING)

    def _refuse_restart(self, problem: str) -> None:
        self._asked = False
        self._say(f"cannot restart {self.spec.name}: {problem}; the running one stays")
        self._record("check-failed", reason=problem)
        if self.ready:
            self._enter(_RUNNING)
        else:
            self._enter(_STARTING, self._shared.clock())

    def _kill_check(self) -> None:
        if self._check:
            self._signal(self._check, signal.SIGKILL)
            self._check = None

    def _stop(self, then: str, kill_at: float | None = None, back_at: float = float("inf")) -> None:
        """-> stopping; when the group is empty -> `then`"""
        assert self.process
        self._kill_check()
        self._then, self._back_at, self._killed = then, back_at, False
        self._kill_at = self._shared.clock() + self.grace if kill_at is None else kill_at
        self._signal(self.process, signal.SIGTERM)
        self._signal(self.process, signal.SIGCONT)  # one that was stopped takes its TERM only now
        self._enter(_STOPPING, self._kill_at)

    def _die(self) -> None:
        """starting, running, checking -> what the policy says; by way of stopping if its group lives"""
        assert self.process and self.process.returncode is not None
        code, now = self.process.returncode, self._shared.clock()
        self.failure = _shell_code(code)
        self._deaths = 1 if now - self._started_at >= _STEADY_SECONDS else self._deaths + 1
        policy = self.spec.restart if self._shared.may_restart else "never"
        if self._asked:  # checking: with the old one gone, there is nothing to protect
            then, delay = _STARTING, 0.0
        elif policy == "always" or (policy == "on-failure" and code != 0):
            then, delay = _BACKOFF, _backoff(self._deaths)
        else:
            then, delay = _EXITED, None
        self._say_exit(delay)
        if self._deaths == _CRASH_LOOP_DEATHS and then == _BACKOFF:
            self._say(f"{self.spec.name} is crash-looping: {self._deaths} deaths without {_STEADY_SECONDS:g} s of life")
            self._record("crash-looping", deaths=self._deaths)
        self.grace = _RESTART_GRACE_SECONDS
        self._stop(then, back_at=float("inf") if delay is None else now + delay)
        self._pursue_stop()

    def _pursue_stop(self) -> bool:
        """stopping -> what follows, once the group is empty; KILL at the deadline, which is told by True"""
        assert self.process
        now = self._shared.clock()
        # Two seconds after KILL only the dead are left whose parent, elsewhere, does not bury them,
        # or whom we may not signal; a shutdown does not wait for those either.
        hopeless = self._killed and now >= self._kill_at + 2
        code = self.process.returncode
        if hopeless and self._then == _STOPPED and code is None:
            code = -signal.SIGKILL
        if code is not None and (hopeless or not self._signal(self.process, 0)):
            if self._then == _STARTING:
                self._start()
            else:
                self._enter(self._then, self._back_at)
                if self._then == _STOPPED:
                    self.ended = _shell_code(code)
                    self._record("stopped")
            return False
        kill = now >= self._kill_at and not self._killed
        if kill:
            self._killed = True
            self._signal(self.process, signal.SIGKILL)
            self._record("killed")
        unseen = self._killed or code is not None  # from here on the end of the group may come without a signal to us
        self._enter(_STOPPING, now + _POLL_INTERVAL if unseen else self._kill_at)
        return kill

    # what it needs for that

    def _spawn(self, argv: Sequence[str]) -> _Process:
        """Start the daemon or its check, under its account, in its environment, into its pipe."""
        env = _env_for_daemon(self.spec.name, self._shared.environ)
        account = self._account()
        if account:
            env.update(HOME=account.home, USER=account.name, LOGNAME=account.name)
        if self._shared.state.directory:
            env["SIDECAR_STATUS_FILE"] = self._shared.state.path("status.json")
            env["SIDECAR_EVENTS_FILE"] = self._shared.state.path("events.jsonl")
        process = _Process(self._shared.nursery.start(argv, env, self._open_output(account), account))
        self._shared.owners[process.pid] = self
        return process

    def _signal(self, process: _Process, number: int) -> bool:
        """Signal its group, or its check's; False when there is none."""
        try:
            return process.signal_group(number)
        except PermissionError as error:
            self._shared.say_once(f"cannot signal {self.spec.name}: {error.strerror}; the container must have KILL")
            return True

    def _account(self) -> _Account | None:
        user = self.spec.user
        if user is None:
            return None
        if os.geteuid() != 0:
            self._shared.say_once(f"cannot run {self.spec.name} as {user}: not root; it runs as the supervisor's user")
            return None
        try:
            return _Account(user)
        except (KeyError, ValueError):  # none, or no name that this locale can write
            raise _CannotStart(f"become {user}", errno.EINVAL, "there is no such user") from None
        except OSError as error:
            raise _CannotStart(f"become {user}", error.errno or 0) from None

    def _open_output(self, account: _Account | None) -> int:
        """The end of its pipe that it writes to."""
        if self._output is None:
            try:
                self._output = os.pipe()
            except OSError as error:
                raise _CannotStart("open a pipe", error.errno or 0) from None
            os.set_blocking(self._output[0], False)
            self._shared.readers[self._output[0]] = self
            self._shared.new_readers.append(self._output[0])
        os.set_blocking(self._output[1], True)  # an earlier life may have changed what it shares with the next
        if account:
            try:
                os.fchown(self._output[1], account.uid, account.gid)  # so that it can open /dev/stderr
            except OSError:
                pass  # not allowed here; it can do without
        return self._output[1]

    def drain(self) -> bool:
        """Read what the dead have written; a grandchild that goes on writing does not keep us here. True: all of it."""
        log, budget = self._shared.log, _LOG_LIMIT
        while self._output and budget > 0 and log.has_room(_LOG_LIMIT_LAST_WORDS):
            try:
                chunk = os.read(self._output[0], _READ_SIZE)
            except BlockingIOError:
                return True
            budget -= len(chunk)
            log.put(self.lines.feed(chunk))
            log.flush()
        return False

    def _say_exit(self, delay: float | None = None) -> None:
        assert self.process and self.process.returncode is not None
        code, uptime = self.process.returncode, self._shared.clock() - self._started_at
        killer = _signal_name(-code) if code < 0 else None
        oom = self._shared.was_oom() if _shell_code(code) == 137 and not self._killed else False
        text = f"{self.spec.name} exited {_exit_text(code)}{' (out of memory)' if oom else ''}; up {uptime:.1f} s"
        if delay is not None:
            text += f"; restart {self.restarts + 1} in {delay:.1f} s"
        self._say(text)
        self._shared.log.flush()  # people first
        self._last_exit = killer or f"code {code}"
        self._record(
            "exited",
            code=None if killer else code,
            signal=killer,
            uptime=round(uptime, 3),
            restarts=self.restarts,
            next_start_in=None if delay is None else round(delay, 3),
            last_lines=self.lines.last_words.decode("utf-8", "replace").splitlines()[-5:],
            oom=oom,
        )

    def _say(self, text: str) -> None:
        self._shared.log.say(text)

    def _record(self, event: str, **more: object) -> None:
        self._shared.state.record(event, self.spec.name, self.process.pid if self.process else None, **more)

    # what others want to know

    @property
    def restarts(self) -> int:
        return max(self._starts - 1, 0)

    def describe(self) -> str:
        """Its part of status.json, made anew only after a change."""
        if not self._description:
            live = self.state in (*_LIVE, _STOPPING)
            wait = self.deadline - self._shared.clock()
            self._description = _json(
                {
                    "name": self.spec.name,
                    "state": self.state,
                    "ready": self.ready,
                    "pid": self.process.pid if self.process and live else None,
                    "port": self.spec.port,
                    "user": self.spec.user,
                    "started_at": _timestamp(self._started_time) if self._starts else None,
                    "restarts": self.restarts,
                    "crash_looping": self.state == _BACKOFF and self._deaths >= _CRASH_LOOP_DEATHS,
                    "next_start_at": _timestamp(time.time() + wait) if self.state == _BACKOFF else None,
                    "last_exit": self._last_exit,
                }
            )
        return self._description


# -- signals -----------------------------------------------------------------------------------------------------


class _Inbox:
    """Records signals for the loop. A descriptor wakes poll, which a Python handler alone would not."""

    _NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)

    def __init__(self) -> None:
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._recorded: dict[int, None] = {}

    def open(self) -> None:
        """Called once by the program, before the first child: from now on signals are recorded until it ends."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in self._NUMBERS:
            signal.signal(number, self._record)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _record(self, number: int, _: FrameType | None) -> None:
        self._recorded[number] = None

    def take(self) -> list[str]:
        """The names of the signals that came since the last time, each once, in order; when `fd` is readable."""
        os.read(self.fd, _READ_SIZE)
        recorded, self._recorded = self._recorded, {}
        return [_signal_name(number)[3:] for number in recorded]


# -- the supervisor ----------------------------------------------------------------------------------------------


class _Supervisor:
    """All daemons, the poll object and the loop."""

    def __init__(
        self,
        specs: Sequence[_DaemonSpec],
        *,
        clock: Callable[[], float] = time.monotonic,
        log: _Log | None = None,
        state: _State | None = None,
        inbox: _Inbox | None = None,
    ) -> None:
        secrets = _Secrets(os.environb, _SECRETS)
        self._log = log or _Log(1, secrets)
        self._state = state or _State("", secrets, self._log.say)
        self._inbox = inbox
        self._shared = _Shared(clock, self._log, self._state, secrets)
        self.specs = list(specs)
        self.shutdown_at: float | None = None  # the time of the first request
        self._daemons = [_Daemon(spec, self._shared) for spec in specs]
        self._by_name = {daemon.spec.name: daemon for daemon in self._daemons}
        for daemon in self._daemons:
            daemon.after = [self._by_name[name] for name in daemon.spec.after if name in self._by_name]
        self._all, self._quiet = select.poll(), select.poll()  # the second while there is no room for a line more
        self._quiet.register(self._log.fd, select.POLLOUT)
        self._awaits_reader = False
        self._last_read = -1
        self._done = False
        self._started_at, self._start_ticks = _timestamp(time.time()), _start_ticks(os.getpid())
        if inbox:
            self._all.register(inbox.fd, select.POLLIN)
            self._quiet.register(inbox.fd, select.POLLIN)

    # the public face

    @property
    def procs(self) -> list[tuple[_DaemonSpec, _Process]]:
        """One slot a daemon, in table order; its current process, or its last; pid 0 if there never was one."""
        return [(daemon.spec, daemon.process or _Process(0, daemon.failure or None)) for daemon in self._daemons]

    def start_all(self) -> None:
        """Called once. Those that need not wait for others are started now, in table order, and have been executed."""
        for daemon, process in [(daemon, daemon.begin()) for daemon in self._daemons]:
            if process:
                daemon.born(process)
        self._log.flush()

    def tick(self, timeout: float = 0.0) -> bool:
        """One turn of the loop, never waiting longer than `timeout`; True when every child has exited for good."""
        readable = self._poll(timeout)
        self._carry_output(readable)
        signals = self._inbox.take() if self._inbox and self._inbox.fd in readable else []
        if "CHLD" in signals or not self._inbox:
            self._reap()
        self._heed(signals)
        self._meet_deadlines()
        self._log.flush()
        if self._shared.changed:
            self._shared.changed = False
            self._done = all(daemon.state in _ENDED for daemon in self._daemons)
            self._write_state()
        return self._done

    def request_shutdown(self, reason: str) -> None:
        """TERM to every group at once; `tick` does the rest. A second request changes nothing."""
        if self.shutdown_at is not None:
            return
        self.shutdown_at = self._shared.clock()
        self._log.say(f"shutting down ({reason}); forwarding SIGTERM")
        self._state.record("shutdown", None, os.getpid(), reason=reason)
        self._shared.changed = True
        for daemon in self._daemons:
            daemon.shut_down(self.shutdown_at + _GRACE_SECONDS)

    def forward_signal(self, sig: int, name: str) -> bool:
        """Signal the daemon's own process. True when a live child was signalled."""
        self._shared.changed = True
        daemon, what = self._by_name.get(name), _signal_name(sig)
        if self.shutdown_at is not None:
            why = "supervisor is shutting down"
        elif daemon is None:
            why = f"{name} is not selected"
        elif daemon.state not in _LIVE or daemon.process is None or daemon.process.poll() is not None:
            why = f"{name} is not running"
        else:
            try:
                os.kill(daemon.process.pid, sig)
            except OSError as error:  # another account's, and the container has no KILL
                why = f"cannot signal it: {error.strerror}"
            else:
                self._log.say(f"forwarded {what} to {name}")
                self._state.record("signal", name, daemon.process.pid, signal=what, forwarded=True)
                return True
        self._log.say(f"{what} for {name} dropped; {why}")
        self._state.record("signal", name, None, signal=what, forwarded=False, reason=why)
        return False

    def restart_daemon(self, name: str, *, grace: float = _RESTART_GRACE_SECONDS) -> bool:
        """Restart in place and wait for it. False: unknown name, shutting down, or the check or the start failed."""
        daemon = self._by_name.get(name)
        before = daemon.process if daemon else None
        if daemon is None or not self._restart(name, grace):
            return False
        while daemon.state in (_CHECKING, _STOPPING):
            self.tick(self._time_to_next_deadline())
        return daemon.state in _LIVE and daemon.process is not before

    def exit_code(self) -> int:
        """The worst of those that failed by themselves and were not brought back; else of those that we ended,
        where one that had to be killed is worse than any that went when told to."""
        failures = [daemon.failure for daemon in self._daemons]
        ended = [daemon.ended for daemon in self._daemons]
        return max(failures, default=0) or (137 if 137 in ended else max(ended, default=0))

    # the loop

    def run(self) -> int:
        """Start everything, and return the exit code when all of it has ended."""
        self.start_all()
        while not self.tick(self._time_to_next_deadline()):
            pass
        ended_at = self._shared.clock() if self.shutdown_at is None else self.shutdown_at
        deadline = max(ended_at + _GRACE_SECONDS, self._shared.clock() + 5 * _POLL_INTERVAL)
        for daemon in self._daemons:  # what there was no room for, and what those wrote that daemons left behind
            self._log.wait(deadline)
            daemon.drain()
            self._log.put(daemon.lines.finish())
        self._log.say(f"exit {self.exit_code()}")
        self._write_state("stopped")
        self._log.close(deadline)
        return self.exit_code()

    def guard(self) -> None:
        """Called once by the program: what PID 1 holds is out of every daemon's reach; orphans come to us."""
        self._shared.nursery.prctl(_PR_SET_DUMPABLE, 0)
        if os.getpid() != 1:
            self._shared.nursery.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def _time_to_next_deadline(self) -> float:
        wait = max(0.0, self._shared.due - self._shared.clock())
        return wait if self._inbox else min(wait, _POLL_INTERVAL)  # without an inbox, no death wakes us

    def _poll(self, timeout: float) -> list[int]:
        """Here the loop sleeps until something happens. Returns the descriptors that can be read."""
        while self._shared.new_readers:
            self._all.register(self._shared.new_readers.pop(), select.POLLIN)
        if self._log.stalled != self._awaits_reader:
            self._awaits_reader = self._log.stalled
            if self._awaits_reader:
                self._all.register(self._log.fd, select.POLLOUT)
            else:
                self._all.unregister(self._log.fd)
        poll = self._all if self._log.has_room() else self._quiet
        milliseconds = None if timeout == float("inf") else min(timeout, 3600) * 1000
        # A signal that interrupts poll at its timeout makes it return nothing: a second look finds what came with it.
        return sorted(fd for fd, _ in poll.poll(milliseconds) or poll.poll(0))

    def _carry_output(self, fds: list[int]) -> None:
        """One read from each daemon that has written, and on to the log; in turns, so that nobody starves."""
        later = [fd for fd in fds if fd > self._last_read]
        for fd in later + fds[: len(fds) - len(later)]:
            daemon = self._shared.readers.get(fd)
            if daemon is None:
                continue
            if not self._log.has_room():
                break
            self._last_read = fd
            try:
                self._log.put(daemon.lines.feed(os.read(fd, _READ_SIZE)))
            except BlockingIOError:
                continue
            if not self._log.has_room(_READ_SIZE):
                self._log.flush()  # the reader is at work on it while we read on
        self._log.flush()

    def _reap(self) -> None:
        """Bury whoever has ended; reaping is cheaper than dying, so that this comes to an end."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if daemon := self._shared.owners.pop(pid, None):
                daemon.reaped(pid, os.waitstatus_to_exitcode(status))
                self._log.flush()
            else:
                self._shared.due = 0.0  # an orphan; it may have been the last of a group that is waited for

    def _heed(self, signals: list[str]) -> None:
        for name in signals:
            if name in ("TERM", "INT"):
                self.request_shutdown(f"SIG{name}")
            elif name == "USR2":
                self._shared.changed = True
            elif name in _SIGNALS:
                action, target = _SIGNALS[name]
                if action == "forward":
                    self.forward_signal(getattr(signal, f"SIG{name}"), target)
                else:
                    self._restart(target, _RESTART_GRACE_SECONDS)

    def _restart(self, name: str, grace: float) -> bool:
        daemon = self._by_name.get(name)
        if self.shutdown_at is not None:
            self._log.say(f"restart {name} skipped; supervisor is shutting down")
        elif daemon is None:
            self._log.say(f"restart {name} skipped; {name} is not selected")
        else:
            daemon.restart(grace)
            return True
        return False

    def _meet_deadlines(self) -> None:
        now = self._shared.clock()
        if now < self._shared.due:
            return
        self._reap()  # nobody who has ended in time is killed, whenever the signal comes that tells of it
        self._shared.due = float("inf")
        killed: dict[float, list[str]] = {}
        for daemon in self._daemons:
            if daemon.advance(now):
                killed.setdefault(daemon.grace, []).append(daemon.spec.name)
            self._shared.due = min(self._shared.due, daemon.deadline)
        for grace, names in killed.items():
            self._log.say(f"grace ({grace:g}s) elapsed; SIGKILL on {', '.join(names)}")

    def _write_state(self, state: str = "") -> None:
        if not self._state.directory:
            return
        about = {
            "pid": os.getpid(),
            "start_ticks": self._start_ticks,
            "state": state or ("running" if self.shutdown_at is None else "shutting-down"),
            "started_at": self._started_at,
            "updated_at": _timestamp(time.time()),
            "signals": {name: {action: target} for name, (action, target) in _SIGNALS.items()},
        }
        daemons = ", ".join(daemon.describe() for daemon in self._daemons)
        self._state.write(f'{_json(about)[:-1]}, "daemons": [{daemons}]}}')


# -- commands ----------------------------------------------------------------------------------------------------
# They read the state and send signals: no socket, no new way in. What they import, PID 1 does not pay for.


def _state_path(name: str) -> str:
    directory = os.environ.get("BOT_BOTTLE_SIDECAR_STATE_DIR", _STATE_DIRECTORY)
    if not directory:
        raise _Refusal("cannot read the state: BOT_BOTTLE_SIDECAR_STATE_DIR is empty, so none is kept")
    return os.path.join(directory, name)


def _read_status() -> dict[str, Any]:
    import json

    path = _state_path("status.json")
    try:
        with open(path, encoding="utf-8") as file:
            status: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise _Refusal(f"cannot find a supervisor: there is no {path}") from None
    except OSError as error:
        raise _Refusal(f"cannot read {path}: {error.strerror}") from None
    return status


def _problem_with(status: dict[str, Any]) -> str:
    """Why a status may be out of date; empty if its supervisor lives."""
    try:
        if _start_ticks(status["pid"]) == status.get("start_ticks"):
            return ""
    except (OSError, ValueError):
        pass
    return f"supervisor {status['pid']} is gone; it last wrote at {status.get('updated_at')}"


def _live_status() -> dict[str, Any]:
    status = _read_status()
    if problem := _problem_with(status):
        raise _Refusal(f"cannot reach the supervisor: {problem}")
    return status


def _send(status: dict[str, Any], name: str) -> None:
    try:
        os.kill(status["pid"], getattr(signal, f"SIG{name}"))
    except OSError as error:
        raise _Refusal(f"cannot send SIG{name} to supervisor {status['pid']}: {error.strerror}") from None


def _local_time(timestamp: str, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    from datetime import datetime

    return datetime.fromisoformat(timestamp).astimezone().strftime(form)


def _print_table(rows: list[list[str]], colours: dict[str, str]) -> None:
    """Columns as wide as they need; a line in the colour that its second cell has, on a terminal that wants it."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        colour = colours.get(row[1], "") if coloured else ""
        print(f"\033[{colour}m{line}\033[0m" if colour else line)


def _state_of(daemon: dict[str, Any]) -> str:
    return "crash-looping" if daemon["crash_looping"] else str(daemon["state"])


def _status(options: Namespace) -> int:
    status = _read_status()
    problem = _problem_with(status)
    if options.json:
        import json

        print(json.dumps({**status, "stale": bool(problem)}, indent=2))
    else:
        rows = [["NAME", "STATE", "READY", "PID", "UP SINCE", "RESTARTS", "LAST EXIT"]]
        for daemon in status["daemons"]:
            since = _local_time(daemon["started_at"]) if daemon["pid"] else "-"
            back = daemon["next_start_at"] and f"back at {_local_time(daemon['next_start_at'], '%H:%M:%S')}"
            rows.append(
                [
                    daemon["name"],
                    _state_of(daemon),
                    "yes" if daemon["ready"] else "no",
                    str(daemon["pid"] or "-"),
                    back or since,
                    str(daemon["restarts"]),
                    daemon["last_exit"] or "-",
                ]
            )
        _print_table(rows, {_RUNNING: "32", _BACKOFF: "33", _STARTING: "33", _FAILED: "31", "crash-looping": "31"})
    if problem:
        print(_one_line(f"cannot vouch for this: {problem}"), file=sys.stderr)
    return 1 if problem else 0


def _health(_: Namespace) -> int:
    """Proves that the loop answers, and that everything runs."""
    status = _live_status()
    path = _state_path("status.json")
    before = _version(path)
    _send(status, "USR2")
    if not _has_changed(path, before, time.monotonic() + 1):
        raise _Refusal(f"unhealthy: supervisor {status['pid']} does not answer")
    status = _live_status()
    if status["state"] != "running":
        raise _Refusal(f"unhealthy: the supervisor is {status['state']}")
    down = [f"{daemon['name']} is {_state_of(daemon)}" for daemon in status["daemons"] if not daemon["ready"]]
    if down:
        raise _Refusal(f"unhealthy: {', '.join(down)}, not ready")
    print(f"healthy: {len(status['daemons'])} daemons run and are ready")
    return 0


def _version(path: str) -> tuple[int, ...]:
    try:
        file = os.stat(path)
    except OSError:
        return ()
    return file.st_ino, file.st_mtime_ns, file.st_size


def _has_changed(path: str, version: tuple[int, ...], deadline: float) -> bool:
    """Wait until the file is no longer what it was; False: at the deadline it still is."""
    while _version(path) == version:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _read_events(path: str) -> list[str]:
    """The lines of both files, the older first; a half-written last line is left for later."""
    lines: list[str] = []
    for candidate in (path + ".1", path):
        try:
            with open(candidate, encoding="utf-8", errors="replace") as file:
                lines += [line for line in file if line.endswith("\n")]
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _Refusal(f"cannot read {candidate}: {error.strerror}") from None
    return lines


def _newer(lines: list[str], last: str) -> list[str]:
    """Those after the last that was seen, which is found again also after a rotation."""
    return lines[len(lines) - lines[::-1].index(last) :] if last in lines else lines


def _event_line(line: str) -> str:
    import json

    try:
        event = json.loads(line)
        when, kind, daemon = _local_time(event.pop("time")), event.pop("event"), event.pop("daemon") or "-"
    except (ValueError, KeyError, AttributeError, TypeError):
        return _one_line(line.strip())
    last_lines = event.pop("last_lines", None) or []
    details = ", ".join(f"{key} {value}" for key, value in event.items() if value is not None and value is not False)
    lines = [f"{when}  {kind:<13} {daemon:<12} {details}", *(f"    | {line}" for line in last_lines)]
    return "\n".join(map(_one_line, lines))


def _events(options: Namespace) -> int:
    path = _state_path("events.jsonl")
    show = str.rstrip if options.json else _event_line
    lines = _read_events(path)
    if not lines and not options.follow and not os.path.exists(path):
        raise _Refusal(f"cannot find events: there is no {path}")
    for line in lines[-options.n :] if options.n else []:
        print(show(line))
    last = lines[-1] if lines else ""
    reader = select.poll()
    reader.register(1, 0)  # tells only when whoever reads us has left
    while options.follow:
        sys.stdout.flush()
        if reader.poll(200):
            break
        for line in _newer(_read_events(path), last):
            print(show(line))
            last = line
    return 0


def _way_to_reload(status: dict[str, Any], name: str) -> tuple[str, str]:
    """The signal that reloads this daemon, and what the supervisor then does: forward or restart."""
    ways = [(sig, verb, target) for sig, action in status["signals"].items() for verb, target in action.items()]
    mine = [(sig, verb) for sig, verb, target in ways if target == name]
    if not mine:
        reloaded = ", ".join(target for _, _, target in ways) or "nobody"
        raise _Refusal(f"cannot apply {name}: no signal reloads it; the table's signals reload {reloaded}")
    if name not in [daemon["name"] for daemon in status["daemons"]]:
        raise _Refusal(f"cannot apply {name}: it is not selected")
    if status["state"] != "running":
        raise _Refusal(f"cannot apply {name}: the supervisor is {status['state']}")
    return mine[0]


def _apply(options: Namespace) -> int:
    """Send what reloads a daemon, and wait until the events say how it went."""
    import json

    status, name = _live_status(), options.name
    sig, verb = _way_to_reload(status, name)
    path = _state_path("events.jsonl")
    last = (_read_events(path) or [""])[-1]
    _send(status, sig)
    deadline = time.monotonic() + options.timeout
    answered, restarted, heard = False, False, None
    while time.monotonic() < deadline:
        version = _version(path)
        for line in _newer(_read_events(path), last):
            last = line
            try:
                event = json.loads(line)
                kind, about = event["event"], event["daemon"]
            except (ValueError, KeyError, TypeError):
                continue
            if kind == "shutdown":
                raise _Refusal(f"cannot apply {name}: the supervisor is shutting down")
            if about != name:
                continue
            answered = True
            if kind in ("check-failed", "failed"):
                raise _Refusal(f"cannot apply {name}: {event['reason']}; see the log of {name}")
            if verb == "restart":
                restarted = restarted or kind == "restarted"
                if restarted and kind == "ready":
                    print(f"{name} restarted and ready (pid {event['pid']})")
                    return 0
            elif kind == "signal":
                if not event["forwarded"]:
                    raise _Refusal(f"cannot apply {name}: {event['reason']}")
                heard = event["pid"]
                deadline = min(deadline, time.monotonic() + 0.3)  # one that has no handler dies of it at once
            elif kind == "exited" and heard:
                raise _Refusal(f"cannot apply {name}: SIG{sig} ended it; see the log of {name}")
        _has_changed(path, version, deadline)
    if heard:
        print(f"{name} has got SIG{sig} (pid {heard})")
        return 0
    problem = "it is not ready" if answered else "the supervisor has not answered"
    raise _Refusal(f"cannot apply {name}: {problem} after {options.timeout:g} s")


def _obstacles(spec: _DaemonSpec) -> list[str]:
    """Why this daemon, or its check, would not start."""
    obstacles = []
    for argv in filter(None, (spec.argv, spec.check)):
        try:
            _find_program(argv[0], _env_for_daemon(spec.name, os.environ))
        except OSError as error:
            obstacles.append(f"{spec.name}: cannot execute {argv[0]}: {error.strerror}")
    if spec.user and os.geteuid() == 0:
        try:
            _Account(spec.user)
        except (KeyError, ValueError):
            obstacles.append(f"{spec.name}: cannot become {spec.user}: there is no such user")
    return obstacles


def _plan(_: Namespace) -> int:
    """What would run; starts nothing."""
    secrets = _Secrets(os.environb, _SECRETS)

    def clean(text: str) -> str:
        return secrets.redact(text.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")

    specs = _selected_daemons(os.environ)
    names = [spec.name for spec in specs]
    rows = [["ORDER", "NAME", "RUNS AS", "PORT", "AFTER", "RESTART", "COMMAND"]]
    for order, spec in enumerate(specs, 1):
        user = spec.user or "(supervisor)"
        if spec.user and os.geteuid() != 0:
            user = f"(supervisor, not {spec.user}: not root)"
        after = ", ".join(name for name in spec.after if name in names) or "-"
        command = clean(" ".join(spec.argv))
        command = command if len(command) <= 80 else command[:77] + "..."
        rows.append([str(order), spec.name, user, str(spec.port or "-"), after, spec.restart, command])
    if specs:
        _print_table(rows, {})
    else:
        print("no daemons selected; nothing to do")
    problems = [obstacle for spec in specs for obstacle in _obstacles(spec)] + _exposed_secrets(specs)
    problems += [f"{name}: no such daemon in the table" for name in _unknown_names(os.environ)]
    for problem in dict.fromkeys(problems):
        print(_one_line(clean(problem)))
    return 1 if problems else 0


# -- the program -------------------------------------------------------------------------------------------------


def _keep_standard_descriptors() -> None:
    """No file of ours may become a daemon's stdout; nothing that we were given may leak into one."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # the one that listed them


def _supervise() -> int:
    """Be the supervisor, until all daemons have ended."""
    _keep_standard_descriptors()
    secrets = _Secrets(os.environb, _SECRETS)
    log = _Log(1, secrets)
    if (mode := os.environ.get("BOT_BOTTLE_SIDECAR_RESTART", "")) not in ("", "never"):
        log.say(f"BOT_BOTTLE_SIDECAR_RESTART={mode} ignored; only never is known")
    if unknown := _unknown_names(os.environ):
        log.say(f"unknown daemons ignored: {', '.join(unknown)}")
    specs = _selected_daemons(os.environ)
    for warning in _exposed_secrets(specs):
        log.say(warning)
    if not specs:
        log.say("no daemons selected; nothing to do")
        log.close(time.monotonic() + _GRACE_SECONDS)
        return 0
    directory = os.environ.get("BOT_BOTTLE_SIDECAR_STATE_DIR", _STATE_DIRECTORY)
    directory = directory and os.path.abspath(directory)  # daemons are told of it, wherever they go
    inbox = _Inbox()
    inbox.open()
    supervisor = _Supervisor(specs, log=log, state=_State(directory, secrets, log.say), inbox=inbox)
    supervisor.guard()
    return supervisor.run()


def _answer(command: Callable[[Namespace], int], options: Namespace) -> int:
    """Run a command. Its answer may meet a stdout that takes none, and a state that daemons have forged."""
    import io

    if sys.stdout is None:
        raise _Refusal("cannot write the answer: stdout is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what daemons said need not fit the locale
    try:
        code = command(options)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # the interpreter shall not try it once more
        if isinstance(error, BrokenPipeError):
            return 0  # who read us has left
        raise _Refusal(f"cannot write the answer: {error.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        if command is _plan:
            raise  # it reads no state
        raise _Refusal(f"cannot use {_state_path('')}: what is there was not written by a supervisor") from None
    return code


def _command_line(arguments: list[str]) -> int:
    """Everything but `sidecar_init.py` without arguments."""
    import argparse

    def seconds(text: str) -> float:
        if not 0 <= float(text) < 1e6:
            raise ValueError
        return float(text)

    def count(text: str) -> int:
        if int(text) < 0:
            raise ValueError
        return int(text)

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"cannot understand the command line: {message}; see {self.prog} --help\n")

    parser = Parser(description="PID 1 of a container that holds several daemons. No command: supervise.")
    parser.add_argument("--version", action="version", version=f"sidecar-init {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    plan = commands.add_parser("plan", help="what would run, as whom, what is missing; exit 1 if something is")
    for place in (parser, plan):
        help_text = "a TOML file instead of the shipped table of daemons"
        place.add_argument("--table", metavar="FILE", help=help_text, default=argparse.SUPPRESS)
    status = commands.add_parser("status", help="a table of the daemons, or JSON")
    status.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser("health", help="0: the loop answers and every daemon is ready; 1: the reason")
    events = commands.add_parser("events", help="the last events, for people or as JSON lines")
    events.add_argument("-n", type=count, default=20, metavar="N", help="how many (20)")
    events.add_argument("--follow", action="store_true", help="go on with new ones until Ctrl-C")
    events.add_argument("--json", action="store_true", help="as JSON, one object a line")
    apply = commands.add_parser("apply", help="reload a daemon by its signal; wait until it is ready again")
    apply.add_argument("name", metavar="NAME", help="the daemon")
    apply.add_argument("--timeout", type=seconds, default=15.0, metavar="S", help="how long to wait (15)")
    options = parser.parse_args(arguments)
    if "table" in options:
        if options.command not in (None, "plan"):
            parser.error("--table goes with plan, or without a command")
        _use_table(options.table)
    if options.command is None:
        return _supervise()
    commands_by_name = {"plan": _plan, "status": _status, "health": _health, "events": _events, "apply": _apply}
    return _answer(commands_by_name[options.command], options)


def main(argv: Sequence[str] | None = None) -> int:
    """The program: what `sidecar_init.py` with these arguments does; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments:
            return _supervise()
        if len(arguments) == 2 and arguments[0] == "--table":  # PID 1 does without argparse
            _use_table(arguments[1])
            return _supervise()
        return _command_line(arguments)
    except _Refusal as refusal:
        print(_one_line(str(refusal)), file=sys.stderr)
        return refusal.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
