"""examples/stack.toml with the real nginx: the order, the restarts, the worker's job, the essential application."""

from __future__ import annotations

import os
import re
import shutil
import signal
import unittest

from tests.pidns.harness import PYTHON, Namespace, NamespaceTestCase
from tests.support import MODULE, ROOT

PATIENCE = 30.0
LOOPBACK = 'ip link set lo up && exec "$@"'  # a new network namespace has it down


@unittest.skipUnless(shutil.which("nginx"), "no nginx: apt-get install nginx-light")
@unittest.skipUnless(shutil.which("ip"), "no ip: apt-get install iproute2")
class Stack(NamespaceTestCase):
    def setUp(self) -> None:
        state = self.scratch() / "state"
        table = ["--table", str(ROOT / "examples" / "stack.toml")]
        argv = ["/bin/sh", "-c", LOOPBACK, "sh", *PYTHON, str(MODULE), *table]
        env = {"SIDECAR_INIT_STATE_DIR": str(state), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.stack = self.enterContext(Namespace(argv, env=env))

    def wait_for(self, text: str, times: int = 1) -> None:
        self.stack.wait_for(text.encode(), PATIENCE, times=times)

    def command(self, *arguments: str) -> str:
        done = self.stack.inside([*PYTHON, str(MODULE), *arguments], PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def answer(self) -> str:
        """What nginx answers, by way of the application."""
        program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:18580/', timeout=9).status)"
        return self.stack.inside([*PYTHON, "-c", program], PATIENCE).stdout.strip()

    def test_each_starts_when_those_before_it_are_ready(self) -> None:
        self.wait_for("sidecar-init: web ready")
        order = ["[migrate] migrated", "app started", "app ready", "web started", "web ready"]
        places = [self.stack.log.find(text.encode()) for text in order]
        self.assertEqual(places, sorted(places))
        self.assertNotIn(-1, places)
        self.assertEqual(self.answer(), "200")
        self.assertIn("4 daemons are ready", self.command("health"))

    def test_web_can_be_restarted_from_inside_and_from_outside(self) -> None:
        self.wait_for("sidecar-init: web ready")
        self.assertIn("web restarted and ready", self.command("restart", "web"))
        self.stack.signal(36)
        self.wait_for("sidecar-init: web restarted", 2)
        self.wait_for("sidecar-init: web ready", 3)
        self.assertEqual(self.answer(), "200")
        self.assertNotIn(b"app restarted", self.stack.log)

    def test_the_worker_finishes_its_job_during_a_shutdown(self) -> None:
        self.wait_for("[worker] job 1 begins")
        self.stack.signal(signal.SIGTERM)
        self.stack.exit(PATIENCE)
        self.assertIn(b"[worker] job 1 is done\n", self.stack.log)
        self.assertIn(b"worker exited with status 0", self.stack.log)

    def test_the_applications_exit_ends_the_container_with_its_status(self) -> None:
        self.wait_for("sidecar-init: app ready")
        self.wait_for("sidecar-init: web ready")
        [started] = re.findall(rb"app started \(pid (\d+)\)", self.stack.log)
        os.kill(self.stack.host_pid(int(started)), signal.SIGSEGV)
        self.assertEqual(self.stack.exit(PATIENCE), 139)
        self.wait_for("shutting down: app is essential and was terminated by SIGSEGV")


if __name__ == "__main__":
    unittest.main()
