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
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import harness
import peers
from harness import Mailbox, Output
from peers import HERE, PYTHON, Daemon, Peer, SidecarInit, compiled


class Target(NamedTuple):
    """The figure of `ours`, less that of `less`, must be at most (for a rate: at least) `factor` times the best of
    `others`.
    """

    text: str
    factor: float
    others: tuple[str, ...] = ()  # none: `factor` is the figure itself
    ours: SidecarInit = peers.OURS
    less: str = ""


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
    rounds: int = 99  # at most: some take long, and vary little


DaemonsOf = Callable[[str], list[Daemon]]  # given the path of the mailbox
TMPFS = "/dev/shm"
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
    peer: Peer,
    daemons: DaemonsOf,
    *,
    output: Output | None = None,
    pid_1: bool = False,
    reports: bool = True,
    place: str | None = None,
) -> Iterator[Trial]:
    """A peer with daemons that have all reported. On leaving, nothing of it is left."""
    with TemporaryDirectory(prefix="bench-", dir=place) as name, harness.patience():
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
    """Daemons that report once they run, and sleep."""
    return lambda mailbox: [Daemon(f"d{i}", [compiled("sleeper"), mailbox]) for i in range(count)]


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

        def writers(mailbox: str) -> list[Daemon]:
            return [Daemon(f"d{i}", [compiled("writer"), mailbox, mode, str(size)]) for i in range(count)]

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


def flood(mode: str) -> Callable[[Peer], dict[str, float]]:
    """One daemon floods, another writes a line each 10 ms and gets a HUP now and then: how late are both?"""

    def daemons(mailbox: str) -> list[Daemon]:
        slow = python_daemon("listener.py", "0.01", name="d0")(mailbox)
        return [*slow, Daemon("d1", [compiled("writer"), mailbox, mode, "0"])]

    return lambda peer: _flood(peer, daemons, mode)


def _flood(peer: Peer, daemons: DaemonsOf, mode: str) -> dict[str, float]:
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
    values = {f"flood-line-{mode}": statistics.median(late)}
    return values | ({f"flood-signal-{mode}": statistics.median(signals)} if signals else {})


# -- signals, exits, restarts ------------------------------------------------------------------------------------


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


def exit_line(peer: Peer) -> dict[str, float]:
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
        return {"exit": statistics.median(seconds)}
    count = 5 if peer.survives_exits else 1
    output = Output()
    with trial(peer, sleepers(count), output=output) as run:
        time.sleep(0.3)
        for pid in run.daemons:
            time.sleep(0.02)
            sent = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            output.wait_for(peer.exit_words)
            seconds.append(time.monotonic() - sent)
        return {"exit": statistics.median(seconds)}


def restart(peer: Peer) -> dict[str, float]:
    """From USR1 (a peer: from the exec of its restart command) until the replacement runs; the same for signal 34+n."""
    if peer is peers.ALONE:
        return {"restart-row": _stop_and_start()}
    with trial(peer, sleepers(2)) as run:
        time.sleep(1.3 if peer in peers.C_PEERS else 0.3)  # these do not restart what ran for less than a second
        if not isinstance(peer, SidecarInit):
            sent = time.monotonic()
            _spawn(peer.restart_command(run.folder, "d0"))
            run.daemons.append(int(run.mailbox.lines(1)[0]))
            return {"restart": time.monotonic() - sent}
        values = {}
        for key, number in (("restart", signal.SIGUSR1), ("restart-row", 34 + 1)):
            sent = time.monotonic()
            run.process.send_signal(number)
            run.daemons.append(int(run.mailbox.lines(1)[0]))
            values[key] = time.monotonic() - sent
            time.sleep(0.05)
        return values


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null)


def _stop_and_start() -> float:
    """What a stop and a start take the daemon by itself."""
    with TemporaryDirectory(prefix="bench-") as name, harness.patience():
        mailbox = Mailbox(Path(name))
        try:
            process = _spawn([compiled("sleeper"), mailbox.path])
            mailbox.lines(1)
            sent = time.monotonic()
            process.terminate()
            process.wait()
            _spawn([compiled("sleeper"), mailbox.path])
            mailbox.lines(1)
            return time.monotonic() - sent
        finally:
            harness.kill_all()
            mailbox.close()


