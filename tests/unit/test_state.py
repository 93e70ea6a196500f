"""The state files: JSON that every reader understands, whole lines, one rotation, and no way to misuse them."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import sidecar_init
from sidecar_init import _json, _State
from tests.unit.support import NO_SECRETS, SupervisorTest, UnitTest, environ_of, secrets

LATIN = "".join(map(chr, range(256)))
NASTY = ["", '"', "\\", "\\u0041", "/", "\n\r\t\b\f", LATIN, "\u2028\u2029", "\U0001f600", "\udc80\udcff"]
FIELDS = {
    "name", "state", "ready", "reason", "pid", "port", "signal", "user", "started_at", "starts", "restarts",
    "crash_looping", "succeeded", "next_start_at", "last_exit", "asked", "answered", "answer", "refused",
}  # fmt: skip


def read_back(value: object) -> object:
    """What a reader makes of it, by way of bytes as they are written."""
    return json.loads(_json(value).encode("utf-8", "backslashreplace"))


class Json(unittest.TestCase):
    def test_it_is_what_the_json_module_reads_back(self) -> None:
        for value in (None, True, False, 0, 7, -3, 1.5, 0.001, [], {}, [None, [1]], {"a": {"b": [True, "x"]}}, *NASTY):
            with self.subTest(repr(value)):
                self.assertEqual(read_back(value), value)

    def test_random_text_is_read_back(self) -> None:
        for seed in range(200):
            choice = random.Random(seed)
            text = "".join(chr(choice.choice([choice.randrange(0x110000), choice.randrange(128)])) for _ in range(20))
            if any("\ud800" <= c <= "\udfff" for c in text):
                continue  # two halves may meet
            self.assertEqual(read_back({text: [text]}), {text: [text]}, f"seed {seed}")

    def test_it_is_one_line_and_steers_no_terminal(self) -> None:
        line = _json(NASTY)
        self.assertEqual(len(line.splitlines()), 1)
        self.assertFalse(set(line) & {chr(n) for n in (*range(32), *range(127, 160))})


def give_up(state: _State) -> None:
    """What the end of its supervisor does."""
    if state._directory:
        os.close(state._directory._fd)


class StateTest(UnitTest):
    def setUp(self) -> None:
        self.path = self.directory() / "state"
        self.log = self.path.with_name("log")
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.close_later(fd)
        self.sink = sidecar_init._Log(fd, NO_SECRETS)

    def state(self, path: Path | None = None) -> _State:
        state = _State(str(path or self.path), self.sink)
        self.addCleanup(give_up, state)
        return state

    def write(self, state: _State, **about: object) -> None:
        state.write({"pid": 1, **about}, {})

    def said(self) -> list[str]:
        self.sink.flush()
        return [line.removeprefix("sidecar-init: ") for line in self.log.read_text().splitlines()]

    def status(self) -> dict[str, object]:
        status: dict[str, object] = json.loads((self.path / "status.json").read_text())
        return status

    def events(self, name: str = "events.jsonl") -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]


class Files(StateTest):
    def test_status_and_events_are_written_together(self) -> None:
        state = self.state()
        state.record("started", "web", 7, reason="a\nb")
        state.record("signal", None, None)
        state.write({"pid": 1}, {"web": lambda: {"name": "web"}, "db": lambda: {"name": "db"}})
        self.assertEqual(self.status(), {"pid": 1, "daemons": [{"name": "web"}, {"name": "db"}]})
        first, second = self.events()
        self.assertRegex(str(first.pop("time")), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(first, {"event": "started", "daemon": "web", "pid": 7, "reason": "a\nb"})
        self.assertEqual((second["daemon"], second["pid"]), (None, None))
        self.assertEqual(self.said(), [])

    def test_events_are_written_once(self) -> None:
        state = self.state()
        state.record("started", "web", 7)
        self.write(state)
        self.write(state)
        self.assertEqual(len(self.events()), 1)

    def test_only_daemons_that_have_changed_are_described_again(self) -> None:
        state, described = self.state(), []

        def describe(name: str) -> dict[str, object]:
            described.append(name)
            return {"name": name, "times": described.count(name)}

        daemons = {name: functools.partial(describe, name) for name in ("web", "db")}
        state.write({"pid": 1}, daemons)
        state.touch("db")
        state.write({"pid": 1}, daemons)
        state.touch()
        state.write({"pid": 1}, daemons)
        self.assertEqual(described, ["web", "db", "db"])
        self.assertEqual(self.status()["daemons"], [{"name": "web", "times": 1}, {"name": "db", "times": 2}])

    def test_it_is_out_of_date_from_a_change_to_the_next_write(self) -> None:
        state = self.state()
        self.assertFalse(state.is_stale)
        changes: list[Callable[[], None]] = [
            state.touch,
            functools.partial(state.touch, "web"),
            functools.partial(state.record, "ready", "web", 7),
        ]
        for change in changes:
            change()
            self.assertTrue(state.is_stale)
            self.write(state)
            self.assertFalse(state.is_stale)

    def test_the_status_is_replaced_and_never_half_written(self) -> None:
        state = self.state()
        self.write(state, number=1)
        with open(self.path / "status.json") as old:
            self.write(state, number=2)
            self.assertEqual(json.load(old)["number"], 1)
        self.assertEqual(sorted(os.listdir(self.path)), ["status.json"])

    def test_all_users_may_read_them_whatever_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0o077))
        state = self.state()
        state.record("started", "web", 7)
        self.write(state)
        for file in self.path.iterdir():
            self.assertEqual(file.stat().st_mode & 0o777, 0o644, file.name)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o755)

    def test_without_a_directory_nothing_is_kept(self) -> None:
        state = _State("", self.sink)
        state.record("started", "web", 7)
        self.write(state)
        self.assertEqual((state._events, state.environ, self.said()), ([], {}, []))

    def test_daemons_are_told_where_they_are(self) -> None:
        names = {"SIDECAR_STATUS_FILE": "status.json", "SIDECAR_EVENTS_FILE": "events.jsonl"}
        self.assertEqual(self.state().environ, {key: f"{self.path}/{name}" for key, name in names.items()})


class Directory(StateTest):
    """It must be ours alone; it is opened once, and never created again."""

    def is_refused(self, path: Path, reason: str) -> None:
        state = self.state(path)
        state.record("started", "web", 7)
        self.write(state)
        self.assertEqual((state._directory, state.environ), (None, {}))
        self.assertEqual(
            self.said(),
            [f"cannot keep status and events in {path}: {reason}; set SIDECAR_INIT_STATE_DIR to another directory"],
        )

    def test_a_link_to_a_directory_is_not_followed(self) -> None:
        target = self.path.with_name("target")
        target.mkdir(mode=0o700)
        self.path.symlink_to(target)
        self.is_refused(self.path, "Not a directory")
        self.assertEqual((os.listdir(target), target.stat().st_mode & 0o777), ([], 0o700))

    def test_one_of_another_user_is_not_used(self) -> None:
        path = self.path if os.geteuid() == 0 else Path("/usr")
        if os.geteuid() == 0:
            path.mkdir(mode=0o700)
            os.chown(path, 1, 1)
        before = path.stat().st_mode, sorted(os.listdir(path))
        self.is_refused(path, "it belongs to another user")
        self.assertEqual((path.stat().st_mode, sorted(os.listdir(path))), before)

    @unittest.skipUnless(os.geteuid() == 0, "only root owns these")
    def test_one_in_which_all_users_write_is_left_to_them(self) -> None:
        for path in map(Path, ("/tmp", "/dev/shm/", "/dev/../tmp")):
            mode = path.stat().st_mode
            self.addCleanup(path.chmod, stat.S_IMODE(mode))
            self.is_refused(path, "all users write to it")
            self.assertEqual(path.stat().st_mode, mode)
            self.log.write_text("")

    def test_a_new_tmpfs_is_taken(self) -> None:
        """In Kubernetes it has the mode of /tmp."""
        self.path.mkdir()
        self.path.chmod(0o1777)
        self.write(self.state())
        self.assertEqual((self.path.stat().st_mode & 0o7777, self.said()), (0o755, []))

    def test_a_file_in_its_place_is_reported(self) -> None:
        self.path.write_text("")
        self.is_refused(self.path, "File exists")

    def test_one_that_another_supervisor_uses_is_left_to_it(self) -> None:
        first = self.state()
        self.write(first, number=1)
        self.is_refused(self.path, "another supervisor uses it")
        self.write(first, number=2)
        self.assertEqual(self.status()["number"], 2)

    def test_one_whose_supervisor_has_exited_is_used_again(self) -> None:
        hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"
        self.path.mkdir()
        command = [sys.executable, "-ISc", hold, str(self.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout
            other.stdout.readline()
            self.is_refused(self.path, "another supervisor uses it")
            other.kill()
        self.write(self.state())
        self.assertTrue((self.path / "status.json").exists())

    def test_one_that_is_renamed_is_followed_and_what_takes_its_place_is_not_touched(self) -> None:
        state = self.state()
        self.path.rename(self.path.with_name("moved"))
        target = self.path.with_name("target")
        target.mkdir()
        self.path.symlink_to(target)
        state.record("started", "web", 7)
        self.write(state)
        self.assertEqual(sorted(os.listdir(self.path.with_name("moved"))), ["events.jsonl", "status.json"])
        self.assertEqual(os.listdir(target), [])

    def test_one_that_is_removed_is_reported_once_and_not_created_again(self) -> None:
        state = self.state()
        self.path.rmdir()
        for _ in range(3):
            state.record("started", "web", 7)
            self.write(state)
        [said] = self.said()
        self.assertEqual(said, f"cannot write to {self.path}: No such file or directory; the status is out of date")
        self.assertFalse(self.path.exists())


class PlantedFiles(StateTest):
    """What stands in the place of a state file cannot make PID 1 write to, or open to all, anything else."""

    PLACES = ("status.json.new", "events.jsonl", "status.json", "events.jsonl.1")

    def setUp(self) -> None:
        """A file that is waited for must fail the test, not hang it."""

        def blocked(*_: object) -> None:
            raise AssertionError("the state waited for a file")

        super().setUp()
        before = signal.signal(signal.SIGALRM, blocked)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 20, 0.2)  # also the next one, after a subtest that has failed
        self.precious = self.path.with_name("precious")

    def planted(self, plant: Callable[[Path], object], name: str) -> None:
        """Write twice over what was planted there, so that the events are rotated, too."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.precious.write_text("untouched")
        self.precious.chmod(0o600)
        state = _State(str(self.path), self.sink)
        try:
            plant(self.path / name)
            for _ in range(2):
                state.record("started", "web", 7, padding="." * sidecar_init._EVENTS_LIMIT)
                self.write(state, number=1)
        finally:
            give_up(state)

    def is_untouched(self) -> bool:
        return (self.precious.read_text(), self.precious.stat().st_mode & 0o777) == ("untouched", 0o600)

    def link(self, place: Path) -> None:
        place.hardlink_to(self.precious)

    def symlink(self, place: Path) -> None:
        place.symlink_to(self.precious)

    def fifo_with_a_reader(self, place: Path) -> None:
        os.mkfifo(place)
        reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)

    @staticmethod
    def open_naively(directory: sidecar_init._Directory, name: str, flags: int) -> int:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | flags, 0o644, dir_fd=directory._fd)
        os.fchmod(fd, 0o644)
        return fd

    def test_a_link_to_another_file_is_not_written_to(self) -> None:
        for plant in (self.link, self.symlink):
            for name in self.PLACES:
                with self.subTest(plant.__name__, name=name):
                    self.planted(plant, name)
                    self.assertTrue(self.is_untouched())

    def test_without_the_look_at_what_was_opened_it_is(self) -> None:
        for plant in (self.link, self.symlink):
            for name in self.PLACES[:2]:
                with self.subTest(plant.__name__, name=name):
                    with mock.patch.object(sidecar_init._Directory, "_open", self.open_naively):
                        self.planted(plant, name)
                    self.assertFalse(self.is_untouched())

    def test_a_hard_link_is_replaced_by_a_file_of_our_own(self) -> None:
        for name in self.PLACES:
            with self.subTest(name):
                self.planted(self.link, name)
                self.assertEqual(self.said(), [])
                self.assertEqual(self.status()["number"], 1)
                self.assertEqual(len(self.events("events.jsonl.1")), 1)

    def test_a_fifo_does_not_hold_the_supervisor(self) -> None:
        for plant in (os.mkfifo, self.fifo_with_a_reader):
            for name in self.PLACES:
                with self.subTest(plant.__name__, name=name):
                    self.planted(plant, name)
                    if plant is not os.mkfifo or name in self.PLACES[2:]:
                        self.assertTrue((self.path / "status.json").is_file())
                        self.assertTrue((self.path / "events.jsonl.1").is_file())

    @unittest.skipUnless(os.geteuid() == 0, "only root can give files away")
    def test_a_file_of_another_user_is_replaced(self) -> None:
        def of_another(place: Path) -> None:
            place.write_text("forged")
            os.chown(place, 1, 1)

        for name in self.PLACES:
            with self.subTest(name):
                self.planted(of_another, name)
                for file in self.path.iterdir():
                    self.assertEqual(file.stat().st_uid, 0, file.name)
                    self.assertNotIn("forged", file.read_text())


