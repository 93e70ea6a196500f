"""readiness.py FOLDER [wait]: a readiness command that leaves a trace of each try in FOLDER.

It appends a line to FOLDER/tries and says "try N". If FOLDER/ready exists it creates FOLDER/succeeded and exits with 0,
else with 1. If another try runs, it creates FOLDER/two-at-once. With `wait` it goes on until FOLDER/ready exists.
"""

import fcntl
import os
import sys
import time

folder = sys.argv[1]
alone = os.open(f"{folder}/alone", os.O_RDWR | os.O_CREAT, 0o666)
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.close(os.open(f"{folder}/two-at-once", os.O_WRONLY | os.O_CREAT, 0o666))
tries = os.open(f"{folder}/tries", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
os.write(
    tries, b"%d %d %s\n" % (os.getpid(), os.getuid(), os.fsencode(os.getcwd() + " " + os.environ.get("MODE", "-")))
)
print("try", os.pread(tries, 1 << 20, 0).count(b"\n"), flush=True)
while "wait" in sys.argv and not os.path.exists(f"{folder}/ready"):
    time.sleep(0.01)
if not os.path.exists(f"{folder}/ready"):
    sys.exit(1)
os.close(os.open(f"{folder}/succeeded", os.O_WRONLY | os.O_CREAT, 0o666))
