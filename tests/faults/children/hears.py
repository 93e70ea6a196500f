"""Says "ready", then the number of every signal that can be caught, until TERM ends it (hears.py stay: never)."""

import os
import signal
import sys

awaited = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
os.write(1, b"ready\n")
while True:
    number = signal.sigwait(awaited)
    os.write(1, b"%d\n" % number)
    if number == signal.SIGTERM and "stay" not in sys.argv:
        sys.exit(0)
