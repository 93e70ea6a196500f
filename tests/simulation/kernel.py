"""A kernel that exists only as Python objects, as far as sidecar_init.py calls one.

`load` runs the module's source with this kernel in the place of the modules that it imports (os, time, select, signal,
fcntl and resource) and of its binding to libc. The module does not know. A fork runs the module's own code for the
child, up to its exec.

What other processes do comes from outside (tests.simulation.world): it calls `fork`, `exit`, `write`, `listen` and so
on of `Kernel`, either while PID 1 sleeps in poll (`on_idle`) or between any two of its calls (`interrupt`).
"""

from __future__ import annotations

import builtins
import errno
import io
import math
import os
import select
import signal
import stat
import struct
import types
from collections.abc import Callable, Iterable
from typing import Any

FOREVER = math.inf
PIPE_SIZE = 65536
STDOUT_SIZE = 1 << 16
CALL_SECONDS = 1e-6
_CLOCK_AT_BOOT = 1_700_000_000.0

Wanted = list[tuple[int, int]]


class Violation(BaseException):
    """A rule that did not hold; no Exception, which the supervisor would survive."""


class _ChildHasLeft(BaseException):
    """The child's part of a fork is over: it was executed, or has exited."""


class _ForkedPid(int):
    """What fork returns: equal to 0 once, for the child, and then the child's pid."""

    is_child = True

    def __eq__(self, other: object) -> bool:
        if self.is_child and other == 0:
            self.is_child = False
            return True
        return int(self) == other

    __hash__ = int.__hash__


class Pipe:
    def __init__(self, size: int = PIPE_SIZE) -> None:
        self.data, self.size, self.taken = bytearray(), size, 0
        self.writers: set[object] = set()
        self.waiting: list[Process] = []  # those that block in write
        self.lines: Any = None  # what the world knows of its bytes


class Group:
    def __init__(self, number: int) -> None:
        self.number, self.members = number, set[Process]()


class Process:
    """A child of PID 1, or a descendant."""

    def __init__(self, pid: int, group: Group, parent: Process | None) -> None:
        self.pid, self.group = pid, group
        self.parent = parent  # None: PID 1
        self.parent_is_elsewhere = False  # it will be reaped without PID 1
        self.leader: Process = parent.leader if parent else self  # the child of PID 1 that it descends from
        self.command: str = parent.command if parent else ""
        self.is_alive, self.is_executed, self.is_stopped, self.is_stuck = True, parent is not None, False, False
        self.is_denied = False  # PID 1 may not signal it
        self.status = 0  # as waitpid tells it, of a zombie
        self.trace_stop = 0
        self.ignores: set[int] = set()
        self.pending: list[int] = []
        self.stdout: Pipe | None = parent.stdout if parent else None
        self.unwritten, self.owes = b"", b""  # what blocks; the rest of what it has begun to write
        self.environ: dict[str, str] = {}
        self.inherited: list[Pipe] = []  # those that exec closes
        self.hanging: list[Callable[[], None]] | None = None  # what a slow child has yet to do
        self.has_own_group = parent is not None
        self.was_executed = False  # its code has called exec, which may take effect later
        group.members.add(self)


class _ReadEnd:
    def __init__(self, pipe: Pipe, never_blocks: bool) -> None:
        self.pipe, self.never_blocks = pipe, never_blocks

    def ready(self, mask: int) -> int:
        return mask & select.POLLIN if self.pipe.data else 0 if self.pipe.writers else select.POLLHUP


class _WriteEnd:
    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    def ready(self, mask: int) -> int:
        return mask & select.POLLOUT


class _Stdout:
    """A pipe whose reader takes everything at once, unless it stalls."""

    def __init__(self) -> None:
        self.buffered, self.is_read = 0, True
        self.on_write: Callable[[bytes], None]

    def ready(self, mask: int) -> int:
        return mask & select.POLLOUT if self.room() >= 4096 else 0

    def room(self) -> int:
        return STDOUT_SIZE - self.buffered


class _PidFd:
    def __init__(self, process: Process) -> None:
        self.process = process


class _Netlink:
    def __init__(self) -> None:
        self.answers: list[bytes] = []


class _File:
    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel, self.name = kernel, name


