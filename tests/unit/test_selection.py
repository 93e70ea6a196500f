"""Which daemons run: what the environment asks for, in the order of the table."""

from __future__ import annotations

import unittest

import sidecar_init
from sidecar_init import _DaemonSpec, _selected_daemons
from tests.unit.support import UnitTest

NAMES = ["egress", "pipelock", "git-gate", "git-http", "supervise"]
NEW, OLD = "BOT_BOTTLE_SIDECAR_DAEMONS", "CLAUDE_BOTTLE_SIDECAR_DAEMONS"


def selected(**env: str) -> list[str]:
    return [spec.name for spec in _selected_daemons(env)]


class Selection(UnitTest):
    def test_unset_empty_and_blank_mean_all(self) -> None:
        for env in ({}, {NEW: ""}, {NEW: "  "}, {OLD: ""}):
            with self.subTest(env):
                self.assertEqual(selected(**env), NAMES)

    def test_the_table_decides_the_order(self) -> None:
        self.assertEqual(selected(**{NEW: "supervise,egress"}), ["egress", "supervise"])

    def test_spaces_and_empty_entries_are_passed_over(self) -> None:
        self.assertEqual(selected(**{NEW: " egress , ,pipelock\t,"}), ["egress", "pipelock"])

    def test_a_name_twice_is_one_daemon(self) -> None:
        self.assertEqual(selected(**{NEW: "egress,egress"}), ["egress"])

    def test_unknown_names_are_passed_over(self) -> None:
        self.assertEqual(selected(**{NEW: "egress,nobody"}), ["egress"])
        self.assertEqual(selected(**{NEW: "nobody"}), [])

    def test_commas_alone_select_nothing(self) -> None:
        self.assertEqual(selected(**{NEW: ","}), [])

    def test_the_older_variable_is_read_where_the_newer_is_unset(self) -> None:
        self.assertEqual(selected(**{OLD: "git-http"}), ["git-http"])
        self.assertEqual(selected(**{OLD: "git-http", NEW: "egress"}), ["egress"])
        self.assertEqual(selected(**{OLD: "git-http", NEW: ""}), NAMES)

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


class ShippedTable(unittest.TestCase):
    def test_its_rows_are_the_contract(self) -> None:
        rows = [(s.name, " ".join(s.argv), s.port, s.user, s.after, s.restart) for s in sidecar_init._DAEMONS]
        pipelock = "/usr/local/bin/pipelock run --config /etc/pipelock.yaml --listen 0.0.0.0:8888"
        self.assertEqual(
            rows,
            [
                ("egress", "/bin/sh /app/egress-entrypoint.sh", 9099, "mitmproxy", (), "always"),
                ("pipelock", pipelock, 8888, None, ("egress",), "always"),
                ("git-gate", "/bin/sh /git-gate-entrypoint.sh", 9418, None, (), "always"),
                ("git-http", "python3 /app/git_http_backend.py", 9420, None, (), "always"),
                ("supervise", "python3 /app/supervise_server.py", 9100, None, (), "always"),
            ],
        )
        checks = [" ".join(spec.check) for spec in sidecar_init._DAEMONS if spec.check]
        self.assertEqual(checks, ["/usr/local/bin/pipelock check --config /etc/pipelock.yaml"])

    def test_hup_reloads_egress_and_usr1_restarts_pipelock(self) -> None:
        self.assertEqual(sidecar_init._SIGNALS, {"HUP": ("forward", "egress"), "USR1": ("restart", "pipelock")})


class Row(unittest.TestCase):
    def test_name_and_command_are_enough(self) -> None:
        spec = _DaemonSpec("a", ["true", "x"])
        self.assertEqual((spec.name, spec.argv, spec.restart), ("a", ("true", "x"), "never"))
        self.assertEqual((spec.user, spec.port, spec.after, spec.check), (None, None, (), None))

    def test_a_row_cannot_change(self) -> None:
        spec = _DaemonSpec("a", ["true"])
        for field in ("name", "argv", "restart", "unknown"):
            with self.subTest(field), self.assertRaises(AttributeError):
                setattr(spec, field, "other")


if __name__ == "__main__":
    unittest.main()
