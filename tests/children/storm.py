"""Makes orphans that exit at once, twenty at a time, without an end."""

import os

while True:
    parent = os.fork()
    if parent == 0:
        for _ in range(20):
            if os.fork() == 0:
                os._exit(5)
        os._exit(0)
    os.waitpid(parent, 0)
