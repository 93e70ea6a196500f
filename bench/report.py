"""Turns samples into ratios: a table for the terminal, RESULTS.md, and a chart."""

from __future__ import annotations

import math
import os
import platform
import statistics
from html import escape
from pathlib import Path

from measures import Measure, Row, Target
from peers import IMAGE, OURS_SCRIPT, OURS_TOKENS, SPAWNERS
from peers import OURS as BAKED

Samples = dict[str, dict[str, list[float]]]  # row key -> name of the peer -> one value a round

OURS = BAKED.name
FORMS = (BAKED, OURS_TOKENS, OURS_SCRIPT, IMAGE)


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def missing(target: Target) -> str:
    """Why a target could not be compared."""
    if target.ours is IMAGE and not IMAGE.installed():
        return f"no Docker, or no image {IMAGE.image}"
    return "what it is compared with is not installed"


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
        ours -= self.medians.get(target.less, 0.0)
        mine = self.samples[target.ours.name]
        less = self.samples.get(target.less, [0.0] * len(mine))
        rounds = [(value - its) / best for value, its in zip(mine, less, strict=False)]
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
        return "\n".join([*heading, "## Every program, as a multiple of sidecar-init", "", *tables])

    def _heading(self) -> list[str]:
        return [
            "# Side by side",
            "",
            "Made by `python3 bench/run.py`; do not edit. Every figure is a ratio of medians within this one run, on",
            f"{os.cpu_count()} cores of {platform.machine()}, Linux {'.'.join(platform.release().split('.')[:2])}, "
            f"CPython {platform.python_version()}, at most {self.rounds} rounds in alternation. Absolute figures",
            "would say more about the machine than about the programs.",
            "",
            "Each figure is for one form of sidecar-init. No figure is for the module imported from source.",
            "",
            "| | form | |",
            "|---|---|---|",
            *(f"| {peer.name} | {peer.form} | {peer.__doc__} |" for peer in FORMS),
            "",
            "![The chart](results.svg)",
            "",
        ]

    def targets(self) -> str:
        lines = [
            "## Targets",
            "",
            'The ratio is that of the medians; "from, to" are the least and the greatest ratio in one round.',
            "",
            "| measure | form | target | ratio | from, to | reached |",
            "|---|---|---|---|---|---|",
        ]
        for result in self.rows:
            for target in result.row.targets:
                reached, figure, spread = result.verdict(target)
                shown = "**no**" if reached == "no" else reached or f"not measured: {missing(target)}"
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
            f"Of the time to start 500 daemons, fork and exec by a small program in C take {in_c:.0%}. Forking from an "
            f"interpreter, with its page tables to copy, adds {in_python - in_c:.0%}. The remaining "
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
            f"Per daemon, TERM until all is gone takes {each[0]} times as long with 100 daemons as with 5, "
            f"and {each[1]} times as long with 500.\n"
        )

    def chart(self) -> str:
        return chart(self.markdown())


CHARTED = (
    "exec of the supervisor to the first child's exec",
    "RSS of all supervising processes, five idle daemons",
    "log, 64 KiB blocks, one daemon: bytes a second",
    "a daemon's exit until its line is out (inits: until they exit)",
    "500 daemons: exec until all run",
    "500 daemons: memory (PSS) of all supervisors",
    "TERM until all is gone, 500 daemons",
    "USR1 (or the restart command) until the replacement runs",
)

# Colours on a light background, and on a dark one. Each shape has its light colour as an attribute, too, because some
# renderers know no media query.
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "text": ("#24292f", "#e6edf3"),
    "note": ("#57606a", "#9aa5b1"),
    "grid": ("#d8dee4", "#30363d"),
    "ours": ("#0b7285", "#3bc9db"),
    "ahead": ("#bc4c00", "#f0883e"),
    "behind": ("#8c959f", "#6e7681"),
}
LEGEND = (
    "sidecar-init, baked, is 1 (the vertical line). Every bar shows the multiple of it: a median of one run.",
    "The scale is logarithmic: each grid line is ten times the one to its left.",
    "naive design: a thread and a readline for each daemon, and a loop that polls ten times a second (yardstick.py).",
)


