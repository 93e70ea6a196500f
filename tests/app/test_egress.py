"""Egress with a real mitmdump: which server gets to see a token, and what happens when something is broken."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import unittest
from pathlib import Path

from tests.app.egress_support import MITMDUMP, UNTRUSTED, Egress, Upstream, read_response
from tests.support import ROOT, wait_until

TOKENS = {
    "EGRESS_TOKEN_API": "token-of-the-api",
    "EGRESS_TOKEN_PATHS": "token-of-the-paths",
    "EGRESS_TOKEN_WILD": "token-of-the-wild",
    "EGRESS_TOKEN_EMPTY": "",
    "EGRESS_TOKEN_BROKEN": "token-of-two\r\nlines",
    "EGRESS_TOKEN_PADDED": " token-of-spaces",
}
ROUTES = f"""
default: deny
routes:
  - {{host: api.example.test, token: EGRESS_TOKEN_API, scheme: Bearer}}
  - {{host: paths.example.test, path: /allowed, methods: [GET], token: EGRESS_TOKEN_PATHS, header: X-Api-Key}}
  - {{host: "*.wild.example.test", token: EGRESS_TOKEN_WILD, scheme: Basic}}
  - {{host: open.example.test}}
  - {{host: unset.example.test, token: EGRESS_TOKEN_UNSET}}
  - {{host: empty.example.test, token: EGRESS_TOKEN_EMPTY}}
  - {{host: broken.example.test, token: EGRESS_TOKEN_BROKEN}}
  - {{host: padded.example.test, token: EGRESS_TOKEN_PADDED}}
  - {{host: {UNTRUSTED}, token: EGRESS_TOKEN_API}}
