"""Orphans as fast as they can be made, all for PID 1 to reap: orphan_storm.py PROCESSES. Says "storm"."""

import os
import sys

for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        break
os.write(1, b"storm\n")
while True:
    try:
        child = os.fork()
        if child == 0:
            for _ in range(20):
                if os.fork() == 0:
                    os._exit(0)
            os._exit(0)
        os.waitpid(child, 0)
    except BlockingIOError:
        continue
