"""Turns samples into ratios: a table for the terminal, RESULTS.md, and a chart."""

from __future__ import annotations

import os
import platform
import statistics
from html import escape

from measures import Measure, Row, Target
from peers import OURS as BAKED
from peers import OURS_SCRIPT, OURS_TOKENS, SPAWNERS

Samples = dict[str, dict[str, list[float]]]  # row key -> name of the peer -> one value a round

OURS = BAKED.name
FORMS = (BAKED, OURS_SCRIPT, OURS_TOKENS)


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

    def verdict(self, target: Target) -> tuple[str, str, str]:
        """Whether the target is reached; the ratio that decides, and its least and greatest in one round.

        All empty: there is nothing to compare with.
        """
        ours = self.medians.get(target.ours.name)
        others = {name: self.medians[name] for name in target.others if name in self.medians}
        if ours is None or (target.others and not others):
            return "", "", ""
        if not target.others and not target.factor:
            return ("yes" if ours == 0 else "no"), number(ours), ""
        name, best = "that", target.factor
        rounds = [value / best for value in self.samples[target.ours.name]]
        if others:
            name, best = (max if self.row.more_is_better else min)(others.items(), key=lambda item: item[1])
            pairs = zip(self.samples[target.ours.name], self.samples[name], strict=False)
            rounds = [mine / theirs for mine, theirs in pairs]
        ratio, limit = ours / best, target.factor if others else 1.0
        reached = ratio >= limit if self.row.more_is_better else ratio <= limit
        spread = f"{number(min(rounds))} to {number(max(rounds))}" if rounds else ""
        return ("yes" if reached else "no"), f"{number(ratio)} of {name}", spread


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
                reached, figure, spread = result.verdict(target)
                if reached:
                    print(f"{target.ours.name}, {target.text}: {reached} ({figure}; {spread})\n", flush=True)

    def markdown(self) -> str:
        tables = [result.table() for result in self.rows]
        heading = [*self._heading(), self.targets(), "", self.growth(), self.many()]
        return "\n".join([*heading, "## Everybody over ours", "", *tables])

    def _heading(self) -> list[str]:
        return [
            "# Side by side",
            "",
            "Made by `python3 bench/run.py`; do not edit. Every figure is a ratio of medians within this one run, on",
            f"{os.cpu_count()} cores of {platform.machine()}, Linux {'.'.join(platform.release().split('.')[:2])}, "
            f"CPython {platform.python_version()}, {self.rounds} rounds in alternation. Absolute figures",
            "would say more about the machine than about the programs.",
            "",
            "A figure is for the form of sidecar-init that its row names:",
            "",
            "| | form |",
            "|---|---|",
            *(f"| {peer.name} | {peer.form}; {peer.__doc__} |" for peer in FORMS),
            "",
            "![The chart](results.svg)",
            "",
        ]

    def targets(self) -> str:
        lines = [
            "## What had to be reached",
            "",
            "Ratio: of the medians. From, to: the least and the greatest ratio in one round.",
            "",
            "| measure | form | target | ratio | from, to | reached |",
            "|---|---|---|---|---|---|",
        ]
        for result in self.rows:
            for target in result.row.targets:
                reached, figure, spread = result.verdict(target)
                shown = "**no**" if reached == "no" else reached or "not measured: not installed"
                lines.append(
                    f"| {result.row.title} | {target.ours.form} | {target.text} | {figure} | {spread} | {shown} |"
                )
        return "\n".join(lines)

    def many(self) -> str:
        """What the start of 500 consists of."""
        medians = next((result.medians for result in self.rows if result.row.key == "start-500"), {})
        ours, parts = medians.get(OURS), [medians.get(peer.name) for peer in SPAWNERS]
        if not ours or None in parts:
            return ""
        in_c, in_python = [part / ours for part in parts if part]
        return (
            f"Of the start of 500 daemons, fork and exec by a small program in C take {in_c:.0%}. That it is an "
            f"interpreter that forks, with its page tables to copy, takes {in_python - in_c:.0%}. The remaining "
            f"{1 - in_python:.0%} are the supervisor's own work: for each daemon a pipe, a report of its exec, its "
            "limits and credentials, a log line and an event.\n"
        )

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
