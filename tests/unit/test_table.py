"""The table file: what is right is used, and each kind of mistake has a line of its own."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import unittest
from typing import Any

import sidecar_init
from tests.support import MODULE, ROOT
from tests.unit.support import UnitTest

GOOD = '[[daemon]]\nname = "web"\nargv = ["true"]\n'
OTHER = '[[daemon]]\nname = "db"\nargv = ["true"]\n'
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

[secrets]                   # prefix of the variables = the only daemon, or list of daemons, that gets them
"API_KEY_" = "web"
"CA_" = ["web", "db"]

[signals]                   # HUP and USR1, each one action
HUP = { forward = "web" }
USR1 = { restart = "db" }
"""

EVERY_FIELD = """
ready = ["curl", "-f", "http://[::1]/"]
essential = true
stop = { signal = "QUIT", to = "leader", grace = 30 }
cwd = "/srv"
env = { WORKERS = "4", EMPTY = "" }
files = { KEY = "/run/secrets/key" }
capabilities = ["NET_BIND_SERVICE", "CHOWN"]
prefix = false
"""

SECTIONS = "there must be one or more [[daemon]] sections"
COMMAND = "must be a list of words, the first not empty"
STOP = "stop must be like { signal"
TRUTH = "must be true or false"
TOO_DEEP = "not TOML: nested too deep"
MISTAKES = {  # what is in the file: what the line must say after the file's name
    "": SECTIONS,
    "daemon = 3\n": SECTIONS,
    "daemon = []\n": SECTIONS,
    "daemon = [3]\n": SECTIONS,
    "[daemon]\nname = 'web'\n": SECTIONS,
    "[[daemon]\n": "not TOML: ",
    "x = '\xff": "not TOML: ",
    "x = " + "[" * 5000: "not TOML: ",
    "x = " + "9" * 5000: "not TOML: ",
    GOOD + "port = " + "9" * 5000: "not TOML: ",
    GOOD + "port = -" + "9" * 5000: "not TOML: ",
    "a." * 1200 + "b = 1\n" + GOOD: 'unknown key "a"; known: [[daemon]], [secrets], [signals]',
    GOOD + "a." * 1200 + "b = 1\n": 'daemon "web": unknown key "a"; known: name, argv,',
    GOOD + "env." + "a." * 1200 + "b = 1\n": 'daemon "web": env must be a table of strings',
    GOOD + "stop." + "a." * 1200 + "b = 1\n": f'daemon "web": {STOP}',
    GOOD + "[secrets]\n" + "a." * 1200 + "b = 1\n": 'secrets: "a" must name a daemon of the table, or a list of them',
    GOOD + "[signals]\nHUP." + "a." * 1200 + "b = 1\n": "signals: HUP must be {",
    "[" + "a." * 1200 + "b]\n": 'unknown key "a"; known',
    "daemon." + "a." * 1200 + "b = 1\n": SECTIONS,
    "[[daemon]]\nname." + "a." * 1200 + "b = 1\n": "daemon 1: name must be",
    GOOD + "[demon]\n": 'unknown key "demon"; known: [[daemon]], [secrets], [signals]',
    GOOD + "ports = 80\n": 'daemon "web": unknown key "ports"; known: name, argv,',
    GOOD + GOOD: 'daemon "web": duplicate name',
    "[[daemon]]\nargv = ['true']\n": "daemon 1: name is missing",
    "[[daemon]]\nname = 'web'\n": 'daemon "web": argv is missing',
    "[[daemon]]\nname = ''\n": 'daemon "": name must be 1 to 64 characters, only letters, digits and ._-',
    "[[daemon]]\nname = 'a b'\n": 'daemon "a b": name must be',
    "[[daemon]]\nname = 'a,b'\n": 'daemon "a,b": name must be',
    "[[daemon]]\nname = 7\n": "daemon 1: name must be",
    f"[[daemon]]\nname = '{'x' * 65}'\n": f'daemon "{"x" * 65}": name must be',
    "[[daemon]]\nname = '\xe4'\n": 'daemon "\xe4": name must be',
    "[[daemon]]\nname = 'web'\nargv = 'true'\n": f'daemon "web": argv {COMMAND}',
    "[[daemon]]\nname = 'web'\nargv = []\n": f'daemon "web": argv {COMMAND}',
    "[[daemon]]\nname = 'web'\nargv = ['']\n": f'daemon "web": argv {COMMAND}',
    "[[daemon]]\nname = 'web'\nargv = ['true', 3]\n": f'daemon "web": argv {COMMAND}',
    '[[daemon]]\nname = "web"\nargv = ["true", "\\u0000"]\n': f'daemon "web": argv {COMMAND}',
    **{GOOD + f"{key} = {value}\n": f'daemon "web": {expected}' for key, value, expected in [
        ("restart", "'sometimes'", 'restart must be "never", "on-failure" or "always"'),
        ("restart", "true", "restart must be"),
        ("restart", "['always']", "restart must be"),
        *(("user", value, 'user must be a string: the name of an account, "UID" or "UID:GID"') for value in (
            "1000", "''", '"\\u0000"', "'0'", "'0:0'", "'00'", "'4294967295'", "'1:4294967295'", "'1000:'",
            "':1000'", "':'", "'1:2:3'", "'web:1'", "'1:web'", f"'{'9' * 5000}'")),
        ("port", "'80'", "port must be a number from 1 to 65535, without quotes"),
        ("port", "true", "port must be"),
        ("port", "80.0", "port must be"),
        ("port", "0", "port must be"),
        ("port", "-1", "port must be"),
        ("port", "65536", "port must be"),
        ("port", "9" * 4000, "port must be"),
        ("after", "'web'", "after must be a list of names"),
        ("after", "[7]", "after must be a list of names"),
        ("after", "['']", "after must be a list of names"),
        ("after", "['db']", 'after names "db", which is not in the table'),
        ("after", "['web']", "circular after: web -> web"),
        *((key, value, f"{key} {COMMAND}") for key in ("check", "ready")
          for value in ("[]", "['']", "'true'", "[7]", "true", "{}", "[['true']]", '["\\u0000"]')),
        *((key, value, f"{key} {TRUTH}") for key in ("oneshot", "essential", "prefix")
          for value in ("'true'", "1", "0", "[]", "{}", "1.0", "1979-05-27")),
        *(("stop", value, STOP) for value in ("'TERM'", "15", "true", "[]", "['TERM']", "{ unknown = 1 }")),
        *(("stop.signal", value, STOP) for value in (
            "'UNKNOWN'", "''", "'SIGTERM'", "'term'", "15", "true", "['TERM']", "'KILL'", "'STOP'", "'_SETMASK'")),
        *(("stop.to", value, STOP) for value in ("'all'", "''", "true", "1", "['group']")),
        *(("stop.grace", value, STOP) for value in (
            "-1", "-0.001", "inf", "+inf", "-inf", "nan", "1e400", "'8'", "true", "[]", "86401", "9" * 4000)),
        *(("cwd", value, "cwd must be an absolute path") for value in ("''", "'srv'", "7", "[]", '"/\\u0000"', "'~'")),
        *(("env", value, "env must be a table of strings") for value in ("'A=1'", "['A=1']", "7", "true", "[]")),
        *(("env", value, "env must be a table of strings") for value in (
            "{ A = 1 }", "{ A = true }", "{ A = ['1'] }", "{ A = { B = '1' } }", "{ '' = 'x' }", "{ 'A=B' = 'x' }",
            '{ "A\\u0000" = "x" }', '{ A = "\\u0000" }')),
        *(("files", value, "files must be a table of absolute paths") for value in (
            "'/a'", "['/a']", "7", "true", "{ A = 1 }", "{ A = ['/a'] }", "{ A = '' }", "{ A = 'a' }", "{ A = '/' }",
            "{ A = '/a/' }", "{ '' = '/a' }", "{ 'A=B' = '/a' }", '{ "A\\u0000" = "/a" }', '{ A = "/\\u0000" }')),
        ("files", "{ A = '/a' }\nenv = { A = 'x' }", "env and files set the same variable"),
        *(("capabilities", value, "capabilities must be a list of names without CAP_") for value in (
            "'CHOWN'", "['CAP_CHOWN']", "['chown']", "['']", "[0]", "[['CHOWN']]", "true", "{}", "['ALL']")),
        *(("oneshot", f"true\n{key} = {value}", "a oneshot cannot have port or ready")
          for key, value in (("port", "80"), ("ready", "['true']"))),
    ]},
    GOOD + "after = ['b']\n" + GOOD.replace("web", "b") + "after = ['web']\n":
        'daemon "b": circular after: b -> web -> b',
    "".join(GOOD.replace("web", x) + f"after = ['{y}']\n" for x, y in ("cb", "ac", "ba")):
        'daemon "a": circular after: a -> c -> b -> a',
    "secrets = 3\n" + GOOD: "secrets must be a [secrets] section",
    GOOD + "[secrets]\nA_ = 'db'\n": 'secrets: "A_" must name a daemon of the table, or a list of them',
    GOOD + "[secrets]\nA_ = ['web', 'db']\n": 'secrets: "A_" must name',
    GOOD + "[secrets]\nA_ = []\n": 'secrets: "A_" must name',
    GOOD + "[secrets]\nA_ = [7]\n": 'secrets: "A_" must name',
    GOOD + "[secrets]\nA_ = [['web']]\n": 'secrets: "A_" must name',
    GOOD + "[secrets]\nA_ = 7\n": 'secrets: "A_" must name',
    GOOD + "[secrets]\nA_ = { web = true }\n": 'secrets: "A_" must name',
    GOOD + "[secrets]\n'' = 'web'\n": "secrets: a prefix must not be empty",
    GOOD + OTHER + "[secrets]\nA_ = 'web'\nA_B_ = 'db'\n": (
        'secrets: "A_B_" begins with "A_", which has other owners'
    ),
    GOOD + OTHER + "[secrets]\nA_ = ['web', 'db']\nA_B_ = 'db'\n": 'secrets: "A_B_" begins with "A_", which has other',
    GOOD + "env = { A_1 = 'x' }\n" + OTHER + "[secrets]\nA_ = 'db'\n": (
        'daemon "web": env sets A_1, which belongs to db'
    ),
    GOOD + "env = { A_ = 'x' }\n" + OTHER + "[secrets]\nA_ = ['db']\n": 'daemon "web": env sets A_, which belongs to',
    GOOD + "files = { A_1 = '/x' }\n" + OTHER + "[secrets]\nA_ = 'db'\n": (
        'daemon "web": files sets A_1, which belongs to db'
    ),
    "signals = 3\n" + GOOD: "signals must be a [signals] section",
    GOOD + "[signals]\nTERM = { forward = 'web' }\n": 'signals: unknown key "TERM"; known: HUP, USR1',
    GOOD + "[signals]\nHUP = 'web'\n": 'signals: HUP must be { forward = "NAME" } or { restart = "NAME" }',
    GOOD + "[signals]\nHUP = {}\n": "signals: HUP must be {",
    GOOD + "[signals]\nHUP = { stop = 'web' }\n": "signals: HUP must be {",
    GOOD + "[signals]\nHUP = { forward = 'web', restart = 'web' }\n": "signals: HUP must be {",
    GOOD + "[signals]\nUSR1 = { restart = 'db' }\n": "signals: USR1 must name a daemon of the table",
    GOOD + "[signals]\nUSR1 = { restart = 7 }\n": "signals: USR1 must name a daemon of the table",
}  # fmt: skip


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
    def test_each_has_one_line_and_nothing_is_started(self) -> None:
        for text, expected in MISTAKES.items():
            with self.subTest(text[:200]):
                self.path.write_bytes(text.encode("latin-1" if "= '\xff" in text else "utf-8"))
                # From Python 3.14 on, tomllib itself refuses a key of so many parts.
                told = (expected, TOO_DEEP) if "a." * 1200 in text else expected
                self.assertTrue(self.refusal(str(self.path)).startswith(told), self.refusal(str(self.path)))

    def test_a_file_that_is_missing_is_reported(self) -> None:
        self.assertEqual(self.refusal(str(self.path)), "No such file or directory")

    def test_a_directory_is_reported(self) -> None:
        self.assertEqual(self.refusal(str(self.path.parent)), "Is a directory")

    def test_no_text_of_python_is_shown(self) -> None:
        for text in ("x = " + "9" * 5000, "x = '\xff", "x = " + "[" * 5000, "a." * 1200 + "b = 1", "x = nan\n", "x"):
            with self.subTest(text[:20]):
                self.path.write_bytes(text.encode("latin-1"))
                self.assertNotRegex(self.refusal(str(self.path)), "sys[.]|codec|recursion|Error|None|True|limit")

    def test_a_mistake_ends_the_program_before_anything_is_started(self) -> None:
        started = self.path.with_name("started")
        self.path.write_text(f'[[daemon]]\nname = "a"\nargv = ["touch", "{started}"]\nstop.grace = -1\n')
        command = [sys.executable, "-ISB", str(MODULE), "--table", str(self.path)]
        ended = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((ended.returncode, ended.stdout), (2, ""))
        self.assertRegex(ended.stderr, r"\Acannot use table [^\n]+: daemon \"a\": stop must be like [^\n]+\n\Z")
        self.assertFalse(started.exists())

    def test_an_empty_name_is_a_file_that_is_missing(self) -> None:
        self.assertEqual(self.refusal(""), "No such file or directory")
        self.assertEqual(self.refusal("", "plan"), "No such file or directory")

    def test_a_line_end_in_a_name_makes_no_second_line(self) -> None:
        self.path.write_text('[[daemon]]\n"a\\nb" = 1\n')
        self.assertIn("unknown key", self.refusal(str(self.path)))

    def test_plan_refuses_it_too(self) -> None:
        self.assertEqual(self.refusal(str(self.path), "plan"), "No such file or directory")


