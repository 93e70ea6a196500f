"""Twenty daemons of all kinds under random faults, and what must hold after each.

An epoch is one supervisor: rounds of faults, each followed by a look at all that must hold, and a TERM at the end.
The seed decides which is hit by what and in which order; how that falls in with the daemons' own doings is chance.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.support import FAULT_CHILDREN, Bundle, Seen, processes
from tests.pidns.harness import PYTHON, Daemon, daemon
from tests.support import wait_until

KINDS = {
    "egress": "hearing",
    "pipelock": "talker",
    "steady-1": "steady",
    "steady-2": "steady",
    "flood-1": "flooding",
    "flood-2": "flooding",
    "burst": "bursting",
    "fork-1": "forking",
    "fork-2": "forking",
    "stubborn-1": "stubborn",
    "stubborn-2": "stubborn",
    "failing-1": "failing",
    "failing-2": "failing",
    "brief": "brief",
    "slow-1": "slow",
    "slow-2": "slow",
    "hold-1": "holder",
    "hold-2": "holder",
    "daemonise": "daemonising",
    "talk": "talker",
}
TUNABLES = {
    "_GRACE_SECONDS": 2.0,
    "_RESTART_GRACE_SECONDS": 0.5,
    "_BACKOFF_FIRST": 0.05,
    "_BACKOFF_LAST": 1.0,
    "_AFTER_SECONDS": 1.0,
    "_CHECK_SECONDS": 2.0,
}
SETTLED = 20.0  # how long what must hold may take to hold, on a busy machine
RSS_ROUNDS, RSS_GROWTH_KIB = 1000, 2048
_LINE = re.compile(rb"(\d+\.\d+) (\d+) (x*) (\d+)")
_LIVE = ("starting", "running", "checking", "stopping")


class Violation(AssertionError):
    """Something that must hold did not."""


class Listener:
    """The reader of the log, on a named pipe: it checks each line as it comes, can stall, and can go and come back."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.write_end = os.open(path, os.O_WRONLY)
        self._mode = "read"
        self._wake, self._waker = os.pipe()
        self._rest = b""
        self._seen_last_mode = threading.Event()
        self.heard: dict[tuple[str, str], int] = {}  # (daemon, run): lines
        self.own: list[str] = []
        self.lines = self.leaves = self.broken = 0
        self.violations: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def mode(self) -> str:
        return self._mode

    def be(self, mode: str) -> None:
        """`read`, `stall`, `away`, or `finish`: read until the last writer has gone. Returns when it is so."""
        if self._mode != "away" and mode == "away":
            self.leaves += 1
        self._seen_last_mode.clear()
        self._mode = mode
        os.write(self._waker, b".")
        self._seen_last_mode.wait(10)

    def finish(self) -> None:
        self.be("finish")
        self._thread.join(30)
        if self._thread.is_alive():
            raise Violation("the log has no end: a process still holds it")

    def close(self) -> None:
        if self._thread.is_alive():
            self.be("abandon")
            self._thread.join(10)
        for fd in (self._fd, self._wake, self._waker):
            os.close(fd)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            mode = self._mode
            if mode == "abandon":
                return
            if mode == "away" and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            elif mode != "away" and self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            reads = mode in ("read", "finish")
            if reads:
                poll.register(self._fd, select.POLLIN)
            self._seen_last_mode.set()
            ready = [fd for fd, _ in poll.poll()]
            if reads:
                poll.unregister(self._fd)
            if self._wake in ready:
                os.read(self._wake, 4096)
            if self._fd in ready and reads:
                data = os.read(self._fd, 1 << 16)
                if not data and mode == "finish":
                    return
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._check(line)

    def _check(self, line: bytes) -> None:
        self.lines += 1
        if line.startswith(b"sidecar-init: "):
            self.own.append(line[14:].decode(errors="replace"))
            return
        name, _, text = line.partition(b"] ")
        match = _LINE.fullmatch(text)
        if match and match[2] == match[4] and len(match[3]) == int(match[2]) * 37 % 200 and name[:1] == b"[":
            self._count(name[1:].decode(), match[1].decode(), int(match[2]))
        elif self.leaves > self.broken:
            self.broken += 1  # the line that was being written when the reader left
        else:
            self.violations.append(f"not a whole line: {line[:300]!r}")

    def _count(self, name: str, run: str, number: int) -> None:
        if name not in KINDS:
            self.violations.append(f"a line of no daemon: {name}")
        expected = self.heard.get((name, run), 0)
        if number < expected or (number > expected and not self.leaves):
            self.violations.append(f"{name} {run}: line {number} came where {expected} was next")
        self.heard[name, run] = number + 1


