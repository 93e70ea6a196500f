"""The commands against a real supervisor, run in its namespace as `docker exec` runs them; its state directory."""

import json
import os
import random
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

from tests.pidns.harness import (
    COMMAND,
    PATIENCE,
    SLEEP,
    Bundle,
    Namespace,
    NamespaceTestCase,
    child,
    daemon,
    shell,
    small_disk,
)
from tests.support import wait_until

SIGNALS = child("signals.py")


class StatusTest(NamespaceTestCase):
    def test_a_table_for_people_and_json_for_tools(self) -> None:
        daemons = [daemon("web", *SLEEP, port=7001), daemon("db", *SIGNALS), daemon("gone", *shell("exit 3"))]
        with Bundle(daemons) as bundle:
            bundle.wait_for_state("gone", "exited")
            bundle.wait_for_state("db", "running")
            told = bundle.command("status")
            self.assertEqual((told.returncode, told.stderr), (0, ""))
            head, *lines = told.stdout.splitlines()
            self.assertEqual(head.split()[:4], ["NAME", "STATE", "READY", "PID"])
            rows = {line.split()[0]: line for line in lines[:3]}
            self.assertIn("starting", rows["web"])
            self.assertRegex(rows["db"], rf"running.*\b{bundle.daemon('db')['pid']}\b")
            self.assertRegex(rows["gone"], "exited .* status 3$")
            self.assertIn("gone exited with status 3", lines[3:])
            self.assertLessEqual(max(map(len, [head, *lines[:3]])), 80, told.stdout)
            self.assertNotIn("\033", told.stdout)
            for_tools = bundle.command("status", "--json")
            self.assertEqual(json.loads(for_tools.stdout)["daemons"], bundle.status()["daemons"])

    def test_the_status_has_the_fields_that_are_documented(self) -> None:
        with Bundle([daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS)]) as bundle:
            for name in ("egress", "pipelock"):
                bundle.wait_for_state(name, "running")
            status = bundle.status()
            self.assertEqual((status["pid"], status["state"]), (1, "running"))
            self.assertEqual(status["signals"], {"HUP": {"forward": "egress"}, "USR1": {"restart": "pipelock"}})
            self.assertEqual([row["name"] for row in status["daemons"]], ["egress", "pipelock"])
            for moment in (status["started_at"], status["updated_at"], status["daemons"][0]["started_at"]):
                self.assertRegex(moment, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            fixed = {"name": "egress", "state": "running", "ready": True, "port": None, "user": None}
            fixed |= {"restarts": 0, "crash_looping": False, "next_start_at": None, "last_exit": None}
            self.assertEqual(bundle.daemon("egress") | fixed, bundle.daemon("egress"))
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertEqual(bundle.status()["state"], "stopped")

    def test_without_a_supervisor_it_says_so(self) -> None:
        with Namespace(SLEEP) as outer:
            told = outer.inside([*COMMAND, "status"], BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.scratch() / "none"))
            self.assertEqual(told.returncode, 1)
            self.assertRegex(told.stderr, "^cannot .*\n$")

    def test_if_the_supervisor_was_killed_it_says_that_the_file_is_stale(self) -> None:
        with Namespace(SLEEP) as outer, Bundle([daemon("a", *SLEEP)], inside=outer) as bundle:
            bundle.wait_for_state("a", "running")
            bundle.signal(SIGKILL)
            bundle.exit()
            told = outer.inside([*COMMAND, "status"], BOT_BOTTLE_SIDECAR_STATE_DIR=str(bundle.state))
            self.assertRegex(told.stdout + told.stderr, "stale|no supervisor|not running|gone")
            self.assertEqual(told.returncode, 1)


