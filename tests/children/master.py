"""master.py GATE: a multiprocessing master whose worker has a job to do, which takes until GATE exists.

Says "working" once the worker is at work. On TERM or QUIT it says the signal's name, lets the worker finish, says
"finished" or "lost", and exits with 0 or 1. The worker has no handler: a signal to the whole group ends it.
"""

import multiprocessing
import os
import signal
import sys
import time

STOPS = {signal.SIGTERM, signal.SIGQUIT}


def work(gate: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    os.write(1, b"working\n")
    while not os.path.exists(gate):
        time.sleep(0.005)


signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # and awaited, when the worker has been started
worker = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],))
worker.start()
os.write(1, f"{signal.Signals(signal.sigwait(STOPS)).name}\n".encode())
worker.join()
os.write(1, b"lost\n" if worker.exitcode else b"finished\n")
sys.exit(1 if worker.exitcode else 0)