def chart(markdown: str) -> str:
    """The chart of what RESULTS.md says."""
    tables: dict[str, tuple[bool, dict[str, float]]] = {}
    for section in markdown.split("\n### ")[1:]:
        heading, _, text = section.partition("\n")
        cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
        tables[heading] = "More is better." in text, {row[0]: float(row[1].replace(",", "")) for row in cells}
    headings = [title[0].upper() + title[1:] for title in CHARTED]
    return draw([(heading, *tables[heading]) for heading in headings if heading in tables])


def shape(name: str, kind: str, content: str = "", **attributes: object) -> str:
    """An element of the colour `kind`."""
    if name == "text":
        attributes["font-family"] = "system-ui, 'DejaVu Sans', sans-serif"
    pairs = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f'<{name} class="{kind}" fill="{COLOURS[kind][0]}"{pairs}>{escape(content)}</{name}>'


def draw(panels: list[tuple[str, bool, dict[str, float]]]) -> str:
    """Two columns of bar charts with a logarithmic scale each: nothing is cut off."""
    width, column, line, left, room = 980, 490, 20, 190, 200
    shapes: list[str] = []
    bottoms = [84, 84]
    for title, more, ratios in panels:
        side = 0 if bottoms[0] <= bottoms[1] else 1
        x, y = side * column + 20, bottoms[side] + 18
        hint = "right of the line is better" if more else "left of the line is better"
        shapes.append(shape("text", "text", title, x=x, y=y, font_size=13, font_weight="bold"))
        shapes.append(shape("text", "note", hint, x=x, y=y + 17, font_size=12))
        y += 26
        low = math.floor(min(math.log10(min(ratios.values())), -0.01))
        high = math.ceil(max(math.log10(max(ratios.values())), 0.01))

        def place(ratio: float, start: float = x + left, low: int = low, high: int = high) -> float:
            return start + room * (math.log10(ratio) - low) / (high - low)

        bottom = y + line * len(ratios)
        for power in range(low, high + 1):
            kind, thickness = ("ours", 2) if power == 0 else ("grid", 1)
            at = place(10.0**power)
            shapes.append(shape("rect", kind, x=round(at, 1), y=y, width=thickness, height=bottom - y))
            label = f"{10.0**power:g}"
            shapes.append(
                shape("text", "note", label, x=round(at, 1), y=bottom + 13, font_size=11, text_anchor="middle")
            )
        for name, ratio in sorted(ratios.items(), key=lambda item: item[1], reverse=more):
            is_ours = name == OURS
            kind = "ours" if is_ours else "ahead" if (ratio > 1) == more and ratio != 1 else "behind"
            ends = sorted((place(1), place(ratio)))
            weight = "bold" if is_ours else "normal"
            words = {"y": y + 14, "font_size": 13, "font_weight": weight, "text_anchor": "end"}
            shapes.append(shape("text", "text", name, x=x + left - 14, **words))
            shapes.append(shape(
                "rect", kind, x=round(ends[0], 1), y=y + 4, width=max(2.0, round(ends[1] - ends[0], 1)), height=12,
            ))  # fmt: skip
            shapes.append(shape("text", "note", number(ratio), x=x + left + room + 62, **words))
            y += line
        bottoms[side] = bottom + 28
    height = max(bottoms) + 8
    legend = [shape("text", "text" if i == 0 else "note", text, x=20, y=26 + 19 * i, font_size=13)
              for i, text in enumerate(LEGEND)]  # fmt: skip
    for x, kind, text in ((700, "ahead", "ahead of sidecar-init"), (862, "behind", "behind it")):
        legend.append(shape("rect", kind, x=x, y=34, width=12, height=12))
        legend.append(shape("text", "note", text, x=x + 18, y=45, font_size=13))
    dark = "".join(f".{kind}{{fill:{colours[1]}}}" for kind, colours in COLOURS.items())
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        ' aria-label="sidecar-init and other supervisors, as multiples of sidecar-init">',
        f"<style>@media(prefers-color-scheme:dark){{{dark}}}</style>",
        shape("rect", "paper", x=0, y=0, width=width, height=height),
        *legend,
        *shapes,
        "</svg>",
        "",
    ])  # fmt: skip


if __name__ == "__main__":  # draw the chart of RESULTS.md again
    here = Path(__file__).resolve().parent
    (here / "results.svg").write_text(chart((here / "RESULTS.md").read_text()))