class HealthTest(NamespaceTestCase):
    def test_all_up_and_ready_is_healthy(self) -> None:
        with Bundle([daemon("a", *child("listener.py", 7001), port=7001), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for_event("ready", "a")
            bundle.wait_for_state("b", "running")
            self.assertEqual(bundle.command("health").returncode, 0)

    def test_a_daemon_that_is_not_ready_or_not_up_is_named(self) -> None:
        with Bundle([daemon("slow", *SLEEP, port=7001), daemon("fine", *SLEEP)]) as bundle:
            bundle.wait_for_state("fine", "running")
            self._unhealthy(bundle, "slow")
        with Bundle([daemon("gone", *shell("exit 1")), daemon("fine", *SLEEP)]) as bundle:
            bundle.wait_for_state("gone", "exited")
            self._unhealthy(bundle, "gone")

    def test_a_supervisor_that_is_stopped_does_not_answer(self) -> None:
        with Bundle([daemon("a", *SLEEP)]) as bundle:
            bundle.wait_for_state("a", "running")
            bundle.signal(SIGSTOP)
            self._unhealthy(bundle, "answer")
            bundle.signal(SIGCONT)
            self.assertEqual(bundle.command("health").returncode, 0)

    def test_if_there_is_no_supervisor_it_says_so(self) -> None:
        with Namespace(SLEEP) as outer:
            told = outer.inside([*COMMAND, "health"], BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.scratch()))
            self.assertEqual(told.returncode, 1)
            self.assertEqual((told.stdout + told.stderr).count("\n"), 1)

    def _unhealthy(self, bundle: Bundle, word: str) -> None:
        told = bundle.command("health")
        self.assertEqual(told.returncode, 1)
        self.assertIn(word, told.stdout + told.stderr)
        self.assertEqual((told.stdout + told.stderr).count("\n"), 1)


class EventsTest(NamespaceTestCase):
    def test_an_exited_event_explains_itself(self) -> None:
        script = "for n in 1 2 3 4 5 6 7; do echo line $n; done; exit 3"
        with Bundle([daemon("a", *shell(script)), daemon("b", *SLEEP)]) as bundle:
            pid = bundle.wait_for_event("started", "a")["pid"]
            event = bundle.wait_for_event("exited", "a")
            self.assertRegex(event.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
            self.assertGreaterEqual(event.pop("uptime"), 0)
            self.assertIn(event.pop("oom"), (False, None))
            expected = {"event": "exited", "daemon": "a", "pid": pid, "code": 3, "signal": None}
            expected |= {"restarts": 0, "next_start_in": None, "last_lines": [f"line {n}" for n in range(3, 8)]}
            self.assertEqual(event, expected)

    def test_the_last_ones_for_people_and_for_tools(self) -> None:
        with Bundle([daemon("a", *shell("exit 3")), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for_event("exited", "a")
            wait_until(lambda: {"started", "exited"} <= {one["event"] for one in bundle.events()}, 5, "three events")
            bundle.wait_for_event("started", "b")
            for_people = bundle.command("events")
            self.assertEqual(for_people.returncode, 0)
            self.assertEqual(len(for_people.stdout.splitlines()), len(bundle.events()))
            self.assertRegex(for_people.stdout, r"a\b.*exited|exited.*\ba\b")
            self.assertNotRegex(for_people.stdout, r"\boom\b|\b(True|False|None|null|false)\b")
            for_tools = bundle.command("events", "--json", "-n", "2")
            self.assertEqual([json.loads(line) for line in for_tools.stdout.splitlines()], bundle.events()[-2:])

    def test_follow_shows_what_comes_even_across_a_rotation_and_ends_on_ctrl_c_without_a_traceback(self) -> None:
        with Bundle([daemon("egress", *SIGNALS)], tunables={"_EVENTS_LIMIT": 1000}) as bundle:
            bundle.wait_for(b"[egress] ready")
            with Namespace([*COMMAND, "events", "--follow", "--json"], inside=bundle, env=bundle.env) as follower:
                follower.wait_for(b'"started"')
                for _ in range(20):
                    bundle.signal(SIGHUP)
                    bundle.catch_up()
                wait_until(lambda: (bundle.state / "events.jsonl.1").exists(), PATIENCE, "a rotation")
                wait_until(lambda: follower.log.count(b'"signal"') >= 20, PATIENCE, "every event in the follower")
                follower.signal(SIGINT)
                self.assertIn(follower.exit(), (0, 130))
                self.assertEqual(follower.stderr, "")
                times = [json.loads(line)["time"] for line in follower.log.splitlines()]
                self.assertEqual(times, sorted(times))

    def test_a_closed_pipe_is_no_error(self) -> None:
        one_line = shell(f"{shlex.join(COMMAND)} events --follow | head -n 1")
        with Bundle([daemon("egress", *SIGNALS)]) as bundle:
            bundle.wait_for(b"[egress] ready")
            with Namespace(one_line, inside=bundle, env=bundle.env) as command:
                command.wait_for(b"\n")

                def ended() -> bool:
                    bundle.signal(SIGHUP)  # a new event: it has to write, to see that there is no reader
                    return not command.running()

                wait_until(ended, PATIENCE, "the command to end")
                self.assertEqual((command.exit(), command.stderr, command.log.count(b"\n")), (0, "", 1))

    def test_supervise_is_told_where_the_events_are(self) -> None:
        with Bundle([daemon("supervise", "env")]) as bundle:
            self.assertEqual(bundle.exit(), 0)
            self.assertIn(f"SIDECAR_EVENTS_FILE={bundle.state}/events.jsonl".encode(), bundle.lines("supervise"))
            self.assertIn(f"SIDECAR_STATUS_FILE={bundle.state}/status.json".encode(), bundle.lines("supervise"))


class ApplyTest(NamespaceTestCase):
    def test_a_forward_is_done_when_the_signal_was_delivered(self) -> None:
        with Bundle([daemon("egress", *SIGNALS)]) as bundle:
            bundle.wait_for(b"[egress] ready")
            self._applied(bundle, "egress")
            bundle.wait_for(b"[egress] SIGHUP\n")

    def test_a_restart_is_done_when_the_new_one_is_ready(self) -> None:
        with Bundle([daemon("pipelock", *child("listener.py", 7001), port=7001)]) as bundle:
            before = bundle.wait_for_event("ready", "pipelock")["pid"]
            self._applied(bundle, "pipelock")
            after = bundle.daemon("pipelock")
            self.assertTrue(after["ready"])
            self.assertNotEqual(after["pid"], before)

    def test_a_check_that_fails_is_the_reason(self) -> None:
        with Bundle([daemon("pipelock", *SIGNALS, check=["false"])]) as bundle:
            bundle.wait_for(b"[pipelock] ready")
            self._refused(bundle, "check", "pipelock")

    def test_one_that_is_not_ready_in_time_is_the_reason(self) -> None:
        with Bundle([daemon("pipelock", *SLEEP, port=7001)]) as bundle:
            bundle.wait_for_state("pipelock", "starting")
            self._refused(bundle, "ready", "pipelock", "--timeout", "2")

    def test_a_daemon_that_is_not_there_not_selected_or_without_a_signal_is_the_reason(self) -> None:
        daemons = [daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS), daemon("other", *SIGNALS)]
        with Bundle(daemons, env={"BOT_BOTTLE_SIDECAR_DAEMONS": "other,egress"}) as bundle:
            bundle.wait_for(b"] ready", times=2)
            self._refused(bundle, "nobody", "nobody")
            self._refused(bundle, "pipelock", "pipelock")
            self._refused(bundle, "other", "other")
            self.assertEqual(set(bundle.lines("other") + bundle.lines("egress")), {b"ready"})

    def test_what_happened_before_is_no_answer(self) -> None:
        """A restart that worked does not hide that the next is refused, nor the other way round."""
        fine = self.scratch() / "fine"
        fine.touch()
        with Bundle([daemon("pipelock", *SIGNALS, check=shell(f"[ -e {fine} ]"))]) as bundle:
            bundle.wait_for(b"[pipelock] ready")
            self._applied(bundle, "pipelock")
            fine.unlink()
            self._refused(bundle, "check", "pipelock")
            fine.touch()
            self._applied(bundle, "pipelock")
            self.assertEqual(bundle.daemon("pipelock")["restarts"], 2)

    def test_a_signal_that_was_delivered_before_is_no_answer_to_one_that_is_dropped(self) -> None:
        end = self.scratch() / "end"
        daemons = [daemon("egress", *child("signals.py", "--end-when", str(end))), daemon("b", *SLEEP)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[egress] ready")
            self._applied(bundle, "egress")
            os.kill(bundle.host_pid(bundle.daemon("egress")["pid"]), SIGKILL)
            bundle.wait_for_state("egress", "exited")
            self._refused(bundle, "egress", "egress")

    def test_a_shutdown_is_the_reason_whether_it_came_before_or_comes_meanwhile(self) -> None:
        let_go = self.scratch() / "let-go"
        daemons = [daemon("pipelock", *SIGNALS, "--end-when", str(let_go)), daemon("egress", *SIGNALS)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"] ready", times=2)
            with Namespace([*COMMAND, "apply", "pipelock"], inside=bundle, env=bundle.env) as command:
                bundle.wait_for(b"[pipelock] SIGTERM\n")  # its restart has begun, and cannot go on
                bundle.signal(SIGTERM)
                self.assertEqual(command.exit(), 1)
                self.assertRegex(command.stderr, r"\Acannot apply pipelock: .*shutting.down.*\n\Z")
            for name in ("pipelock", "egress"):
                self._refused(bundle, "shutting", name)
            let_go.touch()
            self.assertEqual(bundle.exit(), 0)

    def test_if_there_is_no_supervisor_it_says_so(self) -> None:
        with Namespace(SLEEP) as outer:
            told = outer.inside([*COMMAND, "apply", "egress"], BOT_BOTTLE_SIDECAR_STATE_DIR=str(self.scratch()))
            self.assertEqual(told.returncode, 1)

    def _applied(self, bundle: Bundle, *arguments: str) -> None:
        told = bundle.command("apply", *arguments)
        self.assertEqual((told.returncode, told.stderr), (0, ""))

    def _refused(self, bundle: Bundle, word: str, *arguments: str) -> None:
        told = bundle.command("apply", *arguments)
        self.assertEqual(told.returncode, 1, told.stdout)
        self.assertIn(word, told.stderr)
        self.assertEqual(told.stderr.count("\n"), 1)


class RestartTest(NamespaceTestCase):
    def test_any_daemon_is_restarted_from_inside_and_waited_for_until_it_is_ready(self) -> None:
        daemons = [daemon("a", *SIGNALS), daemon("web", *child("listener.py", 7001), port=7001)]
        with Bundle(daemons) as bundle:
            before = bundle.wait_for_event("ready", "web")["pid"]
            told = bundle.command("restart", "web")
            after = bundle.daemon("web")
            self.assertEqual((told.returncode, told.stderr), (0, ""))
            self.assertEqual(told.stdout, f"web restarted and ready (pid {after['pid']})\n")
            self.assertTrue(after["ready"])
            self.assertNotEqual(after["pid"], before)
            self.assertEqual(bundle.daemon("a")["restarts"], 0)

    def test_one_that_has_exited_or_backs_off_is_started(self) -> None:
        fine = self.scratch() / "fine"
        script = shell(f"[ -e {fine} ] && echo fine && exec sleep 1000; exit 3")
        for restart, state in (("never", "exited"), ("always", "backoff")):
            fine.unlink(missing_ok=True)
            daemons = [daemon("a", *script, restart=restart), daemon("b", *SLEEP)]
            with self.subTest(state), Bundle(daemons, tunables={"_BACKOFF_FIRST": 1000.0}) as bundle:
                bundle.wait_for_state("a", state)
                fine.touch()
                told = bundle.command("restart", "a")
                self.assertEqual((told.returncode, told.stderr), (0, ""))
                bundle.wait_for(b"[a] fine\n")

    def test_what_went_wrong_is_the_reason(self) -> None:
        program = self.scratch() / "program"
        program.symlink_to("/bin/sleep")
        daemons = [
            daemon("checked", *SIGNALS, check=shell("echo bad line 7; exit 3")),
            daemon("gone", str(program), "1000"),
            daemon("unready", *SLEEP, port=7001),
            daemon("fails", *shell("sleep 0.1; exit 4"), port=7002),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[checked] ready\n")
            bundle.wait_for_state("gone", "running")
            program.unlink()
            for name, reason in (
                ("checked", "its check exited with status 3 (bad line 7)"),
                ("gone", f"cannot execute {program}: No such file or directory"),
                ("unready", "not ready after 2 s"),
                ("fails", "exited with status 4"),
                ("other", "it is not in the table, or not selected"),
            ):
                with self.subTest(name):
                    told = bundle.command("restart", name, "--timeout", "2" if name == "unready" else "10")
                    self.assertEqual((told.returncode, told.stdout), (1, ""))
                    self.assertRegex(told.stderr, r"\Acannot [^\n]*\n\Z")
                    self.assertIn(reason, told.stderr)

    def test_two_at_once_are_both_answered(self) -> None:
        let_go = self.scratch() / "let-go"
        with Bundle([daemon("a", *SIGNALS, "--end-when", str(let_go)), daemon("b", *SIGNALS)]) as bundle:
            bundle.wait_for(b"] ready\n", times=2)
            command = [*COMMAND, "restart", "a"]
            with Namespace(command, inside=bundle, env=bundle.env) as first:
                bundle.wait_for(b"[a] SIGTERM\n")
                with Namespace(command, inside=bundle, env=bundle.env) as second:
                    bundle.until(lambda: bundle.daemon("a")["asked"] == 2, PATIENCE, "the second is heard")
                    let_go.touch()
                    self.assertEqual((first.exit(), second.exit()), (0, 0))
            self.assertEqual(bundle.daemon("a")["restarts"], 1)


class PlanTest(NamespaceTestCase):
    def test_what_would_run_and_what_is_missing_without_a_supervisor(self) -> None:
        marker = self.scratch() / "started"
        complete = [daemon("a", "touch", str(marker), user="nobody", port=7001), daemon("b", *SLEEP, after=["a"])]
        told = self._plan(complete)
        self.assertEqual(told.returncode, 0, told.stdout + told.stderr)
        for word in ("a", "b", "touch", "nobody", "7001"):
            self.assertIn(word, told.stdout)
        for broken in (daemon("c", "/no/such/program"), daemon("c", *SLEEP, user="no-such-account")):
            told = self._plan([*complete, broken])
            self.assertEqual(told.returncode, 1)
            self.assertRegex(told.stdout + told.stderr, "/no/such/program|no-such-account")
        self.assertFalse(marker.exists())

    def test_a_supervisor_that_is_not_root_runs_them_as_itself(self) -> None:
        """It cannot switch to another account: one that is missing is no obstacle."""
        daemons = [
            daemon("a", *SLEEP, user="www-data"),
            daemon("b", *SLEEP),
            daemon("c", *SLEEP, user="no-such-account"),
        ]
        become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", self.interpreter()]
        told = self._plan(daemons, become)
        self.assertEqual(told.returncode, 0, told.stdout)
        self.assertEqual(told.stderr.count("only root can switch to another"), 1, told.stderr)
        rows = {line.split()[1]: line for line in told.stdout.splitlines()[1:4]}
        for name, user in (("a", "www-data"), ("c", "no-such-account")):
            self.assertIn(f" - (not {user}: not root) ", rows[name])
        self.assertNotIn("not root", rows["b"])
        as_root = self._plan(daemons, [])
        self.assertNotIn("not root", as_root.stdout)
        self.assertEqual(as_root.returncode, 1, "the control: here it is one")

    def _plan(
        self, daemons: Sequence[dict[str, object]], become: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """What `plan` prints, for the account that the command `become` changes to."""
        bundle = Bundle(daemons)  # for its table alone: it is never started
        self.addCleanup(bundle.discard)
        command = [*(become or COMMAND[:1]), *COMMAND[1:], "plan", *bundle.argv[-2:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


class UsageTest(NamespaceTestCase):
    def test_an_unknown_command_or_a_broken_table_is_2_and_starts_nothing(self) -> None:
        marker, broken = self.scratch() / "started", self.scratch() / "table.toml"
        broken.write_text(f'[[daemon]]\nname = "a"\nargv = ["touch", "{marker}"]\nretsart = "always"\n')
        for arguments, word in ((["frobnicate"], "frobnicate"), (["--table", str(broken)], "retsart")):
            told = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(told.returncode, 2)
            self.assertIn(word, told.stderr)
        self.assertFalse(marker.exists())


class StateDirectoryTest(NamespaceTestCase):
    """Whatever becomes of it, the daemons start, are restarted, and end."""

    DAEMONS = (daemon("egress", *SIGNALS), daemon("pipelock", *SIGNALS))

    def test_that_is_missing_is_made(self) -> None:
        path = self.scratch() / "not" / "there" / "yet"
        with Bundle(self.DAEMONS, state_dir=str(path)) as bundle:
            self._works(bundle)
            self.assertEqual(json.loads((path / "status.json").read_text())["state"], "stopped")

    def test_that_is_read_only_is_one_warning(self) -> None:
        with small_disk(64) as disk:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            with Bundle(self.DAEMONS, state_dir=str(disk / "state")) as bundle:
                self._works(bundle)
                self.assertEqual(len(self._warnings(bundle, str(disk))), 1, bundle.own_lines())

    def test_that_is_full_is_one_warning_and_is_written_again_when_there_is_room(self) -> None:
        with small_disk(64) as disk:
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, self.assertRaises(OSError):
                while True:
                    file.write(bytes(4096))
            with Bundle(self.DAEMONS, state_dir=str(disk)) as bundle:
                bundle.wait_for(b"] ready\n", times=2)
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"[pipelock] ready\n", times=2)
                self.assertEqual(len(self._warnings(bundle, str(disk))), 1, bundle.own_lines())
                filler.unlink()
                wait_until((disk / "status.json").exists, PATIENCE, "the status, without any other change")
                self._works(bundle)
                self.assertEqual(json.loads((disk / "status.json").read_text())["state"], "stopped")

    def test_that_is_turned_off_is_no_warning(self) -> None:
        with Bundle(self.DAEMONS, state_dir="") as bundle:
            self._works(bundle)
            self.assertNotRegex(" ".join(bundle.own_lines()), "cannot|warning|state")

    def test_of_a_supervisor_that_is_not_root_is_in_tmp_and_the_commands_find_it(self) -> None:
        bundle, become, uid = self._not_root()
        with bundle:
            bundle.wait_for(b"] ready\n", times=2)
            about = bundle.state.stat()
            self.assertEqual((about.st_uid, stat.S_IMODE(about.st_mode)), (uid, 0o755))
            for arguments, answer in ((["health"], "healthy: 2 daemons"), (["restart", "egress"], "egress restarted")):
                told = bundle.inside([*become, *COMMAND[1:], *arguments])
                self.assertEqual((told.returncode, told.stderr), (0, ""), arguments)
                self.assertTrue(told.stdout.startswith(answer), told.stdout)
            bundle.wait_for(b"] ready\n", times=3)
            self.assertNotIn("cannot", " ".join(bundle.own_lines()))
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)

    def test_in_tmp_that_another_account_has_made_is_not_used_and_that_is_one_warning(self) -> None:
        bundle, _, _ = self._not_root()
        bundle.state.mkdir()
        bundle.state.chmod(0o777)
        with bundle:
            self._works(bundle)
            self.assertEqual(len(self._warnings(bundle, str(bundle.state))), 1, bundle.own_lines())
            self.assertEqual(list(bundle.state.iterdir()), [])

    def test_that_a_running_supervisor_uses_is_not_taken_over(self) -> None:
        place = self.scratch()
        with Namespace(SLEEP) as machine:
            first = Bundle([daemon("first", *SIGNALS)], inside=machine, state_dir=str(place))
            second = Bundle([daemon("second", *SIGNALS)], inside=machine, state_dir=str(place))
            with first:
                first.wait_for(b"] ready")
                wait_until((place / "status.json").exists, PATIENCE, "its status")
                with second:
                    second.wait_for(b"] ready")
                    (warning,) = self._warnings(second, str(place))
                    self.assertIn("another supervisor uses it", warning)
                    second.signal(SIGTERM)
                    self.assertEqual(second.exit(), 0)
                rows = json.loads((place / "status.json").read_text())["daemons"]
                self.assertEqual([row["name"] for row in rows], ["first"])

    def test_two_supervisors_with_a_directory_each_do_not_meet(self) -> None:
        with Namespace(SLEEP) as machine:
            first = Bundle([daemon("first", *SIGNALS)], inside=machine)
            second = Bundle([daemon("second", *SIGNALS)], inside=machine)
            with first, second:
                for bundle, name in ((first, "first"), (second, "second")):
                    bundle.wait_for(b"] ready")
                    bundle.wait_for_state(name, "running")
                    self.assertEqual(bundle.command("health").returncode, 0)
                    rows = json.loads(bundle.command("status", "--json").stdout)["daemons"]
                    self.assertEqual([row["name"] for row in rows], [name])
                self.assertNotEqual(first.status()["pid"], second.status()["pid"])
                first.signal(SIGTERM)
                self.assertEqual(first.exit(), 0)
                self.assertEqual(second.command("health").returncode, 0)

    def _not_root(self) -> tuple[Bundle, list[str], int]:
        """A supervisor of another account, without a state directory of its own; how to become that account; its uid.

        The machine's /tmp may have such a directory of another run of these tests: the uid has none yet.
        """
        python = self.interpreter()
        uid = next(uid for uid in iter(lambda: random.randrange(20_000, 60_000), -1) if not _in_tmp(uid).exists())
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", python]
        bundle = Bundle([daemon(name, python, *SIGNALS[1:]) for name in ("egress", "pipelock")])
        del bundle.env["BOT_BOTTLE_SIDECAR_STATE_DIR"]
        # What another supervisor has left in the machine's /run is not there.
        bundle.argv = [*shell('mount -t tmpfs -o mode=755 tmpfs /run && exec "$@"'), "sh", *become, *bundle.argv[1:]]
        bundle.state = _in_tmp(uid)
        self.addCleanup(shutil.rmtree, bundle.state, ignore_errors=True)
        return bundle, become, uid

    def _works(self, bundle: Bundle) -> None:
        bundle.wait_for(b"] ready\n", times=2)
        restarts = bundle.log.count(b"pipelock restarted (pid ")
        bundle.signal(SIGUSR1)
        bundle.wait_for(b"pipelock restarted (pid ", times=restarts + 1)
        bundle.wait_for(b"[pipelock] ready\n", times=restarts + 2)
        bundle.signal(SIGHUP)
        bundle.wait_for(b"[egress] SIGHUP\n")
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(), 0)

    def _warnings(self, bundle: Bundle, path: str) -> list[str]:
        return [line for line in bundle.own_lines() if re.search(re.escape(path), line)]


def _in_tmp(uid: int) -> Path:
    """The default state directory of that account."""
    return Path(f"/tmp/sidecar-init-{uid}")
