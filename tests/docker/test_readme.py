"""The pages' commands for Docker, as they stand there: the README's container, app/README.md's bundle, SECURITY.md."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
import uuid
from functools import partial
from pathlib import Path

from tests.docker.engine import IMAGE, EngineTest, docker
from tests.pages.test_readme import blocks, commands
from tests.support import MODULE, wait_until

BASE = "sidecars-base/debian"  # Debian's Python instead of the image that the README names: no registry is needed


def renamed(command: str, names: dict[str, str]) -> list[str]:
    return [names.get(word, word) for word in shlex.split(command)]


class ReadmeContainer(EngineTest):
    def setUp(self) -> None:
        self.name = f"sidecars-test-{uuid.uuid4().hex[:12]}"
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.addCleanup(docker, "rmi", "--force", self.name)
        self.addCleanup(docker, "rm", "--force", "--volumes", self.name)

    def test_the_files_and_commands_build_and_run_a_container_of_three_daemons(self) -> None:
        [dockerfile] = blocks("README.md", "dockerfile")
        self.directory.joinpath("Dockerfile").write_text(re.sub("^FROM .*", f"FROM {BASE}", dockerfile))
        self.directory.joinpath("table.toml").write_text(blocks("README.md", "toml")[0])
        shutil.copy(MODULE, self.directory)
        build, run, logs, status, restart, stop = [c for c in commands("README.md") if c.startswith("docker ")]
        subprocess.check_output(renamed(build, {"stack": self.name}), cwd=self.directory)
        subprocess.check_output(["docker", "run", "--network", "none", *renamed(run, {"stack": self.name})[2:]])
        wait_until(partial(self.logged, "web ready"), 60, "web is ready")
        self.assertIn("[migrate] done", self.output(logs))
        wait_until(lambda: self.output(status).count(" yes ") == 3, 60, "three daemons are ready")
        self.output(restart)
        wait_until(partial(self.logged, "worker restarted"), 30, "worker is restarted")
        self.output(stop)
        self.assertTrue(self.logged("exiting with status 143"))

    def output(self, command: str) -> str:
        words = renamed(command, {"stack": self.name})
        return subprocess.check_output(words, text=True, stderr=subprocess.STDOUT)

    def logged(self, text: str) -> bool:
        return text in docker("logs", self.name).stdout


class BundleReadme(EngineTest):
    def test_commands_for_the_bundle_do_what_they_say(self) -> None:
        build, run, status, *signals, stop = [c for c in commands("app/README.md") if c.startswith("docker ")]
        self.assertEqual(build, "docker build -f Dockerfile.sidecars -t sidecars .")  # .ci/image.sh, with other sources
        name = f"sidecars-test-{uuid.uuid4().hex[:12]}"
        names = {"bundle": name, "sidecars": IMAGE}

        def logged(text: str) -> bool:
            return text in docker("logs", name).stdout

        self.addCleanup(docker, "rm", "--force", "--volumes", name)
        docker("run", "--network", "none", *renamed(run, names)[2:])
        wait_until(lambda: logged("pipelock ready"), 60, "pipelock is ready")
        self.assertIn("egress", subprocess.check_output(renamed(status, names), text=True))
        for command, effect in zip(signals, ("SIGHUP delivered to egress", "pipelock restarted"), strict=True):
            subprocess.check_call(renamed(command, names), stdout=subprocess.DEVNULL)
            wait_until(partial(logged, effect), 30, effect)
        subprocess.check_call(renamed(stop, names), stdout=subprocess.DEVNULL)
        self.assertTrue(logged("shutting down: SIGTERM"))


class SecurityChecks(EngineTest):
    OPTIONS = shlex.split(
        "--network none --read-only --tmpfs /run --security-opt no-new-privileges --ulimit core=0"
        " --cap-drop ALL --cap-add SETUID --cap-add SETGID --cap-add KILL --cap-add SETPCAP"
    )

    def test_the_checks_print_what_the_page_says(self) -> None:
        name, token = f"sidecars-test-{uuid.uuid4().hex[:12]}", f"token-{uuid.uuid4().hex}"
        self.addCleanup(docker, "rm", "--force", "--volumes", name)
        docker("run", "--detach", "--name", name, *self.OPTIONS, "-e", f"EGRESS_TOKEN_API={token}", IMAGE)
        wait_until(lambda: "pipelock ready" in docker("logs", name).stdout, 60, "pipelock is ready")
        [script] = blocks("SECURITY.md", "sh")
        script = re.sub(r"\bbundle\b", name, script.partition("\n# Every attack")[0])
        environment = {**os.environ, "EGRESS_TOKEN_API": token}
        done = subprocess.run(["sh"], input=script, env=environment, capture_output=True, text=True)
        readers, processes, rest = re.split(
            r"^UID .*\n|(?=^/proc/1/status)", done.stdout, maxsplit=2, flags=re.MULTILINE
        )
        self.assertRegex(readers, r"\Amitmproxy: /proc/\d+/environ\n\Z")
        self.assertEqual(done.stderr.count("Permission denied"), 3, done.stderr)
        daemons = [line for line in processes.splitlines() if not line.endswith(" health")]
        self.assertEqual([line.split()[0] for line in daemons if line].count("0"), 1, processes)
        self.assertGreaterEqual(rest.count("CapBnd:\t0000000000000000"), 5)
        self.assertEqual(rest.count("NoNewPrivs:\t0"), 0)
        self.assertGreaterEqual(rest.count("oom_score_adj:100\n"), 5)
        for line, part in zip(rest.splitlines()[-5:], ["0", "0", " ro", " /proc/sys proc ro", "[ALL] ["], strict=True):
            self.assertIn(part, line)
        self.assertTrue(rest.endswith(" false true\n"))


if __name__ == "__main__":
    unittest.main()
