"""The exit code: the worst own failure that was not made good, else the worst end that the shutdown brought."""

from __future__ import annotations

import unittest

from sidecar_init import _DaemonSpec, _exit_text, _shell_code
from tests.unit.support import SupervisorTest


def shell(name: str, script: str, restart: str = "never") -> _DaemonSpec:
    return _DaemonSpec(name, ["/bin/sh", "-c", script], restart)


def sleeper(name: str = "sleeper") -> _DaemonSpec:
    return _DaemonSpec(name, ["/bin/sleep", "60"])


class Spelling(unittest.TestCase):
    def test_a_code_is_itself_and_a_signal_128_more(self) -> None:
        self.assertEqual([_shell_code(code) for code in (0, 7, 255, -9, -15)], [0, 7, 255, 137, 143])

    def test_codes_and_signals_are_told_by_name(self) -> None:
        self.assertEqual(_exit_text(7), "with code 7")
        for number, name in ((1, "SIGHUP"), (9, "SIGKILL"), (11, "SIGSEGV"), (15, "SIGTERM"), (40, "signal 40")):
            self.assertEqual(_exit_text(-number), f"on {name}")


class ExitCode(SupervisorTest):
    def code_of(self, *specs: _DaemonSpec) -> int:
        supervisor = self.supervise(*specs)
        self.tick_until_done(supervisor)
        return supervisor.exit_code()

    def code_after_shutdown(self, *specs: _DaemonSpec, when: str = "") -> int:
        supervisor = self.supervise(*specs)
        if when:
            self.tick_until_logged(supervisor, when)
        supervisor.request_shutdown("test")
        self.tick_until_done(supervisor)
        return supervisor.exit_code()

    def test_no_daemon_is_0(self) -> None:
        self.assertEqual(self.code_of(), 0)

    def test_all_well_is_0(self) -> None:
        self.assertEqual(self.code_of(shell("a", "exit 0"), shell("b", "exit 0", "on-failure")), 0)

    def test_the_worst_failure_counts(self) -> None:
        self.assertEqual(self.code_of(shell("a", "exit 3"), shell("b", "exit 7"), shell("c", "exit 0")), 7)

    def test_a_death_by_signal_is_128_more(self) -> None:
        self.assertEqual(self.code_of(shell("a", "kill -SEGV $$"), shell("b", "exit 7")), 139)

    def test_a_missing_command_is_127(self) -> None:
        self.assertEqual(self.code_of(_DaemonSpec("a", ["/nowhere/command"])), 127)
        self.assertEqual(self.code_of(_DaemonSpec("a", ["no-such-command-anywhere"])), 127)

    def test_what_is_not_executable_is_126(self) -> None:
        self.assertEqual(self.code_of(_DaemonSpec("a", ["/etc/passwd"])), 126)
        self.assertEqual(self.code_of(_DaemonSpec("a", ["/etc"])), 126)

    def test_an_interpreter_that_is_missing_is_127(self) -> None:
        script = self.directory() / "script"
        script.write_text("#!/nowhere/interpreter\n")
        script.chmod(0o755)
        self.assertEqual(self.code_of(_DaemonSpec("a", [str(script)])), 127)

    def test_a_shutdown_tells_how_they_died(self) -> None:
        self.assertEqual(self.code_after_shutdown(sleeper()), 143)

    def test_a_shutdown_that_all_take_well_is_0(self) -> None:
        polite = shell("polite", "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done")
        self.assertEqual(self.code_after_shutdown(polite, when="[polite] up"), 0)

    def test_one_that_had_to_be_killed_is_137(self) -> None:
        self.patch("_GRACE_SECONDS", 0.05)
        deaf = shell("deaf", "trap '' TERM; echo up; sleep 60")
        self.assertEqual(self.code_after_shutdown(deaf, when="[deaf] up"), 137)

    def test_one_that_had_to_be_killed_is_worse_than_any_that_went_when_told_to(self) -> None:
        self.patch("_GRACE_SECONDS", 0.05)
        deaf = shell("deaf", "trap '' TERM; echo up; sleep 60")
        self.assertEqual(self.code_after_shutdown(deaf, sleeper(), when="[deaf] up"), 137)

    def test_an_own_failure_outweighs_the_shutdown(self) -> None:
        self.assertEqual(self.code_after_shutdown(shell("a", "exit 3"), sleeper(), when="a exited"), 3)

    def test_an_own_success_does_not(self) -> None:
        self.assertEqual(self.code_after_shutdown(shell("a", "exit 0"), sleeper(), when="a exited"), 143)

    def test_one_that_waits_for_its_restart_was_not_brought_back(self) -> None:
        self.assertEqual(self.code_after_shutdown(shell("a", "exit 3", "always"), sleeper(), when="a exited"), 3)

    def test_one_that_was_brought_back_is_forgiven(self) -> None:
        self.patch("_BACKOFF_FIRST", 0.01)
        marker = self.directory() / "marker"
        second = shell("a", f"test -e {marker} && echo again && exec sleep 60; > {marker}; exit 3", "always")
        self.assertEqual(self.code_after_shutdown(second, when="[a] again"), 143)


if __name__ == "__main__":
    unittest.main()
