#!/usr/bin/env python3
"""A stand-in for pipelock, for the tests on machines that cannot get the real image.

What the bundle relies on, and no more: the command lines `run`, `check` and `healthcheck`, a configuration file that
is read strictly and again when it changes, an allowlist, CONNECT and plain forward proxying, and `GET /health`. No
scanning of any kind. TERM and INT end it at once, HUP reads the file again. USR1, which toggles the real one's kill
switch, ends it: a supervisor that forwarded it would be found out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

VERSION = "stand-in for pipelock 2.3.0"
MAX_HEAD = 64 * 1024
CONNECT_SECONDS = 10


class BadConfig(Exception):
    """The configuration file cannot be used; the text says why."""


@dataclass(frozen=True)
class Config:
    mode: str
    allowlist: tuple[str, ...]
    forward_proxy: bool

    def refusal(self, host: str) -> str | None:
        """Why a request to `host` is not let through; None if it is."""
        if not self.forward_proxy:
            return "forward_proxy is not enabled"
        if self.mode == "strict" and not any(matches(pattern, host) for pattern in self.allowlist):
            return f"{host} is not in api_allowlist"
        return None


def matches(pattern: str, host: str) -> bool:
    """As the real one: `*.example.com` takes in `example.com` itself, and case does not matter."""
    pattern, host = pattern.lower(), host.lower().rstrip(".")
    if pattern.startswith("*."):
        return host == pattern[2:] or host.endswith(pattern[1:])
    return host == pattern


def load_config(path: str) -> Config:
    """Read the file; BadConfig for an unknown key, a wrong type or anything else that the real one refuses."""
    try:
        with open(path, encoding="utf-8") as file:
            document = YAML(typ="safe", pure=True).load(file)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise BadConfig(" ".join(str(error).split())) from error
    top = section(document, "the file", {"version", "mode", "api_allowlist", "forward_proxy", "ssrf"})
    forward_proxy = section(top.get("forward_proxy", {}), "forward_proxy", {"enabled"})
    ssrf = section(top.get("ssrf", {}), "ssrf", {"ip_allowlist"})
    strings(ssrf.get("ip_allowlist", []), "ssrf.ip_allowlist")
    if top.get("version", 1) != 1:
        raise BadConfig("version: only 1 is known")
    mode = top.get("mode", "balanced")
    if mode not in ("strict", "balanced", "audit"):
        raise BadConfig(f"mode: {mode!r} is none of strict, balanced, audit")
    enabled = forward_proxy.get("enabled", False)
    if not isinstance(enabled, bool):
        raise BadConfig("forward_proxy.enabled: not true or false")
    return Config(mode, strings(top.get("api_allowlist", []), "api_allowlist"), enabled)


def changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def section(value: object, where: str, known: set[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadConfig(f"{where}: not a mapping")
    if unknown := sorted(str(key) for key in value if key not in known):
        raise BadConfig(f"{where}: unknown field {', '.join(unknown)}")
    return value


def strings(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadConfig(f"{where}: not a list of strings")
    return tuple(value)


class Proxy:
    def __init__(self, path: str) -> None:
        self.path = path
        self.read_at = changed_at(path)
        self.config = load_config(path)

    def reload(self) -> None:
        """On HUP, and when the file was changed: the new file, or what is in force where the new one is bad."""
        self.read_at = changed_at(self.path)
        try:
            self.config = load_config(self.path)
            say(f"loaded {len(self.config.allowlist)} host(s)")
        except BadConfig as error:
            say(f"cannot load {self.path}: {error}; keeping what is in force")

    async def serve(self, host: str, port: int) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, ended.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        await asyncio.start_server(self.converse, host, port, limit=MAX_HEAD)
        say(f"listening on {host}:{port}, {len(self.config.allowlist)} host(s) allowed")
        await ended.wait()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client: one request, or one tunnel, and the end."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            await self.answer(head, reader, writer)
        writer.close()

    async def answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.read_at != changed_at(self.path):  # the real one is told by inotify
            self.reload()
        request_line, _, fields = head.partition(b"\r\n")
        method, target, *_ = [*request_line.decode("latin-1").split(" "), "", ""]
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        if not url.hostname:
            answer_page(target, writer)
        elif refusal := self.config.refusal(url.hostname):
            say(f"blocked {method} {url.hostname}")
            reply(writer, 403, f"blocked: {refusal}")
        else:
            try:
                connecting = asyncio.open_connection(url.hostname, url.port or 80)
                upstream_reader, upstream = await asyncio.wait_for(connecting, CONNECT_SECONDS)
            except (OSError, TimeoutError) as error:
                reply(writer, 502, f"cannot reach {url.hostname}: {error}")
                return
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
            else:
                path = (url.path or "/") + (f"?{url.query}" if url.query else "")
                upstream.write(f"{method} {path} HTTP/1.1\r\nConnection: close\r\n".encode("latin-1"))
                upstream.write(without_connection(fields))
            await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer))


def answer_page(target: str, writer: asyncio.StreamWriter) -> None:
    """A request for the proxy itself, not for a host behind it."""
    if target == "/health":
        reply(writer, 200, json.dumps({"status": "healthy", "version": VERSION}), "application/json")
    else:
        reply(writer, 404, "no such page")


def without_connection(fields: bytes) -> bytes:
    lines = fields.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith((b"connection:", b"proxy-")))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


def reply(writer: asyncio.StreamWriter, status: int, text: str, kind: str = "text/plain") -> None:
    body = (text + "\n").encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)


def say(text: str) -> None:
    print(f"pipelock stand-in: {text}", flush=True)


def run(options: argparse.Namespace) -> int:
    host, _, port = options.listen.rpartition(":")
    asyncio.run(Proxy(options.config).serve(host, int(port)))
    return 0


def check(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    print(f"Config validation: OK\n  Mode: {config.mode}\n  API allowlist: {len(config.allowlist)} domains")
    return 0


def healthcheck(options: argparse.Namespace) -> int:
    try:
        with urllib.request.urlopen(f"http://{options.addr}/health", timeout=5):
            return 0
    except (OSError, urllib.error.URLError) as error:
        print(f"cannot reach {options.addr}: {error}", file=sys.stderr)
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="pipelock", description=VERSION)
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(required=True)

    def command(name: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name)
        sub.set_defaults(action=action)
        return sub

    for sub in (running := command("run", run), command("check", check)):
        sub.add_argument("-c", "--config", required=True)
    running.add_argument("-l", "--listen", default="127.0.0.1:8888")
    command("healthcheck", healthcheck).add_argument("--addr", default="127.0.0.1:8888")

    options = parser.parse_args()
    try:
        code: int = options.action(options)
    except BadConfig as error:
        print(f"Config validation FAILED: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
