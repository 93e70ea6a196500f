"""The command line: what it says, how it exits, what it believes, and what it does not import."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import itertools
import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import sidecar_init
from tests.support import MODULE, wait_until
from tests.unit.support import UnitTest

TIME = "2026-11-21T03:04:05.678Z"
DAEMON: dict[str, Any] = {
    "name": "web", "state": "running", "ready": True, "reason": None, "pid": 12, "port": 80, "signal": 35,
    "user": None, "started_at": TIME, "starts": 3, "restarts": 2, "crash_looping": False, "succeeded": False,
    "next_start_at": None,
    "last_exit": "exited with status 7", "asked": 4, "answered": 4, "answer": "web restarted", "refused": False,
}  # fmt: skip
DOWN = {**DAEMON, "ready": False, "pid": None, "reason": "exited with status 7"}
STAND_IN = """
import os, signal, sys
for number in sys.argv[1:]:
    signal.signal(int(number), lambda *_: os.replace("answer", "status.json") if os.path.exists("answer") else None)
print(flush=True)
while True:
    signal.pause()
"""
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
        self.addCleanup(time.tzset)  # the last one: TZ has its old value again
        self.use_environment(BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.path), TZ="UTC", PATH="/usr/bin:/bin")
        time.tzset()

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = sidecar_init.main(list(arguments))
            except SystemExit as end:  # argparse
                code = int(str(end.code or 0))
        return code, out.getvalue(), err.getvalue()

    def write_status(self, of: int, /, *, to: str = "status.json", **more: object) -> None:
        """What a supervisor of this pid would have written."""
        status = {
            "pid": of,
            "start_ticks": sidecar_init._start_ticks(of),
            "state": "running",
            "heartbeats": 7,
            "updated_at": TIME,
            "signals": {"HUP": {"forward": "web"}, "USR1": {"restart": "db"}},
            "daemons": [DAEMON],
        }
        (self.path / to).write_text(json.dumps({**status, **more}))

    def write_events(self, *events: Mapping[str, object]) -> None:
        lines = [json.dumps({"time": TIME, "pid": 12, **event}) + "\n" for event in events]
        (self.path / "events.jsonl").write_text("".join(lines))

    def stand_in(self, *numbers: int) -> int:
        """A process that answers these signals as a supervisor does: by the status that `answer` holds, if any."""
        command = [sys.executable, "-ISc", STAND_IN, *map(str, numbers)]
        child = subprocess.Popen(command, cwd=self.path, stdout=subprocess.PIPE)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        assert child.stdout
        self.addCleanup(child.stdout.close)
        child.stdout.readline()
        return child.pid


class Usage(CommandTest):
    def test_version(self) -> None:
        self.assertEqual(self.run_command("--version"), (0, f"sidecar-init {sidecar_init.__version__}\n", ""))

    def test_help_names_every_command(self) -> None:
        code, out, err = self.run_command("--help")
        self.assertEqual((code, err), (0, ""))
        for command in ("plan", "status", "health", "events", "apply", "restart", "--table", "--version"):
            self.assertIn(command, out)

    def test_what_is_unknown_is_one_line_that_leads_to_the_help(self) -> None:
        for arguments in (
            "stop", "--unknown", "status --unknown", "apply", "apply web db", "restart", "events -n x", "events -n -1",
            "apply web --timeout -1", "apply web --timeout nan", "restart web --timeout inf", "health web",
            "--table", "--table x status", "status --table x",
        ):  # fmt: skip
            with self.subTest(arguments):
                code, out, err = self.run_command(*arguments.split())
                self.assertEqual((code, out), (2, ""))
                self.assertRegex(err, r"\Acannot understand the command line: .+; see .+ --help\n\Z")
                self.assertNotRegex(err, r"\b_|lambda|float|int\b", "no name of the program's own")


NEED_A_SUPERVISOR = (["status"], ["status", "--json"], ["health"], ["apply", "web"], ["restart", "web"])


class WithoutSupervisor(CommandTest):
    def test_each_command_says_that_there_is_none(self) -> None:
        expected = f"cannot find a supervisor: there is no {self.path}/status.json\n"
        for arguments in NEED_A_SUPERVISOR:
            with self.subTest(arguments):
                self.assertEqual(self.run_command(*arguments), (1, "", expected))

    def test_events_say_that_there_are_none(self) -> None:
        expected = f"cannot find a supervisor: there is no {self.path}/status.json\n"
        self.assertEqual(self.run_command("events"), (1, "", expected))
        self.write_status(os.getpid())
        expected = "cannot find events: no supervisor has written any\n"
        self.assertEqual(self.run_command("events"), (1, "", expected))

    def test_a_state_that_is_turned_off_is_reported(self) -> None:
        for name in ("BOT_BOTTLE_SIDECAR_STATE_DIR", "SIDECAR_INIT_STATE_DIR"):
            self.use_environment(**{name: ""})
            for command in (*NEED_A_SUPERVISOR, ["events"]):
                expected = "cannot read the state: the state directory is set to an empty value, so no state is kept\n"
                self.assertEqual(self.run_command(*command), (1, "", expected))

    def test_the_neutral_variable_leads_to_the_state(self) -> None:
        self.use_environment(SIDECAR_INIT_STATE_DIR=str(self.path))
        self.write_status(os.getpid())
        self.assertEqual(self.run_command("status")[0], 0)

    def status_of(self, *directories: str) -> tuple[int, str]:
        """The exit code of `status`, and whose it is, if the state may be in these places."""
        places = [str(self.path / directory) for directory in directories]
        with mock.patch.object(sidecar_init, "_state_directories", lambda: places):
            code, out, _ = self.run_command("status", "--json")
        return code, json.loads(out)["daemons"][0]["name"]

    def test_of_two_places_that_of_a_running_supervisor_is_used(self) -> None:
        for place, name in (("run", "gone"), ("tmp", "alive"), ("old", "older")):
            (self.path / place).mkdir()
            ticks = sidecar_init._start_ticks(os.getpid()) - (name != "alive")
            row = {**DAEMON, "name": name}
            self.write_status(os.getpid(), to=f"{place}/status.json", start_ticks=ticks, daemons=[row])
        for places, expected in (
            (("missing", "tmp"), (0, "alive")),
            (("run", "tmp"), (0, "alive")),
            (("tmp", "run"), (0, "alive")),
            (("run", "old"), (1, "gone")),
        ):
            self.assertEqual(self.status_of(*places), expected, places)

    def test_the_events_shown_are_those_of_the_supervisor_that_runs(self) -> None:
        for place, ticks in (("run", 1), ("tmp", sidecar_init._start_ticks(os.getpid()))):
            (self.path / place).mkdir()
            self.write_status(os.getpid(), to=f"{place}/status.json", start_ticks=ticks)
            self.write_events({"event": "ready", "daemon": "web", "place": place})
            (self.path / "events.jsonl").rename(self.path / place / "events.jsonl")
        places = [str(self.path / "run"), str(self.path / "tmp")]
        with mock.patch.object(sidecar_init, "_state_directories", lambda: places):
            self.assertIn("place tmp", self.run_command("events")[1])

    def test_an_answer_that_cannot_be_written_is_reported(self) -> None:
        self.write_status(os.getpid())
        for stdout, reason in ((">/dev/full", "No space left on device"), (">&-", "stdout is closed")):
            with self.subTest(stdout):
                for command in ("status", "--help", "--version", "events --help"):
                    script = f"exec {sys.executable} -ISB {MODULE} {command} {stdout}"
                    answer = subprocess.run(["/bin/sh", "-c", script], stderr=subprocess.PIPE, text=True)
                    told = (answer.returncode, answer.stderr)
                    self.assertEqual(told, (1, f"cannot write the answer: {reason}\n"), command)

    def test_what_the_kernel_refuses_is_said_with_its_path_if_it_has_one(self) -> None:
        reason = os.strerror(errno.EMFILE)
        self.patch("_supervise", mock.Mock(side_effect=OSError(errno.EMFILE, reason)))
        self.assertEqual(self.run_command(), (1, "", f"cannot supervise: {reason}\n"))
        self.patch("_read_accounts", mock.Mock(side_effect=OSError(errno.EMFILE, reason, "/etc/passwd")))
        with mock.patch("os.dup2"):  # of the tests' own stdout
            code, _, err = self.run_command("plan")
        self.assertEqual((code, err), (1, f"cannot read /etc/passwd: {reason}\n"))

    def test_an_error_that_cannot_be_written_leaves_the_exit_status(self) -> None:
        command = f"{sys.executable} -ISBu {MODULE} --table {self.path}/none.toml"
        for redirection in ("2>/dev/full", "2>&-", "2>&1 | :; exit ${PIPESTATUS[0]}"):
            with self.subTest(redirection):
                ended = subprocess.run(["bash", "-c", f"{command} {redirection}"], capture_output=True)
                self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (2, b"", b""))

    def test_a_reader_that_leaves_leaves_the_exit_status(self) -> None:
        table = self.path / "table.toml"
        table.write_text('[[daemon]]\nname = "db"\nargv = ["/nowhere/db"]\n')
        reader, writer = self.pipe()
        with open(os.devnull) as null:
            os.dup2(null.fileno(), reader)  # which closes the pipe's end
        command = [sys.executable, "-ISB", str(MODULE), "plan", "--table", str(table)]
        self.assertEqual(subprocess.run(command, stdout=writer, stderr=subprocess.DEVNULL).returncode, 1)

    def test_one_that_is_gone_is_reported_with_its_last_update(self) -> None:
        self.write_status(os.getpid(), start_ticks=1)  # the pid is another process's by now
        code, out, err = self.run_command("status")
        gone = f"supervisor (pid {os.getpid()}) is not running; last update {TIME}\n"
        self.assertEqual((code, err), (1, f"stale status: {gone}"))
        self.assertIn("web", out)
        for arguments in (["health"], ["apply", "web"], ["restart", "web"]):
            self.assertEqual(self.run_command(*arguments), (1, "", f"cannot reach the supervisor: {gone}"))
        self.assertTrue(json.loads(self.run_command("status", "--json")[1])["stale"])

    def test_no_daemon_selected_is_nothing_to_do(self) -> None:
        env = {**os.environ, "BOT_BOTTLE_SIDECAR_DAEMONS": "other"}
        ended = subprocess.run([sys.executable, str(MODULE)], env=env, capture_output=True, text=True)
        expected = "there is no daemon other; ignored", "no daemons selected; nothing to do"
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertEqual(ended.stdout.splitlines(), [f"sidecar-init: {line}" for line in expected])

    def test_daemons_are_told_of_the_state_wherever_they_go(self) -> None:
        table = self.path / "table.toml"
        table.write_text('[[daemon]]\nname = "a"\nargv = ["sh", "-c", "cd /; echo $SIDECAR_STATUS_FILE"]\n')
        command = [sys.executable, "-ISB", str(MODULE), "--table", str(table)]
        env = {**os.environ, "BOT_BOTTLE_SIDECAR_STATE_DIR": "state"}
        ended = subprocess.run(command, env=env, cwd=self.path, capture_output=True, text=True)
        self.assertIn(f"[a] {self.path}/state/status.json\n", ended.stdout)


class ForgedState(CommandTest):
    """The state may have been written by a compromised daemon, or by another user in /tmp."""

    UNUSABLE = "cannot use the state: it was not written by a supervisor of this version\n"

    def setUp(self) -> None:
        """A file that is waited for must fail the test, not hang it."""

        def blocked(*_: object) -> None:
            raise AssertionError("a command waited for a state file")

        super().setUp()
        before = signal.signal(signal.SIGALRM, blocked)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 20, 0.2)  # also the next one, after a subtest that has failed

    def test_a_file_that_is_no_status_is_reported(self) -> None:
        living = {"pid": os.getpid(), "start_ticks": sidecar_init._start_ticks(os.getpid()), "signals": {}}
        wrong: list[object] = [[{}], [7], {"a": 1}, [{**DAEMON, "started_at": 5}], [{**DAEMON, "name": []}], 7, None]
        forged = [json.dumps({**living, "daemons": daemons}) for daemons in wrong]
        numbers = ['{"pid": %s}' % ("9" * 5000), "9" * 5000, "1e400", "NaN"]
        for text in ("", "{", "[]", "{}", "7", '{"pid": 1}', "\xff", "[" * 100_000, "\0" * 100, *numbers, *forged):
            with self.subTest(text[:50]):
                (self.path / "status.json").write_bytes(text.encode("latin-1"))
                self.assertEqual(self.run_command("status"), (1, "", self.UNUSABLE))

    def test_no_wrong_type_of_any_field_makes_a_traceback(self) -> None:
        whole: dict[str, Any] = {
            "state": "running",
            "heartbeats": 7,
            "updated_at": TIME,
            "signals": {"HUP": {"forward": "web"}},
        }
        values: list[Any] = [None, [], {}, "x", -1, 1e300, True, "9" * 5000]
        for wrong in values:
            for key in (*DAEMON, *(key for key in whole if key not in DAEMON), "daemons", "pid", "start_ticks"):
                about: dict[str, Any] = {"daemons": [{**DAEMON, key: wrong}]} if key in DAEMON else {key: wrong}
                with self.subTest(key, wrong=wrong):
                    self.write_status(os.getpid(), **{**whole, **about})
                    code, _, err = self.run_command("status")
                    self.assertIn(code, (0, 1))
                    self.assertLessEqual(len(err.splitlines()), 1)

    def test_no_process_is_signalled_for_a_forged_pid(self) -> None:
        with mock.patch("os.kill", side_effect=lambda pid, _: operator.index(pid)) as kill:
            pids: list[Any] = [0, -1, "self", "1", True, 1.0, None, [], "../proc/1", 2**40, -os.getpid()]
            for pid in pids:
                for command in (["health"], ["apply", "web"], ["restart", "web"]):
                    self.write_status(os.getpid(), **{"pid": pid})
                    self.assertEqual(self.run_command(*command)[0], 1, (pid, command))
            sent = [call.args for call in kill.call_args_list if not isinstance(call.args[0], str)]
        self.assertEqual(sent, [])

    def test_a_status_of_another_process_with_our_pid_is_stale(self) -> None:
        self.write_status(os.getpid(), start_ticks=sidecar_init._start_ticks(os.getpid()) + 1)
        with mock.patch("os.kill") as kill:
            self.assertEqual(self.run_command("health")[0], 1)
        kill.assert_not_called()

    def test_what_is_forged_steers_no_terminal(self) -> None:
        evil = "\x1b[2J\x9b\r\n\u2028"
        self.write_status(
            os.getpid(), daemons=[{**DOWN, "name": evil, "state": evil, "reason": evil, "last_exit": evil}]
        )
        self.write_events({"event": evil, "daemon": evil, evil: evil, "last_lines": [evil]})
        for raw in (False, True):
            if raw:  # as a daemon can write it, not as JSON encodes it
                (self.path / "events.jsonl").write_text(f'{{"a": "{evil}\x07"}}\n')
            for command in (
                ["status"],
                ["status", "--json"],
                ["status", "x"],
                ["health"],
                ["events"],
                ["events", "--json"],
            ):
                with self.subTest(command, raw=raw), mock.patch("os.kill"):
                    _, out, err = self.run_command(*command)
                    self.assertFalse(set(out + err) & set("\x1b\x9b\r\u2028\x07"), (out, err))

    def test_an_answer_that_is_forged_steers_no_terminal(self) -> None:
        pid = self.stand_in(signal.SIGHUP, signal.SIGUSR2)
        forged = {**DAEMON, "asked": 5, "answered": 5, "answer": "\x1b[2J"}
        for refused in (False, True):
            self.write_status(pid)
            self.write_status(pid, to="answer", daemons=[{**forged, "refused": refused}])
            _, out, err = self.run_command("apply", "web")
            self.assertIn("\\u001b[2J", out + err)
            self.assertNotIn("\x1b", out + err)

    def test_a_fifo_is_not_waited_for(self) -> None:
        for name in ("events.jsonl", "status.json"):
            self.write_status(os.getpid())
            path = self.path / name
            path.unlink(missing_ok=True)
            os.mkfifo(path)
            for command in NEED_A_SUPERVISOR if name == "status.json" else (["events"],):
                with self.subTest(command):
                    code, out, err = self.run_command(*command)
                    self.assertEqual((code, out), (1, ""))
                    self.assertTrue(err.startswith(f"cannot read {path}: it is not a regular file"), err)

    def test_no_link_is_followed(self) -> None:
        self.write_status(os.getpid(), to="elsewhere")
        (self.path / "status.json").symlink_to("elsewhere")
        expected = f"cannot read {self.path}/status.json: Too many levels of symbolic links\n"
        self.assertEqual(self.run_command("status"), (1, "", expected))

    def test_of_a_huge_file_only_16_mib_are_read(self) -> None:
        self.write_status(os.getpid())
        for name, command in (("events.jsonl", "events"), ("status.json", "status")):
            with open(self.path / name, "wb") as file:
                file.truncate(1 << 36)
            code, out, err = self.run_command(command)
            self.assertEqual((code, out), (1, ""))
            self.assertEqual(len(err.splitlines()), 1)

    @unittest.skipUnless(os.geteuid() == 0, "only root can give files away")
    def test_a_state_of_another_user_is_not_believed(self) -> None:
        self.write_status(os.getpid())
        os.chown(self.path / "status.json", 1, 1)
        with mock.patch("os.kill") as kill:
            for command in NEED_A_SUPERVISOR:
                code, out, err = self.run_command(*command)
                self.assertEqual((code, out), (1, ""))
                self.assertIn("belongs to another user", err)
        kill.assert_not_called()


class Status(CommandTest):
    def lines(self, *daemons: dict[str, Any], after: float = 125, names: Sequence[str] = ()) -> list[str]:
        self.write_status(os.getpid(), daemons=list(daemons))
        now = datetime.fromisoformat(TIME).timestamp() + after
        with mock.patch("time.time", return_value=now):
            code, out, err = self.run_command("status", *names)
        self.assertEqual((code, err), (0, ""))
        return out.splitlines()

    def test_it_is_a_table(self) -> None:
        head, row = self.lines(DAEMON)
        self.assertEqual(head, "NAME  STATE    READY  PID  PORT  UP  RESTARTS  SIGNAL  LAST EXIT")
        self.assertEqual(row, "web   running  yes    12   80    2m  2         35      status 7")

    def test_what_has_no_value_is_a_dash_and_zero_is_a_zero(self) -> None:
        bare = {**DAEMON, "port": None, "signal": None, "last_exit": None, "restarts": 0}
        self.assertEqual(self.lines(bare)[1].split(), ["web", "running", "yes", "12", "-", "2m", "0", "-", "-"])

    def test_the_uptime_has_one_unit(self) -> None:
        for seconds, expected in ((0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (200_000, "2d")):
            self.assertEqual(self.lines(DAEMON, after=seconds)[1].split()[5], expected)

    def test_a_termination_is_shown_by_its_signal(self) -> None:
        for text, expected in (("was terminated by SIGKILL", "SIGKILL"), ("exited with status 0", "status 0")):
            self.assertTrue(self.lines({**DAEMON, "last_exit": text})[1].endswith(f"  {expected}"))

    def test_what_is_down_and_loops_is_shown_as_such_and_the_reason_below_it(self) -> None:
        down = {**DOWN, "state": "backoff", "crash_looping": True, "next_start_at": "2026-11-21T03:04:35.678Z"}
        self.assertEqual(
            [" ".join(line.split()) for line in self.lines(down, after=0)[1:]],
            ["web crash-looping no - 80 - 2 35 status 7", "web exited with status 7; next start in 30s"],
        )

    def test_a_failed_start_has_its_reason(self) -> None:
        reason = "cannot execute /nowhere: No such file or directory"
        lines = self.lines({**DOWN, "state": "failed", "reason": reason, "last_exit": None}, DAEMON)
        self.assertEqual(lines[-1], f"web {reason}")
        self.assertEqual(len(lines), 4)

    def test_one_that_is_ready_has_no_reason(self) -> None:
        self.assertEqual(len(self.lines({**DAEMON, "reason": "waits for db"})), 2)

    def test_it_fits_80_columns_with_ordinary_names(self) -> None:
        names = ["egress", "pipelock", "git-gate", "git-http", "supervise"]
        rows = [{**DAEMON, "name": name, "pid": 12345 + n, "port": 9418} for n, name in enumerate(names)]
        rows[2] |= {"state": "backoff", "crash_looping": True, "ready": False, "pid": None, "restarts": 1234}
        rows[3] |= {"last_exit": "was terminated by SIGKILL (out of memory)"}
        rows[4] |= {"state": "checking", "last_exit": "exited with status 127"}
        self.assertLessEqual(max(map(len, self.lines(*rows))), 80)

    def test_names_select_rows_in_their_order(self) -> None:
        others = [{**DAEMON, "name": name} for name in ("db", "app")]
        lines = self.lines(DAEMON, *others, names=["app", "web"])
        self.assertEqual([line.split()[0] for line in lines[1:]], ["app", "web"])
        status = json.loads(self.run_command("status", "db", "--json")[1])
        self.assertEqual([row["name"] for row in status["daemons"]], ["db"])

    def test_a_name_that_is_unknown_is_reported(self) -> None:
        self.write_status(os.getpid())
        expected = "cannot find daemon db: it is not in the table, or not selected; there are web\n"
        for command in (["status", "db"], ["status", "web", "db"], ["apply", "db"], ["restart", "db"]):
            self.assertEqual(self.run_command(*command), (1, "", expected))

    def test_it_is_json_for_tools(self) -> None:
        self.write_status(os.getpid())
        status = json.loads(self.run_command("status", "--json")[1])
        self.assertEqual((status["daemons"], status["stale"]), ([DAEMON], False))


class Health(CommandTest):
    def test_a_supervisor_that_does_not_answer_is_unhealthy(self) -> None:
        pid = self.stand_in(signal.SIGUSR2)
        self.write_status(pid)
        now = itertools.count(1000.0, 0.3)  # each look at the clock is this much later
        with mock.patch("time.monotonic", lambda: next(now)):
            answer = self.run_command("health")
        self.assertEqual(answer, (1, "", f"unhealthy: the supervisor (pid {pid}) does not answer\n"))

    def check(self, code: int, text: str, **more: object) -> None:
        pid = self.stand_in(signal.SIGUSR2)
        self.write_status(pid)
        self.write_status(pid, to="answer", heartbeats=8, **more)
        self.assertEqual(self.run_command("health"), (code, *(("", text) if code else (text, ""))))

    def test_all_ready_is_healthy(self) -> None:
        self.check(0, "healthy: 1 daemon is ready\n")

    def test_one_that_is_not_ready_is_named_with_the_reason(self) -> None:
        sick = {**DOWN, "name": "db", "state": "backoff"}
        expected = "unhealthy: not ready: db is in backoff (exited with status 7)\n"
        self.check(1, expected, daemons=[DAEMON, sick])

    def test_several_that_are_not_ready_are_all_named(self) -> None:
        waiting = {**DOWN, "name": "app", "state": "waiting", "reason": "waits for db; db exited with status 1"}
        looping = {**DOWN, "name": "db", "state": "backoff", "crash_looping": True, "reason": None}
        expected = "app is waiting (waits for db; db exited with status 1), db is crash-looping"
        self.check(1, f"unhealthy: not ready: {expected}\n", daemons=[waiting, DAEMON, looping])

    def test_a_oneshot_that_has_finished_is_healthy(self) -> None:
        self.check(0, "healthy: 1 daemon is ready\n", daemons=[{**DAEMON, "state": "exited", "pid": None}])

    def test_so_is_one_that_runs_again_or_has_failed_since_it_succeeded(self) -> None:
        for state in ("running", "exited"):
            self.check(0, "healthy: 1 daemon is ready\n", daemons=[{**DOWN, "state": state, "succeeded": True}])

    def test_a_shutdown_is_not_healthy(self) -> None:
        self.check(1, "unhealthy: the supervisor is shutting-down\n", state="shutting-down")


class Events(CommandTest):
    def setUp(self) -> None:
        super().setUp()
        self.write_status(os.getpid())
        self.write_events(*({"event": "started", "daemon": "web", "number": n} for n in range(30)))

    def test_it_shows_the_last_twenty(self) -> None:
        lines = self.run_command("events")[1].splitlines()
        self.assertEqual(len(lines), 20)
        self.assertEqual(lines[0], "2026-11-21 03:04:05  started       web          pid 12, number 10")

    def test_it_shows_as_many_as_requested(self) -> None:
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

    def test_names_select_events(self) -> None:
        said = {"event": "exited", "daemon": "app", "last_lines": ['"daemon": "web"', "web", '{"daemon": "web"}']}
        self.write_events(*({"event": "ready", "daemon": name} for name in ("web", "db", "web-2", None, "web")), said)
        for names, expected in ((["web"], ["web", "web"]), (["db", "web-2"], ["db", "web-2"]), (["none"], [])):
            with self.subTest(names):
                lines = self.run_command("events", "--json", *names)[1].splitlines()
                self.assertEqual([json.loads(line)["daemon"] for line in lines], expected)
                self.assertEqual(len(self.run_command("events", *names)[1].splitlines()), len(expected))

    def test_a_name_without_events_that_is_in_no_table_is_reported(self) -> None:
        code, out, err = self.run_command("events", "wbe")
        why = "it is not in the table, or not selected; there are web"
        self.assertEqual((code, out, err), (1, "", f"cannot find daemon wbe: {why}\n"))

    def test_as_many_of_a_name_as_requested_are_shown(self) -> None:
        self.write_events(
            *({"event": "ready", "daemon": name, "number": n} for n in range(9) for name in ("db", "web"))
        )
        lines = self.run_command("events", "db", "-n", "2")[1].splitlines()
        self.assertEqual([line.rpartition(" ")[2] for line in lines], ["7", "8"])

    def test_a_zero_is_shown(self) -> None:
        self.write_events({"event": "exited", "daemon": "web", "code": 0, "restarts": 0, "uptime": 0.0})
        line = self.run_command("events")[1]
        self.assertTrue(line.endswith("pid 12, code 0, restarts 0, uptime 0\n"), line)

    def test_less_than_one_event_is_none(self) -> None:
        self.write_events({"event": "ready", "daemon": "web"})
        for number in ("0", "0.5"):
            self.assertEqual(self.run_command("events", "-n", number), (0, "", ""))

    def test_no_word_of_python_is_shown(self) -> None:
        values = {"oom": True, "forwarded": False, "reason": None, "uptime": 3.0, "next start": 0.5123, "code": 7}
        self.write_events({"event": "exited", "daemon": None, "last_lines": [], **values})
        expected = "2026-11-21 03:04:05  exited        -            pid 12, oom, uptime 3, next start 0.5123, code 7\n"
        self.assertEqual(self.run_command("events"), (0, expected, ""))

    def test_no_event_is_shown_twice_or_lost_if_the_files_are_rotated_between_the_two_reads(self) -> None:
        self.write_events(*({"event": "ready", "daemon": "web", "number": n} for n in range(3)))
        (self.path / "events.jsonl").rename(self.path / "events.jsonl.1")
        for newest in ((), ({"event": "ready", "daemon": "web", "number": 6},)):
            self.write_events(*({"event": "ready", "daemon": "web", "number": n} for n in range(3, 6)))
            self.assertEqual(self.numbers_if_rotated((), newest), ["3", "4", "5"])

    def test_events_that_came_between_the_read_and_the_rotation_are_shown_once(self) -> None:
        self.write_events(*({"event": "ready", "daemon": "web", "number": n} for n in range(3)))
        more = tuple({"event": "ready", "daemon": "web", "number": n} for n in range(5))
        self.assertEqual(self.numbers_if_rotated(more, ()), ["0", "1", "2", "3", "4"])

    def numbers_if_rotated(
        self, before: Sequence[Mapping[str, object]], after: Sequence[Mapping[str, object]]
    ) -> list[str]:
        """What `events` shows if these are written and the file is moved away when it has just been read."""
        read = sidecar_init._read_state

        def rotated(name: str, *more: Any) -> str | None:
            text: str | None = read(name, *more)
            if name == "events.jsonl":
                if before:
                    self.write_events(*before)
                (self.path / "events.jsonl").rename(self.path / "events.jsonl.1")
                if after:
                    self.write_events(*after)
            return text

        with mock.patch.object(sidecar_init, "_read_state", rotated):
            lines = self.run_command("events")[1].splitlines()
        return [line.rpartition(" ")[2] for line in lines]

    def test_follow_shows_what_came_after_the_last_event_it_has_seen(self) -> None:
        lines = ["a\n", "b\n", "a\n", "c\n"]
        for last, expected in (("c\n", []), ("a\n", ["c\n"]), ("b\n", ["a\n", "c\n"])):
            self.assertEqual(sidecar_init._newer(lines, last), expected)

    def test_follow_shows_all_if_the_last_event_it_has_seen_is_gone_or_there_was_none(self) -> None:
        for last in ("gone\n", ""):
            self.assertEqual(sidecar_init._newer(["a\n", "b\n"], last), ["a\n", "b\n"])

    def test_follow_goes_on_over_a_rotation_until_its_reader_leaves(self) -> None:
        self.write_events({"event": "ready", "daemon": "web", "number": 0}, {"event": "ready", "daemon": "db"})
        command = [sys.executable, "-ISuB", str(MODULE), "events", "web", "--json", "-f"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout
            self.assertEqual(json.loads(follower.stdout.readline())["number"], 0)
            with open(self.path / "events.jsonl", "a") as file:
                for name in ("db", "web"):
                    file.write(json.dumps({"time": TIME, "event": "ready", "daemon": name, "number": 1}) + "\n")
            self.assertEqual(json.loads(follower.stdout.readline())["number"], 1)
            (self.path / "events.jsonl").rename(self.path / "events.jsonl.1")
            self.write_events({"event": "ready", "daemon": "web", "number": 2})
            self.assertEqual(json.loads(follower.stdout.readline())["number"], 2)
            follower.stdout.close()
            self.assertEqual(follower.wait(20), 0)

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
        for line in ("no json", "[]", "{}", '{"time": 3}', "[" * 100_000, "9" * 5000):
            (self.path / "events.jsonl").write_text(line + "\n")
            self.assertEqual(self.run_command("events"), (0, line + "\n", ""))

    def test_a_reader_that_leaves_is_no_error(self) -> None:
        self.write_events(*({"event": "started", "daemon": "web"} for _ in range(5000)))  # more than a pipe holds
        command = f"{sys.executable} {MODULE} events -n 5000 | head -n 1"
        ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=20, input="")
        self.assertEqual((len(ended.stdout.splitlines()), ended.stderr), (1, ""))


class Reload(CommandTest):
    """apply and restart, towards a supervisor that answers their signal."""

    def answered(self, number: int, **row: object) -> int:
        """This signal is answered by a status in which the first row has changed so."""
        pid = self.stand_in(number)
        others = [{**DAEMON, "name": "db", "signal": 34}]
        self.write_status(pid, daemons=[DAEMON, *others])
        self.write_status(pid, to="answer", daemons=[{**DAEMON, "asked": 5, **row}, *others])
        return pid

    def refusal(self, *arguments: str) -> str:
        code, out, err = self.run_command(*arguments)
        self.assertEqual((code, out), (1, ""))
        return err


class Apply(Reload):
    def test_forward_is_done_when_it_was_delivered(self) -> None:
        self.answered(signal.SIGHUP, answered=5, answer="SIGHUP delivered to web")
        self.assertEqual(self.run_command("apply", "web"), (0, "SIGHUP delivered to web\n", ""))

    def test_forward_that_was_dropped_is_reported(self) -> None:
        answer = "cannot signal web: it is not running"
        self.answered(signal.SIGHUP, answered=5, answer=answer, refused=True)
        self.assertEqual(self.refusal("apply", "web"), f"{answer}\n")

    def test_one_that_is_being_restarted_is_reported(self) -> None:
        pid = self.answered(signal.SIGHUP, answered=5)
        self.write_status(pid, daemons=[{**DAEMON, "asked": 5}])
        self.assertEqual(self.refusal("apply", "web"), "cannot apply web: a restart of it is in progress; try again\n")
        self.assertTrue((self.path / "answer").exists(), "no signal was sent")

    def test_one_that_has_no_handler_and_exits_is_reported(self) -> None:
        self.answered(signal.SIGHUP, answered=5, pid=None, last_exit="was terminated by SIGHUP")
        self.assertEqual(
            self.refusal("apply", "web"),
            "cannot apply web: SIGHUP was delivered, and it was terminated by SIGHUP; see its log\n",
        )

    def both(self, first: str, second: str) -> None:
        pid = self.answered(signal.SIGHUP, answered=5, answer="SIGHUP delivered to web")
        actions = {"HUP": {"forward": "web"}, "USR1": {"restart": "web"}}
        self.write_status(pid, signals={name: actions[name] for name in (first, second)})

    def test_of_a_daemon_with_both_signals_it_is_the_forward(self) -> None:
        for order in (("HUP", "USR1"), ("USR1", "HUP")):
            self.both(*order)  # a USR1 would end the stand-in
            self.assertEqual(self.run_command("apply", "web"), (0, "SIGHUP delivered to web\n", ""))

    def test_of_a_daemon_with_both_signals_it_is_the_forward_also_if_usr1_is_forwarded(self) -> None:
        pid = self.answered(signal.SIGUSR1, answered=5, answer="SIGUSR1 delivered to web")
        self.write_status(pid, signals={"HUP": {"restart": "web"}, "USR1": {"forward": "web"}})
        self.assertEqual(self.run_command("apply", "web"), (0, "SIGUSR1 delivered to web\n", ""))

    def test_a_restart_is_done_when_the_new_one_is_ready(self) -> None:
        pid = self.answered(signal.SIGUSR1, answered=5, pid=13)
        self.write_status(pid, signals={"USR1": {"restart": "web"}})
        self.assertEqual(self.run_command("apply", "web"), (0, "web restarted and ready (pid 13)\n", ""))

    def test_an_answer_to_an_earlier_request_is_not_taken_for_this_one(self) -> None:
        self.answered(signal.SIGHUP, asked=4, answered=4, answer="SIGHUP delivered to web")
        self.assertIn("has not answered", self.refusal("apply", "web", "--timeout", "0.1"))
        self.answered(signal.SIGHUP, asked=6, answered=5, answer="SIGHUP delivered to web")
        self.assertIn("has not answered", self.refusal("apply", "web", "--timeout", "0.1"))

    def test_a_supervisor_that_does_not_answer_is_reported(self) -> None:
        self.write_status(self.stand_in(signal.SIGHUP))
        expected = "cannot apply web: the supervisor has not answered after 0.1 s; see its log\n"
        self.assertEqual(self.refusal("apply", "web", "--timeout", "0.1"), expected)

    def test_a_supervisor_that_exits_meanwhile_is_reported(self) -> None:
        pid = self.stand_in()  # HUP ends it
        self.write_status(pid)
        threading.Thread(target=os.waitid, args=(os.P_PID, pid, os.WEXITED)).start()
        self.assertIn("cannot reach the supervisor: supervisor (pid ", self.refusal("apply", "web"))

    def test_a_shutdown_is_reported(self) -> None:
        pid = self.answered(signal.SIGHUP)
        self.write_status(pid, to="answer", state="shutting-down")
        self.assertEqual(self.refusal("apply", "web"), "cannot apply web: the supervisor is shutting-down\n")

    def test_what_no_signal_reloads_is_reported_with_what_they_reload(self) -> None:
        self.write_status(os.getpid(), daemons=[DAEMON, {**DAEMON, "name": "app"}])
        expected = "cannot apply app: the table's signals reload web, db; try restart\n"
        self.assertEqual(self.refusal("apply", "app"), expected)
        self.write_status(os.getpid(), signals={})
        expected = "cannot apply web: the table's signals reload no daemon; try restart\n"
        self.assertEqual(self.refusal("apply", "web"), expected)


class Restart(Reload):
    def test_it_sends_the_signal_of_the_row(self) -> None:
        self.answered(35, answered=5, pid=13)
        self.assertEqual(self.run_command("restart", "web"), (0, "web restarted and ready (pid 13)\n", ""))

    def test_a_oneshot_is_restarted_when_it_has_finished(self) -> None:
        self.answered(35, answered=5, pid=None, state="exited")
        self.assertEqual(self.run_command("restart", "web"), (0, "web restarted and ready\n", ""))

    def test_a_check_that_failed_is_reported_with_the_reason(self) -> None:
        answer = "cannot restart web: its check exited with status 3 (bad port)"
        self.answered(35, answered=5, refused=True, answer=answer)
        self.assertEqual(self.refusal("restart", "web"), f"{answer}\n")

    def test_one_that_exits_before_it_is_ready_is_reported_with_the_reason(self) -> None:
        self.answered(35, answered=5, ready=False, state="backoff", reason="exited with status 3")
        self.assertEqual(
            self.refusal("restart", "web"),
            "cannot confirm that web is ready: it was restarted, but exited with status 3; see its log\n",
        )

    def test_one_that_does_not_become_ready_is_reported(self) -> None:
        self.answered(35, answered=5, ready=False, state="starting")
        expected = "cannot confirm that web is ready: it was restarted, but is not ready after 0.1 s; see its log\n"
        self.assertEqual(self.refusal("restart", "web", "--timeout", "0.1"), expected)

    def test_a_row_without_a_signal_is_reported(self) -> None:
        self.write_status(os.getpid(), daemons=[{**DAEMON, "signal": None}])
        expected = "cannot restart web: its row has no signal; only the first 31 rows have one\n"
        self.assertEqual(self.refusal("restart", "web"), expected)


class Settings(CommandTest):
    """The program with another table and another environment."""

    def run_program(self, *argv: str, places: Sequence[str] | None = None, **env: str) -> tuple[int, str]:
        """Its exit code and its log, with one daemon that is restarted whenever it exits."""
        script = (
            "import sys; sys.path.insert(0, sys.argv.pop(1)); import sidecar_init as s;"
            "places = [place for place in sys.argv.pop(1).split(',') if place];"
            "s._state_directories = (lambda: places) if places else s._state_directories;"
            "s._DAEMONS = (s._DaemonSpec('a', sys.argv[1:], 'always'), s._DaemonSpec('b', ['true']));"
            "sys.exit(s.main([]))"
        )
        self.use_environment(PATH="/usr/bin:/bin", **env)
        command = [sys.executable, "-ISBc", script, str(MODULE.parent), ",".join(places or ()), *argv]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
        self.assertEqual(ended.stderr, "")
        return ended.returncode, ended.stdout

    def test_the_neutral_names_do_what_the_others_do(self) -> None:
        for prefix in ("SIDECAR_INIT", "BOT_BOTTLE_SIDECAR"):
            values = {"DAEMONS": "a", "RESTART": "never", "STATE_DIR": str(self.path / prefix)}
            env = {f"{prefix}_{name}": value for name, value in values.items()}
            code, log = self.run_program("sh", "-c", "exit 3", **env)
            self.assertEqual(code, 3)
            self.assertIn("a exited with status 3", log)
            self.assertNotIn("b started", log)
            self.assertTrue((self.path / prefix / "status.json").exists())

    def test_another_restart_mode_is_ignored_with_a_line(self) -> None:
        _, log = self.run_program(SIDECAR_INIT_RESTART="always", SIDECAR_INIT_DAEMONS=",", SIDECAR_INIT_STATE_DIR="")
        self.assertIn("sidecar-init: the restart mode always is ignored; the only known mode is never\n", log)

    def test_a_state_directory_that_cannot_be_made_is_left_for_the_next_place(self) -> None:
        (self.path / "file").write_text("")
        places = [str(self.path / "file" / "state"), str(self.path / "second")]
        _, log = self.run_program("true", places=places, SIDECAR_INIT_RESTART="never")
        self.assertNotIn("cannot", log)
        self.assertTrue((self.path / "second" / "status.json").exists())

    def test_if_no_place_is_left_the_log_says_so_and_the_daemons_run(self) -> None:
        (self.path / "file").write_text("")
        place = str(self.path / "file" / "state")
        code, log = self.run_program("sh", "-c", "echo here; exit 4", places=[place], SIDECAR_INIT_RESTART="never")
        self.assertIn(f"sidecar-init: cannot keep status and events in {place}: Not a directory", log)
        self.assertIn("[a] here\n", log)
        self.assertEqual(code, 4)


class RealProgram(CommandTest):
    """The commands and a supervisor whose daemons' secrets are words of its own status."""

    WORDS = (
        "running", "egress", "daemons", "restarts", "heartbeats", "signals", "start_ticks", "forward", "answered",
        "delivered", "restarted", "signal",
    )  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        table = self.path / "table.toml"
        handler = "import signal; signal.signal(signal.SIGHUP, print); print('running egress', flush=True)\n"
        argv = [sys.executable, "-ISuc", handler + "while True: signal.pause()"]
        table.write_text(
            "".join(f"[[daemon]]\nname = '{name}'\nargv = {json.dumps(argv)}\n" for name in ("egress", "web"))
            + "[secrets]\n'EGRESS_TOKEN_' = 'egress'\n"
            + "[signals]\nHUP = { forward = 'egress' }\nUSR1 = { restart = 'egress' }\n"
        )
        env = {**os.environ, **{f"EGRESS_TOKEN_{n}": word for n, word in enumerate(self.WORDS)}}
        self.log = self.path / "log"
        with open(self.log, "wb") as log:
            command = [sys.executable, "-ISB", str(MODULE), "--table", str(table)]
            supervisor = subprocess.Popen(command, env=env, stdout=log)
        self.addCleanup(supervisor.wait, 20)
        self.addCleanup(supervisor.terminate)
        wait_until(lambda: self.log.read_bytes().count(b"\n[") == 2, 20, "both daemons run")

    def test_a_second_supervisor_leaves_the_state_to_the_first(self) -> None:
        table = self.path / "second.toml"
        table.write_text('[[daemon]]\nname = "second"\nargv = ["true"]\n')
        command = [sys.executable, "-ISB", str(MODULE), "--table", str(table)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
        self.assertEqual(ended.returncode, 0)
        self.assertIn(f"cannot keep status and events in {self.path}: another supervisor uses it; ", ended.stdout)
        self.assertIn("second exited with status 0", ended.stdout)
        self.assertEqual(self.run_command("health"), (0, "healthy: 2 daemons are ready\n", ""))
        self.assertNotIn('"second"', self.run_command("events", "--json", "-n", "1000")[1])

    def test_every_command_answers_as_usual(self) -> None:
        for arguments, expected in (
            (["health"], r"healthy: 2 daemons are ready\n"),
            (["apply", "egress"], r"SIGHUP delivered to egress\n"),
            (["restart", "egress"], r"egress restarted and ready \(pid \d+\)\n"),
            (["restart", "web"], r"web restarted and ready \(pid \d+\)\n"),
            (["status", "egress"], r"NAME .*\negress +running +yes .*\n"),
            (["events", "egress", "-n", "1"], r".*  ready         egress       .*\n"),
        ):
            with self.subTest(arguments):
                code, out, err = self.run_command(*arguments)
                self.assertEqual((code, err), (0, ""))
                self.assertRegex(out, rf"\A{expected}\Z")
        status = json.loads(self.run_command("status", "--json")[1])
        self.assertEqual([row["name"] for row in status["daemons"]], ["egress", "web"])
        self.assertEqual([(row["starts"], row["asked"]) for row in status["daemons"]], [(2, 2), (2, 1)])
        self.assertNotIn("[redacted", json.dumps(status).replace("answer", ""))


class End(CommandTest):
    def test_the_program_frees_nothing_and_a_caller_of_main_goes_on(self) -> None:
        as_program = "runpy.run_path(path, run_name='__main__')"
        as_function = "sys.exit(runpy.run_path(path)['main']())"
        for run, goes_on in ((as_program, False), (as_function, True)):
            script = f"import atexit, runpy, sys; path = sys.argv.pop(1); atexit.register(print, 'freed'); {run}"
            command = [sys.executable, "-ISBc", script, str(MODULE)]
            self.use_environment(SIDECAR_INIT_DAEMONS=",", BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.path))
            for arguments, code, line in (
                ([], 0, "sidecar-init: no daemons selected; nothing to do"),
                (["plan"], 0, "no daemons selected; nothing to do"),
                (["--version"], 0, f"sidecar-init {sidecar_init.__version__}"),
                (["health"], 1, f"cannot find a supervisor: there is no {self.path}/status.json"),
            ):
                with self.subTest(run, arguments=arguments):
                    ended = subprocess.run([*command, *arguments], capture_output=True, text=True)
                    self.assertEqual((ended.returncode, (ended.stderr + ended.stdout).splitlines()[0]), (code, line))
                    if arguments != ["--version"]:  # argparse raises SystemExit
                        self.assertEqual("freed" in ended.stdout, goes_on)


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
            "ORDER  NAME  USER  PORT  AFTER  RESTART  COMMAND",
            "1      db    -     -     -      never    sleep 9",
            "2      web   -     80    db     never    sh",
            "the container's stop_grace_period or terminationGracePeriodSeconds must be at least 10 s",
            "ok",
        ]
        self.assertEqual(self.plan(), (0, expected))

    def test_the_longest_grace_of_the_table_decides_how_long_the_container_needs(self) -> None:
        for graces, expected in (((1, 30), 32), ((1.5, None), 10), ((0, 0), 2), ((8.6, 0), 11)):
            rows = "".join(
                f'[[daemon]]\nname = "d{n}"\nargv = ["sh"]\n' + (f"stop.grace = {grace}\n" if grace is not None else "")
                for n, grace in enumerate(graces)
            )
            self.table.write_text(rows)
            line = f"the container's stop_grace_period or terminationGracePeriodSeconds must be at least {expected} s"
            self.assertIn(line, self.plan()[1])

    def test_the_table_may_come_before_the_command(self) -> None:
        self.assertEqual(self.run_command("--table", str(self.table), "plan")[0], 0)

    def test_it_shows_the_selected_ones_alone(self) -> None:
        os.environ["BOT_BOTTLE_SIDECAR_DAEMONS"] = "web,other"
        code, lines = self.plan()
        row = "1      web   -     80    -      never    sh"
        self.assertEqual((code, lines[1], lines[3:]), (1, row, ["there is no daemon other; ignored"]))

    def test_no_daemon_selected_is_reported(self) -> None:
        os.environ["SIDECAR_INIT_DAEMONS"] = ","
        self.assertEqual(self.plan(), (0, ["no daemons selected; nothing to do", "ok"]))

    def test_what_is_missing_is_named(self) -> None:
        self.table.write_text(
            '[[daemon]]\nname = "db"\nargv = ["/nowhere/db"]\ncheck = ["/etc/passwd"]\nready = ["no-such-command"]\n'
            'cwd = "/nowhere"\n'
        )
        code, lines = self.plan()
        programs = ["/nowhere/db", "/etc/passwd", "no-such-command"]  # each once
        expected = [f"db: cannot execute {program}: not found, or not executable" for program in programs]
        expected.append("db: cannot change to its working directory /nowhere: no such directory")
        self.assertEqual((code, lines[3:]), (1, expected))

    def test_a_relative_command_is_looked_for_in_the_working_directory(self) -> None:
        (self.path / "run").symlink_to("/bin/sh")
        for argv, code in ((["./run"], 0), (["./lost"], 1)):
            self.table.write_text(f'[[daemon]]\nname = "db"\nargv = {argv}\ncwd = "{self.path}"\n')
            self.assertEqual(self.plan()[0], code, argv)

    def test_a_program_that_is_missing_twice_and_a_file_that_is_missing_are_named_once(self) -> None:
        row = '[[daemon]]\nname = "db"\nargv = ["/no/db"]\ncheck = ["/no/db"]\nfiles = { KEY = "/no/key" }\n'
        self.table.write_text(row)
        command = [sys.executable, str(MODULE), "plan", "--table", str(self.table)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.stdout.splitlines()[3:], ["db: cannot execute /no/db: not found, or not executable"])
        self.assertRegex(ended.stderr, r"\Asidecar-init: db starts without KEY: cannot find /no/key: [^\n]+\n\Z")

    def test_a_command_is_looked_for_in_the_path_that_env_sets(self) -> None:
        (self.path / "own-command").symlink_to("/bin/sh")
        row = '[[daemon]]\nname = "db"\nargv = ["own-command"]\n'
        self.table.write_text(row)
        self.assertEqual(self.plan()[0], 1)
        self.table.write_text(row + f'env = {{ PATH = "{self.path}" }}\n')
        self.assertEqual(self.plan()[0], 0)

    @unittest.skipUnless(os.geteuid() == 0, "only root can switch users")
    def test_a_user_that_a_daemon_cannot_become_is_named(self) -> None:
        accounts = {"root": 0, "toor": 0}
        self.patch(
            "_read_accounts", lambda: {name: sidecar_init._Account(name, uid, 0, "/") for name, uid in accounts.items()}
        )
        for user, problem in (
            (
                "missing",
                "cannot become missing: there is no such user in /etc/passwd; create it: "
                "useradd --system --shell /usr/sbin/nologin missing",
            ),
            ("toor", "cannot become toor: its uid is 0, and only root may have that"),
        ):
            self.table.write_text(f'[[daemon]]\nname = "db"\nargv = ["sh"]\nuser = "{user}"\n')
            code, lines = self.plan()
            self.assertEqual((code, lines[3:]), (1, [f"db: {problem}"]))

    def test_without_root_the_user_that_cannot_be_switched_to_is_named(self) -> None:
        self.table.write_text('[[daemon]]\nname = "db"\nargv = ["sh"]\nuser = "web"\n')
        with mock.patch("os.geteuid", return_value=1000):
            code, lines = self.plan()
        self.assertEqual((code, lines[-1]), (0, "ok"))
        self.assertIn("- (not web: not root)", lines[1])

    def test_an_egress_without_its_proxy_is_reported_with_the_ways_out(self) -> None:
        self.table.write_text(
            "".join(f'[[daemon]]\nname = "{name}"\nargv = ["sh"]\n' for name in ("egress", "pipelock"))
        )
        self.assertEqual(self.plan()[1][-1], "ok")
        os.environ["BOT_BOTTLE_SIDECAR_DAEMONS"] = "egress"
        code, lines = self.plan()
        self.assertEqual(code, 1)
        self.assertRegex(lines[-1], "every request with 502: pipelock is not selected; .*EGRESS_UPSTREAM_PROXY")
        for proxy in ("http://proxy.test:3128", ""):
            os.environ["EGRESS_UPSTREAM_PROXY"] = proxy
            self.assertEqual(self.plan()[1][-1], "ok")
        del os.environ["EGRESS_UPSTREAM_PROXY"]
        os.environ["BOT_BOTTLE_SIDECAR_DAEMONS"] = "pipelock"
        self.assertEqual(self.plan()[1][-1], "ok")

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
        self.assertEqual(imported & {"_ctypes", "ctypes"}, {"_ctypes"})  # it was a whole run
        self.assertEqual(imported & costly, set())
        self.assertTrue((Path(self.path) / "status.json").exists())

    def test_health_does_not_pay_for_the_other_commands(self) -> None:
        command = [sys.executable, "-IS", "-X", "importtime", str(MODULE), "health"]
        ended = subprocess.run(command, capture_output=True, text=True)
        self.assertIn("cannot find a supervisor", ended.stderr)
        self.assertNotIn("argparse", ended.stderr)


if __name__ == "__main__":
    unittest.main()
