"""What is measured: this supervisor, its peers, and yardsticks. One class for each, which knows how to start it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SCRIPT = str(HERE.parent / "sidecar_init.py")
PYTHON = os.path.realpath(sys.executable)


class Daemon(NamedTuple):
    name: str
    argv: list[str]
    port: int | None = None  # one that it never opens


_built = tempfile.TemporaryDirectory(prefix="bench-programs-")


@cache
def compiled(name: str) -> str:
    """A program of daemons/, built for this run."""
    program = f"{_built.name}/{name}"
    source = str(HERE / "daemons" / f"{name}.c")
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


class Peer(ABC):
    """A supervisor of several daemons, unless a class below says otherwise."""

    name = ""
    form = ""  # of sidecar-init: how it is run
    needs: tuple[str, ...] = ()  # programs that must be found
    python = False  # written in Python: to be beaten in start and memory
    supervises = True
    carries = False  # all output goes through it
    prefixes = False  # and each line gets a name or a time
    log_bytes = 100_000_000  # enough to keep it busy for a fraction of a second
    stop_signal = signal.SIGTERM
    exit_words = b""  # what the line that reports a daemon's exit contains
    survives_exits = True

    def installed(self) -> bool:
        return all(shutil.which(program) for program in self.needs)

    def env(self, folder: Path) -> dict[str, str]:
        return dict(os.environ)

    @abstractmethod
    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        """Writes what configuration it needs into `folder`; returns what to execute."""

    def restart_command(self, folder: Path, name: str) -> list[str]:
        """What an operator would type to restart one daemon; empty: there is no such thing."""
        return []


class SidecarInit(Peer):
    """What an image should run: program and table, baked into one compiled file."""

    name = "sidecar-init"
    form = "baked with its table"
    carries = prefixes = True
    log_bytes = 300_000_000
    exit_words = b" was terminated by SIGKILL"

    def env(self, folder: Path) -> dict[str, str]:
        return {**os.environ, "SIDECAR_INIT_STATE_DIR": str(folder / "state")}

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        table, baked = self._table(folder, daemons), str(folder / "sidecar_init.pyc")
        subprocess.run([PYTHON, "-I", SCRIPT, "bake", "--table", table, baked], check=True, stdout=subprocess.DEVNULL)
        return [PYTHON, "-I", "-S", baked]

    def restart_command(self, folder: Path, name: str) -> list[str]:
        return [PYTHON, "-I", "-S", str(folder / "sidecar_init.pyc"), "restart", name]

    def health_command(self, folder: Path) -> list[str]:
        return [PYTHON, "-I", "-S", str(folder / "sidecar_init.pyc"), "health"]

    @staticmethod
    def _table(folder: Path, daemons: Sequence[Daemon]) -> str:
        table, first = folder / "table.toml", daemons[0].name
        rows = [
            f'[[daemon]]\nname = "{name}"\nargv = {json.dumps(argv)}\n' + (f"port = {port}\n" if port else "")
            for name, argv, port in daemons
        ]
        rows.append(f'[signals]\nHUP = {{ forward = "{first}" }}\nUSR1 = {{ restart = "{first}" }}\n')
        rows.append(f'[secrets]\n"BENCH_TOKEN_" = "{first}"\n')
        table.write_text("\n".join(rows))
        return str(table)


class SidecarInitScript(SidecarInit):
    """What one tries first: Python compiles the script at each start; it then executes itself, baked in memory."""

    name = "sidecar-init as a script"
    form = "script with --table"

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        return [PYTHON, "-I", "-S", SCRIPT, "--table", self._table(folder, daemons)]

    def restart_command(self, folder: Path, name: str) -> list[str]:
        return [PYTHON, "-I", "-S", SCRIPT, "restart", name]

    def health_command(self, folder: Path) -> list[str]:
        return [PYTHON, "-I", "-S", SCRIPT, "health"]


class SidecarInitTokens(SidecarInit):
    """The same, with ten secrets to look for in every line."""

    name = "sidecar-init (10 secrets)"

    def env(self, folder: Path) -> dict[str, str]:
        tokens = {f"BENCH_TOKEN_{i}": f"sk-{i}f3Zq8Lw0Vn5Jt2Rk9Xb7Hd4Gy6Pm1Cs" for i in range(10)}
        return {**super().env(folder), **tokens}


class BundleImage(SidecarInit):
    """The image that SIDECARS_IMAGE names, or `sidecars`: the bundle, with its real daemons."""

    name = "the bundle's image"
    form = "image: baked with the shipped table"
    needs = ("docker",)
    image = os.environ.get("SIDECARS_IMAGE", "sidecars")

    def installed(self) -> bool:
        inspect = ["docker", "image", "inspect", self.image]
        return super().installed() and subprocess.run(inspect, capture_output=True).returncode == 0


class Yardstick(Peer):
    name = "naive design"
    python = carries = prefixes = True
    log_bytes = 1_000_000
    exit_words = b" exited with "

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        (folder / "daemons.json").write_text(json.dumps([daemon[:2] for daemon in daemons]))
        return [PYTHON, "-I", "-S", str(HERE / "yardstick.py"), str(folder / "daemons.json")]


class Supervisord(Peer):
    name = "supervisord"
    needs = ("supervisord", "supervisorctl")
    python = carries = True
    log_bytes = 30_000_000
    exit_words = b"exited: "

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        config = folder / "supervisord.conf"
        sections = [
            f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\nminfds=8192\npidfile={folder}/pid",
            f"[unix_http_server]\nfile={folder}/socket",
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
            f"[supervisorctl]\nserverurl=unix://{folder}/socket",
        ]
        for name, argv, _ in daemons:
            sections.append(
                f"[program:{name}]\ncommand={shlex.join(argv)}\nautorestart=false\nstartsecs=0\n"
                "redirect_stderr=true\nstdout_logfile=/dev/fd/1\nstdout_logfile_maxbytes=0"
            )
        config.write_text("\n\n".join(sections))
        return ["supervisord", "-c", str(config)]

    def restart_command(self, folder: Path, name: str) -> list[str]:
        return ["supervisorctl", "-c", str(folder / "supervisord.conf"), "restart", name]


class Circus(Peer):
    name = "circus"
    needs = ("circusd", "circusctl")
    python = carries = True
    log_bytes = 15_000_000

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        config = folder / "circus.ini"
        sections = [
            f"[circus]\nendpoint=ipc://{folder}/endpoint\npubsub_endpoint=ipc://{folder}/pubsub\nwarmup_delay=0\n"
        ]
        for name, argv, _ in daemons:
            sections.append(
                f"[watcher:{name}]\ncmd={shlex.join(argv)}\ncopy_env=true\nrespawn=false\nwarmup_delay=0\n"
                "stdout_stream.class=StdoutStream\n"
            )
        config.write_text("\n".join(sections))
        return ["circusd", "--log-level", "error", str(config)]

    def restart_command(self, folder: Path, name: str) -> list[str]:
        return ["circusctl", "--endpoint", f"ipc://{folder}/endpoint", "restart", name]


class Honcho(Peer):
    name = "honcho"
    needs = ("honcho",)
    python = carries = prefixes = True
    log_bytes = 2_000_000
    exit_words = b" stopped (rc="
    survives_exits = False

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        (folder / "Procfile").write_text("".join(f"{name}: exec {shlex.join(argv)}\n" for name, argv, _ in daemons))
        return ["honcho", "--no-colour", "-d", str(folder), "-f", str(folder / "Procfile"), "start"]


def _write_run_scripts(folder: Path, daemons: Sequence[Daemon]) -> str:
    for name, argv, _ in daemons:
        service = folder / "services" / name
        service.mkdir(parents=True)
        (service / "run").write_text(f"#!/bin/sh\nexec {shlex.join(argv)}\n")
        (service / "run").chmod(0o755)
    return str(folder / "services")


class S6(Peer):
    name = "s6"
    needs = ("s6-svscan", "s6-supervise", "s6-svc")

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        return ["s6-svscan", "-c", "1000", _write_run_scripts(folder, daemons)]

    def restart_command(self, folder: Path, name: str) -> list[str]:
        return ["s6-svc", "-r", str(folder / "services" / name)]


class Runit(Peer):
    name = "runit"
    needs = ("runsvdir", "runsv", "sv")
    stop_signal = signal.SIGHUP  # TERM would leave every runsv behind

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        return ["runsvdir", _write_run_scripts(folder, daemons)]

    def restart_command(self, folder: Path, name: str) -> list[str]:
        return ["sv", "restart", str(folder / "services" / name)]


class OneChild(Peer):
    """An init for one child: what it does as PID 1 is the limit for those."""

    supervises = False

    def __init__(self, name: str) -> None:
        self.name, self.needs = name, (name,)

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        return [self.name, "--", *daemons[0].argv]


class BarePython(Peer):
    """An interpreter that does nothing: the limit for start and memory."""

    supervises = False

    def __init__(self, name: str, code: str) -> None:
        self.name, self._code = name, code

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        return [PYTHON, "-I", "-S", "-c", self._code]


class Spawner(Peer):
    """Only starts the daemons: what a start of many consists of, without the supervising."""

    supervises = False

    def __init__(self, name: str, code: str = "") -> None:
        self.name, self._code = name, code

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        how = [PYTHON, "-I", "-S", "-c", self._code] if self._code else [compiled("spawner")]
        return [*how, str(len(daemons)), *daemons[0].argv]


class Filter(Peer):
    """A program that all daemons' output is piped through."""

    supervises = False
    carries = True

    def __init__(self, name: str, argv: list[str], log_bytes: int, prefixes: bool) -> None:
        self.name, self.argv, self.needs = name, argv, (argv[0],)
        self.log_bytes, self.prefixes = log_bytes, prefixes

    def env(self, folder: Path) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C"}

    def command(self, folder: Path, daemons: Sequence[Daemon]) -> list[str]:
        writers = " ".join(f"{shlex.join(argv)} &" for _, argv, _ in daemons)
        return ["sh", "-c", f"{{ {writers} wait; }} | exec {shlex.join(self.argv)}"]


