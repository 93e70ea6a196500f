#!/usr/bin/env python3
"""The daemon "git-http": the mirrors of git-gate by smart HTTP on port 9420, with the same gate before each push.

One request a connection: nothing that a client sends after it can be taken for another. The body is delimited and
unpacked here and goes to `git upload-pack` or `git receive-pack` itself, without git http-backend in between: that one
loops for ever on a body which ends before its Content-Length, and unpacks gzip without a limit.

`GET /health` is answered by the listener, however many requests are being served.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which sees this directory as a package; a program that runs in it does not
    from app import git_gate_front as front
    from app.git_gate_front import BadRequest
else:
    import git_gate_front as front
    from git_gate_front import BadRequest

_PORT = os.environ.get("GIT_HTTP_PORT", "9420")
_LISTEN = os.environ.get("GIT_HTTP_LISTEN", "0.0.0.0")

_MAX_HEAD = 16 << 10
_MAX_LINE = 1 << 10  # of a chunk's size, and of a trailer
_MAX_TRAILERS = 64
_MAX_UNPACKED = front.MAX_FETCH_REQUEST  # of gzip; clients do not send packs in it, which are compressed already

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

_HEADER = re.compile(r"(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+):(?P<value>[^\x00-\x08\x0a-\x1f\x7f]*)")
# All that a smart client asks for.
_TARGET = re.compile(
    rf"/(?P<name>{front.NAME})(?:\.git)?/"
    r"(?:(?P<advertise>info/refs)\?service=git-(?P<of>upload-pack|receive-pack)|git-(?P<rpc>upload-pack|receive-pack))"
)


def main() -> int:
    return front.listen("git-http", _LISTEN, _PORT, _parse)


def _parse(received: bytes) -> _Request | None:
    head, end, early = received.partition(b"\r\n\r\n")
    if len(head) > _MAX_HEAD:
        raise front.Reply(_answer(431, f"a request's line and headers may have {_MAX_HEAD} bytes"))
    if not end:
        return None
    try:
        return _understood(head.decode("latin-1"), early)
    except BadRequest as why:
        raise front.Reply(_answer(400, str(why)), str(why)) from None
    except front.Refused as why:
        raise front.Reply(_answer(404, str(why)), str(why)) from None


def _understood(head: str, early: bytes) -> _Request:
    first, *lines = head.split("\r\n")
    start = re.fullmatch(r"(?P<method>[A-Z]{1,20}) (?P<target>[!-~]+) HTTP/1\.(?P<minor>[01])", first)
    if start is None:
        raise BadRequest("a request line that is not METHOD TARGET HTTP/1.1")
    if first.startswith("GET /health "):
        raise front.Reply(_answer(200, "ok"))
    headers: dict[str, list[str]] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadRequest("a header that is not NAME: VALUE")
        headers.setdefault(header["name"].lower(), []).append(header["value"].strip(" \t"))
    is_chunked, length = _framing(headers, start["minor"] == "1")
    target = _TARGET.fullmatch(start["target"])
    if target is None or start["method"] != ("POST" if target["rpc"] else "GET"):
        raise front.Refused("no such repository or service")
    request = _Request(target["rpc"] or target["of"], front.mirror_named(target["name"]))
    request.is_advertisement = bool(target["advertise"])
    request.is_http_1_1 = start["minor"] == "1"
    protocol = ":".join(headers.get("git-protocol", []))
    request.protocol = protocol if re.fullmatch(r"[a-z0-9=:.-]{0,64}", protocol) else ""
    request.expects_continue = [value.lower() for value in headers.get("expect", [])] == ["100-continue"]
    if not request.is_advertisement:
        if headers.get("content-type") != [f"application/x-git-{request.service}-request"]:
            raise front.Reply(_answer(415, f"a body here is of the type application/x-git-{request.service}-request"))
        encodings = [value.lower() for value in headers.get("content-encoding", [])]
        if encodings not in ([], [""], ["identity"], ["gzip"], ["x-gzip"]):
            raise front.Reply(_answer(415, "a body here is plain or gzip"))
        request.body = Body(early, None if is_chunked else length, encodings[:1] in (["gzip"], ["x-gzip"]))
    return request


def _framing(headers: dict[str, list[str]], chunks_are_known: bool) -> tuple[bool, int]:
    """Whether the body comes in chunks, or else its length. What can be read in two ways (RFC 9112, 6.3) is refused."""
    lengths, encodings = headers.get("content-length", []), headers.get("transfer-encoding", [])
    if lengths and encodings:
        raise BadRequest("both Content-Length and Transfer-Encoding")
    if encodings and ([encoding.lower() for encoding in encodings] != ["chunked"] or not chunks_are_known):
        raise BadRequest("a Transfer-Encoding other than chunked")
    if lengths and (len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0])):
        raise BadRequest("a Content-Length that is not one number")
    return bool(encodings), int(lengths[0]) if lengths else 0


class _Request(front.Request):
    is_advertisement = is_http_1_1 = expects_continue = False
    protocol = ""

    def __init__(self, service: str, mirror: Path) -> None:
        self.service, self.mirror = service, mirror
        self.body: front.Incoming = Body(b"", 0, False)
        self._status_is_sent = False

    def __str__(self) -> str:
        return f"{super().__str__()} {'refs' if self.is_advertisement else ''}".rstrip()

    def refusal(self, reason: str) -> bytes:
        return _answer(503, reason)

    def serve(self, client: socket.socket, peer: front.Peer) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            problem = self._exchange(client, peer)
            if problem:
                client.settimeout(front.CLOSE_SECONDS)
                client.sendall(problem)
        front.wait_for_close(client)

    def _exchange(self, client: socket.socket, peer: front.Peer) -> bytes | None:
        """Serve the request; otherwise what is to be answered."""
        if self.expects_continue and self.is_http_1_1:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if self.is_advertisement:
                front.bring_up_to_date(self, peer)
            options = ["--stateless-rpc", *(["--http-backend-info-refs"] if self.is_advertisement else [])]
            options += ["--strict"] if self.service == "upload-pack" else []
            git = front.start_git(self, peer, self.protocol, *options)
        except front.Refused as why:
            return self.refusal(str(why))
        except OSError as error:
            return self.refusal(f"this server cannot start git now: {error.strerror}")
        exchange = front.Exchange(client, self, self.body, git, self._framed)
        exchange.run()
        if exchange.has_answered:
            return None
        if exchange.problem:
            return _answer(400, exchange.problem)
        if git.returncode == 128:
            return _answer(400, f"git {self.service} cannot understand the request")
        # A client tries out with an empty push whether it may push.
        return self._framed(b"") if git.returncode == 0 else _answer(500, "git ended without an answer")

    def _framed(self, piece: bytes) -> bytes:
        """A piece of git's answer, with the status and headers before the first."""
        head = b""
        if not self._status_is_sent:
            self._status_is_sent = True
            kind = "advertisement" if self.is_advertisement else "result"
            chunked = ["Transfer-Encoding: chunked"] if self.is_http_1_1 else []
            caching = ["Expires: Fri, 01 Jan 1980 00:00:00 GMT", "Pragma: no-cache"]
            head = _head(200, f"application/x-git-{self.service}-{kind}", *caching, *chunked)
            # Version 2 begins with its number, the others with the service's name.
            if self.is_advertisement and not piece.startswith(b"000eversion 2"):
                line = f"# service=git-{self.service}\n".encode()
                piece = b"%04x%b0000%b" % (len(line) + 4, line, piece)
        return head + (b"%x\r\n%b\r\n" % (len(piece), piece) if self.is_http_1_1 else piece)


