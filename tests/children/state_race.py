"""Makes PID 1 create its state directory again and again, and exchanges it for a link at once: state_race.py ROUNDS.

It renames the directory away, asks PID 1 for a heartbeat, and as soon as a new directory is there exchanges it with a
link to /run/place/private. "done" in /run/place/report when all rounds have been made.
"""

import ctypes
import os
import signal
import sys
import time

DIRECTORY, VICTIM, REPORT = "/run/sidecar-init", "/run/place/private", "/run/place/report"
AT_FDCWD, EXCHANGE = -100, 2
libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: str, other: str) -> bool:
    return bool(libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), EXCHANGE) == 0)


def race(turn: int) -> None:
    link = f"/run/link{turn}"
    os.symlink(VICTIM, link)
    try:
        os.rename(DIRECTORY, f"/run/old{turn}")
    except FileNotFoundError:
        pass
    os.kill(1, signal.SIGUSR2)
    deadline = time.monotonic() + 0.1
    while not exchange(DIRECTORY, link) and time.monotonic() < deadline:
        pass
    time.sleep(0.01)


if __name__ == "__main__":
    while not os.path.exists(f"{DIRECTORY}/status.json"):
        time.sleep(0.005)
    mode, said = os.stat(VICTIM).st_mode, "done"
    try:
        for turn in range(int(sys.argv[1])):
            race(turn)
            if os.stat(VICTIM).st_mode != mode:
                break
    except PermissionError as error:
        said = str(error.strerror)
    with open(f"{REPORT}.new", "w") as report:
        report.write(said)
    os.rename(f"{REPORT}.new", REPORT)
    signal.pause()