class Epoch:
    """One supervisor with its twenty daemons."""

    def __init__(self, chance: random.Random, *, leaves: bool) -> None:
        self.chance, self.leaves = chance, leaves
        self.faults: dict[str, int] = {}
        self.rounds = 0
        self._stopping_since: dict[tuple[str, int], float] = {}

    def run(self, rounds: int, until: float) -> None:
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-init-chaos-")))
            self.scratch = scratch
            self.listener = Listener(scratch / "log")
            stack.callback(self.listener.close)
            rows = [self._row(number, name, kind) for number, (name, kind) in enumerate(KINDS.items())]
            # Both ways: what HUP restarts here ignores TERM, so that each restart needs a KILL.
            hup = self.chance.choice(({"forward": "egress"}, {"restart": "stubborn-1"}))
            signals = {"HUP": hup, "USR1": {"restart": "pipelock"}}
            self.bundle = Bundle(rows, signals=signals, tunables=TUNABLES, stdout=self.listener.write_end)
            try:
                stack.enter_context(self.bundle)
            finally:
                os.close(self.listener.write_end)
            self._live_through(rounds, until)

    def _row(self, number: int, name: str, kind: str) -> Daemon:
        (self.scratch / name).mkdir()
        program = [*PYTHON, str(FAULT_CHILDREN / "chaotic.py"), kind, str(self.scratch / name)]
        fields: dict[str, Any] = {"restart": "on-failure" if name == "failing-2" else "always"}
        if kind == "slow":
            fields["port"] = 7100 + number
            program.append(str(fields["port"]))
        if name == "pipelock":
            fields |= {"after": ["slow-1"], "check": ["/bin/sh", "-c", f"test ! -e {self.scratch}/refuse"]}
        return daemon(name, *program, **fields)

    def _live_through(self, rounds: int, until: float) -> None:
        wait_until(lambda: len(self._spoken()) == len(KINDS), SETTLED, "every daemon has spoken once")
        at_first = 0
        memory: list[int] = []
        for self.rounds in range(1, rounds + 1):
            for _ in range(self.chance.randint(1, 4)):
                self._inject()
            self._check_all()
            at_first = at_first or self._descriptors()[0]
            self._no_descriptor_leaks(at_first)
            if self.rounds % 100 == 0:
                memory.append(self.bundle.proc("VmRSS"))
            if time.monotonic() > until:
                break
        if self.rounds >= RSS_ROUNDS:
            growth = memory[-1] - memory[0]
            print(f"  memory in KiB, every 100 rounds: {memory}", flush=True)
            if growth > RSS_GROWTH_KIB:
                raise Violation(f"memory grew by {growth} KiB in {self.rounds} rounds: {memory}")
        self._end()

    def _spoken(self) -> set[str]:
        return {name for name, _ in list(self.listener.heard)}

    # faults

    def _inject(self) -> None:
        faults: list[tuple[int, Callable[[], None]]] = [
            (6, self.kill_a_leader),
            (3, self.kill_any),
            (3, self.stop_any),
            (4, self.continue_all),
            (2, self.term_a_leader),
            (4, self.hup),
            (4, self.usr1),
            (4, self.usr2),
            (1, self.refuse_or_allow_restarts),
            (1, self.rename_state),
            (1, self.truncate_state),
            (1, self.remove_state),
            (1, self.obstruct_state),
            (3, self.stall_reader),
            (4, self.resume_reader),
            (1, self.suspend_pid1),
            (1 if self.leaves else 0, self.leave),
        ]
        weights, actions = zip(*faults, strict=True)
        (action,) = self.chance.choices(actions, weights)
        self.faults[action.__name__] = self.faults.get(action.__name__, 0) + 1
        action()

    def kill_a_leader(self) -> None:
        self._hit(signal.SIGKILL, leader=True)

    def term_a_leader(self) -> None:
        self._hit(signal.SIGTERM, leader=True)

    def kill_any(self) -> None:
        self._hit(signal.SIGKILL, leader=False)

    def stop_any(self) -> None:
        self._hit(signal.SIGSTOP, leader=False)

    def continue_all(self) -> None:
        for process in processes(self.bundle.pid1):
            if process.state == "T":
                _kill(process, signal.SIGCONT)

    def hup(self) -> None:
        self.bundle.signal(signal.SIGHUP)

    def usr1(self) -> None:
        self.bundle.signal(signal.SIGUSR1)

    def usr2(self) -> None:
        self.bundle.signal(signal.SIGUSR2)

    def refuse_or_allow_restarts(self) -> None:
        if self.chance.random() < 0.5:
            (self.scratch / "refuse").touch()
        else:
            (self.scratch / "refuse").unlink(missing_ok=True)

    def rename_state(self) -> None:
        path = self._state_file()
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            path.rename(path.with_suffix(".moved"))

    def truncate_state(self) -> None:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.truncate(self._state_file(), self.chance.choice((0, 10)))

    def remove_state(self) -> None:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            self._state_file().unlink()

    def obstruct_state(self) -> None:
        """A directory where a file should be; the look at the end of the round takes it away."""
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            self._state_file().mkdir()

    def stall_reader(self) -> None:
        if self.listener.mode == "read":
            self.listener.be("stall")

    def resume_reader(self) -> None:
        self.listener.be("read")

    def leave(self) -> None:
        self.listener.be("away")

    def suspend_pid1(self) -> None:
        self.bundle.signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0, 0.1))
        self.bundle.signal(signal.SIGCONT)

    def _state_file(self) -> Path:
        return self.bundle.state / self.chance.choice(("status.json", "status.json.new", "events.jsonl"))

    def _hit(self, number: int, *, leader: bool) -> None:
        name, pick = self.chance.choice(list(KINDS)), self.chance.random()
        own = [one for one in processes(self.bundle.pid1) if self._owner(one) == name and one.state not in "ZX"]
        if leader:
            own = [one for one in own if one.parent == self.bundle.pid1 and one.group == one.pid]
        if own:
            _kill(own[int(pick * len(own))], number)

    def _owner(self, process: Seen) -> str:
        match = re.search(rf"chaotic\.py \S+ {self.scratch}/(\S+)", process.command)
        return match[1] if match else ""

    # what must hold

    def _check_all(self) -> None:
        for name in ("status.json", "status.json.new", "events.jsonl"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                (self.bundle.state / name).rmdir()
        self._one_group_a_daemon()
        self._settle(self._every_daemon_runs_or_waits, "every daemon runs, or has a deadline", self._explain)
        self._no_zombie_stays()
        if self.listener.violations:
            raise Violation("\n".join(self.listener.violations[:5]))
        complaint = self.bundle.stderr
        if complaint:
            raise Violation(f"the supervisor wrote to stderr: {complaint}")

    def _one_group_a_daemon(self) -> None:
        leaders: dict[str, Seen] = {}
        for process in processes(self.bundle.pid1):
            name = self._owner(process)
            if not name or process.state in "ZX":
                continue
            other = leaders.setdefault(name, process)
            # Seen one after the other, one may have gone before the other came.
            if other.group != process.group and process.still_runs() and other.still_runs():
                with contextlib.suppress(OSError, IndexError):  # one has gone now
                    again = Seen(other.pid), Seen(process.pid)
                    if again[0].group != again[1].group:
                        raise Violation(f"two groups of {name}: {again}")

    def fresh_status(self) -> dict[str, Any]:
        """What the supervisor says of itself after all signals that were sent before."""
        try:
            self.bundle.catch_up(SETTLED)
        except AssertionError as error:
            raise Violation(f"no heartbeat: {error}") from None
        return self.bundle.status()

    def _every_daemon_runs_or_waits(self) -> bool:
        status = self.fresh_status()
        running = {one.inner_pid: one for one in processes(self.bundle.pid1)}
        if status["state"] != "running" or [row["name"] for row in status["daemons"]] != list(KINDS):
            raise Violation(f"this is no status of ours: {status}")
        self._stuck = [row for row in status["daemons"] if not self._runs_or_waits(row, running)]
        return not self._stuck

    def _runs_or_waits(self, row: dict[str, Any], running: dict[int, Seen]) -> bool:
        if row["state"] == "backoff":
            return row["next_start_at"] is not None
        if row["state"] == "exited":
            return bool(row["name"] == "failing-2" and row["last_exit"] == "exited with status 0")
        if row["state"] == "waiting":
            return bool(row["name"] == "pipelock")
        if row["state"] == "stopping":
            since = self._stopping_since.setdefault((row["name"], row["pid"]), time.monotonic())
            if time.monotonic() > since + SETTLED:
                raise Violation(f"{row['name']} has been stopping for {SETTLED} s: {row}")
            return True
        live = running.get(row["pid"])
        return row["state"] in _LIVE and live is not None and self._owner(live) == row["name"]

    def _explain(self) -> str:
        return f"{self._stuck}"

    def _no_zombie_stays(self) -> None:
        def left(zombies: list[Seen]) -> list[Seen]:
            now = {(one.pid, one.started_at) for one in processes(self.bundle.pid1) if one.state == "Z"}
            return [one for one in zombies if (one.pid, one.started_at) in now]

        pid1 = self.bundle.pid1
        zombies = [one for one in processes(pid1) if one.state == "Z" and one.parent == pid1]
        self._settle(lambda: not left(zombies), f"these are reaped: {zombies}")

    def _no_descriptor_leaks(self, at_first: int) -> None:
        def holds() -> bool:
            others, targets = self._descriptors()
            return others <= at_first and "-1" not in targets and len(set(targets)) == len(targets)

        self._settle(
            holds, f"no more than {at_first} descriptors and a pidfd of each process", self._explain_descriptors
        )

    def _descriptors(self) -> tuple[int, list[str]]:
        """How many PID 1 has beside its pidfds, and the processes of those: -1 is one that it has reaped."""
        others, targets = 0, []
        for info in Path(f"/proc/{self.bundle.pid1}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                target = re.search(r"^Pid:\s+(-?\d+)$", info.read_text(), re.MULTILINE)
                if target:
                    targets.append(target[1])
                else:
                    others += 1
        return others, targets

    def _explain_descriptors(self) -> str:
        return f"{self._descriptors()}"

    def _settle(self, holds: Callable[[], bool], what: str, explain: Callable[[], str] = str) -> None:
        try:
            self.bundle.until(holds, SETTLED, what)
        except AssertionError as error:
            raise Violation(f"{error} {explain()}") from None

    # the end

    def _end(self) -> None:
        """TERM, in each mode of the reader: in time, with the promised code, and no line missing."""
        if self.listener.mode == "away":
            self.listener.be("read")
        for process in processes(self.bundle.pid1):
            if process.state == "T" and self.chance.random() < 0.5:
                _kill(process, signal.SIGCONT)
        for name in ("events.jsonl", "events.jsonl.1"):
            (self.bundle.state / name).unlink(missing_ok=True)
        before = self.fresh_status()
        asked_at = time.monotonic()
        self.bundle.signal(signal.SIGTERM)
        if self.listener.mode == "stall":
            self._settle(lambda: self._only_pid1_runs(), "all daemons are gone though the log is not read")
        self.listener.finish()
        code = self.bundle.exit(SETTLED)
        took = time.monotonic() - asked_at
        promised = self._promised_code(before)
        if promised is not None and code != promised:
            raise Violation(f"exit {code}, promised {promised}; {self.bundle.events()}; before: {before}")
        if took > TUNABLES["_GRACE_SECONDS"] + SETTLED / 2:
            raise Violation(f"the end took {took:.1f} s")
        if self.listener.violations:
            raise Violation("\n".join(self.listener.violations[:5]))
        self._every_line_came()

    def _only_pid1_runs(self) -> bool:
        return not self.bundle.running() or not any(self._owner(one) for one in processes(self.bundle.pid1))

    def _promised_code(self, before: dict[str, Any]) -> int | None:
        """The exit code by the rules of the contract, from the last status and the events after it.

        None where both together do not tell: a daemon that was stopping then.
        """
        failed = {row["name"]: _shell_code(row["last_exit"]) for row in before["daemons"] if row["state"] == "backoff"}
        if any(row["state"] == "stopping" for row in before["daemons"]):
            return None
        ended: dict[str, int] = {}
        down = False
        for event in self.bundle.events():
            name = event["daemon"]
            if event["event"] == "shutdown":
                down = True
            elif event["event"] in ("started", "restarted"):
                failed.pop(name, None)
            elif event["event"] == "restarting":
                return None  # whether it then ends by itself or by us is not told
            elif event["event"] == "exited":
                code = 128 + signal.Signals[event["signal"]] if event["signal"] else event["code"]
                (ended if down else failed)[name] = code
        killed = 137 if 137 in ended.values() else 0
        return max(failed.values(), default=0) or killed or max(ended.values(), default=0)

    def _every_line_came(self) -> None:
        for name in KINDS:
            for file in (self.scratch / name).iterdir():
                if file.suffix == ".new":
                    continue
                told = int.from_bytes(file.read_bytes(), "little")
                heard = self.listener.heard.get((name, file.name), 0)
                # One more than it was told: it was killed between the write and its count.
                if heard > told + 1 or (heard < told and not self.listener.leaves):
                    raise Violation(f"{name} {file.name} was told {told} lines, {heard} came")


def _kill(process: Seen, number: int) -> None:
    try:
        os.kill(process.pid, number)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise


def _shell_code(last_exit: str) -> int:
    """Of "exited with status 7" or "was terminated by SIGKILL (out of memory)"."""
    word = last_exit.removeprefix("exited with status ").removeprefix("was terminated by ").split()[0]
    return int(word) if word.isdigit() else 128 + signal.Signals[word]


def run(minutes: float, seed: int) -> bool:
    """Chaos for so long; whether all held. The first epoch is long, for the memory; the others are short."""
    until = time.monotonic() + minutes * 60
    started = time.monotonic()
    rounds = epochs = lines = 0
    faults: dict[str, int] = {}
    chance = random.Random(seed)
    while time.monotonic() < until:
        epoch_seed = chance.randrange(1 << 32)
        length = RSS_ROUNDS + 100 if epochs == 0 else random.Random(epoch_seed).choice((1, 3, 10, 30, 100))
        epoch = Epoch(random.Random(epoch_seed), leaves=epochs % 3 == 2)
        try:
            epoch.run(length, until)
        except AssertionError as error:
            print(f"chaos: FAILED in epoch {epochs} (seed {seed}), round {epoch.rounds}: {error}", flush=True)
            print("\n".join(getattr(error, "__notes__", [])), flush=True)
            print("the supervisor's last lines:", *epoch.listener.own[-30:], sep="\n  ", flush=True)
            return False
        epochs, rounds, lines = epochs + 1, rounds + epoch.rounds, lines + epoch.listener.lines
        for name, times in epoch.faults.items():
            faults[name] = faults.get(name, 0) + times
    print(f"chaos: {epochs} epochs, {rounds} rounds, {lines} lines in {time.monotonic() - started:.0f} s (seed {seed})")
    print("  " + ", ".join(f"{name} {times}" for name, times in sorted(faults.items())), flush=True)
    return True
