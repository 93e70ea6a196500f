"""Learns a secret from what PID 1 redacts: oracle.py FIRST ALPHABET.

At each start it reads in events.jsonl whether its last words were redacted, once they are there, and if so knows one
character more; then it tries the next one as its last words, and exits. /run/place/known has what it knows, and "done"
after it if no character of the alphabet was right.
"""

import json
import os
import signal
import sys
import time

MEMORY, KNOWN = "/run/place/memory", "/run/place/known"
FIRST, ALPHABET = sys.argv[1], sys.argv[2]


def was_redacted(exits: int) -> bool:
    """At the last of so many exits. A process may run before the exit of the one before it has been written."""
    events: list[dict[str, list[str]]] = []
    while len(events) < exits:
        time.sleep(0.001)
        with open(os.environ["SIDECAR_EVENTS_FILE"]) as file:
            events = [json.loads(line) for line in file if '"exited"' in line and '"hostile"' in line]
    return "[redacted" in events[-1]["last_lines"][-1]


def tell(text: str) -> None:
    with open(f"{KNOWN}.new", "w") as file:
        file.write(text)
    os.rename(f"{KNOWN}.new", KNOWN)


known, tried, exits = FIRST, 0, 0
if os.path.exists(MEMORY):
    with open(MEMORY) as file:
        known, tried, exits = json.load(file)
    if was_redacted(exits):
        known, tried = known + ALPHABET[tried - 1], 0
        tell(known)
if tried == len(ALPHABET):
    tell(f"{known} done")
    signal.pause()
with open(MEMORY, "w") as file:
    json.dump([known, tried + 1, exits + 1], file)
os.write(1, f"guess {known}{ALPHABET[tried]}".encode())