class Rotation(StateTest):
    def test_at_one_mib_the_events_move_on_and_nothing_is_lost(self) -> None:
        state = self.state()
        for number in range(300):
            state.record("exited", "web", number, last_lines=["." * 5000])
            self.write(state)
        older, newer = self.events("events.jsonl.1"), self.events()
        self.assertEqual([event["pid"] for event in older + newer], list(range(300)))
        size = (self.path / "events.jsonl.1").stat().st_size
        self.assertTrue(1 << 20 <= size < (1 << 20) + 6000, size)

    def test_there_are_two_files_at_most(self) -> None:
        state = self.state()
        for number in range(50):
            state.record("exited", "web", number, last_lines=["." * 100_000])
            self.write(state)
        self.assertEqual(sorted(os.listdir(self.path)), ["events.jsonl", "events.jsonl.1", "status.json"])
        self.assertEqual(self.events()[-1]["pid"], 49)


class Trouble(StateTest):
    def blocked(self, name: str = "status.json.new") -> _State:
        """A state that cannot be written, also not by root."""
        state = self.state()
        (self.path / name).mkdir()
        return state

    def test_it_is_said_once(self) -> None:
        for name in ("status.json.new", "events.jsonl"):
            state = self.blocked(name)
            for _ in range(3):
                state.record("started", "web", 7)
                self.write(state)
            [said] = self.said()
            self.assertEqual(said, f"cannot write to {self.path}: Is a directory; the status is out of date")
            shutil.rmtree(self.path)
            self.log.write_text("")

    def test_it_goes_on_when_the_files_can_be_written_again(self) -> None:
        state = self.blocked("events.jsonl")
        self.write(state)
        (self.path / "events.jsonl").rmdir()
        state.record("started", "web", 8)
        self.write(state, number=1)
        self.assertEqual([event["pid"] for event in self.events()], [8])
        self.assertEqual(self.status()["number"], 1)

    def test_trouble_that_comes_back_is_said_again(self) -> None:
        state = self.blocked()
        for _ in range(2):
            self.write(state)
            (self.path / "status.json.new").rmdir()
            self.write(state)
            (self.path / "status.json.new").mkdir()
        self.assertEqual(len(self.said()), 2)

    def test_events_of_a_bad_time_do_not_pile_up(self) -> None:
        state = self.blocked("events.jsonl")
        for number in range(100):
            state.record("started", "web", number)
            self.write(state)
        self.assertEqual(state._events, [])

    def test_a_full_disk_leaves_no_half_line_and_no_half_status(self) -> None:
        state = self.state()
        state.record("started", "web", 1)
        self.write(state, text="first")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        full = (self.path / "events.jsonl").stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        for number in (2, 3):
            state.record("started", "web", number)
            self.write(state, text="second" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        self.assertEqual([event["pid"] for event in self.events()], [1])
        self.assertEqual(self.status()["text"], "first")
        self.assertEqual(len(self.said()), 1)
        state.record("started", "web", 4)
        self.write(state, text="third")
        self.assertEqual([event["pid"] for event in self.events()], [1, 4])
        self.assertEqual(self.status()["text"], "third")


class OfASupervisor(SupervisorTest):
    """What the files say of real children."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.directory() / "state"
        self.specs: tuple[sidecar_init._DaemonSpec, ...] = (
            sidecar_init._DaemonSpec("sleeper", ["/bin/sleep", "60"]),
            sidecar_init._DaemonSpec(
                "crasher", ["/bin/sh", "-c", "seq 1 9; printf 'last one'; kill -KILL $$"], "always"
            ),
        )

    def run_until(self, logged: str, secrets: sidecar_init._Secrets = NO_SECRETS) -> None:
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.close_later(fd)
        self.patch("_DAEMONS", self.specs)
        log = sidecar_init._Log(fd, secrets)
        state = _State(str(self.path), log)
        self.addCleanup(give_up, state)
        self.supervisor = sidecar_init._Supervisor(self.specs, log=log, state=state)
        self.addCleanup(self.end, self.supervisor)
        self.supervisor.start_all()
        self.tick_until_logged(self.supervisor, logged)
        self.tick_until_written()

    def tick_until_written(self) -> None:
        self.tick_until(self.supervisor, lambda: not self.supervisor._state.is_stale, "the status is written")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.path / "status.json").read_text())
        return status

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.path / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def test_the_status_has_every_field_of_every_daemon(self) -> None:
        self.run_until("crasher was terminated")
        status = self.status()
        self.assertEqual((status["pid"], status["state"], status["heartbeats"]), (os.getpid(), "running", 0))
        self.assertEqual(status["signals"], {"HUP": {"forward": "egress"}, "USR1": {"restart": "pipelock"}})
        sleeper, crasher = status["daemons"]
        self.assertEqual((set(sleeper), set(crasher)), (FIELDS, FIELDS))
        self.assertEqual((sleeper["state"], sleeper["ready"], sleeper["last_exit"]), ("running", True, None))
        self.assertEqual((sleeper["reason"], sleeper["starts"], sleeper["restarts"]), (None, 1, 0))
        self.assertEqual((sleeper["asked"], sleeper["answered"], sleeper["answer"]), (0, 0, None))
        self.assertEqual(sleeper["pid"], self.supervisor.procs[0][1].pid)
        self.assertEqual((crasher["state"], crasher["ready"], crasher["pid"]), ("backoff", False, None))
        self.assertEqual(crasher["last_exit"], "was terminated by SIGKILL")
        self.assertEqual(crasher["reason"], "was terminated by SIGKILL")
        self.assertGreater(crasher["next_start_at"], status["updated_at"])
        self.assertEqual((sleeper["signal"], crasher["signal"]), (34, 35))

    def test_an_exit_explains_itself(self) -> None:
        self.run_until("crasher was terminated")
        [exited] = self.events("exited")
        self.assertEqual((exited["daemon"], exited["code"], exited["signal"]), ("crasher", None, "SIGKILL"))
        self.assertEqual(exited["last_lines"], ["6", "7", "8", "9", "last one"])
        self.assertIn(exited["oom"], (False, None))
        self.assertTrue(0.5 <= exited["next_start_in"] <= 0.55)

    def test_the_children_know_where_the_files_are(self) -> None:
        self.run_until("sleeper started")
        environ = environ_of(self.supervisor.procs[0][1].pid)
        self.assertEqual(environ["SIDECAR_EVENTS_FILE"], str(self.path / "events.jsonl"))
        self.assertEqual(environ["SIDECAR_STATUS_FILE"], str(self.path / "status.json"))

    def test_a_secret_that_is_a_word_of_the_status_changes_no_word_of_it(self) -> None:
        words = ["sleeper", "running", "daemons", "restarts", "backoff", "crasher", "started", "exited", "signal"]
        self.run_until("[redacted", secrets(**{word: word.encode() for word in words}))
        self.tick_until(self.supervisor, lambda: self.events("exited"), "the exit of crasher")
        status = self.status()
        self.assertEqual([row["name"] for row in status["daemons"]], ["sleeper", "crasher"])
        self.assertEqual([row["state"] for row in status["daemons"]], ["running", "backoff"])
        self.assertEqual([set(row) for row in status["daemons"]], [FIELDS, FIELDS])
        self.assertEqual(status["state"], "running")
        self.assertEqual(self.events("exited")[0]["daemon"], "crasher")

    def test_the_beginning_of_a_secret_that_an_exit_cuts_off_appears_nowhere(self) -> None:
        self.patch("_SECRETS", {"EGRESS_TOKEN_": ("egress",)})
        script = "printf 'token=open-ses'; kill -KILL $$"
        self.specs = (sidecar_init._DaemonSpec("egress", ["/bin/sh", "-c", script]),)
        self.run_until("egress was terminated", secrets(A=b"open-sesame"))
        self.assertIn("token=[redacted EGRESS_TOKEN_A]\n", self.logged())
        self.assertEqual(self.events("exited")[0]["last_lines"], [])  # every daemon can read them
        for file in (self.log, *self.path.iterdir()):
            self.assertNotIn("open-ses", file.read_text())

    def test_secrets_are_redacted_in_whatever_a_daemon_or_its_commands_are_and_say(self) -> None:
        self.patch("_READY_SILENT", 1)
        say, hush = "echo hush-hush; exit 3", "[redacted EGRESS_TOKEN_A]"
        self.specs = (
            sidecar_init._DaemonSpec("sayer", ["/bin/sh", "-c", say]),
            sidecar_init._DaemonSpec("missing", ["/nowhere/hush-hush"]),
            sidecar_init._DaemonSpec("lost", ["/bin/true"], cwd="/nowhere/hush-hush"),
            sidecar_init._DaemonSpec("ready", ["/bin/sleep", "60"], ready=["/bin/sh", "-c", say]),
            sidecar_init._DaemonSpec("never", ["/bin/sleep", "60"], ready=["/nowhere/hush-hush"]),
            sidecar_init._DaemonSpec("checked", ["/bin/sleep", "60"], check=["/bin/sh", "-c", say]),
            sidecar_init._DaemonSpec("unchecked", ["/bin/sleep", "60"], check=["/nowhere/hush-hush"]),
        )
        self.run_until("never is not ready: cannot execute", secrets(A=b"hush-hush"))
        self.tick_until_logged(self.supervisor, "ready is not ready: its readiness command")
        for name in ("checked", "unchecked"):
            self.assertFalse(self.supervisor.restart_daemon(name))
        self.tick_until_written()
        rows = {row["name"]: row for row in self.status()["daemons"]}
        for name in ("missing", "lost", "ready", "never"):
            self.assertIn(hush, rows[name]["reason"], name)
        for name in ("checked", "unchecked"):
            self.assertIn(hush, rows[name]["answer"], name)
        self.assertEqual(self.events("exited")[0]["last_lines"], [hush])
        for file in (self.log, *self.path.iterdir()):
            self.assertIn(hush, file.read_text())
            self.assertNotIn("hush-hush", file.read_text())


if __name__ == "__main__":
    unittest.main()
