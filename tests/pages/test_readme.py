"""The README's commands do what it says. Those for Docker are run by tests/docker/test_readme.py."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.support import ROOT, wait_until

DEMO_TABLE = ROOT / "examples" / "demo.toml"
DEMO = "python3 sidecar_init.py --table examples/demo.toml"
TESTS = "python3 -m unittest discover -s tests -t ."
BENCH = "python3 bench/run.py"


def readme_commands() -> list[str]:
    """Every line of every `sh` block."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def python(command: str) -> list[str]:
    return [sys.executable if word == "python3" else word for word in shlex.split(command)]


def copy_of_demo(directory: Path) -> str:
    """The demo's table with a free port, made as its own comment says."""
    table = directory / "demo.toml"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    [command] = re.findall(r"^# +(sed .*)$", DEMO_TABLE.read_text(), re.MULTILINE)
    copy, _, _ = command.replace("18574", port).partition(" >")
    table.write_text(subprocess.check_output(shlex.split(copy), cwd=ROOT, text=True))
    assert table.read_text().count(port) >= 2, "its argument and its readiness"
    return str(table)


class Readme(unittest.TestCase):
    def test_quick_start_is_two_commands_the_second_of_which_runs_the_tests(self) -> None:
        self.assertEqual(readme_commands()[:2], [DEMO, TESTS])
        self.assertIn(TESTS.removeprefix("python3 "), (ROOT / ".ci" / "run").read_text())

    def test_demo_shows_what_is_promised_and_the_other_commands_answer(self) -> None:
        others = [c for c in readme_commands() if c not in (DEMO, TESTS, BENCH) and not c.startswith("docker ")]
        self.assertGreaterEqual(len(others), 4)
        with tempfile.TemporaryDirectory() as directory:
            start = python(DEMO.replace("examples/demo.toml", copy_of_demo(Path(directory))))
            env = {**os.environ, "BOT_BOTTLE_SIDECAR_STATE_DIR": directory}
            log = os.path.join(directory, "log")
            with open(log, "wb") as output:
                demo = subprocess.Popen(start, cwd=ROOT, env=env, stdout=output)

            def text() -> str:
                with open(log) as file:
                    return file.read()

            try:
                wait_until(lambda: "[config] configuration read" in text(), 20, "config started after web was ready")
                for command in others:
                    with self.subTest(command):
                        done = subprocess.run(python(command), cwd=ROOT, env=env, capture_output=True, text=True)
                        self.assertEqual((done.returncode, done.stderr), (0, ""))
                wait_until(lambda: text().count("clock started (pid ") == 2, 20, "clock exited and was restarted")
            finally:
                demo.send_signal(signal.SIGINT)
                code = demo.wait(15)
        self.assertEqual(code, 143)


if __name__ == "__main__":
    unittest.main()
