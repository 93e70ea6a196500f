"""Leaves COUNT orphans, waits for a line on the named pipe GATE, and lets them all exit at once.

Says "orphaned" when all of them have been inherited, and "released" when they are exiting.
"""

import os
import signal
import sys

count, gate = int(sys.argv[1]), sys.argv[2]
held, holding = os.pipe()
parent = os.fork()
if parent == 0:
    os.close(holding)
    for _ in range(count):
        if os.fork() == 0:
            os.read(held, 1)  # the end of the file: the last holder let go
            os._exit(3)
    os._exit(0)
os.waitpid(parent, 0)
os.write(1, b"orphaned\n")
with open(gate) as opened:
    opened.readline()
os.close(holding)
os.write(1, b"released\n")
while True:
    signal.pause()
