"""The accounts of the daemons: what each can write to, and that none of it is executed or read as configuration."""

from __future__ import annotations

import json
import unittest

from tests.docker.engine import ACCOUNTS, HARDENED, HERE, IDS, IMAGE, Container, EngineTest, docker

DATA = {"mitmproxy": {"/var/lib/egress"}, "git-gate": {"/srv/git"}}
TEMPORARY = {"/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue"}
INSIDE = ("--network", "none", "--volume", f"{HERE}/inside:/inside:ro")


class Accounts(EngineTest):
    def writable(self, bundle: Container, account: str) -> set[str]:
        """But for devices that are everyone's."""
        found = json.loads(bundle.exec("python3", "-I", "-S", "/inside/writable.py", user=account).stdout)
        return {path for path in found if not path.startswith("/dev/") or path in TEMPORARY}

    def test_an_account_can_write_to_its_data_and_to_temporary_directories(self) -> None:
        with Container(IMAGE, *INSIDE) as bundle:
            bundle.wait_for_log("pipelock ready")
            for account in IDS:
                with self.subTest(account):
                    self.assertEqual(self.writable(bundle, account) - TEMPORARY, DATA.get(account, set()))
            self.assertIn("/", self.writable(bundle, "root"))  # the control: what there is to be found

    def test_under_a_read_only_root_its_data_is_all(self) -> None:
        with Container(IMAGE, *INSIDE, *HARDENED) as bundle:
            bundle.wait_for_log("pipelock ready")
            for account in IDS:
                with self.subTest(account):
                    left = self.writable(bundle, account) - {"/dev/shm", "/dev/mqueue"}
                    self.assertEqual(left, DATA.get(account, set()))

    def test_no_daemon_runs_or_maps_what_it_can_write_to(self) -> None:
        with Container(IMAGE, *INSIDE) as bundle:
            bundle.wait_for_log("pipelock ready")
            for account in IDS:
                with self.subTest(account):
                    self.assertTrue({"/bin/sh", "/usr/local/bin/python3"} & self.executed(bundle, account))
                    own = self.writable(bundle, account)
                    below = {path for path in self.executed(bundle, account) if path.startswith(tuple(own))}
                    self.assertEqual(below, set())

    def executed(self, bundle: Container, account: str) -> set[str]:
        look = "cd /proc; cat [0-9]*/maps; readlink [0-9]*/cwd; cat [0-9]*/cmdline | tr '\\0' '\\n'"
        said = bundle.exec("sh", "-c", look, user=account, check=False).stdout
        return {word for line in said.splitlines() for word in line.split() if word.startswith("/")}

    def test_no_account_has_a_login_or_a_home_that_it_can_write_to(self) -> None:
        command = ("run", "--rm", "--network", "none", "--entrypoint", "cat", IMAGE, "/etc/passwd", "/etc/shadow")
        lines = [line.split(":") for line in docker(*command).stdout.splitlines()]
        for account, number in IDS.items():
            with self.subTest(account):
                passwd, shadow = (line for line in lines if line[0] == account)
                self.assertEqual(passwd[2:4], [str(number)] * 2)
                self.assertEqual(passwd[6], "/usr/sbin/nologin")
                self.assertIn(shadow[1][:1], "!*")
                self.assertEqual(passwd[5], "/home/mitmproxy" if account == "mitmproxy" else "/nonexistent")

    def test_every_daemon_has_one(self) -> None:
        self.assertEqual(set(ACCOUNTS.values()), set(IDS))


if __name__ == "__main__":
    unittest.main()
