"""Runs the module as a real PID 1 in a namespace of its own, and looks at it from outside.

    with Bundle([daemon("web", *shell("echo hello; exec sleep 9"))]) as bundle:
        bundle.wait_for(b"[web] hello\\n")
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(), 143)

A bundle costs about 60 ms. Each has its own network namespace too, so that ports never collide.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import functools
import json
import os
import py_compile
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.pidns.naive import NAIVE
from tests.support import CHILDREN, MODULE, T, wait_until

PYTHON = [sys.executable, "-I", "-S"]
UNSHARE = ["unshare", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
PATIENCE = 10.0  # how long a condition may take on a busy machine; never a claim about speed

Daemon = dict[str, Any]


def _why_no_namespaces() -> str:
    if sys.platform != "linux":
        return "PID namespaces are a matter of Linux"
    if os.geteuid() != 0:
        return "a PID namespace needs root"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "no unshare or nsenter (util-linux) on PATH"
    probe = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return "" if probe.returncode == 0 else f"unshare does not work here: {probe.stderr.strip()}"


_WHY_NOT = _why_no_namespaces()


@unittest.skipIf(_WHY_NOT, _WHY_NOT)
class NamespaceTestCase(unittest.TestCase):
    """The base of every test here: skipped, with the reason, if there are no PID namespaces."""

    def scratch(self) -> Path:
        """A directory for this test that every account can write to."""
        path = _new_directory(0o777)
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return path

    def interpreter(self) -> str:
        return public_interpreter()


@functools.cache
def public_interpreter() -> str:
    """A Python that other accounts can execute; the one of the tests may be at home in /root."""
    for python in filter(None, (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin"))):
        try:
            subprocess.run([python, "-ISc", "import ctypes, json"], user="nobody", group="nogroup", check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    raise unittest.SkipTest("no python3 that other accounts can execute")


def _new_directory(mode: int) -> Path:
    """A temporary directory that every account can reach, even if TMPDIR is private."""
    folders = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    public = [path for path in folders if all(one.stat().st_mode & 0o001 for one in (path, *path.parents))]
    path = Path(tempfile.mkdtemp(prefix="sidecar-init-test-", dir=(public or folders)[0]))
    path.chmod(mode)
    return path


@functools.cache
def installed() -> Path:
    """The directory of a copy of the module, compiled, and of tests/children; every account can read it.

    The clone may be in a directory of mode 0700, and PID 1 may run as another account or without capabilities.
    """
    path = _new_directory(0o755)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    shutil.copytree(CHILDREN, path / CHILDREN.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(MODULE, path)
    py_compile.compile(str(path / MODULE.name), doraise=True)
    for one in path.rglob("*"):
        one.chmod(0o755)
    return path


def daemon(name: str, *argv: str, **fields: Any) -> Daemon:
    """A row of the table, as --table reads it."""
    return {"name": name, "argv": list(argv), **fields}


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def child(program: str, *arguments: object) -> list[str]:
    """The command of a small program under tests/children."""
    return [*PYTHON, str(installed() / CHILDREN.name / program), *map(str, arguments)]


SLEEP = ["sleep", "1000"]


def table(daemons: Sequence[Daemon], signals: Mapping[str, Any], secrets: Mapping[str, Any]) -> str:
    """The TOML of a table. JSON's strings, numbers, booleans and lists of them are TOML's."""

    def value_of(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return "{ " + ", ".join(f"{json.dumps(key)} = {value_of(one)}" for key, one in value.items()) + " }"

    def pairs(mapping: Mapping[str, Any]) -> str:
        return "".join(f"{json.dumps(key)} = {value_of(value)}\n" for key, value in mapping.items())

    rows = [f"[[daemon]]\n{pairs(row)}" for row in daemons]
    actions = [f"[signals.{name}]\n{pairs(action)}" for name, action in signals.items()]
    return "\n".join([*rows, f"[secrets]\n{pairs(secrets)}", *actions])


class Collector:
    """Reads a descriptor in a thread of its own, as the reader of a container's log would; it can stall."""

    def __init__(self, descriptor: int, *, reading: bool = True, size: int = 65536) -> None:
        self._descriptor = descriptor
        self._size = size
        self._data = bytearray()
        self._grew = threading.Condition()
        self._ended = False
        self._may_read = threading.Event()
        if reading:
            self._may_read.set()
        self.before_each_read: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while not self._ended:
            self._may_read.wait()
            select.select([self._descriptor], [], [])
            self.before_each_read()
            with self._grew:
                if self._may_read.is_set():
                    self._read()

    def _read(self) -> None:
        """Read once what is there; called with the lock, so that nothing is between the pipe and the data."""
        if self._ended or not select.select([self._descriptor], [], [], 0)[0]:
            return
        try:
            chunk = os.read(self._descriptor, self._size)
        except OSError:  # EIO: the last holder of a terminal is gone
            chunk = b""
        self._data += chunk
        self._ended = not chunk
        self._grew.notify_all()

    def pause(self) -> None:
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    @property
    def data(self) -> bytes:
        """All that was written before the call, unless the reader pauses."""
        with self._grew:
            if self._may_read.is_set() and not self._ended:
                waiting = array.array("i", [0])
                with contextlib.suppress(OSError):  # it has gone away
                    fcntl.ioctl(self._descriptor, termios.FIONREAD, waiting)
                everything = len(self._data) + waiting[0]
                while len(self._data) < everything and not self._ended:
                    self._read()
            return bytes(self._data)

    def wait_for(self, found: Callable[[bytearray], bool], seconds: float) -> bool:
        with self._grew:
            self._grew.wait_for(lambda: self._ended or found(self._data), seconds)
            return found(self._data)

    def finish(self, seconds: float) -> None:
        """Wait for the end of what can be read."""
        self.resume()
        self._thread.join(seconds)


