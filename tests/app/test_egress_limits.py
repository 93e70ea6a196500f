"""What one client can make egress hold, compute or keep open: each attack, and a control without the limit."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import struct
import unittest
from collections.abc import Callable, Iterator

from tests.app.egress_support import Egress, read_response
from tests.app.test_egress import ONLY_OPEN, ROUTES, EgressTestCase
from tests.support import wait_until

TUNNEL = b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: api.example.test\r\n"
UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: api.example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)


def client_hello(host: str = "api.example.test") -> bytes:
    context, outgoing = ssl.create_default_context(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=host).do_handshake()
    return outgoing.read()


def client_hello_with(name: bytes) -> bytes:
    """A ClientHello whose server name may be one that the ssl module would refuse to write."""
    extension = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    suites = struct.pack("!BHHBB", 0, 2, 0xC02F, 1, 0)  # no session, one suite, no compression
    body = b"\x03\x03" + bytes(32) + suites + struct.pack("!H", len(extension)) + extension
    return b"\x16\x03\x01" + struct.pack("!HBxH", len(body) + 4, 1, len(body)) + body


def in_records_of_one_byte(hello: bytes) -> list[bytes]:
    return [b"\x16\x03\x01\x00\x01" + hello[index : index + 1] for index in range(5, len(hello))]


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """A masked WebSocket frame, with a mask of zeroes."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB4x", first, 0x80 | size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH4x", first, 0xFE, size) + payload
    return struct.pack("!BBQ4x", first, 0xFF, size) + payload


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes or resets the connection."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := connection.recv(65536):
            received += data
    return received


def send_until_closed(connection: socket.socket, piece: bytes, pieces: int) -> int:
    """How many bytes are taken."""
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
        for _ in range(pieces):
            connection.sendall(piece)
            sent += len(piece)
    return sent


class LimitTestCase(EgressTestCase):
    def patched(self, code: str, routes: str = ROUTES) -> Egress:
        egress = self.new_egress(routes)
        egress.patch(code)
        return egress.start()

    def wait_for_log(self, egress: Egress, text: str) -> None:
        wait_until(lambda: text in egress.log(), 30, f"the log says {text!r}")

    @contextlib.contextmanager
    def begin_tls(self, egress: Egress, inside: bool) -> Iterator[socket.socket]:
        """A connection on which TLS may begin, to egress itself or inside a tunnel."""
        with egress.tunnel("api.example.test:443")[2] if inside else egress.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


class HelloTests(LimitTestCase):
    COUNTED = (
        "from mitmproxy.proxy.layers import tls as _tls\n"
        "_parse = _tls.parse_client_hello\n"
        "def _counted(data):\n"
        "    print('parsed', flush=True)\n"
        "    return _parse(data)\n"
        "_tls.parse_client_hello = _counted\n"
    )
    WITHOUT = "del egress_limits.ClientTLS.receive_handshake_data\n"

    def parses(self, code: str, inside: bool) -> int:
        egress = self.patched(self.COUNTED + code)
        with self.begin_tls(egress, inside) as connection:
            for record in in_records_of_one_byte(client_hello()):
                connection.sendall(record)
            self.assertEqual(b"\x16", connection.recv(1))
        return egress.log().count("parsed\n")

    def test_hello_in_many_records_is_parsed_once(self) -> None:
        for inside in (False, True):
            with self.subTest(inside=inside):
                self.assertEqual(1, self.parses("", inside))
        self.assertGreater(self.parses(self.WITHOUT, True), 1)

    def test_long_hello_is_not_collected(self) -> None:
        """The control shows its last record found wrong; with the limit it comes too late."""
        start = b"\x16\x03\x01\x00\x04\x01\x0f\xff\xff"
        for code, inside, told in (
            ("", False, "ClientHello too long"),
            ("", True, "ClientHello too long"),
            (self.WITHOUT, True, "Cannot parse ClientHello"),
        ):
            egress = self.patched(code)
            with self.subTest(code=code, inside=inside), self.begin_tls(egress, inside) as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(start + b"\x16\x03\x01\x01\x00" + b"x" * 256)
                    connection.sendall((b"\x16\x03\x01\x01\x00" + b"x" * 256) * 400 + b"\xff" * 5)
                self.wait_for_log(egress, told)
                self.assertLess(len(egress.log()), 300_000)

    def test_log_does_not_repeat_a_hello_that_cannot_be_parsed(self) -> None:
        egress = self.patched("")
        with self.begin_tls(egress, True) as connection:
            connection.sendall(b"\x16\x03\x01\x80\x00\x01\x00\x7f\xfc" + b"\xff" * 0x7FFC)
            self.assertEqual(b"", rest_of(connection))
        wait_until(lambda: "Cannot parse ClientHello" in egress.log(), 30, "the log tells")
        self.assertLess(len(egress.log()), 1000)

    def test_slow_start_is_ended(self) -> None:
        """In the control the same connections are completed after that."""
        hello, head = client_hello(), b"CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test:443\r\n"
        limited = self.patched("egress_limits.START_SECONDS = 1.5")
        control = self.patched("egress_limits.START_SECONDS = 600")
        for name, inside, first, rest, answer in (
            ("hello to egress", False, hello[:50], hello[50:], b"\x16"),
            ("hello in a tunnel", True, hello[:50], hello[50:], b"\x16"),
            ("head", False, head, b"\r\n", b"H"),
        ):
            with (
                self.subTest(name),
                self.begin_tls(limited, inside) as ended,
                self.begin_tls(control, inside) as kept,
            ):
                kept.sendall(first)
                ended.sendall(first)
                self.assertEqual(b"", rest_of(ended))
                kept.sendall(rest)
                self.assertEqual(answer, kept.recv(1))

    def test_start_in_time_leaves_no_deadline_behind(self) -> None:
        egress = self.patched("egress_limits.START_SECONDS = 5")
        with egress.tls("api.example.test") as tls:
            tls.sendall(b"GET /slow HTTP/1.1\r\n")
            tls.sendall(b"Host: api.example.test\r\n\r\n")
            self.assertTrue(tls.recv(1))
            with self.begin_tls(egress, False) as other:  # begun later: the first one's deadline has passed by then
                other.sendall(b"GET /")
                self.assertEqual(b"", rest_of(other))
            self.upstream.may_finish.set()
            received = b""
            while b"last" not in received:
                received += tls.recv(4096)


