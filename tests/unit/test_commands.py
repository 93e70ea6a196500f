"""The command line without a supervisor: what it says, how it ends, and what it does not import."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import main, mock

import sidecar_init
from tests.support import MODULE
from tests.unit.support import UnitTest

TIME = "2026-11-21T03:04:05.678Z"
DAEMON = {
    "name": "web", "state": "running", "ready": True, "pid": 12, "port": 80, "user": None, "started_at": TIME,
    "restarts": 2, "crash_looping": False, "next_start_at": None, "last_exit": "code 7",
}  # fmt: skip
TABLE = """
[[daemon]]
name = "db"
argv = ["sleep", "9"]

[[daemon]]
name = "web"
argv = ["sh"]
after = ["db"]
port = 80
"""


class CommandTest(UnitTest):
    def setUp(self) -> None:
        self.path = self.directory()
        self.use_environment(BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.path), TZ="UTC", PATH="/usr/bin:/bin")

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = sidecar_init.main(list(arguments))
            except SystemExit as end:  # argparse
                code = int(str(end.code or 0))
        return code, out.getvalue(), err.getvalue()

    def write_status(self, pid: int, **more: object) -> None:
        """What a supervisor of this pid would have written."""
        status = {
            "pid": pid,
            "start_ticks": sidecar_init._start_ticks(pid),
            "state": "running",
            "updated_at": TIME,
            "signals": {"HUP": {"forward": "web"}, "USR1": {"restart": "db"}},
            "daemons": [DAEMON],
        }
        (self.path / "status.json").write_text(json.dumps({**status, **more}))

    def write_events(self, *events: Mapping[str, object]) -> None:
        lines = [json.dumps({"time": TIME, "pid": 12, **event}) + "\n" for event in events]
        (self.path / "events.jsonl").write_text("".join(lines))

    def stand_in(self, script: str) -> int:
        """A process that behaves as a supervisor towards signals, as far as the script goes."""
        heeded = (
            "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv('/bin/sh', sys.argv[1:])"
        )
        command = [sys.executable, "-ISc", heeded, "sh", "-c", script]  # under nohup, a shell could not trap HUP
        child = subprocess.Popen(command, cwd=self.path, stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()  # its traps are set
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.addCleanup(child.stdout.close)
        return child.pid


class Usage(CommandTest):
    def test_version(self) -> None:
        self.assertEqual(self.run_command("--version"), (0, f"sidecar-init {sidecar_init.__version__}\n", ""))

    def test_help_names_every_command(self) -> None:
        code, out, err = self.run_command("--help")
        self.assertEqual((code, err), (0, ""))
        for command in ("plan", "status", "health", "events", "apply", "--table", "--version"):
            self.assertIn(command, out)

    def test_what_is_unknown_is_one_line_that_leads_to_the_help(self) -> None:
        for arguments in (
            "stop", "--unknown", "status --unknown", "apply", "events -n x", "events -n -1",
            "apply web --timeout -1", "apply web --timeout nan", "--table", "--table x status", "status --table x",
        ):  # fmt: skip
            with self.subTest(arguments):
                code, out, err = self.run_command(*arguments.split())
                self.assertEqual((code, out), (2, ""))
                self.assertRegex(err, r"\Acannot understand the command line: .+; see .+ --help\n\Z")


class WithoutSupervisor(CommandTest):
    def test_each_command_says_that_there_is_none(self) -> None:
        expected = f"cannot find a supervisor: there is no {self.path}/status.json\n"
        for arguments in (["status"], ["status", "--json"], ["health"], ["apply", "web"]):
            with self.subTest(arguments):
                self.assertEqual(self.run_command(*arguments), (1, "", expected))

    def test_events_say_that_there_are_none(self) -> None:
        expected = f"cannot find events: there is no {self.path}/events.jsonl\n"
        self.assertEqual(self.run_command("events"), (1, "", expected))

    def test_a_state_that_is_turned_off_is_told(self) -> None:
        os.environ["BOT_BOTTLE_SIDECAR_STATE_DIR"] = ""
        for command in (["status"], ["health"], ["events"], ["apply", "web"]):
            code, out, err = self.run_command(*command)
            self.assertEqual((code, out), (1, ""))
            self.assertEqual(err, "cannot read the state: BOT_BOTTLE_SIDECAR_STATE_DIR is empty, so none is kept\n")

    def test_a_file_that_is_no_status_is_told(self) -> None:
        living = {"pid": os.getpid(), "start_ticks": sidecar_init._start_ticks(os.getpid()), "signals": {}}
        wrong: list[object] = [[{}], [7], {"a": 1}, [{**DAEMON, "started_at": 5}]]
        forged = [json.dumps({**living, "daemons": daemons}) for daemons in wrong]
        for text in ("", "{", "[]", "{}", "7", '{"pid": 1}', "\xff", "[" * 100_000, *forged):
            with self.subTest(text):
                (self.path / "status.json").write_bytes(text.encode("latin-1"))
                expected = f"cannot use {self.path}/: what is there was not written by a supervisor\n"
                self.assertEqual(self.run_command("status"), (1, "", expected))

    def test_what_is_forged_steers_no_terminal(self) -> None:
        self.write_status(os.getpid(), start_ticks=1, updated_at="\x1b[2J")
        _, out, err = self.run_command("status")
        self.assertNotIn("\x1b", out + err)

    def test_an_answer_that_cannot_be_written_is_told(self) -> None:
        self.write_status(os.getpid())
        for stdout, reason in ((">/dev/full", "No space left on device"), (">&-", "stdout is closed")):
            with self.subTest(stdout):
                script = f"exec {sys.executable} -ISB {MODULE} status {stdout}"
                answer = subprocess.run(["/bin/sh", "-c", script], stderr=subprocess.PIPE, text=True)
                told = (answer.returncode, answer.stderr)
                self.assertEqual(told, (1, f"cannot write the answer: {reason}\n"))

    def test_one_that_is_gone_is_told_with_what_it_last_wrote(self) -> None:
        self.write_status(os.getpid(), start_ticks=1)  # the pid is another process's by now
        code, out, err = self.run_command("status")
        gone = f"supervisor {os.getpid()} is gone; it last wrote at 2026-11-21T03:04:05.678Z\n"
        self.assertEqual((code, err), (1, f"cannot vouch for this: {gone}"))
        self.assertIn("web", out)
        for arguments in (["health"], ["apply", "web"]):
            self.assertEqual(self.run_command(*arguments), (1, "", f"cannot reach the supervisor: {gone}"))
        self.assertTrue(json.loads(self.run_command("status", "--json")[1])["stale"])

    def test_no_daemon_selected_is_nothing_to_do(self) -> None:
        env = {**os.environ, "BOT_BOTTLE_SIDECAR_DAEMONS": "nobody"}
        ended = subprocess.run([sys.executable, str(MODULE)], env=env, capture_output=True, text=True)
        expected = "unknown daemons ignored: nobody", "no daemons selected; nothing to do"
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertEqual(ended.stdout.splitlines(), [f"sidecar-init: {line}" for line in expected])

    def test_daemons_are_told_of_the_state_wherever_they_go(self) -> None:
        table = self.path / "table.toml"
        table.write_text('[[daemon]]\nname = "a"\nargv = ["sh", "-c", "cd /; echo $SIDECAR_STATUS_FILE"]\n')
        command = [sys.executable, "-ISB", str(MODULE), "--table", str(table)]
        env = {**os.environ, "BOT_BOTTLE_SIDECAR_STATE_DIR": "state"}
        ended = subprocess.run(command, env=env, cwd=self.path, capture_output=True, text=True)
        self.assertIn(f"[a] {self.path}/state/status.json\n", ended.stdout)


class Status(CommandTest):
    def test_it_is_a_table(self) -> None:
        self.write_status(os.getpid())
        self.assertEqual(
            self.run_command("status"),
            (
                0,
                "NAME  STATE    READY  PID  UP SINCE             RESTARTS  LAST EXIT\n"
                "web   running  yes    12   2026-11-21 03:04:05  2         code 7\n",
                "",
            ),
        )

    def test_what_is_down_and_loops_is_shown_as_such(self) -> None:
        down = {**DAEMON, "state": "backoff", "ready": False, "pid": None, "crash_looping": True, "next_start_at": TIME}
        self.write_status(os.getpid(), daemons=[down])
        line = self.run_command("status")[1].splitlines()[1]
        self.assertEqual(" ".join(line.split()), "web crash-looping no - back at 03:04:05 2 code 7")

    def test_it_is_json_for_tools(self) -> None:
        self.write_status(os.getpid())
        status = json.loads(self.run_command("status", "--json")[1])
        self.assertEqual((status["daemons"], status["stale"]), ([DAEMON], False))


class Health(CommandTest):
    def test_a_supervisor_that_does_not_answer_is_unhealthy(self) -> None:
        pid = self.stand_in("trap '' USR2; echo; exec sleep 60")
        self.write_status(pid)
        now = itertools.count(1000.0, 0.3)  # each look at the clock is this much later
        with mock.patch("time.monotonic", lambda: next(now)):
            answer = self.run_command("health")
        self.assertEqual(answer, (1, "", f"unhealthy: supervisor {pid} does not answer\n"))

    def check(self, code: int, text: str, **more: object) -> None:
        pid = self.stand_in("trap 'cp status.json new; mv new status.json' USR2; echo; while :; do sleep 0.01; done")
        self.write_status(pid, **more)
        self.assertEqual(self.run_command("health"), (code, *(("", text) if code else (text, ""))))

    def test_all_ready_is_healthy(self) -> None:
        self.check(0, "healthy: 1 daemons run and are ready\n")

    def test_one_that_is_not_ready_is_named(self) -> None:
        sick = {**DAEMON, "name": "db", "ready": False, "state": "backoff"}
        self.check(1, "unhealthy: db is backoff, not ready\n", daemons=[DAEMON, sick])

    def test_a_shutdown_is_not_healthy(self) -> None:
        self.check(1, "unhealthy: the supervisor is shutting-down\n", state="shutting-down")


class Events(CommandTest):
    def setUp(self) -> None:
        super().setUp()
        self.write_events(*({"event": "started", "daemon": "web", "number": n} for n in range(30)))

    def test_it_shows_the_last_twenty(self) -> None:
        lines = self.run_command("events")[1].splitlines()
        self.assertEqual(len(lines), 20)
        self.assertEqual(lines[0], "2026-11-21 03:04:05  started       web          pid 12, number 10")

    def test_it_shows_as_many_as_one_likes(self) -> None:
        for n, expected in ((0, 0), (1, 1), (29, 29), (1000, 30)):
            self.assertEqual(len(self.run_command("events", "-n", str(n))[1].splitlines()), expected)

    def test_it_reads_on_in_the_older_file(self) -> None:
        (self.path / "events.jsonl").rename(self.path / "events.jsonl.1")
        self.write_events({"event": "stopped", "daemon": "web"})
        lines = self.run_command("events", "-n", "2")[1].splitlines()
        self.assertIn("number 29", lines[0])
        self.assertIn("stopped", lines[1])

    def test_json_is_passed_on_unchanged(self) -> None:
        file = (self.path / "events.jsonl").read_text()
        self.assertEqual(self.run_command("events", "--json", "-n", "1000"), (0, file, ""))

    def test_a_half_written_line_is_left_for_later(self) -> None:
        with open(self.path / "events.jsonl", "a") as file:
            file.write('{"time": "2026')
        self.assertIn("number 29", self.run_command("events", "-n", "1")[1])

    def test_last_lines_are_shown_below_their_event(self) -> None:
        last_lines = ["a", "b\033[2J"]
        self.write_events({"event": "exited", "daemon": "web", "code": 7, "signal": None, "last_lines": last_lines})
        first = "2026-11-21 03:04:05  exited        web          pid 12, code 7"
        lines = self.run_command("events")[1].splitlines()
        self.assertEqual(lines, [first, "    | a", "    | b\\u001b[2J"])

    def test_what_is_no_event_is_shown_as_it_is(self) -> None:
        for line in ("no json", "[]", "{}", '{"time": 3}'):
            (self.path / "events.jsonl").write_text(line + "\n")
            self.assertEqual(self.run_command("events"), (0, line + "\n", ""))

    def test_a_reader_that_leaves_is_no_error(self) -> None:
        self.write_events(*({"event": "started", "daemon": "web"} for _ in range(5000)))  # more than a pipe holds
        command = f"{sys.executable} {MODULE} events -n 5000 | head -n 1"
        ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=20, input="")
        self.assertEqual((len(ended.stdout.splitlines()), ended.stderr), (1, ""))


class Apply(CommandTest):
    def answered(self, signal_name: str, *events: Mapping[str, object]) -> int:
        """A supervisor that answers this signal by these events."""
        self.write_events(*events)
        (self.path / "events.jsonl").rename(self.path / "answer")
        script = f"trap 'cat answer >> events.jsonl' {signal_name}; echo; while :; do sleep 0.01; done"
        pid = self.stand_in(script)
        self.write_status(pid, daemons=[DAEMON, {**DAEMON, "name": "db"}])
        return pid

    def test_forward_is_done_when_it_was_delivered(self) -> None:
        self.answered("HUP", {"event": "signal", "daemon": "web", "forwarded": True})
        self.assertEqual(self.run_command("apply", "web"), (0, "web has got SIGHUP (pid 12)\n", ""))

    def test_forward_that_was_dropped_is_told(self) -> None:
        self.answered("HUP", {"event": "signal", "daemon": "web", "forwarded": False, "reason": "web is not running"})
        self.assertEqual(self.run_command("apply", "web"), (1, "", "cannot apply web: web is not running\n"))

    def test_restart_is_done_when_the_new_one_is_ready(self) -> None:
        self.answered("USR1", *({"event": kind, "daemon": "db"} for kind in ("exited", "restarted", "ready")))
        self.assertEqual(self.run_command("apply", "db"), (0, "db restarted and ready (pid 12)\n", ""))

    def test_a_check_that_failed_is_told(self) -> None:
        self.answered("USR1", {"event": "check-failed", "daemon": "db", "reason": "its check exited with code 3"})
        expected = "cannot apply db: its check exited with code 3; see the log of db\n"
        self.assertEqual(self.run_command("apply", "db"), (1, "", expected))

    def test_one_that_does_not_become_ready_is_told(self) -> None:
        kinds = (("ready", "db"), ("restarted", "db"), ("ready", "web"))  # the old one, the new one, another
        self.answered("USR1", *({"event": event, "daemon": daemon} for event, daemon in kinds))
        expected = "cannot apply db: it is not ready after 0.3 s\n"
        self.assertEqual(self.run_command("apply", "db", "--timeout", "0.3"), (1, "", expected))

    def test_a_supervisor_that_does_not_answer_is_told(self) -> None:
        self.answered("USR1", {"event": "ready", "daemon": "web"})
        expected = "cannot apply db: the supervisor has not answered after 0.3 s\n"
        with mock.patch.object(sidecar_init, "_read_events", wraps=sidecar_init._read_events) as reads:
            self.assertEqual(self.run_command("apply", "db", "--timeout", "0.3"), (1, "", expected))
        self.assertLess(reads.call_count, 10, "the events are read only when they have changed")

    def test_what_no_signal_reloads_is_told(self) -> None:
        self.write_status(os.getpid())
        expected = "cannot apply nobody: no signal reloads it; the table's signals reload web, db\n"
        self.assertEqual(self.run_command("apply", "nobody"), (1, "", expected))

    def test_what_is_not_selected_is_told(self) -> None:
        self.write_status(os.getpid())
        self.assertEqual(self.run_command("apply", "db"), (1, "", "cannot apply db: it is not selected\n"))


class Plan(CommandTest):
    def setUp(self) -> None:
        super().setUp()
        for name in ("_DAEMONS", "_SECRETS", "_SIGNALS"):  # they are put back after the test
            self.patch(name, getattr(sidecar_init, name))
        self.table = self.path / "table.toml"
        self.table.write_text(TABLE)

    def plan(self) -> tuple[int, list[str]]:
        code, out, err = self.run_command("plan", "--table", str(self.table))
        self.assertEqual(err, "")
        return code, out.splitlines()

    def test_it_shows_what_would_run(self) -> None:
        expected = [
            "ORDER  NAME  RUNS AS       PORT  AFTER  RESTART  COMMAND",
            "1      db    (supervisor)  -     -      never    sleep 9",
            "2      web   (supervisor)  80    db     never    sh",
        ]
        self.assertEqual(self.plan(), (0, expected))

    def test_the_table_may_come_before_the_command(self) -> None:
        self.assertEqual(self.run_command("--table", str(self.table), "plan")[0], 0)

    def test_it_shows_the_selected_ones_alone(self) -> None:
        os.environ["BOT_BOTTLE_SIDECAR_DAEMONS"] = "web,nobody"
        code, lines = self.plan()
        row = "1      web   (supervisor)  80    -      never    sh"
        self.assertEqual((code, lines[1:]), (1, [row, "nobody: no such daemon in the table"]))

    def test_what_is_missing_is_named(self) -> None:
        self.table.write_text('[[daemon]]\nname = "db"\nargv = ["/nowhere/db"]\ncheck = ["/etc/passwd"]\n')
        code, lines = self.plan()
        expected = ["/nowhere/db: No such file or directory", "/etc/passwd: Permission denied"]
        self.assertEqual((code, lines[2:]), (1, [f"db: cannot execute {problem}" for problem in expected]))

    def test_a_secret_in_a_command_is_redacted(self) -> None:
        os.environ["API_KEY_A"] = "hush-hush"
        self.table.write_text('[[daemon]]\nname = "db"\nargv = ["sleep", "hush-hush"]\n[secrets]\nAPI_KEY_ = "db"\n')
        _, lines = self.plan()
        self.assertTrue(lines[1].endswith("sleep [redacted API_KEY_A]"), lines)


class Imports(CommandTest):
    def test_nothing_but_the_standard_library_is_imported(self) -> None:
        names = set()
        for node in ast.walk(ast.parse(MODULE.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        self.assertLessEqual(names, sys.stdlib_module_names)
        self.assertGreater(len(names), 10)

    def test_pid_1_does_not_pay_for_the_commands(self) -> None:
        script = (
            "import sys; sys.path.insert(0, sys.argv.pop()); import sidecar_init as s;"
            "s._DAEMONS = (s._DaemonSpec('quick', ['/bin/sh', '-c', 'exit 3']),);"
            "code = s.main([]); print('\\n', *sys.modules); sys.exit(code)"
        )
        ended = subprocess.run([sys.executable, "-ISc", script, str(MODULE.parent)], capture_output=True, text=True)
        self.assertEqual((ended.returncode, ended.stderr), (3, ""))
        costly = {"argparse", "json", "tomllib", "subprocess", "typing", "dataclasses", "re", "enum", "socket"}
        imported = set(ended.stdout.splitlines()[-1].split())
        self.assertIn("ctypes", imported)  # it has been a whole life
        self.assertEqual(imported & costly, set())
        self.assertTrue((Path(self.path) / "status.json").exists())


if __name__ == "__main__":
    main()
