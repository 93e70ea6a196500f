"""The state files: JSON that every reader understands, whole lines, one rotation, and no harm where they cannot be."""

from __future__ import annotations

import json
import os
import random
import resource
import unittest
from pathlib import Path

import sidecar_init
from sidecar_init import _json, _State
from tests.unit.support import NO_SECRETS, SupervisorTest, UnitTest, secrets

LATIN = "".join(map(chr, range(256)))
NASTY = ["", '"', "\\", "\\u0041", "/", "\n\r\t\b\f", LATIN, "\u2028\u2029", "\U0001f600", "\udc80\udcff"]
FIELDS = {
    "name", "state", "ready", "pid", "port", "user",
    "started_at", "restarts", "crash_looping", "next_start_at", "last_exit",
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


class StateTest(UnitTest):
    def setUp(self) -> None:
        self.path = self.directory() / "state"
        self.said: list[str] = []

    def state(self, owner: sidecar_init._Secrets = NO_SECRETS) -> _State:
        return _State(str(self.path), owner, self.said.append)

    def events(self, name: str = "events.jsonl") -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]


class Files(StateTest):
    def test_status_and_events_are_written_together(self) -> None:
        state = self.state()
        state.record("started", "web", 7, reason="a\nb")
        state.record("signal", None, None)
        state.write('{"pid": 1}')
        self.assertEqual((self.path / "status.json").read_text(), '{"pid": 1}\n')
        first, second = self.events()
        self.assertRegex(str(first.pop("time")), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(first, {"event": "started", "daemon": "web", "pid": 7, "reason": "a\nb"})
        self.assertEqual((second["daemon"], second["pid"]), (None, None))
        self.assertEqual(self.said, [])

    def test_events_are_written_once(self) -> None:
        state = self.state()
        state.record("started", "web", 7)
        state.write("{}")
        state.write("{}")
        self.assertEqual(len(self.events()), 1)

    def test_the_status_is_replaced_and_never_half_written(self) -> None:
        state = self.state()
        state.write("first")
        with open(self.path / "status.json") as old:
            state.write("second")
            self.assertEqual(old.read(), "first\n")
        self.assertEqual(sorted(os.listdir(self.path)), ["status.json"])

    def test_everybody_may_read_them_whatever_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0o077))
        self.path.mkdir(mode=0o755)
        state = self.state()
        state.record("started", "web", 7)
        state.write("{}")
        for file in self.path.iterdir():
            self.assertEqual(file.stat().st_mode & 0o777, 0o644, file.name)

    def test_secrets_are_redacted_in_both(self) -> None:
        state = self.state(secrets(A=b"hush-hush"))
        state.record("failed", "web", 7, reason="hush-hush")
        state.write('{"a": "hush-hush"}')
        for file in self.path.iterdir():
            self.assertIn("[redacted EGRESS_TOKEN_A]", file.read_text())
            self.assertNotIn("hush", file.read_text())

    def test_a_link_in_their_place_is_not_followed(self) -> None:
        self.path.mkdir()
        target = self.path.parent / "target"
        target.write_text("untouched")
        (self.path / "events.jsonl").symlink_to(target)
        state = self.state()
        state.record("started", "web", 7)
        state.write("{}")
        self.assertEqual(target.read_text(), "untouched")

    def test_without_a_directory_nothing_is_kept(self) -> None:
        state = _State("", NO_SECRETS, self.said.append)
        state.record("started", "web", 7)
        self.assertEqual(state._events, [])


class Rotation(StateTest):
    def test_at_one_mib_the_events_move_on_and_nothing_is_lost(self) -> None:
        state = self.state()
        for number in range(300):
            state.record("exited", "web", number, last_lines=["." * 5000])
            state.write("{}")
        older, newer = self.events("events.jsonl.1"), self.events()
        self.assertEqual([event["pid"] for event in older + newer], list(range(300)))
        size = (self.path / "events.jsonl.1").stat().st_size
        self.assertTrue(1 << 20 <= size < (1 << 20) + 6000, size)

    def test_there_are_two_files_at_most(self) -> None:
        state = self.state()
        for number in range(50):
            state.record("exited", "web", number, last_lines=["." * 100_000])
            state.write("{}")
        self.assertEqual(sorted(os.listdir(self.path)), ["events.jsonl", "events.jsonl.1", "status.json"])
        self.assertEqual(self.events()[-1]["pid"], 49)


