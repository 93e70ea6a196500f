"""The world around egress in its tests: what stands upstream, the daemon itself, and a client that may misbehave."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tests.support import ROOT, free_port, wait_until

ENTRYPOINT = ROOT / "egress-entrypoint.sh"
PROGRAMS = [ROOT / "app" / f"egress_{name}.py" for name in ("addon", "limits", "rules")]
MITMDUMP = os.environ.get("MITMDUMP") or shutil.which("mitmdump") or ""
UNTRUSTED = "untrusted.example.test"

# As root every file is writable. Without capabilities root is an account like others, and owns what the tests make.
AS_ACCOUNT = [shutil.which("setpriv") or "", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


class Request(NamedTuple):
    """What arrived at a server behind TLS."""

    server_name: str
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of all headers that a server could take for `name`."""
        return [value for key, value in self.headers if key.lower().replace("_", "-") == name.lower()]


class Upstream(socketserver.ThreadingTCPServer):
    """A proxy in pipelock's place that is also every server behind it, and remembers all that came."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _UpstreamHandler)
        self.connects: list[str] = []
        self.plain: list[str] = []
        self.heads: list[str] = []
        self.requests: list[Request] = []
        self.frames = bytearray()
        self.may_finish = threading.Event()
        self.ca = _make_certificate(directory, "ca", "DNS:ca.test")
        trusted = _make_certificate(directory, "trusted", "DNS:*.example.test,DNS:*.wild.example.test", signer=self.ca)
        untrusted = _make_certificate(directory, "untrusted", f"DNS:{UNTRUSTED}")
        self.trusted, self.untrusted = _server_context(trusted), _server_context(untrusted)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.may_finish.set()
        self.shutdown()
        self.server_close()

    def forget(self) -> None:
        for memory in (self.connects, self.plain, self.heads, self.requests):
            memory.clear()
        self.frames = bytearray()
        self.may_finish.clear()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is part of the tests."""


