"""What may leave through the egress daemon, and with whose token: an addon for mitmdump, controlled by a routes file.

A request passes when a route of the file allows it, or none does and the file says `default: allow`. A route may name
a token: the value of an EGRESS_TOKEN_* variable, put into a header over whatever the client sent there. What decides
is where the connection goes; a Host header or a TLS server name that says otherwise is refused.
The rules are in egress_rules.py, what one client may cost in egress_limits.py.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import egress_limits
from egress_rules import (
    Refusal,
    Route,
    Routes,
    ascii_host,
    explain,
    is_left_out,
    is_odd_spelling,
    parse_routes,
    rewriting_header,
)
from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader

ROUTES_FILE = Path(os.environ.get("EGRESS_ROUTES", "/etc/egress/routes.yaml"))
LOGS_ALL = os.environ.get("EGRESS_LOG", "all") == "all"
RETRY_SECONDS = 1.0

UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
METHOD = re.compile(rb"[\w!#$%&'*+.^`|~-]+")
NOT_IN_A_TARGET = re.compile(rb"[\0-\x20\x7f]")
# A bare CR or a folded line ends a header for some servers: it could bring in a second Host.
NOT_IN_A_HEADER = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")

# Set here, where they are relied on, and after any configuration of mitmproxy's own.
SAFE_OPTIONS: dict[str, Any] = {
    "ssl_insecure": False,
    "validate_inbound_headers": True,
    "connection_strategy": "lazy",  # no server hears of a request that is refused
    "rawtcp": False,  # a tunnel carries HTTP, or nothing
    "http2": False,  # clients fall back to HTTP/1.1: one parser fewer between them and a token
    "onboarding": False,
    "ignore_hosts": [],
    "allow_hosts": [],
    "tcp_hosts": [],
}


class Egress:
    """The hooks. mitmproxy logs what a hook raises and lets the request pass: here a request is refused beforehand."""

    def __init__(self) -> None:
        self._routes: Routes | None = None
        self._spare = os.open("/dev/null", os.O_RDONLY)  # given up for the routes file when descriptors are short
        self._retry: asyncio.TimerHandle | None = None

    def load(self, _loader: Loader) -> None:
        """Called in the event loop, before anything else of this addon."""
        ctx.options.update(**SAFE_OPTIONS)
        egress_limits.install(say)
        # First the handler, then the file: who sent a HUP while it was ignored had written the file before.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        self.reload()

    def reload(self) -> None:
        """Called at the start and on HUP. A file that is not valid changes nothing; an unreadable one is read later."""
        failed_before = self._retry is not None
        if self._retry:
            self._retry.cancel()
            self._retry = None
        try:
            self._routes = parse_routes(self._read_routes())
        except Exception as error:  # YAML can raise much, RecursionError too
            advice = "correct the file and send HUP"
            if isinstance(error, OSError):
                advice = "trying again until it can be read"
                self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self.reload)
            kept = "nothing passes" if self._routes is None else f"{len(self._routes.table)} route(s) stay in force"
            if not failed_before or self._retry is None:
                say(f"cannot load {ROUTES_FILE}: {explain(error)}; {kept}; {advice}")
            return
        say(f"loaded {len(self._routes.table)} route(s)")
        for variable in sorted({route.token for route in self._routes.table if route.token} - os.environ.keys()):
            say(f"{variable} is not set: a request that needs it is answered with 502")

    def _read_routes(self) -> str:
        os.close(self._spare)
        try:
            return ROUTES_FILE.read_text(encoding="utf-8")
        finally:
            self._spare = os.open("/dev/null", os.O_RDONLY)

    async def running(self) -> None:
        """Called when all is loaded. mitmdump starts without its server: without this addon, no port is open."""
        ctx.options.update(server=True)
        await ctx.master.addons.get("proxyserver").setup_servers()  # waited for: if it fails, so does the start

    def done(self) -> None:
        """Called at the end, and when mitmproxy drops a script that was changed or removed, to go on without it."""
        if self not in ctx.master.addons:
            say("cannot go on without the addon, which was changed or removed; exiting")
            os._exit(1)

    def next_layer(self, found: Any) -> None:
        """Called for the first bytes of a connection, and for what comes in it after a CONNECT or in TLS."""
        try:
            found.layer = egress_limits.next_layer(found)
        except Exception as error:  # with none, mitmproxy would decide by itself
            say(f"closing a connection: {type(error).__name__} while deciding what it speaks")
            found.layer = egress_limits.Nothing(found.context)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Called for a CONNECT, before anything is sent upstream."""
        refuse_unless(self._check_tunnel, flow)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Called for any other request, also in a tunnel, before anything of it is sent upstream."""
        refuse_unless(self._check_request, flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Called before the body of a response, which is passed on as it comes."""
        if flow.response and "record" in flow.metadata:
            flow.response.stream = flow.metadata["record"].downwards
            flow.response.headers.pop("Sec-WebSocket-Extensions", None)

    def response(self, flow: http.HTTPFlow) -> None:
        """Called when a response is complete."""
        if not flow.websocket:
            tell(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """Called when a request ends without a complete response."""
        tell(flow, ": incomplete")

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """Called when a WebSocket is closed. Its messages were counted in flow.metadata["record"]."""
        tell(flow)

    def _check_tunnel(self, flow: http.HTTPFlow) -> None:
        check_form(flow.request)
        if {"content-length", "transfer-encoding"} & {name.lower() for name in flow.request.headers}:
            raise Refusal(400, "a CONNECT has no body")
        routes = self._routes_in_force()
        if not routes.allow and not routes.to(ascii_host(flow.request.host), flow.request.port):
            raise Refusal(403, "no route to this host and port")

    def _check_request(self, flow: http.HTTPFlow) -> None:
        if flow.error:
            raise Refusal(400, "malformed")  # mitmproxy found it so, and answers in its own words
        routes, request = self._routes_in_force(), flow.request
        check_form(request)
        host, server_name = ascii_host(request.host), (flow.client_conn.sni or "").lower()
        check_destination(request, host, server_name)
        encrypted = request.scheme == "https" and server_name == host
        if not encrypted and any(route.token and route.names(host) for route in routes.table):
            raise Refusal(403, "this host has a token, which goes only through CONNECT and TLS with the host's name")
        method = request.data.method.decode("ascii")  # as it is sent: request.method is in upper case
        route = routes.find(host, request.port, method, request.path)
        if route is None and not routes.allow:
            raise Refusal(403, "no route for this host, port, method and path")
        if request.scheme == "https":
            request.authority = ""  # to the server the target is a path, whatever form it came in
        limit_hops(request)
        record = Record(route.token if route else "")
        if route is not None:
            use(route, request)
        flow.metadata["record"] = record
        request.stream = record.upwards  # the body is passed on as it comes

    def _routes_in_force(self) -> Routes:
        if self._routes is None:
            raise Refusal(503, "no valid routes file yet")
        return self._routes


def refuse_unless(check: Callable[[http.HTTPFlow], None], flow: http.HTTPFlow) -> None:
    """Let `flow` pass only when `check` returns."""
    flow.response = answer(flow, 500, "cannot decide on this request")
    try:
        check(flow)
    except Refusal as refusal:
        flow.response = answer(flow, refusal.status, refusal.reason)
        say(Record().line(flow, f": {refusal.reason}"))
    except Exception as error:
        say(f"500, {type(error).__name__} while deciding")  # its text might quote a header
    else:
        flow.response = None


def check_form(request: http.Request) -> None:
    """Refuse a request that is too long, or that a server could read in another way than egress."""
    headers = request.headers.fields
    size = len(request.data.path) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > egress_limits.HEAD_BYTES or len(headers) > egress_limits.HEAD_LINES:
        raise Refusal(431, "the head of this request is too long")
    if request.http_version not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refusal(505, "only HTTP/1.1 and 1.0 are supported")
    if not METHOD.fullmatch(request.data.method) or NOT_IN_A_TARGET.search(request.data.path):
        raise Refusal(400, "control characters in the request line")
    if NOT_IN_A_HEADER.search(b"".join(part for header in headers for part in header)):
        raise Refusal(403, "control characters in a header")
    if request.headers.get("transfer-encoding", "chunked").lower() != "chunked":
        raise Refusal(400, "the only transfer coding is chunked")  # servers disagree about "gzip, chunked"
    if any(value.lower() != "100-continue" for value in request.headers.get_all("expect")):
        raise Refusal(417, "the only expectation is 100-continue")
    if request.method == "CONNECT" and request.data.method != b"CONNECT":
        raise Refusal(400, "CONNECT is written in upper case")
    if any(is_odd_spelling(name) for name in request.headers):
        raise Refusal(403, "a header could be read as one that frames the request")


def check_destination(request: http.Request, host: str, server_name: str) -> None:
    """Refuse a request that names another destination than its connection's, or could seem to."""
    hosts = request.headers.get_all("host")
    names = {name.lower() for name in (*hosts, request.authority, server_name) if name}
    written = f"[{host}]" if ":" in host else host  # an IPv6 address has brackets
    if len(hosts) != 1 or not hosts[0] or not names <= {written, f"{written}:{request.port}"}:
        raise Refusal(403, "Host header, request target and TLS server name do not all name the destination")


def limit_hops(request: http.Request) -> None:
    """Keep the client from naming headers that a server's own proxy should drop, and from changing the protocol."""
    websocket = request.headers.get("upgrade", "").lower() == "websocket"
    kept = {"close", "keep-alive"} | ({"upgrade"} if websocket else set())
    options = [option.strip() for option in request.headers.get("connection", "").lower().split(",")]
    request.headers.pop("connection", None)
    if named := [option for option in options if option in kept]:
        request.headers["Connection"] = ", ".join(named)
    for name in ("Sec-WebSocket-Extensions",) if websocket else ("Upgrade", "HTTP2-Settings"):
        request.headers.pop(name, None)  # compressed, a small message could become a very large one here


def use(route: Route, request: http.Request) -> None:
    """Give `request` the token of its route, in place of what the client sent in that header."""
    names = list(dict.fromkeys(request.headers))
    if route.is_limited and (name := rewriting_header(names)):
        raise Refusal(403, f"the header {name} would change the method or the path")
    for name in names:
        if is_left_out(name, route):
            del request.headers[name]
    if not route.token:
        return
    if request.method in ("TRACE", "TRACK"):
        raise Refusal(403, "this method would show the token")
    value = os.environ.get(route.token, "")
    if not value:
        raise Refusal(502, f"{route.token} is not set")
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise Refusal(502, f"{route.token} contains what a header cannot carry, such as a line end")
    request.headers[route.header] = f"{route.scheme} {value}" if route.scheme else value


class Record:
    """What the log says about a request: the bytes of its bodies, its time and the name of its token."""

    def __init__(self, token: str = "") -> None:
        self._token = token
        self._start = time.monotonic()
        self._up = self._down = 0

    def upwards(self, data: bytes) -> bytes:
        self._up += len(data)
        return data

    def downwards(self, data: bytes) -> bytes:
        self._down += len(data)
        return data

    def line(self, flow: http.HTTPFlow, remark: str = "") -> str:
        request, status = flow.request, flow.response.status_code if flow.response else "-"
        path = request.path.partition("?")[0]
        milliseconds = round((time.monotonic() - self._start) * 1000)
        return (
            f"{status} {request.method[:20]} {request.host}:{request.port} {path[:200] or '-'} "
            f"up={self._up} down={self._down} ms={milliseconds} token={self._token or '-'}{remark}"
        )


def tell(flow: http.HTTPFlow, remark: str = "") -> None:
    """Log an allowed request, once. Refused ones were logged when they were refused."""
    record = flow.metadata.pop("record", None)
    if record and LOGS_ALL:
        say(record.line(flow, remark))


def answer(flow: http.HTTPFlow, status: int, reason: str) -> http.Response:
    text = "" if flow.request.method == "HEAD" else f"egress: {reason}\n"
    response = http.Response.make(status, text, {"Content-Type": "text/plain"})
    response.reason = f"egress: {reason}"  # all that most programs show of an answer to CONNECT
    return response


def say(text: str) -> None:
    """One line for the log; parts of it may come from the client."""
    # With its end, because print would write that on its own.
    print("egress: " + UNPRINTABLE.sub("?", text)[:700] + "\n", end="", flush=True)


addons = [Egress()]
