"""The table file: what is right is taken, and each kind of mistake has a line of its own."""

from __future__ import annotations

import contextlib
import io
import os
import unittest

import sidecar_init
from tests.support import ROOT
from tests.unit.support import UnitTest

GOOD = '[[daemon]]\nname = "web"\nargv = ["true"]\n'
DESIGNED = """
[[daemon]]
name = "db"
argv = ["true"]

[[daemon]]
name = "web"
argv = ["python3", "-m", "http.server", "8000"]
restart = "always"
port = 8000
after = ["db"]
user = "nobody"
check = ["true"]

[secrets]                   # prefix of the variables = the only daemon that gets them
"API_KEY_" = "web"

[signals]                   # HUP and USR1, each one action
HUP = { forward = "web" }
USR1 = { restart = "db" }
"""

MISTAKES = {  # what is in the file: what the line must say after the file's name
    "": "'daemon' must be one or more [[daemon]] sections",
    "daemon = 3\n": "'daemon' must be one or more [[daemon]] sections",
    "daemon = []\n": "'daemon' must be one or more [[daemon]] sections",
    "daemon = [3]\n": "'daemon' must be one or more [[daemon]] sections",
    "[daemon]\nname = 'web'\n": "'daemon' must be one or more [[daemon]] sections",
    "[[daemon]\n": "not TOML: ",
    "x = '\xff": "not TOML: ",
    "x = " + "[" * 5000: "not TOML: ",
    GOOD + "[[daemon]]\nname = 'db'\nargv = ['true']\n[secrets]\nA_ = 'web'\nA_B_ = 'db'\n": (
        "secrets: 'A_B_' begins with 'A_', which has another owner"
    ),
    GOOD + "[demon]\n": "unknown key 'demon'; known are [[daemon]], [secrets] and [signals]",
    GOOD + "ports = 80\n": "daemon 'web': unknown key 'ports'; known are name, argv,",
    GOOD + GOOD: "daemon 'web': 'name' stands twice",
    "[[daemon]]\nargv = ['true']\n": "daemon 1: 'name' is missing",
    "[[daemon]]\nname = 'web'\n": "daemon 'web': 'argv' is missing",
    "[[daemon]]\nname = ''\n": "daemon '': 'name' must be a name of letters, digits and ._-, at most 64",
    "[[daemon]]\nname = 'a b'\n": "daemon 'a b': 'name' must be",
    "[[daemon]]\nname = 'a,b'\n": "daemon 'a,b': 'name' must be",
    "[[daemon]]\nname = 7\n": "daemon 7: 'name' must be",
    f"[[daemon]]\nname = '{'x' * 65}'\n": f"daemon '{'x' * 65}': 'name' must be",
    "[[daemon]]\nname = '\xe4'\n": "daemon '\xe4': 'name' must be",
    "[[daemon]]\nname = 'web'\nargv = 'true'\n": "daemon 'web': 'argv' must be a list of words, the first not empty",
    "[[daemon]]\nname = 'web'\nargv = []\n": "daemon 'web': 'argv' must be",
    "[[daemon]]\nname = 'web'\nargv = ['']\n": "daemon 'web': 'argv' must be",
    "[[daemon]]\nname = 'web'\nargv = ['true', 3]\n": "daemon 'web': 'argv' must be",
    '[[daemon]]\nname = "web"\nargv = ["true", "\\u0000"]\n': "daemon 'web': 'argv' must be",
    GOOD + "restart = 'sometimes'\n": "daemon 'web': 'restart' must be never, on-failure or always",
    GOOD + "restart = true\n": "daemon 'web': 'restart' must be",
    GOOD + "user = 1000\n": "daemon 'web': 'user' must be the name of an account",
    GOOD + "user = ''\n": "daemon 'web': 'user' must be",
    GOOD + "port = '80'\n": "daemon 'web': 'port' must be a number from 1 to 65535",
    GOOD + "port = true\n": "daemon 'web': 'port' must be",
    GOOD + "port = 80.0\n": "daemon 'web': 'port' must be",
    GOOD + "port = 0\n": "daemon 'web': 'port' must be",
    GOOD + "port = 65536\n": "daemon 'web': 'port' must be",
    GOOD + "after = 'web'\n": "daemon 'web': 'after' must be a list of names",
    GOOD + "after = [7]\n": "daemon 'web': 'after' must be a list of names",
    GOOD + "after = ['db']\n": "daemon 'web': 'after' names 'db', which is no daemon of the table",
    GOOD + "after = ['web']\n": "daemon 'web': 'after' runs in a circle",
    GOOD + "after = ['b']\n" + GOOD.replace("web", "b") + "after = ['web']\n": "daemon 'web': 'after' runs in",
    GOOD + "check = []\n": "daemon 'web': 'check' must be a list of words, the first not empty",
    "secrets = 3\n" + GOOD: "'secrets' must be a [secrets] section",
    GOOD + "[secrets]\nA_ = 'db'\n": "secrets: 'A_' must name a daemon of the table, not 'db'",
    GOOD + "[secrets]\nA_ = ['web']\n": "secrets: 'A_' must name a daemon of the table, not ['web']",
    GOOD + "[secrets]\n'' = 'web'\n": "secrets: a prefix must not be empty",
    "signals = 3\n" + GOOD: "'signals' must be a [signals] section",
    GOOD + "[signals]\nTERM = { forward = 'web' }\n": "signals: unknown key 'TERM'; known are HUP and USR1",
    GOOD + "[signals]\nHUP = 'web'\n": 'signals: \'HUP\' must be { forward = "NAME" } or { restart = "NAME" }',
    GOOD + "[signals]\nHUP = {}\n": "signals: 'HUP' must be {",
    GOOD + "[signals]\nHUP = { stop = 'web' }\n": "signals: 'HUP' must be {",
    GOOD + "[signals]\nHUP = { forward = 'web', restart = 'web' }\n": "signals: 'HUP' must be {",
    GOOD + "[signals]\nUSR1 = { restart = 'db' }\n": "signals: 'USR1' must name a daemon of the table, not 'db'",
    GOOD + "[signals]\nUSR1 = { restart = 7 }\n": "signals: 'USR1' must name a daemon of the table, not 7",
}


