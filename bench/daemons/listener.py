"""Reports when it gets HUP or TERM, by the steady clock in nanoseconds; TERM ends it.

Meanwhile it writes the time as a line, if asked to.

Usage: listener.py MAILBOX [SECONDS]
"""

import os
import signal
import sys
import time

report = os.open(sys.argv[1], os.O_WRONLY)
awaited = {signal.SIGHUP, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
os.write(report, b"%d\n" % os.getpid())
while True:
    if len(sys.argv) == 2:
        news = signal.sigwaitinfo(awaited)
    elif (late := signal.sigtimedwait(awaited, float(sys.argv[2]))) is None:
        os.write(1, b"slow %d\n" % time.monotonic_ns())
        continue
    else:
        news = late
    os.write(report, b"%d\n" % time.monotonic_ns())
    if news.si_signo == signal.SIGTERM:
        sys.exit()
