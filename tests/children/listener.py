"""Listens on PORT, once FILE exists if one is named; says "listening". A port that is taken ends it with 98."""

import os
import signal
import socket
import sys
import time

port = int(sys.argv[1])
while len(sys.argv) > 2 and not os.path.exists(sys.argv[2]):
    time.sleep(0.005)
server = socket.socket()
try:
    server.bind(("0.0.0.0", port))
except OSError as error:
    os.write(1, f"cannot listen: {error}\n".encode())
    sys.exit(98)
server.listen()
os.write(1, b"listening\n")
while True:
    signal.pause()
