"""How an exit appears in the log and in the events, and which exit status the supervisor derives from it."""

import re
from signal import SIGCONT, SIGTERM, Signals

from tests.pidns.harness import SLEEP, Bundle, NamespaceTestCase, child, daemon, shell

NOT_FATAL = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
FATAL = [one for one in Signals if one.name not in NOT_FATAL]


class DaemonTest(NamespaceTestCase):
    def test_every_exit_code_and_every_fatal_signal_is_logged_by_its_name(self) -> None:
        codes = {f"code-{code}": code for code in range(256)}
        signals = {f"signal-{number}": number for number in [*map(int, FATAL), 40]}
        daemons = [daemon(name, *shell(f"exit {code}")) for name, code in codes.items()]
        daemons += [daemon(name, *shell(f"kill -{number} $$")) for name, number in signals.items()]
        with Bundle(daemons) as bundle:
            self.assertEqual(bundle.exit(30), 255)
            said = set(bundle.own_lines())
            ends = {one["daemon"]: one for one in bundle.events("exited")}
        self.assertEqual({name: ends[name]["code"] for name in codes}, codes)
        self.assertEqual({name: ends[name]["signal"] for name in codes}, dict.fromkeys(codes))
        self.assertEqual({name: ends[name]["code"] for name in signals}, dict.fromkeys(signals))
        names = {f"signal-{one:d}": one.name for one in FATAL}
        self.assertEqual({name: ends[name]["signal"] for name in names}, names)
        for name, code in codes.items():
            self.assertTrue(_said(said, f"{name} exited with status {code}"), name)
        for name, of_signal in names.items():
            self.assertTrue(_said(said, f"{name} was terminated by {of_signal}"), name)
        self.assertTrue(
            any(line.startswith("signal-40 was terminated by ") for line in said), "a signal without a name"
        )


class SupervisorTest(NamespaceTestCase):
    def test_the_exit_code_is_that_of_the_daemon_that_failed(self) -> None:
        ends = {f"exit {code}": code for code in (0, 1, 2, 7, 126, 127, 128, 130, 254, 255)}
        ends |= {f"kill -{number} $$": 128 + number for number in (1, 2, 6, 9, 11, 15, 40, 64)}
        bundles = {
            script: self.enterContext(Bundle([daemon("a", *shell(script)), daemon("b", "true")])) for script in ends
        }
        self.assertEqual({script: bundle.exit() for script, bundle in bundles.items()}, ends)

    def test_of_several_failures_the_worst_counts(self) -> None:
        with Bundle([daemon(f"d{code}", *shell(f"exit {code}")) for code in (3, 200, 0, 9)]) as bundle:
            self.assertEqual(bundle.exit(), 200)

    def test_a_daemon_that_failed_counts_more_than_those_that_the_shutdown_stopped(self) -> None:
        for script, restart, code in (
            ("exit 3", "never", 3),
            ("exit 3", "always", 3),  # it waits for its restart
            ("exit 0", "never", 143),
            ("exit 0", "always", 143),
        ):
            daemons = [daemon("a", *shell(script), restart=restart), daemon("b", *SLEEP)]
            with self.subTest(script, restart=restart), Bundle(daemons, tunables={"_BACKOFF_FIRST": 1000.0}) as bundle:
                bundle.wait_for(b"a exited with ")
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), code)

    def test_a_daemon_that_crashed_just_before_term_came_has_failed_by_itself(self) -> None:
        """PID 1 is stopped while both happen, so that it learns of both at once."""
        for restart in ("never", "always"):
            crash = self.scratch() / "crash"
            daemons = [daemon("a", *shell(f"until [ -e {crash} ]; do sleep 0.01; done; exit 1"), restart=restart)]
            with self.subTest(restart=restart), Bundle([*daemons, daemon("b", *SLEEP)]) as bundle:
                bundle.wait_for_state("b", "running")
                crashing = bundle.host_pid(bundle.wait_for_state("a", "running")["pid"])  # it forks: not by its command
                bundle.suspend()
                crash.touch()
                bundle.wait_for_zombie(crashing)
                bundle.signal(SIGTERM)
                bundle.signal(SIGCONT)
                self.assertEqual(bundle.exit(), 1)

    def test_a_failure_that_a_restart_made_good_does_not_count(self) -> None:
        marker = self.scratch() / "marker"
        second = shell(f"test -e {marker} && echo again && exec sleep 1000; >{marker}; exit 3")
        with Bundle([daemon("a", *second, restart="always")], tunables={"_BACKOFF_FIRST": 0.01}) as bundle:
            bundle.wait_for(b"[a] again\n")
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 143)

    def test_of_a_shutdown_the_worst_exit_counts(self) -> None:
        """One that had to be killed is worse than any that stopped when it was told to, whatever its code."""
        polite = {code: child("signals.py", "--end", code) for code in (0, 5, 200)}
        term, stays = shell("echo ready; exec sleep 1000"), child("signals.py", "--stay")
        expected = [
            (polite[0], polite[0], 0),
            (polite[5], polite[0], 5),
            (term, polite[5], 143),
            (polite[200], term, 200),
            (stays, polite[0], 137),
            (stays, term, 137),
            (stays, polite[200], 137),
        ]
        bundles = [
            self.enterContext(Bundle([daemon("a", *a), daemon("b", *b)], tunables={"_GRACE_SECONDS": 0.3}))
            for a, b, _ in expected
        ]
        for bundle in bundles:
            bundle.wait_for(b"] ready", times=2)
            bundle.signal(SIGTERM)
        self.assertEqual([bundle.exit() for bundle in bundles], [code for _, _, code in expected])

    def test_a_command_that_cannot_be_executed_is_126_or_127_and_the_others_keep_running(self) -> None:
        place = self.scratch()
        not_executable, no_interpreter = place / "plain-file", place / "script"
        not_executable.write_text("#!/bin/sh\n")
        no_interpreter.write_text("#!/no/such/interpreter\n")
        no_interpreter.chmod(0o755)
        for command, code in (
            ("/no/such/program", 127),
            ("no-such-program", 127),
            (str(no_interpreter), 127),
            (str(not_executable), 126),
            (str(place), 126),
        ):
            daemons = [daemon("a", command, restart="always"), daemon("b", *child("signals.py"))]
            with self.subTest(command), Bundle(daemons) as bundle:
                bundle.wait_for(b"[b] ready")
                self.assertEqual(bundle.wait_for_state("a", "failed")["pid"], None)
                self.assertEqual(len(bundle.events("failed", "a")), 1)
                about_it = [line for line in bundle.own_lines() if command in line]
                self.assertEqual(len(about_it), 1, bundle.own_lines())
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), code)

    def test_no_daemon_selected_is_nothing_to_do(self) -> None:
        with Bundle([daemon("a", *SLEEP)], env={"BOT_BOTTLE_SIDECAR_DAEMONS": "nobody"}) as bundle:
            self.assertEqual(bundle.exit(), 0)
            self.assertIn(b"sidecar-init: no daemons selected; nothing to do", bundle.log)


def _said(lines: set[str], beginning: str) -> bool:
    """More may follow on the line, but not a longer number."""
    return any(re.match(re.escape(beginning) + r"(?!\w)", line) for line in lines)
