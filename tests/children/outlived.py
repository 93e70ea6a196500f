"""Its group outlives it: outlived.py FILE. A member of the group ignores TERM and exits once FILE exists.

That member is the child of a process of another session, which reaps it: PID 1 hears of neither. Says "ready" when all
are in place, and FILE.reaped exists when the group is empty.
"""

import os
import signal
import sys
import time

FILE = sys.argv[1]


def member() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while os.getpgid(os.getppid()) == os.getpgid(0):  # until then, a TERM to the group ends the one that reaps
        time.sleep(0.005)
    os.write(1, b"ready\n")
    while not os.path.exists(FILE):
        time.sleep(0.005)
    os._exit(0)


if os.fork() == 0:
    pid = os.fork()
    if pid == 0:
        member()
    os.setsid()
    os.waitpid(pid, 0)
    os.close(os.open(f"{FILE}.reaped", os.O_CREAT))
    signal.pause()
while True:
    signal.pause()
