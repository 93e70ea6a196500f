"""Secrets in files: NAME_FILE is the path of the file that holds NAME, for the owner of NAME alone."""

from __future__ import annotations

import json
import os
import unittest
from typing import Any

import sidecar_init
from sidecar_init import _DaemonSpec, _Secrets, _Supervisor
from tests.unit.support import SupervisorTest, UnitTest


class Names(UnitTest):
    """Which variable is the path of a secret, and of which one."""

    def check(self, secrets: dict[str, tuple[str, ...]], **expected: str) -> None:
        self.patch("_SECRETS", secrets)
        for variable, name in expected.items():
            with self.subTest(variable):
                self.assertEqual(sidecar_init._secret_in_file(variable), name)

    def test_a_name_under_a_prefix_and_more_is_one(self) -> None:
        self.check(
            {"API_KEY_": ("web",), "TOKEN": ("web",)},
            API_KEY_A_FILE="API_KEY_A",
            API_KEY_FILE="",
            API_KEY__FILE="",
            API_KEY_A="",
            TOKEN_FILE="",
            TOKEN_A_FILE="TOKEN_A",
            OTHER_FILE="",
            API_KEY_FILE_FILE="API_KEY_FILE",
            FILE="",
        )

    def test_a_key_that_itself_ends_in_file_is_none(self) -> None:
        self.check(
            {"DATABASE_": ("web",), "DATABASE_CA_FILE": ("web",)},
            DATABASE_CA_FILE="",
            DATABASE_KEY_FILE="DATABASE_KEY",
        )

    def test_its_path_is_no_secret(self) -> None:
        self.patch("_SECRETS", {"API_KEY_": ("web",)})
        secrets = _Secrets({b"API_KEY_A_FILE": b"/run/secrets/a", b"API_KEY_B": b"hush-hush"}, ["API_KEY_"])
        self.assertEqual(secrets.redact(b"/run/secrets/a hush-hush"), b"/run/secrets/a [redacted API_KEY_B]")
        self.assertTrue(secrets.belong_to("web"))


class SecretFilesTest(SupervisorTest):
    def setUp(self) -> None:
        super().setUp()
        self.patch("_BACKOFF_FIRST", 0.05)
        self.patch("_SECRETS", {"API_KEY_": ("web",)})
        self.file = self.directory() / "secret"
        self.file.write_text("sesame-1\n")
        self.use_environment(API_KEY_A_FILE=str(self.file))

    def web(self, script: str = "env >&2", **fields: Any) -> _DaemonSpec:
        return _DaemonSpec("web", ["/bin/sh", "-c", script], **fields)

    def environ(self, *specs: _DaemonSpec) -> dict[str, str]:
        """What the last of these daemons gets, as the kernel has it."""
        path = self.directory() / "environ"
        last = _DaemonSpec(specs[-1].name, ["/bin/sh", "-c", f"cat /proc/self/environ >{path}"], env=specs[-1].env)
        self.tick_until_done(self.supervise(*specs[:-1], last))
        pairs = (one.split(b"=", 1) for one in path.read_bytes().split(b"\0") if one)
        return {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}


class Right(SecretFilesTest):
    def test_the_owner_gets_the_contents_and_not_the_path(self) -> None:
        environ = self.environ(self.web())
        self.assertEqual(environ["API_KEY_A"], "sesame-1")
        self.assertNotIn("API_KEY_A_FILE", environ)

    def test_no_other_daemon_gets_either(self) -> None:
        environ = self.environ(self.web(), _DaemonSpec("other", []))
        self.assertEqual([name for name in environ if name.startswith("API_KEY_")], [])

    def test_only_a_name_that_is_longer_than_the_prefix_has_a_file(self) -> None:
        self.use_environment(API_KEY_FILE=str(self.file), API_KEY__FILE=str(self.file))
        environ = self.environ(self.web())
        self.assertEqual(environ["API_KEY_FILE"], str(self.file), "it is an ordinary variable")
        self.assertNotIn("API_KEY", environ)

    def test_a_key_that_ends_in_file_is_passed_unread(self) -> None:
        self.patch("_SECRETS", {"CA_FILE": ("web",), "API_KEY_": ("web",)})
        os.environ["CA_FILE"] = "/no/such/file"
        self.assertEqual(self.environ(self.web())["CA_FILE"], "/no/such/file")

    def test_an_empty_variable_counts_as_unset(self) -> None:
        self.use_environment(API_KEY_A="plain-1", API_KEY_A_FILE="", API_KEY_B="", API_KEY_B_FILE=str(self.file))
        environ = self.environ(self.web())
        self.assertEqual((environ["API_KEY_A"], environ["API_KEY_B"]), ("plain-1", "sesame-1"))
        self.assertNotIn("API_KEY_A_FILE", environ)

    def test_the_row_may_name_the_file_too(self) -> None:
        self.use_environment()
        environ = self.environ(self.web(env={"API_KEY_A_FILE": str(self.file)}))
        self.assertEqual(environ["API_KEY_A"], "sesame-1")
        self.assertNotIn("API_KEY_A_FILE", environ)

    def test_one_line_end_is_removed_and_all_else_stays(self) -> None:
        for contents, expected in (
            (b"a", "a"),
            (b"a\n", "a"),
            (b"a\r\n", "a"),
            (b"a\n\n", "a\n"),
            (b"a\r\n\r\n", "a\r\n"),
            (b"a\r", "a\r"),
            (b" a=b \nc\n", " a=b \nc"),
            (b"\xff\xfe", "\udcff\udcfe"),
            (b"x" * 65536, "x" * 65536),
        ):
            with self.subTest(contents[:10]):
                self.file.write_bytes(contents)
                self.assertEqual(self.environ(self.web())["API_KEY_A"], expected)

    def test_each_start_reads_it_again_and_old_and_new_are_redacted(self) -> None:
        supervisor = self.supervise(self.web("echo got $API_KEY_A; echo knows sesame-1 sesame-2; exec sleep 60"))
        self.tick_until_logged(supervisor, "[web] knows [redacted API_KEY_A] sesame-2")
        self.file.write_text("sesame-2")
        self.assertTrue(supervisor.restart_daemon("web"))
        self.tick_until_logged(supervisor, "[web] knows [redacted API_KEY_A] [redacted API_KEY_A]")
        self.assertEqual(self.logged().count("[web] got [redacted API_KEY_A]\n"), 2)

    def test_starts_with_the_same_secret_add_nothing_to_what_is_redacted(self) -> None:
        supervisor = self.supervise(self.web("exec sleep 60"))
        inputs, [daemon] = supervisor._launcher._inputs, supervisor._daemons
        before = len(supervisor._log.secrets._variables)
        for _ in range(10):
            inputs.prepare(daemon.spec, None, [])
        self.assertEqual(len(supervisor._log.secrets._variables), before)

    def test_the_last_lines_of_its_owner_are_not_in_the_events(self) -> None:
        supervisor = self.supervise(self.web("echo something"))
        [daemon] = supervisor._daemons
        self.tick_until_done(supervisor)
        self.assertEqual(daemon.output.lines.last_lines, b"")

    def test_the_check_gets_it_too(self) -> None:
        check = ["/bin/sh", "-c", '[ "$API_KEY_A" = sesame-2 ] && [ -z "$API_KEY_A_FILE" ]']
        supervisor = self.supervise(self.web("exec sleep 60", check=check))
        self.assertFalse(supervisor.restart_daemon("web"))
        self.file.write_text("sesame-2")
        self.assertTrue(supervisor.restart_daemon("web"))

    def test_plan_says_what_is_wrong(self) -> None:
        self.file.unlink()
        specs = [self.web()]
        log = sidecar_init._Log(os.open(os.devnull, os.O_WRONLY), _Secrets({}, []))
        self.close_later(log.fd)
        self.assertEqual(
            sidecar_init._obstacles(specs, log),
            [f"web: cannot read API_KEY_A from {self.file}: No such file or directory"],
        )


