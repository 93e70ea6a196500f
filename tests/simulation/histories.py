"""Random histories, and the shortest one that still shows what a longer one has shown."""

from __future__ import annotations

import pprint
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.kernel import Kernel, Violation
from tests.simulation.world import Table, World

NAMES = [
    "web", "db", "cache", "worker", "queue", "mail", "cron", "proxy", "search", "auth", "feed", "push", "sync", "log",
    "audit", "stats", "image", "video", "chat", "admin",
]  # fmt: skip

FLOOD = "*~" * 24  # more than the log can hold while it is not read


class Scenario:
    """A table, its options and a history: what a test case holds."""

    def __init__(self, table: Table, options: dict[str, Any], history: Sequence[str], seed: object = None) -> None:
        self.table, self.options, self.history, self.seed = table, options, list(history), seed

    def run(self, module: Any, kernel: Kernel) -> Violation | None:
        """The rule that does not hold, if there is one."""
        world = World(module, kernel, self.table, **self.options)
        try:
            world.run(self.history)
        except Violation as violation:
            return violation
        finally:
            world.close()
        return None

    def with_history(self, history: Sequence[str]) -> Scenario:
        return Scenario(self.table, self.options, history, self.seed)

    def with_table(self, table: Table) -> Scenario:
        return Scenario(table, self.options, self.history, self.seed)

    def as_test(self, violation: Violation) -> str:
        """A method for tests/simulation/test_found.py."""
        table = pprint.pformat(dict(self.table), width=90, sort_dicts=False).replace("\n", "\n" + " " * 12)
        history = pprint.pformat(self.history, width=90, compact=True).replace("\n", "\n" + " " * 12)
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return (
            f"    def test_it_holds_that_NAME_THE_RULE(self) -> None:\n"
            f"        # {violation}; seed {self.seed}\n"
            f"        self.replay(\n            {table},\n            {history}{options},\n        )\n"
        )


