"""git-http with the real git client, and with requests that no git client makes."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

from tests.app.git_support import Daemon, GateCase, World, listens, needs_the_real_programs, processes
from tests.support import ROOT, wait_until

_SIZE = int(os.environ.get("GIT_HTTP_TEST_MIB", "16")) << 20  # of the large push; gitleaks reads about 8 MiB a second


def peak_rss(pid: int) -> int:
    """Bytes of memory that a process has held at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def packet(text: str) -> bytes:
    return f"{len(text) + 4:04x}{text}".encode()


class HttpCase(GateCase):
    one_rule_only = True

    def front_end(self, settings: str) -> tuple[Daemon, int]:
        return self.another("git_http_backend", "GIT_HTTP_PORT", settings)

    def connect(self, data: bytes = b"", port: int | None = None) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port or self.world.http_port), timeout=30)
        self.addCleanup(client.close)
        client.sendall(data)
        return client

    def ask(self, request: bytes, port: int | None = None) -> bytes:
        """What the server answers before it closes the connection."""
        with self.connect(request, port) as client:
            answer = b""
            while piece := client.recv(1 << 16):
                answer += piece
        return answer

    def get(self, target: str, *headers: str) -> bytes:
        lines = [f"GET {target} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
        return self.ask("\r\n".join(lines).encode())

    def post(self, body: bytes, *headers: str, service: str = "git-upload-pack") -> bytes:
        head = [f"POST /demo/{service} HTTP/1.1", "Host: x", f"Content-Type: application/x-{service}-request", *headers]
        return self.ask("\r\n".join([*head, "", ""]).encode() + body)

    def status(self, answer: bytes) -> int:
        return int(answer.split(b" ", 2)[1])

    def ls_refs(self) -> bytes:
        return packet("command=ls-refs\n") + b"0001" + packet("peel\n") + b"0000"

    @contextlib.contextmanager
    def memory_of_what_serves(self, whole_family: bool = False) -> Iterator[dict[int, int]]:
        """The peaks of the listener and of what it starts, with git's or without."""
        peaks: dict[int, int] = {}
        is_over = threading.Event()

        def look() -> None:
            is_last = False
            while not is_last:
                is_last = is_over.wait(0.02)  # a request that is refused at once is over before: look all the same
                for process in self.http.family():
                    with contextlib.suppress(OSError, IndexError):
                        if whole_family or process.group == self.http.process.pid:
                            peaks[process.pid] = peak_rss(process.pid)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield peaks
        finally:
            is_over.set()
            looking.join()


@needs_the_real_programs
class Requests(HttpCase):
    def test_health(self) -> None:
        self.assertEqual(self.status(self.get("/health")), 200)

    def test_protocol_v2_is_spoken(self) -> None:
        trace = self.world.try_git("ls-remote", self.world.by_http(), GIT_TRACE_PACKET="1").stderr
        self.assertIn("< version 2", trace)
        self.assertNotIn(b"version 2", self.get("/demo/info/refs?service=git-upload-pack"))

    def test_a_body_with_a_length_in_chunks_or_gzipped(self) -> None:
        version, body = "Git-Protocol: version=2", self.ls_refs()
        zipped = gzip.compress(body)
        chunked = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
        for answer in (
            self.post(body, version, f"Content-Length: {len(body)}"),
            self.post(chunked, version, "Transfer-Encoding: chunked"),
            self.post(zipped, version, f"Content-Length: {len(zipped)}", "Content-Encoding: gzip"),
            self.post(body, version, f"Content-Length: {len(body)}", "Expect: 100-continue"),
        ):
            self.assertIn(b"refs/heads/main", answer)

    def test_a_fetch_whose_request_the_client_compresses(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_http())
        tips = [self.world.commit(work, {"x": f"{number}\n"}) for number in range(30)]
        self.world.git("push", "origin", *(f"{tip}:refs/heads/wanted/{tip}" for tip in tips), cwd=work)
        command = ("-c", "protocol.version=0", "fetch", self.world.by_http(), "refs/heads/wanted/*:refs/wanted/*")
        done = self.world.try_git(*command, cwd=self.world.dir / "seed-demo", GIT_CURL_VERBOSE="1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Content-Encoding: gzip", done.stderr)

    def test_the_status_of_git_is_the_status_of_the_answer(self) -> None:
        head = b"POST /demo/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
        self.assertEqual(self.status(self.ask(head + b"Content-Length: 4\r\n\r\n0000")), 415)

    def test_targets_that_are_not_a_mirrors_service(self) -> None:
        for target in (
            "/",
            "/nothing/info/refs?service=git-upload-pack",
            "/demo/HEAD",
            "/demo/config",
            "/demo/objects/info/packs",
            "/demo/info/refs",
            "/demo/info/refs?service=git-upload-archive",
            "/demo/info/refs?service=git-upload-pack&x=y",
            "/demo/git-upload-pack",
            "/../demo/info/refs?service=git-upload-pack",
            "/x/../demo/info/refs?service=git-upload-pack",
            "/%2e%2e/demo/info/refs?service=git-upload-pack",
            "/..git/info/refs?service=git-upload-pack",
            "/./info/refs?service=git-upload-pack",
            "//demo/../../x/info/refs?service=git-upload-pack",
            "/demo.git.git/info/refs?service=git-upload-pack",
            "/demo\\/info/refs?service=git-upload-pack",
            "/demo;x/info/refs?service=git-upload-pack",
            "/demo/info/refs?service=git-upload-pack#",
            "/demo/info%2frefs?service=git-upload-pack",
            "http://x/demo/info/refs?service=git-upload-pack",
            f"/{'a' * 300}/info/refs?service=git-upload-pack",
        ):
            with self.subTest(target):
                self.assertEqual(self.status(self.get(target)), 404)

    def test_bodies_that_can_be_read_in_two_ways(self) -> None:
        for headers in (
            ("Content-Length: 4", "Transfer-Encoding: chunked"),
            ("Content-Length: 4", "Content-Length: 5"),
            ("Content-Length: 4", "Content-Length: 4"),
            ("Content-Length: -4",),
            ("Content-Length: +4",),
            ("Content-Length: 0x4",),
            ("Content-Length: 4, 4",),
            ("Content-Length: ",),
            ("Content-Length : 4",),
            ("Transfer-Encoding: gzip, chunked",),
            ("Transfer-Encoding: identity",),
            ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ):
            with self.subTest(headers):
                answer = self.post(b"0000GET /health HTTP/1.1\r\nHost: x\r\n\r\n", *headers)
                self.assertEqual(self.status(answer), 400)
                self.assertEqual(answer.count(b"HTTP/1.1 "), 1)

    def test_a_broken_chunk_ends_the_request_and_its_backend(self) -> None:
        for body in (b"zz\r\n", b"5\r\n0000", b"4\r\n0000XX", b"ffffffffffffffffff\r\n", b"-1\r\n"):
            address = ("127.0.0.1", self.world.http_port)
            with self.subTest(body), socket.create_connection(address, timeout=30) as client:
                client.sendall(
                    b"POST /demo/git-upload-pack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                    b"Content-Type: application/x-git-upload-pack-request\r\n\r\n" + body
                )
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
        self.assertEqual(self.status(self.get("/health")), 200)

    def test_a_client_that_leaves_a_fetch_ends_its_processes(self) -> None:
        with self.connect() as client:
            client.sendall(
                b"POST /demo/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: application/x-git-upload-pack-request\r\n\r\n00"
            )
            wait_until(lambda: len(self.http.family()) > 2, 10, "git")
        wait_until(lambda: len(self.http.family()) == 1, 10, "the end of its processes")

    def test_a_large_push_and_clone_do_not_pass_through_the_servers_memory(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_http())
        blob = random.Random(9).randbytes(_SIZE)
        head = self.world.commit(work, {"large": blob})
        with self.memory_of_what_serves() as peaks:
            self.world.git("push", "origin", "HEAD:refs/heads/large", cwd=work)
            self.assert_mirror_is_upstream()
            clone = self.world.dir / "large"
            self.world.git("clone", "--quiet", "--branch", "large", self.world.by_http(), str(clone))
        self.assertEqual(self.world.git("rev-parse", "HEAD", cwd=clone), head)
        self.assertEqual((clone / "large").read_bytes(), blob)
        self.assertGreater(len(peaks), 2)  # the listener, and what it started
        self.assertLess(max(peaks.values()) - peaks[self.http.process.pid], _SIZE // 4)

    def test_pushes_at_the_same_time_by_both_daemons(self) -> None:
        works = [self.world.clone_of_upstream(url) for url in (self.world.by_git(), self.world.by_http()) * 2]
        for number, work in enumerate(works):
            self.world.commit(work, {f"{number}": "x\n"})
        codes: list[int] = []

        def push(number: int, work: Path) -> None:
            codes.append(self.world.try_git("push", "origin", f"HEAD:refs/heads/b{number}", cwd=work).returncode)

        threads = [threading.Thread(target=push, args=pair) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(codes, [0] * len(works))
        self.assert_mirror_is_upstream()


@needs_the_real_programs
class Ends(unittest.TestCase):
    def setUp(self) -> None:
        self.world = World()
        self.addCleanup(self.world.close)
        self.world.look_for_one_rule_only()
        self.world.gate()
        self.http = self.world.http()

    def push_that_waits_at_upstream(self) -> tuple[subprocess.Popen[str], str]:
        arrived, self.go_on = self.world.waiting_hook("pre-receive")
        work = self.world.clone_of_upstream(self.world.by_http())
        head = self.world.commit(work, {"a": "a\n"})
        command = ["git", "push", "origin", "main"]
        push = subprocess.Popen(
            command, cwd=work, env=self.world.client, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_until(arrived.exists, 30, "the push at upstream")
        return push, head

    def test_term_ends_an_idle_server_with_a_connection_open(self) -> None:
        with socket.create_connection(("127.0.0.1", self.world.http_port)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertIn(b"200", client.recv(1000))
            self.http.signal_group(signal.SIGTERM)
            self.assertEqual(self.http.process.wait(5), 0)

    def test_term_ends_the_daemon_at_once_and_lets_a_push_finish(self) -> None:
        push, head = self.push_that_waits_at_upstream()
        self.http.signal_group(signal.SIGTERM)
        self.assertEqual(self.http.process.wait(5), 0)
        self.assertTrue(self.http.group_is_alive())
        self.assertFalse(listens(self.world.http_port))
        self.go_on.touch()
        said = push.communicate(timeout=30)[1]
        self.assertEqual(push.returncode, 0, said)
        self.assertIn(head, self.world.both()[1])
        self.assertEqual(*self.world.both())
        wait_until(lambda: not self.http.group_is_alive(), 10, "the end of the push's processes")

    def test_a_push_whose_client_has_gone_is_finished(self) -> None:
        push, head = self.push_that_waits_at_upstream()
        os.killpg(push.pid, signal.SIGKILL)
        push.communicate()
        wait_until(lambda: "is going on without its client" in self.http.log, 10, "the lost client noticed")
        self.go_on.touch()
        wait_until(lambda: head in self.world.both()[1], 30, "the push in the mirror")
        self.assertEqual(*self.world.both())

    def test_a_port_that_is_taken_is_one_line(self) -> None:
        with self.assertRaisesRegex(AssertionError, "cannot listen on"):
            Daemon(self.http.process.args, 1, self.world.environment, self.world.dir / "second.log")  # type: ignore[arg-type]


@needs_the_real_programs
class Attacks(HttpCase):
    """What disabled a server that passed requests on to git http-backend, and what else a hostile client may try."""

    def cgi(self, body: bytes, **variables: str) -> subprocess.Popen[bytes]:
        """git http-backend with a body, as the server ran it before: TERM ignored, and told of length and encoding."""
        environment = self.world.environment | {
            "REQUEST_METHOD": "POST",
            "GIT_PROJECT_ROOT": str(self.world.mirrors),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": "/demo.git/git-upload-pack",
            "CONTENT_TYPE": "application/x-git-upload-pack-request",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
        }
        script = "trap '' TERM; exec \"$(git --exec-path)/git-http-backend\""
        with tempfile.TemporaryFile() as sent:
            sent.write(body)
            sent.seek(0)
            backend = subprocess.Popen(
                ["sh", "-c", script],
                env=environment | variables,
                stdin=sent,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        assert backend.stderr is not None
        self.addCleanup(backend.stderr.close)
        self.addCleanup(backend.wait)
        self.addCleanup(self.kill_group, backend.pid)
        return backend

    @staticmethod
    def kill_group(group: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    def assert_serves(self, port: int | None = None) -> None:
        self.assertEqual(self.status(self.ask(b"GET /health HTTP/1.0\r\n\r\n", port)), 200)
        advertised = self.ask(b"GET /demo/info/refs?service=git-upload-pack HTTP/1.0\r\n\r\n", port)
        self.assertIn(b"refs/heads/main", advertised)

    def assert_nothing_is_left(self, daemon: Daemon) -> None:
        wait_until(lambda: len(daemon.family()) == 1, 20, "the end of what served")

    def test_a_body_that_ends_early_ends_its_request_where_http_backend_never_does(self) -> None:
        receive = {"PATH_INFO": "/demo.git/git-receive-pack", "CONTENT_TYPE": "application/x-git-receive-pack-request"}
        old = self.cgi(b"0000", CONTENT_LENGTH="1000", **receive)
        wait_until(lambda: cpu_ticks(old.pid) > 50, 60, "half a second of CPU time that http-backend takes for nothing")
        self.assertIsNone(old.poll())
        command = packet(f"{'0' * 40} {'1' * 40} refs/heads/x\0report-status\n") + b"0000"
        for service in ("git-upload-pack", "git-receive-pack"):
            for body in (b"", b"0000", command, command + b"PACK\0\0\0\2\0\0\0\5half"):
                for framing in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
                    with self.subTest(service, body=body[:4], framing=framing):
                        chunk = body if framing.startswith("C") or not body else b"%x\r\n%b\r\n" % (len(body), body)
                        client = self.connect(self.head(service, framing) + chunk)
                        client.shutdown(socket.SHUT_WR)
                        answer = b""
                        while piece := client.recv(1 << 16):
                            answer += piece
                        # To half a pack receive-pack itself has an answer.
                        self.assertTrue(answer[9:12] in (b"400", b"") or b"unpack " in answer, answer)
        self.assert_nothing_is_left(self.http)
        self.assert_mirror_is_upstream()

    def head(self, service: str, *headers: str) -> bytes:
        lines = [
            f"POST /demo/{service} HTTP/1.1",
            "Host: x",
            f"Content-Type: application/x-{service}-request",
            *headers,
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def test_broken_gzip_does_not_keep_its_place_as_it_does_with_an_ignored_term(self) -> None:
        broken = gzip.compress(b"0000")[:10] + b"\xff" * 20
        old = self.cgi(broken, CONTENT_LENGTH=str(len(broken)), HTTP_CONTENT_ENCODING="gzip")
        assert old.stderr is not None
        self.assertIn(b"inflate: data stream error", old.stderr.readline())
        with self.assertRaises(subprocess.TimeoutExpired):
            old.wait(1)
        headers = ("Content-Encoding: gzip", f"Content-Length: {len(broken)}")
        for service in ("git-upload-pack", "git-receive-pack"):
            for _ in range(20):
                self.assertEqual(self.status(self.post(broken, *headers, service=service)), 400)
        self.assert_serves()
        self.assert_nothing_is_left(self.http)

    def test_gzip_that_unpacks_to_more_than_a_request_may_have_is_refused_before_it_takes_memory(self) -> None:
        asked = packet("command=fetch\n") + b"0001" + packet(f"have {'1' * 40}\n") * 2_000_000 + b"0000"
        bomb = gzip.compress(asked)
        length, version = str(len(bomb)), "version=2"
        old = self.cgi(bomb, CONTENT_LENGTH=length, HTTP_CONTENT_ENCODING="gzip", GIT_PROTOCOL=version)
        peak = 0

        def grows() -> bool:
            nonlocal peak
            for process in processes():
                if process.group == old.pid:
                    with contextlib.suppress(OSError, IndexError):
                        peak = max(peak, peak_rss(process.pid))
            return peak > 100 * len(bomb)

        wait_until(grows, 60, "a hundred times its size in memory")
        with self.memory_of_what_serves(whole_family=True) as peaks:
            for service in ("git-upload-pack", "git-receive-pack"):
                headers = ("Content-Encoding: gzip", f"Content-Length: {length}", f"Git-Protocol: {version}")
                answer = self.post(bomb, *headers, service=service)
                self.assertEqual(self.status(answer), 400)
        self.assertLess(max(peaks.values()), peak)
        self.assert_serves()

    def test_gzip_is_unpacked_in_pieces_and_up_to_a_limit_in_a_push_too(self) -> None:
        with mock.patch.object(sys, "path", [str(ROOT / "app"), *sys.path]):
            server = import_module("git_http_backend")
        bomb = gzip.compress(bytes(64 << 20))
        body = server.Body(bomb, len(bomb), True)
        sizes = []
        with self.assertRaises(server.BadRequest):
            for piece in body.pieces():
                sizes.append(len(piece))
        self.assertLessEqual(max(sizes), 1 << 16)
        self.assertEqual(sum(sizes), 16 << 20)

    def test_a_list_of_refs_without_an_end_is_refused_before_it_takes_memory(self) -> None:
        command = packet(f"{'0' * 40} {'1' * 40} refs/heads/{'x' * 100}\n")
        receive = {"PATH_INFO": "/demo.git/git-receive-pack", "CONTENT_TYPE": "application/x-git-receive-pack-request"}
        old = self.cgi(command * 200_000, **receive)
        old_peak = 0

        def is_at_its_end() -> bool:
            nonlocal old_peak
            for process in processes():
                if process.group == old.pid:
                    with contextlib.suppress(OSError, IndexError):
                        old_peak = max(old_peak, peak_rss(process.pid))
            return old.poll() is not None

        wait_until(is_at_its_end, 60, "the end of git's input")
        self.assertGreater(old_peak, 30 << 20)  # its last peak may have been missed
        with self.memory_of_what_serves(whole_family=True) as peaks:
            head = self.head("git-receive-pack", "Transfer-Encoding: chunked")
            with self.connect(head) as client:
                many = command * 300
                with contextlib.suppress(OSError):
                    for _ in range(700):
                        client.sendall(b"%x\r\n%b\r\n" % (len(many), many))
                with contextlib.suppress(ConnectionResetError):
                    self.assertIn(b"more branches and tags than GIT_GATE_PUSH_REFS=100 allows", client.recv(1 << 16))
        self.assertLess(max(peaks.values()), old_peak)
        self.assert_serves()

    def test_gzip_with_something_behind_it_or_without_an_end_is_refused(self) -> None:
        whole = gzip.compress(self.ls_refs())
        for body in (whole + b"more", whole + whole, whole[:-4], whole[:-1], whole[:5], b"", b"0000"):
            with self.subTest(body[-8:]):
                headers = ("Content-Encoding: gzip", f"Content-Length: {len(body)}", "Git-Protocol: version=2")
                answer = self.post(body, *headers)
                self.assertTrue(self.status(answer) == 400 or not answer.endswith(b"0\r\n\r\n"), answer[-80:])
        for encoding in ("br", "deflate", "gzip, gzip", "GZIP,identity"):
            self.assertEqual(self.status(self.post(whole, f"Content-Encoding: {encoding}", "Content-Length: 4")), 415)

    def test_a_body_that_goes_on_after_the_answer_does_not_keep_its_place(self) -> None:
        daemon, port = self.front_end("front.CLOSE_SECONDS = 1")
        clients = [self.connect(self.head("git-upload-pack", f"Content-Length: {10**17}"), port) for _ in range(3)]
        for client in clients:
            client.sendall(b"zzzz")  # which ends git
        wait_until(lambda: b"HTTP/1.1 400" in clients[0].recv(1 << 16, socket.MSG_PEEK), 20, "the answer")
        self.assertGreater(len(daemon.family()), 1)

        def have_ended() -> bool:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(b" " * 1000)
            return len(daemon.family()) == 1

        wait_until(have_ended, 20, "the end of what served them")
        self.assert_serves(port)

    def test_silent_connections_do_not_keep_health_or_a_request_waiting(self) -> None:
        for data in (b"", b"GET /health HTTP/1.1\r\nX: "):
            clients = [self.connect(data) for _ in range(300)]
            self.assert_serves()
            for client in clients:
                client.close()

    def test_health_is_answered_while_all_places_are_taken(self) -> None:
        _, port = self.front_end("front.MAX_SERVED, front.QUEUE_SECONDS = 1, 1")
        request = self.head("git-receive-pack", "Content-Length: 1000")
        held = [self.connect(request, port) for _ in range(20)]
        self.assertEqual(self.status(self.ask(b"GET /health HTTP/1.1\r\n\r\n", port)), 200)
        answers = [client.recv(100)[:12] for client in held[1:]]
        self.assertEqual(answers, [b"HTTP/1.1 503"] * 19)
        held[0].close()
        self.assert_serves(port)

    def test_half_a_head_is_closed_at_the_deadline(self) -> None:
        _, port = self.front_end("front.REQUEST_SECONDS = 0.5")
        for data in (b"", b"GET", b"GET /health HTTP/1.1\r\nX: y\r\n", b"\n\n"):
            self.assertEqual(self.ask(data, port), b"")

    def test_a_second_request_in_the_same_connection_is_never_read(self) -> None:
        second = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        body = self.ls_refs()
        first = self.head("git-upload-pack", f"Content-Length: {len(body)}", "Git-Protocol: version=2") + body
        for requests in (second * 2, first + second, b"GET / HTTP/1.1\r\n\r\n" + second):
            answer = self.ask(requests)
            self.assertEqual(answer.count(b"HTTP/1.1 "), 1)
            self.assertIn(b"\r\nConnection: close\r\n", answer)

    def test_a_head_that_is_too_large_is_refused(self) -> None:
        for data in (b"GET /" + b"a" * 17_000, b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 3000, b"\0" * 20_000):
            self.assertEqual(self.status(self.ask(data)), 431)

    def test_heads_that_can_be_read_in_two_ways(self) -> None:
        for head in (
            b"\r\nGET /health HTTP/1.1",
            b"GET /health HTTP/1.1\nX: y",
            b"GET /demo/info/refs?service=git-upload-pack HTTP/1.1\nX: y",
            b"GET  /health HTTP/1.1",
            b"GET /health  HTTP/1.1",
            b"GET\t/health HTTP/1.1",
            b"GET /health HTTP/2.0",
            b"GET /health HTTP/1.11",
            b"GET /health",
            b"get /health HTTP/1.1",
            b"GET http://x/health HTTP/1.1 ",
            b"GET /x HTTP/1.1\r\n folded: y",
            b"GET /x HTTP/1.1\r\nX: y\r\n z",
            b"GET /x HTTP/1.1\r\n: y",
            b"GET /x HTTP/1.1\r\nX\0: y",
            b"GET /x HTTP/1.1\r\nX: \0y",
            b"GET /x HTTP/1.1\r\nX: y\rz",
            b"GET /x HTTP/1.1\r\nX: y\nTransfer-Encoding: chunked",
            b"GET /x HTTP/1.1\r\nTransfer-Encoding\xa0: chunked",
            b"GET /x HTTP/1.1\r\nTransfer-Encoding: \x0bchunked",
            b"GET /x HTTP/1.0\r\nTransfer-Encoding: chunked",
        ):
            with self.subTest(head):
                self.assertEqual(self.status(self.ask(head + b"\r\n\r\n")), 400)

    def blanks(self, settings: str) -> Daemon:
        """Send a header of many blanks and a control character to a listener with 3 s of CPU time; it begins after
        its imports, most of which is left."""
        limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (3, resource.RLIM_INFINITY))"
        daemon, self.port = self.front_end(f"{limit}; {settings}")
        attack = b"GET /demo/info/refs HTTP/1.1\r\nA:" + b" " * 3000 + b"\x01\r\n\r\n"
        self.client = self.connect(attack, self.port)
        return daemon

    def test_a_header_of_blanks_does_not_stop_the_listener(self) -> None:
        self.blanks("pass")
        self.assertEqual(self.status(self.client.recv(1 << 16)), 400)
        self.assert_serves(self.port)

    def test_control_a_header_of_blanks_stops_a_listener_that_tries_each_of_them(self) -> None:
        trying = r"(?P<name>[A-Za-z]+):[ \t]*(?P<value>[^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*"
        daemon = self.blanks(f"import re; program._HEADER = re.compile({trying!r})")
        self.assertEqual(daemon.process.wait(60), -signal.SIGXCPU)

    def test_chunks_that_can_be_read_in_two_ways_or_never_end_are_refused(self) -> None:
        for body in (  # "00", of which git makes nothing until more comes
            b"2\n00\n0\n\n",
            b"2 \n00 \n0 \n\n",
            b"2\r\n00X\n0\r\n\r\n",
            b"2\r\r\n00\r\n0\r\n\r\n",
            b"0x2\r\n00\r\n0\r\n\r\n",
            b"+2\r\n00\r\n0\r\n\r\n",
            b"0_2\r\n00\r\n0\r\n\r\n",
            b"\r\n2\r\n00\r\n0\r\n\r\n",
            b"2\r\n000\r\n0\r\n\r\n",
            b"2\r\n0\r\n0\r\n\r\n",
            b"2;" + b"a" * 2000,
            b"2\r\n00\r\n0\r\n" + b"A: b\r\n" * 100,
            b"2\r\n00\r\n0\r\n" + b"A" * 2000,
        ):
            with self.subTest(body[:20]):
                answer = self.post(body, "Transfer-Encoding: chunked")
                self.assertEqual(self.status(answer), 400)
                self.assertNotIn(b"git upload-pack cannot", answer)
        self.assertIn(b"git upload-pack cannot", self.post(b"2\r\n00\r\n0\r\n\r\n", "Transfer-Encoding: chunked"))
        self.assert_serves()
        self.assert_nothing_is_left(self.http)

    def test_a_body_that_stops_loses_its_place(self) -> None:
        daemon, port = self.front_end("front.SILENT_SECONDS = front.IDLE_SECONDS = front.CLOSE_SECONDS = 1")
        for service in ("git-upload-pack", "git-receive-pack"):
            self.connect(self.head(service, "Content-Length: 1000") + b"00", port)
        wait_until(lambda: len(daemon.family()) > 4, 20, "two requests that are served")
        self.assert_nothing_is_left(daemon)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    unittest.main()
