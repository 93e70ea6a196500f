"""The measures: each function runs one peer once and returns what it saw, by the key of a row."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import harness
import peers
from harness import Mailbox, Output
from peers import HERE, PYTHON, Daemon, Peer


class Target(NamedTuple):
    """`value` of ours must be at most (for a rate: at least) `factor` times the best of `others`."""

    text: str
    factor: float
    others: tuple[str, ...] = ()  # none: `factor` is the figure itself


class Row(NamedTuple):
    key: str
    title: str
    targets: tuple[Target, ...] = ()
    more_is_better: bool = False


class Measure(NamedTuple):
    name: str
    peers: list[Peer]
    sample: Callable[[Peer], dict[str, float]]
    rows: list[Row]
    needs_root: bool = False


DaemonsOf = Callable[[str], list[Daemon]]  # given the path of the mailbox
AS_PID_1 = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Trial(NamedTuple):
    process: subprocess.Popen[bytes]
    started_at: float
    daemons: list[int]  # their pids, in the order in which they reported
    mailbox: Mailbox
    folder: Path

    def supervising(self) -> list[int]:
        """Everything that was started, but the daemons."""
        return [pid for pid in harness.descendants(os.getpid()) if pid not in self.daemons]


@contextmanager
def trial(
    peer: Peer, daemons: DaemonsOf, *, output: Output | None = None, pid_1: bool = False, reports: bool = True
) -> Iterator[Trial]:
    """A peer with daemons that have all reported. On leaving, nothing of it is left."""
    with TemporaryDirectory(prefix="bench-") as name, harness.patience():
        folder = Path(name)
        mailbox = Mailbox(folder)
        rows = daemons(mailbox.path)
        command = AS_PID_1 * pid_1 + peer.command(folder, rows)
        try:
            started_at = time.monotonic()
            process = subprocess.Popen(
                command,
                env=peer.env(folder),
                stdin=subprocess.DEVNULL,
                stdout=output.write_end if output else subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # some signal their whole process group
            )
            if output:
                os.close(output.write_end)
            pids = [int(line) for line in mailbox.lines(len(rows))] if reports else []
            yield Trial(process, started_at, pids, mailbox, folder)
        finally:
            harness.kill_all()
            mailbox.close()
            if output:
                output.close()


def sleepers(count: int) -> DaemonsOf:
    """Daemons that report once they run, and sleep; each keeps the mailbox open as long as it lives."""
    script = 'exec 3>"$0"; echo $$ >&3; exec sleep 1000'
    return lambda mailbox: [Daemon(f"d{i}", ["/bin/sh", "-c", script, mailbox]) for i in range(count)]


def python_daemon(program: str, *arguments: str, name: str = "d0") -> DaemonsOf:
    argv = [PYTHON, "-I", "-S", str(HERE / "daemons" / program)]
    return lambda mailbox: [Daemon(name, [*argv, mailbox, *arguments])]


# -- start, memory, idle -----------------------------------------------------------------------------------------


def start(peer: Peer) -> dict[str, float]:
    """From the exec of the supervisor to the exec of the first child; a bare interpreter: until it has ended."""
    if isinstance(peer, peers.BarePython):
        started_at = time.monotonic()
        subprocess.run(peer.command(Path(), []), check=True)
        return {"start": time.monotonic() - started_at}
    with trial(peer, sleepers(1)) as run:
        return {"start": time.monotonic() - run.started_at}


def rss(peer: Peer) -> dict[str, float]:
    """Memory of every supervising process, with five idle daemons."""
    bare = isinstance(peer, peers.BarePython)
    with trial(peer, sleepers(0 if bare else 5)) as run:
        time.sleep(0.3)
        return {"rss": harness.memory(run.supervising(), "Rss")}


def _idle(run: Trial, seconds: float) -> tuple[float, float]:
    pids = run.supervising()
    wakes, cpu = harness.wake_ups(pids), harness.cpu_seconds(pids)
    time.sleep(seconds)
    return (harness.wake_ups(pids) - wakes) / seconds, (harness.cpu_seconds(pids) - cpu) / seconds


def idle(peer: Peer) -> dict[str, float]:
    """Wake-ups a second of every supervising thread, and its share of a CPU, with one daemon that sleeps."""
    with trial(peer, sleepers(1)) as run:
        time.sleep(0.3)
        wakes, cpu = _idle(run, 1.0)
        return {"idle-wakes": wakes, "idle-cpu": cpu}


# -- the log -----------------------------------------------------------------------------------------------------


def log(mode: str, count: int) -> Callable[[Peer], dict[str, float]]:
    """Bytes a second from daemons that write 100-byte lines, pipe to pipe; and CPU seconds a byte."""

    def sample(peer: Peer) -> dict[str, float]:
        size = peer.log_bytes // (1 if mode == "blocks" else 10) // count // 65536 * 65536
        size = max(size, 65536 * 4)
        writer = [PYTHON, "-I", "-S", str(HERE / "daemons" / "writer.py")]

        def writers(mailbox: str) -> list[Daemon]:
            return [Daemon(f"d{i}", [*writer, mailbox, mode, str(size)]) for i in range(count)]

        output = Output()
        with trial(peer, writers, output=output, reports=False) as run:
            news: list[str] = []
            while len(news) - news.count("done") < count:  # one may be done before another begins
                news += run.mailbox.lines(1)
            run.daemons.extend(int(pid) for pid in news if pid != "done")
            before = harness.cpu_seconds(run.supervising())
            while news.count("done") < count:
                if output.read(0.05) is None and run.mailbox.has_mail():
                    news += run.mailbox.lines(1)
            while output.read(0.15):
                pass
            cpu = harness.cpu_seconds(run.supervising()) - before
            return {"rate": size * count / output.middle(), "cpu": cpu / (size * count)}

    return sample


SLOW_LINE = re.compile(rb"slow (\d+)\n")


def flood(peer: Peer) -> dict[str, float]:
    """One daemon floods, another writes a line each 10 ms and gets a HUP now and then: how late are both?"""

    def daemons(mailbox: str) -> list[Daemon]:
        slow = python_daemon("listener.py", "0.01", name="d0")(mailbox)
        writer = [PYTHON, "-I", "-S", str(HERE / "daemons" / "writer.py"), mailbox, "blocks", "0"]
        return [*slow, Daemon("d1", writer)]

    output = Output()
    forwards = isinstance(peer, (peers.SidecarInit, peers.Yardstick))
    late: list[float] = []
    signals: list[float] = []
    with trial(peer, daemons, output=output) as run:
        end = time.monotonic() + 1.0
        sent = next_signal = time.monotonic() + 0.3
        waiting = False
        while (now := time.monotonic()) < end or len(late) < 20:
            data = output.read(0.05)
            output.marks.clear()
            for stamp in SLOW_LINE.findall(data or b""):
                late.append((time.monotonic_ns() - int(stamp)) / 1e9)
            if forwards and not waiting and now >= next_signal:
                sent, waiting = time.monotonic(), True
                run.process.send_signal(signal.SIGHUP)
            if waiting and run.mailbox.has_mail():
                signals.append(int(run.mailbox.lines(1)[0]) / 1e9 - sent)
                waiting, next_signal = False, now + 0.02
    values = {"flood-line": statistics.median(late)}
    return values | ({"flood-signal": statistics.median(signals)} if signals else {})


# -- signals, deaths, restarts -----------------------------------------------------------------------------------


def hup(peer: Peer) -> dict[str, float]:
    """From kill() on PID 1 until the child has the HUP."""
    with trial(peer, python_daemon("listener.py"), pid_1=True) as run:
        init = harness.descendants(run.process.pid)[0]
        seconds = []
        for _ in range(40):
            time.sleep(0.004)
            sent = time.monotonic_ns()
            os.kill(init, signal.SIGHUP)
            seconds.append((int(run.mailbox.lines(1)[0]) - sent) / 1e9)
        return {"hup": statistics.median(seconds)}


def death(peer: Peer) -> dict[str, float]:
    """From the KILL of a daemon until the line that says so is out; an init for one child: until it has exited."""
    seconds = []
    if not peer.supervises:
        for _ in range(5):
            with trial(peer, sleepers(1)) as run:
                time.sleep(0.02)
                sent = time.monotonic()
                os.kill(run.daemons[0], signal.SIGKILL)
                run.process.wait()
                seconds.append(time.monotonic() - sent)
        return {"death": statistics.median(seconds)}
    count = 5 if peer.survives_deaths else 1
    output = Output()
    with trial(peer, sleepers(count), output=output) as run:
        time.sleep(0.3)
        for pid in run.daemons:
            time.sleep(0.02)
            sent = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            output.wait_for(peer.death_words)
            seconds.append(time.monotonic() - sent)
        return {"death": statistics.median(seconds)}


def restart(peer: Peer) -> dict[str, float]:
    """From USR1 (a peer: from the exec of its restart command) until the replacement runs."""
    with trial(peer, sleepers(2)) as run:
        time.sleep(1.3 if peer in peers.C_PEERS else 0.3)  # these do not restart what lived shorter than a second
        sent = time.monotonic()
        if command := peer.restart_command(run.folder, "d0"):
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            run.process.send_signal(signal.SIGUSR1)
        run.daemons.append(int(run.mailbox.lines(1)[0]))
        return {"restart": time.monotonic() - sent}


# -- many --------------------------------------------------------------------------------------------------------


def many(count: int) -> Callable[[Peer], dict[str, float]]:
    """From exec until all run; the supervisors' memory, each shared page counted once; from TERM until all is gone."""

    def sample(peer: Peer) -> dict[str, float]:
        with trial(peer, sleepers(count)) as run:
            started = time.monotonic() - run.started_at
            time.sleep(0.5)  # some still settle
            supervising = run.supervising()
            pss = harness.memory(supervising, "Pss")
            wakes, cpu = _idle(run, 1.0) if count == 500 else (0.0, 0.0)
            sent = time.monotonic()
            run.process.send_signal(peer.stop_signal)
            harness.wait_for_all()
            values = {f"term-{count}": time.monotonic() - sent}
            if count == 500:
                values |= {"start-500": started, "pss-500": pss, "idle-wakes-500": wakes, "idle-cpu-500": cpu}
            return values

    return sample