class Right(TableTest):
    def test_the_example_of_the_design_is_used(self) -> None:
        self.path.write_text(DESIGNED)
        sidecar_init._use_table(str(self.path))
        db, web = sidecar_init._DAEMONS
        self.assertEqual((db.name, db.argv, db.restart, db.port, db.user), ("db", ("true",), "never", None, None))
        self.assertEqual((db.after, db.check), ((), ()))
        self.assertEqual((web.name, web.argv), ("web", ("python3", "-m", "http.server", "8000")))
        self.assertEqual((web.restart, web.port, web.user), ("always", 8000, "nobody"))
        self.assertEqual((web.after, web.check), (("db",), ("true",)))
        self.assertEqual(sidecar_init._SECRETS, {"API_KEY_": ("web",), "CA_": ("web", "db")})
        self.assertEqual(sidecar_init._SIGNALS, {"HUP": ("forward", "web"), "USR1": ("restart", "db")})

    def test_it_replaces_the_shipped_secrets_and_signals_also_by_none(self) -> None:
        self.path.write_text(GOOD)
        sidecar_init._use_table(str(self.path))
        self.assertEqual((sidecar_init._SECRETS, sidecar_init._SIGNALS), ({}, {}))
        self.assertEqual([spec.name for spec in sidecar_init._selected_daemons({})], ["web"])

    def test_the_demo_is_used(self) -> None:
        sidecar_init._use_table(str(ROOT / "examples" / "demo.toml"))
        self.assertEqual(len(sidecar_init._DAEMONS), 3)

    def use(self, text: str) -> sidecar_init._DaemonSpec:
        """The last row of this table."""
        self.path.write_text(text)
        sidecar_init._use_table(str(self.path))
        return sidecar_init._DAEMONS[-1]

    def test_every_field_reaches_its_daemon(self) -> None:
        spec = self.use(GOOD + EVERY_FIELD)
        self.assertEqual((spec.ready, spec.essential, spec.prefix), (("curl", "-f", "http://[::1]/"), True, False))
        self.assertEqual((spec.stop_signal, spec.stop_to, spec.stop_grace), (signal.SIGQUIT, "leader", 30))
        self.assertEqual((spec.cwd, spec.env), ("/srv", {"WORKERS": "4", "EMPTY": ""}))
        self.assertEqual((spec.files, spec.capabilities), ({"KEY": "/run/secrets/key"}, ("NET_BIND_SERVICE", "CHOWN")))
        self.assertIs(self.use(GOOD + "oneshot = true\n").oneshot, True)

    def test_every_field_that_is_known_is_tried_with_something_wrong(self) -> None:
        told = " ".join(MISTAKES.values())
        for field in sidecar_init._FIELDS:
            self.assertRegex(told, rf": {field} must be")

    def test_a_grace_may_be_a_fraction_nothing_or_a_day(self) -> None:
        for value, expected in (("0", 0), ("0.0", 0), ("2.5", 2.5), ("86400", 86400)):
            self.assertEqual(self.use(GOOD + f"stop.grace = {value}\n").stop_grace, expected)

    def test_every_signal_that_can_stop_a_daemon_is_known(self) -> None:
        for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "ABRT"):
            self.assertEqual(self.use(GOOD + f"stop.signal = '{name}'\n").stop_signal, getattr(signal, f"SIG{name}"))

    def test_an_owner_may_set_its_own_secrets(self) -> None:
        self.assertEqual(self.use(GOOD + "env = { A_1 = 'x' }\n[secrets]\nA_ = 'web'\n").env, {"A_1": "x"})

    def test_prefixes_of_the_same_owners_may_overlap_in_any_order(self) -> None:
        self.use(GOOD + OTHER + "[secrets]\nA_ = ['web', 'db']\nA_B_ = ['db', 'web']\n")
        self.assertEqual(sidecar_init._SECRETS, {"A_": ("web", "db"), "A_B_": ("db", "web")})

    def test_a_user_may_be_a_name_or_ids(self) -> None:
        for user in ("www-data", "_apt", "3proxy", "1000", "1000:0", "1:4294967294", "4294967294"):
            self.assertEqual(self.use(GOOD + f"user = '{user}'\n").user, user)

    def test_an_after_of_6000_links_in_reverse_is_followed(self) -> None:
        links = [f'[[daemon]]\nname = "d{n}"\nargv = ["true"]\nafter = ["d{n + 1}"]\n' for n in range(5999)]
        self.use("".join(links) + '[[daemon]]\nname = "d5999"\nargv = ["true"]\n')
        self.assertEqual(len(sidecar_init._DAEMONS), 6000)

    def test_the_work_for_a_long_after_grows_with_its_length_and_not_with_its_square(self) -> None:
        self.assertLess(self.comparisons(400), 3 * self.comparisons(200))

    def comparisons(self, length: int) -> int:
        """How often names are compared or hashed for a chain in reverse."""
        count = 0

        class Name(str):
            def __eq__(self, other: object) -> bool:
                nonlocal count
                count += 1
                return super().__eq__(other)

            def __hash__(self) -> int:
                nonlocal count
                count += 1
                return super().__hash__()

        rows: list[dict[str, Any]] = [
            {"name": Name(f"d{n}"), "argv": ["true"], "after": [Name(f"d{n + 1}")]} for n in range(length)
        ]
        del rows[-1]["after"]
        sidecar_init._specs_of(rows)
        return count

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