class _Opened:
    """What open() of a descriptor returns."""

    def __init__(self, kernel: Kernel, fd: int, closefd: bool) -> None:
        self._kernel, self._fd, self._closes = kernel, fd, closefd

    def read(self, size: int) -> bytes:
        return b"contents"

    def tell(self) -> int:
        return 0

    def truncate(self, size: int = 0) -> None:
        pass

    def write(self, text: bytes) -> int:
        return self._kernel.write(self._fd, text)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if self._closes:
            self._kernel.close(self._fd)


class _Epoll:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._watched = kernel, dict[int, Any]()
        self._fd = kernel.new_fd(self)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._kernel.close(self._fd)

    def register(self, fd: int, mask: int) -> None:
        self._kernel.enter("epoll_ctl")
        if fd in self._watched:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._watched[fd] = self._kernel.file(fd)

    def unregister(self, fd: int) -> None:
        del self._watched[fd]

    def ready(self, mask: int) -> int:
        return mask & select.POLLIN if any(file.ready(select.POLLIN) for file in self._watched.values()) else 0

    def poll(self, timeout: float = -1, maxevents: int = -1) -> list[tuple[int, int]]:
        self._kernel.enter("epoll_wait")
        found = [(fd, events) for fd, file in self._watched.items() if (events := file.ready(select.POLLIN))]
        found = found[:maxevents] if maxevents > 0 else found
        for fd, _ in found:  # it goes to the end of the queue
            self._watched[fd] = self._watched.pop(fd)
        return found


class _Poll:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._wanted = kernel, list[tuple[int, int]]()

    def register(self, fd: int, mask: int) -> None:
        self._wanted.append((fd, mask))

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        return self._kernel.poll(self._wanted, milliseconds)


