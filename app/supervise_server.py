"""The supervise daemon: an MCP server that shows the agent what its sidecars are doing.

It reads the two files that the supervisor writes and nothing else. It holds no secret, takes no command and writes
nothing, so any client that reaches its port may ask it.

    POST /mcp     one JSON-RPC message in, one JSON object out; no stream, no session; `/` is the same
    GET /health   200 as long as it answers

Two revisions of MCP are served side by side: up to 2025-11-25 a client opens with `initialize`, from 2026-07-28 on
each request describes itself, in `_meta` and once more in headers that must agree.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

_HOST = os.environ.get("SUPERVISE_HOST", "0.0.0.0")
_PORT = os.environ.get("SUPERVISE_PORT", "9100")
_ALLOWED_ORIGINS = os.environ.get("SUPERVISE_ALLOWED_ORIGINS", "").replace(",", " ").split()
_STATUS_FILE = os.environ.get("SIDECAR_STATUS_FILE", "/run/sidecar-init/status.json")
_EVENTS_FILE = os.environ.get("SIDECAR_EVENTS_FILE", "/run/sidecar-init/events.jsonl")

_REQUEST_SECONDS = 30.0  # a whole request arrives within this, and a connection's first one too
_MAX_CONNECTIONS = 256
_MAX_WAITING = 64  # messages that are read and not answered yet
_MAX_HEAD = 32 * 1024
_MAX_BODY = 256 * 1024
_MAX_FILE = 2 * 1024 * 1024  # the supervisor rotates at half of this
_MAX_EVENTS = 200
_BLOCK = 32 * 1024

_VERSIONS = _MODERN, _LEGACY = "2026-07-28", "2025-11-25"
_SERVER = {"name": "sidecar-supervise", "version": "1.0.0"}
_CAPABILITIES: dict[str, Any] = {"tools": {}}
_CACHING = {"ttlMs": 300_000, "cacheScope": "public"}
_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND, _INVALID_PARAMS = -32700, -32600, -32601, -32602
_HEADER_MISMATCH, _UNSUPPORTED_VERSION = -32020, -32022

_HeaderOf = Callable[[str], str | None]


class _RpcError(Exception):
    """The request itself is wrong: its answer is a JSON-RPC error."""

    def __init__(self, code: int, message: str, **data: object) -> None:
        self.code, self.error = code, {"code": code, "message": message, **({"data": data} if data else {})}


class _ToolError(Exception):
    """The tool could not do its work: its result tells the model why."""


# --- HTTP ---


class _Server(ThreadingTCPServer):
    """A thread for each connection, so that a slow client holds up no other. If there are too many connections, the one
    that has been idle for the longest is closed, among those of the peer that has the most. Messages are answered one
    at a time: to answer all at once would take as long, and keep a health check waiting."""

    address_family = socket.AF_INET6 if ":" in _HOST else socket.AF_INET
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._peers: dict[socket.socket, str] = {}  # the one that has been idle for the longest is the first
        self._thread_places = threading.BoundedSemaphore(2 * _MAX_CONNECTIONS)  # half of them may be about to end
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_MAX_WAITING)
        self._turn = threading.Lock()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._peers[request] = client_address[0]
        if len(self._peers) > _MAX_CONNECTIONS:
            self._make_room()
        self._thread_places.acquire()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._thread_places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._thread_places.release()

    def _make_room(self) -> None:
        with self._lock:
            counts = Counter(self._peers.values())
            greediest = max(counts, key=counts.__getitem__, default=None)
            for request, address in self._peers.items():
                if address == greediest:
                    del self._peers[request]
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)  # which wakes up its thread, and that closes it
                    return

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._peers.pop(request, None)
        super().shutdown_request(request)

    def is_active(self, request: socket.socket) -> None:
        with self._lock:
            if address := self._peers.pop(request, None):
                self._peers[request] = address

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait to be the only one that answers; False if too many wait already."""
        if not self._waiting.acquire(blocking=False):
            yield False
            return
        try:
            with self._turn:
                yield True
        finally:
            self._waiting.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that went away is no news
            print(f"cannot answer a request: {error!r}; its connection is closed", file=sys.stderr, flush=True)


class _HeadTooLarge(Exception):
    pass


