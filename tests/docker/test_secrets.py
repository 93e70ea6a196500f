"""Ways to a token or a key from inside the bundle. None leads to that of another daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import unittest
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docker.engine import ACCOUNTS, HARDENED, IDS, IMAGE, TOKEN, BundleTest, EngineTest, docker
from tests.support import ROOT, wait_until

KEY = "/etc/git-gate/ssh/id"  # on the host, it belongs to uid 1000
TABLE = """
[[daemon]]
name = "hostile"
argv = ["python3", "/src/hostile.py", "/out/report", "--private", "{key}"]
user = "{account}"

[[daemon]]
name = "egress"
argv = ["sh", "-c", "test -r $KEY && exec sleep 1000"]
user = "{owner}"
files = {{ KEY = "{key}" }}

[secrets]
EGRESS_TOKEN_ = "egress"

[signals]
USR1 = {{ restart = "egress" }}
"""


@contextlib.contextmanager
def host_key(content: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory) / "id"
        key.write_text(content)
        key.chmod(0o600)
        os.chown(key, 1000, 1000)
        yield key


class Token(BundleTest):
    def read(self, path: str, user: str = "") -> str:
        """What a process of the container reads there; as root, with all the capabilities that the container has."""
        done = self.bundle.exec("cat", path, user=user, check=False)
        return done.stdout if done.returncode == 0 else done.stderr

    def test_no_environment_shows_it_to_another_account(self) -> None:
        pids = self.bundle.pids()
        for name, pid in {"the supervisor": 1, **pids}.items():
            for user in {"root", *IDS} - {ACCOUNTS.get(name)}:
                with self.subTest(name, user=user):
                    self.assertIn("Permission denied", self.read(f"/proc/{pid}/environ", user))

    def test_no_daemon_but_egress_has_it(self) -> None:
        for name, pid in self.bundle.pids().items():
            with self.subTest(name):
                environment = self.read(f"/proc/{pid}/environ", ACCOUNTS[name])
                self.assertIn("PATH=", environment)
                self.assertEqual(TOKEN in environment, name == "egress")
                self.assertEqual("EGRESS_TOKEN" in environment, name == "egress")

    def test_no_daemon_keeps_what_only_the_supervisor_needs(self) -> None:
        for name, pid in self.bundle.pids().items():
            with self.subTest(name):
                status = dict(line.split(":\t", 1) for line in self.read(f"/proc/{pid}/status").splitlines())
                sets = ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")
                self.assertEqual([int(status[name], 16) for name in sets], [0] * 5)
                self.assertEqual(status["NoNewPrivs"], "1")
                account = str(IDS[ACCOUNTS[name]])
                self.assertEqual(status["Uid"].split() + status["Gid"].split(), [account] * 8)
                self.assertLessEqual(set(status["Groups"].split()), {account})


class Hostile(EngineTest):
    """A daemon that tries everything, under each account. In tests/pidns/test_secrets*.py each attempt succeeds
    without its protection; the one that is new here, a key on the host with the uid of an account, has its control
    below."""

    def attack(self, account: str, *options: str) -> None:
        owner = "git-gate" if account != "git-gate" else "mitmproxy"
        token, key = (f"sesame-{uuid.uuid4().hex}" for _ in range(2))
        name = f"sidecars-test-{uuid.uuid4().hex[:12]}"
        with tempfile.TemporaryDirectory() as directory, host_key(key) as id_file:
            out, source = Path(directory, "out"), Path(directory, "src")  # which every account can read
            for folder, mode in ((out, 0o777), (source, 0o755)):
                folder.mkdir()
                folder.chmod(mode)
            for file in ("sidecar_init.py", "tests/children/hostile.py"):
                Path(shutil.copy(ROOT / file, source)).chmod(0o644)
            (out / "table.toml").write_text(TABLE.format(account=account, owner=owner, key=KEY))
            mounts = ("-v", f"{source}:/src:ro", "-v", f"{out}:/out", "-v", f"{id_file}:{KEY}:ro")
            start = ("--entrypoint", "python3", IMAGE, "-I", "-S", "/src/sidecar_init.py", "--table", "/out/table.toml")
            self.addCleanup(docker, "rm", "--force", "--volumes", name)
            environment = ("-e", f"EGRESS_TOKEN_A={token}")
            docker("run", "--detach", "--name", name, "--network", "none", *options, *mounts, *environment, *start)

            def report() -> dict[str, Any]:
                try:
                    found: dict[str, Any] = json.loads((out / "report").read_text())
                    return found
                except (FileNotFoundError, ValueError):
                    return {}

            attempts = wait_until(report, 60, "the hostile daemon's report")
            log = docker("logs", name).stdout
            seen = docker("exec", "--user", owner, name, "sh", "-c", "cat /proc/[0-9]*/fd/3", check=False).stdout
        self.assertIn(key, seen)
        self.assertGreater(len(attempts), 20)
        self.assertEqual({what: did["found"] for what, did in attempts.items() if did["found"]}, {})
        for canary in (token, key):
            self.assertNotIn(canary, log)

    def test_no_account_finds_anything_under_dockers_defaults(self) -> None:
        for account in IDS:
            with self.subTest(account):
                self.attack(account)

    def test_no_account_finds_anything_in_the_arrangement_of_the_example(self) -> None:
        for account in IDS:
            with self.subTest(account):
                self.attack(account, *HARDENED)

    def test_a_key_of_uid_1000_that_is_mounted_elsewhere_can_be_read_by_mitmproxy(self) -> None:
        """The control for the mode of /etc/git-gate in the image."""
        with host_key("the key") as key:
            for path, found in (("/mnt/id", "the key"), (KEY, "")):
                options = ("--network", "none", "--user", "mitmproxy", "--volume", f"{key}:{path}:ro")
                done = docker("run", "--rm", *options, "--entrypoint", "cat", IMAGE, path, check=False)
                self.assertEqual(done.stdout, found, done.stderr)


class WholeLife(BundleTest):
    def test_its_log_and_its_state_hold_no_token(self) -> None:
        self.world.fetch("https://api.example.test/", "--ca", self.bundle.ca())
        self.assertIn(TOKEN, str(self.world.requests()))
        self.bundle.supervisor("apply", "egress")
        self.bundle.supervisor("apply", "pipelock")
        pid = self.bundle.pids()["egress"]
        self.bundle.exec("sh", "-c", f"kill -KILL {pid}", user="mitmproxy")
        self.bundle.wait_for(lambda: self.bundle.pids()["egress"] not in (pid, None), "another egress")
        state = self.bundle.exec("sh", "-c", "cat /run/sidecar-init/*").stdout
        self.assertIn("SIGKILL", state)
        docker("stop", self.bundle.name)
        self.assertNotIn(TOKEN, state)
        self.assertNotIn(TOKEN, self.bundle.log())


if __name__ == "__main__":
    unittest.main()
