"""examples/compose.yaml, run as its own comment says, and looked at from the agent's side.

The agent's world is one more container, on the outer network alone.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
import uuid
from pathlib import Path
from typing import Any, ClassVar

from tests.docker.engine import ALLOWLIST, HERE, HOSTS, IMAGE, PATIENCE, WORLD_IMAGE, EngineTest, docker
from tests.pages.test_examples import COMPOSE, compose_command
from tests.support import wait_until

TOKENS = {"anthropic": "anthropic-token-3c5d0f3a", "github": "github-token-91b7e2c4"}
ROUTES = """\
default: deny
routes:
  - host: api.example.test
    path: /repos/acme
    token: EGRESS_TOKEN_GITHUB
    scheme: Bearer
"""
SAID = re.findall(r"^#   docker compose (.+)$", COMPOSE.read_text(), re.MULTILINE)
AFTER_A_CHANGE = re.findall(r"^# After a change of .*: +docker compose (.+)$", COMPOSE.read_text(), re.MULTILINE)


class Project:
    """A directory with the example and a bottle, and the containers that compose makes of it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sidecars-test-"))
        self.directory.chmod(0o755)
        self.name = f"sidecars-test-{uuid.uuid4().hex[:12]}"
        (self.directory / "compose.yaml").write_text(COMPOSE.read_text())
        outside = {"aliases": [*HOSTS]}
        world_ca = {"EGRESS_UPSTREAM_CA": "/world/ca.pem"}
        beside = {
            "services": {
                "agent": {"image": WORLD_IMAGE, "init": True, "volumes": [f"{HERE / 'inside'}:/inside:ro"]},
                "sidecars": {"image": IMAGE, "environment": world_ca, "volumes": ["./world:/world:ro"]},
                "pipelock": {"image": IMAGE},
                "world": {
                    "image": WORLD_IMAGE, "init": True, "command": ["python3", "/inside/world.py"],
                    "volumes": [f"{HERE / 'inside'}:/inside:ro", "./world:/shared"],
                    "extra_hosts": [f"{host}:127.0.0.1" for host in HOSTS], "networks": {"outside": outside},
                },
            }
        }  # fmt: skip
        (self.directory / "beside.json").write_text(json.dumps(beside))
        for place in ("world", "bottle/tokens", "bottle/git-gate"):
            (self.directory / place).mkdir(parents=True)
        for name, value in TOKENS.items():
            path = self.directory / "bottle" / "tokens" / name
            path.write_text(value + "\n")
            path.chmod(0o600)
        self.write("routes.yaml", ROUTES)
        # Docker's networks have private addresses, which the real pipelock refuses otherwise.
        allowlist = ALLOWLIST.replace("127.0.0.0/8", "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16")
        self.write("pipelock.yaml", allowlist.format(hosts="api.example.test"))
        self.write("git-gate/mirrors", "demo ssh://root@git.example.test:2222/srv/upstream/demo.git\n")

    def __enter__(self) -> Project:
        self.compose("up", "--detach", "world")
        self.wait_for(lambda: "ready" in self.compose("logs", "world"), "the world")
        shutil.copytree(self.directory / "world" / "ssh", self.directory / "bottle" / "git-gate" / "ssh")
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--volumes", "--timeout", "10")
        shutil.rmtree(self.directory)

    def write(self, name: str, text: str) -> None:
        with open(self.directory / "bottle" / name, "w") as file:  # in place
            file.write(text)

    def compose(self, *words: str) -> str:
        command = compose_command()
        assert command
        files = ("--project-name", self.name, "--file", "compose.yaml", "--file", "beside.json")
        done = subprocess.run([*command, *files, *words], cwd=self.directory, capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(f"compose {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def do(self, command: str) -> None:
        """One of the example's own commands. The compose of before 2020 has neither `up --wait` nor `cp`."""
        words = shlex.split(command)
        if compose_command() == ["docker-compose"] and words[0] == "cp":
            service, _, path = words[1].partition(":")
            docker("cp", f"{self.container(service)}:{path}", str(self.directory / words[2]))
        elif compose_command() == ["docker-compose"] and "--wait" in words:
            words.remove("--wait")
            self.compose(*words)
            self.wait_for(lambda: self.health(words[-1]) == "healthy", f"a healthy {words[-1]}")
        else:
            self.compose(*words)

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).strip()

    def health(self, service: str) -> str:
        return docker("inspect", "--format", "{{.State.Health.Status}}", self.container(service)).stdout.strip()

    def wait_for(self, predicate: Any, what: str) -> None:
        try:
            wait_until(predicate, PATIENCE, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- the containers' log:\n{self.compose('logs')[-6000:]}") from None

    def agent(self, *words: str, service: str = "agent") -> Any:
        """What inside/agent.py says in the agent's container, or in another one as a control."""
        script = (HERE / "inside" / "agent.py").read_text()
        return json.loads(docker("exec", self.container(service), "python3", "-c", script, *words).stdout)

    def requests(self) -> list[dict[str, Any]]:
        """What reached the web servers."""
        return [json.loads(line) for line in (self.directory / "world" / "requests.jsonl").read_text().splitlines()]

    def address(self, service: str) -> str:
        networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}",
                                     self.container(service)).stdout)  # fmt: skip
        return str(next(network["IPAddress"] for name, network in networks.items() if name.endswith("outside")))