class _DeadlineReader(io.RawIOBase):
    """Reads a socket up to a deadline for the whole request: a timeout for each read would let a client trickle."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline: float | None = None  # None: idle between two requests, for as long as the client likes
        self.head_left: int | None = None  # bytes that may come before the head has ended; None: it has

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        size = self._connection.recv_into(buffer)
        if self.head_left is not None:
            self.head_left -= size
            if self.head_left < 0:
                raise _HeadTooLarge
        return size


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sidecar-supervise", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer that vanished frees its place
        self._reader = _DeadlineReader(self.connection)
        self._reader.deadline = time.monotonic() + _REQUEST_SECONDS
        # The size is given: what is read with the head counts as head, and from Python 3.14 on the default is 128 KiB.
        self._buffered = self.rfile = io.BufferedReader(self._reader, 8192)

    def handle_one_request(self) -> None:
        self._reader.head_left = _MAX_HEAD
        self._buffered.peek(1)
        self.server.is_active(self.connection)
        self._reader.deadline = time.monotonic() + _REQUEST_SECONDS
        try:
            super().handle_one_request()
        except _HeadTooLarge:
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n")
        self._reader.deadline = None
        self.server.is_active(self.connection)

    def do_POST(self) -> None:
        self._reader.head_left = None
        body = self._body()
        if body is None:
            return
        path = self.path.partition("?")[0]
        allowed = {"/mcp": "POST", "/": "POST", "/health": "GET"}.get(path)
        if not _is_allowed_origin(self._header("Origin")):
            self._reply(403, b"cannot serve this Origin: it is not in SUPERVISE_ALLOWED_ORIGINS\n")
        elif allowed is None:
            self._reply(404, b"not found: there are /mcp and /health\n")
        elif self.command != allowed:
            self._reply(405, f"only {allowed} is allowed here\n".encode(), Allow=allowed)
        elif path == "/health":
            self._reply(200, b"ok\n")
        else:
            with self.server.turn() as has_turn:
                status, answer = _answer(body, self._header) if has_turn else (503, None)
                payload = b"" if answer is None else json.dumps(answer, allow_nan=False).encode()
            if has_turn:
                self._reply(status, payload, "application/json")
            else:
                self._reply(status, b"too many messages wait for an answer; try again\n")

    do_GET = do_DELETE = do_POST

    def _body(self) -> bytes | None:
        """The request's body; None if it cannot be read; the connection then ends."""
        length = self._header("Content-Length") or "0"
        if self._header("Transfer-Encoding"):
            self.send_error(411, "a body needs a Content-Length")
        elif not re.fullmatch("[0-9]+", length):
            self.send_error(400, "cannot understand the Content-Length")
        elif len(length) > 9 or int(length) > _MAX_BODY:
            self.send_error(413, f"a body may have {_MAX_BODY} bytes")
            while self.rfile.read(65536):  # a close before the client has finished would take the answer away from it
                pass
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
        self.close_connection = True
        return None

    def _header(self, name: str) -> str | None:
        """A header that comes twice is one list (RFC 9110, 5.3), and so never equal to what is expected."""
        values = self.headers.get_all(name)
        return None if values is None else ", ".join(values)

    def _reply(self, status: int, payload: bytes, content_type: str = "text/plain", **headers: str) -> None:
        self.connection.settimeout(_REQUEST_SECONDS)
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(payload)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """A client decides what would stand in such lines, and a probe how many."""


def _is_allowed_origin(origin: str | None) -> bool:
    """A web page that rebinds its name to this address still tells its Origin; programs send none."""
    local = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
    return origin is None or origin in _ALLOWED_ORIGINS or re.fullmatch(local, origin) is not None


# --- MCP ---


def _answer(body: bytes, header: _HeaderOf) -> tuple[int, dict[str, Any] | None]:
    """The HTTP status and the JSON-RPC answer to one message; a notification or a response gets no answer."""
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": None}
    modern = True  # a message that cannot be read at all is a 400 in both revisions
    try:
        message = _message(body)
        reply["id"] = message.get("id")
        version = header("MCP-Protocol-Version")
        if version not in (None, *_VERSIONS):
            raise _RpcError(
                _UNSUPPORTED_VERSION, "Unsupported protocol version", supported=_VERSIONS, requested=version
            )
        if "method" not in message and ("result" in message or "error" in message):
            return 202, None
        method, params = message.get("method"), message.get("params", {})
        if not isinstance(method, str) or not isinstance(params, dict):
            raise _RpcError(_INVALID_REQUEST, "Invalid request: `method` must be a string, `params` an object")
        if "id" not in message:
            return 202, None
        modern = _is_modern(method, params, header)
        result = _result(method, params, modern)
    except _RpcError as error:
        # Only 2026-07-28 ties errors to HTTP statuses; older clients may not read the body of a 400.
        return 200 if not modern else 404 if error.code == _METHOD_NOT_FOUND else 400, reply | {"error": error.error}
    if modern:
        result |= {"resultType": "complete", "_meta": {"io.modelcontextprotocol/serverInfo": _SERVER}}
    return 200, reply | {"result": result}