class Namespace:
    """Any program as PID 1 of its own PID, mount and network namespace; gone, with all in it, when the context ends.

    Its output is collected, unless `stdout` names a descriptor or a file to write to instead. `inside`: the program
    joins that namespace instead of making one, so it is not PID 1. `before_exec` runs in the child before the exec.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        reading: bool = True,
        inside: Namespace | None = None,
        before_exec: Callable[[], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.directory = _new_directory(0o755)
        self.argv = list(argv)
        self.env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})}
        self.enter = UNSHARE if inside is None else ["nsenter", "-t", str(inside.pid1), "-p", "-m", "-n"]
        self._stdin = stdin
        self._stdout = stdout
        self._reading = reading
        self._before_exec = before_exec
        self._pass_fds = pass_fds
        self._reader: Collector | None = None

    def __enter__(self) -> Self:
        read_end, write_end = (None, self._stdout) if self._stdout is not None else os.pipe()
        self._stderr = (self.directory / "stderr").open("w+b")
        self._process = subprocess.Popen(
            [*self.enter, *self.argv],
            env=self.env,
            stdin=self._stdin,
            stdout=write_end,
            stderr=self._stderr,
            preexec_fn=self._before_exec,
            pass_fds=self._pass_fds,
            start_new_session=True,
        )
        self._read_end = read_end
        if read_end is not None:
            assert write_end is not None
            os.close(write_end)
            self._reader = Collector(read_end, reading=self._reading)
        return self

    @functools.cached_property
    def pid1(self) -> int:
        """The host's pid of the first process."""

        def children() -> list[int]:
            assert self.running(), f"ended at once with {self._process.returncode}: {self.stderr}"
            return _children(self._process.pid)

        return wait_until(children, PATIENCE, "the first process of the namespace")[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complaint = self.stderr
        self._clean_up()
        if error is not None:
            error.add_note(f"--- the end of the log:\n{self.log[-3000:].decode(errors='replace')}")
            error.add_note(f"--- stderr:\n{complaint[-3000:]}")
        elif "Traceback" in complaint:
            raise AssertionError(f"the program raised:\n{complaint}")

    def _clean_up(self) -> None:
        for pid in _children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        if self._reader is not None and self._read_end is not None:
            self._reader.finish(PATIENCE)
            os.close(self._read_end)
            self._read_end = None
        self._stderr.close()
        self.discard()

    def discard(self) -> None:
        """Remove its files; the end of the context does it, this is for one that was never started."""
        shutil.rmtree(self.directory, ignore_errors=True)

    # What it says

    @property
    def reader(self) -> Collector:
        assert self._reader is not None, "this one writes to a descriptor of the test"
        return self._reader

    @property
    def log(self) -> bytes:
        return self._reader.data if self._reader is not None else b""

    @property
    def stderr(self) -> str:
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_for(self, text: bytes, seconds: float = PATIENCE, *, times: int = 1) -> None:
        """Wait until the log has `text` (so many times)."""
        if not self.reader.wait_for(lambda data: data.count(text) >= times, seconds):
            found = self.log.count(text)
            raise AssertionError(f"not within {seconds:g} s in the log: {text!r} (found {found} of {times})")

    def close_reader(self) -> None:
        """Go away, as a log reader that was killed: the next write gets EPIPE."""
        assert self._read_end is not None
        with open("/dev/null") as null:  # a close would let the number be reused while the thread uses it
            os.dup2(null.fileno(), self._read_end)

    def suspend(self) -> None:
        """Stop PID 1, and return when it is stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: Process(self.pid1).state == "T", PATIENCE, "PID 1 is stopped")

    def wait_for_zombie(self, pid: int) -> None:
        """Wait until a process has exited while PID 1 is stopped. Its command line is gone a little earlier."""
        wait_until(lambda: Process(pid).state == "Z", PATIENCE, f"process {pid} has exited")

    # What it is

    def signal(self, number: int) -> None:
        """From outside the namespace, as the container's engine does it."""
        os.kill(self.pid1, number)

    def exit(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; the exit code, negative for a signal that ended it."""
        if self.running() and not _ends_within(seconds, self._process.pid):
            raise AssertionError(f"still there after {seconds:g} s; left: {self.processes()}")
        code = self._process.wait()
        if self._reader is not None:
            self._reader.finish(PATIENCE)
        return code

    def running(self) -> bool:
        return self._process.poll() is None

    def inside(self, argv: Sequence[str], seconds: float = PATIENCE, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace, as `docker exec` does it."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid1), "-p", "-m", "-n", *argv],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def processes(self) -> dict[int, Process]:
        """The processes below PID 1, zombies included, by the host's pid."""
        found: dict[int, Process] = {}
        unseen = _children(self.pid1)
        while unseen:
            pid = unseen.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[pid] = Process(pid)
                unseen += _children(pid)
        return found

    def host_pid(self, pid: int) -> int:
        """The host's name for a pid of the namespace."""
        for host_pid in self.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                by_namespace = re.search(r"^NSpid:(.*)$", Path(f"/proc/{host_pid}/status").read_text(), re.MULTILINE)
                if by_namespace is not None and int(by_namespace[1].split()[-1]) == pid:
                    return host_pid
        raise AssertionError(f"no process {pid} in the namespace: {self.processes()}")

    def running_commands(self, part: str) -> list[Process]:
        """The running processes with `part` in their command line."""
        return [process for process in self.processes().values() if part in process.command and process.state != "Z"]

    def wait_for_stall(self, program: str, count: int = 1) -> None:
        """Wait until every one of the `count` writers is held up in its write, and has been for 50 ms.

        PID 1 sleeps meanwhile. One that waits for a processor would take more.
        """

        def written() -> list[int]:
            writers = self.running_commands(program)
            return [one.written() for one in writers if one.waits_for_pipe()] if len(writers) == count else []

        def asleep() -> tuple[bool, int]:
            return Process(self.pid1).state == "S", self.proc("voluntary_ctxt_switches")

        def stalled() -> bool:
            before = asleep(), written()
            time.sleep(0.05)
            return before[0][0] and len(before[1]) == count and before == (asleep(), written())

        wait_until(stalled, PATIENCE, f"{program} is held up")

    def proc(self, field: str) -> int:
        """A number of PID 1's /proc/PID/status."""
        return _status_number(self.pid1, field)


class _End:
    """What `until` meets instead of its condition; true, so that the waiting stops."""


class Bundle(Namespace):
    """The supervisor over a table of daemons; HUP is egress's and USR1 is pipelock's, as in the shipped table.

    It is started as the installed script `sidecar-init` starts it, from the compiled module; `as_file` runs the file
    itself, as an image does. `tunables` sets constants of the module first; `without` names protections of which
    `naive.py` takes the module's own code away.
    """

    def __init__(
        self,
        daemons: Sequence[Daemon],
        *,
        signals: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        tunables: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        state_dir: str | None = None,
        as_file: bool = False,
        without: str | Sequence[str] = (),
        **how: Any,
    ) -> None:
        super().__init__([], **how)
        self.state = self.directory / "state"
        self.env |= {"BOT_BOTTLE_SIDECAR_STATE_DIR": str(self.state) if state_dir is None else state_dir, **(env or {})}
        if signals is None:
            names = {row["name"] for row in daemons}
            shipped: dict[str, Any] = {"HUP": {"forward": "egress"}, "USR1": {"restart": "pipelock"}}
            signals = {name: action for name, action in shipped.items() if names.issuperset(action.values())}
        path = self.directory / "table.toml"
        path.write_text(table(daemons, signals, secrets or {}))
        path.chmod(0o644)  # whatever our umask is
        changes = "".join(f"module.{name}; module.{name} = {value!r}\n" for name, value in (tunables or {}).items())
        missing = [without] if isinstance(without, str) else without
        naive = "".join(f"exec({NAIVE[name]!r}, {{'module': module}})\n" for name in missing)
        self.program = launcher(naive)  # for the commands
        start = [*PYTHON, str(installed() / MODULE.name)] if as_file else launcher(changes + naive)
        self.argv = [*start, "--table", str(path)]

    def command(self, *arguments: str, seconds: float = PATIENCE, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one of the module's commands inside."""
        return self.inside([*self.program, *arguments], seconds, **env)

    def lines(self, name: str) -> list[bytes]:
        """What a daemon said, line by line, without the prefix."""
        return re.findall(rb"^\[%s\] (.*)\n" % re.escape(name.encode()), self.log, re.MULTILINE)

    def own_lines(self) -> list[str]:
        """What the supervisor itself said, without the prefix."""
        return re.findall(r"^sidecar-init: (.*)$", self.log.decode(errors="replace"), re.MULTILINE)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.state / "status.json").read_text())
        return status

    def daemon(self, name: str) -> dict[str, Any]:
        """A daemon's part of the status."""
        return next(row for row in self.status()["daemons"] if row["name"] == name)

    def catch_up(self) -> None:
        """Return when every signal that was sent before has been acted on: two heartbeats later."""
        for _ in range(2):
            before = self._version()
            self.signal(signal.SIGUSR2)
            self.until(functools.partial(self._is_newer, before), PATIENCE, "a newer status.json")

    def _is_newer(self, version: tuple[int, int]) -> bool:
        return self._version() != version

    def _version(self) -> tuple[int, int]:
        """Of status.json; its `updated_at` can be the same for two that were written in one millisecond."""
        stat = os.stat(self.state / "status.json")
        return stat.st_ino, stat.st_mtime_ns

    def until(self, predicate: Callable[[], T], seconds: float, what: str) -> T:
        """Like wait_until, and over at once when the supervisor has ended."""

        def value_or_end() -> T | _End:
            ended = not self.running()  # asked first: what it did before its end is seen
            value = predicate()
            return _End() if ended and not value else value

        value = wait_until(value_or_end, seconds, what)
        if isinstance(value, _End):
            raise AssertionError(f"the supervisor ended with {self._process.returncode} before this came: {what}")
        return value

    def wait_for_state(self, name: str, state: str, seconds: float = PATIENCE) -> dict[str, Any]:
        def there() -> dict[str, Any]:
            with contextlib.suppress(FileNotFoundError):
                row = self.daemon(name)
                return row if row["state"] == state else {}
            return {}

        return self.until(there, seconds, f"{name} is {state}")

    def events(self, kind: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        """The events so far, in order; only those of a kind, or of a daemon."""
        files = [self.state / "events.jsonl.1", self.state / "events.jsonl"]
        lines = [line for path in files if path.exists() for line in path.read_text().splitlines(keepends=True)]
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [one for one in events if kind in (None, one["event"]) and name in (None, one["daemon"])]

    def wait_for_event(
        self, kind: str, name: str | None = None, seconds: float = PATIENCE, *, times: int = 1
    ) -> dict[str, Any]:
        """The event (the last of so many), once it is there."""

        def there() -> list[dict[str, Any]]:
            found = self.events(kind, name)
            return found if len(found) >= times else []

        return self.until(there, seconds, f"event {kind} of {name}, {times} times")[-1]


def open_files(pid: int) -> dict[int, str]:
    """What the descriptors of a process lead to, without those that it closes meanwhile."""
    found = {}
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(one.name)] = os.readlink(one)
    return found


class Process:
    """A look at a process from outside its namespace."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.state, self.parent = after_name[0], int(after_name[1])
        self.command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()

    def waits_for_pipe(self) -> bool:
        return Path(f"/proc/{self.pid}/wchan").read_text().endswith("pipe_write")

    def written(self) -> int:
        """The bytes that it has written so far."""
        counters = dict(line.split(": ") for line in Path(f"/proc/{self.pid}/io").read_text().splitlines())
        return int(counters["wchar"])

    def __repr__(self) -> str:
        return f"{self.pid} {self.state} {self.command}"


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _ends_within(seconds: float, pid: int) -> bool:
    """Wait for the end of a child; subprocess would look for it 20 times a second."""
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _status_number(pid: int, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None, f"no {field} in /proc/{pid}/status"
    return int(match[1])


def launcher(changes: str = "", before_import: str = "") -> list[str]:
    """The command of the program; `changes` is Python that changes `module` first."""
    program = f"""
import sys
{before_import}
sys.path.insert(0, {str(installed())!r})
import sidecar_init as module
{changes}
sys.exit(module.main(sys.argv[1:]))
"""
    return [*PYTHON, "-c", program]


COMMAND = launcher()


@contextlib.contextmanager
def small_disk(kibibytes: int) -> Iterator[Path]:
    """A tmpfs of that size."""
    path = _new_directory(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=0755", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
        os.rmdir(path)


def quiet_for(seconds: float) -> None:
    """Let time pass that is part of what is tested (an idle span, a stalled reader), not hope."""
    time.sleep(seconds)