class TableTest(UnitTest):
    def setUp(self) -> None:
        self.use_environment()
        for name in ("_DAEMONS", "_SECRETS", "_SIGNALS"):  # they are put back after the test
            self.patch(name, getattr(sidecar_init, name))
        self.patch("_supervise", lambda: self.fail("something was started"))
        self.path = self.directory() / "table.toml"

    def refusal(self, path: str, *command: str) -> str:
        """The one line that refuses this table, without its beginning."""
        errors = io.StringIO()
        before = sidecar_init._DAEMONS, sidecar_init._SECRETS, sidecar_init._SIGNALS
        with contextlib.redirect_stderr(errors):
            self.assertEqual(sidecar_init.main([*command, "--table", path]), 2)
        self.assertEqual((sidecar_init._DAEMONS, sidecar_init._SECRETS, sidecar_init._SIGNALS), before)
        [line] = errors.getvalue().splitlines()
        beginning = f"cannot use table {path}: "
        self.assertTrue(line.startswith(beginning), line)
        return line.removeprefix(beginning)


class Mistakes(TableTest):
    def test_each_is_told_in_one_line_and_nothing_is_started(self) -> None:
        for text, expected in MISTAKES.items():
            with self.subTest(text[:200]):
                self.path.write_bytes(text.encode("latin-1" if "= '\xff" in text else "utf-8"))
                self.assertTrue(self.refusal(str(self.path)).startswith(expected), self.refusal(str(self.path)))

    def test_a_file_that_is_missing_is_told(self) -> None:
        self.assertEqual(self.refusal(str(self.path)), "No such file or directory")

    def test_a_directory_is_told(self) -> None:
        self.assertEqual(self.refusal(str(self.path.parent)), "Is a directory")

    def test_an_empty_name_is_a_file_that_is_missing(self) -> None:
        self.assertEqual(self.refusal(""), "No such file or directory")
        self.assertEqual(self.refusal("", "plan"), "No such file or directory")

    def test_a_line_end_in_a_name_makes_no_second_line(self) -> None:
        self.path.write_text('[[daemon]]\n"a\\nb" = 1\n')
        self.assertIn("unknown key", self.refusal(str(self.path)))

    def test_plan_refuses_it_too(self) -> None:
        self.assertEqual(self.refusal(str(self.path), "plan"), "No such file or directory")


class Right(TableTest):
    def test_the_example_of_the_design_is_taken(self) -> None:
        self.path.write_text(DESIGNED)
        sidecar_init._use_table(str(self.path))
        db, web = sidecar_init._DAEMONS
        self.assertEqual((db.name, db.argv, db.restart, db.port, db.user), ("db", ("true",), "never", None, None))
        self.assertEqual((db.after, db.check), ((), None))
        self.assertEqual((web.name, web.argv), ("web", ("python3", "-m", "http.server", "8000")))
        self.assertEqual((web.restart, web.port, web.user), ("always", 8000, "nobody"))
        self.assertEqual((web.after, web.check), (("db",), ("true",)))
        self.assertEqual(sidecar_init._SECRETS, {"API_KEY_": "web"})
        self.assertEqual(sidecar_init._SIGNALS, {"HUP": ("forward", "web"), "USR1": ("restart", "db")})

    def test_it_replaces_the_shipped_secrets_and_signals_also_by_none(self) -> None:
        self.path.write_text(GOOD)
        sidecar_init._use_table(str(self.path))
        self.assertEqual((sidecar_init._SECRETS, sidecar_init._SIGNALS), ({}, {}))
        self.assertEqual([spec.name for spec in sidecar_init._selected_daemons({})], ["web"])

    def test_the_demonstration_is_taken(self) -> None:
        sidecar_init._use_table(str(ROOT / "examples" / "demo.toml"))
        self.assertEqual(len(sidecar_init._DAEMONS), 3)

    def test_it_leads_to_the_supervisor(self) -> None:
        self.patch("_supervise", lambda: 42)
        self.path.write_text(GOOD)
        self.assertEqual(sidecar_init.main(["--table", str(self.path)]), 42)

    def test_it_can_come_through_a_pipe(self) -> None:
        reader, writer = self.pipe()
        os.write(writer, GOOD.encode())
        duplicate = os.dup(writer)
        os.close(duplicate)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
        sidecar_init._use_table(f"/dev/fd/{reader}")
        self.assertEqual(len(sidecar_init._DAEMONS), 1)


if __name__ == "__main__":
    unittest.main()
