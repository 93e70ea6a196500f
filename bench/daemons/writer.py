"""Writes `size` bytes of 100-byte lines, in blocks of 64 KiB or line by line; then says so and waits for the end.

Usage: writer.py MAILBOX blocks|lines SIZE; SIZE 0: forever.
"""

import itertools
import os
import signal
import sys

mailbox, mode, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
report = os.open(mailbox, os.O_WRONLY)
os.write(report, b"%d\n" % os.getpid())
line = b"x" * 99 + b"\n"
text = line * 16384
pieces = [text[i : i + 65536] for i in range(0, len(text), 65536)] if mode == "blocks" else [line]
for piece in itertools.islice(itertools.cycle(pieces), size // len(pieces[0]) or None):
    os.write(1, piece)
os.write(report, b"done\n")
signal.pause()
