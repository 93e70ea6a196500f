"""A real upstream behind a real sshd, and the gate's two daemons in front of it, outside of any image."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT, free_port, wait_until

GITLEAKS = os.environ.get("GITLEAKS") or shutil.which("gitleaks")
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_the_real_programs = unittest.skipUnless(
    GITLEAKS and SSHD and shutil.which("git"),
    f"needs git, sshd (openssh-server) and gitleaks on PATH or in $GITLEAKS; found sshd={SSHD}, gitleaks={GITLEAKS}",
)


def secret() -> str:
    """A string that gitleaks takes for a GitHub token, a new one each time."""
    return "gh" + "p_" + "".join(random.SystemRandom().sample("bcdfghjkmnpqrstvwxzBCDFGHJKMNPQRSTVWXZ0123456789", 36))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process(NamedTuple):
    pid: int
    state: str  # Z: exited and not reaped
    parent: int
    group: int
    session: int


def processes() -> list[Process]:
    found = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, *ids = stat_file.read_text().rpartition(")")[2].split()[:4]
            found.append(Process(int(stat_file.parent.name), state, *map(int, ids)))
    return found


class Daemon:
    """A process in a session of its own, as under the supervisor; its output is in `log`."""

    def __init__(
        self, argv: list[str], port: int, environment: Mapping[str, str], log: Path, pass_fds: tuple[int, ...] = ()
    ) -> None:
        self._log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        wait_until(lambda: listens(port) or self.process.poll() is not None, 30, f"{argv} listening on {port}")
        if self.process.returncode is not None:
            raise AssertionError(f"{argv} ended with {self.process.returncode}:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """All of it at once, as at the end of a container: what serves a request has sessions of its own."""
        family = self.family()
        sessions = {process.session for process in family} | {self.process.pid}
        self.signal_group(signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not self._kill_sessions(sessions), 10, "the end of the daemon's processes")

    def family(self) -> list[Process]:
        """The processes of the daemon's group and all their descendants."""
        everything = processes()
        family = {process.pid: process for process in everything if process.group == self.process.pid}
        while more := [p for p in everything if p.parent in family and p.pid not in family]:
            family |= {process.pid: process for process in more}
        return list(family.values())

    @staticmethod
    def _kill_sessions(sessions: set[int]) -> bool:
        """Whether there was anything left to kill."""
        left = [process.pid for process in processes() if process.session in sessions and process.state != "Z"]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(left)

    def group_is_alive(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return any(process.group == self.process.pid and process.state != "Z" for process in processes())


class World:
    """Upstream repositories below `upstreams`, served by sshd; `gate()` and `http()` start the daemons."""

    def __init__(self, repositories: tuple[str, ...] = ("demo",)) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="git-gate-test-"))
        self.upstreams = self.dir / "upstream"
        self.mirrors = self.dir / "mirrors"
        self.ssh_port, self.git_port, self.http_port = free_port(), free_port(), free_port()
        self._daemons: list[Daemon] = []
        self._make_keys()
        self.key = self._key_in_memory()
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the hook runs in this Python
            "HOME": str(self.dir),
            "GIT_GATE_APP": str(ROOT / "app"),
            "GIT_GATE_ROOT": str(self.mirrors),
            "GIT_GATE_MIRRORS": str(self.dir / "list"),
            "GIT_GATE_SSH_KEY": f"/proc/self/fd/{self.key}",
            "GIT_GATE_KNOWN_HOSTS": str(self.dir / "known hosts"),
            "GIT_GATE_GITLEAKS": str(GITLEAKS),
            "GIT_GATE_LISTEN": "127.0.0.1",
            "GIT_GATE_PORT": str(self.git_port),
            "GIT_HTTP_LISTEN": "127.0.0.1",
            "GIT_HTTP_PORT": str(self.http_port),
        }
        (self.dir / ".gitconfig").write_text(
            "[user]\n name = Tester\n email = tester@example.org\n[init]\n defaultBranch = main\n"
            "[gc]\n auto = 0\n[core]\n hooksPath = /dev/null\n[safe]\n directory = *\n"
        )
        self.sshd = self.start_sshd()
        for name in repositories:
            self.make_upstream(name)
        (self.dir / "list").write_text("".join(f"{name} {self.url(name)}\n" for name in repositories))

    def look_for_one_rule_only(self) -> None:
        """For tests of something else: gitleaks takes half a second to compile its own rules."""
        config = self.dir / "one-rule.toml"
        config.write_text("[[rules]]\nid = 'github-pat'\nregex = '''ghp_[0-9a-zA-Z]{36}'''\n")
        self.environment["GIT_GATE_GITLEAKS_CONFIG"] = str(config)

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()
        os.close(self.key)
        shutil.rmtree(self.dir)

    def url(self, name: str) -> str:
        return f"ssh://127.0.0.1:{self.ssh_port}{self.upstreams}/{name}.git"

    def _make_keys(self) -> None:
        for name in ("id", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / name], check=True)
        shutil.copy(self.dir / "id.pub", self.dir / "authorized_keys")
        # As careless people keep it: with CR LF and without the final newline.
        (self.dir / "id").write_bytes((self.dir / "id").read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
        self.trust(self.dir / "host.pub")

    def _key_in_memory(self) -> int:
        """As the supervisor passes it on: sealed, for its owner alone."""
        key = os.memfd_create("id", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(key, (self.dir / "id").read_bytes())
        os.fchmod(key, 0o400)
        fcntl.fcntl(key, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return key

    def trust(self, public_key: Path) -> None:
        kind, key = public_key.read_text().split()[:2]
        (self.dir / "known hosts").write_text(f"[127.0.0.1]:{self.ssh_port} {kind} {key}\n")

    def start_sshd(self) -> Daemon:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.dir / "sshd_config"
        config.write_text(
            f"Port {self.ssh_port}\nListenAddress 127.0.0.1\nHostKey {self.dir}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.dir}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "MaxStartups 100\n"
            f"SetEnv HOME={self.dir}\n"  # else the shell reads what this machine's account has in its .bashrc
            "KexAlgorithms -sntrup761*\n"  # takes a client a quarter of a second of CPU time; the others, 20 ms
        )
        argv = [str(SSHD), "-D", "-e", "-f", str(config)]
        return self.start(argv, self.ssh_port, dict(os.environ), "sshd.log")

    def copy_of_the_app(self) -> Path:
        """What the gate runs, in a directory where it can be changed."""
        app = self.dir / "app"
        shutil.copytree(ROOT / "app", app, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        return app

    def app_without(self, *replacements: tuple[str, str, str]) -> Path:
        """A gate that lacks some of its checks, to show what they prevent: FILE, what it says, what it says instead."""
        app = self.copy_of_the_app()
        for name, check, instead in replacements:
            program = (app / name).read_text()
            if check not in program:
                raise AssertionError(f"{name} does not say {check!r}")
            (app / name).write_text(program.replace(check, instead))
        return app

    def make_upstream(self, name: str) -> Path:
        bare = self.upstreams / f"{name}.git"
        self.git("init", "--quiet", "--bare", str(bare))
        seed = self.dir / f"seed-{name}"
        self.git("clone", "--quiet", str(bare), str(seed))
        self.commit(seed, {"README": "hello\n"}, "first")
        self.git("push", "--quiet", "origin", "main", cwd=seed)
        self.git("config", "core.hooksPath", str(bare / "hooks"), cwd=bare)
        return bare

    def gate(self, **environment: str) -> Daemon:
        argv = ["/bin/sh", str(ROOT / "git-gate-entrypoint.sh")]
        return self.start(argv, self.git_port, self.environment | environment, "git-gate.log")

    def http(self, **environment: str) -> Daemon:
        argv = [sys.executable, str(ROOT / "app" / "git_http_backend.py")]
        return self.start(argv, self.http_port, self.environment | environment, "git-http.log")

    def start(self, argv: list[str], port: int, environment: dict[str, str], log: str) -> Daemon:
        daemon = Daemon(argv, port, environment, self.dir / log, pass_fds=(self.key,))
        self._daemons.append(daemon)
        return daemon

    def by_git(self, name: str = "demo") -> str:
        return f"git://127.0.0.1:{self.git_port}/{name}"

    def by_http(self, name: str = "demo") -> str:
        return f"http://127.0.0.1:{self.http_port}/{name}"

    @property
    def client(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.dir), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}

    def try_git(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.dir,
            env=self.client | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def git(self, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
        done = self.try_git(*arguments, cwd=cwd, **environment)
        if done.returncode != 0:
            raise AssertionError(f"git {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def clone(self, url: str) -> Path:
        work = Path(tempfile.mkdtemp(dir=self.dir, prefix="work-"))
        self.git("clone", "--quiet", url, str(work))
        return work

    def clone_of_upstream(self, origin: str) -> Path:
        """As `clone`, without the way through the gate."""
        work = self.clone(str(self.upstreams / "demo.git"))
        self.git("remote", "set-url", "origin", origin, cwd=work)
        return work

    def commit(self, work: Path, files: Mapping[str, str | bytes | None], message: str = "change") -> str:
        for name, content in files.items():
            path = work / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "--all", cwd=work)
        self.git("commit", "--quiet", "--allow-empty", "--message", message, cwd=work)
        return self.git("rev-parse", "HEAD", cwd=work)

    def refs(self, repository: Path) -> str:
        return self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=repository)

    def both(self, name: str = "demo") -> tuple[str, str]:
        """The refs of upstream and of the mirror."""
        return self.refs(self.upstreams / f"{name}.git"), self.refs(self.mirrors / f"{name}.git")

    def holds(self, repository: Path, text: str) -> bool:
        """Whether any object of the repository, reachable or not, holds the text."""
        script = "git cat-file --batch-all-objects --unordered --batch"
        objects = subprocess.run(["sh", "-c", script], cwd=repository, env=self.client, capture_output=True, check=True)
        return text.encode() in objects.stdout

    def hook(self, name: str, script: str, repository: str = "demo") -> Path:
        """Install a hook at upstream."""
        path = self.upstreams / f"{repository}.git" / "hooks" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def waiting_hook(self, name: str) -> tuple[Path, Path]:
        """A hook at upstream that makes the first file and goes on when there is the second, or nothing any more."""
        arrived, go_on = self.dir / "arrived", self.dir / "go-on"
        self.hook(name, f"touch {arrived}; while [ -e {arrived} ] && ! [ -e {go_on} ]; do echo wait; sleep 0.1; done")
        return arrived, go_on


class GateCase(unittest.TestCase):
    """One world, git-gate and git-http for all tests of a class; each test works in clones of its own."""

    world: World
    gate: Daemon
    http: Daemon
    one_rule_only = False

    @classmethod
    def setUpClass(cls) -> None:
        cls.world = World()
        if cls.one_rule_only:
            cls.world.look_for_one_rule_only()
        cls.addClassCleanup(cls.world.close)
        cls.gate = cls.world.gate()
        cls.http = cls.world.http()

    def another(self, program: str, port_variable: str, settings: str, **environment: str) -> tuple[Daemon, int]:
        """One more front end for the same mirrors, with settings that a test cannot wait for otherwise."""
        port = free_port()
        script = f"import os, sys, {program} as program, git_gate_front as front\n{settings}\nsys.exit(program.main())"
        changed = {port_variable: str(port), "PYTHONPATH": str(ROOT / "app")} | environment
        command = [sys.executable, "-B", "-c", script]
        daemon = self.world.start(command, port, self.world.environment | changed, f"{port}.log")
        self.addCleanup(daemon.kill)
        return daemon, port

    def assert_accepted(self, work: Path, *refspecs: str, url: str | None = None) -> str:
        done = self.world.try_git("push", url or "origin", *refspecs, cwd=work)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assert_mirror_is_upstream()
        return done.stderr

    def assert_refused(self, work: Path, *refspecs: str, hidden: str = "", url: str | None = None) -> str:
        """The push fails, and neither a ref nor an object with the hidden text has come to upstream or the mirror."""
        before = self.world.both()
        done = self.world.try_git("push", url or "origin", *refspecs, cwd=work)
        self.assertNotEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.world.both(), before)
        if hidden:
            self.assertNotIn(hidden, done.stderr)
            for repository in (self.world.upstreams, self.world.mirrors):
                self.assertFalse(self.world.holds(repository / "demo.git", hidden), f"the secret is in {repository}")
        return done.stderr

    def assert_mirror_is_upstream(self, name: str = "demo") -> None:
        upstream, mirror = self.world.both(name)
        self.assertEqual(upstream, mirror)
