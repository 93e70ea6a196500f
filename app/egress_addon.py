"""What may leave through the egress daemon, and with whose token: an addon for mitmdump, told by a routes file.

A request passes when a route of the file allows it, or none does and the file says `default: allow`. A route may name
a token: the value of an EGRESS_TOKEN_* variable, put into a header over whatever the client sent there. What decides
is where the connection goes; a Host header or a TLS server name that says otherwise is refused.
The file is described in egress_routes.example.yaml.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

ROUTES_FILE = Path(os.environ.get("EGRESS_ROUTES", "/etc/egress/routes.yaml"))

# Set here, where they are relied on, and after any configuration of mitmproxy's own.
SAFE_OPTIONS: dict[str, Any] = {
    "ssl_insecure": False,
    "validate_inbound_headers": True,
    "rawtcp": False,  # a tunnel carries HTTP, or nothing
    "http2": False,  # clients fall back to HTTP/1.1: one parser fewer between them and a token
    "onboarding": False,
    "ignore_hosts": [],
    "allow_hosts": [],
    "tcp_hosts": [],
}

# By these, some servers take another method or path than the request line's.
REWRITING_HEADERS = ("x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url")


class Refusal(Exception):
    """Ends a request: the client gets `status` and `reason`, the log a line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Egress:
    """The hooks. mitmproxy logs what a hook raises and lets the request pass: here a request is refused beforehand."""

    def __init__(self) -> None:
        self._routes: Routes | None = None

    def load(self, _loader: Loader) -> None:
        """Called in the event loop, before anything else of this addon."""
        ctx.options.update(**SAFE_OPTIONS)
        # First the handler, then the file: who sent a HUP while it was ignored had written the file before.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        self.reload()

    def reload(self) -> None:
        """Called at the start and on HUP. A file that is not valid changes nothing."""
        try:
            self._routes = parse_routes(ROUTES_FILE.read_text(encoding="utf-8"))
        except Exception as error:  # YAML can raise much, RecursionError too
            kept = "nothing passes" if self._routes is None else f"{len(self._routes.table)} route(s) stay in force"
            return say(f"cannot load {ROUTES_FILE}: {explain(error)}; {kept}; correct the file and send HUP")
        say(f"loaded {len(self._routes.table)} route(s)")
        for variable in sorted({route.token for route in self._routes.table if route.token} - os.environ.keys()):
            say(f"{variable} is not set: a request that needs it is answered with 502")

    async def running(self) -> None:
        """Called when all is loaded. mitmdump starts without its server: where this addon is not, no port is open."""
        ctx.options.update(server=True)
        await ctx.master.addons.get("proxyserver").setup_servers()  # waited for: if it fails, so does the start

    def done(self) -> None:
        """Called at the end, and when mitmproxy drops a script that was changed or removed, to go on without it."""
        if self not in ctx.master.addons:
            say("cannot go on without the addon, which was changed or removed; exiting")
            os._exit(1)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Called for a CONNECT, before anything is sent upstream."""
        refuse_unless(self._check_tunnel, flow)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Called for any other request, also in a tunnel, before anything of it is sent upstream."""
        refuse_unless(self._check_request, flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Called before the body of a response, which is passed on as it comes."""
        if flow.response:
            flow.response.stream = True

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Called for each message. mitmproxy would keep them all."""
        if flow.websocket:
            del flow.websocket.messages[:-1]

    def _check_tunnel(self, flow: http.HTTPFlow) -> None:
        routes = self._routes_in_force()
        if not routes.allow and not routes.to(flow.request.host.lower(), flow.request.port):
            raise Refusal(403, "no route to this host and port")

    def _check_request(self, flow: http.HTTPFlow) -> None:
        routes, request = self._routes_in_force(), flow.request
        host, server_name = request.host.lower(), (flow.client_conn.sni or "").lower()
        check_destination(request, host, server_name)
        encrypted = request.scheme == "https" and server_name == host
        if not encrypted and any(route.token and route.names(host) for route in routes.table):
            raise Refusal(403, "this host has a token, which goes only through CONNECT and TLS with the host's name")
        route = routes.find(host, request.port, request.method, request.path)
        if route is None and not routes.allow:
            raise Refusal(403, "no route for this host, port, method and path")
        if route is not None:
            use(route, request)
        request.stream = True  # the body is passed on as it comes

    def _routes_in_force(self) -> Routes:
        if self._routes is None:
            raise Refusal(503, "no valid routes file yet")
        return self._routes


def refuse_unless(check: Callable[[http.HTTPFlow], None], flow: http.HTTPFlow) -> None:
    """Let `flow` pass only when `check` returns."""
    flow.response = answer(500, "cannot decide on this request")
    try:
        check(flow)
    except Refusal as refusal:
        flow.response = answer(refusal.status, refusal.reason)
        say(f"{refusal.status} {flow.request.method} {flow.request.host}:{flow.request.port}: {refusal.reason}")
    except Exception as error:
        say(f"500, {type(error).__name__} while deciding")  # its text might quote a header
    else:
        flow.response = None


def check_destination(request: http.Request, host: str, server_name: str) -> None:
    """Refuse a request that names another destination than its connection's, or could seem to."""
    # A bare CR or a folded line ends a header for some servers: it could bring in a second Host.
    if any(re.search(rb"[^\t\x20-\x7e\x80-\xff]", part) for header in request.headers.fields for part in header):
        raise Refusal(403, "control characters in a header")
    hosts = request.headers.get_all("host")
    names = {name.lower() for name in (*hosts, request.authority, server_name) if name}
    if len(hosts) != 1 or not names <= {host, f"{host}:{request.port}", f"[{host}]", f"[{host}]:{request.port}"}:
        raise Refusal(403, "Host header, request target and TLS server name do not all name the destination")


def use(route: Route, request: http.Request) -> None:
    """Give `request` the token of its route, in place of what the client sent in that header."""
    if (route.methods or route.path != "/") and any(name in request.headers for name in REWRITING_HEADERS):
        raise Refusal(403, "a header would change the method or the path")
    if not route.token:
        return
    if request.method in ("TRACE", "TRACK"):
        raise Refusal(403, "this method would show the token")
    value = os.environ.get(route.token, "")
    if not value:
        raise Refusal(502, f"{route.token} is not set")
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise Refusal(502, f"{route.token} holds what no header can carry, such as a line end")
    for name in set(request.headers):
        if name.lower().replace("_", "-") == route.header.lower():  # "_" is "-" to CGI and its heirs
            del request.headers[name]
    request.headers[route.header] = f"{route.scheme} {value}" if route.scheme else value


class Route(NamedTuple):
    """One entry of the file; the fields are its keys."""

    host: str
    port: int = 443
    path: str = "/"
    methods: frozenset[str] = frozenset()  # none: all
    token: str = ""
    header: str = "Authorization"
    scheme: str = ""

    @property
    def rank(self) -> tuple[bool, int, int, bool]:
        """Sorts first what is more specific: a name before *.suffix, long before short, with methods before without."""
        return (self.host.startswith("*"), -len(self.host), -len(self.path), not self.methods)

    def names(self, host: str) -> bool:
        if self.host.startswith("*"):
            return host.endswith(self.host[1:]) and not host.startswith(".")
        return host == self.host

    def allows(self, method: str, path: str) -> bool:
        inside = self.path == "/" or path == self.path or path.startswith(self.path.rstrip("/") + "/")
        return inside and (not self.methods or method in self.methods)

    def repeats(self, other: Route) -> bool:
        return self[:3] == other[:3] and (self.methods == other.methods or not self.methods.isdisjoint(other.methods))


class Routes(NamedTuple):
    """A valid file: what happens where no route fits, and the routes, the most specific first."""

    allow: bool
    table: tuple[Route, ...]

    def to(self, host: str, port: int) -> list[Route]:
        return [route for route in self.table if route.port == port and route.names(host)]

    def find(self, host: str, port: int, method: str, target: str) -> Route | None:
        routes, path = self.to(host, port), target.partition("?")[0]
        if any(route.path != "/" for route in routes) and is_ambiguous(path):
            raise Refusal(403, "this path could be read as another one")
        return next((route for route in routes if route.allows(method, path)), None)


# RFC 3986, less the escapes that hide a dot or a separator and those that nothing calls for (%61 is "a").
PLAIN_PATH = re.compile(
    r"/([\w.~!$&'()*+,;=:@/-]|%(2[0-46-9a-c]|3[ac-f]|40|5[bde]|60|7[b-d]|[89a-f][\da-f]))*", re.ASCII | re.IGNORECASE
)


def is_ambiguous(path: str) -> bool:
    """Whether some server could take `path` for another one, by resolving, decoding or collapsing it."""
    segments = path.split("/")[1:]
    if not PLAIN_PATH.fullmatch(path) or "" in segments[:-1]:
        return True
    try:
        unquote(path, errors="strict")  # %c0%ae was a dot once
    except UnicodeDecodeError:
        return True
    return any(segment.partition(";")[0] in (".", "..") for segment in segments)


class InvalidRoutes(Exception):
    """Says which key of the file is wrong, but never its value: it could be a token that was pasted there."""


LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
TEXT_KEYS = {
    "host": (rf"(\*\.{LABEL}\.)?({LABEL}\.)*[a-z]([a-z0-9-]*[a-z0-9])?", "a name in lower case, or *. and a domain"),
    "token": (r"EGRESS_TOKEN_\w+", "the name of a variable that begins with EGRESS_TOKEN_"),
    "header": (r"[A-Za-z0-9-]+", "the name of a header"),
    "scheme": (r"[A-Za-z0-9-]+", "a word such as Bearer"),
}


def parse_routes(text: str) -> Routes:
    """The routes of a file's text. Raises InvalidRoutes, or what the YAML parser raises."""
    file = YAML(typ="safe", pure=True).load(text)
    demand(isinstance(file, dict), "the file", "a mapping")
    demand(file.keys() <= {"default", "routes"}, "each key of the file", "default or routes")
    default, entries = file.get("default", "deny"), file.get("routes", [])
    demand(default in ("deny", "allow"), "default", "deny or allow")
    demand(isinstance(entries, list), "routes", "a list")
    table = [parse_route(entry, f"routes[{index}]") for index, entry in enumerate(entries)]
    for index, route in enumerate(table):
        demand(not any(map(route.repeats, table[:index])), f"routes[{index}]", "other than those before it")
    return Routes(default == "allow", tuple(sorted(table, key=lambda route: route.rank)))


def parse_route(entry: Any, where: str) -> Route:
    demand(isinstance(entry, dict) and "host" in entry, where, "a mapping with a host")
    demand(entry.keys() <= set(Route._fields), f"each key of {where}", "one of " + ", ".join(Route._fields))
    for key in entry.keys() & TEXT_KEYS.keys():
        pattern, meaning = TEXT_KEYS[key]
        demand(isinstance(entry[key], str) and re.fullmatch(pattern, entry[key], re.ASCII), f"{where}.{key}", meaning)
    path, port, methods = entry.get("path", "/"), entry.get("port", 443), entry.get("methods", ["ALL"])
    plain = isinstance(path, str) and not is_ambiguous(path)
    demand(plain, f"{where}.path", "a path from / on, without dot segments, needless escapes or a query")
    demand(type(port) is int and 0 < port < 65536, f"{where}.port", "a number from 1 to 65535")
    listed = isinstance(methods, list) and methods and all(isinstance(name, str) for name in methods)
    demand(listed and re.fullmatch("[A-Z]+", "".join(methods)), f"{where}.methods", "a list of methods in upper case")
    demand("token" in entry or not entry.keys() & {"header", "scheme"}, f"{where}.token", "there for header and scheme")
    return Route(**{**entry, "methods": frozenset(entry.get("methods", ()))})


def demand(holds: object, what: str, meaning: str) -> None:
    if not holds:
        raise InvalidRoutes(f"{what} must be {meaning}")


def explain(error: Exception) -> str:
    """Why a file was not loaded, as a part of a line that does not quote it."""
    if isinstance(error, InvalidRoutes):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    return type(error).__name__ + (f" in line {mark.line + 1}" if mark else "")


def answer(status: int, reason: str) -> http.Response:
    return http.Response.make(status, f"egress: {reason}\n", {"Content-Type": "text/plain"})


def say(text: str) -> None:
    """One line for the log; parts of it may come from the client."""
    print("egress: " + re.sub(r"[^\x20-\x7e]", "?", text)[:500], flush=True)


addons = [Egress()]
