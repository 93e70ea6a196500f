"""Ways to a token from inside the bundle. None leads there: not for root, and so for no daemon."""

from __future__ import annotations

import unittest

from tests.docker.engine import DAEMONS, TOKEN, BundleTest, docker


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
