"""What an agent's container shows to the agent in it, as JSON on stdout: agent.py fetch URL | look | reach HOST PORT.

It knows what its environment says, and nothing of the tests.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SECONDS = 3
os.environ["RES_OPTIONS"] = "timeout:2 attempts:1"  # a name that nothing resolves takes 20 s otherwise
PLACES = ("/proc/self/mountinfo", "/etc", "/run", "/tmp", "/root", "/home", "/srv", "/var/lib", "/dev/shm")


def fetch(url: str) -> dict[str, Any]:
    """A GET as most programs send it: by way of the proxy in the environment, with the credential from there."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['GH_TOKEN']}"})
    try:
        with urllib.request.urlopen(request, timeout=20, context=ssl.create_default_context()) as response:
            return {"status": response.status, "body": response.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": error.read().decode()}
    except urllib.error.URLError as error:
        return {"status": 0, "body": str(error.reason)}


def reach(host: str, port: int) -> str:
    """ "open", or why not."""
    try:
        with socket.create_connection((host, port), timeout=SECONDS):
            return "open"
    except OSError as error:
        return str(error)


def open_ports(host: str) -> list[int]:
    address = socket.gethostbyname(host)
    found = []
    for port in range(1, 65536):
        with socket.socket() as client:
            client.settimeout(SECONDS)
            if client.connect_ex((address, port)) == 0:
                found.append(port)
    return found


def ask_supervise() -> str:
    """Everything that its tools tell."""
    answers = []
    client = {"name": "test", "version": "1"}
    for number, (method, params) in enumerate((
        ("initialize", {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": client}),
        ("tools/list", {}),
        ("tools/call", {"name": "bundle_status", "arguments": {}}),
        ("tools/call", {"name": "bundle_events", "arguments": {"count": 200}}),
    )):  # fmt: skip
        message = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        with urllib.request.urlopen(urllib.request.Request("http://supervise:9100/", message, headers)) as response:
            answers.append(response.read().decode())
    return "\n".join(answers)


def everything_readable() -> str:
    """The environment and memory map of each process that is seen here, and the files that are not the system's."""
    paths = [
        Path("/proc", pid, name) for pid in os.listdir("/proc") if pid.isdecimal() for name in ("environ", "cmdline")
    ]
    for place in map(Path, PLACES):
        paths += [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    texts = []
    for path in paths:
        try:
            texts.append(path.read_bytes().decode("latin-1"))
        except OSError:
            pass  # another process's, or gone
    return "\n".join(texts)


def look() -> dict[str, Any]:
    return {
        "ports": open_ports("egress"),
        "supervise": ask_supervise(),
        "readable": everything_readable(),
        "processes": [Path(f"/proc/{pid}/cmdline").read_text() for pid in os.listdir("/proc") if pid.isdecimal()],
    }


what, *rest = sys.argv[1:]
if what == "fetch":
    print(json.dumps(fetch(*rest)))
elif what == "reach":
    print(json.dumps(reach(rest[0], int(rest[1]))))
else:
    print(json.dumps(look()))
