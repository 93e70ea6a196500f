"""A client that pushes what no `git push` would: any names of refs, any objects, any request."""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path

NOTHING = "0" * 40
_CAPABILITIES = b"report-status side-band-64k object-format=sha1"


def pkt_line(content: bytes) -> bytes:
    return b"%04x%b" % (len(content) + 4, content)


def commands(*updates: tuple[str, str, str | bytes]) -> bytes:
    """The part of a push before its pack: OLD, NEW, REF."""
    lines: list[bytes] = []
    for old, new, ref in updates:
        name = ref if isinstance(ref, bytes) else ref.encode()
        capabilities = b"" if lines else b"\0" + _CAPABILITIES
        lines.append(pkt_line(f"{old} {new} ".encode() + name + capabilities))
    return b"".join(lines) + b"0000"


def signed(text: bytes) -> bytes:
    """As `commands`, of a push that claims to be signed; receive-pack stores the text, whatever it is."""
    start = pkt_line(b"push-cert\0" + _CAPABILITIES + b"\n")
    return start + b"".join(pkt_line(line) for line in text.splitlines(True)) + pkt_line(b"push-cert-end\n") + b"0000"


def pack_of(work: Path, environment: Mapping[str, str], *names: str) -> bytes:
    """These objects of a clone and no others."""
    command = ["git", "pack-objects", "--stdout", "--quiet"]
    wanted = "".join(f"{name}\n" for name in names).encode()
    return subprocess.run(command, cwd=work, env=environment, input=wanted, capture_output=True, check=True).stdout


def pack(entries: list[bytes], claimed: int | None = None) -> bytes:
    content = b"PACK" + (2).to_bytes(4, "big") + (len(entries) if claimed is None else claimed).to_bytes(4, "big")
    content += b"".join(entries)
    return content + hashlib.sha1(content).digest()


def entry(kind: int, size: int, content: bytes, before: bytes = b"") -> bytes:
    """One object of a pack: 1 commit, 2 tree, 3 blob, 4 tag, 7 delta, which has its base's id before its content."""
    header, size = [(kind << 4) | (size & 15)], size >> 4
    while size:
        header[-1] |= 0x80
        header.append(size & 0x7F)
        size >>= 7
    return bytes(header) + before + zlib.compress(content)


def push(port: int, request: bytes, repository: str = "demo", sender: str = "127.0.0.1") -> str:
    """What the gate says to the request."""
    with socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(sender, 0)) as connection:
        connection.sendall(pkt_line(f"git-receive-pack /{repository}\0host=127.0.0.1\0".encode()))
        stream = connection.makefile("rb")
        while (size := int(stream.read(4), 16)) != 0:
            stream.read(size - 4)
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # it has heard enough
            pass
        try:
            return stream.read().decode(errors="replace")
        except OSError:
            return ""


def push_by_http(port: int, request: bytes, repository: str = "demo") -> str:
    """The same by git-http, which hears a request out, so its answer is not lost if receive-pack does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/x-git-receive-pack-request"}
    connection.request("POST", f"/{repository}/git-receive-pack", request, headers)
    answer = connection.getresponse().read().decode(errors="replace")
    connection.close()
    return answer
