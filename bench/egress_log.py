#!/usr/bin/env python3
"""What egress's log costs: python3 bench/egress_log.py, with mitmdump on PATH or in $MITMDUMP.

Two egress daemons, one with a line for each request and one with lines for refused requests only, answer the same
requests in turns: GETs without a body on kept connections, by way of TLS on both sides. A figure is CPU time of the
daemon for a request; the cost is the ratio of both, turn by turn, which holds for any rate: the goal is 5 %.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
support: Any = importlib.import_module("tests.app.egress_support")

TURNS, REQUESTS, GOAL = 400, 25, 5.0
ROUTES = "routes: [{host: api.example.test, token: EGRESS_TOKEN_A, scheme: Bearer}]"
REQUEST = b"GET /v1/messages HTTP/1.1\r\nHost: api.example.test\r\nAuthorization: placeholder\r\n\r\n"


def cpu_seconds(egress: Any) -> float:
    tasks = Path(f"/proc/{egress.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def turn(egress: Any, tls: Any) -> tuple[float, float]:
    """CPU and wall time of one request, in milliseconds."""
    cpu, wall = cpu_seconds(egress), time.monotonic()
    for _ in range(REQUESTS):
        tls.sendall(REQUEST)
        support.read_response(tls)
    return (cpu_seconds(egress) - cpu) * 1000 / REQUESTS, (time.monotonic() - wall) * 1000 / REQUESTS


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="egress-") as name:
        directory = Path(name)
        upstream = support.Upstream(directory)
        daemons = []
        for mode in ("all", "refused"):
            (directory / mode).mkdir()
            egress = support.Egress(directory / mode, upstream, ROUTES, {"EGRESS_TOKEN_A": "a-token"})
            daemons.append(egress.start(EGRESS_LOG=mode))
        connections = [egress.tls("api.example.test") for egress in daemons]
        try:
            rounds = [[turn(*pair) for pair in zip(daemons, connections, strict=True)] for _ in range(TURNS + 2)][2:]
            lines = daemons[0].log().count(" ms=")
        finally:
            for one in (*connections, *daemons, upstream):
                one.close()
    assert lines == (TURNS + 2) * REQUESTS, f"{lines} lines"
    every, refused = (statistics.median(row[column][0] for row in rounds) for column in (0, 1))
    cost = (statistics.median(row[0][0] / row[1][0] for row in rounds) - 1) * 100
    print(f"{len(rounds)} turns of {REQUESTS} requests each; CPU time of a request, median")
    print(f"  every request logged   {every:.3f} ms, so at most {1000 / every:.0f} a second")
    print(f"  refused ones only      {refused:.3f} ms, so at most {1000 / refused:.0f} a second")
    print(f"  cost of the log        {cost:.1f} % (goal: at most {GOAL:g} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
