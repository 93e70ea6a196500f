"""The image's health check, beside servers that answer, answer otherwise, or only listen."""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

from tests.app.git_support import Daemon
from tests.support import ROOT, free_port, wait_until

PORTS = {"git-gate": "GIT_GATE_PORT", "git-http": "GIT_HTTP_PORT", "supervise": "SUPERVISE_PORT"}
PROGRAMS = {"git-gate": "git_gate_daemon.py", "git-http": "git_http_backend.py", "supervise": "supervise_server.py"}


class BundleHealth(unittest.TestCase):
    def setUp(self) -> None:
        self.ports = {name: free_port() for name in PORTS}

    def check(self, *supervisors: str) -> tuple[int, str]:
        """The exit status and what is said."""
        environment = os.environ | {PORTS[name]: str(port) for name, port in self.ports.items()}
        command = [sys.executable, "-I", "-S", str(ROOT / "app" / "bundle_health.py")]
        supervisors = supervisors or (sys.executable, "-c", "print('the word of the supervisor')")
        done = subprocess.run([*command, *supervisors], env=environment, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def start(self, name: str) -> Daemon:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        own = {"GIT_GATE_ROOT": str(directory), "PYTHONDONTWRITEBYTECODE": "1", PORTS[name]: str(self.ports[name])}
        program = [sys.executable, str(ROOT / "app" / PROGRAMS[name])]
        daemon = Daemon(program, self.ports[name], os.environ | own, directory / "log")
        self.addCleanup(daemon.kill)
        return daemon

    def listen(self, name: str, answer: bytes | None = None, pause: float = 0.0) -> None:
        """A server that answers nothing at all, or the same to everything, with a pause after each byte."""
        server = socket.create_server(("127.0.0.1", self.ports[name]))
        self.addCleanup(server.close)

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                with contextlib.suppress(OSError):  # the other may have left
                    for byte in answer or b"":
                        client.sendall(bytes([byte]))
                        time.sleep(pause)

        if answer is not None:
            thread = threading.Thread(target=serve)
            thread.start()
            self.addCleanup(thread.join)

    def test_without_servers_the_supervisors_word_counts(self) -> None:
        self.assertEqual(self.check(), (0, "the word of the supervisor\n"))
        self.assertEqual(self.check(sys.executable, "-c", "raise SystemExit(3)")[0], 3)

    def test_daemons_that_start_are_waited_for(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        status, started = directory / "status.json", directory / "started"
        started.write_text('{"daemons": [{"state": "running"}]}')
        os.mkfifo(status)  # one who writes to it knows that the check has begun to read

        def start() -> None:
            status.write_text('{"daemons": [{"state": "starting"}]}')
            os.replace(started, status)

        thread = threading.Thread(target=start)
        thread.start()
        self.addCleanup(thread.join)
        with mock.patch.dict(os.environ, {"BOT_BOTTLE_SIDECAR_STATE_DIR": str(directory)}):
            _, said = self.check(sys.executable, "-c", f"print(open({str(status)!r}).read())")
        self.assertIn("running", said)

    def test_a_daemon_that_never_gets_ready_is_not_waited_for_any_longer(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (directory / "status.json").write_text('{"daemons": [{"state": "waiting"}]}')
        with mock.patch.dict(os.environ, {"BOT_BOTTLE_SIDECAR_STATE_DIR": str(directory)}):
            self.assertEqual(self.check(), (0, "the word of the supervisor\n"))

    def test_only_the_check_of_an_older_container_begins_with_a_pause(self) -> None:
        for age, pauses in ((0.5, []), (60.0, [1.0])):
            slept: list[float] = []
            program = runpy.run_path(str(ROOT / "app" / "bundle_health.py"))
            ports = {PORTS[name]: str(port) for name, port in self.ports.items()}
            with (
                self.subTest(age=age),
                mock.patch.dict(program["main"].__globals__, {"_age_of_container": lambda age=age: age}),
                mock.patch("time.sleep", slept.append),
                mock.patch("os.execv"),
                mock.patch.dict(os.environ, {**ports, "BOT_BOTTLE_SIDECAR_STATE_DIR": "/nonexistent"}),
            ):
                program["main"](["health"])
            self.assertEqual(slept, pauses)

    def test_the_age_of_a_container_is_that_of_its_pid_1(self) -> None:
        program = runpy.run_path(str(ROOT / "app" / "bundle_health.py"))
        first = program["_age_of_container"]()
        self.assertGreater(first, 0)
        self.assertLess(first, time.clock_gettime(time.CLOCK_BOOTTIME))
        wait_until(lambda: program["_age_of_container"]() > first, 10, "it grows")

    def test_servers_that_answer_are_healthy_and_do_not_log_it(self) -> None:
        daemons = [self.start(name) for name in PROGRAMS]
        before = [daemon.log for daemon in daemons]
        self.assertEqual(self.check(), (0, "the word of the supervisor\n"))
        wait_until(lambda: len(daemons[0].family()) == 1, 10, "the listener alone")
        self.assertEqual([daemon.log for daemon in daemons], before)

    def test_a_server_that_only_listens_is_named(self) -> None:
        for name in PORTS:
            with self.subTest(name):
                self.ports = {name: free_port() for name in PORTS}
                self.listen(name)
                status, said = self.check()
                self.assertEqual(status, 1)
                self.assertIn(f"unhealthy: {name} listens but does not answer: ", said)

    def test_a_server_that_never_ends_its_answer_is_named(self) -> None:
        self.listen("git-http", b"HTTP/1.1 200 OK", pause=0.5)
        status, said = self.check()
        self.assertEqual(status, 1)
        self.assertIn("unhealthy: git-http listens but does not answer: ", said)

    def test_a_server_that_answers_otherwise_is_named_with_its_answer(self) -> None:
        for answer in (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"", b"\xff"):
            with self.subTest(answer):
                self.ports = {name: free_port() for name in PORTS}
                self.listen("git-http", answer)
                status, said = self.check()
                self.assertEqual(status, 1)
                self.assertIn("unhealthy: git-http answered b", said)


if __name__ == "__main__":
    unittest.main()
