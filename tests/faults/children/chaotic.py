"""One daemon of the chaos: chaotic.py KIND DIRECTORY [PORT].

Every line is `RUN NUMBER FILL NUMBER`, with numbers from 0 in each run (a process). The file DIRECTORY/RUN counts
the lines whose write has returned, so that a checker knows what this process was told, even after a KILL.
"""

import mmap
import os
import random
import signal
import socket
import sys
import time

kind, directory = sys.argv[1], sys.argv[2]


class Voice:
    """What one process says. A line is smaller than PIPE_BUF, so its write is whole or does not happen."""

    def __init__(self) -> None:
        self.run = f"{os.getpid()}.{time.monotonic_ns()}"
        path = os.path.join(directory, self.run)
        with open(path + ".new", "w+b") as file:
            file.truncate(8)
            self.told = mmap.mmap(file.fileno(), 8)
        os.rename(path + ".new", path)
        self.number = 0

    def say(self, lines: int = 1) -> None:
        for _ in range(lines):
            fill = "x" * (self.number * 37 % 200)
            os.write(1, f"{self.run} {self.number} {fill} {self.number}\n".encode())
            self.number += 1
            self.told[:] = self.number.to_bytes(8, "little")


def leave(seconds: float) -> None:
    """A daemonised child: a session of its own, and it keeps the pipe for so long."""
    command = ["setsid", "--fork", "sleep", str(seconds)]
    os.waitpid(os.posix_spawnp(command[0], command, os.environ), 0)


def talk_and_exit() -> None:
    Voice().say(20)
    os._exit(0)


def on_term(number: int, frame: object) -> None:
    last = Voice()
    last.say(300)
    os._exit(0)


voice = Voice()
voice.say()
if kind == "talker":
    signal.signal(signal.SIGTERM, on_term)
if kind == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if kind == "hearing":
    signal.signal(signal.SIGHUP, lambda *_: None)
if kind == "slow":
    time.sleep(0.3)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(sys.argv[3])))
    server.listen()
if kind == "holder":
    leave(1.5)
if kind == "brief":
    time.sleep(0.005)
    sys.exit(0)
end = time.monotonic() + random.uniform(0.2, 1.5)
while True:
    if kind == "flooding":
        voice.say(100)
        time.sleep(0.02)
    elif kind == "bursting":
        voice.say(4000)
        time.sleep(0.5)
    elif kind == "forking":
        voice.say()
        if os.fork() == 0:
            if os.fork() == 0:
                talk_and_exit()  # an orphan: PID 1 inherits it
            talk_and_exit()
        os.wait()
        time.sleep(0.2)
    elif kind == "daemonising":
        voice.say()
        leave(0.5)
        time.sleep(0.4)
    elif kind == "failing" and time.monotonic() > end:
        how = random.choice((0, 1, 7, 255, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL))
        if isinstance(how, signal.Signals):
            os.kill(os.getpid(), how)
        sys.exit(how)
    else:
        voice.say()
        time.sleep(random.uniform(0.02, 0.1))
