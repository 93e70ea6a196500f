"""Reports when it gets HUP, by the steady clock in nanoseconds; meanwhile it writes the time as a line, if asked to.

Usage: listener.py MAILBOX [SECONDS]
"""

import os
import signal
import sys
import time

report = os.open(sys.argv[1], os.O_WRONLY)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
os.write(report, b"%d\n" % os.getpid())
while True:
    if len(sys.argv) == 2:
        signal.sigwaitinfo([signal.SIGHUP])
    elif signal.sigtimedwait([signal.SIGHUP], float(sys.argv[2])) is None:
        os.write(1, b"slow %d\n" % time.monotonic_ns())
        continue
    os.write(report, b"%d\n" % time.monotonic_ns())
