"""The log: whole lines, in order, nothing lost, and nothing ever waits for its reader."""

import contextlib
import fcntl
import os
import pty
import random
import re
import socket
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1
from typing import Any

from tests.pidns.harness import PATIENCE, SLEEP, Bundle, Collector, NamespaceTestCase, child, daemon, shell, small_disk
from tests.support import wait_until

LINES = 200_000
KIB, MIB = 1024, 1024 * 1024


def _numbered(count: int, separator: bytes = b"\n") -> bytes:
    """What numbered.py writes."""
    return (b"%07d" + separator) * count % (*range(count),)


class FidelityTest(NamespaceTestCase):
    def test_five_daemons_lose_and_mix_nothing_before_a_reader_that_stalls_at_random(self) -> None:
        names = ["a", "b", "c", "d", "e"]
        bundle = Bundle([daemon(name, *child("numbered.py", LINES)) for name in names], reading=False)
        dice, sizes = random.Random(3), []
        expected = _numbered(LINES)
        size = 5 * (len(expected) + len(b"[a] ") * LINES)

        def stall() -> None:
            if dice.random() < 0.2:
                time.sleep(dice.choice((0.005, 0.02, 0.06)))

        def all_is_there(data: bytearray) -> bool:
            sizes.append(bundle.proc("VmRSS"))
            return len(data) > size

        with bundle:
            bundle.wait_for_stall("numbered.py", 5)
            before = bundle.proc("VmRSS")
            bundle.reader.before_each_read = stall
            bundle.reader.resume()
            self.assertTrue(bundle.reader.wait_for(all_is_there, 30))
            bundle.reader.before_each_read = lambda: None
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            for name in names:
                arrived = b"".join(line + b"\n" for line in bundle.lines(name))
                self.assertTrue(arrived == expected, f"the lines of {name}")
            self.assertEqual(bundle.log.count(b"\n"), 5 * LINES + len(bundle.own_lines()), "no other line is there")
            self.assertGreater(len(sizes), 10)
            self.assertLess(max(sizes) - before, 4 * KIB, "kB of growth")

    def test_10_mib_without_a_newline_arrive_complete_in_prefixed_pieces(self) -> None:
        count = 10 * MIB // 8
        with Bundle([daemon("long", *child("numbered.py", count, ",", "leave"))]) as bundle:
            self.assertEqual(bundle.exit(20), 0)
            pieces = bundle.lines("long")
            self.assertTrue(b"".join(pieces) == _numbered(count, b","), "the bytes of the long line")
            self.assertLessEqual(max(map(len, pieces)), 64 * KIB)
            self.assertLess(len(pieces), 4 * 160, "pieces are large")

    def test_a_last_line_without_newline_gets_one_and_comes_before_the_line_of_its_exit(self) -> None:
        with Bundle([daemon("a", *shell("printf 'first\\nlast'; exit 4"))]) as bundle:
            self.assertEqual(bundle.exit(), 4)
            self.assertLess(bundle.log.index(b"[a] last\n"), bundle.log.index(b"sidecar-init: a exited with status 4"))

    def test_nul_and_invalid_utf8_pass_unchanged(self) -> None:
        with Bundle([daemon("a", *shell(r"printf 'nul \000 invalid \377\376 end\n'"))]) as bundle:
            bundle.exit()
            self.assertEqual(bundle.lines("a"), [b"nul \0 invalid \xff\xfe end"])

    def test_an_empty_line_is_a_line(self) -> None:
        with Bundle([daemon("a", *shell(r"printf '\n\nx\n'"))]) as bundle:
            bundle.exit()
            self.assertEqual(bundle.lines("a"), [b"", b"", b"x"])

    def test_a_grandchild_that_keeps_the_pipe_delays_nothing_and_is_still_heard(self) -> None:
        speak, apart = self.scratch() / "speak", self.scratch() / "apart"
        later = f"setsid sh -c 'touch {apart}; until [ -e {speak} ]; do sleep 0.02; done; echo late' &"
        script = f"{later} until [ -e {apart} ]; do sleep 0.02; done; echo early; exit 3"
        with Bundle([daemon("a", *shell(script)), daemon("b", *SLEEP)]) as bundle:
            bundle.wait_for(b"sidecar-init: a exited with status 3")
            self.assertEqual(bundle.lines("a"), [b"early"])
            speak.touch()
            bundle.wait_for(b"[a] late\n")

    def test_a_flood_starves_no_other_daemon_and_no_signal(self) -> None:
        daemons = [daemon("flood", *child("flood.py")), daemon("egress", *child("signals.py"))]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.wait_for(b"[flood] flood")
            for turn in range(1, 6):
                bundle.signal(SIGHUP)
                bundle.wait_for(b"[egress] SIGHUP\n", times=turn)
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)


