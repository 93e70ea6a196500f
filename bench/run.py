#!/usr/bin/env python3
"""This supervisor and its peers, side by side, in one run: `python3 bench/run.py --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import harness
import report
from measures import MEASURES, Measure
from peers import HERE, Peer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure sidecar-init and the peers that are installed.")
    names = ", ".join(measure.name for measure in MEASURES)
    parser.add_argument("--only", metavar="MEASURE", help=f"one or more of: {names}")
    parser.add_argument("--peers", metavar="A,B", help="only these, besides sidecar-init (cat, tini, s6, ...)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="how often each is run, at most (7)")
    parser.add_argument("--quick", action="store_true", help="one round, and write no files")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    for name in (options.only or "").split(","):
        if name and name not in names.split(", "):
            parser.error(f"cannot measure {name}: there is only {names}")
    return options


def chosen(measure: Measure, wanted: str | None) -> list[Peer]:
    """The installed ones, ours first."""
    names = wanted.split(",") if wanted else None
    return [p for p in measure.peers if p.installed() and (names is None or p is measure.peers[0] or p.name in names)]


def run(measure: Measure, candidates: list[Peer], rounds: int) -> report.Samples:
    """Every candidate in turn, `rounds` times over; one that needs too long is left out from then on."""
    samples: report.Samples = {row.key: {} for row in measure.rows}
    for _ in range(rounds):
        for peer in list(candidates):
            try:
                values = measure.sample(peer)
            except (harness.TooSlow, OSError) as error:
                candidates.remove(peer)
                print(f"    {peer.name}: no figure ({error or 'it took too long'})", flush=True)
                continue
            for key, value in values.items():
                samples[key].setdefault(peer.name, []).append(value)
    return samples


def main() -> int:
    options = arguments()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("cannot go on: ended by SIGTERM"))
    harness.become_subreaper()
    measures = [m for m in MEASURES if not options.only or m.name in options.only.split(",")]
    results = report.Results(options.rounds)
    try:
        for number, measure in enumerate(measures):
            if measure.needs_root and os.geteuid() != 0:
                print(f"cannot measure {measure.name}: it needs a PID namespace; run as root", file=sys.stderr)
                continue
            begun = time.monotonic()
            candidates = chosen(measure, options.peers)
            names = ", ".join(peer.name for peer in candidates)
            print(f"[{number + 1}/{len(measures)}] {measure.name}: {names}", flush=True)
            results.add(measure, run(measure, candidates, min(options.rounds, measure.rounds)))
            print(f"    {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        harness.kill_all()
    print(results.targets(), results.growth(), results.many(), sep="\n\n")
    if not options.quick and not options.only and not options.peers:
        Path(HERE / "RESULTS.md").write_text(results.markdown())
        Path(HERE / "results.svg").write_text(results.chart())
    return 0


if __name__ == "__main__":
    sys.exit(main())
