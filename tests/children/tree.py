"""Three generations that ignore TERM, INT and HUP, the last of them in a session of its own. Says "grown"."""

import os
import signal

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
grown, grow = os.pipe()
if os.fork() == 0 and os.fork() == 0:
    os.setsid()
    os.write(grow, b".")
elif os.getpid() == os.getpgrp():
    os.read(grown, 1)
    os.write(1, b"grown\n")
while True:
    signal.pause()
