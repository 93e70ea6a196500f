"""Readiness by port: a socket that was there before the daemon was started is not the daemon's."""

from __future__ import annotations

import unittest
from signal import SIGUSR1

from tests.pidns.harness import PATIENCE, SLEEP, Bundle, NamespaceTestCase, child, daemon, shell

PORT = 7001  # in a network namespace of its own


class ReadinessTest(NamespaceTestCase):
    def squatted(self, without: str = "") -> Bundle:
        """A bundle whose web cannot have its port, because another daemon listens there already."""
        squatter = daemon("squatter", *child("listener.py", PORT), port=PORT)
        web = daemon("web", *SLEEP, port=PORT, after=["squatter"])
        bundle = self.enterContext(Bundle([squatter, web], without=without or ()))
        bundle.wait_for_event("started", "web")
        return bundle

    def wait_for_line(self, bundle: Bundle) -> None:
        def said() -> bool:
            return any(str(PORT) in line and "web" in line for line in bundle.own_lines())

        bundle.until(said, PATIENCE, "a line about the port")

    def test_a_port_that_another_process_holds_does_not_make_a_daemon_ready(self) -> None:
        bundle = self.squatted()
        self.wait_for_line(bundle)
        bundle.catch_up()
        self.assertEqual(bundle.daemon("web")["ready"], False)
        self.assertEqual(bundle.daemon("web")["state"], "starting")
        lines = [line for line in bundle.own_lines() if f"{PORT}" in line]
        self.assertEqual(len(lines), 1, lines)

    def test_control_by_number_alone_it_does(self) -> None:
        bundle = self.squatted("socket-inodes")
        bundle.wait_for_event("ready", "web")

    def test_a_socket_that_an_earlier_process_of_the_daemon_left_behind_does_not_count(self) -> None:
        """A grandchild in a session of its own outlives the restart, and keeps the port."""
        first = " ".join(child("listener.py", PORT))
        web = shell(f"if mkdir {self.scratch()}/first 2>/dev/null; then setsid {first} & fi; exec sleep 1000")
        with Bundle([daemon("web", *web, port=PORT)], signals={"USR1": {"restart": "web"}}) as bundle:
            bundle.wait_for_event("ready", "web")
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("restarted", "web")
            bundle.until(
                lambda: any(f"{PORT}" in line for line in bundle.own_lines()), PATIENCE, "a line about the port"
            )
            bundle.catch_up()
            self.assertEqual(bundle.daemon("web")["ready"], False)

    def test_a_socket_that_shares_the_port_with_an_older_one_counts(self) -> None:
        """SO_REUSEPORT, as for two processes that take over from each other."""
        share = (
            "import signal, socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); "
            f"s.bind(('0.0.0.0', {PORT})); s.listen(); signal.pause()"
        )
        rows = [
            daemon("old", *child("listener.py", PORT)[:3], "-c", share, port=PORT),
            daemon("web", *child("listener.py", PORT)[:3], "-c", share, port=PORT, after=["old"]),
        ]
        with Bundle(rows) as bundle:
            bundle.wait_for_event("ready", "web")

    def test_a_daemon_that_gets_the_port_when_the_other_lets_go_is_ready_then(self) -> None:
        go = self.scratch() / "go"
        hold = " ".join(child("listener.py", PORT))
        squatter = shell(f"{hold} & until [ -e {go} ]; do sleep 0.01; done; kill $!; exec sleep 1000")
        web = shell(f"until {hold}; do sleep 0.05; done")
        rows = [daemon("squatter", *squatter, port=PORT), daemon("web", *web, port=PORT, after=["squatter"])]
        with Bundle(rows) as bundle:
            bundle.wait_for(b"[web] cannot listen")
            self.assertEqual(bundle.events("ready", "web"), [])
            go.touch()
            bundle.wait_for_event("ready", "web")

    def test_what_a_readiness_command_or_a_check_leaves_in_its_group_is_killed(self) -> None:
        tries = self.scratch() / "tries"
        ready = f"sleep 777 & echo >>{tries}; test $(wc -l <{tries}) -ge 4"
        row = daemon("web", *SLEEP, ready=shell(ready), check=shell("sleep 777 & exit 1"))
        with Bundle([row], signals={"USR1": {"restart": "web"}}) as bundle:
            bundle.wait_for_event("ready", "web")
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("refused", "web")
            bundle.until(lambda: not bundle.running_commands("sleep 777"), PATIENCE, "what they left behind is gone")


if __name__ == "__main__":
    unittest.main()
