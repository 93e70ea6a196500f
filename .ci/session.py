#!/usr/bin/env python3
"""Record examples/session.svg: the README's demo in a pseudo-terminal, with the colours that the program prints."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import sys
import tempfile
import time
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = "python3 sidecar_init.py --table examples/demo.toml"
COMMANDS = ("status", "apply config", "restart web", "health")

# The colours of a terminal, by their SGR number: on a light background, and on a dark one.
COLOURS = {
    "31": ("#cf222e", "#ff7b72"),
    "32": ("#1a7f37", "#7ee787"),
    "33": ("#9a6700", "#e3b341"),
    "34": ("#0550ae", "#79c0ff"),
    "35": ("#8250df", "#d2a8ff"),
    "36": ("#1b7c83", "#76e3ea"),
}
TEXT, PAPER, EDGE = ("#24292f", "#d6dde5"), ("#ffffff", "#161b22"), ("#d0d7de", "#30363d")


class Terminal:
    """A command in a terminal of its own, and what it has shown there."""

    def __init__(self, command: str) -> None:
        self.shown = b""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvp(sys.executable, [sys.executable, *shlex.split(command)[1:]])

    def read_until(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + 30
        while len(re.findall(text, self.shown.decode())) < times:
            if time.monotonic() > deadline:
                sys.exit(f"cannot record the session: no {text!r} after 30 s")
            self._read(0.1)

    def interrupt(self) -> None:
        os.write(self._fd, b"\x03")

    def read_to_end(self) -> str:
        while self._read(30):
            pass
        os.waitpid(self._pid, 0)
        return self.shown.decode().replace("\r\n", "\n")

    def _read(self, timeout: float) -> bool:
        try:
            chunk = os.read(self._fd, 65536) if select.select([self._fd], [], [], timeout)[0] else b""
        except OSError:  # the last process that had the terminal open has exited
            chunk = b""
        self.shown += chunk
        return bool(chunk)


def record() -> list[str]:
    """The lines of both terminals, with their escape sequences."""
    second: list[str] = []
    demo = Terminal(DEMO)
    demo.read_until("configuration read")
    demo.read_until("it is ", 2)
    for command in COMMANDS:
        if command == "health":  # not while clock waits for its restart
            demo.read_until("clock started", 2)
        line = f"python3 sidecar_init.py {command}"
        second += [f"\033[1m$ {line}\033[0m", *Terminal(line).read_to_end().splitlines()]
    demo.read_until("it is ", 4)
    demo.interrupt()
    first = [f"\033[1m$ {DEMO}\033[0m", *demo.read_to_end().splitlines()]
    return [*first, "", "\033[2m# meanwhile, in a second terminal\033[0m", *second]


def styled(line: str) -> str:
    """A line's escape sequences as tspans."""
    parts, kind = [], ""
    for piece in re.split(r"(\033\[[\d;]*m)", line):
        if found := re.fullmatch(r"\033\[([\d;]*)m", piece):
            kind = "" if found[1] == "0" else found[1]
        elif piece:
            parts.append(f'<tspan class="c{kind}">{escape(piece)}</tspan>' if kind else escape(piece))
    return "".join(parts)


def style(theme: int) -> str:
    rules = [f"text{{fill:{TEXT[theme]}}}", f"rect{{fill:{PAPER[theme]};stroke:{EDGE[theme]}}}"]
    rules += [f".c{number}{{fill:{colours[theme]}}}" for number, colours in COLOURS.items()]
    return "".join(rules)


def draw(lines: list[str]) -> str:
    height, columns = 19, max(len(re.sub(r"\033\[[\d;]*m", "", line)) for line in lines)
    size = 40 + columns * 8, 32 + height * len(lines)
    texts = [
        f'<text x="20" y="{30 + height * number}" xml:space="preserve">{styled(line)}</text>'
        for number, line in enumerate(lines)
        if line
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="A terminal'
        ' session: three daemons start, log, are reloaded, restarted and stopped">',
        "<style>text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}"
        f".c1{{font-weight:bold}}.c2{{opacity:.7}}{style(0)}@media(prefers-color-scheme:dark){{{style(1)}}}</style>",
        f'<rect x=".5" y=".5" width="{size[0] - 1}" height="{size[1] - 1}" rx="8"/>',
        *texts,
        "</svg>",
        "",
    ])  # fmt: skip


def main() -> None:
    os.chdir(ROOT)
    os.environ.pop("NO_COLOR", None)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["SIDECAR_INIT_STATE_DIR"] = directory
        lines = record()
    Path("examples/session.svg").write_text(draw(lines))


if __name__ == "__main__":
    main()