class ComposeTest(EngineTest):
    """The example's commands have been run, and nothing else."""

    project: ClassVar[Project]
    look: ClassVar[dict[str, Any]]  # what an agent finds that passes over its proxy variables

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        if compose_command() is None:
            raise unittest.SkipTest("neither `docker compose` nor docker-compose is installed")
        cls.project = cls.enterClassContext(Project())
        for command in SAID:
            cls.project.do(command)
        cls.project.agent("fetch", "https://api.example.test/repos/acme/two")
        cls.look = cls.project.agent("look")

    def test_an_allowed_url_is_fetched_with_a_token_that_the_agent_never_had(self) -> None:
        answer = self.project.agent("fetch", "https://api.example.test/repos/acme/one")
        self.assertEqual(answer["status"], 200, answer)
        request = next(one for one in self.project.requests() if one["path"] == "/repos/acme/one")
        self.assertTrue(request["tls"])
        self.assertEqual(request["headers"]["authorization"], f"Bearer {TOKENS['github']}")

    def test_the_agent_can_read_why_another_was_refused(self) -> None:
        for url, why in (
            ("https://api.example.test/user", "no route for this host, port, method and path"),
            ("https://other.example.test/", "no route to this host and port"),
            ("http://pipelock:8888/health", "no route for this host, port, method and path"),
        ):
            with self.subTest(url):
                self.assertIn(f"egress: {why}", self.project.agent("fetch", url)["body"])

    def test_a_mirror_is_cloned_from_the_gate(self) -> None:
        for url in ("git://git-gate:9418/demo.git", "http://git-gate:9420/demo.git"):
            with self.subTest(url):
                self.assertIn("main", docker("exec", self.project.container("agent"), "git", "ls-remote", url).stdout)

    def test_changes_come_into_force_by_the_commands_named_for_them(self) -> None:
        pipelock, routes = AFTER_A_CHANGE
        self.project.write(
            "pipelock.yaml", ALLOWLIST.format(hosts="'*.example.test'").replace("127.0.0.0/8", "0.0.0.0/0")
        )
        self.project.write("routes.yaml", ROUTES + "  - host: late.example.test\n")
        self.project.do(pipelock)
        self.project.do(routes)

        def passes() -> bool:
            return bool(self.project.agent("fetch", "https://late.example.test/")["status"] == 200)

        self.project.wait_for(passes, "the new route")
        self.assertIn("pipelock restarted", self.project.compose("logs", "pipelock"))

    def reaches(self, host: str, port: int, service: str = "agent") -> bool:
        return bool(self.project.agent("reach", host, str(port), service=service) == "open")

    def test_no_direct_connection_leaves(self) -> None:
        for service, port in (("world", 443), ("world", 80), ("world", 2222), ("pipelock", 8888), ("sidecars", 9099)):
            with self.subTest(service, port=port):
                address = self.project.address(service)
                self.assertFalse(self.reaches(address, port))
                self.assertTrue(self.reaches(address, port, "sidecars"), "the control")

    def test_no_name_of_the_outer_network_is_known(self) -> None:
        for name, port in (("pipelock", 8888), ("world", 443), ("api.example.test", 443)):
            with self.subTest(name):
                self.assertFalse(self.reaches(name, port))
                self.assertTrue(self.reaches(name, port, "sidecars"), "the control")

    def test_the_bundle_opens_the_four_ports_of_the_daemons_and_no_other(self) -> None:
        self.assertEqual(self.look["ports"], [9099, 9100, 9418, 9420])

    def test_egress_does_not_lead_to_what_only_the_bundle_reaches(self) -> None:
        for url in (
            "http://127.0.0.1:9100/",
            "http://pipelock:8888/",
            "http://sidecars:9420/",
            "https://git.example.test/",
        ):
            with self.subTest(url):
                self.assertIn("egress: no route", self.project.agent("fetch", url)["body"])

    def test_no_token_is_in_anything_that_the_agent_can_read(self) -> None:
        for token in TOKENS.values():
            for where in ("supervise", "readable"):
                with self.subTest(token, where=where):
                    self.assertGreater(len(self.look[where]), 1000)
                    self.assertNotIn(token, self.look[where])
        self.assertIn("placeholder", self.look["readable"], "the control: the environment was read")

    def test_control_the_same_look_finds_a_token_where_there_is_one(self) -> None:
        where = self.project.container("sidecars")
        self.assertIn(TOKENS["github"], docker("exec", where, "cat", "/run/secrets/github").stdout)
        self.assertIn(TOKENS["github"], json.dumps(self.project.requests()))

    def test_no_process_of_the_bundle_is_seen(self) -> None:
        self.assertFalse([one for one in self.look["processes"] if "/app/" in one or "mitmdump" in one])

    def test_the_logs_hold_no_token(self) -> None:
        log = self.project.compose("logs")
        self.assertIn("token=EGRESS_TOKEN_GITHUB", log)
        for token in TOKENS.values():
            self.assertNotIn(token, log)


if __name__ == "__main__":
    unittest.main()
