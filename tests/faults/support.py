"""What the tests of faults share: the switch, a look at all processes of a namespace, and injected faults."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.pidns import harness
from tests.pidns.harness import PATIENCE, NamespaceTestCase
from tests.support import wait_until

FAULT_CHILDREN = Path(__file__).resolve().parent / "children"
_WANTED = os.environ.get("SIDECAR_INIT_FAULTS") == "1"
_UNASKED = "minutes long: set SIDECAR_INIT_FAULTS=1, or run python3 -m tests.faults"


@unittest.skipUnless(_WANTED, _UNASKED)
class FaultTestCase(NamespaceTestCase):
    """The base of every scenario here."""


def seed() -> int:
    """What the random parts start from; the run prints it, and SIDECAR_INIT_SEED repeats it."""
    return int(os.environ.get("SIDECAR_INIT_SEED", "1"))


class Bundle(harness.Bundle):
    """One whose heartbeat is known by a new file: two within a millisecond are two."""

    def __init__(self, daemons: Sequence[harness.Daemon], **options: Any) -> None:
        super().__init__(daemons, **{"before_exec": limit_memory, **options})

    def catch_up(self, seconds: float = PATIENCE) -> None:
        path = self.state / "status.json"
        for _ in range(2):
            path.unlink(missing_ok=True)
            self.signal(signal.SIGUSR2)
            self.until(path.exists, seconds, "a new status.json")


def limit_memory() -> None:
    """Give what is started only so much address space, if the run asks for that."""
    if mebibytes := int(os.environ.get("SIDECAR_INIT_MEMORY", "0")):
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))


class Seen:
    """One process of a namespace, as it was when looked at."""

    def __init__(self, pid: int) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        self.pid, self.state, self.parent = pid, fields[0], int(fields[1])
        self.group, self.started_at = int(fields[2]), int(fields[19])
        self.command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        self.inner_pid = int(numbers[1].split()[-1]) if numbers else 0

    def still_runs(self) -> bool:
        with contextlib.suppress(OSError, IndexError):
            now = Seen(self.pid)
            return now.started_at == self.started_at and now.state not in "ZX"
        return False

    def __repr__(self) -> str:
        return f"{self.pid} (inside {self.inner_pid}) {self.state} group {self.group} {self.command}"


def processes(pid1: int) -> list[Seen]:
    """All processes in the namespace of `pid1`, itself too; zombies as well."""
    namespace = os.readlink(f"/proc/{pid1}/ns/pid")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.append(Seen(int(name)))
    return found


def _why_no_strace() -> str:
    if shutil.which("strace") is None:
        return "no strace on PATH"
    probe = subprocess.run(["strace", "-e", "inject=getppid:error=EPERM", "true"], capture_output=True, text=True)
    return "" if probe.returncode == 0 else f"strace does not work here: {probe.stderr.strip()}"


WHY_NO_STRACE = _why_no_strace() if _WANTED else _UNASKED


@contextlib.contextmanager
def injected(pid: int, *faults: str, path: str | None = None) -> Iterator[Path]:
    """While this is open, system calls of that process fail: `injected(pid, "write:error=EIO:when=1")`.

    `path`: only those on this file. Yields the file with the trace of the calls named.
    """
    calls = ",".join(fault.split(":")[0] for fault in faults)
    with tempfile.TemporaryDirectory(prefix="sidecar-init-strace-") as directory:
        trace = Path(directory) / "trace"
        command = ["strace", "-qq", "-o", str(trace), "-e", f"trace={calls}", "-e", "signal=SIGSTOP"]
        command += ["-P", path] if path else []
        for fault in faults:
            command += ["-e", f"inject={fault}"]
        with subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE) as strace:
            try:
                wait_until(lambda: _tracer(pid) == strace.pid, PATIENCE, "strace holds the process")
                yield trace
            finally:
                # Where strace leaves in the middle of a call that it injects, the call fails with ENOSYS.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                wait_until(lambda: _is_stopped(trace) or strace.poll() is not None, PATIENCE, "between two calls")
                strace.send_signal(signal.SIGINT)
                strace.communicate(timeout=PATIENCE)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def _is_stopped(trace: Path) -> bool:
    return "stopped by SIGSTOP" in trace.read_text()


def _tracer(pid: int) -> int:
    match = re.search(r"^TracerPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0
