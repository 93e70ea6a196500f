#!/usr/bin/env python3
"""What redaction costs in the worst cases that we could construct: python3 bench/redaction.py

A row is one set of secrets and one kind of data. Figures are milliseconds of CPU time for a block of 64 KiB, which is
what PID 1 reads at once, after as much of an unfinished line as may be kept: the median and the greatest of all runs.
The goal is 20 ms a block, whatever the secrets and the data.
"""

from __future__ import annotations

import importlib
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sidecar_init = importlib.import_module("sidecar_init")

BLOCK, RUNS, GOAL = 65536, 30, 20.0

Case = tuple[str, Sequence[bytes], bytes]


def filled(unit: bytes, ending: bytes = b"\n") -> bytes:
    """A block of repetitions."""
    return (unit * (BLOCK // len(unit) + 1))[: BLOCK - len(ending)] + ending


def cases() -> list[Case]:
    chance = random.Random(7)
    tokens = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz0123456789", k=40)) for _ in range(100)]
    log = b"2026-01-01T00:00:00Z INFO request served path=/health status=200 bytes=1234 after 0.001 s\n"
    numbers = [b"%02d" % number for number in range(100)]
    growing = [b"x" * length for length in range(8, 108)]
    at_the_end = [b"x" * 40 + number for number in numbers]
    at_the_beginning = [number + b"x" * 40 for number in numbers]
    in_the_middle = [b"x" * 50 + number + b"x" * 50 for number in numbers]
    periods = [b"ab" * (500 + length) for length in range(100)]
    of_the_names = [b"redacted", b"EGRESS_TOKEN_", b"EGRESS_TOKEN", b"TOKEN_", b"EGRESS"]
    return [
        ("no secret, an ordinary log", [], filled(log)),
        ("one token, an ordinary log", tokens[:1], filled(log)),
        ("100 tokens, an ordinary log", tokens, filled(log)),
        ("100 tokens, nothing but tokens", tokens, filled(b" ".join(tokens) + b"\n")),
        ("xxxxxxxx, nothing but x", [b"x" * 8], filled(b"x")),
        ("xxxxxxxx, lines of x", [b"x" * 8], filled(b"x" * 80 + b"\n")),
        ("100 of 8 to 107 x, nothing but x", growing, filled(b"x")),
        ("100 of 8 to 107 x, runs of 107 x", growing, filled(b"x" * 107 + b" ")),
        ("100 that differ at the end, nothing but x", at_the_end, filled(b"x", b"99\n")),
        ("100 that differ at the beginning, nothing but x", at_the_beginning, filled(b"x", b"99\n")),
        ("100 that differ in the middle, nearly that", in_the_middle, filled(b"x" * 64 + b"01")),
        ("a period of 2 and 100 KB, the same data", [b"ab" * 50_000], filled(b"ab")),
        ("100 periods of 2 and 1 KB each, the same data", periods, filled(b"ab")),
        ("six bytes, a name of 64, nothing but these", [b"abcdef"], filled(b"abcdef")),
        ("parts of what replaces them, the same data", of_the_names, filled(b"redacted EGRESS_TOKEN_ ")),
    ]


def milliseconds(secrets: Sequence[bytes], block: bytes) -> list[float]:
    """What PID 1 needs to make lines of a block, when as much as possible of an unfinished line came before it."""
    environ = {b"EGRESS_TOKEN_%02d%s" % (number, b"X" * 50): secret for number, secret in enumerate(secrets)}
    redaction = sidecar_init._Secrets(environ, ["EGRESS_TOKEN_"])
    figures = []
    for _ in range(RUNS):
        lines = sidecar_init._Lines(b"[egress] ", redaction, "egress")
        lines.feed(block.replace(b"\n", b" ")[: BLOCK - 1])
        began = time.thread_time()
        lines.feed(block)
        lines.finish()
        figures.append((time.thread_time() - began) * 1000)
    return figures


def main() -> int:
    worst = 0.0
    print(f"{'secrets, data':<52} {'median':>8} {'most':>8}")
    for name, secrets, block in cases():
        figures = milliseconds(secrets, block)
        worst = max(worst, statistics.median(figures))
        print(f"{name:<52} {statistics.median(figures):8.3f} {max(figures):8.3f}")
    print(f"the worst median is {worst:.1f} ms; the goal is {GOAL:g}")
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
