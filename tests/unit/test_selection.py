"""Which daemons run: what the environment asks for, in the order of the table."""

from __future__ import annotations

import os
import signal
import unittest
from unittest import mock

import sidecar_init
from sidecar_init import _DaemonSpec, _row_signal, _selected_daemons, _setting, _state_directories
from tests.unit.support import UnitTest

NAMES = ["egress", "pipelock", "git-gate", "git-http", "supervise"]
NEW, OLD = "BOT_BOTTLE_SIDECAR_DAEMONS", "CLAUDE_BOTTLE_SIDECAR_DAEMONS"
NEUTRAL = "SIDECAR_INIT_DAEMONS"


def selected(**env: str) -> list[str]:
    return [spec.name for spec in _selected_daemons(env)]


class Selection(UnitTest):
    def test_unset_empty_and_blank_mean_all(self) -> None:
        for env in ({}, {NEW: ""}, {NEW: "  "}, {OLD: ""}):
            with self.subTest(env):
                self.assertEqual(selected(**env), NAMES)

    def test_the_table_decides_the_order(self) -> None:
        self.assertEqual(selected(**{NEW: "supervise,egress"}), ["egress", "supervise"])

    def test_spaces_and_empty_entries_are_ignored(self) -> None:
        self.assertEqual(selected(**{NEW: " egress , ,pipelock\t,"}), ["egress", "pipelock"])

    def test_a_name_twice_is_one_daemon(self) -> None:
        self.assertEqual(selected(**{NEW: "egress,egress"}), ["egress"])

    def test_unknown_names_are_ignored(self) -> None:
        self.assertEqual(selected(**{NEW: "egress,other"}), ["egress"])
        self.assertEqual(selected(**{NEW: "other"}), [])

    def test_commas_alone_select_nothing(self) -> None:
        self.assertEqual(selected(**{NEW: ","}), [])

    def test_the_older_variable_is_read_if_the_newer_is_unset(self) -> None:
        self.assertEqual(selected(**{OLD: "git-http"}), ["git-http"])
        self.assertEqual(selected(**{OLD: "git-http", NEW: "egress"}), ["egress"])
        self.assertEqual(selected(**{OLD: "git-http", NEW: ""}), NAMES)

    def test_the_neutral_variable_is_read_if_both_others_are_unset(self) -> None:
        self.assertEqual(selected(**{NEUTRAL: "git-http"}), ["git-http"])
        for other in (OLD, NEW):
            self.assertEqual(selected(**{NEUTRAL: "git-http", other: "egress"}), ["egress"])
            self.assertEqual(selected(**{NEUTRAL: "git-http", other: ""}), NAMES)

    def test_the_table_is_looked_up_when_it_is_used(self) -> None:
        self.patch("_DAEMONS", (_DaemonSpec("other", ["true"]),))
        self.assertEqual(selected(), ["other"])

    def test_another_table_can_be_given(self) -> None:
        table = [_DaemonSpec("a", ["true"]), _DaemonSpec("b", ["true"])]
        self.assertEqual(_selected_daemons({NEW: "b,egress"}, table), table[1:])
        self.assertEqual(_selected_daemons({NEW: "egress"}, []), [])

    def test_the_result_is_a_list_of_its_own(self) -> None:
        _selected_daemons({}).clear()
        self.assertEqual(selected(), NAMES)


class OtherSettings(UnitTest):
    def test_each_has_a_neutral_name_that_is_read_if_the_other_is_unset(self) -> None:
        for name in ("RESTART", "STATE_DIR"):
            own, neutral = f"BOT_BOTTLE_SIDECAR_{name}", f"SIDECAR_INIT_{name}"
            for env, expected in (
                ({}, ""),
                ({neutral: "neutral"}, "neutral"),
                ({own: "own", neutral: "neutral"}, "own"),
                ({own: "", neutral: "neutral"}, ""),
                ({f"CLAUDE_BOTTLE_SIDECAR_{name}": "older"}, ""),
            ):
                with self.subTest(name, env=env):
                    self.assertEqual(_setting(env, name), expected)

    def directories(self, uid: int, **env: str) -> list[str]:
        self.use_environment(**env)
        with mock.patch("os.geteuid", return_value=uid):
            return _state_directories()

    def test_the_state_of_an_ordinary_user_may_be_in_tmp(self) -> None:
        self.assertEqual(self.directories(0), ["/run/sidecar-init"])
        self.assertEqual(self.directories(1000), ["/run/sidecar-init", "/tmp/sidecar-init-1000"])

    def test_a_state_directory_that_was_chosen_is_the_only_one(self) -> None:
        for name in ("BOT_BOTTLE_SIDECAR_STATE_DIR", "SIDECAR_INIT_STATE_DIR"):
            self.assertEqual(self.directories(1000, **{name: "/var/state"}), ["/var/state"])
            self.assertEqual(self.directories(1000, **{name: "state"}), [os.path.abspath("state")])
            self.assertEqual(self.directories(1000, **{name: ""}), [])


