#!/usr/bin/env python3
"""The daemon "git-gate": the mirrors by git's own protocol on port 9418, in place of `git daemon`.

git daemon with an access hook looks up the name in the client's `host=`, which lets an agent send what it likes to
whichever name server answers for that name. This reads the same request and ignores the name.

    PKT-LINE(git-upload-pack /NAME\\0host=...\\0\\0version=2\\0)
"""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which sees this directory as a package; a program that runs in it does not
    from app import git_gate_front as front
else:
    import git_gate_front as front

_LISTEN = os.environ.get("GIT_GATE_LISTEN", "0.0.0.0")
_PORT = os.environ.get("GIT_GATE_PORT", "9418")

_HEALTH = "git-upload-pack /.health"  # no mirror's name begins with a dot
_MAX_LINE = 4096
_REQUEST = re.compile(rf"git-(?P<service>[a-z-]+) /(?P<name>{front.NAME})(?:\.git)?/?\n?")


def main() -> int:
    return front.listen("git-gate", _LISTEN, _PORT, _parse)


def _parse(received: bytes) -> _Request | None:
    size = received[:4]
    if not re.fullmatch(rb"[0-9A-Fa-f]{0,4}", size) or (len(size) == 4 and not 4 < int(size, 16) <= _MAX_LINE):
        raise front.Reply(_error("this port speaks git's own protocol: git://"), "no request of git's protocol")
    if len(size) < 4 or len(received) < int(size, 16):
        return None
    line, surplus = received[4 : int(size, 16)], received[int(size, 16) :]
    command, *parameters = line.decode("latin-1").split("\0")  # the second is host=
    if command == _HEALTH:
        raise front.Reply(_error("healthy\n"))
    found = _REQUEST.fullmatch(command)
    if not found or found["service"] not in ("upload-pack", "receive-pack"):
        raise front.Reply(_error("no such repository or service"), f"no such repository or service: {command[:99]!a}")
    try:
        mirror = front.mirror_named(found["name"])
    except front.Refused as why:
        raise front.Reply(_error(str(why)), str(why)) from None
    versions = [parameter for parameter in parameters if re.fullmatch(r"version=[0-9]", parameter)]
    return _Request(found["service"], mirror, ":".join(versions[:3]), surplus)


class _Request(front.Request):
    def __init__(self, service: str, mirror: Path, protocol: str, early: bytes) -> None:
        self.service, self.mirror = service, mirror
        self._protocol, self._early = protocol, early

    def refusal(self, reason: str) -> bytes:
        return _error(reason)

    def serve(self, client: socket.socket, peer: front.Peer) -> None:
        try:
            front.bring_up_to_date(self, peer)
            options = ["--strict"] if self.service == "upload-pack" else []
            git = front.start_git(self, peer, self._protocol, *options)
        except (front.Refused, OSError) as why:
            client.sendall(_error(str(why)))
        else:
            exchange = front.Exchange(client, self, front.Incoming(self._early), git)
            exchange.run()
            if exchange.problem:
                client.settimeout(front.CLOSE_SECONDS)
                client.sendall(_error(exchange.problem))
        front.wait_for_close(client)


def _error(reason: str) -> bytes:
    packet = f"ERR {reason}".encode()
    return b"%04x%b" % (len(packet) + 4, packet)


if __name__ == "__main__":
    sys.exit(main())
