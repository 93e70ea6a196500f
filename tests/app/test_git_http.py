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
import threading
import unittest
from pathlib import Path

from tests.app.git_support import Daemon, GateCase, World, free_port, listens, needs_the_real_programs
from tests.support import ROOT, wait_until

_SIZE = int(os.environ.get("GIT_HTTP_TEST_MIB", "16")) << 20  # of the large push; gitleaks reads about 8 MiB a second


def peak_rss(pid: int) -> int:
    """Bytes of memory that a process has held at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def packet(text: str) -> bytes:
    return f"{len(text) + 4:04x}{text}".encode()


@needs_the_real_programs
class Requests(GateCase):
    one_rule_only = True

    def ask(self, request: bytes) -> bytes:
        """What the server answers before it closes the connection, which the request should make it do."""
        with socket.create_connection(("127.0.0.1", self.world.http_port), timeout=30) as client:
            client.sendall(request)
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

    def test_a_client_that_leaves_a_fetch_ends_its_backend(self) -> None:
        def backends() -> list[str]:
            found = []
            for children in Path(f"/proc/{self.http.process.pid}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since
                    found += children.read_text().split()
            return found

        with socket.create_connection(("127.0.0.1", self.world.http_port)) as client:
            client.sendall(
                b"POST /demo/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: application/x-git-upload-pack-request\r\n\r\n0000"
            )
            wait_until(backends, 10, "a backend")
        wait_until(lambda: not backends(), 10, "its end")

    def test_a_large_push_and_clone_do_not_pass_through_the_servers_memory(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_http())
        blob = random.Random(9).randbytes(_SIZE)
        head = self.world.commit(work, {"large": blob})
        before = peak_rss(self.http.process.pid)
        self.world.git("push", "origin", "HEAD:refs/heads/large", cwd=work)
        self.assert_mirror_is_upstream()
        clone = self.world.dir / "large"
        self.world.git("clone", "--quiet", "--branch", "large", self.world.by_http(), str(clone))
        self.assertEqual(self.world.git("rev-parse", "HEAD", cwd=clone), head)
        self.assertEqual((clone / "large").read_bytes(), blob)
        self.assertLess(peak_rss(self.http.process.pid) - before, _SIZE // 4)

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

    def test_term_closes_the_port_and_lets_a_push_finish(self) -> None:
        push, head = self.push_that_waits_at_upstream()
        self.http.signal_group(signal.SIGTERM)

        def port_is_closed() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.world.http_port)) != 0

        wait_until(port_is_closed, 5, "the closed port")
        self.assertIsNone(self.http.process.poll())
        self.go_on.touch()
        said = push.communicate(timeout=30)[1]
        self.assertEqual(push.returncode, 0, said)
        self.assertEqual(self.http.process.wait(5), 0)
        self.assertIn(head, self.world.both()[1])
        self.assertEqual(*self.world.both())

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


class TermInARequest(unittest.TestCase):
    SERVER = """
import os, signal, sys
import git_http_backend as backend
accept = backend._Server.process_request

def process_request(server, *request):
    os.kill(os.getpid(), signal.SIGTERM)
    accept(server, *request)

backend._Server.process_request = process_request
sys.exit(backend.main())
"""

    def test_it_ends_the_server_though_socketserver_catches_what_requests_raise(self) -> None:
        port = free_port()
        environment = {"GIT_HTTP_PORT": str(port), "GIT_HTTP_LISTEN": "127.0.0.1", "PYTHONPATH": str(ROOT / "app")}
        server = subprocess.Popen([sys.executable, "-B", "-c", self.SERVER], env=environment, stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        wait_until(lambda: listens(port), 10, "the server")  # to look is the request
        self.assertEqual(server.wait(10), 0)


if __name__ == "__main__":
    unittest.main()
