"""Gives the next process a number of one's choice, which only a privileged process can do: chance made certain.

reuse.py next PID: the next process of the namespace has this number, if it is free by then.
reuse.py take PID: a process of its own session has this number and sleeps; "taken" when it is there.
"""

import os
import signal
import sys
import time

LAST = "/proc/sys/kernel/ns_last_pid"


def prepare(pid: int) -> None:
    with open(LAST, "w") as file:
        file.write(str(pid - 1))


def take(pid: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        prepare(pid)
        child = os.fork()
        if child == 0:
            if os.getpid() == pid:
                os.setsid()
                os.write(1, b"taken\n")
                os.closerange(0, 3)
                while True:
                    signal.pause()
            os._exit(0)
        if child == pid:
            return
        os.waitpid(child, 0)


if __name__ == "__main__":
    {"next": prepare, "take": take}[sys.argv[1]](int(sys.argv[2]))
