"""A table for any stack: jobs that run once, daemons that others cannot do without, stops, readiness, places."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1
from typing import Any

from tests.pidns.harness import PATIENCE, SLEEP, Bundle, Namespace, NamespaceTestCase, child, daemon, shell
from tests.support import wait_until

SIGNALS = child("signals.py")
QUICK_BACKOFF = {"_BACKOFF_FIRST": 0.01, "_BACKOFF_LAST": 0.01}


def once_there_is(path: Path) -> str:
    """The beginning of a script that waits for a file."""
    return f"until [ -e {path} ]; do sleep 0.01; done; "


class OneshotTest(NamespaceTestCase):
    def test_an_app_starts_when_the_migration_has_succeeded_however_long_that_takes(self) -> None:
        done = self.scratch() / "done"
        migration = daemon("migration", *shell(once_there_is(done) + "echo migrated"), oneshot=True)
        daemons = [daemon("app", *SIGNALS, after=["migration"]), migration]
        with Bundle(daemons, tunables={"_AFTER_SECONDS": 0.1}) as bundle:
            row = bundle.wait_for_state("migration", "running")
            self.assertFalse(row["ready"])
            other = daemon("app", *SLEEP, after=["db"]), daemon("db", *SLEEP, port=7001)
            with Bundle(other, tunables={"_AFTER_SECONDS": 0.1}) as control:
                control.wait_for_state("app", "running")  # for anything else it waits that long only
            bundle.catch_up()
            self.assertEqual(bundle.daemon("app")["reason"], "waits for migration")
            self._unhealthy(bundle, "migration", "app")
            done.touch()
            bundle.wait_for(b"[app] ready\n")
            self.assertLess(bundle.log.index(b"[migration] migrated\n"), bundle.log.index(b"app started (pid "))
            row = bundle.wait_for_state("migration", "exited")
            self.assertEqual((row["ready"], row["reason"]), (True, None))
            self.assertEqual(bundle.command("health").returncode, 0)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)

    def test_what_comes_after_a_migration_that_failed_for_good_waits_and_the_status_says_why(self) -> None:
        daemons = [
            daemon("migration", *shell("exit 3"), oneshot=True),
            daemon("app", *SIGNALS, after=["migration"]),
            daemon("other", *SIGNALS),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[other] ready\n")
            bundle.wait_for_state("migration", "exited")
            bundle.catch_up()
            self.assertEqual(bundle.daemon("app")["state"], "waiting")
            self._unhealthy(bundle, "migration is exited (exited with status 3)", "app is waiting")
            self.assertIn("migration exited with status 3", bundle.daemon("app")["reason"])
            told = bundle.command("restart", "app")
            self.assertEqual((told.returncode, told.stdout), (1, ""))
            self.assertRegex(
                told.stderr, r"\Acannot restart app: .*waits for migration; migration exited with status 3"
            )
            self.assertNotIn(b"app started", bundle.log)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 3)

    def test_a_supervisor_with_nothing_left_but_those_that_wait_for_it_ends_with_its_code(self) -> None:
        daemons = [daemon("migration", *shell("exit 3"), oneshot=True), daemon("app", *SLEEP, after=["migration"])]
        with Bundle(daemons) as bundle:
            self.assertEqual(bundle.exit(), 3)
            self.assertNotIn(b"app started", bundle.log)

    def test_with_on_failure_a_migration_is_tried_until_it_succeeds_and_then_left_alone(self) -> None:
        count = self.scratch() / "count"
        script = f"echo x >>{count}; [ $(wc -l <{count}) -ge 3 ] || exit 3"
        for restart in ("on-failure", "always"):
            count.unlink(missing_ok=True)
            migration = daemon("migration", *shell(script), oneshot=True, restart=restart)
            with (
                self.subTest(restart),
                Bundle([migration, daemon("app", *SIGNALS, after=["migration"])], tunables=QUICK_BACKOFF) as bundle,
            ):
                bundle.wait_for(b"[app] ready\n")
                row = bundle.wait_for_state("migration", "exited")
                self.assertEqual((row["starts"], row["ready"], row["last_exit"]), (3, True, "exited with status 0"))
                bundle.catch_up()
                self.assertEqual(bundle.daemon("migration"), row)

    def test_a_migration_that_is_restarted_runs_again_and_leaves_the_app_alone(self) -> None:
        daemons = [
            daemon("migration", *shell("echo migrated"), oneshot=True),
            daemon("app", *SIGNALS, after=["migration"]),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[app] ready\n")
            app = bundle.wait_for_state("app", "running")
            told = bundle.command("restart", "migration")
            self.assertEqual((told.returncode, told.stderr), (0, ""))
            self.assertEqual(bundle.lines("migration"), [b"migrated", b"migrated"])
            self.assertEqual(bundle.daemon("app"), app)

    def test_a_migration_that_fails_when_it_is_run_again_leaves_the_container_healthy(self) -> None:
        go = self.scratch() / "go"
        once = f"if mkdir {go.parent}/ran; then exit 0; fi; echo again; until [ -e {go} ]; do sleep 0.01; done; exit 3"
        with Bundle([daemon("migration", *shell(once), oneshot=True), daemon("app", *SIGNALS)]) as bundle:
            bundle.wait_for(b"[app] ready\n")
            bundle.wait_for_state("migration", "exited")
            bundle.signal(34)
            bundle.wait_for(b"[migration] again\n")
            self.assertEqual(bundle.command("health").returncode, 0)
            go.touch()
            bundle.wait_for(b"migration exited with status 3")
            self.assertEqual(bundle.command("health").returncode, 0)

    def _unhealthy(self, bundle: Bundle, *words: str) -> None:
        told = bundle.command("health")
        self.assertEqual((told.returncode, told.stdout), (1, ""))
        for word in words:
            self.assertIn(word, told.stderr)


class EssentialTest(NamespaceTestCase):
    def test_its_end_ends_the_container_with_its_code_and_the_log_says_which_and_why(self) -> None:
        for fields, script, code, why in (
            ({}, "exit 7", 7, "exited with status 7"),
            ({}, "exit 0", 0, "exited with status 0"),
            ({}, "kill -9 $$", 137, "was terminated by SIGKILL"),
            ({"restart": "on-failure"}, "exit 0", 0, "exited with status 0"),
            ({"oneshot": True}, "exit 7", 7, "exited with status 7"),
        ):
            end = self.scratch() / "end"
            app = daemon("app", *shell(once_there_is(end) + script), essential=True, **fields)
            with self.subTest(script, **fields), Bundle([app, daemon("other", *SIGNALS, "--end", "200")]) as bundle:
                bundle.wait_for(b"[other] ready\n")
                end.touch()
                self.assertEqual(bundle.exit(), code)
                self.assertIn(f"shutting down: app is essential and {why}", bundle.own_lines())
                self.assertEqual(bundle.lines("other"), [b"ready", b"SIGTERM"], "it was stopped as always")

    def test_with_restarts_it_ends_the_container_only_when_it_is_crash_looping(self) -> None:
        for script, code in (("exit 7", 7), ("exit 0", 1)):
            app = daemon("app", *shell(script), essential=True, restart="always")
            with self.subTest(script), Bundle([app, daemon("other", *SLEEP)], tunables=QUICK_BACKOFF) as bundle:
                self.assertEqual(bundle.exit(), code)
                self.assertEqual(len(bundle.events("exited", "app")), 5)
                self.assertIn("shutting down: app is essential and is crash-looping", bundle.own_lines())

    def test_if_restarts_are_turned_off_its_first_exit_ends_the_container(self) -> None:
        app = daemon("app", *shell("exit 7"), essential=True, restart="always")
        env = {"SIDECAR_INIT_RESTART": "never"}
        with Bundle([app, daemon("other", *SLEEP)], env=env) as bundle:
            self.assertEqual(bundle.exit(), 7)

    def test_one_that_cannot_be_executed_ends_the_container(self) -> None:
        app = daemon("app", "/no/such/program", essential=True, restart="always")
        with Bundle([app, daemon("other", *SLEEP)]) as bundle:
            self.assertEqual(bundle.exit(), 127)

    def test_a_restart_that_was_asked_for_and_a_oneshot_that_succeeded_are_no_end(self) -> None:
        daemons = [
            daemon("job", "true", essential=True, oneshot=True),
            daemon("pipelock", *SIGNALS, essential=True),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[pipelock] ready\n")
            bundle.wait_for_state("job", "exited")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] ready\n", times=2)
            bundle.catch_up()
            self.assertNotIn(b"shutting down", bundle.log)


class StopTest(NamespaceTestCase):
    def test_a_master_that_alone_gets_the_signal_finishes_its_workers_job(self) -> None:
        for name in ("TERM", "QUIT"):
            gate = self.scratch() / "gate"
            app = daemon("app", *child("master.py", gate), stop={"signal": name, "to": "leader", "grace": 1000})
            with self.subTest(name), Bundle([app]) as bundle:
                bundle.wait_for(b"[app] working\n")
                bundle.signal(SIGTERM)
                bundle.wait_for(f"[app] SIG{name}\n".encode())
                bundle.catch_up()
                self.assertEqual(len(bundle.running_commands("master.py")), 2, "both are alive")
                gate.touch()
                self.assertEqual(bundle.exit(), 0)
                self.assertEqual(bundle.lines("app"), [b"working", f"SIG{name}".encode(), b"finished"])

    def test_a_signal_to_the_whole_group_loses_the_job(self) -> None:
        """The control of the one above."""
        with Bundle([daemon("app", *child("master.py", self.scratch() / "gate"))]) as bundle:
            bundle.wait_for(b"[app] working\n")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 1)
            self.assertEqual(bundle.lines("app"), [b"working", b"SIGTERM", b"lost"])

    def test_a_restart_lets_the_job_finish_too(self) -> None:
        gate = self.scratch() / "gate"
        stop = {"signal": "QUIT", "to": "leader", "grace": 1000}
        with Bundle([daemon("pipelock", *child("master.py", gate), stop=stop)]) as bundle:
            bundle.wait_for(b"[pipelock] working\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"[pipelock] SIGQUIT\n")
            bundle.catch_up()
            self.assertEqual(bundle.lines("pipelock"), [b"working", b"SIGQUIT"])
            gate.touch()
            bundle.wait_for(b"[pipelock] working\n", times=2)
            self.assertIn(b"finished", bundle.lines("pipelock"))

    def test_kill_goes_to_the_whole_group(self) -> None:
        """Where the supervisor is PID 1 the kernel would end the worker anyway; here only the supervisor can."""
        app = daemon("app", *child("master.py", "/no/gate"), stop={"to": "leader", "grace": 0.3})
        with Namespace(SLEEP) as outer, Bundle([app], inside=outer) as bundle:
            bundle.wait_for(b"[app] working\n")
            group = bundle.running_commands("master.py")
            self.assertEqual(len(group), 2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)
            self.assertEqual([one for one in group if Path(f"/proc/{one.pid}").exists()], [])

    def test_what_a_leader_has_left_behind_is_stopped_too(self) -> None:
        script = shell("trap 'exit 0' TERM; sleep 2000 & echo up; wait")
        app = daemon("app", *script, stop={"to": "leader", "grace": 1000})
        with Namespace(SLEEP) as outer, Bundle([app], inside=outer) as bundle:
            bundle.wait_for(b"[app] up\n")

            def sleeps() -> bool:
                """Executed: until then, it is a shell that may have the trap of the first."""
                return any(one.command == "sleep 2000" for one in bundle.running_commands("sleep 2000"))

            wait_until(sleeps, PATIENCE, "the sleep")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(outer.running_commands("sleep 2000"), [])

    def test_a_long_grace_delays_the_kill_of_that_daemon_alone(self) -> None:
        let_go = self.scratch() / "let-go"
        daemons = [
            daemon("long", *SIGNALS, "--end-when", str(let_go), stop={"grace": 1000}),
            daemon("short", *SIGNALS, "--stay", stop={"grace": 0.2}),
            daemon("usual", *SIGNALS, "--stay"),
        ]
        with Bundle(daemons, tunables={"_GRACE_SECONDS": 0.3}) as bundle:
            bundle.wait_for(b"] ready\n", times=3)
            bundle.signal(SIGTERM)
            for name in ("short", "usual"):
                bundle.wait_for(f"{name} was terminated by SIGKILL".encode())
            bundle.catch_up()
            self.assertEqual(bundle.daemon("long")["state"], "stopping")
            let_go.touch()
            self.assertEqual(bundle.exit(), 137)
            self.assertEqual([one["daemon"] for one in bundle.events("killed")], ["short", "usual"])

    def test_plan_says_how_long_the_engine_must_wait(self) -> None:
        for fields, seconds in (({}, 10), ({"stop": {"grace": 30}}, 32)):
            with Bundle([daemon("app", *SLEEP, **fields), daemon("b", *SLEEP)]) as bundle:
                told = bundle.inside([*bundle.argv[:-2], "plan", *bundle.argv[-2:]])
                self.assertIn("stop_grace_period", told.stdout)
                self.assertIn(f" at least {seconds} s\n", told.stdout)
                self.assertEqual((told.returncode, told.stdout.splitlines()[-1]), (0, "ok"))


class ReadyTest(NamespaceTestCase):
    def test_a_daemon_is_ready_when_its_command_succeeds_and_what_comes_after_it_starts_then(self) -> None:
        folder = self.scratch()
        first = daemon("first", *SIGNALS, ready=child("readiness.py", folder))
        with Bundle([daemon("second", *SIGNALS, after=["first"]), first]) as bundle:
            bundle.until(lambda: self._tries(folder) >= 2, PATIENCE, "two tries")
            self.assertFalse(bundle.daemon("first")["ready"])
            self.assertEqual(bundle.daemon("second")["state"], "waiting")
            (folder / "ready").touch()
            bundle.wait_for(b"[second] ready\n")
            self.assertTrue(bundle.wait_for_state("first", "running")["ready"])
            self.assertRegex(bundle.log, rb"sidecar-init: first ready after \d+\.\d\d s\n")
            tries = self._tries(folder)
            for _ in range(10):
                bundle.catch_up()
            self.assertEqual(self._tries(folder), tries, "it is not run any more")
            self.assertEqual(bundle.lines("first"), [b"ready"], "what the first tries say is not logged")
            self.assertFalse((folder / "two-at-once").exists())

    def test_it_runs_as_the_daemons_user_in_its_directory_with_its_environment(self) -> None:
        folder = self.scratch()
        (folder / "ready").touch()
        python = self.interpreter()
        ready = [python, *child("readiness.py", folder)[1:]]
        fields: dict[str, Any] = {"user": "nobody", "cwd": str(folder), "env": {"MODE": "fast"}}
        with Bundle([daemon("app", *SLEEP, ready=ready, **fields)]) as bundle:
            bundle.wait_for_state("app", "running")
            _, uid, cwd, mode = (folder / "tries").read_text().split()
            self.assertEqual((cwd, mode), (str(folder), "fast"))
            self.assertNotEqual(int(uid), 0)

    def test_from_the_tenth_failure_on_its_output_is_logged_and_the_status_says_why(self) -> None:
        folder = self.scratch()
        app = daemon("app", *SIGNALS, ready=child("readiness.py", folder))
        tunables = {"_READY_FIRST": 0.01, "_READY_LAST": 0.01}
        with Bundle([app], tunables=tunables) as bundle:
            bundle.wait_for(b"[app] try ")
            first = next(line for line in bundle.lines("app") if line.startswith(b"try "))
            self.assertRegex(first, rb"\Atry (10|11|12)\Z")
            bundle.wait_for(b"app is not ready: its readiness command exited with status 1 (try ")
            told = bundle.command("health")
            self.assertEqual(told.returncode, 1)
            self.assertIn("its readiness command exited with status 1", told.stderr)
            self.assertFalse((folder / "two-at-once").exists())

    def test_one_that_hangs_is_ended_and_tried_again_never_two_at_once(self) -> None:
        folder = self.scratch()
        app = daemon("app", *SIGNALS, ready=child("readiness.py", folder, "wait"))
        tunables = {"_READY_SECONDS": 0.3, "_READY_FIRST": 0.01, "_READY_LAST": 0.01}
        with Bundle([app], tunables=tunables) as bundle:
            bundle.until(lambda: self._tries(folder) >= 3, PATIENCE, "three tries")
            (folder / "ready").touch()
            bundle.wait_for_state("app", "running")
            self.assertFalse((folder / "two-at-once").exists())

    def test_it_is_killed_with_its_daemon(self) -> None:
        for end in (SIGKILL, SIGTERM):
            folder = self.scratch()
            daemons = [daemon("app", *SIGNALS, ready=child("readiness.py", folder, "wait")), daemon("other", *SIGNALS)]
            tunables = {"_GRACE_SECONDS": 1000.0, "_READY_SECONDS": 1000.0}
            with self.subTest(end), Bundle(daemons, tunables=tunables) as bundle:
                bundle.wait_for(b"] ready\n", times=2)
                bundle.until(lambda: self._tries(folder), PATIENCE, "a try")  # noqa: B023
                if end == SIGKILL:
                    os.kill(bundle.host_pid(bundle.daemon("app")["pid"]), SIGKILL)
                    bundle.wait_for_state("app", "exited")
                    wait_until(lambda: not bundle.running_commands("readiness.py"), PATIENCE, "its end")
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 137 if end == SIGKILL else 0)

    def test_signals_are_served_while_it_hangs(self) -> None:
        folder = self.scratch()
        with Bundle([daemon("egress", *SIGNALS, ready=child("readiness.py", folder, "wait"))]) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.until(lambda: self._tries(folder), PATIENCE, "a try")
            bundle.signal(SIGHUP)
            bundle.wait_for(b"[egress] SIGHUP\n")

    def test_with_a_port_both_must_succeed(self) -> None:
        folder = self.scratch()
        listen = folder / "listen"
        app = daemon("app", *child("listener.py", 7001, listen), port=7001, ready=child("readiness.py", folder))
        with Bundle([app]) as bundle:
            (folder / "ready").touch()
            bundle.until((folder / "succeeded").exists, PATIENCE, "a try that succeeds")
            wait_until(lambda: not bundle.running_commands("readiness.py"), PATIENCE, "its end")
            bundle.catch_up()
            self.assertFalse(bundle.daemon("app")["ready"])
            listen.touch()
            self.assertTrue(bundle.wait_for_state("app", "running")["ready"])

    def _tries(self, folder: Path) -> int:
        path = folder / "tries"
        return path.read_text().count("\n") if path.exists() else 0


class HeldPortTest(NamespaceTestCase):
    def test_a_port_that_another_process_holds_does_not_count_and_the_log_says_so(self) -> None:
        listen = self.scratch() / "listen"
        squatter = child("listener.py", 7001)
        web = daemon("web", *shell(once_there_is(listen) + f"exec {' '.join(squatter)}"), port=7001)
        with Namespace(squatter) as outer:
            outer.wait_for(b"listening\n")
            with Bundle([web, daemon("second", *SLEEP, after=["web"])], inside=outer) as bundle:
                bundle.wait_for(b"sidecar-init: web is not ready: another process holds port 7001\n")
                bundle.catch_up()
                self.assertFalse(bundle.daemon("web")["ready"])
                self.assertEqual(bundle.daemon("second")["state"], "waiting")
                self.assertIn("another process holds port 7001", bundle.command("health").stderr)
                listen.touch()
                bundle.wait_for(b"[web] cannot listen: ")
                self.assertFalse(bundle.wait_for_state("web", "exited")["ready"])
                self.assertEqual(bundle.events("ready", "web"), [])

    def test_its_own_socket_counts(self) -> None:
        """The control: the same arrangement, on another port."""
        with Namespace(child("listener.py", 7001)) as outer:
            outer.wait_for(b"listening\n")
            with Bundle([daemon("web", *child("listener.py", 7002), port=7002)], inside=outer) as bundle:
                self.assertTrue(bundle.wait_for_state("web", "running")["ready"])


class PlaceTest(NamespaceTestCase):
    def test_a_daemon_runs_in_its_directory_with_its_variables(self) -> None:
        place = self.scratch()
        shows = shell('echo "$PWD $(pwd -P) $MODE $LANG"')
        fields: dict[str, Any] = {"cwd": str(place), "env": {"MODE": 'fast = "1"', "LANG": "xx"}}
        with Bundle([daemon("a", *shows, **fields), daemon("b", *shows)], env={"MODE": "outer"}) as bundle:
            self.assertEqual(bundle.exit(), 0)
            (line,) = bundle.lines("a")
            self.assertEqual(line.decode().split(" ", 1)[1], f'{place} fast = "1" xx')
            self.assertEqual(bundle.lines("b")[0].split()[-2:], [b"outer", b"C.UTF-8"])

    def test_a_directory_that_is_missing_is_a_failed_start_with_the_reason_and_the_others_run(self) -> None:
        place = self.scratch() / "missing"
        daemons = [daemon("a", *SIGNALS, cwd=str(place), restart="always"), daemon("b", *SIGNALS)]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[b] ready\n")
            row = bundle.wait_for_state("a", "failed")
            reason = f"cannot change to its working directory {place}: No such file or directory"
            self.assertEqual(row["reason"], reason)
            self.assertEqual([line for line in bundle.own_lines() if reason in line], [self._said(reason)])
            self.assertIn(reason, bundle.command("status").stdout)
            place.mkdir()
            self.assertEqual(bundle.command("restart", "a").returncode, 0)
            bundle.wait_for(b"[a] ready\n")
            self.assertEqual(os.readlink(f"/proc/{bundle.host_pid(bundle.daemon('a')['pid'])}/cwd"), str(place))

    def test_it_may_be_a_directory_that_only_its_user_can_enter(self) -> None:
        place = self.scratch() / "private"
        place.mkdir(0o700)
        os.chown(place, 65534, 65534)
        with Bundle([daemon("a", *shell("pwd -P"), cwd=str(place), user="nobody")]) as bundle:
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.lines("a"), [str(place).encode()])

    def _said(self, reason: str) -> str:
        return f"cannot start a: {reason}; it stays down until a restart is requested"


class PrefixTest(NamespaceTestCase):
    def test_lines_that_are_json_already_pass_without_a_prefix_and_are_whole(self) -> None:
        json = '{"level": "info"}'
        daemons = [
            daemon("a", *shell(f"echo '{json}'; printf '%s' '{json}'"), prefix=False),
            daemon("b", *shell("echo hello")),
        ]
        with Bundle(daemons) as bundle:
            self.assertEqual(bundle.exit(), 0)
            lines = bundle.log.decode().splitlines()
            self.assertEqual(lines.count(json), 2)
            self.assertIn("[b] hello", lines)

    def test_its_secrets_are_still_redacted(self) -> None:
        env, secrets = {"API_KEY_1": "correct-horse-battery"}, {"API_KEY_": "a"}
        shows: Sequence[str] = shell("echo key=$API_KEY_1")
        with Bundle([daemon("a", *shows, prefix=False)], env=env, secrets=secrets) as bundle:
            self.assertEqual(bundle.exit(), 0)
            self.assertIn(b"key=[redacted API_KEY_1]\n", bundle.log)