"""
ONLY_OPEN = "routes: [{host: open.example.test}]"


@unittest.skipUnless(MITMDUMP, "no mitmdump on PATH or in $MITMDUMP")
class EgressTestCase(unittest.TestCase):
    """One upstream for all tests of a class, empty at the start of each."""

    directory: Path
    upstream: Upstream

    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="egress-")))
        cls.upstream = Upstream(cls.directory)
        cls.addClassCleanup(cls.upstream.close)

    def setUp(self) -> None:
        self.upstream.forget()

    @classmethod
    def new_egress(cls, routes: str = ROUTES) -> Egress:
        """A daemon of its own, not yet started."""
        egress = Egress(Path(tempfile.mkdtemp(dir=cls.directory)), cls.upstream, routes, TOKENS)
        cls.addClassCleanup(egress.close)
        return egress

    def assert_no_token_in(self, text: str) -> None:
        for token in filter(None, TOKENS.values()):
            self.assertNotIn(token.split()[0], text)

    def assert_no_token_upstream(self) -> None:
        self.assert_no_token_in(repr((self.upstream.requests, self.upstream.plain)))

    def assert_nothing_arrived(self) -> None:
        self.assertEqual(([], []), (self.upstream.requests, self.upstream.plain))


class TokenTests(EgressTestCase):
    """One daemon with every kind of route, and clients that want more than they may have."""

    egress: Egress

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.egress = cls.new_egress().start()

    def tearDown(self) -> None:
        self.assert_no_token_in(self.egress.log())

    def assert_refused(self, answer: tuple[int, str], status: int, why: str) -> None:
        self.assertEqual(status, answer[0])
        self.assertIn(why, answer[1])
        self.assert_nothing_arrived()

    def test_token_arrives_at_the_routed_host(self) -> None:
        self.assertEqual((200, "ok"), self.egress.get("api.example.test", "/v1?a=b"))
        (request,) = self.upstream.requests
        self.assertEqual("GET /v1?a=b HTTP/1.1", request.line)
        self.assertEqual("api.example.test", request.server_name)
        self.assertEqual(["Bearer token-of-the-api"], request.all("authorization"))
        self.assertEqual(["api.example.test:443"], self.upstream.connects)

    def test_each_host_gets_its_own_token(self) -> None:
        self.egress.get("paths.example.test", "/allowed/x")
        self.egress.get("a.wild.example.test")
        first, second = self.upstream.requests
        self.assertEqual(["token-of-the-paths"], first.all("x-api-key"))
        self.assertEqual([], first.all("authorization"))
        self.assertEqual(["Basic token-of-the-wild"], second.all("authorization"))

    def test_route_without_a_token_leaves_the_request_as_it_is(self) -> None:
        self.egress.get("open.example.test", "/", "authorization: mine")
        self.assertEqual(["mine"], self.upstream.requests[0].all("authorization"))
        self.assert_no_token_upstream()

    def test_unrouted_host_is_refused_before_anything_is_sent(self) -> None:
        for host in ("other.example.test", "wild.example.test", "api.example.test.", "xapi.example.test"):
            with self.subTest(host):
                self.assert_refused(self.egress.get(host), 403, "no route")
        self.assertEqual([], self.upstream.connects)

    def test_headers_of_the_client_are_replaced_in_every_spelling(self) -> None:
        spoofs = ("authorization: one", "AUTHORIZATION: two", "Authorization: three")
        self.egress.get("api.example.test", "/", *spoofs)
        self.egress.get("paths.example.test", "/allowed", "x-api-key: one", "X_Api_Key: two")
        first, second = self.upstream.requests
        self.assertEqual(["Bearer token-of-the-api"], first.all("authorization"))
        self.assertEqual(["token-of-the-paths"], second.all("x-api-key"))

    def test_refused_tunnel_shows_the_reason_in_the_status_line(self) -> None:
        """Most programs show nothing else of an answer to CONNECT."""
        tunnel = http.client.HTTPSConnection("127.0.0.1", self.egress.port)
        tunnel.set_tunnel("evil.example.test")
        with self.assertRaisesRegex(OSError, "403 egress: no route to this host and port"):
            tunnel.request("GET", "/")

    def test_host_header_that_disagrees_is_refused(self) -> None:
        get = "GET / HTTP/1.1\r\n"
        heads = {
            "other": get + "Host: evil.example.test",
            "other port": get + "Host: api.example.test:8443",
            "none": get + "Accept: */*",
            "empty": get + "Host:",
            "brackets": get + "Host: [api.example.test]",
            "two": get + "Host: api.example.test\r\nHost: evil.example.test",
            "list": get + "Host: api.example.test, evil.example.test",
            "absolute-form": "GET https://evil.example.test/ HTTP/1.1\r\nHost: api.example.test",
        }
        for name, head in heads.items():
            with self.subTest(name):
                self.assert_refused(self.egress.send("api.example.test", head), 403, "name the destination")

    def test_routed_name_in_the_host_header_opens_no_other_destination(self) -> None:
        head = "GET / HTTP/1.1\r\nHost: api.example.test"
        self.assert_refused(self.egress.send("open.example.test", head), 403, "name the destination")
        self.assert_refused(self.egress.send("evil.example.test", head), 403, "no route")

    def test_server_name_that_disagrees_is_refused(self) -> None:
        self.assert_refused(self.egress.get("api.example.test", server_name="open.example.test"), 403, "destination")
        head = "GET / HTTP/1.1\r\nHost: api.example.test"
        answer = self.egress.send("open.example.test", head, server_name="api.example.test")
        self.assert_refused(answer, 403, "destination")

    def test_line_ends_hidden_in_a_header_are_refused(self) -> None:
        for header in ("X: a\rHost: evil.example.test", "X: a\r\n Host: evil.example.test", "X: a\0b"):
            with self.subTest(header):
                self.assertIn(self.egress.get("api.example.test", "/", header)[0], (400, 403))
                self.assert_nothing_arrived()

    def test_plain_http_to_a_host_with_a_token_is_refused(self) -> None:
        for target in ("http://api.example.test/", "http://api.example.test:443/", "https://api.example.test/"):
            with self.subTest(target):
                answer = self.egress.plainly(f"GET {target} HTTP/1.1\r\nHost: {target.split('/')[2]}")
                self.assert_refused(answer, 403, "TLS")
        status, _, connection = self.egress.tunnel("api.example.test:443")
        with connection:
            self.assertEqual(200, status)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
            self.assert_refused(read_response(connection), 403, "TLS")

    def test_other_ports_of_a_routed_host_are_refused(self) -> None:
        self.assert_refused(self.egress.get("api.example.test", port=8443), 403, "no route")

    def test_path_prefix_is_not_widened(self) -> None:
        others = ("/", "/other", "/allowedx", "/Allowed", "/allowed;x/y", "*")
        tricks = (
            *("/allowed/../other", "/allowed/./x", "/allowed//x", "//allowed", "/allowed/..", "/allowed/..;/other"),
            *("/allowed/%2e%2e/other", "/allowed/.%2E/other", "/allowed/%2fother", "/allowed%5c..%5cother"),
            *("/allowed/%252e%252e/other", "/%61llowed", "/allowed/%c0%ae%c0%ae/x", "/allowed/%00", "/allowed/%zz"),
            *("/allowed\\..\\other", "/allowed;/../other", "/allowed/%2e", "/allowed/%3b/x", "/allowed/%7fx"),
            *(
                "/allowed/..%20/other",
                "/allowed/.%20./other",
                "/allowed/%20../other",
                "/allowed/.../other",
                "/allowed/%20",
            ),
            *("/allowed/%EF%BC%8E%EF%BC%8E/other", "/allowed/%E2%80%A5/other", "/allowed/.%E2%80%8B./other"),
            *(
                "/allowed/%E3%80%82%E3%80%82/x",
                "/allowed/..%EF%BC%8Fother",
                "/allowed/x%E2%88%95..",
                "/ALLOWED",
                "/allowed.",
            ),
            *("/allowed#/../x", "/allowed/\xe9", "/allowed/%", "https://paths.example.test/allowed/../x"),
        )
        for path in others + tricks:
            with self.subTest(path):
                self.assertEqual(403, self.egress.get("paths.example.test", path)[0])
        self.assert_nothing_arrived()
        for path in ("/allowed", "/allowed/", "/allowed/x?q=/../y", "/allowed/a%20b/%C3%A9", "/allowed?x"):
            with self.subTest(path):
                self.assertEqual((200, "ok"), self.egress.get("paths.example.test", path))

    def test_methods_are_kept(self) -> None:
        for method in ("POST", "DELETE", "HEAD", "get"):
            with self.subTest(method):
                self.assertEqual(403, self.egress.get("paths.example.test", "/allowed", method=method)[0])
        override = self.egress.get("paths.example.test", "/allowed", "X-HTTP-Method-Override: DELETE")
        self.assert_refused(override, 403, "would change the method")
        self.assert_refused(self.egress.get("api.example.test", method="TRACE"), 403, "would show the token")

    def test_header_that_would_change_the_method_or_the_path_is_refused_in_every_spelling(self) -> None:
        for header in (
            *("X-HTTP-Method", "X-Method-Override", "X_HTTP_Method_Override", "X.Http_Method-Override", "X-Method"),
            *("X-Original-URL", "X_Original_URL", "X-Original-URI", "X-Original-Method", "X-Rewrite-URL"),
            *("X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Path", "SCRIPT_NAME"),
            *("Path-Info", "Destination", "X-Amz-Copy-Source", "X-Ms-Rename-Source", "X-WAWS-Unencoded-URL"),
        ):
            with self.subTest(header):
                answer = self.egress.get("paths.example.test", "/allowed", f"{header}: /other")
                self.assert_refused(answer, 403, f"{header} would change")
                # The control: if a route allows every method and path, it changes nothing that matters.
                self.assertEqual(200, self.egress.get("open.example.test", "/", f"{header}: /other")[0])
                self.assertTrue(
                    self.upstream.requests[0].all(header.replace("_", "-").replace(".", "-")) or "." in header
                )
                self.upstream.forget()

    def test_header_that_looks_like_one_that_changes_the_path_is_left_out(self) -> None:
        for header in ("X-Stainless-Helper-Method", "X-Some-Path", "X-New-Override", "X-Original-Target", "X-Url"):
            self.assertEqual(200, self.egress.get("paths.example.test", "/allowed", f"{header}: stream")[0])
            self.assertEqual([], self.upstream.requests[-1].all(header))
            self.assertEqual(200, self.egress.get("api.example.test", "/", f"{header}: stream")[0])
            self.assertEqual(["stream"], self.upstream.requests[-1].all(header))

    def test_header_that_names_another_host_is_left_out_where_a_token_goes(self) -> None:
        for header in (
            "X-Forwarded-Host",
            "Forwarded",
            "X-Host",
            "X_Forwarded_Host",
            "X-Original-Host",
            "Host-Override",
        ):
            self.assertEqual(200, self.egress.get("api.example.test", "/", f"{header}: evil.example.test")[0])
            self.assertNotIn("evil", self.upstream.heads[-1])
            self.assertEqual(200, self.egress.get("open.example.test", "/", f"{header}: evil.example.test")[0])
            self.assertIn("evil", self.upstream.heads[-1])

    def test_header_that_frames_a_request_is_refused_in_odd_spellings(self) -> None:
        for header in ("Content_Length: 5", "Transfer_Encoding: chunked", "Transfer.Encoding: chunked"):
            with self.subTest(header):
                self.assert_refused(self.egress.get("open.example.test", "/", header), 403, "frames the request")

    def test_expectation_other_than_to_continue_is_refused(self) -> None:
        for lines in (
            ("Expect: something",),
            ("Expect: 100-continue, something",),
            ("Expect: 100-continue", "Expect: something"),
            ("Expect:",),
            ("expect: 200-ok",),
        ):
            with self.subTest(lines):
                self.assert_refused(self.egress.get("open.example.test", "/", *lines), 417, "the only expectation")
        self.assertEqual(200, self.egress.get("open.example.test", "/", "X-Expect: something")[0])

    def test_connection_header_names_no_header_of_the_request(self) -> None:
        names = "close, Authorization, X-Forwarded-For, Content-Length, keep-alive"
        self.assertEqual(200, self.egress.get("api.example.test", "/", f"Connection: {names}")[0])
        self.assertEqual(["close, keep-alive"], self.upstream.requests[0].all("connection"))
        self.assertEqual(["Bearer token-of-the-api"], self.upstream.requests[0].all("authorization"))

    def test_protocol_is_changed_to_websocket_only(self) -> None:
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
        for connection in ("Connection: Upgrade", upgrade[0]):
            self.assertEqual(200, self.egress.get("api.example.test", "/", connection, *upgrade[1:])[0])
            for name in ("connection", "upgrade", "http2-settings"):
                self.assertEqual([], self.upstream.requests[-1].all(name))

    def test_request_line_is_plain(self) -> None:
        for line, status in (
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/0.9", 505),
            ("G\xe9T / HTTP/1.1", 400),
            ("G(T / HTTP/1.1", 400),
            ("GET /\x01 HTTP/1.1", 400),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 400),
            ("GET /\x7f HTTP/1.1", 400),
            ("GET / x HTTP/1.1", 400),
        ):
            with self.subTest(line):
                answer = self.egress.send("open.example.test", f"{line}\r\nHost: open.example.test")
                self.assertEqual(status, answer[0])
        self.assert_nothing_arrived()

    def test_absolute_form_reaches_the_server_as_a_path(self) -> None:
        head = "GET https://paths.example.test/allowed HTTP/1.1\r\nHost: paths.example.test"
        self.assertEqual((200, "ok"), self.egress.send("paths.example.test", head))
        self.assertEqual("GET /allowed HTTP/1.1", self.upstream.requests[0].line)
        for target in (
            "https://api.example.test?x=/allowed",
            "https://x@api.example.test/",
            "https://api.example.test#/",
        ):
            with self.subTest(target):
                answer = self.egress.send("api.example.test", f"GET {target} HTTP/1.1\r\nHost: api.example.test")
                self.assertIn(answer[0], (400, 403))
        self.assertEqual(1, len(self.upstream.requests))

    def test_answer_to_a_refused_head_has_no_body(self) -> None:
        with self.egress.tls("paths.example.test") as tls:
            for _ in range(2):
                tls.sendall(b"HEAD /allowed HTTP/1.1\r\nHost: paths.example.test\r\n\r\n")
                self.assertTrue(tls.recv(4096).endswith(b"\r\n\r\n"))

    def test_no_server_hears_of_a_refused_request(self) -> None:
        self.egress.get("api.example.test", server_name="exfiltrated.example.test")
        self.egress.get("paths.example.test", "/other")
        self.assertEqual([], self.upstream.connects)

    def test_other_names_for_a_routed_host_are_refused(self) -> None:
        for name in (
            "\uff41pi.example.test",
            "api\u3002example.test",
            "api.example.test\u3002",
            "xn--pi-x7k.example.test",
        ):
            raw = name.encode().decode("latin-1")
            with self.subTest(name):
                head = f"CONNECT {raw}:443 HTTP/1.1\r\nHost: {raw}"
                self.assertIn(self.egress.plainly(head)[0], (400, 403))
                head = f"GET http://{raw}/ HTTP/1.1\r\nHost: {raw}"
                self.assertIn(self.egress.plainly(head)[0], (400, 403))
                self.assertIn(self.egress.plainly(f"GET / HTTP/1.1\r\nHost: {raw}")[0], (400, 403))
        for target in (
            "[::1]:443",
            "127.0.0.1:443",
            "0x7f000001:443",
            "api.example.test:443:443",
            "api.example.test:0",
        ):
            with self.subTest(target):
                self.assertIn(self.egress.plainly(f"CONNECT {target} HTTP/1.1\r\nHost: {target}")[0], (400, 403))
        self.assertEqual([], self.upstream.connects)

    def test_tls_to_egress_itself_does_not_stand_for_tls_to_the_server(self) -> None:
        get = "GET {} HTTP/1.1\r\nHost: api.example.test\r\n\r\n"
        connect = "CONNECT api.example.test:443 HTTP/1.1\r\nHost: api.example.test\r\n\r\n"
        for name, first, request in (
            ("api.example.test", "", get.format("http://api.example.test/")),
            ("api.example.test", "", get.format("http://api.example.test:443/")),
            ("open.example.test", "", get.format("/")),
            ("open.example.test", "", get.format("https://api.example.test/")),
            ("api.example.test", connect, get.format("/")),
        ):
            context = ssl.create_default_context(cafile=self.egress.conf / "mitmproxy-ca-cert.pem")
            with (
                self.subTest(name=name, request=request),
                context.wrap_socket(self.egress.connect(), server_hostname=name) as tls,
            ):
                if first:
                    tls.sendall(first.encode())
                    self.assertIn(b" 200 ", tls.recv(4096))
                tls.sendall(request.encode())
                self.assertEqual(403, read_response(tls)[0])
        self.assert_nothing_arrived()
        self.assertEqual([], self.upstream.connects)

    def test_tls_in_tls_goes_nowhere(self) -> None:
        context, hello = ssl.create_default_context(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="api.example.test").do_handshake()
        with self.egress.tls("open.example.test") as tls:
            tls.sendall(hello.read() + b"\r\n\r\n")
            self.assertEqual(400, read_response(tls)[0])
        self.assertEqual([], self.upstream.connects)

    def test_variable_that_is_unset_or_unusable_answers_502(self) -> None:
        self.assert_refused(self.egress.get("unset.example.test"), 502, "EGRESS_TOKEN_UNSET is not set")
        self.assert_refused(self.egress.get("empty.example.test"), 502, "EGRESS_TOKEN_EMPTY is not set")
        self.assert_refused(self.egress.get("broken.example.test"), 502, "EGRESS_TOKEN_BROKEN contains")
        self.assert_refused(self.egress.get("padded.example.test"), 502, "EGRESS_TOKEN_PADDED contains")

    def test_server_without_a_trusted_certificate_gets_nothing(self) -> None:
        status, text = self.egress.get(UNTRUSTED)
        self.assertEqual(502, status)
        self.assertIn("ertificate", text)
        self.assert_nothing_arrived()

    def test_raw_bytes_in_a_tunnel_go_nowhere(self) -> None:
        for data in (b"\x00\x01\x02\x03", b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO x\r\n"):
            for host in ("api.example.test", "open.example.test"):
                with self.subTest(data=data, host=host):
                    _, _, connection = self.egress.tunnel(f"{host}:443")
                    with connection:
                        connection.sendall(data)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(4096):
                            pass
        self.assert_nothing_arrived()

    def test_http2_is_not_spoken(self) -> None:
        with self.egress.tls("api.example.test", alpn="h2") as tls:
            self.assertNotEqual("h2", tls.selected_alpn_protocol())

    def test_websocket_of_a_routed_host_works_both_ways(self) -> None:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        head = "\r\n".join(("GET /socket HTTP/1.1", "Host: api.example.test", *upgrade))
        with self.egress.tls("api.example.test") as tls:
            tls.sendall(head.encode() + b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            self.assertIn(b" 101 ", tls.recv(4096))
            tls.sendall(b"\x81\x85\0\0\0\0hello")
            wait_until(lambda: self.upstream.frames.startswith(b"\x81\x85"), 30, "the frame arrives")
            self.assertEqual(b"\x81\x02hi", tls.recv(4096))
        self.assertEqual(["Bearer token-of-the-api"], self.upstream.requests[0].all("authorization"))

    def test_body_is_passed_on_with_the_token(self) -> None:
        body = os.urandom(300_000)
        head = f"POST / HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: {len(body)}"
        self.assertEqual((200, "ok"), self.egress.send("api.example.test", head, body))
        chunked = "POST / HTTP/1.1\r\nHost: api.example.test\r\nTransfer-Encoding: chunked"
        self.assertEqual((200, "ok"), self.egress.send("api.example.test", chunked, b"3\r\nabc\r\n0\r\n\r\n"))
        first, second = self.upstream.requests
        self.assertEqual((body, b"abc"), (first.body, second.body))
        self.assertEqual(first.all("authorization"), second.all("authorization"))

    def test_body_is_passed_on_as_it_comes(self) -> None:
        with self.egress.tls("api.example.test") as tls:
            tls.sendall(b"POST / HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 4\r\n\r\nab")
            wait_until(lambda: self.upstream.heads, 30, "the head arrives before the body")
            tls.sendall(b"cd")
            self.assertEqual((200, "ok"), read_response(tls))
        self.assertEqual(b"abcd", self.upstream.requests[0].body)

    def test_response_is_passed_on_as_it_comes(self) -> None:
        with self.egress.tls("api.example.test") as tls:
            tls.sendall(b"GET /slow HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
            received = b""
            while b"first" not in received:
                received += tls.recv(4096)
            self.assertFalse(self.upstream.may_finish.is_set())
            self.upstream.may_finish.set()
            while b"last" not in received:
                received += tls.recv(4096)

    def test_redirect_is_left_to_the_client(self) -> None:
        self.assertEqual(302, self.egress.get("api.example.test", "/redirect")[0])
        self.assertEqual(["api.example.test:443"], self.upstream.connects)

    def test_tunnel_in_a_tunnel_is_refused(self) -> None:
        head = "CONNECT evil.example.test:443 HTTP/1.1\r\nHost: evil.example.test:443"
        self.assertEqual(400, self.egress.send("api.example.test", head)[0])
        self.assertEqual([], self.upstream.connects)
        self.assert_nothing_arrived()

    def test_one_connection_is_judged_request_by_request(self) -> None:
        with self.egress.tls("paths.example.test") as tls:
            for path, status in (("/allowed", 200), ("/other", 403), ("/allowed", 200)):
                tls.sendall(f"GET {path} HTTP/1.1\r\nHost: paths.example.test\r\n\r\n".encode())
                self.assertEqual(status, read_response(tls)[0])
        self.assertEqual(2, len(self.upstream.requests))


class RoutesFileTests(EgressTestCase):
    def test_hup_reloads_the_file(self) -> None:
        egress = self.new_egress(ONLY_OPEN).start()
        self.assertEqual(403, egress.get("api.example.test")[0])
        egress.reload(ROUTES, "egress: loaded 9 route(s)\n")
        self.assertEqual(200, egress.get("api.example.test")[0])
        self.assertIn("egress: EGRESS_TOKEN_UNSET is not set", egress.log())
        egress.reload("default: allow", "egress: loaded 0 route(s)\n")
        self.assertEqual(200, egress.get("api.example.test")[0])
        self.assertEqual([], self.upstream.requests[-1].all("authorization"))

    def test_invalid_file_leaves_the_routes_in_force(self) -> None:
        egress = self.new_egress().start()
        for broken in ("routes: [", "routes: [{hots: x}]", "routes: [{host: x.test, token: token-of-the-api}]"):
            egress.reload(broken, "9 route(s) stay in force; correct the file and send HUP\n")
        egress.routes.unlink()
        assert egress.process is not None
        egress.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "No such file" in egress.log(), 30, "the missing file is told")
        self.assertEqual(200, egress.get("api.example.test")[0])
        self.assert_no_token_in(egress.log())

    def test_without_a_valid_file_nothing_passes(self) -> None:
        egress = self.new_egress("default: allow\nroutes: nonsense").start()
        self.assertIn("egress: cannot load", egress.log())
        self.assertEqual((503, "egress: no valid routes file yet\n"), egress.get("api.example.test"))
        self.assertEqual(503, egress.plainly("GET http://open.example.test/ HTTP/1.1\r\nHost: open.example.test")[0])
        self.assert_nothing_arrived()
        egress.reload(ROUTES, "egress: loaded 9 route(s)\n")
        self.assertEqual(200, egress.get("api.example.test")[0])

    def test_hup_while_the_first_file_is_read_is_not_lost(self) -> None:
        egress = self.new_egress(ONLY_OPEN)
        reading, go_on = egress.directory / "reading", egress.directory / "go-on"
        egress.patch(
            "_parse, _Path = parse_routes, Path\n"
            "def parse_routes(text):\n"
            "    import time\n"
            f"    _Path({str(reading)!r}).touch()\n"
            f"    while not _Path({str(go_on)!r}).exists(): time.sleep(0.01)\n"
            "    return _parse(text)\n"
        )
        process = egress.spawn()
        wait_until(reading.exists, 30, "the old file is read")
        egress.routes.write_text(ROUTES)
        process.send_signal(signal.SIGHUP)
        go_on.touch()
        wait_until(lambda: "loaded 9 route(s)" in egress.log(), 30, "the new file is in force")

    def test_hup_before_the_addon_is_there_is_not_lost(self) -> None:
        egress = self.new_egress(ONLY_OPEN)
        process = egress.spawn()
        wait_until(lambda: _ignores_hup(process.pid), 30, "the entrypoint ignores HUP")
        egress.routes.write_text(ROUTES)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "loaded 9 route(s)" in egress.log(), 30, "the new file is in force")

    def test_default_allow_passes_other_hosts_without_a_token_and_keeps_the_rules_of_routed_ones(self) -> None:
        egress = self.new_egress(ROUTES.replace("deny", "allow")).start()
        self.assertEqual(200, egress.get("other.example.test")[0])
        self.assertEqual(200, egress.get("paths.example.test", "/other", "X-Api-Key: mine")[0])
        self.assertEqual(["mine"], self.upstream.requests[1].all("x-api-key"))
        self.assert_no_token_upstream()
        self.assertEqual(403, egress.get("paths.example.test", "/allowed/../other")[0])
        self.assertEqual(403, egress.plainly("GET http://api.example.test/ HTTP/1.1\r\nHost: api.example.test")[0])
        self.assertEqual((200, "plain"), egress.plainly("GET http://x.test/ HTTP/1.1\r\nHost: x.test"))
        with egress.tunnel("x.test:443")[2] as connection:
            connection.sendall(b"\x00\x01\x02\x03")
            connection.shutdown(socket.SHUT_WR)
            self.assertNotIn(b"\x00", connection.recv(4096))
        self.assertEqual(1, len(self.upstream.plain))


class LogTests(EgressTestCase):
    def lines(self, egress: Egress, count: int) -> list[str]:
        """What it logs about requests, without the time that they took."""

        def found() -> list[str]:
            lines = [line for line in egress.log().splitlines() if " ms=" in line]
            return [re.sub(r" ms=\d+ ", " ", line) for line in lines]

        wait_until(lambda: len(found()) >= count, 30, f"{count} requests are logged")
        return found()

    def make_requests(self, egress: Egress) -> None:
        egress.send(
            "api.example.test", "POST /v1?q=secret HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 3", b"abc"
        )
        egress.get("open.example.test", "/" + "x" * 300)
        egress.get("paths.example.test", "/other?q=secret", method="DELETE")
        egress.get("other.example.test")

    def test_one_line_for_each_request_without_query_or_token(self) -> None:
        egress = self.new_egress().start()
        self.make_requests(egress)
        no_route = "up=0 down=0 token=-: no route"
        self.assertEqual(
            [
                "egress: 200 POST api.example.test:443 /v1 up=3 down=2 token=EGRESS_TOKEN_API",
                f"egress: 200 GET open.example.test:443 /{'x' * 199} up=0 down=2 token=-",
                f"egress: 403 DELETE paths.example.test:443 /other {no_route} for this host, port, method and path",
                f"egress: 403 CONNECT other.example.test:443 - {no_route} to this host and port",
            ],
            self.lines(egress, 4),
        )
        self.assertNotIn("secret", egress.log())
        self.assert_no_token_in(egress.log())

    def test_only_refused_requests_are_logged_if_so_wanted(self) -> None:
        egress = self.new_egress().start(EGRESS_LOG="refused")
        self.make_requests(egress)
        self.assertEqual(["403", "403"], [line.split()[1] for line in self.lines(egress, 2)])

    def test_websocket_is_logged_at_its_end_with_its_bytes(self) -> None:
        egress = self.new_egress().start()
        with egress.tls("api.example.test") as tls:
            tls.sendall(
                b"GET /socket HTTP/1.1\r\nHost: api.example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            tls.recv(4096)
            tls.sendall(b"\x81\x85\0\0\0\0hello")
            tls.recv(4096)
        line = "egress: 101 GET api.example.test:443 /socket up=5 down=2 token=EGRESS_TOKEN_API"
        self.assertEqual([line], self.lines(egress, 1))

    def test_request_that_is_broken_off_is_logged_as_incomplete(self) -> None:
        egress = self.new_egress().start()
        with egress.tls("api.example.test") as tls:
            tls.sendall(b"GET /slow HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
            self.assertTrue(tls.recv(1))
        line = "egress: 200 GET api.example.test:443 /slow up=0 down=5 token=EGRESS_TOKEN_API: incomplete"
        self.assertEqual([line], self.lines(egress, 1))


class BrokenTests(EgressTestCase):
    def test_exception_in_the_addon_refuses_and_is_not_quoted(self) -> None:
        egress = self.new_egress()
        egress.patch("def check_destination(request, *_): raise RuntimeError('token-of-the-api')")
        egress.start()
        self.assertEqual((500, "egress: cannot decide on this request\n"), egress.get("api.example.test"))
        self.assert_nothing_arrived()
        self.assertIn("egress: 500, RuntimeError while", egress.log())
        self.assert_no_token_in(egress.log())

    def test_control_without_the_check_of_its_form_a_request_takes_any_expectation_along(self) -> None:
        egress = self.new_egress()
        egress.patch("def check_form(request): pass")
        egress.start()
        self.assertEqual(200, egress.get("open.example.test", "/", "Expect: something")[0])
        self.assertEqual(["something"], self.upstream.requests[-1].all("expect"))

    def test_exception_that_escapes_the_hook_refuses_too(self) -> None:
        egress = self.new_egress()
        egress.patch("def say(text): raise RuntimeError('no log')\nEgress.reload = lambda self: None")
        egress.start()
        self.assertEqual(503, egress.get("api.example.test")[0])
        self.assertEqual([], self.upstream.connects)

    def test_exception_while_the_protocol_is_decided_closes_the_connection(self) -> None:
        egress = self.new_egress("default: allow")
        egress.patch("egress_limits.next_layer = lambda found: 1 / 0")
        egress.start()
        with egress.connect() as connection:
            connection.sendall(b"GET http://x.test/ HTTP/1.1\r\nHost: x.test\r\n\r\n")
            self.assertEqual(b"", connection.recv(4096))
        self.assert_nothing_arrived()

    def test_addon_that_cannot_be_loaded_ends_the_start(self) -> None:
        codes = ("raise RuntimeError('broken')", "Egress.load = lambda self, loader: 1 / 0")
        broken = [(code, self.new_egress()) for code in codes]
        for code, egress in broken:
            egress.patch(code)
            egress.spawn()
        for code, egress in broken:
            with self.subTest(code):
                self.assertEqual(1, egress.ended())

    def test_addon_that_does_nothing_opens_no_port(self) -> None:
        egress = self.new_egress()
        egress.patch("addons = []\ndef running(): print('running', flush=True)")
        process = egress.spawn()
        wait_until(lambda: "running" in egress.log(), 60, "mitmdump has started")
        with socket.socket() as probe:
            self.assertNotEqual(0, probe.connect_ex(("127.0.0.1", egress.port)))
        self.assertIsNone(process.poll())

    def test_port_that_is_taken_ends_the_start(self) -> None:
        egress = self.new_egress()
        with socket.create_server(("127.0.0.1", egress.port)):
            egress.spawn()
            self.assertEqual(1, egress.ended())
        self.assertIn("address already in use", egress.log())
        self.assertNotIn("cannot go on", egress.log())

    def test_addon_that_is_removed_ends_the_proxy(self) -> None:
        egress = self.new_egress().start()
        egress.addon.parent.chmod(0o755)
        egress.addon.unlink()
        self.assertEqual(1, egress.ended())
        self.assertIn("egress: cannot go on without the addon", egress.log())

    def test_addon_that_is_changed_ends_the_proxy(self) -> None:
        egress = self.new_egress().start()
        egress.addon.chmod(0o644)
        egress.addon.write_text("")
        os.utime(egress.addon, (2**31, 2**31))
        self.assertEqual(1, egress.ended())
        self.assertIn("egress: cannot go on without the addon", egress.log())

    def test_term_ends_it_with_0_also_while_a_response_is_on_its_way(self) -> None:
        egress = self.new_egress().start()
        with egress.tls("api.example.test") as tls:
            tls.sendall(b"GET /slow HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
            self.assertTrue(tls.recv(1))
            self.assertEqual(0, egress.stop())

    def test_options_of_mitmproxy_cannot_loosen_it(self) -> None:
        egress = self.new_egress()
        egress.patch(
            "_load = Egress.load\n"
            "def insecure(self, loader):\n"
            "    ctx.options.update(ssl_insecure=True)\n"
            "    _load(self, loader)\n"
            "Egress.load = insecure\n"
        )
        egress.start()
        self.assertEqual(502, egress.get(UNTRUSTED)[0])
        self.assert_nothing_arrived()


class EntrypointTests(EgressTestCase):
    def refusal(self, egress: Egress, **environment: str) -> str:
        egress.spawn(**environment)
        self.assertEqual(1, egress.ended())
        self.assertEqual(1, egress.log().count("\n"))
        return egress.log()

    def test_missing_files_are_reported_in_one_line(self) -> None:
        nowhere = str(self.directory / "nowhere")
        for name, told in (
            ("EGRESS_ADDON", "cannot read the addon"),
            ("EGRESS_ROUTES", "cannot read the routes"),
            ("EGRESS_UPSTREAM_CA", "cannot find a certificate in"),
            ("PATH", "cannot find mitmdump"),
        ):
            with self.subTest(name):
                self.assertTrue(self.refusal(self.new_egress(), **{name: nowhere}).startswith(told))

    def test_ca_file_without_a_certificate_is_reported(self) -> None:
        egress = self.new_egress()
        self.assertIn("cannot find a certificate", self.refusal(egress, EGRESS_UPSTREAM_CA=str(egress.routes)))

    def test_addon_that_the_account_may_change_is_not_trusted(self) -> None:
        copy = self.directory / "writable"
        copy.mkdir(exist_ok=True)
        (copy / "addon.py").write_text("")
        for mode in (0o644, 0o444):  # the file itself, then the directory around it
            with self.subTest(oct(mode)):
                (copy / "addon.py").chmod(mode)
                refusal = self.refusal(self.new_egress(), EGRESS_ADDON=str(copy / "addon.py"))
                self.assertTrue(refusal.startswith(f"cannot trust {copy}"))

    def test_directory_for_the_ca_must_be_usable_and_without_a_configuration(self) -> None:
        shut = self.directory / "shut"
        shut.mkdir(mode=0o555)
        self.assertIn("cannot make", self.refusal(self.new_egress(), EGRESS_CONFDIR=str(shut / "conf")))
        self.assertIn("cannot keep the proxy's CA in", self.refusal(self.new_egress(), EGRESS_CONFDIR=str(shut)))
        egress = self.new_egress()
        egress.conf.mkdir()
        (egress.conf / "config.yaml").write_text("ssl_insecure: true")
        self.assertIn("cannot start with", self.refusal(egress))

    def test_ca_that_a_host_mounts_is_used(self) -> None:
        home = self.directory / "home" / ".mitmproxy"
        home.mkdir(parents=True)
        mounted = home / "mitmproxy-ca.pem"
        mounted.write_bytes(self.upstream.ca.read_bytes())
        for mode in (0o755, 0o555):  # where mitmproxy may write a file of its own beside it, and where it may not
            home.chmod(mode)
            with self.subTest(oct(mode)):
                egress = self.new_egress().start(HOME=str(home.parent), EGRESS_CONFDIR="")
                (egress.conf).mkdir()
                (egress.conf / "mitmproxy-ca-cert.pem").write_bytes(self.upstream.ca.read_bytes())
                self.assertEqual(200, egress.get("api.example.test")[0])
                home.chmod(0o755)
                (home / "mitmproxy-dhparam.pem").unlink(missing_ok=True)
        mounted.chmod(0)
        self.assertIn(
            "cannot read the proxy's CA", self.refusal(self.new_egress(), HOME=str(home.parent), EGRESS_CONFDIR="")
        )
        mounted.chmod(0o644)
        mounted.write_text(mounted.read_text().partition("-----BEGIN PRIVATE KEY")[0])
        self.assertIn("no PRIVATE KEY in it", self.refusal(self.new_egress(), HOME=str(home.parent), EGRESS_CONFDIR=""))

    def test_unknown_value_for_the_log_is_reported(self) -> None:
        self.assertIn("cannot use EGRESS_LOG", self.refusal(self.new_egress(), EGRESS_LOG="none"))

    def test_missing_pipelock_is_never_gone_around(self) -> None:
        egress = self.new_egress("default: allow").start(EGRESS_UPSTREAM_PROXY=None)
        self.assertEqual(502, egress.plainly("GET http://x.test/ HTTP/1.1\r\nHost: x.test")[0])

    def test_upstream_proxy_must_be_a_url(self) -> None:
        self.assertIn("EGRESS_UPSTREAM_PROXY", self.refusal(self.new_egress(), EGRESS_UPSTREAM_PROXY="pipelock"))

    def test_empty_upstream_proxy_connects_straight(self) -> None:
        port = self.upstream.server_address[1]
        routes = f"routes: [{{host: localhost, port: {port}}}]"
        egress = self.new_egress(routes).start(EGRESS_UPSTREAM_PROXY="")
        answer = egress.plainly(f"GET http://localhost:{port}/x HTTP/1.1\r\nHost: localhost:{port}")
        self.assertEqual((200, "plain"), answer)
        self.assertTrue(self.upstream.plain[0].startswith("GET /x "))
        self.assertIn("egress: EGRESS_UPSTREAM_PROXY is empty: requests leave without pipelock", egress.log())


@unittest.skipUnless(MITMDUMP, "no mitmdump on PATH or in $MITMDUMP")
class RulesTests(unittest.TestCase):
    def test_rules_hold_in_the_python_of_mitmdump(self) -> None:
        """The addon can be imported only there."""
        interpreter = Path(MITMDUMP).read_bytes().split(b"\n")[0].removeprefix(b"#!").decode()
        if not Path(interpreter).is_file():
            self.skipTest(f"{MITMDUMP} does not tell its Python")
        command = [interpreter, "-m", "unittest", "-v", "tests.app.egress_rules"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        self.assertEqual(0, run.returncode, run.stderr)


def _ignores_hup(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored & 1 << (signal.SIGHUP - 1))


if __name__ == "__main__":
    unittest.main()
