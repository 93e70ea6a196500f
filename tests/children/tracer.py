"""Traces a process and never looks at it again, so that its parent cannot reap it: tracer.py NAME FILE.

NAME is a daemon, as status.json has it. Says "tracing"; ends once FILE exists, and not by TERM.
"""

import ctypes
import json
import os
import signal
import sys
import time

PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def pid_of(name: str) -> int:
    while True:
        try:
            with open(os.environ["SIDECAR_STATUS_FILE"]) as file:
                for row in json.load(file)["daemons"]:
                    if row["name"] == name and row["pid"]:
                        return int(row["pid"])
        except FileNotFoundError:
            pass
        time.sleep(0.005)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
if libc.ptrace(PTRACE_SEIZE, pid_of(sys.argv[1]), None, None) != 0:
    os.write(1, os.strerror(ctypes.get_errno()).encode() + b"\n")
    sys.exit(1)
os.write(1, b"tracing\n")
while not os.path.exists(sys.argv[2]):
    time.sleep(0.005)