class Refused(SecretFilesTest):
    def start(self, **fields: Any) -> _Supervisor:
        return self.supervise(self.web("echo it runs", **fields))

    def assert_backoff(self, reason: str, **fields: Any) -> None:
        supervisor = self.start(**fields)
        self.tick_until(supervisor, lambda: self.logged().count(reason) > 1, "two tries")
        [daemon] = supervisor._daemons
        status = json.loads(sidecar_init._json(daemon.describe()))
        self.assertEqual((status["state"], status["reason"]), ("backoff", reason))
        self.assertNotIn("it runs", self.logged())

    def test_without_a_secret_it_does_not_start_and_is_tried_again(self) -> None:
        def missing() -> None:
            self.file.unlink()

        for make, reason in (
            (lambda: self.file.write_text(""), "it is empty"),
            (lambda: self.file.write_text("\n"), "it is empty"),
            (lambda: self.file.write_text("\r\n"), "it is empty"),
            (lambda: self.file.write_text("sesame\0"), "it contains a NUL byte"),
            (lambda: self.file.write_text("x" * 65537), "it has more than 64 KiB"),
            (missing, "No such file or directory"),
            (self.file.mkdir, "it is not a regular file"),
        ):
            with self.subTest(reason):
                make()
                self.assert_backoff(f"cannot read API_KEY_A from {self.file}: {reason}")

    def test_it_starts_when_the_secret_is_there(self) -> None:
        self.file.unlink()
        supervisor = self.start()
        self.tick_until_logged(supervisor, "No such file or directory; trying again")
        self.file.write_text("sesame-1")
        self.tick_until_logged(supervisor, "[web] it runs")

    def test_a_path_that_is_not_absolute_is_not_repeated(self) -> None:
        """It may be the secret itself, under the wrong name."""
        os.environ["API_KEY_A_FILE"] = "sesame-0"
        self.assert_backoff("cannot read API_KEY_A: its path must be absolute")
        self.assertNotIn("sesame-0", self.logged())

    def test_both_variables_are_one_too_many(self) -> None:
        os.environ["API_KEY_A"] = "plain-1"
        supervisor = self.start()
        self.tick_until_done(supervisor)
        [daemon] = supervisor._daemons
        reason = "cannot use API_KEY_A: API_KEY_A_FILE is set too; unset one of them"
        self.assertEqual((daemon.state, daemon.history.reason, supervisor.exit_code()), ("failed", reason, 126))
        self.assertNotIn("it runs", self.logged())

    def test_so_they_are_if_the_row_sets_one_of_them(self) -> None:
        supervisor = self.start(env={"API_KEY_A": "plain-1"})
        self.tick_until_done(supervisor)
        self.assertIn("cannot start web: cannot use API_KEY_A", self.logged())

    def test_an_owner_that_is_refused_stops_no_other(self) -> None:
        self.file.unlink()
        supervisor = self.supervise(self.web("echo it runs"), _DaemonSpec("other", ["/bin/sh", "-c", "echo up"]))
        self.tick_until_logged(supervisor, "[other] up")
        self.assertNotIn("it runs", self.logged())


if __name__ == "__main__":
    unittest.main()
