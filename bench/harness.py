"""Starts programs, looks at them from outside, and ends them: what every measure needs.

The bench makes itself the subreaper, so whatever a peer starts, and however often it forks, stays a descendant.
"All is gone" is then one exact thing: no child is left. And only what was started here is ever stopped.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 30.0  # seconds that anything may take; a peer that needs longer has no figure


class TooSlow(Exception):
    """What was waited for did not come in time."""


def become_subreaper() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def patience(seconds: float = PATIENCE) -> Iterator[None]:
    """Any wait inside ends with TooSlow when the time is over."""

    def give_up(_: int, __: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Mailbox:
    """A FIFO on which daemons report, past whatever carries their output. It hangs up when the last one is gone."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "mailbox")
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._rest = b""
        self._lines: list[str] = []

    def close(self) -> None:
        os.close(self._fd)

    def has_mail(self) -> bool:
        return bool(self._lines or select.select([self._fd], [], [], 0)[0])

    def lines(self, count: int) -> list[str]:
        """The next `count` lines, as soon as they are there."""
        while len(self._lines) < count:
            select.select([self._fd], [], [])
            data = os.read(self._fd, 1 << 16)
            if not data:
                time.sleep(0.0002)  # no process has it open
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._lines += [line.decode() for line in whole]
        found, self._lines = self._lines[:count], self._lines[count:]
        return found


def descendants(root: int) -> list[int]:
    """All processes below `root`, without itself."""
    found = [root]
    for pid in found:  # grows on the way
        try:
            found += [int(child) for task in _tasks(pid) for child in Path(task, "children").read_text().split()]
        except OSError:
            continue
    return found[1:]


def wait_for_all() -> None:
    """Returns when every process that was started is gone, however it was reparented."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def kill_all() -> None:
    """Kills at once: what is not measured takes no time. Stopped first, no supervisor restarts what is killed."""
    while started := descendants(os.getpid()):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in started:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _tasks(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def cpu_seconds(pids: list[int]) -> float:
    """Time on a CPU so far, from the scheduler's own books (in nanoseconds)."""
    return sum(int(Path(task, "schedstat").read_text().split()[0]) for pid in pids for task in _tasks(pid)) / 1e9


def _sum_of(field: str, paths: list[str]) -> int:
    """The numbers that stand behind `field` in files of /proc, added up."""
    lines = [line.split() for path in paths for line in Path(path).read_text().splitlines()]
    return sum(int(words[1]) for words in lines if words[0] == field + ":")


def wake_ups(pids: list[int]) -> int:
    """How often their threads went to sleep, which is how often they had been woken."""
    return _sum_of("voluntary_ctxt_switches", [f"{task}/status" for pid in pids for task in _tasks(pid)])


def memory(pids: list[int], field: str) -> int:
    """Bytes in memory: Rss counts shared pages in full for each process, Pss their share."""
    return 1024 * _sum_of(field, [f"/proc/{pid}/smaps_rollup" for pid in pids])


class Output:
    """Reads what a supervisor writes, as fast as a reader can, and knows when how much had come."""

    def __init__(self) -> None:
        self.fd, self.write_end = os.pipe()
        self.marks: list[tuple[float, int]] = []
        self.total = 0
        self._buffer = bytearray(1 << 20)

    def close(self) -> None:
        os.close(self.fd)

    def read(self, timeout: float) -> memoryview | None:
        """One read; None when nothing came, empty at the end."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return None
        size = os.readv(self.fd, [self._buffer])
        self.total += size
        self.marks.append((time.monotonic(), self.total))
        return memoryview(self._buffer)[:size]

    def wait_for(self, words: bytes) -> None:
        """Until these words have come."""
        text = b""
        while words not in text:
            data = self.read(PATIENCE)
            if not data:
                raise TooSlow
            text = text[-len(words) :] + bytes(data)

    def middle(self) -> float:
        """Seconds that all of it took, judged by the middle eight tenths."""
        inner = [mark for mark in self.marks if 0.1 <= mark[1] / self.total <= 0.9]
        (first, low), (last, high) = inner[0], inner[-1]
        return (last - first) / (high - low) * self.total
