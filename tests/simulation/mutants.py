"""Supervisors with a mistake in them, each of which the simulation must find.

A mutant is the module's source with a place or two changed. If such a place is not there any more, `source` fails:
then find the place where the same mistake would be made now.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from tests.simulation.histories import Scenario, random_scenario
from tests.simulation.kernel import Kernel, Violation, load

SOURCE = Path(__file__).parents[2] / "sidecar_init.py"

# What is wrong: what the source says, and what the mutant says instead.
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "an exit that is noticed after giving up restarts a daemon during the shutdown": [
        ("self.history.report(\"stopped\", \"\")\n",
         "self.history.report(\"stopped\", \"\")\n        yield _STOPPED\n        yield from self._start(False)\n"),
    ],
    "a start in backoff is forgotten when a restart is asked for": [
        ("            if (yield self._enter(state, until)):\n",
         "            if (yield self._enter(state, until)) and (yield self._enter(_EXITED)):\n"),
    ],
    "a replacement does not wait for the group": [
        ("            if is_reported and not process.signal_group(0):\n",
         "            if is_reported:\n                process.is_group_gone = True\n"),
    ],
    "an exit is attributed to a pid that was used again": [
        ("        self.children[pid] = process, owner\n", "        self.children.setdefault(pid, (process, owner))\n"),
        ("self.children.pop(pid, (None, None))", "self.children.get(pid, (None, None))"),
    ],
    "a deadline does not lower the loop's": [
        ("min((self._write_by, *(daemon.deadline for daemon in self._daemons)))",
         "max((daemon.deadline for daemon in self._daemons), default=_NEVER)"),
    ],
    "a check repeats for ever": [
        ("for _ in range(2):\n            if not repeat or", "for _ in range(99):\n            if not repeat or"),
    ],
    "a line is split by the end of a check": [
        ("            finally:\n                check.close()\n",
         "            finally:\n                check.close()\n"
         "                self.output._put(self.output.lines.finish())\n"),
    ],
    "a secret that is cut at a read is not seen": [
        ("raw, text = text, self._secrets.redact(text)", "raw = text"),
        ("data, newline = self._tail + chunk, b\"\"",
         "data, newline = self._tail + self._secrets.redact(chunk), b\"\""),
    ],
    "a daemon in backoff is not told of the shutdown": [
        ("        if self.state not in _ENDED:\n", "        if self.state not in (*_ENDED, _BACKOFF):\n"),
    ],
    "an exit is reported twice": [
        ("        is_reported = process.returncode is not None\n", "        is_reported = False\n"),
    ],
    "what does not fit into one write is lost": [
        ("                del self._buffer[:written]\n", "                self._buffer.clear()\n"),
    ],
    "a grace is too short": [("_GRACE_SECONDS = 8.0", "_GRACE_SECONDS = 7.5")],
    "a grace is too long": [("_GRACE_SECONDS = 8.0", "_GRACE_SECONDS = 8.5")],
    "a wait for others is too short": [("_AFTER_SECONDS = 10.0", "_AFTER_SECONDS = 9.0")],
    "a failure does not count for the exit code": [
        ("            self.outcome = (int(code != 0), 0, _shell_status(code))\n",
         "            self.outcome = (0, 0, _shell_status(code))\n"),
    ],
    "a oneshot is not waited for": [
        ("return not self.history.was_ready and (", "return not self.history.was_ready and not ("),
    ],
    "a readiness command is not waited for": [
        ("        self._awaited += [self._command()] if daemon.spec.ready else []\n", ""),
    ],
    "a request to shut down is forgotten": [
        ("            self.request_shutdown(_signal_name(number))\n", "            pass\n"),
    ],
}  # fmt: skip


def source(name: str) -> str:
    """The mutant's source."""
    text = SOURCE.read_text()
    for before, after in MUTANTS[name]:
        if text.count(before) != 1:
            raise AssertionError(f"the mutant {name!r}: its place is there {text.count(before)} times: {before!r}")
        text = text.replace(before, after)
    return text


def find(name: str, seconds: float = 20.0) -> tuple[Scenario, Violation, float] | None:
    """What shows the mutant's mistake, and after how many seconds of search."""
    kernel = Kernel()
    module = load(source(name), kernel)
    began = time.process_time()
    for seed in itertools.count(1):
        scenario = random_scenario(seed, events=40, daemons=3)
        if violation := scenario.run(module, kernel):
            return scenario, violation, time.process_time() - began
        if time.process_time() > began + seconds:
            break
    return None
