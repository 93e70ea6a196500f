"""The state directory: PID 1 writes where daemons of root may rename, link and exchange, and commands read there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, SIGUSR1, SIGUSR2
from typing import Any

from tests.pidns.hardened import DOCKER, OTHER, OWNER, TOKEN, AttackTestCase, HardenedBundle, attacker
from tests.pidns.harness import PATIENCE, SLEEP, Bundle, NamespaceTestCase, daemon, shell


class StateDirectoryTest(AttackTestCase):
    def mode_after_the_race(self, rounds: int, user: str | None = None, without: str = "") -> str:
        """Of a file of another account, with mode 0600 at first."""
        rows = [
            daemon("egress", *SLEEP, user=OWNER),
            daemon("hostile", *attacker("state_race.py", rounds), **({"user": user} if user else {})),
        ]
        # A change of mode needs FOWNER, which an engine gives when it is told nothing.
        bundle = HardenedBundle(rows, capabilities=DOCKER, without=without or ())
        with bundle:
            private = self.private_file(bundle)
            bundle.until(lambda: bundle.found("report"), 6 * PATIENCE, "the race is over")
            self.report = bundle.found("report")
            return oct(stat.S_IMODE(private.stat().st_mode))

    def test_an_exchange_of_the_directory_does_not_open_the_file_of_another_account(self) -> None:
        self.assertEqual(self.mode_after_the_race(40), "0o600")
        self.assertEqual(self.report, b"done")

    def test_control_made_and_changed_by_path_it_does(self) -> None:
        self.assertEqual(self.mode_after_the_race(1000, without="state-directory-descriptor"), "0o755")

    def test_an_ordinary_account_cannot_touch_it(self) -> None:
        self.assertEqual(self.mode_after_the_race(1, user=OTHER), "0o600")
        self.assertEqual(self.report, b"Permission denied")

    def owner_of_the_directory(self, without: str = "") -> int:
        """Where everyone may create files, and the first daemon creates it as soon as it runs."""
        first = shell("mkdir -m 777 /run/place/state; echo created with $?; exec sleep 1000")
        rows = [daemon("first", *first, user=OTHER), daemon("egress", *SLEEP, user=OWNER)]
        with HardenedBundle(rows, state_dir="/run/place/state", without=without or ()) as bundle:
            bundle.wait_for(b"[first] created with ")
            bundle.wait_for_state("egress", "running")
            return bundle.state.stat().st_uid

    def test_no_daemon_can_create_it_before_pid_1(self) -> None:
        for _ in range(5):
            self.assertEqual(self.owner_of_the_directory(), 0)

    def test_control_made_after_the_first_daemon_it_belongs_to_that(self) -> None:
        owners = {self.owner_of_the_directory("state-directory-first") for _ in range(10)}
        self.assertNotEqual(owners, {0})

    def assert_unused(self, setup: str) -> None:
        with HardenedBundle([daemon("egress", *SLEEP)], setup=setup) as bundle:
            bundle.wait_for(b"sidecar-init: egress started ")
            bundle.wait_for(b"/run/sidecar-init")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            files = [path.name for path in bundle.run.rglob("*.json*")]
            self.assertEqual(files, [])
            said = [line for line in bundle.own_lines() if "/run/sidecar-init" in line]
            self.assertEqual(len(said), 1, said)
            self.assertRegex(said[0], r"^cannot (use|write|keep) ")

    def test_a_directory_of_another_user_is_not_used(self) -> None:
        self.assert_unused(f"mkdir -m 777 /run/sidecar-init; chown {OTHER} /run/sidecar-init")

    def test_a_link_to_a_directory_is_not_used(self) -> None:
        self.assert_unused("mkdir /run/elsewhere; ln -s elsewhere /run/sidecar-init")

    def test_a_file_is_not_used(self) -> None:
        self.assert_unused("touch /run/sidecar-init")

    def test_a_directory_that_was_renamed_away_is_not_followed_by_another(self) -> None:
        """PID 1 goes on in the one that it opened, and nothing that a daemon puts in its place is written to."""
        swap = "mv /run/sidecar-init /run/old; mkdir /run/elsewhere; ln -s elsewhere /run/sidecar-init; echo swapped"
        rows = [daemon("egress", *SLEEP, user=OWNER), daemon("hostile", *shell(f"sleep 0.2; {swap}; exec sleep 1000"))]
        with HardenedBundle(rows) as bundle:
            bundle.wait_for(b"[hostile] swapped\n")
            for _ in range(3):
                bundle.signal(SIGUSR2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            self.assertEqual(list((bundle.run / "elsewhere").iterdir()), [])

    def test_links_in_the_place_of_its_files_are_not_followed(self) -> None:
        rows = [daemon("egress", *SLEEP, user=OWNER, restart="always"), daemon("web", *SLEEP)]
        with HardenedBundle(rows, capabilities=DOCKER) as bundle:
            private = self.private_file(bundle)
            before = private.read_bytes(), private.stat().st_mode, private.stat().st_uid
            bundle.wait_for_state("web", "running")
            for name in ("status.json", "status.json.new", "events.jsonl", "events.jsonl.1"):
                (bundle.state / name).unlink(missing_ok=True)
                (bundle.state / name).symlink_to("/run/place/private")
            for _ in range(3):
                bundle.signal(SIGUSR2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            self.assertEqual((private.read_bytes(), private.stat().st_mode, private.stat().st_uid), before)

    def after_a_rename(self, name: str, without: str = "") -> HardenedBundle:
        """A daemon of root renames a file of another account, in a folder that is root's, to one of PID 1's."""
        place = f"/run/sidecar-init/{name}"
        steal = f"mv -f /run/token {place}; kill -USR1 1; kill -USR2 1; "
        # Until PID 1 has given it away, or replaced it.
        steal += f"while [ -e {place} ] && ! cat {place} >>/run/place/loot; do sleep 0.01; done 2>/dev/null"
        rows = [
            daemon("egress", *SLEEP, user=OWNER),
            daemon("hostile", *shell(f"sleep 0.2; {steal}; echo tried; exec sleep 1000")),
            daemon("pipelock", *SLEEP),
        ]
        setup = f"printf {TOKEN} >/run/token; chown {OWNER} /run/token; chmod 600 /run/token"
        setup += "; stat -c %i /run/token >/run/inode"
        bundle = self.enter(HardenedBundle(rows, capabilities=DOCKER, setup=setup, without=without or ()))
        bundle.wait_for(b"[hostile] tried\n")
        self.inode = int((bundle.run / "inode").read_text())
        return bundle

    def test_a_file_of_another_account_is_neither_opened_nor_emptied_under_a_name_of_pid_1(self) -> None:
        for name in ("events.jsonl", "status.json.new"):
            with self.subTest(name):
                bundle = self.after_a_rename(name)
                self.assertNotIn(TOKEN.encode(), bundle.found())
                bundle.catch_up()
                for path in bundle.state.iterdir():
                    self.assertNotEqual(path.stat().st_ino, self.inode, "it was written to")

    def test_control_opened_whatever_it_is_it_is_given_away(self) -> None:
        bundle = self.after_a_rename("events.jsonl", "own-state-files")
        self.assertIn(TOKEN.encode(), bundle.found())

    def test_what_a_daemon_has_put_in_the_place_of_its_files_is_removed(self) -> None:
        def forge(path: Path, kind: str) -> None:
            path.unlink(missing_ok=True)
            {"link": lambda: path.symlink_to("/nowhere"), "pipe": lambda: os.mkfifo(path)}[kind]()

        with HardenedBundle([daemon("egress", *SLEEP, user=OWNER), daemon("pipelock", *SLEEP)]) as bundle:
            bundle.wait_for_state("pipelock", "running")
            for kind in ("link", "pipe"):
                for name in ("status.json.new", "events.jsonl"):
                    with self.subTest(f"{kind} {name}"):
                        forge(bundle.state / name, kind)
                        bundle.signal(SIGUSR1)  # an event, soon
                        bundle.catch_up()
                        bundle.until((bundle.state / "events.jsonl").is_file, PATIENCE, "a file of events")

    def test_hard_links_in_the_place_of_its_files_change_no_mode(self) -> None:
        """A hard link to a file of another account needs no right to it, if the kernel does not protect hard links."""
        rows = [daemon("egress", *SLEEP, user=OWNER)]
        with HardenedBundle(rows, capabilities=DOCKER) as bundle:
            private = bundle.run / "private"
            private.write_text("secret")
            private.chmod(0o600)
            os.chown(private, 33, 33)
            bundle.wait_for_state("egress", "running")
            for name in ("status.json.new", "events.jsonl"):
                (bundle.state / name).unlink(missing_ok=True)
                os.link(private, bundle.state / name)
                bundle.signal(SIGUSR2)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            self.assertEqual(oct(stat.S_IMODE(private.stat().st_mode)), "0o600")
            self.assertEqual(private.read_text(), "secret")


class CommandTest(NamespaceTestCase):
    """What the commands read was written by PID 1, or by a hostile daemon of root."""

    COMMANDS = (("health",), ("status",), ("status", "--json"), ("events",), ("events", "--json"), ("apply", "web"))

    def bundle(self, **options: Any) -> Bundle:
        rows = [daemon("web", *SLEEP), daemon("other", *SLEEP)]
        bundle = self.enterContext(Bundle(rows, signals={"USR1": {"restart": "web"}}, **options))
        bundle.wait_for_state("other", "running")
        return bundle

    def answers(self, forge: Callable[[Path], None], without: str = "") -> list[subprocess.CompletedProcess[str]]:
        """Of all commands, when both files have been replaced; an address space of 1 GiB protects the machine."""
        bundle = self.bundle(without=without or ())
        bundle.suspend()  # so that it does not put its own back
        for name in ("status.json", "events.jsonl"):
            (bundle.state / name).unlink()
            forge(bundle.state / name)
        limit = ["prlimit", f"--as={1 << 30}"]
        seconds = 2 if without else PATIENCE  # a control may hang
        return [bundle.inside([*limit, *bundle.program, *command], seconds) for command in self.COMMANDS]

    def assert_refused(self, forge: Callable[[Path], None]) -> None:
        for done in self.answers(forge):
            self.assertEqual((done.returncode, done.stdout), (1, ""), done)
            self.assertRegex(done.stderr, r"\Acannot [^\n]*\n\Z")

    def test_a_pipe_does_not_hang_them(self) -> None:
        self.assert_refused(os.mkfifo)

    def test_control_opened_as_it_comes_a_pipe_hangs_the_health_check(self) -> None:
        with self.assertRaises(subprocess.TimeoutExpired):
            self.answers(os.mkfifo, without="regular-state-files")

    def test_a_link_is_not_followed(self) -> None:
        self.assert_refused(lambda path: path.symlink_to("/dev/zero"))

    def test_a_link_to_the_commands_own_environment_is_not_followed(self) -> None:
        """`docker exec` gives a command all that the container was given."""
        bundle = self.bundle()
        bundle.suspend()
        for name in ("status.json", "events.jsonl"):
            (bundle.state / name).unlink()
            (bundle.state / name).symlink_to("/proc/self/environ")
        for command in self.COMMANDS:
            done = bundle.command(*command, SECRET="a\nsesame\nb\n")
            self.assertNotIn("sesame", done.stdout + done.stderr, command)

    def test_two_files_of_events_that_are_alike_do_not_hang_them(self) -> None:
        """As if one had been rotated between the two reads, each time."""
        bundle = self.bundle()
        shutil.copy(bundle.state / "events.jsonl", bundle.state / "events.jsonl.1")
        self.assertEqual(bundle.command("events").returncode, 0)

    def test_a_directory_is_no_file(self) -> None:
        self.assert_refused(Path.mkdir)

    def test_a_huge_file_is_not_read(self) -> None:
        def forge(path: Path) -> None:
            path.touch()
            os.truncate(path, 1 << 40)

        for done in self.answers(forge):
            self.assertIn(done.returncode, (0, 1), done)
            self.assertRegex(done.stdout + done.stderr, r"\A([^\n]*\n)?\Z")

    def test_events_that_a_daemon_forged_do_not_steer_the_terminal(self) -> None:
        bundle = self.bundle()
        forged = {"time": "2026-01-01T00:00:00Z", "event": "started", "daemon": "web", "pid": 1}
        lines = [
            "\x1b[2Kgood news\n",
            json.dumps({**forged, "event": "\x1b[31m"}, ensure_ascii=False) + "\n",
            json.dumps({**forged, "last_lines": ["\x9b2K"]}, ensure_ascii=False) + "\n",
            '{"time": "\x1b]0;title\x07"}\n',
        ]
        with (bundle.state / "events.jsonl").open("a") as file:
            file.writelines(lines)
        for command in (("events",), ("events", "--json"), ("events", "web"), ("events", "web", "--json")):
            with self.subTest(command):
                done = bundle.command(*command)
                self.assertEqual([one for one in done.stdout + done.stderr if ord(one) < 32 and one != "\n"], [])
                self.assertNotRegex(done.stdout, "[\x7f-\x9f]")

    def test_a_forged_event_does_not_hide_the_others(self) -> None:
        bundle = self.bundle()
        forged = {"event": "started", "daemon": "web", "pid": 1}
        times: tuple[object, ...] = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "now", 7, None, [])
        with (bundle.state / "events.jsonl").open("a") as file:
            file.writelines(json.dumps({**forged, "time": when}) + "\n" for when in times)
            file.write('[1]\n{"time": 1e400, "event": [], "daemon": {}}\n' + "[" * 10_000 + "\n" + "9" * 5000 + "\n")
        for command in (("events", "-n", "100"), ("events", "-n", "100", "--json"), ("events", "other")):
            done = bundle.command(*command)
            self.assertEqual((done.returncode, done.stderr), (0, ""), command)
            self.assertRegex(done.stdout, "ready.*other|other.*ready")

    def test_what_the_commands_wait_for_does_not_steer_the_terminal(self) -> None:
        """apply and restart name a pid at the end, which a daemon of root can write while they wait."""
        bundle = self.bundle()
        escape = "\x1b[2K"
        bundle.catch_up()
        bundle.suspend()
        status = bundle.status()
        status["daemons"][0] |= {"pid": escape, "restarts": 7, "ready": True, "last_exit": escape}
        event = {"time": "2026-01-01T00:00:00Z", "daemon": "web", "pid": escape, "reason": escape, "signal": escape}
        forger = threading.Thread(target=self._forge, args=(bundle, status, event))
        forger.start()
        try:
            for command in (("apply", "web", "--timeout", "1"), ("restart", "web", "--timeout", "1"), ("status",)):
                done = bundle.command(*command)
                self.assertNotIn("\x1b", done.stdout + done.stderr, command)
                self.assertNotIn("Traceback", done.stderr)
        finally:
            self.forged_enough.set()
            forger.join()
            bundle.signal(SIGCONT)

    def _forge(self, bundle: Bundle, status: dict[str, Any], event: dict[str, Any]) -> None:
        for turn in itertools.count(status["daemons"][0]["restarts"]):
            status["daemons"][0]["restarts"] = turn
            (bundle.state / "forged").write_text(json.dumps(status))
            os.replace(bundle.state / "forged", bundle.state / "status.json")
            with (bundle.state / "events.jsonl").open("a") as file:
                for kind in ("restarting", "restarted", "ready"):
                    file.write(json.dumps({**event, "event": kind, "seconds": turn}) + "\n")
            if self.forged_enough.wait(0.02):
                break

    def setUp(self) -> None:
        self.forged_enough = threading.Event()

    def test_while_a_daemon_stops_the_status_has_no_pid_of_a_process_that_was_reaped(self) -> None:
        """Its number may be another process by then, and commands signal it."""
        stays = shell("(trap '' TERM; echo up; while :; do sleep 0.05; done) & wait")
        with Bundle([daemon("web", *stays), daemon("other", *SLEEP)], signals={"USR1": {"restart": "web"}}) as bundle:
            bundle.wait_for(b"[web] up\n")
            leader = bundle.host_pid(bundle.wait_for_state("web", "running")["pid"])
            os.kill(leader, SIGKILL)
            row = bundle.wait_for_state("web", "stopping")
            bundle.catch_up()
            row = bundle.daemon("web")
            self.assertEqual((row["state"], row["pid"]), ("stopping", None))


if __name__ == "__main__":
    unittest.main()
