"""What every kind of test needs: waiting for a condition instead of sleeping, and the paths."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "sidecar_init.py"
CHILDREN = ROOT / "tests" / "children"


def wait_until(predicate: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true value of `predicate`; fail with `what` when none came in `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.005)
