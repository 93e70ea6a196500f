#!/usr/bin/env python3
"""The daemon "git-http": the mirrors of git-gate by smart HTTP on port 9420, with the same gate before each push.

Each request runs `git http-backend` as a CGI program, with one thread that carries the request's body to it while the
handler's thread carries its output back, so that neither direction waits for the other and nothing is held in memory.

A push that has arrived is finished whatever becomes of its client: between upstream's yes and the mirror's own ref
update there is no good moment to stop. Backends ignore TERM for the same reason. This server's own TERM closes the
port at once, waits for the requests underway, and ends.
"""

from __future__ import annotations

import contextlib
import email.message
import http.server
import io
import os
import re
import shlex
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_PORT = int(os.environ.get("GIT_HTTP_PORT", "9420"))
_LISTEN = os.environ.get("GIT_HTTP_LISTEN", "0.0.0.0")
_APP = os.environ.get("GIT_GATE_APP", "/app")
_ROOT = Path(os.environ.get("GIT_GATE_ROOT", "/srv/git"))

_MAX_BACKENDS = 32
_MAX_CONNECTIONS = 256
_WAIT_FOR_A_BACKEND_SECONDS = 30
_IDLE_SECONDS = 300  # of a client that neither sends nor takes; it may be long over its deltas before it sends a pack
_PIECE = 1 << 16
_MAX_LINE = 1 << 16

_SETUP = f"trap '' TERM; GIT_GATE_APP={shlex.quote(_APP)}; . \"$GIT_GATE_APP/git_gate_env.sh\"; "
_SYNC = _SETUP + 'exec sh "$GIT_GATE_APP/git_gate_access_hook.sh" "$@"'
# The lock tells git-gate's next start that this push is alive, so that it leaves its files alone.
_CGI = _SETUP + 'exec 8>>"$GIT_GATE_ROOT/.busy"; flock --shared 8; exec "$(git --exec-path)/git-http-backend"'

# All that a smart client asks for. No "%", no second "/", no leading dot: nothing in here can leave the mirrors.
_TARGET = re.compile(
    r"/(?P<name>[A-Za-z0-9_-][A-Za-z0-9._-]*?)(?:\.git)?/"
    r"(?:(?P<advertise>info/refs)\?service=(?P<service>git-(?:upload|receive)-pack)|(?P<rpc>git-(?:upload|receive)-pack))"
)


class BadRequest(Exception):
    """The request cannot be understood; nothing of it has been passed on."""


class Disconnected(Exception):
    """The client went away in the middle of its request."""


def main() -> int:
    try:
        server = _Server((_LISTEN, _PORT), _Handler)
    except OSError as error:
        print(f"cannot listen on {_LISTEN}:{_PORT}: {error.strerror}", file=sys.stderr)
        return 1
    with contextlib.suppress(_Stop):
        signal.signal(signal.SIGTERM, _stop)
        print(f"git-http: serving {_ROOT} on port {_PORT}", file=sys.stderr, flush=True)
        server.serve_forever(poll_interval=3600)
    server.server_close()
    server.wait_for_backends()
    return 0