class ShippedTable(unittest.TestCase):
    def test_its_rows_are_the_contract(self) -> None:
        rows = [(s.name, " ".join(s.argv), s.port, s.user, s.after, s.restart) for s in sidecar_init._DAEMONS]
        pipelock = "/usr/local/bin/pipelock run --config /etc/pipelock.yaml --listen 0.0.0.0:8888"
        self.assertEqual(
            rows,
            [
                ("egress", "/bin/sh /app/egress-entrypoint.sh", 9099, "mitmproxy", (), "always"),
                ("pipelock", pipelock, 8888, "pipelock", ("egress",), "always"),
                ("git-gate", "/bin/sh /git-gate-entrypoint.sh", 9418, "git-gate", (), "always"),
                ("git-http", "python3 /app/git_http_backend.py", 9420, "git-gate", (), "always"),
                ("supervise", "python3 /app/supervise_server.py", 9100, "supervise", (), "always"),
            ],
        )
        checks = [" ".join(spec.check) for spec in sidecar_init._DAEMONS if spec.check]
        self.assertEqual(checks, ["/usr/local/bin/pipelock check --config /etc/pipelock.yaml"])
        files = [(spec.name, spec.files) for spec in sidecar_init._DAEMONS if spec.files]
        key = {"GIT_GATE_SSH_KEY": "/etc/git-gate/ssh/id"}
        self.assertEqual(files, [("git-gate", key), ("git-http", key)])

    def test_hup_reloads_egress_and_usr1_restarts_pipelock(self) -> None:
        self.assertEqual(sidecar_init._SIGNALS, {"HUP": ("forward", "egress"), "USR1": ("restart", "pipelock")})


class RowSignals(UnitTest):
    """The signal that restarts a row has a fixed number, which docker kill understands."""

    def signals(self, rows: int) -> list[int | None]:
        self.patch("_DAEMONS", tuple(_DaemonSpec(f"d{row}", ["true"]) for row in range(rows)))
        return [_row_signal(f"d{row}") for row in range(rows)]

    def valid(self, numbers: set[int]) -> None:
        kernel = mock.Mock(wraps=signal)
        kernel.valid_signals.return_value = numbers
        self.patch("signal", kernel)

    def test_the_first_row_has_34_and_the_31st_64(self) -> None:
        self.valid({*range(1, 65)})
        self.assertEqual(self.signals(33), [*range(34, 65), None, None])

    def test_a_libc_that_keeps_34_for_itself_leaves_row_0_without_and_moves_no_other(self) -> None:
        self.valid({*range(1, 65)} - {34})
        self.assertEqual(self.signals(3), [None, 35, 36])

    def test_a_daemon_that_is_not_in_the_table_has_none(self) -> None:
        self.assertIsNone(_row_signal("other"))


class Row(unittest.TestCase):
    def test_name_and_command_are_enough(self) -> None:
        spec = _DaemonSpec("a", ["true", "x"])
        self.assertEqual((spec.name, spec.argv, spec.restart), ("a", ("true", "x"), "never"))
        self.assertEqual((spec.user, spec.port, spec.after, spec.check, spec.ready), (None, None, (), (), ()))
        self.assertEqual((spec.oneshot, spec.essential, spec.prefix), (False, False, True))
        self.assertEqual((spec.cwd, spec.env), (None, {}))
        self.assertEqual((spec.stop_signal, spec.stop_to, spec.stop_grace), (signal.SIGTERM, "group", None))

    def test_what_stop_does_not_say_has_its_default(self) -> None:
        for stop, expected in (
            ({"signal": "QUIT"}, (signal.SIGQUIT, "group", None)),
            ({"to": "leader"}, (signal.SIGTERM, "leader", None)),
            ({"grace": 0}, (signal.SIGTERM, "group", 0)),
            ({"signal": "INT", "to": "leader", "grace": 2.5}, (signal.SIGINT, "leader", 2.5)),
        ):
            with self.subTest(stop):
                spec = _DaemonSpec("a", ["true"], stop=stop)
                self.assertEqual((spec.stop_signal, spec.stop_to, spec.stop_grace), expected)

    def test_a_row_cannot_change(self) -> None:
        spec = _DaemonSpec("a", ["true"])
        for field in ("name", "argv", "restart", "stop_grace", "env"):
            with self.subTest(field), self.assertRaises(AttributeError):
                setattr(spec, field, "other")


if __name__ == "__main__":
    unittest.main()