def _message(body: bytes) -> dict[str, Any]:
    try:
        message = _parse(body)
    except ValueError as error:
        raise _RpcError(_PARSE_ERROR, "Parse error: the body is not JSON") from error
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":  # batches left MCP with 2025-06-18
        raise _RpcError(_INVALID_REQUEST, "Invalid request: the body must be one JSON-RPC 2.0 message")
    if type(message.get("id", "")) not in (str, int):
        raise _RpcError(_INVALID_REQUEST, "Invalid request: `id` must be a string or an integer")
    return message


def _is_modern(method: str, params: dict[str, Any], header: _HeaderOf) -> bool:
    """Whether a request is of 2026-07-28; raises if it is, but its `_meta` or its headers are not in order."""
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    claimed = meta.get("io.modelcontextprotocol/protocolVersion")
    if claimed is None and (method == "initialize" or header("MCP-Protocol-Version") != _MODERN):
        return False
    if claimed is None or not isinstance(meta.get("io.modelcontextprotocol/clientCapabilities"), dict):
        raise _RpcError(_INVALID_PARAMS, "Invalid params: `_meta` lacks protocolVersion or clientCapabilities")
    expected = {"MCP-Protocol-Version": claimed, "Mcp-Method": method}
    if method == "tools/call":
        expected["Mcp-Name"] = params.get("name")
    for name, value in expected.items():
        if _plain(header(name)) != value:
            raise _RpcError(_HEADER_MISMATCH, f"Header mismatch: {name} does not say what the body says")
    return True


def _plain(value: str | None) -> str | None:
    """A header's value, out of the Base64 wrapping in which a client may send it."""
    wrapped = re.fullmatch(r"=\?base64\?(.*)\?=", value or "")
    if not wrapped:
        return value
    with suppress(ValueError):
        return base64.b64decode(wrapped[1], validate=True).decode()
    return None


def _result(method: str, params: dict[str, Any], modern: bool) -> dict[str, Any]:
    match method, modern:
        case "tools/call", _:
            return _call_tool(params)
        case "tools/list", _:
            return {"tools": _tool_list()} | (_CACHING if modern else {})
        case "server/discover", True:
            return {"supportedVersions": _VERSIONS, "capabilities": _CAPABILITIES} | _CACHING
        case "initialize", False:
            return {"protocolVersion": _LEGACY, "capabilities": _CAPABILITIES, "serverInfo": _SERVER}
        case "ping", False:
            return {}
    raise _RpcError(_METHOD_NOT_FOUND, f"Method not found: {method}")


def _tool_list() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": description,
            "inputSchema": {"type": "object", "properties": properties, "additionalProperties": False},
            "annotations": {"readOnlyHint": True},
        }
        for name, (_, description, properties) in _TOOLS.items()
    ]


def _call_tool(params: dict[str, Any]) -> dict[str, Any]:
    name, arguments = params.get("name"), params.get("arguments", {})
    if not isinstance(name, str) or name not in _TOOLS:
        raise _RpcError(_INVALID_PARAMS, f"Unknown tool; there are {' and '.join(_TOOLS)}")
    if not isinstance(arguments, dict):
        raise _RpcError(_INVALID_PARAMS, "Invalid params: `arguments` must be an object")
    try:
        text, structured = _TOOLS[name][0](arguments)
    except OSError as error:
        text = f"cannot read {error.filename}: {error.strerror}; check the supervisor's log"
    except _ToolError as error:
        text = str(error)
    else:
        return {"content": [{"type": "text", "text": text}], "structuredContent": structured, "isError": False}
    return {"content": [{"type": "text", "text": text}], "isError": True}


# --- the tools ---