class Script(TableTest):
    """A script executes itself once more, baked in memory, so that PID 1 keeps nothing that only the start needed."""

    LOOK = "tr '\\0' ' ' </proc/$PPID/cmdline; echo; ls -l /proc/self/fd"

    def run_script(self, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
        """The program, run by another one that may have changed something `before`."""
        script = f"import resource, runpy, sys\n{before}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        argv = [sys.executable, "-ISBc", f"import sys; del sys.argv[0]; {script}", str(MODULE), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "SIDECAR_INIT_STATE_DIR": ""})

    def daemons(self, ended: subprocess.CompletedProcess[str]) -> tuple[str, list[str]]:
        """What a daemon sees: the supervisor's command line, and the targets of its own descriptors."""
        command, *files = [line.removeprefix("[web] ") for line in ended.stdout.splitlines() if line[:5] == "[web]"]
        return command.strip(), sorted(line.split(" -> ")[1].partition(":")[0] for line in files if " -> " in line)

    def setUp(self) -> None:
        super().setUp()
        self.path.write_text(f'[[daemon]]\nname = "web"\nargv = ["sh", "-c", {json.dumps(self.LOOK)}]\n')

    def test_it_is_the_baked_program_that_supervises_and_a_daemon_gets_nothing_of_it(self) -> None:
        ended = self.run_script("--table", str(self.path))
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        command, files = self.daemons(ended)
        self.assertRegex(command, rf"^{sys.executable} -PSsE /proc/self/fd/\d+$")
        self.assertEqual(len(files), 4, f"the null device, the pipe twice, and what ls opens itself: {files}")

    def test_where_it_cannot_be_executed_it_goes_on_as_it_is(self) -> None:
        for path in ("", None, "/nonexistent", "/bin/sh"):  # Python looks for the name that it was started by
            before = f"sys.executable = {path!r}"
            with self.subTest(before):
                ended = self.run_script("--table", str(self.path), before=before)
                self.assertEqual((ended.returncode, ended.stderr), (0, ""))
                self.assertIn("runpy", self.daemons(ended)[0])

    def test_an_interpreter_that_needs_pythonhome_still_has_it(self) -> None:
        command = [sys.executable, "-S", str(MODULE), "--table", str(self.path)]
        home = {**os.environ, "SIDECAR_INIT_STATE_DIR": "", "PYTHONHOME": sys.base_prefix}
        ended = subprocess.run(command, capture_output=True, text=True, env=home)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertRegex(self.daemons(ended)[0], rf"^{sys.executable} -PSs /proc/self/fd/\d+$")

    def test_a_baked_file_of_another_name_takes_the_table_that_it_is_given(self) -> None:
        baked, other = self.path.with_suffix(".pyc"), self.path.with_suffix(".other")
        other.write_text('[[daemon]]\nname = "other"\nargv = ["true"]\n')
        subprocess.run([sys.executable, MODULE, "bake", "--table", other, baked], check=True, capture_output=True)
        command = [sys.executable, str(baked.rename(baked.with_suffix(""))), "--table", str(self.path)]
        ended = subprocess.run(command, capture_output=True, text=True, env={"SIDECAR_INIT_STATE_DIR": ""})
        self.assertIn("web started", ended.stdout)
        self.assertNotIn("other", ended.stdout)

    def test_what_the_supervisor_inherits_it_keeps(self) -> None:
        """Such as a lock that is held for as long as it runs. A daemon gets none of it."""
        lock = self.path.with_suffix(".lock")
        self.path.write_text(
            GOOD.replace('["true"]', f'["sh", "-c", "flock -n {lock} true || echo held; ls /proc/self/fd"]')
        )
        with open(lock, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            command = [sys.executable, "-ISB", str(MODULE), "--table", str(self.path)]
            more: dict[str, Any] = {"env": {**os.environ, "SIDECAR_INIT_STATE_DIR": ""}, "pass_fds": [file.fileno()]}
            running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)
        said, _ = running.communicate()
        self.assertIn("[web] held\n", said)
        self.assertIn("[web] 3\n", said)
        self.assertNotIn("[web] 4\n", said)

    def test_a_table_that_does_not_fit_the_memory_is_refused_in_one_line(self) -> None:
        self.path.write_text(GOOD + f"env = {{ A = '{'x' * (64 << 20)}' }}\n")
        ended = self.run_script(
            "--table", str(self.path), before="resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))"
        )
        self.assertEqual((ended.returncode, ended.stdout), (2, ""))
        self.assertEqual(ended.stderr, f"cannot use table {self.path}: it does not fit in memory\n")


if __name__ == "__main__":
    unittest.main()
