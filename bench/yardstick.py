"""The naive design, to measure against: a thread and a readline for each daemon, a loop that polls ten times a second.

Usage: yardstick.py FILE, where FILE holds a JSON list of [name, argv].
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

_stopping = threading.Event()


def pump(name: str, stream: IO[bytes]) -> None:
    prefix = f"[{name}] ".encode()
    for line in iter(stream.readline, b""):
        sys.stdout.buffer.write(prefix + line)
        sys.stdout.buffer.flush()


def start(name: str, argv: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    assert process.stdout
    threading.Thread(target=pump, args=(name, process.stdout), daemon=True).start()
    return process


def stop(_: int, __: FrameType | None) -> None:
    _stopping.set()


def main() -> None:
    daemons = {name: start(name, argv) for name, argv in json.loads(Path(sys.argv[1]).read_text())}
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, lambda _, __: next(iter(daemons.values())).send_signal(signal.SIGHUP))
    exited: set[str] = set()
    while len(exited) < len(daemons):
        time.sleep(0.1)
        if _stopping.is_set():
            for process in daemons.values():
                process.terminate()
        for name, process in daemons.items():
            if name not in exited and process.poll() is not None:
                exited.add(name)
                print(f"{name} exited with {process.returncode}", flush=True)


main()
