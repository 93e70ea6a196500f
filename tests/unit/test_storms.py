"""What one daemon can make much of does not keep the supervisor from the others: rows, sockets, small writes."""

from __future__ import annotations

import errno
import itertools
import signal
import socket
import unittest
from unittest import mock

import sidecar_init
from sidecar_init import _DaemonSpec, _Kernel, _Output, _Ports, _Watch
from tests.unit.machine import MachineTest
from tests.unit.support import NO_SECRETS, UnitTest


class Rows(MachineTest):
    def test_the_last_one_has_its_turn_even_if_each_turn_is_over_after_one_daemon(self) -> None:
        self.patch("_TURN_SECONDS", -1.0)
        waiting = [_DaemonSpec(f"web-{number}", ["web"], after=["job"]) for number in range(3)]
        self.supervise(*waiting, _DaemonSpec("job", ["job"], oneshot=True))
        self.happen("start")
        for _ in range(20):
            self.happen("turn")
        self.assertIn("job", self.system.started)


class Status(MachineTest):
    def test_it_waits_for_a_recorded_signal_but_not_for_ever(self) -> None:
        self.supervise(_DaemonSpec("web", ["web"]))
        self.happen("start")
        state = self.supervisor._state
        self.assertFalse(state.is_stale)
        sidecar_init._recorded_signals[signal.SIGUSR2] = None  # one that each turn finds
        state.touch()
        self.supervisor.tick()
        self.assertTrue(state.is_stale)
        self.clock.now += 3 * sidecar_init._POLL_INTERVAL
        self.supervisor.tick()
        self.assertFalse(state.is_stale)

    def test_it_is_written_again_if_that_has_failed(self) -> None:
        self.supervise(_DaemonSpec("web", ["web"]))
        self.happen("start")
        supervisor, state = self.supervisor, self.supervisor._state
        state.touch()

        def fail(*_: object) -> bool:
            state.is_stale = False
            return False

        with mock.patch.object(state, "write", side_effect=fail) as write:
            supervisor.tick()
            self.assertEqual(write.call_count, 1)
            self.assertLessEqual(supervisor._time_to_next_deadline(), sidecar_init._RETRY_SECONDS)
            supervisor.tick()
            self.assertEqual(write.call_count, 1)
            self.clock.now += sidecar_init._RETRY_SECONDS
            supervisor.tick()
            self.assertEqual(write.call_count, 2)

    def test_a_status_that_was_written_wakes_no_loop(self) -> None:
        self.supervise(_DaemonSpec("web", ["web"]))
        self.happen("start")
        self.assertEqual(self.supervisor._write_by, sidecar_init._NEVER)


class SmallWrites(UnitTest):
    def test_a_pipe_that_gives_one_byte_a_read_is_not_drained_for_long(self) -> None:
        _, writer = self.pipe()
        log = sidecar_init._Log(writer, NO_SECRETS)
        if log.fd != writer:
            self.close_later(log.fd)
        output = _Output(_DaemonSpec("web", ["web"]), log, _Watch())
        output.writer()
        self.addCleanup(output.close)
        with mock.patch.object(output, "_read", side_effect=itertools.repeat(1)) as read:
            output.drain()
        self.assertLessEqual(read.call_count, sidecar_init._LOG_LIMIT // 4096)


class Sockets(UnitTest):
    def test_looks_that_take_long_are_made_less_often(self) -> None:
        ports = _Ports(_Kernel())
        self.close_later(*[fd for fd in (ports._netlink, *ports._tables) if fd >= 0])
        with mock.patch("time.monotonic", side_effect=itertools.count()):  # each look takes a second
            ports.sockets(80)
        self.assertEqual(ports.interval, 20)

    def test_if_the_kernel_makes_the_socket_and_refuses_the_query_its_tables_are_read(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        with mock.patch.object(_Ports, "_by_netlink", side_effect=OSError(errno.ENOENT, "netlink refuses")):
            ports = _Ports(_Kernel())
            self.close_later(*[fd for fd in (ports._netlink, *ports._tables) if fd >= 0])
            self.assertEqual(len(ports.sockets(listener.getsockname()[1])), 1)


if __name__ == "__main__":
    unittest.main()
