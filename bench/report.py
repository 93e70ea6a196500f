"""Turns samples into ratios: a table for the terminal, RESULTS.md, and a chart."""

from __future__ import annotations

import os
import platform
import statistics
from html import escape

from measures import Measure, Row, Target

Samples = dict[str, dict[str, list[float]]]  # row key -> name of the peer -> one value a round

OURS = "sidecar-init"


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


class Result:
    """One row with what was seen."""

    def __init__(self, row: Row, samples: dict[str, list[float]]) -> None:
        self.row = row
        self.samples = {name: values for name, values in samples.items() if values}
        self.medians = {name: statistics.median(values) for name, values in self.samples.items()}

    def ratios(self) -> dict[str, tuple[float, float, float, int]]:
        """Each peer over ours: of the medians, and of its least and greatest value to our median."""
        ours = self.medians.get(OURS)
        if not ours:
            return {}
        return {
            name: (self.medians[name] / ours, min(values) / ours, max(values) / ours, len(values))
            for name, values in self.samples.items()
        }

    def table(self) -> str:
        better = "More is better." if self.row.more_is_better else "Less is better."
        lines = [f"### {self.row.title[0].upper()}{self.row.title[1:]}", "", better, ""]
        if self.ratios():
            lines += ["| | median | least | greatest | rounds |", "|---|---:|---:|---:|---:|"]
            for name, (ratio, low, high, count) in sorted(self.ratios().items(), key=lambda item: item[1]):
                lines.append(f"| {name} | {number(ratio)} | {number(low)} | {number(high)} | {count} |")
        else:  # ours is 0: there is nothing to divide by
            lines += ["| | median |", "|---|---:|"]
            lines += [f"| {name} | {number(value)} |" for name, value in self.medians.items()]
        return "\n".join([*lines, ""])

    def verdict(self, target: Target) -> tuple[str, str]:
        """Whether the target is reached, and the figure that decides; an empty verdict: nothing to compare with."""
        ours = self.medians.get(OURS)
        others = {name: self.medians[name] for name in target.others if name in self.medians}
        if ours is None or (target.others and not others):
            return "", ""
        if not target.others:
            figure = f"{number(ours / target.factor)} of that" if target.factor else number(ours)
            return ("yes" if ours <= target.factor else "no"), figure
        name, best = (max if self.row.more_is_better else min)(others.items(), key=lambda item: item[1])
        ratio = ours / best if best else float("inf")
        reached = ratio >= target.factor if self.row.more_is_better else ratio <= target.factor
        return ("yes" if reached else "no"), f"{number(ratio)} of {name}"


class Results:
    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[Result] = []

    def add(self, measure: Measure, samples: Samples) -> None:
        """Called after each measure: says at once what came out."""
        for row in measure.rows:
            result = Result(row, samples[row.key])
            self.rows.append(result)
            print(result.table(), flush=True)
            for target in row.targets:
                reached, figure = result.verdict(target)
                if reached:
                    print(f"{target.text}: {reached} ({figure})\n", flush=True)

    def markdown(self) -> str:
        tables = [result.table() for result in self.rows]
        return "\n".join([*self._heading(), self.targets(), "", self.growth(), "## Everybody over ours", "", *tables])

    def _heading(self) -> list[str]:
        return [
            "# Side by side",
            "",
            "Made by `python3 bench/run.py`; do not edit. Every figure is a ratio of medians within this one run, on",
            f"{os.cpu_count()} cores of {platform.machine()}, Linux {'.'.join(platform.release().split('.')[:2])}, "
            f"CPython {platform.python_version()}, {self.rounds} rounds in alternation. Absolute figures",
            "would say more about the machine than about the programs.",
            "",
            "![The chart](results.svg)",
            "",
        ]

    def targets(self) -> str:
        lines = ["## What had to be reached", "", "| measure | target | ours | reached |", "|---|---|---|---|"]
        for result in self.rows:
            for target in result.row.targets:
                reached, figure = result.verdict(target)
                shown = "**no**" if reached == "no" else reached or "not compared: not installed"
                lines.append(f"| {result.row.title} | {target.text} | {figure} | {shown} |")
        return "\n".join(lines)

    def growth(self) -> str:
        """How the end of many grows with their number: at most 1 for each is linear."""
        medians = {result.row.key: result.medians.get(OURS) for result in self.rows}
        five, hundred, most = (medians.get(f"term-{count}") for count in (5, 100, 500))
        if not (five and hundred and most):
            return ""
        each = [number(median / count / (five / 5)) for median, count in ((hundred, 100), (most, 500))]
        return (
            f"For each daemon, TERM until all is gone takes {each[0]} with 100 and {each[1]} with 500 of that with 5.\n"
        )

    def chart(self) -> str:
        panels = [result for key in CHARTED for result in self.rows if result.row.title == key]
        return draw([(r.row.title, r.row.more_is_better, {n: v[0] for n, v in r.ratios().items()}) for r in panels])


CHARTED = (
    "exec of the supervisor to the first child's exec",
    "RSS of all supervising processes, five idle daemons",
    "log, 64 KiB blocks, one daemon: bytes a second",
    "a daemon's death until its line is out (inits: until they exit)",
    "500 daemons: exec until all run",
    "500 daemons: memory (PSS) of all supervisors",
    "TERM until all is gone, 500 daemons",
    "USR1 (or the restart command) until the replacement runs",
)

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 14px; } .note, .figure { fill: #57606a; font-size: 12px; }
.bar { fill: #b6bfc9; } .ours { fill: #0b7285; } .name-ours { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note, .figure { fill: #9aa5b1; } .bar { fill: #4b5563; } .ours { fill: #3bc9db; }
}
"""


def draw(panels: list[tuple[str, bool, dict[str, float]]]) -> str:
    """Two columns of bar charts; linear, cut where the longest would hide the rest."""
    width, column, bar, left, room = 980, 490, 20, 140, 270
    shapes: list[str] = []
    bottoms = [52, 52]
    for title, more, ratios in panels:
        side = 0 if bottoms[0] <= bottoms[1] else 1
        x, y = side * column + 16, bottoms[side] + 18
        hint = "longer is better" if more else "shorter is better"
        shapes.append(f'<text class="title" x="{x}" y="{y}">{escape(title[0].upper() + title[1:])}</text>')
        shapes.append(f'<text class="note" x="{x}" y="{y + 17}">{hint}</text>')
        y += 26
        longest = min(max(ratios.values(), default=1), 12.0 if not more else 4.0)
        for name, ratio in sorted(ratios.items(), key=lambda item: item[1], reverse=more):
            ours = name == OURS
            length = max(2.0, room * min(ratio, longest) / longest)
            text = f"{number(ratio)}x" + (" >" if ratio > longest else "")
            kind = "bar ours" if ours else "bar"
            name_kind = ' class="name-ours"' if ours else ""
            shapes.append(f'<text{name_kind} x="{x + left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
            shapes.append(f'<rect class="{kind}" x="{x + left}" y="{y + 3}" width="{length:.1f}" height="14" rx="2"/>')
            shapes.append(f'<text class="figure" x="{x + left + length + 6:.1f}" y="{y + 14}">{text}</text>')
            y += bar
        bottoms[side] = y + 14
    height = max(bottoms) + 8
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-label="sidecar-init beside its peers">',
        f"<style>{STYLE}</style>",
        '<text class="title" x="16" y="28">sidecar-init = 1; every other bar is a multiple of it</text>',
        *shapes,
        "</svg>",
        "",
    ])  # fmt: skip
