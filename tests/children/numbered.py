"""numbered.py COUNT [SEPARATOR [leave]]

Writes so many numbered items, each ending in SEPARATOR (a newline), cut anywhere into writes of any size; then stays.
"""

import os
import random
import signal
import sys

count = int(sys.argv[1])
item = b"%07d" + os.fsencode(sys.argv[2] if len(sys.argv) > 2 else "\n")
data = item * count % (*range(count),)
start = 0
while start < len(data):
    start += os.write(1, data[start : start + random.choice((1, 17, 300, 4096, 65536, 100_000))])
while sys.argv[3:] != ["leave"]:
    signal.pause()
