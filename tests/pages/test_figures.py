"""The README's figures are those of bench/RESULTS.md. If they are not, the test prints the table to paste."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.support import ROOT

ROWS = {  # heading in bench/RESULTS.md: what the README calls it
    "Exec of the supervisor to the first child's exec": "start: exec to the first daemon's exec",
    "RSS of all supervising processes, five idle daemons": "memory with five idle daemons (RSS)",
    "USR1 (or the restart command) until the replacement runs": "restart: request to the new daemon's exec",
    "TERM until all is gone, 5 daemons": "shutdown of five daemons",
    "10,000 orphans as PID 1: all reaped": "10,000 orphans reaped",
    "Log, 64 KiB blocks, one daemon: bytes a second": "log: bytes a second (**more** is better)",
}
COLUMNS = {  # name in bench/RESULTS.md: what the README calls it
    "sidecar-init": "baked",
    "sidecar-init as a script": "script with a table",
    "tini": "tini",
    "s6": "s6",
    "runit": "runit",
    "supervisord": "supervisord",
}


def medians() -> dict[str, dict[str, str]]:
    """For each heading of RESULTS.md, the median of each program; s6-log counts as s6."""
    found: dict[str, dict[str, str]] = {}
    for section in (ROOT / "bench" / "RESULTS.md").read_text().split("\n### ")[1:]:
        heading, _, text = section.partition("\n")
        rows = re.findall(r"^\| ([^|]+?) \| ([\d.,e-]+) \|", text, re.MULTILINE)
        found[heading] = {name.removesuffix("-log"): figure for name, figure in rows}
    return found


def figures() -> str:
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * len(COLUMNS)]
    for heading, label in ROWS.items():
        cells = [medians()[heading].get(name, "-") for name in COLUMNS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Figures(unittest.TestCase):
    def test_the_readme_has_the_medians_of_the_results(self) -> None:
        is_there = figures() in (ROOT / "README.md").read_text()
        self.assertTrue(is_there, f"this is not in README.md:\n\n{figures()}\n")

    def test_the_chart_is_drawn_from_the_results(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            for name in ("report.py", "measures.py", "peers.py", "harness.py", "RESULTS.md"):
                shutil.copy(ROOT / "bench" / name, directory)
            subprocess.run([sys.executable, f"{directory}/report.py"], check=True)
            drawn = Path(directory, "results.svg").read_text()
        self.assertTrue(drawn == (ROOT / "bench" / "results.svg").read_text(), "run python3 bench/report.py")
        self.assertEqual(drawn.count("of the line is better"), 8)


if __name__ == "__main__":
    unittest.main()
