"""Writes lines as fast as they are taken."""

import os

block = b"".join(b"flood %05d\n" % number for number in range(5000))
while True:
    os.write(1, block)
