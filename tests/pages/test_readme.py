"""The README's commands and tables do what it says. Those for Docker are run by tests/docker/test_readme.py."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

import sidecar_init
from tests.support import MODULE, ROOT, free_port, wait_until

DEMO_TABLE = ROOT / "examples" / "demo.toml"
DEMO = "python3 sidecar_init.py --table examples/demo.toml"
TESTS = "python3 -m unittest discover -s tests -t ."


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, by their language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Every line of every `sh` block."""
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


def python(command: str) -> list[str]:
    return [sys.executable if word == "python3" else word for word in shlex.split(command)]


def copy_of_demo(directory: Path) -> str:
    """The demo's table with a free port, made as its own comment says."""
    table = directory / "demo.toml"
    port = str(free_port())
    [command] = re.findall(r"^# +(sed .*)$", DEMO_TABLE.read_text(), re.MULTILINE)
    copy, _, _ = command.replace("18574", port).partition(" >")
    table.write_text(subprocess.check_output(shlex.split(copy), cwd=ROOT, text=True))
    assert table.read_text().count(port) >= 2, "its argument and its readiness"
    return str(table)


def picture() -> list[str]:
    """The text of examples/session.svg."""
    svg = ElementTree.parse(ROOT / "examples" / "session.svg")
    return ["".join(line.itertext()) for line in svg.iter("{http://www.w3.org/2000/svg}text")]


def normalized(line: str) -> str:
    """Without what differs between two runs."""
    return re.sub(r"[\d.:]+", "N", " ".join(line.split()))


class Readme(unittest.TestCase):
    def test_quick_start_is_two_commands_the_second_of_which_runs_the_tests(self) -> None:
        [first, *_], _, [second] = (block.splitlines() for block in blocks("README.md", "sh")[:3])
        self.assertEqual((first, second), (DEMO, TESTS))
        self.assertIn(TESTS.removeprefix("python3 "), (ROOT / ".ci" / "run").read_text())

    def test_demo_shows_what_is_promised_and_the_other_commands_answer(self) -> None:
        others = [c for c in commands("README.md") if c not in (DEMO, TESTS) and not c.startswith("docker ")]
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
                answers: list[str] = []
                for command in others:
                    with self.subTest(command):

                        def succeeds(command: str = command) -> bool:
                            done = subprocess.run(python(command), cwd=ROOT, env=env, capture_output=True, text=True)
                            is_down = "clock is in backoff" in done.stderr  # it exits now and then
                            self.assertTrue(is_down or (done.returncode, done.stderr) == (0, ""), done.stderr)
                            answers.extend(done.stdout.splitlines())
                            return not is_down

                        wait_until(succeeds, 20, f"{command} succeeds")
                # By now it may have been restarted already. Just after a restart it runs, and so it ends by the TERM.
                before = text().count("clock started (pid ")
                wait_until(lambda: text().count("clock started (pid ") > before, 20, "clock exited and was restarted")
            finally:
                demo.send_signal(signal.SIGINT)
                code = demo.wait(15)
                log_lines = text().splitlines()
        self.assertEqual(code, 143)
        with self.subTest("the picture shows nothing else"):
            lines = [line.removeprefix("^C") for line in picture() if not line.startswith(("$ ", "# "))]
            shown = {normalized(line) for line in lines if "  running  " not in line}  # what follows there is chance
            self.assertEqual(shown - {normalized(line) for line in [*log_lines, *answers]}, set())

    def test_the_annotated_table_is_valid_and_has_every_field_once(self) -> None:
        _, table = blocks("README.md", "toml")
        written = re.findall(r"^(\w+) = ", table.partition("[secrets]")[0], re.MULTILINE)
        repeated = ["name", "argv"]  # of the second daemon
        self.assertEqual(sorted(written), sorted([*sidecar_init._FIELDS, *repeated]))
        for line in table.splitlines():
            is_repeated = line.startswith(("name", "argv")) and "#" not in line
            self.assertTrue("#" in line or line.startswith(("[[", '"')) or is_repeated, f"no annotation: {line}")

    def test_every_table_of_the_pages_is_accepted(self) -> None:
        for page in ("README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))):
            for table in blocks(page, "toml"):
                with self.subTest(page, table=table), tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                    file.write(table)
                    file.flush()
                    command = [sys.executable, str(MODULE), "plan", "--table", file.name]
                    done = subprocess.run(command, capture_output=True, text=True)
                    self.assertNotEqual(done.returncode, 2, done.stderr)

    def test_the_readme_is_short(self) -> None:
        self.assertLessEqual(len((ROOT / "README.md").read_text().splitlines()), 220)


if __name__ == "__main__":
    unittest.main()
