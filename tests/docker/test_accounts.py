"""The accounts of the daemons: what each can write to, and that none of it is executed or read as configuration."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import unittest
import uuid
from pathlib import Path
from typing import ClassVar

from tests.docker.engine import (
    ACCOUNTS,
    CAPABILITIES,
    HARDENED,
    HERE,
    IDS,
    IMAGE,
    Bundle,
    Container,
    EngineTest,
    StartingBundle,
    World,
    docker,
)
from tests.support import wait_until

DATA = {"mitmproxy": {"/var/lib/egress"}, "git-gate": {"/srv/git"}}
TEMPORARY = {"/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue"}
ALONE = ("--network", "none")


class Accounts(EngineTest):
    def writable(self, bundle: Container, account: str) -> set[str]:
        """But for devices that are everyone's."""
        script = (HERE / "inside" / "writable.py").read_text()  # not mounted: the account may not read the clone
        found = json.loads(bundle.exec("python3", "-I", "-S", "-c", script, user=account).stdout)
        return {path for path in found if not path.startswith("/dev/") or path in TEMPORARY}

    def test_an_account_can_write_to_its_data_and_to_temporary_directories(self) -> None:
        with Container(IMAGE, *ALONE) as bundle:
            bundle.wait_for_log("pipelock ready")
            for account in IDS:
                with self.subTest(account):
                    self.assertEqual(self.writable(bundle, account) - TEMPORARY, DATA.get(account, set()))
            self.assertIn("/", self.writable(bundle, "root"))  # the control: what there is to be found

    def test_under_a_read_only_root_its_data_is_all(self) -> None:
        with Container(IMAGE, *ALONE, *HARDENED) as bundle:
            bundle.wait_for_log("pipelock ready")
            for account in IDS:
                with self.subTest(account):
                    left = self.writable(bundle, account) - {"/dev/shm", "/dev/mqueue"}
                    self.assertEqual(left, DATA.get(account, set()))

    def test_no_daemon_runs_or_maps_what_it_can_write_to(self) -> None:
        with Container(IMAGE, *ALONE) as bundle:
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

    def test_no_other_account_gets_to_the_key_of_egresss_ca(self) -> None:
        with tempfile.NamedTemporaryFile("w") as pem:
            pem.write("a key")
            pem.flush()
            os.chmod(pem.name, 0o644)
            mounted, made = "/home/mitmproxy/.mitmproxy/mitmproxy-ca.pem", "/var/lib/egress/mitmproxy-ca.pem"
            for path in (mounted, made):
                for account in IDS:
                    with self.subTest(path, account=account):
                        options = ("--network", "none", "--user", account, "--volume", f"{pem.name}:{path}:ro")
                        done = docker("run", "--rm", *options, "--entrypoint", "cat", IMAGE, path, check=False)
                        self.assertEqual(done.stdout, "a key" if account == "mitmproxy" else "", done.stderr)

    def test_every_daemon_has_one(self) -> None:
        self.assertEqual(set(ACCOUNTS.values()), set(IDS))


