#!/usr/bin/env python3
"""The image's health check: one request to each server that agents reach, then the command line that is given, which
is the supervisor's own check. That one cannot detect a server that listens but does not answer.

A port at which nothing listens is none of this program's business: the supervisor knows which daemons there should be.
"""

from __future__ import annotations

import os
import socket
import sys
import time

_START_SECONDS = 3.0
_PAUSE_SECONDS = 1.0
_SECONDS = 1.2  # for each, so that all have had theirs before Docker's timeout
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_SERVERS = (  # name, variable and default of the port, request, beginning of the answer
    ("git-gate", "GIT_GATE_PORT", "9418", b"001dgit-upload-pack /.health\0", b"0010ERR healthy\n"),
    ("git-http", "GIT_HTTP_PORT", "9420", _HEALTH, b"HTTP/1.1 200 "),
    ("supervise", "SUPERVISE_PORT", "9100", _HEALTH, b"HTTP/1.1 200 "),
)


def main(supervisors_check: list[str]) -> int:
    if _age_of_container() > _START_SECONDS:
        # Docker waits for its interval before the first check too: that is short, and later checks make a pause.
        time.sleep(_PAUSE_SECONDS)
    _wait_for_start()
    for name, variable, port, request, expected in _SERVERS:
        try:
            answer = _ask(int(os.environ.get(variable) or port), request, len(expected))
        except ConnectionRefusedError:
            continue
        except OSError as error:
            print(f"unhealthy: {name} listens but does not answer: {error.strerror or error}")
            return 1
        if answer != expected:
            print(f"unhealthy: {name} answered {answer!a} and not {expected!a}")
            return 1
    os.execv(supervisors_check[0], supervisors_check)


def _age_of_container() -> float:
    """Seconds since PID 1 was started; 0 if it is hidden."""
    try:
        with open("/proc/1/stat", "rb") as file:
            started_at = int(file.read().rsplit(b") ", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_at


def _wait_for_start() -> None:
    """Return as soon as no daemon is starting. A check that fails is repeated only after Docker's interval."""
    status = os.path.join(os.environ.get("BOT_BOTTLE_SIDECAR_STATE_DIR") or "/run/sidecar-init", "status.json")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            with open(status, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return  # what that means, the supervisor's check says
        if '"state": "starting"' not in text and '"state": "waiting"' not in text:
            return
        time.sleep(0.05)


def _ask(port: int, request: bytes, size: int) -> bytes:
    deadline, answer = time.monotonic() + _SECONDS, b""
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as server:
        server.sendall(request)
        while len(answer) < size:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            if not (piece := server.recv(size - len(answer))):
                break
            answer += piece
        return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