class _Stop(BaseException):  # socketserver swallows what is an Exception
    pass


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stop


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        super().__init__(address, handler)
        self.backends = threading.BoundedSemaphore(_MAX_BACKENDS)
        self._connections = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        print(f"git-http: {client_address[0]}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)

    def wait_for_backends(self) -> None:
        for _ in range(_MAX_BACKENDS):
            self.backends.acquire()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "git-http"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, "ok")
        else:
            self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        target = _TARGET.fullmatch(self.path)
        if target is None or bool(target["rpc"]) != (self.command == "POST"):
            return self._answer(404, "no such repository or service")
        mirror = _ROOT / f"{target['name']}.git"
        if not mirror.is_dir():
            return self._answer(404, f"no mirror {target['name']}")
        if not self.server.backends.acquire(timeout=_WAIT_FOR_A_BACKEND_SECONDS):
            return self._answer(503, "too many requests underway; try again")
        try:
            self._run(mirror, target)
        except BadRequest as why:
            self._answer(400, str(why))
        finally:
            self.server.backends.release()

    def _run(self, mirror: Path, target: re.Match[str]) -> None:
        body = Body(self.rfile, self.headers)
        if target["advertise"]:
            service = target["service"].removeprefix("git-")
            sync = subprocess.run(["sh", "-c", _SYNC, "sync", service, mirror], stdin=subprocess.DEVNULL, stdout=2)
            if sync.returncode != 0:
                return self._answer(503, "the gate is out of order")
        environment = os.environ | self._cgi_variables(mirror, target, body)
        backend = subprocess.Popen(["sh", "-c", _CGI], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert isinstance(backend.stdout, io.BufferedReader)
        is_push = target["rpc"] == "git-receive-pack"
        if body.length != 0:  # what an early answer leaves of a body must not be taken for a next request
            self.close_connection = True
        feeder = threading.Thread(target=_feed, args=(body, backend, is_push), daemon=True)
        feeder.start()
        try:
            self._relay(backend.stdout)
        except OSError:
            self.close_connection = True
            if is_push:
                self.log_message("%s is going on without its client", self.path)
            else:
                backend.kill()
            for _ in _pieces(backend.stdout):
                pass
        finally:
            backend.stdout.close()
            backend.wait()
            feeder.join()

    def _cgi_variables(self, mirror: Path, target: re.Match[str], body: Body) -> dict[str, str]:
        service = target["advertise"] or target["rpc"]
        protocol = self.headers.get("Git-Protocol", "")
        return {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_PROTOCOL": self.request_version,
            "REQUEST_METHOD": self.command,
            "GIT_PROJECT_ROOT": str(_ROOT),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{mirror.name}/{service}",
            "QUERY_STRING": f"service={target['service']}" if target["advertise"] else "",
            "REMOTE_ADDR": str(self.client_address[0]),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": protocol if re.fullmatch(r"[a-z0-9=:.-]{0,64}", protocol) else "",
        } | ({} if body.length is None else {"CONTENT_LENGTH": str(body.length)})

    def _relay(self, output: io.BufferedReader) -> None:
        """Carry the CGI answer to the client as it comes: its headers first, of which `Status` is the code."""
        status, headers = 200, []
        while line := output.readline(_MAX_LINE).strip():
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            else:
                headers.append((name, value.strip()))
        if not headers:
            return self._answer(500, "git http-backend ended without an answer")
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        chunked = self.request_version == "HTTP/1.1" and all(name.lower() != "content-length" for name, _ in headers)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in _pieces(output):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, text: str) -> None:
        """A short answer of the server's own, before which the request's body may not have been read."""
        content = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        if getattr(self, "path", "") != "/health":
            super().log_message(format, *args)


class Body:
    """A request's body, piece by piece. What could be read in two ways (RFC 9112, 6.3) is a BadRequest."""

    def __init__(self, source: io.BufferedIOBase, headers: email.message.Message) -> None:
        self.length: int | None = 0
        self._source = source
        if headers.defects or not all(re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) for name in headers):
            raise BadRequest("a header that is not NAME: VALUE")
        lengths, encodings = headers.get_all("Content-Length"), headers.get_all("Transfer-Encoding")
        if lengths and encodings:
            raise BadRequest("both Content-Length and Transfer-Encoding")
        if encodings:
            if [encoding.strip().lower() for encoding in encodings] != ["chunked"]:
                raise BadRequest("a Transfer-Encoding other than chunked")
            self.length = None
        elif lengths:
            if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
                raise BadRequest("a Content-Length that is not one number")
            self.length = int(lengths[0])

    def pieces(self) -> Iterator[bytes]:
        if self.length is None:
            while size := self._chunk_size():
                yield from self._exactly(size)
                if self._line() != b"":
                    raise Disconnected
            while self._line():  # trailers
                pass
        else:
            yield from self._exactly(self.length)

    def _chunk_size(self) -> int:
        size = self._line().partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise Disconnected
        return int(size, 16)

    def _line(self) -> bytes:
        line = self._source.readline(_MAX_LINE)
        if not line.endswith(b"\r\n"):
            raise Disconnected
        return line[:-2]

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._source.read1(min(size, _PIECE))
            if not piece:
                raise Disconnected
            size -= len(piece)
            yield piece


def _feed(body: Body, backend: subprocess.Popen[bytes], is_push: bool) -> None:
    """Carry the body to the backend. A backend that has heard enough does not keep the client from sending the rest:
    closing on unread data would take the answer from it."""
    assert backend.stdin is not None
    try:
        for piece in body.pieces():
            with contextlib.suppress(BrokenPipeError):
                backend.stdin.write(piece)
                backend.stdin.flush()
    except (OSError, Disconnected):
        # Half a pack ends a push by itself; a whole one may be on its way upstream, whatever else is missing.
        if not is_push:
            backend.kill()
    finally:
        with contextlib.suppress(OSError):
            backend.stdin.close()


def _pieces(stream: io.BufferedReader) -> Iterator[bytes]:
    while piece := stream.read1(_PIECE):
        yield piece


if __name__ == "__main__":
    sys.exit(main())
