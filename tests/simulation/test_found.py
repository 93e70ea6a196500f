"""The shortest histories in which the simulation has found a mistake of the supervisor."""

from __future__ import annotations

import unittest
from collections.abc import Sequence
from typing import Any

from tests.simulation.histories import Scenario
from tests.simulation.kernel import Kernel, load
from tests.simulation.mutants import SOURCE
from tests.simulation.world import Table


class Found(unittest.TestCase):
    kernel: Kernel
    module: Any

    @classmethod
    def setUpClass(cls) -> None:
        cls.kernel = Kernel()
        cls.module = load(SOURCE.read_text(), cls.kernel)

    def replay(self, table: Table, history: Sequence[str], **options: Any) -> None:
        violation = Scenario(table, options, history).run(self.module, self.kernel)
        self.assertIsNone(violation, violation)

    def test_a_child_whose_report_cannot_be_watched_is_not_started(self) -> None:
        """epoll_ctl may refuse (ENOMEM, ENOSPC): once, that was found out after the fork, and two of it ran."""
        self.replay({"web": {"restart": "always"}}, ["fail epoll_ctl 12", "exit web 7", "wait 5", "usr1"])

    def test_a_signal_that_is_forwarded_does_not_answer_a_restart_that_is_not_done(self) -> None:
        self.replay({"web": {"check": True}}, ["usr1", "hup", "exit web 0"], may_restart=False)

    def test_a_group_that_is_empty_is_not_taken_for_that_of_a_child_with_the_same_pid(self) -> None:
        """The last of web exits, and db gets its pid in the same turn; without pidfds of groups, db was killed."""
        self.replay({"web": {}, "db": {"check": True}}, ["fork web", "+20 restart db", "exit web 0"], old_kernel=True)

    def test_an_exit_is_reported_with_its_own_pid_even_if_its_start_was_not_noticed(self) -> None:
        self.replay({"web": {"port": 1000, "essential": True}, "db": {"after": ["web"]}}, ["exit web 3"])

    def test_a_fork_that_fails_for_want_of_memory_leaves_no_report_to_watch(self) -> None:
        """The loop looked at it again and again."""
        self.replay({"web": {"ready": True}}, ["fail fork 0", "wait 9"])

    def test_an_error_while_the_last_lines_are_written_does_not_change_the_exit_status(self) -> None:
        for error in (0, 12):  # a lack of memory, of Python's or the kernel's
            history = ["stall", "write web *~*~", f"fail poll {error}", "exit web 7"]
            with self.subTest(error):
                self.replay({"web": {}}, history)

    def test_what_a_process_has_left_in_the_pipe_while_the_log_is_full_is_not_continued_by_the_next_one(self) -> None:
        flood = ["stall", "write db " + "***~" * 9, "wait 0.02"]
        others = [event for name in ("mail", "cron", "log") for event in (f"write {name} *~", f"exit {name} 0")]
        history = [*flood, *others, "write web abc", "exit web 1", "wait 0.6", "write web y~"]
        self.replay({"web": {"restart": "always"}, "db": {}, "mail": {}, "cron": {}, "log": {}}, history)

    # In those that follow, a rule was wrong, not the supervisor.

    def test_a_shutdown_leaves_a_reader_that_has_stalled_a_moment_when_all_is_over(self) -> None:
        """A daemon that may not be signalled takes all the time that there is, and then there are lines to write."""
        self.replay({"web": {}}, ["stall", "deny web", "write web *~*~", "term", "wait 70"])

    def test_a_reader_that_has_stalled_has_the_usual_grace_even_if_the_daemons_have_less(self) -> None:
        self.replay({"web": {"stop": {"grace": 0.5}}}, ["stall", "write web *~*~", "term", "deadline"])

    def test_a_daemon_that_exits_after_it_was_given_up_counts_as_killed(self) -> None:
        history = ["deny web", "deny db", "restart db", "deadline", "term", "wait 4"]
        self.replay({"web": {}, "db": {}}, history)

    def test_a_stalled_log_may_lose_its_last_lines_even_if_the_last_status_cannot_be_written(self) -> None:
        self.replay({"web": {}}, ["stall", "write web *~*~~~", "fail write_state 24", "int", "deadline"])

    def test_a_line_that_an_exit_cut_short_is_not_taken_for_what_the_next_process_writes(self) -> None:
        """Only the next line shows where it was cut: both end in a part of a secret."""
        history = ["stall", "write web **~", "write web *x<<", "exit web 0", "wait 2", "write web $>~"]
        self.replay({"web": {"restart": "always"}}, history, old_kernel=True, secrets="web")


if __name__ == "__main__":
    unittest.main()
