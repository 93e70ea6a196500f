"""One GET after another by way of egress, until a line comes on stdin; then their statuses as JSON. 0: no answer."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--ca", required=True)
options = parser.parse_args()

FETCH = Path(__file__).with_name("fetch.py")
told = threading.Event()


def wait_for_line() -> None:
    sys.stdin.readline()
    told.set()


threading.Thread(target=wait_for_line, daemon=True).start()
statuses: list[int] = []
was_told = False
while not was_told:  # one more after the line
    was_told = told.is_set()
    done = subprocess.run([sys.executable, FETCH, options.url, "--ca", options.ca], capture_output=True, check=True)
    statuses.append(json.loads(done.stdout)["status"])
    if len(statuses) == 1:
        print("answered", flush=True)
print(json.dumps(statuses), flush=True)