class Kernel:
    """One machine, seen from its PID 1. `reset` makes it a new one; a loaded module keeps it."""

    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self._next_fd = 100  # never used twice: a descriptor that is used after close is noticed
        self.reset({})

    def reset(self, environ: dict[str, str], pids: int = 400) -> None:
        self.now, self.calls = 1000.0, 0
        self.calls_at_idle, self.most_calls = 0, 5000  # between two moments at which PID 1 sleeps
        self.fork_seconds = 0.0  # how long a fork takes
        self.has_group_pidfds = True  # Linux 6.9
        self.violation: Violation | None = None
        self._first_fd = self._next_fd
        self.fds: dict[int, Any] = {}
        self.processes: dict[int, Process] = {}  # zombies, too
        self.groups: dict[int, Group] = {}
        self._pids = pids
        self.child: Process | None = None  # while its code runs
        self.handlers: dict[int, Any] = {}
        self.blocked: set[int] = set()
        self.held_back: set[int] = set()
        self._wakeup_fd = -1
        self._interrupts: list[tuple[int, Callable[[], None]]] = []
        self.faults: dict[str, list[int]] = {}  # call: the errors of the next ones
        self.is_mid_fork = False
        self.missing: dict[str, int] = {}  # command: why it cannot be executed
        self.lacking: set[str] = set()  # names of files
        self.slow: dict[str, str] = {}  # command: "fork" or "exec", after which its children hang
        self.sockets: dict[int, tuple[int, Process | None]] = {}  # inode: port, who listens
        self._inodes = 1
        self.stdout = _Stdout()
        self.fds[1] = self.stdout
        self.environ.clear()
        self.environ.update(environ)
        # What watches PID 1.
        self.on_idle: Callable[[float], bool] = lambda wake_at: False
        self.on_fork: Callable[[Process], None] = lambda process: None
        self.on_exec: Callable[[Process], None] = lambda process: None
        self.on_exit: Callable[[Process], None] = lambda process: None
        self.on_reap: Callable[[Process], None] = lambda process: None
        self.on_signal: Callable[[Process, int, str], None] = lambda process, number, to: None
        self.on_empty: Callable[[Pipe], None] = lambda pipe: None
        self.on_file: Callable[[str, bytes], None] = lambda name, contents: None

    # -- what the world does

    def violate(self, what: str) -> None:
        if self.violation is None:
            self.violation = Violation(what)
        raise self.violation

    def interrupt(self, calls: int, action: Callable[[], None]) -> None:
        """Let something happen before the call after so many calls of PID 1."""
        self._interrupts.append((self.calls + calls, action))
        self._interrupts.sort(key=lambda item: item[0])

    def run_interrupts(self) -> None:
        """Those that have not had their turn."""
        while self._interrupts:
            self._interrupts.pop(0)[1]()

    def signal_supervisor(self, number: int) -> None:
        if number in self.blocked:
            self.held_back.add(number)
        elif callable(handler := self.handlers.get(number)):
            if self._wakeup_fd in self.fds:
                pipe = self.fds[self._wakeup_fd].pipe
                pipe.data += b"!"[: pipe.size - len(pipe.data)]
            handler(number, None)

    def new_process(self, parent: Process | None) -> Process:
        group = parent.group if parent else self.groups.setdefault(1, Group(1))
        pid = next((n for n in range(2, self._pids) if n not in self.processes and n not in self.groups), 0)
        if not pid:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        process = self.processes[pid] = Process(pid, group, parent)
        if process.stdout:
            process.stdout.writers.add(process)
        return process

    def leave_group(self, process: Process) -> None:
        """setsid, and nothing of what it does is its parent's business any more."""
        self._drop_from_group(process)
        process.group = self.groups[process.pid] = Group(process.pid)
        process.group.members.add(process)
        process.has_own_group = True

    def _drop_from_group(self, process: Process) -> None:
        process.group.members.discard(process)
        if not process.group.members and process.group.number != 1:
            self.groups.pop(process.group.number, None)

    def exit(self, process: Process, status: int) -> None:
        """With a status as waitpid tells it."""
        if not process.is_alive:
            return
        process.is_alive, process.status, process.hanging, process.unwritten = False, status, None, b""
        for pipe in process.inherited:
            pipe.writers.discard(process)
        if process.stdout:
            process.stdout.writers.discard(process)
            if process in process.stdout.waiting:
                process.stdout.waiting.remove(process)
        for inode in [inode for inode, (_, holder) in self.sockets.items() if holder is process]:
            del self.sockets[inode]
        self.on_exit(process)
        for child in [one for one in self.processes.values() if one.parent is process]:
            child.parent = None
            if not child.is_alive:
                self._to_reap(child)
        self._to_reap(process)

    def _to_reap(self, process: Process) -> None:
        if process.parent_is_elsewhere or (process.parent and process.parent.is_alive):
            self._bury(process)
        else:
            self.signal_supervisor(signal.SIGCHLD)

    def _bury(self, process: Process) -> None:
        self.processes.pop(process.pid, None)
        self._drop_from_group(process)

    def receive(self, process: Process, number: int) -> None:
        """What a process does when it gets a signal."""
        if not process.is_alive or number == 0:
            return
        if number == signal.SIGKILL:
            if process.is_stuck:
                process.pending.append(number)
            else:
                self.exit(process, number)
        elif number == signal.SIGCONT:
            process.is_stopped = False
            pending, process.pending = process.pending, []
            for one in pending:
                self.receive(process, one)
        elif process.is_stopped or not process.is_executed:
            process.pending.append(number)
        elif number not in process.ignores:
            self.exit(process, number)

    def unstick(self, process: Process) -> None:
        """It hung in the kernel, and may have been killed meanwhile."""
        process.is_stuck = False
        if signal.SIGKILL in process.pending:
            self.exit(process, signal.SIGKILL)

    def put(self, process: Process, text: bytes) -> None:
        """It writes to its stdout, and blocks while the pipe is full."""
        if process.is_alive and process.stdout and process.is_executed:
            if process not in process.stdout.waiting:
                process.stdout.waiting.append(process)
            process.unwritten += text
            self._refill(process.stdout)

    def _refill(self, pipe: Pipe) -> None:
        while pipe.waiting and (room := pipe.size - len(pipe.data)) > 0:
            process = pipe.waiting[0]
            text, process.unwritten = process.unwritten[:room], process.unwritten[room:]
            pipe.data += text
            if pipe.lines is not None:
                pipe.lines(text)
            if not process.unwritten:
                pipe.waiting.pop(0)

    def listen(self, port: int, process: Process | None) -> None:
        self._inodes += 1
        self.sockets[self._inodes] = port, process

    def release(self, process: Process) -> None:
        """A child that hung between fork and exec goes on."""
        hanging, process.hanging = process.hanging or [], None
        for action in hanging:
            if process.is_alive and signal.SIGKILL not in process.pending:
                action()

    # -- helpers of the calls

    def enter(self, call: str) -> None:
        if self.child is not None:
            return
        self.calls += 1
        self.now += CALL_SECONDS
        if self.calls > self.calls_at_idle + self.most_calls:
            self.violate("the loop spins")
        while self._interrupts and self._interrupts[0][0] <= self.calls:
            self._interrupts.pop(0)[1]()
        if self.faults and (errors := self.faults.get(call)):
            number = errors.pop(0)
            if not number:
                raise MemoryError
            raise OSError(number, os.strerror(number))

    def new_fd(self, file: object) -> int:
        self._next_fd += 1
        self.fds[self._next_fd] = file
        return self._next_fd

    def file(self, fd: int) -> Any:
        if fd not in self.fds:
            self.violate(f"PID 1 uses descriptor {fd} after it has closed it")
        return self.fds[fd]

    # -- time

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return _CLOCK_AT_BOOT + self.now

    def sleep(self, seconds: float) -> None:
        self.enter("sleep")
        self.now += seconds

    # -- descriptors

    def poll(self, wanted: Wanted, milliseconds: float | None) -> list[tuple[int, int]]:
        self.enter("poll")
        wake_at = FOREVER if milliseconds is None else self.now + math.ceil(milliseconds) / 1000
        files = [(fd, self.file(fd), mask) for fd, mask in wanted]
        while True:
            ready = [(fd, events) for fd, file, mask in files if (events := file.ready(mask))]
            if ready or milliseconds == 0 or not self.on_idle(wake_at):
                return ready

    def pipe2(self, flags: int = 0) -> tuple[int, int]:
        self.enter("pipe2")
        pipe = Pipe()
        pipe.writers.add(self)
        return self.new_fd(_ReadEnd(pipe, bool(flags & os.O_NONBLOCK))), self.new_fd(_WriteEnd(pipe))

    def close(self, fd: int) -> None:
        if self.child is not None or fd <= self._first_fd:
            return  # a child's own; of a machine before this one
        file = self.fds.pop(fd, None)
        if file is None:
            self.violate(f"PID 1 closes descriptor {fd} twice")
        if isinstance(file, _WriteEnd):
            file.pipe.writers.discard(self)
        elif isinstance(file, _ReadEnd):
            self.on_empty(file.pipe)  # for PID 1

    def read(self, fd: int, size: int) -> bytes:
        self.enter("read")
        file = self.file(fd)
        if isinstance(file, _Netlink):
            return file.answers.pop(0) if file.answers else self._would_block(file)
        assert isinstance(file, _ReadEnd)
        pipe = file.pipe
        if not pipe.data:
            self.on_empty(pipe)
            return b"" if not pipe.writers else self._would_block(file)
        text = bytes(pipe.data[:size])
        del pipe.data[: len(text)]
        pipe.taken += len(text)
        self._refill(pipe)
        return text

    def _would_block(self, file: Any) -> bytes:
        if not getattr(file, "never_blocks", False):
            self.violate("PID 1 blocks in read")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def ioctl(self, fd: int, number: int, _: bytes) -> bytes:
        """FIONREAD, of a pipe."""
        self.enter("ioctl")
        return len(self.file(fd).pipe.data).to_bytes(4, "little")

    def set_blocking(self, fd: int, blocking: bool) -> None:
        self.enter("fcntl")
        self.file(fd).never_blocks = not blocking

    def write(self, fd: int, text: bytes) -> int:
        file = self.file(fd)
        if self.child is not None:
            self._write_report(self.child, file.pipe, bytes(text))
            return len(text)
        if isinstance(file, _Stdout):
            self.enter("write_log")
            text = bytes(text[: file.room()])
            if not text:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            file.on_write(text)
            file.buffered += 0 if file.is_read else len(text)
            return len(text)
        if isinstance(file, _File):
            self.enter("write_state")
            self.on_file(file.name, bytes(text))
            return len(text)
        self.enter("write")
        if isinstance(file, _Netlink):
            file.answers.append(self._listening(text[16]))
        else:
            file.pipe.data += text
        return len(text)

    def _listening(self, family: int) -> bytes:
        answer = b""
        for inode, (port, _) in self.sockets.items() if family == 2 else ():
            answer += struct.pack("=IHHII", 88, 20, 2, 0, 0) + struct.pack(">BBBBH62x", 2, 10, 0, 0, port)
            answer += struct.pack("=I", inode)
        return answer + struct.pack("=IHHII4x", 20, 3, 2, 0, 0)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if self.child is not None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if path.startswith("/proc/self/fd/"):
            return self.new_fd(self.file(int(path.rsplit("/", 1)[1])))
        if dir_fd is not None:
            self.enter("open_file" if path.startswith("self/") else "open_state")
            return self.new_fd(_File(self, path))
        if path in ("/dev/null", "/proc", "/state", "/files"):
            return self.new_fd(_File(self, path))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def open_file(self, path: str | int, mode: str = "r", closefd: bool = True, **_: object) -> Any:
        """The builtin."""
        about = f"1 (init) {' '.join(map(str, range(3, 53)))}\n"
        texts = {
            "/proc/self/status": "".join(f"Cap{name}:\t{0:016x}\n" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
            "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
            "/proc/1/stat": about,
            "/proc/self/stat": about,
        }
        if isinstance(path, int):
            return _Opened(self, path, closefd)
        if path not in texts:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return io.BytesIO(texts[path].encode()) if "b" in mode else io.StringIO(texts[path])

    def fstat(self, fd: int) -> Any:
        file = self.file(fd)
        kind = stat.S_IFIFO if isinstance(file, _Stdout) else stat.S_IFREG
        name = getattr(file, "name", "")
        kind = stat.S_IFCHR if name == "/dev/null" else stat.S_IFDIR if name in ("/state", "/proc", "/files") else kind
        return types.SimpleNamespace(st_mode=kind | 0o600, st_uid=0, st_nlink=1, st_size=0, st_rdev=os.makedev(1, 3))

    def replace(self, source: str, target: str, **_: object) -> None:
        self.enter("rename_state")

    def open_beneath(self, folder: int, name: bytes) -> int:
        """openat2; a negative number is an error."""
        self.enter("openat2")
        return -errno.ENOENT if os.fsdecode(name) in self.lacking else self.new_fd(_File(self, os.fsdecode(name)))

    def memfd_create(self, name: str, flags: int = 0) -> int:
        self.enter("memfd_create")
        return self.new_fd(_File(self, "memfd"))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return b""

    # -- processes

    def fork(self) -> int:
        self.enter("fork")
        self.now += self.fork_seconds
        self.child = self.new_process(None)
        for file in self.fds.values():
            if isinstance(file, _WriteEnd):
                file.pipe.writers.add(self.child)
                self.child.inherited.append(file.pipe)
        return _ForkedPid(self.child.pid)

    def run_child(self, code: Callable[[], object]) -> None:
        """What happens in a child until it is executed or has exited."""
        assert self.child
        try:
            code()
        except _ChildHasLeft:
            pass
        finally:
            self.child = None

    def _later(self, child: Process, step: str, action: Callable[[], None]) -> None:
        """Now, or when a slow child goes on."""
        if child.hanging is None and self.slow.get(child.command) == step:
            child.hanging = []
        if child.hanging is None:
            action()
        else:
            child.hanging.append(action)

    def setsid(self) -> int:
        assert self.child
        return self.child.pid  # it has taken effect when the command is known: see execve

    def dup2(self, fd: int, target: int, inheritable: bool = True) -> int:
        if self.child is not None and target == 1:
            self.child.stdout = self.file(fd).pipe
        return target

    def _write_report(self, child: Process, pipe: Pipe, text: bytes) -> None:
        def report() -> None:
            pipe.data += text

        self._later(child, "exec", report)

    def execve(self, path: str, argv: list[str], environ: dict[str, str]) -> None:
        child = self.child
        assert child
        child.command, child.environ = argv[0].lstrip("/"), dict(environ)
        self.on_fork(child)
        self._later(child, "fork", lambda: self.leave_group(child))
        number = self.missing.get(child.command, 0)
        if number:
            raise OSError(number, os.strerror(number))

        def execute() -> None:
            for pipe in child.inherited:
                if pipe is not child.stdout:
                    pipe.writers.discard(child)
            child.is_executed = True
            self.on_exec(child)
            self.receive(child, signal.SIGCONT)

        self._later(child, "exec", execute)
        child.was_executed = True
        raise _ChildHasLeft

    def _exit(self, status: int) -> None:
        if self.violation:
            raise self.violation
        child = self.child
        assert child
        if not child.was_executed:
            self._later(child, "exec", lambda: self.exit(child, status << 8))
        raise _ChildHasLeft

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        self.enter("waitpid")
        mine = [one for one in self.processes.values() if one.parent is None and not one.parent_is_elsewhere]
        for process in mine:
            if process.trace_stop:
                status, process.trace_stop = process.trace_stop << 8 | 0x7F, 0
                return process.pid, status
            if not process.is_alive:
                self._bury(process)
                self.on_reap(process)
                return process.pid, process.status
        if not mine:
            raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
        return 0, 0

    def waitid(self, kind: int, pid: int, options: int) -> Any:
        self.enter("waitid")
        process = self.processes.get(pid)
        if process is None or process.parent is not None:
            raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
        if process.is_alive:
            return None
        code = os.waitstatus_to_exitcode(process.status)
        return types.SimpleNamespace(si_code=os.CLD_EXITED if code >= 0 else os.CLD_KILLED, si_status=abs(code))

    def pidfd_open(self, pid: int, flags: int = 0) -> int:
        self.enter("pidfd_open")
        return self.new_fd(_PidFd(self.processes[pid]))

    def pidfd_send_signal(self, fd: int, number: int, info: object = None, flags: int = 0) -> None:
        self.enter("pidfd_send_signal")
        file = self.file(fd)
        process: Process = file.process
        if flags and not self.has_group_pidfds:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if flags:
            if not process.has_own_group:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            self._signal_group(process.group, number)
        elif process.pid not in self.processes or self.processes[process.pid] is not process:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        else:
            self._signal_process(process, number, "leader")

    def killpg(self, pgid: int, number: int) -> None:
        self.enter("kill")
        if pgid not in self.groups:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self._signal_group(self.groups[pgid], number)

    def kill(self, pid: int, number: int) -> None:
        self.enter("kill")
        if pid not in self.processes:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self._signal_process(self.processes[pid], number, "leader")

    def _signal_group(self, group: Group, number: int) -> None:
        members = [one for one in group.members if not one.is_denied]
        if not group.members:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if not members:
            self.on_signal(next(iter(group.members)), number, "group")
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        for process in sorted(members, key=lambda one: one.pid):
            self._signal_process(process, number, "group")

    def _signal_process(self, process: Process, number: int, to: str) -> None:
        self.on_signal(process, number, to)
        if process.is_denied:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        self.receive(process, number)

    # -- signals to PID 1

    def signal(self, number: int, handler: Any) -> None:
        if self.child is None:
            self.handlers[number] = handler

    def set_wakeup_fd(self, fd: int, **_: object) -> None:
        self._wakeup_fd = fd

    def pthread_sigmask(self, how: int, numbers: Iterable[int]) -> set[int]:
        before = self.blocked
        if self.child is None:
            self.blocked = before | set(numbers) if how == signal.SIG_BLOCK else set(numbers)
            ready, self.held_back = self.held_back - self.blocked, self.held_back & self.blocked
            for number in sorted(ready):
                self.signal_supervisor(number)
        return before

    # -- the modules

    def modules(self) -> dict[str, Any]:
        return {
            "os": self._os(),
            "time": _stand_in(
                "time", {}, monotonic=self.monotonic, time=self.time, sleep=self.sleep,
                strftime=__import__("time").strftime, gmtime=__import__("time").gmtime,
            ),
            "select": _stand_in("select", vars(select), epoll=lambda: _Epoll(self), poll=lambda: _Poll(self)),
            "_ctypes": _libc(self),
            "_signal": _stand_in(
                "_signal", vars(__import__("_signal")), signal=self.signal, set_wakeup_fd=self.set_wakeup_fd,
                getsignal=lambda number: self.handlers.get(number, signal.SIG_DFL),
                valid_signals=lambda: _VALID_SIGNALS, pthread_sigmask=self.pthread_sigmask,
                raise_signal=self.signal_supervisor, pidfd_send_signal=self.pidfd_send_signal,
            ),
            "fcntl": _stand_in(
                "fcntl", vars(__import__("fcntl")), fcntl=lambda fd, *_: fd, flock=_nothing, ioctl=self.ioctl
            ),
            "resource": _stand_in(
                "resource", vars(__import__("resource")), getrlimit=lambda kind: (1024, 4096), setrlimit=_nothing
            ),
        }  # fmt: skip

    def _os(self) -> Any:
        return _stand_in(
            "os", vars(os),
            environ=self.environ, environb=_Environb(self.environ), getpid=lambda: 1, geteuid=lambda: 0,
            isatty=lambda fd: False, urandom=lambda size: b"\0" * size, makedirs=_nothing, access=lambda *_: True,
            fchmod=_nothing, ftruncate=_nothing, unlink=_nothing, chdir=_nothing, setgroups=_nothing,
            setresgid=_nothing, setresuid=_nothing, pipe2=self.pipe2, close=self.close, read=self.read,
            write=self.write, open=self.open, fstat=self.fstat, replace=self.replace, pread=self.pread,
            set_blocking=self.set_blocking, memfd_create=self.memfd_create, lseek=_nothing,
            fstatvfs=lambda fd: types.SimpleNamespace(f_flag=0),
            fork=self.fork, setsid=self.setsid, dup2=self.dup2, execve=self.execve,
            _exit=self._exit, waitpid=self.waitpid, waitid=self.waitid, pidfd_open=self.pidfd_open, kill=self.kill,
            killpg=self.killpg, **{name: getattr(os, name) for name in _PURE},
        )  # fmt: skip


_PURE = (
    "strerror", "fsencode", "fsdecode", "path", "defpath", "waitstatus_to_exitcode", "WIFSTOPPED", "makedev", "major",
    "minor", "fspath",
)  # fmt: skip
_VALID_SIGNALS = frozenset(range(1, 65))


def _nothing(*_: object, **__: object) -> None:
    pass


class _Environb(dict[bytes, bytes]):
    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = environ

    def items(self) -> Any:
        return {os.fsencode(key): os.fsencode(value) for key, value in self._environ.items()}.items()


def _libc(kernel: Kernel) -> Any:
    """The binding to libc. Every function succeeds; a socket is one of netlink, and the one system call is openat2."""
    state = {"errno": 0}

    class Function:
        def __init__(self, name: str) -> None:
            self._name = name

        def __call__(self, *arguments: Any) -> int:
            if self._name == "socket":
                return kernel.new_fd(_Netlink())
            fd = kernel.open_beneath(arguments[1], arguments[2]) if self._name == "syscall" else 0
            state["errno"] = max(0, -fd)
            return fd

    class Word:
        def __init__(self, value: int) -> None:
            self.value = value

    return _stand_in(
        "_ctypes", {}, CFuncPtr=Function, _SimpleCData=Word, dlopen=lambda *_: 0, dlsym=lambda _, name: name,
        get_errno=lambda: state["errno"], FUNCFLAG_CDECL=0, FUNCFLAG_USE_ERRNO=0,
    )  # fmt: skip


def _stand_in(name: str, real: dict[str, Any], **calls: Any) -> Any:
    """A module that has the constants of the real one, and these calls; all others are missing."""
    module = types.ModuleType(name)
    constants = {key: value for key, value in real.items() if key.isupper() or isinstance(value, int)}
    vars(module).update({**constants, **calls})
    return module


def load(source: str, kernel: Kernel) -> Any:
    """The module that this source makes on a simulated kernel."""
    stand_ins = kernel.modules()

    def import_(name: str, *more: Any) -> Any:
        return stand_ins[name] if name in stand_ins else builtins.__import__(name, *more)

    module: Any = types.ModuleType("sidecar_init_simulated")
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_, "open": kernel.open_file}
    module.__file__ = "sidecar_init.py"
    exec(compile(source, module.__file__, "exec"), vars(module))
    become = module._Launcher._become
    module._Launcher._become = lambda *arguments: kernel.run_child(lambda: become(*arguments))
    return module