def orphans(peer: Peer) -> dict[str, float]:
    """From the moment when PID 1 inherits 10,000 dead orphans until none is left."""
    with trial(peer, python_daemon("orphanage.py", "10000"), pid_1=True, reports=False) as run:
        nanoseconds, left = map(int, run.mailbox.lines(1)[0].split())
        return {"orphans": nanoseconds / 1e9, "orphans-left": left}


# -- all of them -------------------------------------------------------------------------------------------------


def _ahead_of(peers_: Sequence[Peer], what: str) -> Target:
    return Target(f"ahead of {what}", 1.0, tuple(peer.name for peer in peers_))


_EVERY_PEER = [*peers.PYTHON_PEERS, *peers.C_PEERS]
_CARRYING = [peer for peer in peers.SUPERVISORS if peer.carries]
_PREFIXING = [peer for peer in _CARRYING if peer.prefixes and peer is not peers.OURS]
_NEVER = Target("0", 0.0)


def _log_measure(name: str, mode: str, count: int, targets: tuple[Target, ...]) -> Measure:
    what = "64 KiB blocks" if mode == "blocks" else "line by line"
    who = "one daemon" if count == 1 else f"{count} daemons"
    filters = [peers.CAT, peers.SED, peers.S6_LOG, peers.LINE_BY_LINE]
    tokens: list[Peer] = [peers.OURS_TOKENS] if mode == "blocks" and count == 1 else []
    ahead = _ahead_of([*_PREFIXING, peers.S6_LOG], "every peer that prefixes lines, and s6-log")
    rows = [
        Row("rate", f"log, {what}, {who}: bytes a second", (*targets, ahead), True),
        Row("cpu", f"log, {what}, {who}: CPU seconds a byte"),
    ]
    carriers = _CARRYING if mode == "blocks" and count == 1 else [peers.OURS, *_PREFIXING]
    return Measure(name, [*carriers, *tokens, *filters], log(mode, count), rows)


