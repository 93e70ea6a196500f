"""Holds a lease on a file of its own, and does not give it up: lease.py FILE READY"""

import fcntl
import os
import signal
import sys

signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
with open(sys.argv[2], "w") as ready:
    ready.write("up")
while True:
    signal.pause()
