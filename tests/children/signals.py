"""Says "ready", then the name of each signal that it gets.

signals.py [--end CODE | --stay | --end-when FILE] [--with-child]

TERM ends it with CODE (0), or never, or once FILE exists. With a child, which is in the same process group, that one
says its signals too.
"""

import os
import signal
import sys
import time

options = sys.argv[1:]
end_code = int(options[options.index("--end") + 1]) if "--end" in options else 0
end_when = options[options.index("--end-when") + 1] if "--end-when" in options else ""
who = ""

awaited = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # and fetched one by one: a handler could run before pause() does
if "--with-child" in options and os.fork() == 0:
    who = "child "
os.write(1, f"{who}ready\n".encode())
while True:
    number = signal.sigwait(awaited)
    os.write(1, f"{who}{signal.Signals(number).name}\n".encode())
    if number == signal.SIGTERM and "--stay" not in options:
        while end_when and not os.path.exists(end_when):
            time.sleep(0.005)
        sys.exit(end_code)
