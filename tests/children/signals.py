"""Says "ready", then the name of each signal that it gets.

signals.py [--end CODE | --stay | --end-when FILE] [--with-child]

TERM ends it with CODE (0), or never, or once FILE exists; until then it goes on saying what it gets. With a child,
which is in the same process group, that one says its signals too.
"""

import os
import signal
import sys

options = sys.argv[1:]
end_code = int(options[options.index("--end") + 1]) if "--end" in options else 0
end_when = options[options.index("--end-when") + 1] if "--end-when" in options else ""
name, told_to_end = "", False

awaited = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # and fetched one by one: a handler could run before pause() does
if "--with-child" in options and os.fork() == 0:
    name = "child "
os.write(1, f"{name}ready\n".encode())
while True:
    may_end = told_to_end and (not end_when or os.path.exists(end_when))  # looked at first: what came before it is said
    patience = 0 if may_end else 0.005 if told_to_end else 1000
    if heard := signal.sigtimedwait(awaited, patience):
        os.write(1, f"{name}{signal.Signals(heard.si_signo).name}\n".encode())
        told_to_end |= heard.si_signo == signal.SIGTERM and "--stay" not in options
    elif may_end:
        sys.exit(end_code)