class _UpstreamHandler(socketserver.BaseRequestHandler):
    server: Upstream

    def handle(self) -> None:
        with self.request.makefile("rb", buffering=0) as stream:  # unbuffered: what follows the head is TLS
            head = _read_head(stream)
        if not head.startswith("CONNECT "):
            if head:
                self.server.plain.append(head)
                kept = "/kept" in head
                end = b"" if kept else b"Connection: close\r\n"
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + end + b"\r\nplain")
                if kept:
                    self.server.may_finish.wait(60)
            return
        self.server.connects.append(head.split(" ")[1])
        if head.startswith("CONNECT stalled."):
            self.server.may_finish.wait(60)
        self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        start = self.request.recv(1, socket.MSG_PEEK)
        if start == b"\x16":
            self._serve_tls()
        elif start:
            self.server.plain.append(self.request.recv(65536).decode("latin-1"))

    def _serve_tls(self) -> None:
        name = ""

        def choose(tls: ssl.SSLObject, asked: str | None, _context: ssl.SSLContext) -> None:
            nonlocal name
            name = asked or ""
            tls.context = self.server.untrusted if name == UNTRUSTED else self.server.trusted

        context = _server_context(None)
        context.sni_callback = choose
        with context.wrap_socket(self.request, server_side=True) as tls, tls.makefile("rb", buffering=0) as raw:
            stream = cast(BinaryIO, raw)
            while head := _read_head(stream):
                self.server.heads.append(head)
                line, *fields = head.splitlines()
                headers = [(key, value.strip()) for key, _, value in (field.partition(":") for field in fields)]
                request = Request(name, line, headers, _read_body(stream, dict((k.lower(), v) for k, v in headers)))
                self.server.requests.append(request)
                self._answer(tls, stream, request)

    def _answer(self, tls: ssl.SSLSocket, stream: BinaryIO, request: Request) -> None:
        if "/redirect" in request.line:
            tls.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://other.example.test/\r\nContent-Length: 0\r\n\r\n")
        elif "/slow" in request.line:
            tls.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            self.server.may_finish.wait(60)
            tls.sendall(b"4\r\nlast\r\n0\r\n\r\n")
        elif "/socket" in request.line:
            tls.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            frames = self.server.frames
            frames += _read_exactly(stream, 11)
            tls.sendall(b"\x81\x02hi")
            while data := stream.read(65536):
                frames += data
        elif "/trailers" in request.line:
            chunks = b"2\r\nok\r\n0\r\nX-Trailer: x\r\n\r\n"
            tls.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        elif "/long-head" in request.line:
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + b"X: x\r\n" * 100_000 + b"\r\nok")
        else:
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Egress:
    """One egress daemon, started by the real entrypoint, with files of its own under `directory`."""

    def __init__(self, directory: Path, upstream: Upstream, routes: str, tokens: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.upstream = upstream
        self.tokens = tokens or {}
        self.routes = directory / "routes.yaml"
        self.routes.write_text(routes)
        self.addon = directory / "app" / "egress_addon.py"
        self.addon.parent.mkdir()
        for program in PROGRAMS:
            (self.addon.parent / program.name).write_bytes(program.read_bytes())
        self.conf = directory / "conf"
        self.output = directory / "output"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.descriptors = 0  # how many it may open; 0: as many as this process

    def patch(self, code: str) -> None:
        """Put `code` at the end of the addon: breaks it, or makes it wait."""
        with self.addon.open("a") as addon:
            addon.write("\n" + code)

    def spawn(self, **environment: str | None) -> subprocess.Popen[bytes]:
        limit = [f'ulimit -n {self.descriptors}; exec "$@"', "sh"] if self.descriptors else ['exec "$@"', "sh"]
        for program in self.addon.parent.iterdir():
            program.chmod(0o444)
        self.addon.parent.chmod(0o555)
        files = {"EGRESS_ADDON": self.addon, "EGRESS_ROUTES": self.routes, "EGRESS_CONFDIR": self.conf}
        basis: dict[str, str | None] = {
            "PATH": f"{Path(MITMDUMP).parent}:{os.environ['PATH']}",
            "EGRESS_PORT": str(self.port),
            "EGRESS_UPSTREAM_PROXY": self.upstream.url,
            "EGRESS_UPSTREAM_CA": str(self.upstream.ca),
        }
        complete = basis | {name: str(path) for name, path in files.items()} | self.tokens | environment
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", *limit, *AS_ACCOUNT, "/bin/sh", str(ENTRYPOINT)],
                env={name: value for name, value in complete.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self.process

    def start(self, **environment: str | None) -> Egress:
        self.spawn(**environment)
        wait_until(self._accepts, 60, "egress accepts connections")
        return self

    def _accepts(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"egress ended with {self.process.returncode}: {self.log()}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def peak(self) -> int:
        """The most memory that it has used, in KiB."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])

    def log(self) -> str:
        return self.output.read_text()

    def reload(self, routes: str, expected: str) -> None:
        """Write `routes`, send HUP and wait for the `expected` in what is logged after it."""
        assert self.process is not None
        before = len(self.log())
        self.routes.write_text(routes)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: expected in self.log()[before:], 30, f"the log says {expected!r}")

    def ended(self, seconds: float = 60) -> int:
        """Wait for the daemon's own end: its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.addon.parent.chmod(0o755)

    # What a client does.

    def connect(self, peer: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60, (peer, 0))

    def tunnel(self, target: str) -> tuple[int, str, socket.socket]:
        """CONNECT to `target`: the status, the text of a refusal, and the connection."""
        connection = self.connect()
        connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""  # byte by byte: what follows the head is the tunnel's
        while not head.endswith(b"\r\n\r\n"):
            byte = connection.recv(1)
            if not byte:
                break
            head += byte
        status = int(head.split(b" ")[1])
        text = "" if status == 200 else connection.recv(4096).decode()
        return status, text, connection

    def tls(self, host: str, port: int = 443, server_name: str | None = None, alpn: str = "http/1.1") -> ssl.SSLSocket:
        """A TLS connection through a tunnel to `host`, which may ask for another name."""
        status, text, connection = self.tunnel(f"{host}:{port}")
        if status != 200:
            connection.close()
            raise Refused(status, text)
        context = ssl.create_default_context(cafile=self.conf / "mitmproxy-ca-cert.pem")
        context.check_hostname = False
        context.set_alpn_protocols([alpn])
        return context.wrap_socket(connection, server_hostname=server_name or host)

    def get(self, host: str, path: str = "/", *headers: str, method: str = "GET", **connection: Any) -> tuple[int, str]:
        """One request with `host` in its Host header, after it `headers`: status and text."""
        return self.send(host, "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *headers)), **connection)

    def send(self, host: str, head: str, body: bytes = b"", **connection: Any) -> tuple[int, str]:
        """One request as it is written, through a tunnel to `host`: status and text."""
        try:
            with self.tls(host, **connection) as tls:
                tls.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
                return read_response(tls)
        except Refused as refused:
            return refused.status, refused.text

    def plainly(self, head: str) -> tuple[int, str]:
        """One request to the proxy itself, without a tunnel."""
        with self.connect() as connection:
            connection.sendall(head.encode("latin-1") + b"\r\n\r\n")
            return read_response(connection)


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text


def read_response(connection: socket.socket) -> tuple[int, str]:
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.read().decode()


def _read_head(stream: BinaryIO) -> str:
    lines = []
    while (line := stream.readline()) not in (b"", b"\r\n", b"\n"):
        lines.append(line)
    return b"".join(lines).decode("latin-1")


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return _read_exactly(stream, int(headers.get("content-length", "0")))
    body = b""
    while size := int(stream.readline(), 16):
        body += _read_exactly(stream, size)
        stream.readline()
    stream.readline()
    return body


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _make_certificate(directory: Path, name: str, names: str, signer: Path | None = None) -> Path:
    """A certificate and its key in one PEM file, signed by `signer` or by itself."""
    key, pem = directory / f"{name}.key", directory / f"{name}.pem"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}.test"
    command += f" -addext subjectAltName={names} -keyout {key} -out {pem}"
    if signer:
        command += f" -CA {signer} -CAkey {signer} -addext basicConstraints=CA:FALSE"
    else:
        command += " -addext keyUsage=critical,keyCertSign,cRLSign"
    subprocess.run(command.split(), check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + key.read_bytes())
    return pem


def _server_context(pem: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if pem:
        context.load_cert_chain(pem)
    return context