class StalledReaderTest(NamespaceTestCase):
    def test_signals_restarts_and_exits_go_on(self) -> None:
        daemons = [
            daemon("egress", *child("signals.py")),
            daemon("pipelock", *SLEEP),
            daemon("flood", *child("flood.py")),
            daemon("other", "sleep", "2000"),
        ]
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            bundle.wait_for(b"[flood] flood")
            bundle.reader.pause()
            bundle.wait_for_stall("flood.py")
            bundle.catch_up()
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("restarted", "pipelock")
            os.kill(bundle.running_commands("sleep 2000")[0].pid, SIGKILL)
            self.assertEqual(bundle.wait_for_event("exited", "other")["signal"], "SIGKILL")
            bundle.signal(SIGHUP)
            bundle.catch_up()
            bundle.reader.resume()
            bundle.wait_for(b"[egress] SIGHUP\n")

    def test_memory_is_bounded(self) -> None:
        with Bundle([daemon("a", *SLEEP)]) as bundle:
            bundle.wait_for_state("a", "running")
            idle = bundle.proc("VmRSS")
        with Bundle([daemon(name, *child("flood.py")) for name in "abcde"], reading=False) as bundle:
            bundle.wait_for_stall("flood.py", 5)
            self.assertLess(bundle.proc("VmRSS") - idle, 4 * KIB)

    def test_term_ends_it_within_the_grace(self) -> None:
        with Bundle([daemon("flood", *child("flood.py"))], reading=False, tunables={"_GRACE_SECONDS": 0.3}) as bundle:
            bundle.wait_for_stall("flood.py")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(5), 143)

    def test_what_was_taken_before_the_end_is_whole_when_the_reader_comes_back_in_time(self) -> None:
        with Bundle([daemon("a", *child("numbered.py", LINES))], reading=False) as bundle:
            bundle.wait_for_stall("numbered.py")
            bundle.signal(SIGTERM)
            bundle.wait_for_event("exited", "a")
            bundle.reader.resume()
            self.assertEqual(bundle.exit(), 143)
            written = b"".join(line + b"\n" for line in bundle.lines("a"))
            self.assertTrue(_numbered(LINES).startswith(written[:-1]), "in order, nothing missing between")
            self.assertTrue(bundle.own_lines()[-1].startswith("exiting with status 143"), bundle.own_lines())

    def test_what_a_slow_reader_cannot_take_in_time_is_counted_in_a_last_line(self) -> None:
        read_end, write_end = os.pipe()
        daemons = [daemon("a", *child("numbered.py", LINES))]
        tunables = {"_GRACE_SECONDS": 0.3}
        with _closing(read_end, write_end), Bundle(daemons, stdout=write_end, tunables=tunables) as bundle:
            bundle.wait_for_stall("numbered.py")
            reader = Collector(read_end, reading=False, size=4096)
            reader.before_each_read = lambda: time.sleep(0.005)
            bundle.signal(SIGTERM)
            reader.resume()
            self.assertEqual(bundle.exit(), 143)
            reader.before_each_read = lambda: None
            os.close(write_end)
            reader.finish(PATIENCE)
            *_, last = reader.data.splitlines()
            self.assertRegex(last, rb"^sidecar-init: \d+ log lines were lost: the log's reader stalled$")


class BrokenStdoutTest(NamespaceTestCase):
    """Each daemon here writes far more than any buffer holds, and then leaves a file behind: it was not held up."""

    def test_a_closed_reader_stops_no_daemon(self) -> None:
        done, daemons = self._loud()
        with Bundle(daemons) as bundle:
            bundle.wait_for(b"[loud] ready\n")
            bundle.close_reader()
            self._goes_on(bundle, done)

    def test_a_closed_stdout_stops_no_daemon(self) -> None:
        done, daemons = self._loud()
        with Bundle(daemons, before_exec=lambda: os.close(1)) as bundle:
            bundle.wait_for_state("loud", "running")
            self._goes_on(bundle, done)

    def test_a_full_device_stops_no_daemon(self) -> None:
        done, daemons = self._loud()
        with open("/dev/full", "wb") as full, Bundle(daemons, stdout=full.fileno()) as bundle:
            bundle.wait_for_state("loud", "running")
            self._goes_on(bundle, done)

    def test_a_full_disk_stops_no_daemon_and_the_log_goes_on_when_there_is_room_again(self) -> None:
        done, daemons = self._loud()
        with small_disk(256) as disk, (disk / "log").open("ab") as log:
            filler = disk / "filler"
            filler.write_bytes(bytes(128 * KIB))
            with Bundle([*daemons, daemon("egress", *child("signals.py"))], stdout=log.fileno()) as bundle:

                def has_handlers() -> bool:
                    return b"[egress] ready" in (disk / "log").read_bytes()

                wait_until(has_handlers, PATIENCE, "egress to have its handlers")
                self.go.write_text("\n")
                wait_until(done.exists, PATIENCE, "the daemon to be done")
                bundle.catch_up()  # its last words, too, met a full disk: they cannot fill it again
                filler.unlink()

                def heard_of_again() -> bool:
                    bundle.signal(SIGHUP)
                    time.sleep(0.02)
                    return b"[egress] SIGHUP\n" in (disk / "log").read_bytes()

                wait_until(heard_of_again, PATIENCE, "the log to go on")
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 143)
            for line in (disk / "log").read_bytes().splitlines():  # one may be cut where the disk was full
                self.assertRegex(line, rb"^(\[loud\] \w*|\[egress\] \w+|sidecar-init: .*|\[\w*\]?)$")

    def _loud(self) -> tuple[Path, list[dict[str, Any]]]:
        scratch = self.scratch()
        done, go = scratch / "done", scratch / "go"
        os.mkfifo(go)
        self.go = go
        script = f"echo ready; read -r _ <{go}; yes | head -c {4 * MIB}; touch {done}; exec sleep 1000"
        return done, [daemon("loud", *shell(script))]

    def _goes_on(self, bundle: Bundle, done: Path) -> None:
        self.go.write_text("\n")
        wait_until(done.exists, PATIENCE, "the daemon to be done")
        bundle.catch_up()
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(), 143)