class NameTests(LimitTestCase):
    """Host names longer than any can be. Python's idna codec would normalize them, which takes quadratic time."""

    MARKS = "\u0301" * 200 + "\u0316" * 200
    COUNTED = (
        "import encodings.idna\n"
        "_nameprep = encodings.idna.nameprep\n"
        "def _counted(label):\n"
        f"    if label.endswith({MARKS!a}):\n"
        "        print('normalized', flush=True)\n"
        "    return _nameprep(label)\n"
        "encodings.idna.nameprep = _counted\n"
    )
    WITHOUT = "egress_limits.limit_names = lambda: None\n"
    WRITTEN, ENCODED = MARKS.encode(), b"xn--" + MARKS.encode("punycode")
    LONGEST = ".".join(("x" * 63, "x" * 63, "x" * 63, "x" * 61))

    def assert_normalized_only_without(self, send: Callable[[Egress], None]) -> None:
        for code, normalized in (("", False), (self.WITHOUT, True)):
            egress = self.patched(self.COUNTED + code)
            with self.subTest(code=code):
                send(egress)
                self.assertEqual(normalized, "normalized\n" in egress.log())

    def assert_head_is_refused(self, line: bytes, host: bytes = b"api.example.test", tunnel: bool = False) -> None:
        def send(egress: Egress) -> None:
            with egress.tls("api.example.test") if tunnel else egress.connect() as connection:
                connection.sendall(line + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
                self.assertEqual(400, read_response(connection)[0])

        self.assert_normalized_only_without(send)
        self.assert_nothing_arrived()

    def test_long_name_in_a_connect_is_not_normalized(self) -> None:
        self.assert_head_is_refused(b"CONNECT " + self.ENCODED + b":443")

    def test_long_name_in_an_absolute_target_is_not_normalized(self) -> None:
        for tunnel in (False, True):
            self.assert_head_is_refused(b"GET https://" + self.ENCODED + b"/", tunnel=tunnel)

    def test_long_name_that_only_urllib_finds_in_a_target_is_not_normalized(self) -> None:
        for tunnel in (False, True):
            self.assert_head_is_refused(b"GET \x01//" + self.WRITTEN + b"/://x.test:80/", tunnel=tunnel)

    def test_long_name_in_a_host_header_is_not_normalized(self) -> None:
        self.assert_head_is_refused(b"GET /", self.WRITTEN)

    def test_long_name_in_a_hello_is_not_normalized(self) -> None:
        for inside in (False, True):

            def send(egress: Egress, inside: bool = inside) -> None:
                with self.begin_tls(egress, inside) as connection:
                    connection.sendall(client_hello_with(self.ENCODED))
                    self.assertEqual(b"", rest_of(connection))

            self.assert_normalized_only_without(send)

    def test_longest_name_is_not_too_long(self) -> None:
        """No server has a certificate for it, but one is asked."""
        egress = self.patched("", "default: allow")
        head = f"GET https://{self.LONGEST}:65535/ HTTP/1.1\r\nHost: {self.LONGEST}:65535"
        self.assertEqual(502, egress.send(self.LONGEST, head, port=65535)[0])
        self.assertEqual([f"{self.LONGEST}:65535"], self.upstream.connects)


def keeps(egress: Egress, kib: int) -> None:
    """Wait until it has read what was sent: a part of that may still be in a socket."""
    wait_until(lambda: egress.peak() > kib, 60, f"egress needs more than {kib} KiB")


class MemoryTests(LimitTestCase):
    BODY = b"x" * 1_000_000

    def refused_upload(self, code: str, framing: bytes, piece: bytes) -> tuple[int, int, bytes]:
        """Bytes that a refused request could send, KiB that egress grew by, and the answer."""
        egress = self.patched(code)
        before = egress.peak()
        with egress.tls("paths.example.test") as tls:
            tls.sendall(b"POST /allowed HTTP/1.1\r\nHost: paths.example.test\r\n" + framing + b"\r\n\r\n")
            sent = send_until_closed(tls, piece, 100)
            answer = tls.recv(65536) if sent == 100 * len(piece) else b""
            return sent, egress.peak() - before, answer

    def test_refused_body_is_not_kept(self) -> None:
        chunk = b"%x\r\n%s\r\n" % (len(self.BODY), self.BODY)
        for framing, piece in ((b"Content-Length: 100000000", self.BODY), (b"Transfer-Encoding: chunked", chunk)):
            with self.subTest(framing):
                sent, grown, _ = self.refused_upload("", framing, piece)
                self.assertLess(sent, 20_000_000)
                self.assertLess(grown, 30_000)
        without = "del egress_limits.Stream.check_killed\n"
        sent, grown, answer = self.refused_upload(without, b"Content-Length: 100000000", self.BODY)
        self.assertEqual(100_000_000, sent)
        self.assertGreater(grown, 90_000)
        self.assertIn(b" 403 ", answer)

    def test_refused_request_is_answered_before_its_body_and_closed(self) -> None:
        egress = self.patched("egress_limits.LINGER_SECONDS = 0.3")
        head = b"POST /allowed HTTP/1.1\r\nHost: paths.example.test\r\n"
        for framing in (
            b"Content-Length: 5",
            b"Transfer-Encoding: chunked",
            b"Content-Length: 5\r\nExpect: 100-continue",
        ):
            with self.subTest(framing), egress.tls("paths.example.test") as tls:
                tls.sendall(head + framing + b"\r\n\r\n")
                self.assertEqual((403, "egress: no route for this host, port, method and path\n"), read_response(tls))
                self.assertEqual(b"", rest_of(tls))

    def test_answer_is_not_lost_when_the_body_came_first(self) -> None:
        egress = self.patched("")
        for size in (5, 500_000):
            head = f"POST /allowed HTTP/1.1\r\nHost: paths.example.test\r\nContent-Length: {size}"
            with self.subTest(size):
                self.assertEqual(403, egress.send("paths.example.test", head, b"x" * size)[0])

    def test_connect_with_a_body_is_refused(self) -> None:
        egress = self.patched("")
        for framing in ("Content-Length: 5", "Transfer-Encoding: chunked"):
            answer = egress.plainly(f"CONNECT open.example.test:443 HTTP/1.1\r\nHost: open.example.test\r\n{framing}")
            self.assertEqual((400, "egress: a CONNECT has no body\n"), answer)
        self.assertNotIn("crashed", egress.log())

    def test_body_waits_for_its_server_outside_of_egress(self) -> None:
        routes = "routes: [{host: stalled.example.test}]"
        for code, least in (("", 0), ("egress_limits.WAITING_BYTES = 1 << 40", 60_000_000)):
            egress = self.patched(code, routes)
            before = egress.peak()
            self.upstream.may_finish.clear()
            with self.subTest(code), egress.tls("stalled.example.test") as tls:
                tls.sendall(b"POST / HTTP/1.1\r\nHost: stalled.example.test\r\nContent-Length: 80000000\r\n\r\n")
                tls.settimeout(5)  # for each piece; with the limit one of the first is not taken at all
                send_until_closed(tls, self.BODY, 80)
                if least:
                    keeps(egress, before + least // 1024)
                else:
                    self.assertLess(egress.peak() - before, 20_000)
            self.upstream.may_finish.set()

    def test_body_that_had_to_wait_arrives_whole(self) -> None:
        egress = self.patched("", "routes: [{host: stalled.example.test}]")
        body = os.urandom(3_000_000)
        with egress.tls("stalled.example.test") as tls:
            tls.sendall(b"POST / HTTP/1.1\r\nHost: stalled.example.test\r\nContent-Length: 3000000\r\n\r\n")
            tls.sendall(body[:200_000])
            wait_until(lambda: self.upstream.connects, 30, "egress asks for a tunnel")
            tls.sendall(body[200_000:400_000])
            self.upstream.may_finish.set()
            tls.sendall(body[400_000:])
            self.assertEqual((200, "ok"), read_response(tls))
        self.assertEqual(body, self.upstream.requests[0].body)

    def test_what_is_sent_ahead_of_its_turn_is_not_kept(self) -> None:
        for code, most in (("", 30_000), ("egress_limits.HEAD_BYTES = 1 << 40", None)):
            egress = self.patched(code)
            with self.subTest(code), egress.tls("api.example.test") as tls:
                tls.sendall(b"GET /slow HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
                wait_until(lambda: self.upstream.heads, 30, "the request arrives")
                before = egress.peak()
                sent = send_until_closed(tls, self.BODY, 60)
                if most:
                    self.assertLess(sent, 20_000_000)
                    self.assertLess(egress.peak() - before, most)
                else:
                    self.assertEqual(60_000_000, sent)
                    keeps(egress, before + 50_000)
            self.upstream.forget()

    def test_endless_chunk_header_is_not_kept(self) -> None:
        egress = self.patched("")
        with egress.tls("api.example.test") as tls:
            tls.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1;")
            self.assertLess(send_until_closed(tls, self.BODY, 60), 20_000_000)
        self.assertEqual([], self.upstream.requests)

    def test_long_head_is_answered_with_431(self) -> None:
        long = {"one header": b"X: " + b"x" * 70_000, "many": b"X: x\r\n" * 14_000, "no end": b"X: " + b"x" * 200_000}
        egress = self.patched("")
        control = self.patched("egress_limits.HEAD_BYTES = egress_limits.HEAD_LINES = 1 << 40")
        for name, headers in long.items():
            with self.subTest(name), egress.tls("api.example.test") as tls:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: api.example.test\r\n" + headers)
                if name != "no end":
                    tls.sendall(b"\r\n\r\n")
                self.assertEqual(431, read_response(tls)[0])
        self.assert_nothing_arrived()
        self.assertEqual(200, control.get("api.example.test", "/", long["one header"].decode())[0])
        with egress.connect() as connection:
            connection.sendall(b"CONNECT api.example.test:443 HTTP/1.1\r\n" + b"X: x\r\n" * 300 + b"\r\n")
            self.assertEqual(431, read_response(connection)[0])

    def test_long_head_of_a_response_is_answered_with_502(self) -> None:
        self.assertEqual(502, self.patched("").get("api.example.test", "/long-head")[0])


class MessageTests(LimitTestCase):
    @contextlib.contextmanager
    def websocket(self, egress: Egress) -> Iterator[ssl.SSLSocket]:
        with egress.tls("api.example.test") as tls:
            tls.sendall(UPGRADE)
            self.assertIn(b" 101 ", tls.recv(4096))
            yield tls

    def test_message_that_is_too_long_closes_the_websocket(self) -> None:
        limited, control = self.patched("egress_limits.MESSAGE_BYTES = 100_000"), self.patched("")
        messages = {
            "one frame": frame(b"x" * 110_000),
            "many frames": frame(b"x" * 30_000, 0x02) + 3 * frame(b"x" * 30_000, 0x00) + frame(b"", 0x80),
        }
        for name, data in messages.items():
            with self.subTest(name), self.websocket(limited) as tls:
                send_until_closed(tls, data, 1)
                self.assertIn(b"\x03\xf1message too big", rest_of(tls))
        with self.websocket(control) as tls:
            tls.sendall(messages["many frames"])
            self.assertEqual(b"\x82\x02hi", tls.recv(4096).replace(b"\x81", b"\x82"))

    def test_long_frame_is_passed_on_as_it_comes_and_not_kept(self) -> None:
        kept = "egress_limits.WebSocket = egress_limits.websocket.WebsocketLayer\n"
        unfinished = frame(b"x" * 10_000_000)[:-1]
        for code in ("", kept):
            egress = self.patched(code)
            before = egress.peak()
            with contextlib.ExitStack() as held, self.subTest(code):
                for _ in range(6):
                    tls = held.enter_context(self.websocket(egress))
                    tls.sendall(unfinished)
                    if not code:
                        self.assertEqual(b"\x81\x02hi", tls.recv(4096))
                if code:
                    keeps(egress, before + 40_000)
                else:
                    self.assertLess(egress.peak() - before, 40_000)

    def test_message_arrives_as_it_was(self) -> None:
        payload = "\u20ac".encode() * 100_000
        with self.websocket(self.patched("")) as tls:
            data = frame(payload, 0x81) + frame(b"second", 0x01) + frame(b", third", 0x80)
            for start in range(0, len(data), 1001):
                tls.sendall(data[start : start + 1001])
            wait_until(
                lambda: len(_unmasked(bytes(self.upstream.frames))[0]) >= len(payload) + 13, 30, "all of it arrives"
            )
        message, opcodes = _unmasked(bytes(self.upstream.frames))
        self.assertEqual(payload + b"second, third", message)
        self.assertEqual([0x01, *[0x00] * (len(opcodes) - 4), 0x80, 0x01, 0x80], opcodes)  # short frames as they were

    def test_websocket_is_not_compressed(self) -> None:
        with self.websocket(self.patched("")):
            self.assertEqual([], self.upstream.requests[0].all("sec-websocket-extensions"))


class ConnectionTests(LimitTestCase):
    def test_connections_are_limited_per_peer_and_in_all(self) -> None:
        egress = self.patched("egress_limits.CLIENTS, egress_limits.CLIENTS_PER_PEER = 3, 2")
        with contextlib.ExitStack() as held:

            def admitted(peer: str) -> bool:
                connection = held.enter_context(egress.connect(peer))
                connection.sendall(TUNNEL)
                return b" 200 " in connection.recv(4096)

            def refused(peer: str) -> bool:
                with egress.connect(peer) as connection:
                    return b" 200 " not in rest_of(connection)

            wait_until(lambda: admitted("127.0.0.1"), 30, "the probe's connection has ended")
            wait_until(lambda: admitted("127.0.0.1"), 30, "the probe's connection has ended")
            self.assertTrue(refused("127.0.0.1"))
            self.assertTrue(admitted("127.0.0.2"))
            self.assertTrue(refused("127.0.0.3"))
        self.assertIn("egress: refusing connections: 127.0.0.1 has 2, all have 2\n", egress.log())
        with egress.connect() as connection:
            wait_until(lambda: egress.get("api.example.test")[0] == 200, 30, "connections are free again")
            connection.close()

    def test_connections_to_servers_are_limited(self) -> None:
        egress = self.patched("egress_limits.CLIENTS = 1", "default: allow")

        def get(name: str) -> int:
            head = f"GET http://{name}.example.test/kept HTTP/1.1\r\nHost: {name}.example.test\r\n\r\n"
            connection.sendall(head.encode())
            return read_response(connection)[0]

        admitted = wait_until(lambda: _admitted(egress), 30, "the probe's connection has ended")
        with admitted or egress.connect() as connection:
            self.assertEqual(([200, 200], 502), ([get("a"), get("b")], get("c")))
        self.upstream.may_finish.set()

    EXHAUSTING = (
        "egress_limits.SPARE_DESCRIPTORS = -10_000\n"  # as many connections as there are descriptors
        "egress_limits.CLIENTS_PER_PEER = 10_000\n"
        "Egress._read_routes = lambda self: ROUTES_FILE.read_text()\n"
        "RETRY_SECONDS = 10_000\n"
    )

    def revoke(self, code: str) -> tuple[Egress, str]:
        """Remove a route while clients hold every connection they can get: what the log says of the reload."""
        egress = self.new_egress()
        egress.patch(code)
        egress.descriptors = 300
        egress.start()
        with contextlib.ExitStack() as held:
            for _ in range(330):  # more than descriptors, no more than those and the ones that wait to be accepted
                with contextlib.suppress(OSError):
                    held.enter_context(egress.connect())
            before = len(egress.log())
            egress.routes.write_text(ONLY_OPEN)
            assert egress.process is not None
            egress.process.send_signal(signal.SIGHUP)
            pattern = ("loaded 1 route", "cannot load")
            wait_until(lambda: any(text in egress.log()[before:] for text in pattern), 30, "the reload is told")
            told = egress.log()[before:]
        return egress, told

    def test_route_can_be_revoked_while_connections_are_exhausted(self) -> None:
        egress, told = self.revoke("")
        self.assertIn("egress: loaded 1 route(s)", told)
        wait_until(lambda: _status(egress) == 403, 30, "connections are free again")
        control, told = self.revoke(self.EXHAUSTING)
        self.assertIn("Too many open files", told)
        wait_until(lambda: _status(control) == 200, 30, "the revoked token is still given out")

    def test_reload_that_fails_is_tried_again_without_another_hup(self) -> None:
        egress = self.patched("RETRY_SECONDS = 0.05")
        egress.routes.chmod(0)
        assert egress.process is not None
        egress.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: "Permission denied; 9 route(s) stay in force; trying again" in egress.log(), 30, "it is told"
        )
        egress.routes.chmod(0o644)
        egress.routes.write_text(ONLY_OPEN)
        wait_until(lambda: "loaded 1 route(s)" in egress.log(), 30, "the file is in force")
        self.assertEqual(1, egress.log().count("Permission denied"))


def _unmasked(frames: bytes) -> tuple[bytes, list[int]]:
    """What masked frames carry, and the first byte of each; the last may be incomplete."""
    payload, opcodes, offset = b"", [], 0
    while len(frames) >= offset + 6:
        size, start = frames[offset + 1] & 0x7F, offset + 2
        if size > 125:
            start, length = start + {126: 2, 127: 8}[size], {126: 2, 127: 8}[size]
            size = int.from_bytes(frames[start - length : start], "big")
        mask, data = frames[start : start + 4], frames[start + 4 : start + 4 + size]
        whole = int.from_bytes(data, "big") ^ int.from_bytes((mask * (len(data) // 4 + 1))[: len(data)], "big")
        payload += whole.to_bytes(len(data), "big")
        opcodes.append(frames[offset])
        offset = start + 4 + size
    return payload, opcodes


def _admitted(egress: Egress) -> socket.socket | None:
    connection = egress.connect()
    with contextlib.suppress(OSError):
        connection.sendall(b"GET http://x/ HTTP/1.1\r\nHost: y\r\n\r\n")
        if read_response(connection)[0] == 403:
            return connection
    connection.close()
    return None


def _status(egress: Egress) -> int:
    try:
        return egress.get("api.example.test")[0]
    except OSError:
        return 0


class ProtocolTests(LimitTestCase):
    QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x05other\x04test\x00\x00\x01\x00\x01"

    def test_tunnel_to_a_dns_port_carries_nothing_but_http(self) -> None:
        for code in ("", "Egress.next_layer = lambda *_: None\nSAFE_OPTIONS['connection_strategy'] = 'eager'"):
            egress = self.patched(code, "default: allow")
            for port in (53, 5353):
                with self.subTest(code=code, port=port), egress.tunnel(f"dns.test:{port}")[2] as connection:
                    connection.sendall(len(self.QUERY).to_bytes(2, "big") + self.QUERY)
                    if code:
                        wait_until(lambda: self.upstream.plain, 30, "raw bytes arrive")
                    else:
                        connection.shutdown(socket.SHUT_WR)
                        rest_of(connection)
                        self.assertEqual([], self.upstream.plain)
                self.upstream.forget()

    def test_trailers_are_answered_with_400(self) -> None:
        body = b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nAuthorization: mine\r\n\r\n"
        egress = self.patched("egress_limits.LINGER_SECONDS = 0.3")
        with egress.tls("api.example.test") as tls:
            tls.sendall(POST + body)
            status, text = read_response(tls)
            self.assertEqual(400, status)
            self.assertIn("trailers are not supported", text)
            self.assertEqual(b"", rest_of(tls))
        self.assertEqual([], self.upstream.requests)
        self.assertNotIn("crashed", egress.log())
        control = self.patched("del egress_limits.Server.read_body")
        with control.tls("api.example.test") as tls:
            tls.sendall(POST + body)
            wait_until(lambda: "crashed" in control.log(), 30, "mitmproxy tells of its exception")

    def test_trailers_of_a_response_are_dropped(self) -> None:
        egress = self.patched("")
        with egress.tls("api.example.test") as tls:
            for _ in range(2):
                tls.sendall(b"GET /trailers HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
                self.assertEqual((200, "ok"), read_response(tls))
        self.assertNotIn("crashed", egress.log())


if __name__ == "__main__":
    unittest.main()