def _bundle_status(_arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        status = _parse(_tail(_STATUS_FILE))
        lines = [f"bundle {status['state']}, as of {status['updated_at']}"]
        lines += [_line(daemon, "name", "state") for daemon in status["daemons"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _ToolError(f"cannot understand {_STATUS_FILE}: it is incomplete; ask again in a moment") from error
    return "\n".join(lines), status


def _bundle_events(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    count, daemon = arguments.get("count", 20), arguments.get("daemon")
    if type(count) is not int or not 1 <= count <= _MAX_EVENTS:
        raise _ToolError(f"cannot take this count: it must be an integer from 1 to {_MAX_EVENTS}")
    if not isinstance(daemon, str | None) or len(daemon or "") > 64:  # re would keep a long one, compiled
        raise _ToolError("cannot take this daemon: it must be a name, as bundle_status shows them")
    # An event of another daemon need not be parsed, and there may be thousands.
    its_name = None if daemon is None else re.compile(rb'"daemon" *: *' + re.escape(json.dumps(daemon).encode()))
    events: list[dict[str, Any]] = []
    lines: list[str] = []
    unreadable = 0
    for recorded in _latest_lines():
        if its_name and not its_name.search(recorded):
            continue
        try:
            event = _parse(recorded)
            line = _line(event, "time", "daemon", "event")
        except (ValueError, LookupError, TypeError, AttributeError):  # half a line, or no event
            unreadable += 1
            continue
        if daemon in (None, event["daemon"]):
            events.append(event)
            lines.append(line)
        if len(events) == count:
            break
    text = "\n".join(reversed(lines)) or "no such event has been recorded"
    if unreadable:
        text += f"\n(left out, not understood: {unreadable} line(s))"
    return text, {"events": events[::-1], "unreadable": unreadable}


def _line(record: dict[str, Any], *leading: str) -> str:
    """A record for people: the values of `leading`, then whatever else it has to say."""
    head = [str(record[key] or "-") for key in leading]
    return " ".join(head + [f"{k}={json.dumps(v)}" for k, v in record.items() if k not in leading and v is not None])


def _latest_lines() -> Iterator[bytes]:
    """Every recorded line once, latest first, also while the file is rotated: the newer half is opened first, so that
    a rotation in between makes lines come twice instead of not at all."""
    seen: set[bytes] = set()
    is_there = False
    for path in (_EVENTS_FILE, _EVENTS_FILE + ".1"):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            is_there = True
            for line in _backwards(file):
                if line and line not in seen:
                    seen.add(line)
                    yield line
    if not is_there:
        raise FileNotFoundError(errno.ENOENT, "there is no such file", _EVENTS_FILE)


def _backwards(file: io.BufferedReader) -> Iterator[bytes]:
    position = os.fstat(file.fileno()).st_size
    first = max(0, position - _MAX_FILE)
    rest = b""
    while position > first:
        start = max(first, position - _BLOCK)
        file.seek(start)
        begun, *lines = (file.read(position - start) + rest).split(b"\n")
        yield from reversed(lines)
        rest, position = begun, start
    yield rest


def _tail(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_FILE))
        return file.read(_MAX_FILE)


def _parse(text: bytes) -> Any:
    """The value in a JSON text; ValueError for all that is none, however deep or odd."""
    try:
        return json.loads(text, parse_constant=int)  # int refuses NaN and Infinity, which are not JSON
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


_TOOLS: dict[str, tuple[Callable[[dict[str, Any]], tuple[str, dict[str, Any]]], str, dict[str, Any]]] = {
    "bundle_status": (
        _bundle_status,
        "Every daemon beside this agent: its state, ready or not, pid, port, restarts and last exit.",
        {},
    ),
    "bundle_events": (
        _bundle_events,
        "The latest events of the daemons beside this agent, oldest first: starts, exits and why, restarts, signals.",
        {
            "count": {"type": "integer", "minimum": 1, "maximum": _MAX_EVENTS, "default": 20},
            "daemon": {"type": "string", "description": "only the events of this daemon"},
        },
    ),
}


def main() -> None:
    """Serve until TERM or INT."""
    for number in (signal.SIGTERM, signal.SIGINT):  # nothing is left to do, and threads could hold up an orderly exit
        signal.signal(number, lambda *_: os._exit(0))
    try:
        server = _Server((_HOST, int(_PORT)), _Handler)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot listen on {_HOST}:{_PORT}: {error}; set SUPERVISE_HOST and SUPERVISE_PORT to a free address")
    print(f"listening on {_HOST}:{server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=3600)  # nothing to poll for: a signal interrupts it


if __name__ == "__main__":
    main()
