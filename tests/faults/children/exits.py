"""Exits in the way that it is told: exits.py HOW [NUMBER].

say-and-exit N   N numbered lines, then exits with 0 at once
say-on-term N    N numbered lines when TERM comes, then exits with 0
slow-term MS     exits MS milliseconds after TERM; says "up" and "down"
blink MS         exits after MS milliseconds
nag N            a line of N bytes again and again, "served" at each HUP
"""

import os
import signal
import sys
import time

how, number = sys.argv[1], int(sys.argv[2])


def numbered(*_: object) -> None:
    for start in range(0, number, 10):
        os.write(1, b"".join(b"line %05d\n" % n for n in range(start, min(start + 10, number))))
    os._exit(0)


if how == "say-and-exit":
    numbered()
if how == "blink":
    time.sleep(number / 1000)
    os._exit(0)
awaited = {signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
os.write(1, b"up\n")
if how == "nag":
    signal.signal(signal.SIGHUP, lambda *_: os.write(1, b"served\n"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
    while True:
        os.write(1, b"n" * (number - 1) + b"\n")
while signal.sigwait(awaited) != signal.SIGTERM:
    os.write(1, b"heard HUP\n")
if how == "say-on-term":
    numbered()
time.sleep(number / 1000)
os.write(1, b"down\n")
