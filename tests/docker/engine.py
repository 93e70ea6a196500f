"""Containers for the tests: the bundle, and the world around it.

No container reaches anything outside: the world has no network but its own loopback, where its servers listen under
the names in HOSTS, and the bundle shares that loopback. Both see the directory `shared`: what the world writes there
(certificates, keys, the requests that reached its servers) the test reads from the host.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import unittest
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from tests.support import wait_until

IMAGE = os.environ.get("SIDECARS_IMAGE", "")
WORLD_IMAGE = os.environ.get("SIDECARS_AGENT_IMAGE", "sidecars-base/agent")
HERE = Path(__file__).resolve().parent

HOSTS = ("api.example.test", "other.example.test", "late.example.test", "git.example.test")
TOKEN = "token-that-no-agent-may-see-5f0c91"
ACCOUNTS = {  # daemon -> account
    "egress": "mitmproxy",
    "pipelock": "pipelock",
    "git-gate": "git-gate",
    "git-http": "git-gate",
    "supervise": "supervise",
}
DAEMONS = tuple(ACCOUNTS)
IDS = {"mitmproxy": 1000, "pipelock": 8888, "git-gate": 9418, "supervise": 9100}
# The options of examples/compose.yaml. SETUID and SETGID to take the daemons' accounts, KILL to signal them then, and
# SETPCAP to keep these from the daemons.
CAPABILITIES = ("--cap-drop", "ALL", *(f"--cap-add={name}" for name in ("SETUID", "SETGID", "KILL", "SETPCAP")))
HARDENED = (
    *("--read-only", "--tmpfs", "/run", *CAPABILITIES, "--security-opt", "no-new-privileges"),
    *("--ulimit", "core=0", "--pids-limit", "1024"),
)
# For every bundle of a run of these tests: Docker's defaults, or these.
OPTIONS = HARDENED if os.environ.get("SIDECARS_HARDENED") else ()
PATIENCE = 60.0  # for a slow machine; a start takes two seconds

ALLOWLIST = """\
version: 1
mode: strict
api_allowlist: [{hosts}]
forward_proxy: {{enabled: true}}
ssrf: {{ip_allowlist: [127.0.0.0/8]}}
"""
# late.example.test has no route.
ROUTES = """\
default: deny
routes:
  - host: api.example.test
    token: EGRESS_TOKEN_API
    scheme: Bearer
  - host: other.example.test
  - host: other.example.test
    port: 80