class Arrangements(EngineTest):
    """Ways to run the image that are none of Docker's defaults and not the example's."""

    world: ClassVar[World]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.world = cls.enterClassContext(World())

    def assert_git_works(self) -> None:
        """A fetch and a push through the gate, whose upstream is behind ssh."""
        script = """
            cd "$(mktemp -d)"
            git clone --quiet git://127.0.0.1/demo.git .
            git commit --quiet --allow-empty --message more
            git push --quiet http://127.0.0.1:9420/demo.git HEAD:main
        """
        self.world.exec("sh", "-ec", script)

    def volume(self, script: str) -> tuple[str, str]:
        """The name of a new volume, and where it is on this machine, after root has run a script in it."""
        name = f"sidecars-test-{uuid.uuid4().hex[:12]}"
        self.addCleanup(docker, "volume", "rm", name)
        mount = ("--user", "0", "--volume", f"{name}:/srv/git", "--workdir", "/srv/git", "--entrypoint", "sh")
        docker("run", "--rm", *mount, IMAGE, "-ec", script)
        return name, docker("volume", "inspect", "--format", "{{.Mountpoint}}", name).stdout.strip()

    def test_kubernetes(self) -> None:
        """An emptyDir is writable for all: at /run/sidecar-init, and with the mirrors in a directory below it."""
        name, place = self.volume("chmod 0777 .")
        as_in_the_example = ("--user", "9418:9418", "--volume", f"{name}:/volume", "--entrypoint", "mkdir")
        docker("run", "--rm", "--read-only", *as_in_the_example, IMAGE, "-p", "-m", "0755", "/volume/git")
        options = ("--read-only", *CAPABILITIES, "--security-opt", "no-new-privileges")
        mounts = ("--tmpfs", "/run/sidecar-init:mode=1777", "--volume", f"{place}/git:/srv/git")
        with Bundle(self.world, *options, *mounts) as bundle:
            self.assert_git_works()
            self.assertNotIn("every account can write", bundle.log())

    def test_a_volume_that_every_account_can_write_to_is_reported(self) -> None:
        name, _ = self.volume("touch used; chmod 0777 .")
        with Bundle(self.world, "--volume", f"{name}:/srv/git", daemons="git-gate") as bundle:
            self.assertIn("every account can write to /srv/git", bundle.log())

    def test_a_volume_of_version_1_0_0_is_taken_after_the_chown_that_the_log_demands(self) -> None:
        name, _ = self.volume("git init -q --bare demo.git; chown -R 0:0 .; chmod 0755 .")
        mount = ("--volume", f"{name}:/srv/git")
        with StartingBundle(self.world, *mount, daemons="git-gate,git-http") as bundle:
            demand = "cannot write to /srv/git: it belongs to uid 0; run chown -R 9418:9418 /srv/git as root"
            bundle.wait_for_log(demand)
            docker("run", "--rm", "--user", "0", "--entrypoint", "chown", *mount, IMAGE, "-R", "9418:9418", "/srv/git")
            bundle.wait_until_healthy()
            self.assert_git_works()

    def test_an_arbitrary_uid_of_group_0(self) -> None:
        options = ("--user", "123456:0", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
        https = ("--env", "GIT_SSL_CAINFO=/etc/egress/upstream-ca.pem", "--env", "GIT_GATE_SSH_KEY=/none")
        with StartingBundle(self.world, *options, *https) as bundle:
            bundle.write("mirrors", "demo https://git.example.test/git/demo.git\n")
            bundle.wait_until_healthy()
            self.assertEqual(set(bundle.users().values()), {123456})
            self.world.git("ls-remote", "--exit-code", "git://127.0.0.1/demo.git", "main")
            answer = self.world.fetch("https://api.example.test/", "--ca", bundle.ca())
            self.assertEqual(answer["status"], 200, answer)
            self.assertEqual(bundle.log().count("all daemons run as the supervisor's user"), 1)


class Rootless(EngineTest):
    """In a user namespace that maps the ids to others, as rootless engines make one."""

    FIRST = 300_000  # this machine's number for the namespace's root
    SCRIPT = """
        mkdir "$1/root" && cd "$1/root" && tar --extract --exclude='dev/*'
        mount --rbind /dev dev
        ip link set lo up
        exec unshare --mount --pid --fork --kill-child --root="$PWD" --mount-proc \
            /usr/local/bin/python3 -I -S /app/sidecar_init.pyc
    """

    @unittest.skipUnless(os.geteuid() == 0, "only root can map ids without newuidmap")
    def test_every_daemon_has_its_account(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        os.chown(directory, self.FIRST, self.FIRST)
        created = docker("create", IMAGE).stdout.strip()
        self.addCleanup(docker, "rm", "--volumes", created)
        command = ("unshare", "--mount", "--net", "sh", "-ec", self.SCRIPT, "sh", str(directory))
        log = directory / "log"
        with subprocess.Popen(("docker", "export", created), stdout=subprocess.PIPE) as image, log.open("wb") as out:
            entered = (*self.user_namespace(), *command)
            bundle = subprocess.Popen(entered, stdin=image.stdout, stdout=out, stderr=out, start_new_session=True)
        self.addCleanup(bundle.wait)
        self.addCleanup(bundle.kill)
        wait_until(
            lambda: bundle.poll() is not None or log.read_text().count(" ready after ") == 5, 120, "five daemons"
        )
        self.assertIsNone(bundle.poll(), log.read_text())
        self.assertEqual(self.users(bundle.pid), {self.FIRST + number for number in (0, *IDS.values())})

    def user_namespace(self) -> tuple[str, ...]:
        """The command that enters a new one as its root."""
        holder = subprocess.Popen(("unshare", "--user", "sleep", "infinity"))
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        namespace, ours = Path(f"/proc/{holder.pid}/ns/user"), os.readlink("/proc/self/ns/user")
        wait_until(lambda: os.readlink(namespace) != ours, 10, "another user namespace")
        for kind in ("uid", "gid"):
            Path(f"/proc/{holder.pid}/{kind}_map").write_text(f"0 {self.FIRST} 65536\n")
        return ("nsenter", f"--user={namespace}", "--setuid=0", "--setgid=0")

    @staticmethod
    def users(unshare: int) -> set[int]:
        """Of the processes in the namespace that it made."""
        namespace, found = os.readlink(f"/proc/{unshare}/ns/pid_for_children"), set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns/pid") == namespace:
                    found.add(process.stat().st_uid)
        return found


if __name__ == "__main__":
    unittest.main()
