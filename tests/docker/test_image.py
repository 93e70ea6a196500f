"""The image: what is in it, how it starts, and that it ends as promised, under each way of locking it down."""

from __future__ import annotations

import json
import unittest
from typing import ClassVar

from tests.docker.engine import CAPABILITIES, DAEMONS, HARDENED, IMAGE, Bundle, Container, EngineTest, World, docker


class Contents(EngineTest):
    def run_in_image(self, *argv: str) -> str:
        done = docker("run", "--rm", "--network", "none", "--entrypoint", argv[0], IMAGE, *argv[1:])
        return done.stdout + done.stderr

    def test_every_program_is_there_and_runs(self) -> None:
        for program, said in (
            (("gitleaks", "version"), "8."),
            (("mitmdump", "--version"), "Mitmproxy"),
            (("git", "--version"), "git version"),
            (("ssh", "-V"), "OpenSSH"),
            (("pipelock", "check", "--config", "/etc/pipelock.yaml"), "validation: OK"),
        ):
            with self.subTest(program):
                self.assertIn(said, self.run_in_image(*program))

    def test_pipelock_refuses_a_file_with_an_unknown_key(self) -> None:
        bad = "echo 'api_alowlist: [a.test]' >/tmp/bad.yaml; pipelock check --config /tmp/bad.yaml 2>&1; echo exit $?"
        told = self.run_in_image("sh", "-c", bad)
        self.assertIn("api_alowlist", told)
        self.assertTrue(told.endswith("exit 1\n"), told)

    def test_plan_misses_nothing(self) -> None:
        done = docker("run", "--rm", "--network", "none", IMAGE, "plan", check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_nobody_but_root_can_write_what_the_daemons_run(self) -> None:
        paths = "/app /git-gate-entrypoint.sh /usr/local/bin /etc/egress /etc/pipelock.yaml"
        theirs = ("!", "-type", "l", "(", "!", "-user", "root", "-o", "-perm", "/022", ")")
        self.assertEqual(self.run_in_image("find", *paths.split(), *theirs), "")

    def test_the_supervisor_is_compiled_for_the_interpreter_that_runs_it(self) -> None:
        magic = "import importlib.util as u; print(open('/app/sidecar_init.pyc', 'rb').read(4) == u.MAGIC_NUMBER)"
        self.assertEqual(self.run_in_image("python3", "-c", magic).strip(), "True")

    def test_only_the_entrypoint_decides_what_runs(self) -> None:
        config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", IMAGE).stdout)
        self.assertEqual(config["Entrypoint"][0], "/usr/local/bin/python3")
        self.assertFalse(config.get("Cmd"))
        self.assertEqual(config["StopSignal"], "SIGTERM")
        self.assertEqual(config["Healthcheck"]["Test"][-1], "health")


class NothingSelected(EngineTest):
    def test_no_daemon_selected_exits_0(self) -> None:
        selected = ("--env", "BOT_BOTTLE_SIDECAR_DAEMONS=none-of-ours")
        done = docker("run", "--rm", "--network", "none", *selected, IMAGE)
        self.assertIn("no daemons selected; nothing to do", done.stdout)


class Shipped(EngineTest):
    """The image as it is, without anything mounted."""

    def test_the_default_set_becomes_healthy_and_nothing_passes(self) -> None:
        with Container(IMAGE, "--network", "none") as bundle:
            healthy = "{{.State.Health.Status}}"
            bundle.wait_for(lambda: bundle.inspect(healthy) == "healthy", "Docker's own word that it is healthy")
            for port in (9099, 8888):
                asking = f"import http.client as h; c = h.HTTPConnection('127.0.0.1', {port}); "
                asking += "c.request('GET', 'http://api.example.test/'); print(c.getresponse().status)"
                self.assertEqual(bundle.exec("python3", "-c", asking).stdout.strip(), "403", f"port {port}")

    def test_an_egress_without_its_account_is_not_started_as_root(self) -> None:
        only_egress = ("--env", "BOT_BOTTLE_SIDECAR_DAEMONS=egress", "--entrypoint", "sh")
        no_account = "sed -i /^mitmproxy/d /etc/passwd && exec python3 /app/sidecar_init.py"
        with Container(IMAGE, "--network", "none", *only_egress, command=("-c", no_account)) as bundle:
            self.assertNotEqual(bundle.exit_code(), 0)
            self.assertIn("mitmproxy", bundle.log())


class LockedDown(EngineTest):
    """All five daemons, with a bottle's files, under each of the restrictions that an operator can give."""

    world: ClassVar[World]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.world = cls.enterClassContext(World())

    def live_through(self, *options: str) -> None:
        """Start, work, restart in place and stop within two seconds, each daemon by TERM alone."""
        with Bundle(self.world, *options) as bundle:
            self.assertEqual(set(bundle.daemons()), set(DAEMONS))
            self.assertEqual([pid for pid, uid in bundle.users().items() if uid == 0], [1])
            answer = self.world.fetch("https://api.example.test/", "--ca", bundle.ca())
            self.assertEqual(answer["status"], 200, answer)
            self.world.git("ls-remote", "git://127.0.0.1/demo.git")
            bundle.supervisor("apply", "pipelock")
            # Docker kills before the supervisor would: the code would be 137.
            docker("stop", "--time", "7", bundle.name)
            self.assertEqual(bundle.exit_code(), 0, bundle.log())
            self.assertNotIn("SIGKILL", bundle.log())

    def test_as_docker_runs_it(self) -> None:
        self.live_through()

    def test_read_only_with_a_tmpfs(self) -> None:
        self.live_through("--read-only", "--tmpfs", "/run")

    def test_with_the_capabilities_that_the_readme_names(self) -> None:
        self.live_through(*CAPABILITIES)

    def test_no_new_privileges(self) -> None:
        self.live_through("--security-opt", "no-new-privileges")

    def test_all_of_it(self) -> None:
        self.live_through(*HARDENED)


if __name__ == "__main__":
    unittest.main()
