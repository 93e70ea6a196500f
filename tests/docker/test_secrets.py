"""Ways to a token from inside the bundle. None leads there: not for root, and so for no daemon."""

from __future__ import annotations

import json
import tempfile
import unittest
import uuid
from pathlib import Path
from typing import Any

from tests.docker.engine import DAEMONS, IMAGE, TOKEN, BundleTest, EngineTest, docker
from tests.support import ROOT, wait_until

TABLE = """
[[daemon]]
name = "hostile"
argv = ["python3", "/src/tests/children/hostile.py", "/out/report", "--private", "/tmp/private"]

[[daemon]]
name = "egress"
argv = ["sh", "-c", "umask 077; echo $EGRESS_TOKEN_A >/tmp/private; exec sleep 1000"]
user = "mitmproxy"

[secrets]
EGRESS_TOKEN_ = "egress"

[signals]
USR1 = { restart = "egress" }
"""


class Token(BundleTest):
    def read(self, path: str, user: str = "") -> str:
        """What a process of the container reads there, with all the capabilities that Docker gives to root."""
        done = self.bundle.exec("cat", path, user=user, check=False)
        return done.stdout if done.returncode == 0 else done.stderr

    def test_no_environment_shows_it(self) -> None:
        pids = self.bundle.pids()
        for name, pid in {"the supervisor": 1, "egress": pids["egress"]}.items():
            with self.subTest(name):
                self.assertIn("Permission denied", self.read(f"/proc/{pid}/environ"))
        for name in set(DAEMONS) - {"egress"}:
            with self.subTest(name):
                environment = self.read(f"/proc/{pids[name]}/environ")
                self.assertIn("PATH=", environment)
                self.assertNotIn(TOKEN, environment)
                self.assertNotIn("EGRESS_TOKEN", environment)

    def test_egress_has_it(self) -> None:
        """The negative control: what the test above looks for is there, for its owner."""
        self.assertIn(TOKEN, self.read(f"/proc/{self.bundle.pids()['egress']}/environ", user="mitmproxy"))

    def test_no_daemon_keeps_what_only_the_supervisor_needs(self) -> None:
        for name, pid in self.bundle.pids().items():
            with self.subTest(name):
                status = dict(line.split(":\t", 1) for line in self.read(f"/proc/{pid}/status").splitlines())
                setgid, setuid, sys_ptrace = 1 << 6, 1 << 7, 1 << 19
                self.assertEqual(int(status["CapBnd"], 16) & (setgid | setuid | sys_ptrace), 0)
                self.assertEqual(status["NoNewPrivs"], "1")
                self.assertEqual(status["Uid"].split()[0], "1000" if name == "egress" else "0")


class Hostile(EngineTest):
    def test_a_daemon_of_root_that_tries_everything_finds_nothing_under_dockers_default_capabilities(self) -> None:
        """The control is in tests/pidns/test_secrets.py, where each attempt succeeds without its protection."""
        canary, name = f"sesame-{uuid.uuid4().hex}", f"sidecars-test-{uuid.uuid4().hex[:12]}"
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory)
            (out / "table.toml").write_text(TABLE)
            mounts = ("-v", f"{ROOT}:/src:ro", "-v", f"{out}:/out", "-e", f"EGRESS_TOKEN_A={canary}")
            start = ("--entrypoint", "python3", IMAGE, "-I", "-S", "/src/sidecar_init.py", "--table", "/out/table.toml")
            self.addCleanup(docker, "rm", "--force", "--volumes", name)
            docker("run", "--detach", "--name", name, "--network", "none", *mounts, *start)

            def report() -> dict[str, Any]:
                try:
                    found: dict[str, Any] = json.loads((out / "report").read_text())
                    return found
                except (FileNotFoundError, ValueError):
                    return {}

            attempts = wait_until(report, 60, "the hostile daemon's report")
            log = docker("logs", name).stdout
        self.assertGreater(len(attempts), 20)
        self.assertEqual({what: did["found"] for what, did in attempts.items() if did["found"]}, {})
        self.assertNotIn(canary, log)


class WholeLife(BundleTest):
    def test_its_log_and_its_state_hold_no_token(self) -> None:
        self.world.fetch("https://api.example.test/", "--ca", self.bundle.ca())
        self.assertIn(TOKEN, str(self.world.requests()))
        self.bundle.supervisor("apply", "egress")
        self.bundle.supervisor("apply", "pipelock")
        pid = self.bundle.pids()["egress"]
        self.bundle.exec("sh", "-c", f"kill -KILL {pid}")
        self.bundle.wait_for(lambda: self.bundle.pids()["egress"] not in (pid, None), "another egress")
        state = self.bundle.exec("sh", "-c", "cat /run/sidecar-init/*").stdout
        self.assertIn("SIGKILL", state)
        docker("stop", self.bundle.name)
        self.assertNotIn(TOKEN, state)
        self.assertNotIn(TOKEN, self.bundle.log())


if __name__ == "__main__":
    unittest.main()