"""


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        command = " ".join(("docker", *arguments[:6]))
        raise AssertionError(f"{command} ... ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done


@functools.cache
def why_not() -> str:
    """Why these tests cannot run here; empty if they can. Their last line says which pipelock the image holds."""
    try:
        if docker("info", check=False).returncode != 0:
            return "no Docker engine answers"
    except FileNotFoundError:
        return "no docker client on PATH"
    if not IMAGE:
        return "SIDECARS_IMAGE does not name the bundle image"
    for image in (IMAGE, WORLD_IMAGE):
        if docker("image", "inspect", image, check=False).returncode != 0:
            return f"the engine has no image {image}"
    run = ("run", "--rm", "--network", "none", "--entrypoint", "pipelock", IMAGE, "--version")
    atexit.register(print, f"the pipelock in {IMAGE}: {docker(*run).stdout.strip()}", file=sys.stderr)
    return ""


class EngineTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        if reason := why_not():
            raise unittest.SkipTest(reason)


class Container:
    """A container that runs between `with` and its end, then is removed."""

    def __init__(self, image: str, *options: str, command: Sequence[str] = ()) -> None:
        self.name = f"sidecars-test-{uuid.uuid4().hex[:12]}"
        self._run = ("run", "--detach", "--name", self.name, *options, image, *command)

    def __enter__(self) -> Self:
        docker(*self._run)
        try:
            self.wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "--force", "--volumes", self.name)

    def wait_until_up(self) -> None:
        """Whatever a test may count on from the start."""

    def exec(self, *argv: str, user: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        return docker("exec", *(("--user", user) if user else ()), self.name, *argv, check=check)

    def python(self, program: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the programs that stand in tests/docker/inside, mounted at /inside."""
        return self.exec("python3", f"/inside/{program}", *argv, check=check)

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["docker", "exec", "--interactive", self.name, *argv],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def inspect(self, template: str) -> str:
        return docker("inspect", "--format", template, self.name).stdout.strip()

    def log(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def wait_for(self, predicate: Callable[[], object], what: str) -> None:
        """Fails with the container's log; at once where the container has ended."""

        def happened_or_ended() -> object:
            return predicate() or self.has_ended()

        try:
            wait_until(happened_or_ended, PATIENCE, what)
            if not predicate():
                raise AssertionError(f"the container has ended before {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- its log:\n{self.log()[-6000:]}") from None

    def has_ended(self) -> bool:
        return self.inspect("{{.State.Running}}") == "false"

    def wait_for_log(self, text: str) -> None:
        self.wait_for(lambda: text in self.log(), f"{text!r} in the log")

    def exit_code(self) -> int:
        """Its own, once it has ended."""
        self.wait_for(self.has_ended, "its end")
        return int(self.inspect("{{.State.ExitCode}}"))


class World(Container):
    """Everything but the bundle: web servers, an ssh server with the upstream repository, and the agent's programs."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="sidecars-test-")
        self.shared = Path(self._directory.name)
        names = [option for host in HOSTS for option in ("--add-host", f"{host}:127.0.0.1")]
        inside = ("--volume", f"{HERE / 'inside'}:/inside:ro", "--volume", f"{self.shared}:/shared")
        options = ("--init", "--network", "none", *names, *inside)
        super().__init__(WORLD_IMAGE, *options, command=("python3", "/inside/world.py"))

    def wait_until_up(self) -> None:
        self.wait_for_log("ready")

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._directory.cleanup()

    def requests(self) -> list[dict[str, Any]]:
        """What reached the web servers so far: host, tls, path, headers."""
        return [json.loads(line) for line in (self.shared / "requests.jsonl").read_text().splitlines()]

    def forget_requests(self) -> None:
        (self.shared / "requests.jsonl").write_text("")

    def fetch(self, url: str, *options: str) -> dict[str, Any]:
        """What the agent gets for a GET by way of a proxy: {"status": 200, "body": "..."}."""
        answer: dict[str, Any] = json.loads(self.python("fetch.py", url, *options).stdout)
        return answer

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.exec("git", *arguments, check=check)


class Bundle(Container):
    """The image under test beside a world, with a bottle's files mounted; healthy from the start."""

    def __init__(self, world: World, *options: str, daemons: str = "") -> None:
        self.world = world
        self.files = Path(tempfile.mkdtemp(dir=world.shared))
        self.files.chmod(0o755)
        self.allow("api.example.test")
        self.write("routes.yaml", ROUTES)
        self.write("mirrors", "demo ssh://root@git.example.test:2222/srv/upstream/demo.git\n")
        mounts = {
            self.files / "pipelock.yaml": "/etc/pipelock.yaml",
            self.files / "routes.yaml": "/etc/egress/routes.yaml",
            self.files / "mirrors": "/etc/git-gate/mirrors",
            # As hosts have it: the key belongs to uid 1000 and has mode 0600.
            world.shared / "ssh" / "id": "/etc/git-gate/ssh/id",
            world.shared / "ssh" / "known_hosts": "/etc/git-gate/ssh/known_hosts",
            world.shared / "ca.pem": "/etc/egress/upstream-ca.pem",
        }
        environment = {
            "EGRESS_TOKEN_API": TOKEN,
            "EGRESS_UPSTREAM_CA": "/etc/egress/upstream-ca.pem",
            "BOT_BOTTLE_SIDECAR_DAEMONS": daemons,
        }
        super().__init__(
            IMAGE,
            *("--network", f"container:{world.name}", *options),
            *(word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}:ro")),
            *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
        )

    def wait_until_up(self) -> None:
        self.wait_until_healthy()

    def write(self, name: str, text: str) -> None:
        """In place, as a host must: a file that is mounted alone keeps its inode."""
        with open(self.files / name, "w") as file:
            file.write(text)

    def allow(self, *hosts: str) -> None:
        self.write("pipelock.yaml", ALLOWLIST.format(hosts=", ".join(map(repr, hosts))))

    def supervisor(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.exec("python3", "/app/sidecar_init.py", *arguments, check=check)

    def wait_until_healthy(self) -> None:
        self.wait_for(lambda: self.supervisor("health", check=False).returncode == 0, "health")

    def signal(self, name: str) -> None:
        docker("kill", "--signal", name, self.name)

    def daemons(self) -> dict[str, dict[str, Any]]:
        document = json.loads(self.supervisor("status", "--json").stdout)
        return {daemon["name"]: daemon for daemon in document["daemons"]}

    def users(self) -> dict[int, int]:
        """Process -> uid, of PID 1 and its descendants: what `docker exec` starts has no parent inside."""
        look = "exec grep -sE '^(PPid|Uid):' /proc/[0-9]*/status"  # unlike awk, it goes on if one has exited
        values: dict[int, list[int]] = {}
        for line in self.exec("sh", "-c", look, check=False).stdout.splitlines():
            path, _, value = line.split(":", 2)
            values.setdefault(int(path.split("/")[2]), []).append(int(value.split()[0]))
        return {pid: uid for pid, (parent, uid) in values.items() if parent or pid == 1}

    def pids(self) -> dict[str, int]:
        return {name: daemon["pid"] for name, daemon in self.daemons().items()}

    def is_ready(self, name: str) -> bool:
        return bool(self._row(name).get("ready"))

    def survives(self, number: int, name: str) -> bool:
        """Whether a daemon ignores a signal by now, or has a handler for it."""
        status = self.exec("cat", f"/proc/{self._row(name).get('pid')}/status", check=False).stdout
        masks = [line.split()[1] for line in status.splitlines() if line.startswith(("SigIgn:", "SigCgt:"))]
        return any(int(mask, 16) >> number - 1 & 1 for mask in masks)

    def _row(self, name: str) -> dict[str, Any]:
        """A daemon's, asked at any time, so also before the supervisor has written its first status: then empty."""
        done = self.supervisor("status", "--json", check=False)
        daemons = json.loads(done.stdout)["daemons"] if done.returncode == 0 else []
        return next((daemon for daemon in daemons if daemon["name"] == name), {})

    def ca(self) -> str:
        """Put egress's CA where the world sees it, as one would for an agent; its path there."""
        pem = self.exec("cat", "/var/lib/egress/mitmproxy-ca-cert.pem").stdout
        (self.world.shared / "egress-ca.pem").write_text(pem)
        return "/shared/egress-ca.pem"


class StartingBundle(Bundle):
    """One that may never be healthy."""

    def wait_until_up(self) -> None:
        pass


class BundleTest(EngineTest):
    """One world and one bundle for all the tests of a class."""

    world: ClassVar[World]
    bundle: ClassVar[Bundle]
    daemons: ClassVar[str] = ""  # all

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.world = cls.enterClassContext(World())
        cls.bundle = cls.enterClassContext(Bundle(cls.world, *OPTIONS, daemons=cls.daemons))