class Trouble(StateTest):
    def blocked(self) -> _State:
        """A state whose directory cannot be made, also not by root."""
        self.path.write_text("a file stands there")
        return self.state()

    def test_it_is_said_once(self) -> None:
        state = self.blocked()
        for _ in range(3):
            state.record("started", "web", 7)
            state.write("{}")
        [said] = self.said
        self.assertTrue(said.startswith(f"cannot write the state to {self.path}: File exists; all else goes on"), said)

    def test_it_goes_on_when_the_directory_can_be_written_again(self) -> None:
        state = self.blocked()
        state.write("{}")
        self.path.unlink()
        state.record("started", "web", 8)
        state.write("{}")
        self.assertEqual([event["pid"] for event in self.events()], [8])
        self.assertEqual(len(self.said), 1)

    def test_trouble_that_comes_back_is_said_again(self) -> None:
        state = self.blocked()
        state.write("{}")
        self.path.unlink()
        state.write("{}")
        (self.path / "status.json").unlink()
        self.path.rmdir()
        self.path.write_text("")
        state.write("{}")
        self.assertEqual(len(self.said), 2)

    def test_events_of_a_bad_time_do_not_pile_up(self) -> None:
        state = self.blocked()
        for number in range(100):
            state.record("started", "web", number)
            state.write("{}")
        self.assertEqual(state._events, [])

    def test_a_full_disk_leaves_no_half_line_and_no_half_status(self) -> None:
        state = self.state()
        state.record("started", "web", 1)
        state.write("first")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        full = (self.path / "events.jsonl").stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        for number in (2, 3):
            state.record("started", "web", number)
            state.write("second" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        self.assertEqual([event["pid"] for event in self.events()], [1])
        self.assertEqual((self.path / "status.json").read_text(), "first\n")
        self.assertEqual(len(self.said), 1)
        state.record("started", "web", 4)
        state.write("third")
        self.assertEqual([event["pid"] for event in self.events()], [1, 4])
        self.assertEqual((self.path / "status.json").read_text(), "third\n")


class OfASupervisor(SupervisorTest):
    """What the files say of real children."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.directory()
        state = _State(str(self.path), NO_SECRETS, lambda text: None)
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.close_later(fd)
        specs = [
            sidecar_init._DaemonSpec("sleeper", ["/bin/sleep", "60"]),
            sidecar_init._DaemonSpec("dying", ["/bin/sh", "-c", "seq 1 9; printf 'last one'; kill -KILL $$"], "always"),
        ]
        self.supervisor = sidecar_init._Supervisor(specs, log=sidecar_init._Log(fd, NO_SECRETS), state=state)
        self.addCleanup(self.end, self.supervisor)
        self.supervisor.start_all()
        self.tick_until_logged(self.supervisor, "dying exited")
        self.supervisor.tick()

    def test_the_status_has_every_field_of_every_daemon(self) -> None:
        status = json.loads((self.path / "status.json").read_text())
        self.assertEqual((status["pid"], status["state"]), (os.getpid(), "running"))
        self.assertEqual(status["signals"], {"HUP": {"forward": "egress"}, "USR1": {"restart": "pipelock"}})
        sleeper, dying = status["daemons"]
        self.assertEqual((set(sleeper), set(dying)), (FIELDS, FIELDS))
        self.assertEqual((sleeper["state"], sleeper["ready"], sleeper["last_exit"]), ("running", True, None))
        self.assertEqual(sleeper["pid"], self.supervisor.procs[0][1].pid)
        self.assertEqual((dying["state"], dying["ready"], dying["pid"]), ("backoff", False, None))
        self.assertEqual(dying["last_exit"], "SIGKILL")
        self.assertGreater(dying["next_start_at"], status["updated_at"])

    def test_an_exit_explains_itself(self) -> None:
        lines = Path(self.path / "events.jsonl").read_text().splitlines()
        [exited] = [event for event in map(json.loads, lines) if event["event"] == "exited"]
        self.assertEqual((exited["daemon"], exited["code"], exited["signal"]), ("dying", None, "SIGKILL"))
        self.assertEqual(exited["last_lines"], ["6", "7", "8", "9", "last one"])
        self.assertIn(exited["oom"], (False, None))
        self.assertTrue(0.5 <= exited["next_start_in"] <= 0.55)

    def test_the_children_know_where_the_files_are(self) -> None:
        environ = Path(f"/proc/{self.supervisor.procs[0][1].pid}/environ").read_bytes().split(b"\0")
        self.assertIn(b"SIDECAR_EVENTS_FILE=" + os.fsencode(self.path / "events.jsonl"), environ)
        self.assertIn(b"SIDECAR_STATUS_FILE=" + os.fsencode(self.path / "status.json"), environ)


if __name__ == "__main__":
    unittest.main()
