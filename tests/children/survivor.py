"""Listens on PORT and exits with 9, but leaves a child in its group that keeps the port.

That one ignores TERM if told to `stay`. A port that is taken ends the leader with 98.
"""

import os
import signal
import socket
import sys

server = socket.socket()
try:
    server.bind(("0.0.0.0", int(sys.argv[1])))
except OSError:
    os.write(1, b"the port is taken\n")
    sys.exit(98)
server.listen()
if "stay" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    while True:
        signal.pause()
os.write(1, b"listening\n")
sys.exit(9)
