"""All histories of so many events of one or two daemons; those that lead to the same state go on as one.

The state is everything that the supervisor's objects and stories refer to, with the kernel's processes and sockets. A
story cannot be copied: each step runs its history from the beginning. That takes about a millisecond.
"""

from __future__ import annotations

import itertools
import time
import types
from collections.abc import Iterator
from typing import Any

from tests.simulation.histories import Scenario
from tests.simulation.kernel import FOREVER, Kernel, Violation
from tests.simulation.world import Table, World

_IGNORED = {
    # What only counts or tells, and decides nothing.
    "starts", "asked", "answered", "_answer", "_described", "_events", "last_lines", "started_time", "_status_at",
    "_heartbeats", "started_at_text", "_story", "_by_name", "specs", "_environ", "_folders", "_secrets", "_libc",
    "_kernel", "_accounts", "_limits", "_to_reset", "_log", "log", "_netlink", "clock", "_clock", "_calls", "_epoll",
    "_directory", "_said", "_pidfd", "report", "fd", "wanted", "_wake", "_sockets", "old_sockets", "_launcher",
    "_state", "_pipes", "_inbox", "spec", "_spec", "_ends", "reason", "last_exit", "is_refused", "_lost", "_why_lost",
}  # fmt: skip


class Fingerprint:
    """What the future of a supervisor depends on, with times as they are seen from now."""

    def __init__(self, world: World) -> None:
        self._module, self._kernel, self._seen = world.module, world.kernel, dict[int, int]()
        self.parts: list[object] = []
        for daemon in world.supervisor._daemons:
            self._add(daemon)
            self._add_story(daemon._story)
        self._add(world.supervisor._shutdown)
        self._add(sorted(world.module._recorded_signals))
        for pid, one in sorted(world.kernel.processes.items()):
            group = (one.group.number, one.leader.pid, one.is_alive, one.is_executed, one.is_stopped, one.status)
            self.parts.append((pid, one.command, *group, tuple(one.pending), one.hanging is not None))
        self.parts.append(sorted(port for port, _ in world.kernel.sockets.values()))
        self.parts.append((sorted(world.kernel.missing), sorted(world.kernel.slow), world.wanted_at is not None))
        for seen in world.seen.values():
            self.parts.append((seen.is_asked, seen.checks, seen.has_executed, seen.has_listened, seen.is_done))

    @property
    def key(self) -> int:
        return hash(tuple(map(str, self.parts)))

    def _add_story(self, story: Any) -> None:
        while story is not None:
            frame = story.gi_frame
            self.parts.append(frame and frame.f_lasti)
            if frame:
                for name, value in frame.f_locals.items():
                    if name != "self":
                        self.parts.append(name)
                        self._add(value)
            story = story.gi_yieldfrom

    def _add(self, value: Any) -> None:
        if isinstance(value, float):
            value = round(value - self._kernel.now, 2) if 900 < value < FOREVER else value
            self.parts.append(max(value, -60.0) + 0.0)  # not -0.0; what was longer ago than a steady uptime is long ago
        elif value is None or isinstance(value, (int, str, bytes)):
            self.parts.append(value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            self.parts.append(len(value))
            for one in value:
                self._add(one)
        elif type(value).__module__ == self._module.__name__ or isinstance(value, Exception):
            if id(value) in self._seen:
                self.parts.append(("again", self._seen[id(value)]))
                return
            self._seen[id(value)] = len(self._seen)
            for name, attribute in vars(value).items():
                if name not in _IGNORED and not isinstance(attribute, (types.FunctionType, types.MethodType)):
                    self.parts.append(name)
                    self._add(attribute)
            if hasattr(value, "asked"):
                self.parts.append(value.asked > value.answered)


def events(table: Table) -> list[str]:
    """What can happen to these daemons."""
    found = ["deadline", "term", "int", "hup"]
    for name, fields in table.items():
        restart = "usr1" if name == next(iter(table)) else f"restart {name}"
        found += [restart, f"exit {name} 0", f"exit {name} 7", f"exit {name} -9", f"fork {name}", f"member {name}"]
        found += [f"missing {name}", f"missing {name} 11", f"slow {name}", f"released {name}"]
        for command in ("check", "ready"):
            if fields.get(command):
                found += [f"exit {command}-{name} 0", f"exit {command}-{name} 1"]
        if fields.get("port"):
            found.append(f"listen {name}")
    return found


def one_daemon() -> Iterator[Table]:
    for restart, port, check in itertools.product(("never", "on-failure", "always"), (None, 80), (None, True)):
        yield {"web": _fields(restart=restart, port=port, check=check)}
    for restart in ("never", "always"):
        yield {"web": _fields(restart=restart, oneshot=True)}
        yield {"web": _fields(restart=restart, essential=True)}
        yield {"web": _fields(restart=restart, ready=True)}
        yield {"web": _fields(restart=restart, stop={"signal": "QUIT", "to": "leader", "grace": 3.0}, check=True)}


def two_daemons() -> Iterator[Table]:
    for db, web, after in itertools.product(one_daemon(), one_daemon(), (None, ["db"])):
        port = 81 if web["web"].get("port") else None
        yield {"db": db["web"], "web": {**web["web"], **_fields(port=port, after=after)}}


def _fields(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


class Search:
    """All histories of one table, by breadth."""

    def __init__(self, module: Any, kernel: Kernel, table: Table) -> None:
        self.module, self.kernel, self.table = module, kernel, table
        self.states: set[int] = set()
        self.steps, self.is_whole = 0, False

    def run(self, depth: int, until: float | None = None) -> tuple[Scenario, Violation] | None:
        """The first history that breaks a rule, which is one of the shortest. Gives up at that time."""
        happenings = events(self.table)
        frontier: list[list[str]] = [[]]
        for _ in range(depth):
            following: list[list[str]] = []
            for history, event in itertools.product(frontier, happenings):
                if until is not None and time.monotonic() > until:
                    return None
                longer = [*history, event]
                key, violation = self._step(longer)
                if violation:
                    return Scenario(self.table, {"obey": False}, longer), violation
                if key and key not in self.states:
                    self.states.add(key)
                    following.append(longer)
            frontier = following
        self.is_whole = True
        return None

    def _step(self, history: list[str]) -> tuple[int, Violation | None]:
        self.steps += 1
        world = World(self.module, self.kernel, self.table, obey=False)
        try:
            world.run(history, pause=True)
            return (0 if world.code is not None else Fingerprint(world).key), None
        except Violation as violation:
            return 0, violation
        finally:
            world.close()