def shortest(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """Delta debugging: without any part of its history, or any daemon, that is not needed to fail."""
    size = max(1, len(scenario.history) // 2)
    while True:
        at, has_shrunk = 0, False
        while at < len(scenario.history):
            shorter = scenario.with_history(scenario.history[:at] + scenario.history[at + size :])
            if fails(shorter):
                scenario, has_shrunk = shorter, True
            else:
                at += size
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2)
    for name in list(scenario.table):
        rest = {one: fields for one, fields in scenario.table.items() if one != name}
        if rest and fails(smaller := scenario.with_table(rest)):
            scenario = smaller
    for name in scenario.table:
        for field in list(scenario.table[name]):
            less = {key: value for key, value in scenario.table[name].items() if key != field}
            if fails(smaller := scenario.with_table({**scenario.table, name: less})):
                scenario = smaller
    return scenario


def random_scenario(seed: int, events: int = 1000, daemons: int = 20) -> Scenario:
    """Made of its seed alone."""
    choice = random.Random(seed)
    names = NAMES[: choice.randint(1, choice.choice([1, 2, 4, daemons]))]
    table = {name: _fields(choice, number, names[:number]) for number, name in enumerate(names)}
    options = {
        "may_restart": choice.random() < 0.95,
        "old_kernel": choice.random() < 0.3,
        "slow_forks": choice.random() < 0.2,
        "pids": choice.choice([0, 30 + 8 * len(names)]),
        "secrets": choice.choice(["", *names]),
    }
    options = {name: value for name, value in options.items() if value or name == "may_restart"}
    if options["may_restart"]:
        del options["may_restart"]
    calm = choice.choice([1, 3, 10])
    kinds = choice.sample(list(_KINDS), choice.randint(3, len(_KINDS)))
    if choice.random() < 0.8 and "memory" in kinds:
        kinds.remove("memory")  # that excuses much
    history = [event for _ in range(events) for event in _event(choice, names, kinds, calm)][:events]
    if choice.random() < 0.3:
        last = choice.choice([["term", "int"], ["int", "wait 1", "int"], ["term", "wait 4", "term"]])
        history[-20:-10] = last
    return Scenario(table, options, history, seed)


def _fields(choice: random.Random, number: int, others: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"restart": choice.choice(["never", "on-failure", "always", "always"])}
    after = [other for other in others if choice.random() < min(0.3, 2 / len(others))]
    if choice.random() < 0.15:
        fields["oneshot"] = True
    elif choice.random() < 0.4:
        fields["port"] = 1000 + number
    if after:
        fields["after"] = after
    for command in ("check", "ready"):
        if choice.random() < 0.3 and not (command == "ready" and "oneshot" in fields):
            fields[command] = True
    if choice.random() < 0.3:
        fields["stop"] = {
            "signal": choice.choice(["TERM", "QUIT", "INT"]),
            "to": choice.choice(["group", "leader"]),
            "grace": choice.choice([None, 0.5, 15.0]),
        }
    if choice.random() < 0.2:
        fields["files"] = True
    if choice.random() < 0.03:
        fields["essential"] = True
    return fields


def _event(choice: random.Random, names: Sequence[str], kinds: Sequence[str], calm: int) -> list[str]:
    if choice.random() < 0.35:
        return [choice.choice(["wait 0.02", "wait 0.3", "wait 0.6", "wait 2", "wait 5.2", "deadline", "deadline"])]
    if choice.random() < 0.02 * calm:
        return [choice.choice(["wait 9", "wait 70"])]
    name = choice.choice(names)
    event = _KINDS[choice.choice(kinds)](choice, name)
    if choice.random() < 0.15:
        return [f"+{choice.randint(1, 60)} {event}", choice.choice(["usr2", f"exit {name} 3", f"restart {name}"])]
    return [event]


def _exits(choice: random.Random, name: str) -> str:
    return f"exit {name} {choice.choice([0, 0, 1, 7, 255, -9, -11, -15])}"


def _restarts(choice: random.Random, name: str) -> str:
    return choice.choice(["usr1", f"restart {name}"])


def _checks(choice: random.Random, name: str) -> str:
    listens, restart, checked = f"listen {name}", f"restart {name}", f"exit check-{name} 0"
    return choice.choice([checked, checked, f"exit check-{name} 1", restart, restart, f"exit ready-{name} 0",
                          f"exit ready-{name} 1", listens, f"mute {name}"])  # fmt: skip


def _members(choice: random.Random, name: str) -> str:
    return choice.choice([f"fork {name}", f"fork {name}", f"member {name} 3", f"leave {name}", f"elsewhere {name}"])


def _writes(choice: random.Random, name: str) -> str:
    words = ["abc~", "abc", "~", "a$b~", "x<", ">y~", "<", ">", "*", "*~", "hello_world~more~", "$", "~~", FLOOD]
    command = choice.choice([name, name, f"check-{name}"])
    return f"write {command} {''.join(choice.choices(words, k=choice.randint(1, 3)))}"


def _suspends(choice: random.Random, name: str) -> str:
    return choice.choice([f"suspend {name}", f"continue {name}", f"continue {name}", f"trace {name}",
                          f"stubborn {name}"])  # fmt: skip


def _starts(choice: random.Random, name: str) -> str:
    command = choice.choice([name, name, f"check-{name}", f"ready-{name}"])
    number = choice.choice([2, 13, 11, 26, 12])  # ENOENT, EACCES, EAGAIN, ETXTBSY, ENOMEM
    return choice.choice([f"missing {command} {number}", f"slow {command} fork", f"slow {command}",
                          f"released {command}", "mend", "mend"])  # fmt: skip


def _faults(choice: random.Random, name: str) -> str:
    return choice.choice([
        f"fail fork {choice.choice([11, 12])} {choice.randint(1, 3)}", "fail pipe2 24", "fail pidfd_open 24",
        "fail epoll_ctl 12", "fail open_file 13", "fail openat2 5 3", "fail memfd_create 24", f"lacking {name}",
        f"stuck {name}", f"deny {name}", "mend", "mend",
    ])  # fmt: skip


def _reader(choice: random.Random, name: str) -> str:
    return choice.choice(["stall", "drain", "drain", f"drip {choice.choice([1, 100, 5000, 200000])}"])


def _signals(choice: random.Random, name: str) -> str:
    return choice.choice(["hup", "usr2", "hup", f"squat {name}"])


def _errors(choice: random.Random, name: str) -> str:
    """What a full disk, a lack of memory or a filter makes of calls that nearly always work."""
    return choice.choice([
        "fail poll 12", "fail pidfd_open 12", "fail pipe2 23", "fail epoll_ctl 28", "fail pidfd_send_signal 1",
        "fail write_log 5", "fail write_log 28", "fail write_log 32 3", "fail fcntl 12",
    ])  # fmt: skip


def _state(choice: random.Random, name: str) -> str:
    call = choice.choice(["write_state", "open_state", "rename_state"])
    return f"fail {call} {choice.choice([28, 5, 24])}"


def _memory(choice: random.Random, name: str) -> str:
    """Any call may find that there is no memory left; then the supervisor has to survive, and no more."""
    call = choice.choice(["fork", "pipe2", "epoll_ctl", "waitpid", "waitid", "pidfd_send_signal", "poll"])
    return f"fail {call} 0"


_KINDS: dict[str, Callable[[random.Random, str], str]] = {
    "exits": _exits, "restarts": _restarts, "checks": _checks, "members": _members, "writes": _writes,
    "suspends": _suspends, "starts": _starts, "faults": _faults, "reader": _reader, "signals": _signals,
    "errors": _errors, "state": _state, "memory": _memory,
}  # fmt: skip