def _head(status: int, content_type: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Type: {content_type}", *headers]
    lines += ["Cache-Control: no-cache, max-age=0, must-revalidate", "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


def _answer(status: int, text: str) -> bytes:
    """A short answer of the server's own, before which the request's body may not have been read."""
    content = f"{text}\n".encode()
    retry = ["Retry-After: 5"] if status == 503 else []
    return _head(status, "text/plain; charset=utf-8", f"Content-Length: {len(content)}", *retry) + content


class Body(front.Incoming):
    """A request's body, without its framing and unpacked."""

    def __init__(self, early: bytes, length: int | None, is_gzip: bool) -> None:
        """A length of None is a body in chunks."""
        super().__init__(early)
        self._length, self._is_gzip = length, is_gzip

    def pieces(self) -> Iterator[bytes]:
        plain = self._in_chunks() if self._length is None else self._exactly(self._length)
        return front.up_to(_MAX_UNPACKED, _unzipped(plain)) if self._is_gzip else plain

    def _in_chunks(self) -> Iterator[bytes]:
        while size := _chunk_size((yield from self._line())):
            yield from self._exactly(size)
            if (yield from self._line()) != b"":
                raise BadRequest("a chunk that is longer than its size")
        for _ in range(_MAX_TRAILERS):
            if not (yield from self._line()):
                return
        raise BadRequest("too many trailers")

    def _line(self) -> Generator[bytes, None, bytes]:
        while (end := self._buffer.find(b"\n", 0, _MAX_LINE)) < 0:
            if len(self._buffer) >= _MAX_LINE:
                raise BadRequest("a line in the body that is too long")
            yield from self._more()
        line = self._take(end + 1)
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise BadRequest("a line in the body that does not end with CR LF")
        return line[:-2]

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._take(min(size, front.PIECE))
            size -= len(piece)
            if piece:
                yield piece
            else:
                yield from self._more()

    def _more(self) -> Iterator[bytes]:
        if self._has_ended:
            raise BadRequest("the body ends early")
        yield b""


def _chunk_size(line: bytes) -> int:
    size = line.partition(b";")[0].strip(b" \t")
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
        raise BadRequest("a chunk without a size")
    return int(size, 16)


def _unzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    unpacking = zlib.decompressobj(wbits=31)
    for piece in pieces:
        if not piece:
            yield b""
            continue
        if unpacking.eof:
            raise BadRequest("data after the end of the gzip stream")
        is_more = True
        while is_more:
            try:
                unpacked = unpacking.decompress(piece, front.PIECE)
            except zlib.error:
                raise BadRequest("a gzip stream that is broken") from None
            piece = unpacking.unconsumed_tail
            is_more = len(unpacked) == front.PIECE or bool(piece)
            if unpacked:
                yield unpacked
        if unpacking.unused_data:
            raise BadRequest("data after the end of the gzip stream")
    if not unpacking.eof:
        raise BadRequest("a gzip stream that ends early")


if __name__ == "__main__":
    sys.exit(main())