def _term_row(count: int) -> Row:
    return Row(f"term-{count}", f"TERM until all is gone, {count} daemons", (_ahead_of(_EVERY_PEER, "every peer"),))


_BLOCKS = (
    Target("at least 0.45 of cat", 0.45, ("cat",)),
    Target("at least twice sed", 2.0, ("sed",)),
    Target("at least 500 times the line-by-line pump", 500.0, ("line-by-line pump",)),
)
_AHEAD_OF_PYTHON = _ahead_of(peers.PYTHON_PEERS, "every Python peer")

MEASURES = [
    Measure("start", [peers.OURS, peers.OURS_TABLE, peers.PASS, *peers.SUPERVISORS[1:], *peers.INITS], start, [
        Row("start", "exec of the supervisor to the first child's exec", (
            Target("at most 2.5 times python3 -I -S -c pass", 2.5, (peers.PASS.name,)), _AHEAD_OF_PYTHON)),
    ]),
    Measure("rss", [peers.OURS, peers.OURS_TABLE, peers.SLEEP, *peers.SUPERVISORS[1:]], rss, [
        Row("rss", "RSS of all supervising processes, five idle daemons", (
            Target("at most 1.25 times a sleeping python3 -I -S", 1.25, (peers.SLEEP.name,)), _AHEAD_OF_PYTHON)),
    ]),
    Measure("idle", peers.SUPERVISORS, idle, [
        Row("idle-wakes", "idle with one daemon: wake-ups a second", (_NEVER,)),
        Row("idle-cpu", "idle with one daemon: share of a CPU", (_NEVER,)),
    ]),
    _log_measure("blocks", "blocks", 1, _BLOCKS),
    _log_measure("blocks-5", "blocks", 5, _BLOCKS),
    _log_measure("lines", "lines", 1, (Target("at least 0.85 of cat", 0.85, ("cat",)),)),
    _log_measure("lines-5", "lines", 5, (Target("at least 0.85 of cat", 0.85, ("cat",)),)),
    Measure("flood", [peers.OURS, peers.NAIVE, peers.PYTHON_PEERS[0]], flood, [
        Row("flood-line", "one daemon floods: how late a line of the other is"),
        Row("flood-signal", "one daemon floods: HUP until the other has it"),
    ]),
    Measure("hup", [peers.OURS, *peers.INITS], hup, [
        Row("hup", "HUP to PID 1 until the child has it", (Target("at most 2.5 times tini", 2.5, ("tini",)),)),
    ], needs_root=True),
    Measure("death", [p for p in [*peers.SUPERVISORS, *peers.INITS] if p.death_words or not p.supervises], death, [
        Row("death", "a daemon's death until its line is out (inits: until they exit)", (
            Target("at most 1 ms", 0.001), Target("at most 2 times tini", 2.0, ("tini",)),
            Target("50 times faster than a 100 ms poll loop", 0.02, (peers.NAIVE.name,)))),
    ]),
    Measure("restart", [peers.OURS, *_EVERY_PEER[:2], *peers.C_PEERS], restart, [
        Row("restart", "USR1 (or the restart command) until the replacement runs", (
            _ahead_of(_EVERY_PEER, "every peer's restart command"),)),
    ]),
    Measure("term-5", peers.SUPERVISORS, many(5), [_term_row(5)]),
    Measure("term-100", peers.SUPERVISORS, many(100), [_term_row(100)]),
    Measure("orphans", [peers.OURS, *peers.INITS], orphans, [
        Row("orphans", "10,000 orphans as PID 1: all reaped", (Target("at most 3 times tini", 3.0, ("tini",)),)),
        Row("orphans-left", "10,000 orphans: left over", (_NEVER,)),
    ], needs_root=True),
    Measure("500", peers.SUPERVISORS, many(500), [
        Row("start-500", "500 daemons: exec until all run", (_ahead_of(_EVERY_PEER, "every peer"),)),
        Row("pss-500", "500 daemons: memory (PSS) of all supervisors", (_ahead_of(_EVERY_PEER, "every peer"),)),
        _term_row(500),
        Row("idle-wakes-500", "idle with 500 daemons: wake-ups a second", (_NEVER,)),
        Row("idle-cpu-500", "idle with 500 daemons: share of a CPU", (_NEVER,)),
    ]),
]  # fmt: skip
