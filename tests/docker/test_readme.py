"""The README's commands for Docker, as they stand there, against the image under test and without a network."""

from __future__ import annotations

import shlex
import subprocess
import unittest
import uuid
from functools import partial

from tests.docker.engine import IMAGE, EngineTest, docker
from tests.pages.test_readme import readme_commands
from tests.support import wait_until


class ReadmeDocker(EngineTest):
    def test_commands_for_the_bundle_do_what_they_say(self) -> None:
        build, run, status, *signals, stop = [c for c in readme_commands() if c.startswith("docker ")]
        self.assertEqual(build, "docker build -f Dockerfile.sidecars -t sidecars .")  # .ci/image.sh, with other sources
        name = f"sidecars-test-{uuid.uuid4().hex[:12]}"

        def words(command: str) -> list[str]:
            return [{"bundle": name, "sidecars": IMAGE}.get(word, word) for word in shlex.split(command)]

        def logged(text: str) -> bool:
            return text in docker("logs", name).stdout

        self.addCleanup(docker, "rm", "--force", "--volumes", name)
        docker("run", "--network", "none", *words(run)[2:])
        wait_until(lambda: logged("pipelock ready"), 60, "pipelock is ready")
        self.assertIn("egress", subprocess.check_output(words(status), text=True))
        for command, effect in zip(signals, ("SIGHUP delivered to egress", "pipelock restarted"), strict=True):
            subprocess.check_call(words(command), stdout=subprocess.DEVNULL)
            wait_until(partial(logged, effect), 30, effect)
        subprocess.check_call(words(stop), stdout=subprocess.DEVNULL)
        self.assertTrue(logged("shutting down: SIGTERM"))


if __name__ == "__main__":
    unittest.main()
