"""What several unit tests need: an environment, a log that can be read back, supervisors that end with the test."""

from __future__ import annotations

import os
import tempfile
import unittest
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import sidecar_init
from tests.support import wait_until

NO_SECRETS = sidecar_init._Secrets({}, [])


def secrets(**values: bytes) -> sidecar_init._Secrets:
    """The secrets of an environment in which EGRESS_TOKEN_<name> has each value."""
    environ = {b"EGRESS_TOKEN_" + name.encode(): value for name, value in values.items()}
    return sidecar_init._Secrets(environ, ["EGRESS_TOKEN_"])


class UnitTest(unittest.TestCase):
    def use_environment(self, **variables: str) -> None:
        """Nothing of the project's own but these until the test has ended."""
        own = ("BOT_BOTTLE_", "CLAUDE_BOTTLE_", "SIDECAR_INIT_", "EGRESS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        patch = mock.patch.dict(os.environ, {**kept, **variables}, clear=True)
        patch.start()
        self.addCleanup(patch.stop)

    def patch(self, name: str, value: object) -> None:
        """Replace a global of the module until the test has ended."""
        patch = mock.patch.object(sidecar_init, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def directory(self) -> Path:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return Path(directory.name)

    def close_later(self, *fds: int) -> None:
        for fd in fds:
            self.addCleanup(os.close, fd)

    def pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self.close_later(*ends)
        return ends


class SupervisorTest(UnitTest):
    """Supervisors with real children, whose log goes to a file."""

    @classmethod
    def setUpClass(cls) -> None:
        """Orphans come to this process, whatever PID 1 is here."""
        kernel = sidecar_init._Kernel()
        kernel.prctl(sidecar_init._PR_SET_CHILD_SUBREAPER, 1)
        cls.addClassCleanup(kernel.prctl, sidecar_init._PR_SET_CHILD_SUBREAPER, 0)

    def setUp(self) -> None:
        self.use_environment()
        self.log = self.directory() / "log"

    def supervise(self, *specs: sidecar_init._DaemonSpec) -> sidecar_init._Supervisor:
        """A supervisor that has started all; nothing of it is left after the test."""
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.close_later(fd)
        log = sidecar_init._Log(fd, sidecar_init._Secrets(os.environb, sidecar_init._SECRETS))
        supervisor = sidecar_init._Supervisor(specs, log=log)
        self.addCleanup(self.end, supervisor)
        supervisor.start_all()
        return supervisor

    def end(self, supervisor: sidecar_init._Supervisor) -> None:
        for _, process in supervisor.procs:
            if process.pid:
                process.signal_group(9)
        supervisor.request_shutdown("the test has ended")
        self.tick_until_done(supervisor)
        close_descriptors(supervisor)

    def tick_until(
        self, supervisor: sidecar_init._Supervisor, predicate: Callable[[], object], what: str, seconds: float = 60
    ) -> None:
        def turn() -> bool:
            supervisor.tick()
            return bool(predicate())

        wait_until(turn, seconds, what)

    def tick_until_done(self, supervisor: sidecar_init._Supervisor) -> None:
        wait_until(supervisor.tick, 60, "every child has exited for good")

    def tick_until_logged(self, supervisor: sidecar_init._Supervisor, text: str) -> None:
        self.tick_until(supervisor, lambda: text in self.logged(), f"{text!r} in the log")

    def logged(self) -> str:
        return self.log.read_text()


def close_descriptors(supervisor: sidecar_init._Supervisor) -> None:
    """PID 1 keeps them until it exits; a test has many supervisors."""
    launcher = supervisor._launcher
    folders = [fd for fd in launcher._inputs._folders.values() if isinstance(fd, int)]
    for fd in (
        *folders,
        launcher._null,
        launcher._kernel.proc,
        launcher.ports._netlink,
        launcher.oom._fd,
        *launcher.ports._tables,
    ):
        if fd >= 0:
            os.close(fd)
    for daemon in supervisor._daemons:
        daemon.output.close()
    for watch in (launcher.reports, supervisor._pipes):
        watch._epoll.close()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def group_is_gone(pgid: int) -> bool:
    return not sidecar_init._Process(pgid, 0).signal_group(0)


def environ_of(pid: int) -> Mapping[str, str]:
    """The environment that a process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)
