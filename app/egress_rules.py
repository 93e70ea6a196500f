"""The rules of egress: which request a routes file allows, and with which token. Nothing here knows mitmproxy.

The file is described in egress_routes.example.yaml.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, NamedTuple
from urllib.parse import unquote

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError


class Refusal(Exception):
    """Ends a request: the client gets `status` and `reason`, the log a line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


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

    @property
    def is_limited(self) -> bool:
        """Whether it allows only some methods or paths."""
        return bool(self.methods) or self.path != "/"

    def covers(self, path: str) -> bool:
        return is_inside(path, self.path)

    def allows(self, method: str, path: str) -> bool:
        return self.covers(path) and (not self.methods or method in self.methods)

    def repeats(self, other: Route) -> bool:
        return self[:3] == other[:3] and (self.methods == other.methods or not self.methods.isdisjoint(other.methods))


class Routes(NamedTuple):
    """A valid file: what happens if no route fits, and the routes, the most specific first."""

    allow: bool
    table: tuple[Route, ...]

    def to(self, host: str, port: int) -> list[Route]:
        return [route for route in self.table if route.port == port and route.names(host)]

    def find(self, host: str, port: int, method: str, target: str) -> Route | None:
        routes, path = self.to(host, port), target.partition("?")[0]
        if any(route.path != "/" for route in routes):
            if is_ambiguous(path):
                raise Refusal(403, "this path could be read as another one")
            read = read_leniently(path)
            # /v1/ADMIN and /v1/admin;x are outside a route for /v1/admin, but some servers take them for it.
            if any(route.covers(path) != is_inside(read, read_leniently(route.path)) for route in routes):
                raise Refusal(403, "this path could be read as one of another route")
        return next((route for route in routes if route.allows(method, path)), None)


def is_inside(path: str, prefix: str) -> bool:
    return prefix == "/" or path == prefix or path.startswith(prefix.rstrip("/") + "/")


# RFC 3986, less the escapes that hide a dot or a separator and those that nothing calls for (%61 is "a").
PLAIN_PATH = re.compile(
    r"/([\w.~!$&'()*+,;=:@/-]|%(2[0-46-9a-c]|3[ac-f]|40|5[bde]|60|7[b-d]|[89a-f][\da-f]))*", re.ASCII | re.IGNORECASE
)


# NFKC turns most look-alikes into these or ASCII; the rest are what code pages of old servers turn into a slash.
LIKE_A_DOT = str.maketrans(dict.fromkeys("\u3002\uff61", "."))
SEPARATORS = frozenset("/\\%\u2044\u2215\u2216\u29f5\u29f8")


MOST_ESCAPES = 4096  # NFKC needs quadratic time for combining characters in a row


def is_ambiguous(path: str) -> bool:
    """Whether some server could take `path` for another one, by resolving, decoding or collapsing it."""
    segments = path.split("/")[1:]
    if path.count("%") > MOST_ESCAPES or not PLAIN_PATH.fullmatch(path) or "" in segments[:-1]:
        return True
    try:
        decoded = [unicodedata.normalize("NFKC", unquote(segment, errors="strict")) for segment in segments]
    except UnicodeDecodeError:  # %c0%ae was a dot once
        return True
    if any(not SEPARATORS.isdisjoint(segment) for segment in decoded):
        return True
    return "" in [read_leniently(segment) for segment in segments if segment]


def read_leniently(path: str) -> str:
    """`path` as servers read it that ignore case, width, blanks, parameters and dots at the end of a segment."""
    segments = []
    for segment in path.split("/"):
        text = unicodedata.normalize("NFKC", unquote(segment)).translate(LIKE_A_DOT)
        name = re.split("[;?#]", text)[0]
        segments.append("".join(filter(is_visible, name)).casefold().rstrip("."))
    return "/".join(segments)


def is_visible(character: str) -> bool:
    return character.isprintable() and not character.isspace()


# The headers by which known servers take another method or path than the request line's, or reach for a second path.
REWRITING_HEADERS = frozenset(
    (
        *("x-http-method", "x-http-method-override", "x-method", "x-method-override", "x-original-method"),
        *("x-forwarded-method", "x-original-url", "x-original-uri", "x-original-path", "x-rewrite-url"),
        *("x-forwarded-uri", "x-forwarded-url", "x-forwarded-path", "x-forwarded-prefix", "x-rewrite-uri"),
        *("x-envoy-original-path", "x-waws-unencoded-url", "x-proxy-url", "x-real-uri", "x-override-url"),
        *("path-info", "script-name", "x-script-name", "request-uri", "x-http-destinationurl"),
        *("destination", "x-amz-copy-source", "x-goog-copy-source", "x-ms-copy-source", "x-ms-rename-source"),
    )
)
# What else looks like one is left out: some clients mean something harmless by it (x-stainless-helper-method).
REWRITING_WORDS = re.compile(r"(^|-)(method|override|rewrite|original|ur[il]|path|prefix)(-|$)")
# A proxy says by these which host was asked for. The client of egress is no proxy.
FORWARDING_WORDS = re.compile(r"^(x-)?forwarded(-|$)|(^|-)(original-)?host(-|$)|^x-server-name$")
# These delimit a message or its hops. Spelt content_length, they are none for egress, but are for others.
FRAMING_HEADERS = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect")
)


def plain_name(header: str) -> str:
    """The name that CGI and its successors make of a header's: to them X_Api.Key is X-Api-Key."""
    return re.sub("[^a-z0-9]", "-", header.lower())


def rewriting_header(names: list[str]) -> str | None:
    """The first of `names` that would have a known server see another method or path."""
    return next((name for name in names if plain_name(name) in REWRITING_HEADERS), None)


def is_left_out(name: str, route: Route) -> bool:
    """Whether a header of the client does not go where `route` leads, because it could change what is asked for."""
    plain = plain_name(name)
    if plain == "host" or not (route.token or route.is_limited):
        return False
    if FORWARDING_WORDS.search(plain) or (route.token and plain == plain_name(route.header)):
        return True
    return route.is_limited and bool(REWRITING_WORDS.search(plain))


def is_odd_spelling(name: str) -> bool:
    return not name.replace("-", "").isalnum() and plain_name(name) in FRAMING_HEADERS


def ascii_host(host: str) -> str:
    """The name that is looked up for `host`: mitmproxy decodes xn-- names, routes are written in ASCII."""
    try:
        return (host if host.isascii() else host.encode("idna").decode("ascii")).lower()
    except UnicodeError:
        raise Refusal(400, "the host is no name") from None


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