LINE_PUMP = (
    "import sys\nout = sys.stdout.buffer\nwith open(0, 'rb', buffering=0) as pipe:\n"
    "    for line in iter(pipe.readline, b''):\n        out.write(b'[x] ' + line)\n        out.flush()"
)
CAT = Filter("cat", ["cat"], 500_000_000, False)
SED = Filter("sed", ["sed", "s/^/[x] /"], 100_000_000, True)
S6_LOG = Filter("s6-log", ["s6-log", "t", "1"], 25_000_000, True)
LINE_BY_LINE = Filter("line-by-line pump", [PYTHON, "-I", "-S", "-c", LINE_PUMP], 1_000_000, True)

SPAWN = (
    "import os, sys, time\nfor _ in range(int(sys.argv[1])):\n    if os.fork() == 0:\n"
    "        os.execv(sys.argv[2], sys.argv[2:])\ntime.sleep(3600)"
)
SPAWNERS: list[Peer] = [Spawner("fork and exec in C"), Spawner("fork and exec in python3", SPAWN)]
ALONE = Spawner("the daemon by itself")

OURS, OURS_SCRIPT, OURS_TOKENS = SidecarInit(), SidecarInitScript(), SidecarInitTokens()
IMAGE = BundleImage()
NAIVE = Yardstick()
PYTHON_PEERS: list[Peer] = [Supervisord(), Circus(), Honcho()]
C_PEERS: list[Peer] = [S6(), Runit()]
SUPERVISORS: list[Peer] = [OURS, NAIVE, *PYTHON_PEERS, *C_PEERS]
INITS: list[Peer] = [OneChild("tini"), OneChild("dumb-init"), OneChild("catatonit")]
PASS = BarePython("python3 -c pass", "pass")
SLEEP = BarePython("sleeping python3", "import time\ntime.sleep(3600)")
