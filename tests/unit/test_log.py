"""The log: whatever stdout is, it never waits for its reader, loses nothing that can be written, counts the rest."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import threading
import time
import tty
import unittest
import warnings
from pathlib import Path
from unittest import mock

import sidecar_init
from sidecar_init import _LOG_LIMIT, _LOG_RESERVE, _DaemonSpec, _Log, _Output, _Watch
from tests.support import wait_until
from tests.unit.support import NO_SECRETS, UnitTest, secrets

LINES = [b"[x] %06d %s\n" % (number, b"." * 88) for number in range(10000)]  # 1 MB


class LogTest(UnitTest):
    def setUp(self) -> None:
        """A write that waits for the reader must fail the test, not hang it."""

        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("ignore", ResourceWarning)  # a log is never closed; the sockets here are

        def blocked(*_: object) -> None:
            raise AssertionError("the log waited for its reader")

        before = signal.signal(signal.SIGALRM, blocked)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.alarm, 0)
        signal.alarm(20)

    def open(self, fd: int) -> _Log:
        log = _Log(fd, NO_SECRETS)
        if log.fd != fd and not stat.S_ISSOCK(os.fstat(fd).st_mode):  # a socket object closes itself
            self.close_later(log.fd)
        return log

    def put_all(self, log: _Log) -> None:
        for line in LINES:
            log.put(line)
        before = -1
        while len(log._buffer) != before:
            before = len(log._buffer)
            log.flush()

    def received(self, log: _Log, reader: int) -> bytes:
        """All that the log had to say, read in pieces while it goes on writing."""
        received, size = bytearray(), len(b"".join(LINES))
        while len(received) < size:
            received += os.read(reader, 4096)
            log.flush()
        return bytes(received)


class WholeLog(LogTest):
    """Everything comes out, of each kind of stdout, even if it is not read at first."""

    def check(self, reader: int, writer: int) -> None:
        log = self.open(writer)
        self.put_all(log)
        self.assertTrue(log.backlog)
        self.assertEqual(self.received(log, reader), b"".join(LINES))
        self.assertFalse(log.backlog)
        self.assertTrue(os.get_blocking(writer), "the description that others share was changed")

    def test_on_a_pipe(self) -> None:
        self.check(*self.pipe())

    def test_on_a_pipe_that_cannot_be_opened_again(self) -> None:
        reader, writer = self.pipe()
        with mock.patch("os.open", side_effect=PermissionError):
            self.check(reader, writer)

    def test_on_a_terminal(self) -> None:
        master, slave = os.openpty()
        self.close_later(master, slave)
        tty.setraw(slave)
        self.check(master, slave)

    def test_on_a_socket(self) -> None:
        reader, writer = socket.socketpair()
        with reader, writer:
            self.check(reader.fileno(), writer.fileno())

    def test_on_a_file(self) -> None:
        path = self.directory() / "log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.close_later(fd)
        log = self.open(fd)
        self.put_all(log)
        self.assertFalse(log.backlog)
        self.assertEqual(path.read_bytes(), b"".join(LINES))


class BrokenLog(LogTest):
    def test_a_full_device_stops_nothing(self) -> None:
        fd = os.open("/dev/full", os.O_WRONLY)
        self.close_later(fd)
        log = self.open(fd)
        for _ in range(3):
            self.put_all(log)
            self.assertTrue(log.has_room())
            self.assertFalse(log.backlog)
        log.close(time.monotonic())

    def test_a_reader_that_left_stops_nothing(self) -> None:
        for reader, writer in (os.pipe(), (end.detach() for end in socket.socketpair())):
            self.close_later(writer)
            log = self.open(writer)
            os.close(reader)
            self.put_all(log)
            self.assertTrue(log.has_room())
            log.close(time.monotonic() + 60)

    def test_a_reader_that_left_before_the_start_stops_nothing(self) -> None:
        reader, writer = os.pipe()
        self.close_later(writer)
        os.close(reader)
        log = self.open(writer)
        self.put_all(log)
        self.assertTrue(log.has_room())

    def log_on_a_full_file(self, size: int, lines: bytes) -> tuple[Path, _Log]:
        """A log that has met a file which takes only so many bytes of these lines; `make_room` lifts that."""
        path = self.directory() / "log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.close_later(fd)
        log = self.open(fd)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        log.put(lines)
        log.flush()
        log.flush()  # part of a write first, then the error
        return path, log

    def make_room(self) -> None:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def test_what_a_full_file_did_not_take_is_counted_when_it_takes_more(self) -> None:
        path, log = self.log_on_a_full_file(10, b"[x] first\n[x] second\n")
        log.put(b"[x] third\n")
        log.flush()
        self.make_room()
        log.put(b"[x] fourth\n")
        log.flush()
        self.assertEqual(
            path.read_text(),
            "[x] first\n[x] fourth\nsidecar-init: 2 log lines were lost: File too large\n",
        )

    def test_the_line_after_one_that_was_lost_in_part_begins_on_a_line_of_its_own(self) -> None:
        path, log = self.log_on_a_full_file(7, b"[x] first\n")
        self.make_room()
        log.put(b"[x] second\n")
        log.flush()
        self.assertTrue(path.read_text().startswith("[x] fir\n[x] second\n"), path.read_text())

    def test_a_line_that_was_lost_in_part_is_counted_once(self) -> None:
        path, log = self.log_on_a_full_file(7, b"[x] first\n")
        log.put(b"[x] second\n")
        log.flush()
        self.make_room()
        log.put(b"[x] third\n")
        log.flush()
        told = "sidecar-init: 2 log lines were lost: File too large\n"
        self.assertEqual(path.read_text(), f"[x] fir\n[x] third\n{told}")


class Bounds(LogTest):
    def test_daemons_have_less_room_than_last_lines_and_those_less_than_own_lines(self) -> None:
        log = self.open(self.pipe()[1])
        for reserve in (0, _LOG_RESERVE // 2):
            log.put(b"." * (_LOG_LIMIT + reserve - 1 - len(log._buffer)))
            self.assertTrue(log.has_room(reserve))
            log.put(b"\n")
            self.assertFalse(log.has_room(reserve))
        before = len(log._buffer)
        log.say("there is room for this")
        self.assertGreater(len(log._buffer), before)

    def test_own_lines_beyond_the_bound_are_counted_and_no_memory_is_used_for_them(self) -> None:
        reader, writer = self.pipe()
        log = self.open(writer)
        filling = b"." * 1023 + b"\n"
        log.put(filling * ((_LOG_LIMIT + _LOG_RESERVE) // 1024))
        before = len(log._buffer)
        for number in range(7):
            log.say(f"line {number}")
        self.assertEqual(len(log._buffer), before)
        count = b"sidecar-init: 7 log lines were lost: the log's reader stalled\n"
        expected = filling * ((_LOG_LIMIT + _LOG_RESERVE) // 1024) + count
        received = b""
        while len(received) < len(expected):
            log.flush()
            received += os.read(reader, 65536)
        self.assertEqual(received, expected)
        self.assertFalse(log.backlog)

    def test_what_is_said_once_is_not_said_again(self) -> None:
        reader, writer = self.pipe()
        log = self.open(writer)
        for text in ("a", "b", "a"):
            log.say_once(text)
        log.flush()
        self.assertEqual(os.read(reader, 1000), b"sidecar-init: a\nsidecar-init: b\n")

    def test_own_lines_cannot_contain_a_line_end_or_steer_a_terminal(self) -> None:
        reader, writer = self.pipe()
        log = self.open(writer)
        log.say("a\nb\rc\033[2Jd\x9be\u2028f\udcff")
        log.flush()
        self.assertEqual(os.read(reader, 1000), b"sidecar-init: a\\u000ab\\u000dc\\u001b[2Jd\\u009be\\u2028f\\udcff\n")


class Close(LogTest):
    def test_it_waits_for_a_slow_reader(self) -> None:
        reader, writer = self.pipe()
        log = self.open(writer)
        received: list[bytes] = []

        def read_slowly() -> None:
            while sum(map(len, received)) < len(b"".join(LINES)):
                received.append(os.read(reader, 65536))

        self.put_all(log)
        thread = threading.Thread(target=read_slowly)
        thread.start()
        log.close(time.monotonic() + 20)
        thread.join()
        self.assertEqual(b"".join(received), b"".join(LINES))

    def test_at_the_deadline_it_counts_what_is_left_if_a_reader_comes_back(self) -> None:
        self.patch("_POLL_INTERVAL", 20.0)  # how long it hopes for that
        reader, writer = self.pipe()
        log = self.open(writer)
        self.put_all(log)
        left = log._buffer.count(b"\n")
        received: list[bytes] = []

        def come_back() -> None:
            wait_until(lambda: log._why_lost, 10, "the log has given up")
            while not received or b"were lost" not in received[-1]:
                received.append(os.read(reader, 65536))

        thread = threading.Thread(target=come_back)
        thread.start()
        log.close(time.monotonic())
        thread.join()
        text = b"".join(received)
        self.assertTrue(b"".join(LINES).startswith(text[:65536]))
        last = b"\nsidecar-init: %d log lines were lost: the log's reader stalled\n" % left
        self.assertTrue(text.endswith(last), text[-200:])

    def test_without_a_reader_it_still_ends(self) -> None:
        log = self.open(self.pipe()[1])
        self.put_all(log)
        log.close(time.monotonic())


class Colours(LogTest):
    """Prefixes are coloured on a terminal, unless NO_COLOR is set to something."""

    def setUp(self) -> None:
        super().setUp()
        self.use_environment()
        os.environ.pop("NO_COLOR", None)

    def terminal(self) -> tuple[int, int]:
        master, slave = os.openpty()
        self.close_later(master, slave)
        tty.setraw(slave)
        return master, slave

    def said(self, reader: int, writer: int) -> bytes:
        log = self.open(writer)
        log.say("a")
        log.put(log.prefix("[web] ") + b"b\n")
        log.flush()
        return os.read(reader, 1000)

    def test_they_are_on_a_terminal(self) -> None:
        colour = rb"\x1b\[3[1-6]m"
        expected = rb"\A%ssidecar-init: \x1b\[0ma\n%s\[web\] \x1b\[0mb\n\Z" % (colour, colour)
        self.assertRegex(self.said(*self.terminal()), expected)

    def test_they_are_not_elsewhere(self) -> None:
        self.assertEqual(self.said(*self.pipe()), b"sidecar-init: a\n[web] b\n")

    def test_no_color_turns_them_off(self) -> None:
        os.environ["NO_COLOR"] = "0"
        self.assertEqual(self.said(*self.terminal()), b"sidecar-init: a\n[web] b\n")

    def test_an_empty_no_color_does_not(self) -> None:
        os.environ["NO_COLOR"] = ""
        self.assertIn(b"\x1b[", self.said(*self.terminal()))

    def test_a_daemon_keeps_its_colour(self) -> None:
        log = self.open(self.terminal()[1])
        self.assertEqual(log.prefix("[web] "), log.prefix("[web] "))


class ProcessesOfOneDaemon(LogTest):
    """Their output waits in one pipe while the log is full."""

    def setUp(self) -> None:
        super().setUp()
        self.reader, writer = self.pipe()
        os.set_blocking(self.reader, False)
        self.container_log = _Log(writer, secrets(A=b"s3cr3t-0123456789"))
        self.close_later(self.container_log.fd)
        self.output = _Output(_DaemonSpec("egress", ["egress"]), self.container_log, _Watch())
        self.addCleanup(self.output.close)

    def lines_of(self, *processes: list[bytes], before: bytes = b"") -> list[bytes]:
        """What comes out of what each process wrote in these pieces, one after the other, while the log was full.

        The first process has written `before` when there was room.
        """
        os.write(self.output.writer(), before)
        self.output._read()
        self.container_log.put(b"." * (_LOG_LIMIT + _LOG_RESERVE) + b"\n")
        for number, pieces in enumerate(processes):
            if number or not before:
                self.output.writer()
            assert self.output._ends
            writer = self.output._ends[1]
            for piece in pieces:
                os.write(writer, piece)
            self.output.drain()  # at its exit: there is no room
        received = b""
        while b"the end" not in received:
            self.output.drain()
            self.container_log.flush()
            received += os.read(self.reader, 1 << 20)
        return [line.removeprefix(b"[egress] ") for line in received.splitlines()[1:]]

    def test_no_line_has_bytes_of_two(self) -> None:
        last, expected = b"x" * 60_000, [b"one", b"two", b"three", b"", b"fourfive"]
        lines = self.lines_of([b"one\ntwo"], [b"three"], [b"\nfour", b"five\n"], [], [last], [b"the end\n"])
        self.assertEqual(lines, [*expected, last, b"the end"])

    def test_the_beginning_of_a_secret_that_an_exit_cuts_off_is_redacted(self) -> None:
        lines = self.lines_of([b"token s3cr3t-01234"], [b"the end\n"])
        self.assertEqual(lines, [b"token [redacted EGRESS_TOKEN_A]", b"the end"])

    def test_a_line_of_which_a_part_was_read_is_finished_after_its_rest(self) -> None:
        lines = self.lines_of([b"3t-0123456789 and more\ntwo"], [b"the end\n"], before=b"token s3cr")
        self.assertEqual(lines, [b"token [redacted EGRESS_TOKEN_A] and more", b"two", b"the end"])

    def test_what_another_process_takes_out_of_the_pipe_splits_no_line(self) -> None:
        os.write(self.output.writer(), b"one\ntwo")
        self.output.writer()
        assert self.output._ends
        os.read(self.output._ends[0], 7)  # as a process of the daemon can, by /proc/self/fd/1
        self.output.drain()
        self.assertEqual(self.lines_of([b"0123456789\n"], [b"the end\n"]), [b"0123456789", b"the end"])

    def test_what_is_lost_of_the_output_of_a_command_is_reported(self) -> None:
        for is_silent in (False, True):
            command = self.output.sibling(is_silent=is_silent)
            os.write(command.writer(), b"one\n")
            self.container_log.put(b"." * (_LOG_LIMIT + _LOG_RESERVE // 2) + b"\n")
            command.close()
            is_reported = b"readiness command of egress was lost: " in self.container_log._buffer
            self.assertEqual(is_reported, not is_silent)
            self.container_log._buffer.clear()

    def test_on_a_processor_that_counts_otherwise_all_comes_out(self) -> None:
        with mock.patch.object(sidecar_init, "_FIONREAD", 0):
            self.assertEqual(self.lines_of([b"one\n"], [b"the end\n"]), [b"one", b"the end"])


if __name__ == "__main__":
    unittest.main()