def commands(peer: Peer) -> dict[str, float]:
    """From the exec of a command to its exit: `health`, and `restart NAME`; a bare interpreter beside them."""
    if isinstance(peer, peers.BarePython):
        once = _seconds_of(peer.command(Path(), []), {})
        return {"health": once, "restart-command": once}
    assert isinstance(peer, SidecarInit)
    with trial(peer, sleepers(5)) as run:
        time.sleep(0.3)
        environment = peer.env(run.folder)
        health = _seconds_of(peer.health_command(run.folder), environment)
        return {"health": health, "restart-command": _seconds_of(peer.restart_command(run.folder, "d1"), environment)}


def _seconds_of(command: list[str], environment: dict[str, str]) -> float:
    began = time.monotonic()
    subprocess.run(command, env=environment or None, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


# -- the bundle's image ------------------------------------------------------------------------------------------


def healthy(peer: Peer) -> dict[str, float]:
    """From the start of the container until it is healthy, which is what `compose up --wait` waits for.

    Less what egress, the slowest to start, takes when it is the only daemon.
    """
    with _container("--env", "BOT_BOTTLE_SIDECAR_DAEMONS=egress") as name, harness.patience():
        while not (alone := READY.findall(_docker("logs", name))):
            time.sleep(0.2)
    with _container() as name, harness.patience():
        while not (end := HEALTHY.findall(checks := _docker("inspect", "--format", CHECKS, name))):
            time.sleep(0.2)
    seconds = (datetime.fromisoformat(end[0]) - datetime.fromisoformat(checks.split()[0])).total_seconds()
    return {"healthy": seconds - float(alone[0])}


READY = re.compile(r"egress ready after ([\d.]+) s")
CHECKS = "{{.State.StartedAt}}{{range .State.Health.Log}} {{.ExitCode}} {{json .End}}{{end}}"
HEALTHY = re.compile(r' 0 "(.*?)"')


@contextmanager
def _container(*options: str) -> Iterator[str]:
    name = f"bench-{os.getpid()}"
    _docker("run", "--detach", "--network", "none", "--name", name, *options, peers.IMAGE.image)
    try:
        yield name
    finally:
        _docker("rm", "--force", name)


def _docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout


# -- ports -------------------------------------------------------------------------------------------------------


def ports(count: int) -> Callable[[Peer], dict[str, float]]:
    """With daemons that never open their ports: the CPU of PID 1; how long a HUP and the TERM take to the first."""

    def daemons(mailbox: str) -> list[Daemon]:
        rows = [*python_daemon("listener.py", name="d0")(mailbox), *sleepers(count)(mailbox)[1:]]
        return [daemon._replace(port=1 + i) for i, daemon in enumerate(rows)]

    def sample(peer: Peer) -> dict[str, float]:
        with trial(peer, daemons) as run:
            time.sleep(0.5)
            _, cpu = _idle(run, 2.0)
            hups = [_answer(run, signal.SIGHUP) for _ in range(20)]
            values = {f"ports-hup-{count}": max(hups), f"ports-term-{count}": _answer(run, signal.SIGTERM)}
            return {f"ports-cpu-{count}": cpu, **values}

    return sample


def _answer(run: Trial, number: int) -> float:
    """Until the listener says that it has this signal; the pauses between two have all lengths."""
    time.sleep(0.01 + time.monotonic() % 0.01)
    sent = time.monotonic_ns()
    run.process.send_signal(number)
    return (int(run.mailbox.lines(1)[0]) - sent) / 1e9


# -- many --------------------------------------------------------------------------------------------------------


def many(count: int) -> Callable[[Peer], dict[str, float]]:
    """From exec until all run; the supervisors' memory, each shared page counted once; from TERM until all is gone."""

    def sample(peer: Peer) -> dict[str, float]:
        with trial(peer, sleepers(count)) as run:
            started = time.monotonic() - run.started_at
            if isinstance(peer, peers.Spawner):
                return {f"start-{count}": started}
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


def many_in_memory(peer: Peer) -> dict[str, float]:
    """The same two times with 500, if all that is written is on a tmpfs, as `/run` of a container may be."""
    values = {}
    with trial(peer, sleepers(500), place=TMPFS) as run:
        values["start-500-tmpfs"] = time.monotonic() - run.started_at
        time.sleep(0.5)
        sent = time.monotonic()
        run.process.send_signal(peer.stop_signal)
        harness.wait_for_all()
        return values | {"term-500-tmpfs": time.monotonic() - sent}


def orphans(peer: Peer) -> dict[str, float]:
    """From the moment when PID 1 inherits 10,000 zombies until none is left."""
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
_CAT, _NAIVE, _TINI = ("cat",), (peers.NAIVE.name,), ("tini",)


def _log_measure(mode: str, count: int, targets: tuple[Target, ...], cpu: tuple[Target, ...] = ()) -> Measure:
    name = mode if count == 1 else f"{mode}-{count}"
    what = "64 KiB blocks" if mode == "blocks" else "line by line"
    who = "one daemon" if count == 1 else f"{count} daemons"
    filters = [peers.CAT, peers.SED, peers.S6_LOG, peers.LINE_BY_LINE]
    secrets: list[Peer] = [peers.OURS_TOKENS] if mode == "blocks" else []
    ahead = _ahead_of([*_PREFIXING, peers.S6_LOG], "every peer that prefixes lines, and s6-log")
    rows = [
        Row("rate", f"log, {what}, {who}: bytes a second", (*targets, ahead), True),
        Row("cpu", f"log, {what}, {who}: CPU seconds a byte", cpu),
    ]
    carriers = _CARRYING if mode == "blocks" and count == 1 else [peers.OURS, *_PREFIXING]
    return Measure(name, [*carriers, *secrets, *filters], log(mode, count), rows)


def _term_row(count: int, *targets: Target) -> Row:
    title = f"TERM until all is gone, {count} daemons"
    return Row(f"term-{count}", title, (*targets, _ahead_of(_EVERY_PEER, "every peer")))


def _ports_measure(count: int, share: float) -> Measure:
    who = f"{count} daemons whose ports never open"
    soon = (Target("at most 20 ms", 0.02),)
    return Measure(f"ports-{count}", [peers.OURS], ports(count), [
        Row(f"ports-cpu-{count}", f"{who}: share of a CPU", (Target(f"at most {share:.0%}", share),)),
        Row(f"ports-hup-{count}", f"{who}: the slowest of 20 HUPs until the first has it", soon),
        Row(f"ports-term-{count}", f"{who}: TERM until the first has it", soon),
    ])  # fmt: skip


def _flood_measure(name: str, mode: str, what: str) -> Measure:
    return Measure(name, [peers.OURS, peers.NAIVE, peers.PYTHON_PEERS[0]], flood(mode), [
        Row(f"flood-line-{mode}", f"one daemon floods {what}: how late a line of the other is"),
        Row(f"flood-signal-{mode}", f"one daemon floods {what}: HUP until the other has it", (
            Target("at most 1 ms", 0.001),)),
    ])  # fmt: skip


def _blocks(share: float, with_secrets: float) -> tuple[Target, ...]:
    return (
        Target(f"at least {share:g} of cat", share, _CAT),
        Target(f"with ten secrets at least {with_secrets:g} of cat", with_secrets, _CAT, peers.OURS_TOKENS),
        Target("at least twice sed", 2.0, ("sed",)),
        Target("at least 500 times the line-by-line pump", 500.0, ("line-by-line pump",)),
    )


_AHEAD_OF_PYTHON = _ahead_of(peers.PYTHON_PEERS, "every Python peer")
_LINES = (Target("at least 0.85 of cat", 0.85, _CAT),)
_LINES_CPU = (Target("at most 0.8 of cat", 0.8, _CAT),)

MEASURES = [
    Measure("start", [peers.OURS, peers.OURS_SCRIPT, peers.PASS, *peers.SUPERVISORS[1:], *peers.INITS], start, [
        Row("start", "exec of the supervisor to the first child's exec", (
            Target("at most 2 times python3 -I -S -c pass", 2.0, (peers.PASS.name,)),
            Target("at most half of the naive design", 0.5, _NAIVE), _AHEAD_OF_PYTHON,
            Target("at most 1.5 times the naive design", 1.5, _NAIVE, peers.OURS_SCRIPT))),
    ]),
    Measure("rss", [peers.OURS, peers.OURS_SCRIPT, peers.SLEEP, *peers.SUPERVISORS[1:]], rss, [
        Row("rss", "RSS of all supervising processes, five idle daemons", (
            Target("at most 1.2 times a sleeping python3 -I -S", 1.2, (peers.SLEEP.name,)), _AHEAD_OF_PYTHON,
            Target("at most 1.25 times the naive design", 1.25, _NAIVE, peers.OURS_SCRIPT))),
    ]),
    Measure("idle", peers.SUPERVISORS, idle, [
        Row("idle-wakes", "idle with one daemon: wake-ups a second", (_NEVER,)),
        Row("idle-cpu", "idle with one daemon: share of a CPU", (_NEVER,)),
    ]),
    _log_measure("blocks", 1, _blocks(0.6, 0.5)),
    _log_measure("blocks", 5, _blocks(0.7, 0.55)),
    _log_measure("lines", 1, _LINES, _LINES_CPU),
    _log_measure("lines", 5, _LINES),
    _flood_measure("flood", "blocks", "in blocks"),
    _flood_measure("chatter", "lines", "line by line"),
    Measure("hup", [peers.OURS, *peers.INITS], hup, [
        Row("hup", "HUP to PID 1 until the child has it", (Target("at most 2.5 times tini", 2.5, _TINI),)),
    ], needs_root=True),
    Measure("exit", [p for p in [*peers.SUPERVISORS, *peers.INITS] if p.exit_words or not p.supervises], exit_line, [
        Row("exit", "a daemon's exit until its line is out (inits: until they exit)", (
            Target("at most 1 ms", 0.001), Target("at most 2 times tini", 2.0, _TINI),
            Target("50 times faster than a 100 ms poll loop", 0.02, _NAIVE))),
    ]),
    Measure("restart", [peers.OURS, *_EVERY_PEER[:2], *peers.C_PEERS, peers.ALONE], restart, [
        Row("restart", "USR1 (or the restart command) until the replacement runs", (
            _ahead_of(_EVERY_PEER, "every peer's restart command"),)),
        Row("restart-row", "signal 34+n until the replacement runs", (
            Target("at most 5 ms more than the daemon's own stop and start", 0.005, less=peers.ALONE.name),)),
    ]),
    Measure("commands", [peers.OURS, peers.OURS_SCRIPT, peers.PASS], commands, [
        Row("health", "health, exec to exit", (Target("at most 60 ms", 0.06),)),
        Row("restart-command", "restart NAME, exec to exit", (Target("at most 80 ms", 0.08),)),
    ]),
    Measure("healthy", [peers.IMAGE], healthy, [
        Row("healthy", "container's start until healthy, beyond what its slowest daemon takes alone", (
            Target("at most 1 s", 1.0, (), peers.IMAGE),)),
    ], rounds=5),
    _ports_measure(5, 0.03),
    _ports_measure(500, 0.05),
    Measure("term-5", peers.SUPERVISORS, many(5), [_term_row(5, Target("at most 0.9 of s6", 0.9, ("s6",)))]),
    Measure("term-100", peers.SUPERVISORS, many(100), [_term_row(100)], rounds=3),
    Measure("orphans", [peers.OURS, *peers.INITS], orphans, [
        Row("orphans", "10,000 orphans as PID 1: all reaped", (Target("at most 3 times tini", 3.0, _TINI),)),
        Row("orphans-left", "10,000 orphans: left over", (_NEVER,)),
    ], needs_root=True),
    Measure("500", [*peers.SUPERVISORS, *peers.SPAWNERS], many(500), [
        Row("start-500", "500 daemons: exec until all run", (
            Target("at most 0.6 of s6", 0.6, ("s6",)), _ahead_of(_EVERY_PEER, "every peer"))),
        Row("pss-500", "500 daemons: memory (PSS) of all supervisors", (_ahead_of(_EVERY_PEER, "every peer"),)),
        _term_row(500),
        Row("idle-wakes-500", "idle with 500 daemons: wake-ups a second", (_NEVER,)),
        Row("idle-cpu-500", "idle with 500 daemons: share of a CPU", (_NEVER,)),
    ], rounds=5),
    Measure("500-tmpfs", [peers.OURS, *peers.C_PEERS], many_in_memory, [
        Row("start-500-tmpfs", "500 daemons, all files on a tmpfs: exec until all run"),
        Row("term-500-tmpfs", "TERM until all is gone, 500 daemons, all files on a tmpfs"),
    ], rounds=3),
]  # fmt: skip
