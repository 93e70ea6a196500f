"""Baked files: the program and a table, compiled into one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import unittest
from pathlib import Path

from tests.support import MODULE, wait_until
from tests.unit.support import UnitTest

PYTHON = [sys.executable, "-I", "-S"]
TABLE = """
[[daemon]]
name = "db"
argv = ["sleep", "1000"]
restart = "always"
env = { GREETING = "sch\xf6n 'quoted' \\"twice\\" \\\\" }
stop = { signal = "INT", grace = 2.5 }

[[daemon]]
name = "web"
argv = ["python3", "-c", "import signal\\nsignal.signal(signal.SIGHUP, print)\\nwhile True: signal.pause()"]
after = ["db"]

[secrets]
"API_KEY_" = ["db"]

[signals]
HUP = { forward = "web" }
USR1 = { restart = "db" }
"""


class BakeTest(UnitTest):
    def setUp(self) -> None:
        self.path = self.directory()
        self.use_environment(BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.path / "state"))
        self.table, self.out = self.path / "table.toml", self.path / "out.pyc"
        self.table.write_text(TABLE)

    def run_file(self, file: Path, *arguments: object, python: list[str] = PYTHON) -> tuple[int, str, str]:
        command = [*python, str(file), *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=self.path)
        return ended.returncode, ended.stdout, ended.stderr

    def bake(self, *arguments: object, module: Path = MODULE, python: list[str] = PYTHON) -> bytes:
        """What the baked file has, which must not have been there before."""
        self.out.unlink(missing_ok=True)
        arguments = arguments or ("--table", self.table, self.out)
        self.assertEqual(self.run_file(module, "bake", *arguments, python=python)[::2], (0, ""))
        return self.out.read_bytes()


class Baking(BakeTest):
    def test_the_same_input_gives_the_same_bytes_from_every_folder_and_state_of_python(self) -> None:
        first = self.bake()
        copy = Path(shutil.copy(MODULE, self.path))
        imports = ["-c", "import runpy, sys, unittest; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"]
        for python in (PYTHON, PYTHON[:1], [*PYTHON, "-O"], [*PYTHON, "-OO"], [*PYTHON, *imports]):
            with self.subTest(python):
                self.assertEqual(self.bake(module=copy, python=python), first)
        self.assertEqual(self.bake("--table", "table.toml", "out.pyc"), first)
        self.table.write_text(TABLE.replace("1000", "1001"))
        self.assertNotEqual(self.bake(), first, "the control")

    def test_nothing_in_its_header_can_be_out_of_date(self) -> None:
        self.assertEqual(self.bake()[4:16], bytes(12))

    def test_every_account_can_read_it_whatever_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0o077))
        self.bake()
        self.assertEqual(stat.S_IMODE(self.out.stat().st_mode), 0o644)

    def test_it_says_what_it_has_baked(self) -> None:
        told = self.run_file(MODULE, "bake", "--table", self.table, self.out)
        self.assertEqual(told, (0, f"wrote {self.out} with db, web\n", ""))
        self.assertEqual(sorted(path.name for path in self.path.iterdir()), ["out.pyc", "table.toml"])

    def test_a_mistake_in_the_table_leaves_no_file_and_an_older_one_as_it_was(self) -> None:
        self.table.write_text(TABLE + "TERM = { restart = 'db' }\n")
        for older in (None, "older"):
            if older:
                self.out.write_text(older)
            with self.subTest(older):
                code, out, err = self.run_file(MODULE, "bake", "--table", self.table, self.out)
                self.assertEqual((code, out), (2, ""))
                self.assertEqual(err, f'cannot use table {self.table}: signals: unknown key "TERM"; known: HUP, USR1\n')
                self.assertEqual(self.out.read_text() if self.out.exists() else None, older)
        self.assertEqual(sorted(path.name for path in self.path.iterdir()), ["out.pyc", "table.toml"])

    def test_a_file_that_cannot_be_written_is_reported_with_what_to_do(self) -> None:
        folder, plain = self.path / "folder.pyc", self.path / "plain"
        folder.mkdir()
        plain.touch()
        for out, why in (
            (self.path / "none" / "out.pyc", "No such file or directory; name a file that you may write to"),
            (plain / "out.pyc", "Not a directory; name a file that you may write to"),
            (folder, "Is a directory; name a file that you may write to"),
            (self.path / "out", "Python runs it only if its name ends in .pyc; rename it"),
        ):
            with self.subTest(out.name):
                before = sorted(self.path.rglob("*"))
                self.assertEqual(self.run_file(MODULE, "bake", out), (1, "", f"cannot bake {out}: {why}\n"))
                self.assertEqual(sorted(self.path.rglob("*")), before)

    def test_a_file_that_is_compiled_cannot_bake(self) -> None:
        self.bake()
        other = self.path / "other.pyc"
        expected = f"cannot bake {other}: this file is compiled already; bake with sidecar_init.py\n"
        self.assertEqual(self.run_file(self.out, "bake", other), (1, "", expected))
        self.assertFalse(other.exists())


class Baked(BakeTest):
    def test_its_version_says_what_is_baked_in(self) -> None:
        version = self.run_file(MODULE, "--version")[1].rstrip("\n")
        self.bake()
        told = f"{version}, baked with the table of db, web\n"
        self.assertEqual(self.run_file(self.out, "--version"), (0, told, ""))
        self.bake(self.out)
        told = f"{version}, baked with the table of egress, pipelock, git-gate, git-http, supervise\n"
        self.assertEqual(self.run_file(self.out, "--version"), (0, told, ""))

    def test_it_plans_what_its_table_plans(self) -> None:
        expected = self.run_file(MODULE, "plan", "--table", self.table)
        self.assertIn("sleep 1000", expected[1])
        self.bake()
        self.table.unlink()
        for python in (PYTHON, [*PYTHON, "-O"], PYTHON[:1]):
            self.assertEqual(self.run_file(self.out, "plan", python=python), expected)

    def test_a_table_that_it_is_given_takes_precedence(self) -> None:
        self.bake()
        self.table.write_text('[[daemon]]\nname = "other"\nargv = ["echo", "here"]\n')
        for arguments in (["--table", str(self.table)], [f"--table={self.table}"]):
            code, out, err = self.run_file(self.out, *arguments)
            self.assertEqual((code, err), (0, ""))
            self.assertIn("[other] here\n", out)
            self.assertNotIn("db", out)

    def test_another_python_names_the_cause(self) -> None:
        """What docs/troubleshooting.md explains."""
        baked = bytearray(self.bake())
        baked[0] ^= 1
        self.out.write_bytes(baked)
        code, out, err = self.run_file(self.out)
        self.assertEqual((code, out), (1, ""))
        self.assertIn("RuntimeError: Bad magic number in .pyc file", err)

    def test_its_start_imports_nothing_that_only_a_table_or_a_command_needs(self) -> None:
        self.table.write_text('[[daemon]]\nname = "quick"\nargv = ["true"]\n')
        self.bake()
        code, _, err = self.run_file(self.out, python=[*PYTHON, "-X", "importtime"])
        self.assertEqual(code, 0)
        imported = set(re.findall(r"\| +([\w.]+)$", err, re.MULTILINE))
        self.assertIn("_ctypes", imported)  # it has been a whole run
        self.assertEqual(
            imported & {"argparse", "ast", "ctypes", "importlib.util", "json", "re", "socket", "tomllib"}, set()
        )


class BakedProgram(BakeTest):
    """A supervisor and the commands, all from one baked file."""

    def setUp(self) -> None:
        super().setUp()
        self.bake()
        with open(self.path / "log", "wb") as log:
            supervisor = subprocess.Popen([*PYTHON, str(self.out)], stdout=log)
        self.supervisor = supervisor
        self.addCleanup(supervisor.wait, 20)
        self.addCleanup(supervisor.terminate)
        wait_until(lambda: b"web started" in (self.path / "log").read_bytes(), 20, "its daemons run")

    def test_every_command_answers(self) -> None:
        for arguments, expected in (
            (["health"], r"healthy: 2 daemons are ready\n"),
            (["restart", "db"], r"db restarted and ready \(pid \d+\)\n"),
            (["apply", "db"], r"db restarted and ready \(pid \d+\)\n"),
            (["status", "db"], r"NAME .*\ndb +running +yes .*\n"),
            (["events", "db", "-n", "1"], r".*  ready         db           .*\n"),
        ):
            with self.subTest(arguments):
                code, out, err = self.run_file(self.out, *arguments)
                self.assertEqual((code, err), (0, ""))
                self.assertRegex(out, rf"\A{expected}\Z")
        status = json.loads(self.run_file(self.out, "status", "--json")[1])
        self.assertEqual([row["signal"] for row in status["daemons"]], [34, 35])
        self.assertEqual(status["signals"], {"HUP": {"forward": "web"}, "USR1": {"restart": "db"}})

    def test_a_term_stops_it_as_its_table_says(self) -> None:
        self.supervisor.send_signal(signal.SIGTERM)
        self.assertEqual(self.supervisor.wait(20), 143)
        log = (self.path / "log").read_text()
        self.assertIn("db was terminated by SIGINT", log)
        self.assertIn("web was terminated by SIGTERM", log)


if __name__ == "__main__":
    unittest.main()
