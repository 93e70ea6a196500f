"""git-gate's front end with the real git client, with requests that no git client makes, and beside the real git daemon
where an attack succeeds."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import unittest
from pathlib import Path

from tests.app.git_support import Daemon, GateCase, needs_the_real_programs
from tests.support import ROOT, free_port, wait_until


def packet(text: str) -> bytes:
    return f"{len(text) + 4:04x}{text}".encode()


def request(path: str = "/demo", service: str = "git-upload-pack", host: str = "x", *parameters: str) -> bytes:
    extra = "\0" + "".join(f"{parameter}\0" for parameter in parameters) if parameters else ""
    return packet(f"{service} {path}\0host={host}\0{extra}")


def has_namespaces() -> bool:
    probe = ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"]
    with contextlib.suppress(OSError):
        return subprocess.run(probe, capture_output=True).returncode == 0
    return False


class DaemonCase(GateCase):
    one_rule_only = True

    def front_end(self, settings: str = "", **environment: str) -> tuple[Daemon, int]:
        return self.another("git_gate_daemon", "GIT_GATE_PORT", settings, **environment)

    def old_daemon(self) -> tuple[Daemon, int]:
        """git daemon as git-gate ran it before it had a front end."""
        port = free_port()
        program = Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-daemon"
        hook = self.world.dir / "allow"
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        command = [str(program), "--listen=127.0.0.1", f"--port={port}", "--reuseaddr", "--export-all"]
        command += [f"--base-path={self.world.mirrors}", "--max-connections=32", "--init-timeout=60"]
        daemon = self.world.start([*command, f"--access-hook={hook}"], port, self.world.environment, f"{port}.log")
        self.addCleanup(daemon.kill)
        return daemon, port

    def connect(self, port: int | None = None, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
        address = ("127.0.0.1", port or self.world.git_port)
        client = socket.create_connection(address, timeout=30, source_address=(source, 0))
        self.addCleanup(client.close)
        client.sendall(data)
        return client

    def everything(self, client: socket.socket) -> bytes:
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
        return answer

    def ask(self, data: bytes, port: int | None = None, source: str = "127.0.0.1") -> bytes:
        """What the server answers to data after which the client sends no more."""
        client = self.connect(port, data, source)
        client.shutdown(socket.SHUT_WR)
        return self.everything(client)

    def assert_serves(self, port: int | None = None, source: str = "127.0.0.1") -> None:
        self.assertIn(b"refs/heads/main", self.ask(request() + b"0000", port, source))

    def is_served(self, port: int, source: str) -> bool:
        try:
            return b"refs/heads/main" in self.ask(request() + b"0000", port, source)
        except OSError:
            return False


@needs_the_real_programs
class Clients(DaemonCase):
    def test_each_version_of_the_protocol_lists_fetches_and_pushes(self) -> None:
        for version in "012":
            with self.subTest(version):
                setting = ("-c", f"protocol.version={version}")
                work = self.world.clone_of_upstream(self.world.by_git())
                head = self.world.commit(work, {f"by-{version}": "x\n"})
                self.world.git(*setting, "push", "origin", f"HEAD:refs/heads/by-{version}", cwd=work)
                self.assert_mirror_is_upstream()
                trace = self.world.try_git(*setting, "ls-remote", self.world.by_git(), GIT_TRACE_PACKET="1")
                self.assertIn(f"{head}\trefs/heads/by-{version}", trace.stdout)
                self.assertEqual("< version " in trace.stderr, version != "0")
                clone = self.world.dir / f"clone-{version}"
                self.world.git(
                    *setting, "clone", "--quiet", "--branch", f"by-{version}", self.world.by_git(), str(clone)
                )
                self.assertEqual(self.world.git("rev-parse", "HEAD", cwd=clone), head)

    def test_a_mirrors_name_with_git_and_a_slash_behind_it(self) -> None:
        for path in ("/demo", "/demo.git", "/demo/", "/demo.git/", "/demo\n"):
            with self.subTest(path):
                self.assertIn(b"refs/heads/main", self.ask(request(path) + b"0000"))

    def test_a_request_that_comes_byte_by_byte_is_read(self) -> None:
        client = self.connect()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request():
            client.sendall(bytes([byte]))
        self.assertIn(b"refs/heads/main", client.recv(1 << 16))

    def test_a_client_that_closes_its_sending_side_gets_its_whole_answer(self) -> None:
        asked = packet("command=ls-refs\n") + b"0001" + packet("peel\n") + b"0000"
        answer = self.ask(request("/demo", "git-upload-pack", "x", "version=2") + asked)
        self.assertIn(b"version 2", answer)
        self.assertTrue(answer.endswith(b"0000"), answer[-20:])
        self.assertIn(b"refs/heads/main", answer)

    def test_what_the_access_hook_says_is_passed_on_to_the_client(self) -> None:
        mirror = self.world.mirrors / "orphan.git"
        self.world.git("init", "--quiet", "--bare", str(mirror))
        for url in (self.world.by_git("orphan"), self.world.by_http("orphan")):
            done = self.world.try_git("ls-remote", url)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("503" if url.startswith("http") else "cannot serve orphan: it has no upstream", done.stderr)

    def test_the_access_hook_gets_no_name_and_the_address_of_the_client(self) -> None:
        app = self.world.dir / "hooked"
        (app / "git_gate_hooks").mkdir(parents=True)
        (app / "git_gate_hooks" / "pre-receive").symlink_to(ROOT / "app" / "git_gate_pre_receive.py")
        (app / "git_gate_env.sh").symlink_to(ROOT / "app" / "git_gate_env.sh")
        hook = app / "git_gate_access_hook.sh"
        hook.write_text('#!/bin/sh\nprintf "<%s>" "$@" "$REMOTE_ADDR" "$#"\nexit 1\n')
        hook.chmod(0o755)
        _, port = self.front_end(GIT_GATE_APP=str(app))
        told = f"<upload-pack><{self.world.mirrors}/demo.git><><><127.0.0.1><{port}><127.0.0.2><6>"
        self.assertEqual(self.ask(request(host="secret.example"), port, "127.0.0.2"), packet(f"ERR {told}"))


@needs_the_real_programs
class Requests(DaemonCase):
    def test_what_is_not_a_mirrors_service_is_refused_with_a_reason(self) -> None:
        (self.world.dir / "mirrors" / "plain").mkdir(exist_ok=True)
        for line in (
            "git-upload-pack /nothing",
            "git-upload-pack /plain",
            "git-upload-pack /",
            "git-upload-pack demo",
            "git-upload-pack //demo",
            "git-upload-pack /../demo",
            "git-upload-pack /x/../demo",
            "git-upload-pack /demo/../demo",
            "git-upload-pack /demo.git/objects",
            "git-upload-pack /./demo",
            "git-upload-pack /.git",
            "git-upload-pack /demo.git.git",
            "git-upload-pack /~root/demo",
            f"git-upload-pack {self.world.mirrors}/demo.git",
            "git-upload-pack /--upload-pack=touch",
            "git-upload-pack /demo\n\n",
            "git-upload-pack /demo x",
            "git-upload-pack /" + "a" * 300,
            "git-upload-pack  /demo",
            "git-upload-pack",
            "git-upload-archive /demo",
            "upload-pack /demo",
            "git-receive-pack /\N{LATIN SMALL LETTER E WITH ACUTE}",
            "git-daemon /demo",
            "",
            " ",
        ):
            with self.subTest(line):
                said = self.ask(packet(f"{line}\0host=x\0")) if line else self.ask(packet("\0"))
                self.assertRegex(said.decode(), r"\A[0-9a-f]{4}ERR no (such repository or service|mirror \S+)\Z")
        self.assert_serves()

    def test_what_is_no_request_at_all_ends_its_connection(self) -> None:
        for data in (
            b"0000",
            b"0001",
            b"0004",
            b"zzzz",
            b"-001",
            b"+fff",
            b" 1ff",
            b"0x1f",
            b"ffff",
            b"1001" + b"a" * 4093,
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\0" * 4000,
        ):
            with self.subTest(data[:20]):
                self.assertIn(b"ERR this port speaks git's own protocol", self.ask(data))
        self.assert_serves()

    def test_what_a_client_sends_for_a_name_does_not_reach_the_log_as_it_is(self) -> None:
        self.ask(packet("git-upload-pack /\x1b[31m\nsidecar-init: a forged line\0"))
        wait_until(lambda: "a forged line" in self.gate.log, 10, "the request in the log")
        self.assertNotIn("\x1b", self.gate.log)
        self.assertNotIn("\nsidecar-init: a forged line", self.gate.log)

    def test_parameters_that_are_no_version_do_not_reach_git(self) -> None:
        for parameters in (
            ("object-format=sha256",),
            ("version=2:evil",),
            ("VERSION=2",),
            ("version=",),
            ("x" * 3000,),
        ):
            with self.subTest(parameters):
                answer = self.ask(request("/demo", "git-upload-pack", "x", *parameters) + b"0000")
                self.assertIn(b"refs/heads/main", answer)
                self.assertNotIn(b"version", answer[:20])

    def test_a_fetch_request_without_an_end_is_cut_off(self) -> None:
        client = self.connect(data=request("/demo", "git-upload-pack", "x", "version=2"))
        client.sendall(packet("command=fetch\n") + b"0001")
        line = packet(f"have {'1' * 40}\n") * 1000
        with contextlib.suppress(OSError):
            for _ in range(500):
                client.sendall(line)
            client.shutdown(socket.SHUT_WR)
        self.assertIn(b"ERR a request may have 16777216 bytes", self.everything(client))
        self.assert_serves()

    def test_a_list_of_refs_without_an_end_is_cut_off(self) -> None:
        client = self.connect(data=request("/demo", "git-receive-pack"))
        self.assertIn(b"report-status", client.recv(1 << 16))
        lines = packet(f"shallow {'1' * 40}\n") * 1000
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(lines)
            client.shutdown(socket.SHUT_WR)
        self.assertIn(b"ERR the refs of a push may take 4194304 bytes", self.everything(client))
        self.assert_serves()

    def test_a_push_of_many_refs_passes(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"x": "x\n"})
        refs = [f"HEAD:refs/heads/many/{number}" for number in range(60)]
        for url in (self.world.by_git(), self.world.by_http()):
            self.world.git("push", "--quiet", url, *refs, cwd=work)
            self.assert_mirror_is_upstream()
            self.world.git("push", "--quiet", "--delete", url, *(ref[5:] for ref in refs), cwd=work)
            self.assert_mirror_is_upstream()


@needs_the_real_programs
class ManyConnections(DaemonCase):
    def test_clients_that_stay_silent_do_not_keep_out_others_as_they_do_with_git_daemon(self) -> None:
        daemon, old = self.old_daemon()
        held = [self.connect(old, request()) for _ in range(40)]
        wait_until(lambda: self.children_that_serve(daemon) >= 32, 60, "as many as git daemon serves")
        self.assertFalse(self.is_served(old, "127.0.0.2"))
        _, new = self.front_end()
        held += [self.connect(new, request()) for _ in range(40)]
        self.wait_for_served(new, 16)
        self.assert_serves(new, "127.0.0.2")
        for client in held:
            client.close()

    def children_that_serve(self, daemon: Daemon) -> int:
        """How many children git daemon has that are past the request; those ignore TERM."""
        children = 0
        for process in daemon.family():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
                children += process.parent == daemon.process.pid and bool(ignored & 1 << signal.SIGTERM - 1)
        return children

    def test_a_thousand_silent_clients_are_fewer_in_the_end(self) -> None:
        clients = [self.connect() for _ in range(1000)]
        self.assert_serves()
        descriptors = Path(f"/proc/{self.gate.process.pid}/fd")
        self.assertLess(len(list(descriptors.iterdir())), 300)
        self.assertEqual(self.everything(clients[0]), b"")  # the oldest were closed
        clients[-1].sendall(request())
        self.assertIn(b"refs/heads/main", clients[-1].recv(1 << 16))

    def test_the_peer_with_the_most_connections_loses_one_for_a_newcomer(self) -> None:
        _, port = self.front_end("front.MAX_CONNECTIONS = 10")
        modest = self.connect(port, source="127.0.0.2")
        greedy = [self.connect(port) for _ in range(30)]
        self.assertEqual(self.everything(greedy[0]), b"")
        modest.sendall(request())
        self.assertIn(b"refs/heads/main", modest.recv(1 << 16))

    def test_half_a_request_is_closed_at_the_deadline_though_it_never_pauses(self) -> None:
        _, port = self.front_end("front.REQUEST_SECONDS = 0.5")
        trickling = self.connect(port, b"0800")
        trickling.settimeout(0.02)

        def is_closed() -> bool:
            try:
                trickling.send(b"g")
                return trickling.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(is_closed, 20, "the end of a client that trickles")
        self.assertEqual(self.everything(self.connect(port, b"00")), b"")
        self.assert_serves(port)

    def test_one_peer_cannot_have_all_places(self) -> None:
        limits = "front.MAX_SERVED, front.MAX_SERVED_PER_PEER, front.QUEUE_SECONDS = 4, 2, 1"
        for settings, is_refused in ((limits, False), (f"{limits}; front.MAX_SERVED_PER_PEER = 4", True)):
            with self.subTest(settings):
                _, port = self.front_end(settings)
                for _ in range(8):
                    self.connect(port, request())  # served until it goes on
                self.wait_for_served(port, 2)
                self.assertIn(b"too many requests", self.ask(request(), port))
                self.assertEqual(b"too many requests" in self.ask(request(), port, "127.0.0.2"), is_refused)

    def wait_for_served(self, port: int, count: int) -> None:
        log = self.world.dir / f"{port}.log"
        wait_until(lambda: log.read_text().count(": upload-pack demo.git") >= count, 20, "served clients")

    def test_a_place_is_free_once_its_client_has_gone(self) -> None:
        _, port = self.front_end("front.MAX_SERVED = front.MAX_SERVED_PER_PEER = 1")
        for _ in range(5):
            client = self.connect(port, request())
            self.assertIn(b"refs/heads/main", client.recv(1 << 16))
            client.close()

    def test_a_client_that_stops_in_a_fetch_or_a_push_loses_its_place(self) -> None:
        daemon, port = self.front_end("front.SILENT_SECONDS = front.IDLE_SECONDS = front.CLOSE_SECONDS = 1")
        for service, more in (("upload", b""), ("receive", b""), ("upload", b"00"), ("receive", b"00")):
            with self.subTest(service, more=more):
                client = self.connect(port, request("/demo", f"git-{service}-pack") + more)
                self.assertIn(b"refs/heads/", self.everything(client))
                wait_until(lambda: len(daemon.family()) == 1, 10, "the end of its processes")

    def test_a_client_that_does_not_read_its_answer_loses_its_place(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_git())
        head = self.world.commit(work, {"large": os.urandom(12 << 20)})
        self.world.git("push", "--quiet", "origin", "HEAD:refs/heads/large", cwd=work)
        daemon, port = self.front_end("front.IDLE_SECONDS = 1")
        client = self.connect(port, request())
        client.recv(1 << 16)
        client.sendall(packet(f"want {head} ofs-delta\n") + b"0000" + packet("done\n"))
        wait_until(lambda: len(daemon.family()) == 1, 20, "the end of its processes")

    def test_a_request_that_takes_longer_than_it_may_is_ended_though_it_never_pauses(self) -> None:
        daemon, port = self.front_end("front.SERVICE_SECONDS = 1")
        client = self.connect(port, request("/demo", "git-upload-pack", "x", "version=2"))

        def goes_on() -> bool:
            with contextlib.suppress(OSError):
                client.sendall(packet("command=ls-refs\n") + b"0000")
            return len(daemon.family()) > 1

        wait_until(goes_on, 10, "a request that is served")
        wait_until(lambda: not goes_on(), 20, "its end")

    def test_without_a_process_to_spare_a_client_is_told_so_and_the_next_is_served(self) -> None:
        no_fork = "real, left = os.fork, [1]\ndef fork():\n if left: left.pop(); raise BlockingIOError(11, 'none left')"
        _, port = self.front_end(f"{no_fork}\n return real()\nos.fork = fork")
        self.assertIn(b"ERR this server cannot start a process now; try again", self.ask(request(), port))
        self.assert_serves(port)

    def test_without_a_descriptor_to_spare_the_oldest_connection_goes(self) -> None:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
        _, port = self.front_end(limit)
        silent = [self.connect(port) for _ in range(100)]
        self.assertEqual(self.everything(silent[0]), b"")
        self.assert_serves(port)


@needs_the_real_programs
@unittest.skipUnless(has_namespaces(), "needs namespaces of its own (unshare --user --net --mount)")
class Names(DaemonCase):
    """An agent's data in the name of a host, which a resolver would carry out past every proxy."""

    SCRIPT = ROOT / "tests" / "app" / "name_server.py"

    def names_asked_for(self, *command: str) -> str:
        inside = ["unshare", "--user", "--map-root-user", "--net", "--mount", sys.executable, str(self.SCRIPT)]
        environment = self.world.environment | {"PYTHONPATH": str(ROOT), "GIT_GATE_PORT": "9418"}
        done = subprocess.run([*inside, *command], env=environment, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("answered", done.stdout, done.stderr)
        return done.stdout

    def test_a_clients_host_is_not_looked_up_as_git_daemon_does_with_an_access_hook(self) -> None:
        hook = self.world.dir / "allow"
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        program = Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-daemon"
        served = ("--listen=127.0.0.1", "--port=9418", "--export-all", f"--base-path={self.world.mirrors}")
        old = self.names_asked_for(str(program), *served, f"--access-hook={hook}")
        self.assertIn("0-the-agents-data.attack.example", old)
        self.assertIn("19-the-agents-data.attack.example", old)
        new = self.names_asked_for(sys.executable, "-B", str(ROOT / "app" / "git_gate_daemon.py"))
        self.assertNotIn("asked for", new)


if __name__ == "__main__":
    unittest.main()
