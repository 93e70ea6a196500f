"""master.py GATE: a multiprocessing master whose worker has a job to do, which takes until GATE exists.

Says "working" once the worker is at work. On TERM or QUIT it says the signal's name, lets the worker finish, says
"finished" or "lost", and exits with 0 or 1. The worker has no handler: a signal to the whole group ends it.
"""

import multiprocessing
import os
import signal
import sys
import time


def work(gate: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.write(1, b"working\n")
    while not os.path.exists(gate):
        time.sleep(0.005)


def finish(number: int, _: object) -> None:
    os.write(1, f"{signal.Signals(number).name}\n".encode())
    worker.join()
    os.write(1, b"lost\n" if worker.exitcode else b"finished\n")
    sys.exit(1 if worker.exitcode else 0)


worker = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],))
for stop in (signal.SIGTERM, signal.SIGQUIT):
    signal.signal(stop, finish)
worker.start()
while True:
    signal.pause()