class KindsOfStdoutTest(NamespaceTestCase):
    def test_a_terminal(self) -> None:
        master, slave = pty.openpty()
        tty.setraw(slave)
        self._works(master, slave)

    def test_prefixes_have_colours_on_a_terminal_alone_and_not_if_no_color_is_set_to_something(self) -> None:
        coloured = rb"\033\[\d+m\[a\] \033\[0mhello\r?\n"
        for terminal, no_color, expected in (
            (True, "", coloured),
            (True, "1", rb"\[a\] hello\r?\n"),
            (False, "", None),
        ):
            ours, theirs = pty.openpty() if terminal else os.pipe()
            with self.subTest(terminal=terminal, no_color=no_color), _closing(ours, theirs):
                with Bundle([daemon("a", *shell("echo hello"))], stdout=theirs, env={"NO_COLOR": no_color}) as bundle:
                    reader = Collector(ours)
                    self.assertEqual(bundle.exit(), 0)
                    os.close(theirs)
                    reader.finish(PATIENCE)
                self.assertRegex(reader.data, rb"(?m)^" + (expected or rb"\[a\] hello\n"))
                self.assertEqual(b"\033" in reader.data, expected == coloured)

    def test_a_stalled_terminal(self) -> None:
        master, slave = pty.openpty()
        self._ends_when_stalled(master, slave)

    def test_a_socket(self) -> None:
        ours, theirs = socket.socketpair()
        self._works(ours.detach(), theirs.detach())

    def test_a_stalled_socket(self) -> None:
        ours, theirs = socket.socketpair()
        self._ends_when_stalled(ours.detach(), theirs.detach())

    def test_a_pipe_that_others_share_stays_blocking_for_them(self) -> None:
        self._works(*os.pipe())

    def test_a_file_is_appended_to(self) -> None:
        path = self.scratch() / "log"
        with path.open("ab") as log, Bundle([daemon("a", *shell("echo hello"))], stdout=log.fileno()) as bundle:
            bundle.exit()
        self.assertIn(b"[a] hello\n", path.read_bytes())

    def _works(self, ours: int, theirs: int) -> None:
        count = 20_000
        daemons = [daemon("a", *child("numbered.py", count))]
        with _closing(ours, theirs), Bundle(daemons, stdout=theirs, env={"NO_COLOR": "1"}) as bundle:
            reader = Collector(ours)
            last = b"[a] %07d\n" % (count - 1)
            self.assertTrue(reader.wait_for(lambda data: last in data, PATIENCE), reader.data[-200:])
            self.assertFalse(fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK, "others share the description")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)
            os.close(theirs)
            reader.finish(PATIENCE)
            lines = re.findall(rb"^\[a\] (.*)$", reader.data, re.MULTILINE)
            self.assertTrue(b"".join(line + b"\n" for line in lines) == _numbered(count))
            self.assertIn(b"sidecar-init: exiting with status 143", reader.data)

    def _ends_when_stalled(self, ours: int, theirs: int) -> None:
        with (
            _closing(ours, theirs),
            Bundle([daemon("flood", *child("flood.py"))], stdout=theirs, tunables={"_GRACE_SECONDS": 0.3}) as bundle,
        ):
            bundle.wait_for_state("flood", "running")
            bundle.wait_for_stall("flood.py")
            bundle.catch_up()
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(5), 143)


@contextlib.contextmanager
def _closing(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
