"""Processes: PID 1 signals only its own, even if an ID was reused, and no daemon can block it."""

from __future__ import annotations

import json
import os
import unittest
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGTERM, SIGUSR1

from tests.pidns.hardened import COMPOSE, OTHER, OWNER, TOKEN, AttackTestCase, HardenedBundle, attacker
from tests.pidns.harness import PATIENCE, PYTHON, SLEEP, Bundle, NamespaceTestCase, child, daemon, quiet_for, shell
from tests.support import CHILDREN, wait_until

RESTART_WEB = {"USR1": {"restart": "web"}}


class ReusedNumberTest(NamespaceTestCase):
    """The kernel gives a number again when no process, group or session has it any more."""

    def reuse(self, bundle: Bundle, how: str, pid: int) -> str:
        return bundle.inside([*PYTHON, str(CHILDREN / "reuse.py"), how, str(pid)]).stdout

    def innocent_survives(self, without: str = "") -> bool:
        """Whether a session of its own does that gets the number of a group while PID 1 waits for that to empty."""
        go = self.scratch() / "go"
        rows = [daemon("web", *child("outlived.py", go)), daemon("other", *SLEEP)]
        with Bundle(rows, tunables={"_RESTART_GRACE_SECONDS": 3.0}, without=without or ()) as bundle:
            bundle.wait_for(b"[web] ready\n")
            number = bundle.wait_for_state("web", "running")["pid"]
            os.kill(bundle.host_pid(number), SIGKILL)
            bundle.wait_for_state("web", "stopping")
            bundle.catch_up()
            bundle.suspend()  # the machine is busy elsewhere
            go.touch()
            wait_until(go.with_suffix(".reaped").exists, PATIENCE, "the group is empty")
            self.assertEqual(self.reuse(bundle, "take", number), "taken\n")
            innocent = bundle.host_pid(number)
            bundle.signal(SIGCONT)
            bundle.wait_for_state("web", "exited")
            bundle.catch_up()
            return Path(f"/proc/{innocent}").exists()

    def test_a_group_with_a_reused_number_is_not_killed(self) -> None:
        self.assertTrue(self.innocent_survives())

    def test_control_by_number_it_is(self) -> None:
        self.assertFalse(self.innocent_survives("pidfd"))

    def test_a_daemon_that_has_ended_is_not_signalled_under_its_old_number(self) -> None:
        heard = self.scratch() / "heard"
        rows = [daemon("web", "true"), daemon("other", *shell("trap 'sleep 0.5; exit' TERM; sleep 1000 & wait"))]
        with Bundle(rows, signals={"HUP": {"forward": "web"}, **RESTART_WEB}) as bundle:
            bundle.wait_for_event("exited", "web")
            number = bundle.events("started", "web")[0]["pid"]
            listen = f"import os, signal; signal.signal(1, lambda *_: open('{heard}', 'w'))"
            listen += f"; signal.signal(15, lambda *_: open('{heard}', 'w'))"
            take = f"import sys; sys.path.insert(0, {str(CHILDREN)!r}); import reuse; {listen}; reuse.take({number})"
            self.assertEqual(bundle.inside([*PYTHON, "-c", take]).stdout, "taken\n")
            bundle.signal(SIGHUP)
            bundle.catch_up()
            bundle.signal(SIGTERM)
            bundle.exit()
            self.assertFalse(heard.exists())

    def test_a_replacement_that_gets_the_number_of_the_old_one_and_cannot_be_executed_is_failed(self) -> None:
        program = self.scratch() / "web"
        program.symlink_to("/bin/sleep")
        rows = [daemon("web", str(program), "2000", restart="always"), daemon("other", *SLEEP)]
        with Bundle(rows, signals=RESTART_WEB) as bundle:
            bundle.wait_for_state("other", "running")
            number = bundle.wait_for_state("web", "running")["pid"]
            # Found, and then not what it seemed: the kernel alone refuses it.
            broken = program.with_suffix(".new")
            broken.write_text("#!/no/such/interpreter\n")
            broken.chmod(0o755)
            broken.replace(program)
            self.reuse(bundle, "next", number)
            bundle.signal(SIGUSR1)
            bundle.wait_for_state("web", "failed")
            bundle.catch_up()
            self.assertEqual(bundle.daemon("web")["state"], "failed")
            self.assertEqual(len(bundle.events("exited", "web")), 1, "of the old one")
            self.assertEqual(len(bundle.events("failed", "web")), 1)


class TracerTest(AttackTestCase):
    """A daemon of root may trace another; what it traces cannot be reaped by PID 1 until it lets go."""

    def bundle(self) -> HardenedBundle:
        rows = [
            daemon("web", *SLEEP),
            daemon("hostile", *attacker("tracer.py", "web", "/run/place/go")),
            daemon("egress", *SLEEP, user=OWNER),
        ]
        bundle = self.enter(
            HardenedBundle(rows, signals=RESTART_WEB, tunables={"_RESTART_GRACE_SECONDS": 0.2, "_GRACE_SECONDS": 1.0})
        )
        bundle.wait_for(b"[hostile] tracing\n")
        return bundle

    def test_a_leader_that_cannot_be_reaped_does_not_keep_pid_1_busy(self) -> None:
        bundle = self.bundle()
        bundle.signal(SIGUSR1)
        bundle.wait_for_event("killed", "web")
        quiet_for(2.5)  # it gives up after two seconds
        bundle.catch_up()
        versions = set()
        for _ in range(100):
            versions.add(bundle._version())
            quiet_for(0.01)
        # Giving up and the heartbeats before may still be written.
        self.assertLess(len(versions), 6, "20 a second if every look is written")

    def test_it_is_replaced_as_soon_as_the_tracer_lets_go(self) -> None:
        bundle = self.bundle()
        bundle.signal(SIGUSR1)
        bundle.wait_for_event("killed", "web")
        (bundle.place / "go").touch()
        bundle.wait_for_event("restarted", "web")
        self.assertEqual(bundle.wait_for_state("web", "running")["restarts"], 1)

    def test_a_shutdown_does_not_wait_for_it(self) -> None:
        bundle = self.bundle()
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(), 137)

    def test_an_exit_that_is_noticed_after_giving_up_restarts_nothing(self) -> None:
        """Another daemon, which is given longer, keeps the supervisor there."""
        stubborn = shell("trap '' TERM; while :; do sleep 0.05; done")
        rows = [
            daemon("web", *SLEEP, restart="always", stop={"grace": 0.2}),
            daemon("hostile", *attacker("tracer.py", "web", "/run/place/go"), stop={"grace": 6}),
            daemon("egress", *stubborn, user=OWNER, stop={"grace": 6}),
        ]
        with HardenedBundle(rows) as bundle:
            bundle.wait_for(b"[hostile] tracing\n")
            bundle.signal(SIGTERM)
            bundle.wait_for_state("web", "stopped")
            (bundle.place / "go").touch()
            bundle.wait_for_state("hostile", "stopped")
            self.assertEqual(bundle.daemon("web")["state"], "stopped")
            self.assertEqual(bundle.exit(), 137)
            self.assertEqual(len(bundle.events("started", "web")), 1)
            self.assertEqual(bundle.events("restarted", "web"), [])


class StormTest(AttackTestCase):
    def test_a_storm_of_orphans_keeps_pid_1_from_nothing(self) -> None:
        rows = [
            daemon("hostile", *attacker("orphan_storm.py", 3)),
            daemon("egress", *shell("trap 'echo served' HUP; echo up; while :; do sleep 0.05; done"), user=OWNER),
        ]
        with HardenedBundle(rows, signals={"HUP": {"forward": "egress"}}) as bundle:
            bundle.wait_for(b"[hostile] storm\n", times=3)
            bundle.wait_for(b"[egress] up\n")
            for turn in range(1, 4):
                bundle.signal(SIGHUP)
                bundle.wait_for(b"[egress] served\n", times=turn)
                bundle.catch_up()
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(20), 143)


class ForeignLimitTest(AttackTestCase):
    """A daemon of root may change PID 1's limits, and children inherit."""

    def stacks(self, without: str = "") -> tuple[str, str]:
        """The limit of egress's stack before and after its restart; PID 1 has got another one in between.

        An unlimited one, for example, gives a program the address space of old, in which little is random.
        """
        change = (
            "import resource as r, signal; hard = r.prlimit(1, r.RLIMIT_STACK)[1];"
            "r.prlimit(1, r.RLIMIT_STACK, (hard, hard)); print('changed', flush=True); signal.pause()"
        )
        rows = [
            daemon("egress", *SLEEP, user=OWNER, restart="always"),
            daemon("hostile", attacker("")[0], "-I", "-S", "-c", change),
        ]
        bundle = HardenedBundle(rows, signals={"USR1": {"restart": "egress"}}, without=without or ())
        with bundle:

            def stack() -> str:
                pid = bundle.host_pid(bundle.wait_for_state("egress", "running")["pid"])
                return Path(f"/proc/{pid}/limits").read_text().splitlines()[4]

            before = stack()
            bundle.wait_for(b"[hostile] changed\n")
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("restarted", "egress")
            self.assertIn("Max stack size", before)
            return before, stack()

    def test_limits_that_a_daemon_gives_pid_1_do_not_reach_other_daemons(self) -> None:
        before, after = self.stacks()
        self.assertEqual(before, after)

    def test_control_inherited_they_do(self) -> None:
        before, after = self.stacks("own-limits")
        self.assertNotEqual(before, after)


class FalseSocketsTest(AttackTestCase):
    """With NET_ADMIN, a process may send to the netlink socket of another."""

    def attacked(self, without: str = "") -> HardenedBundle:
        rows = [
            daemon("web", *SLEEP, user=OWNER, port=7001),
            daemon("hostile", *attacker("false_sockets.py", 7001), user=OTHER, capabilities=["NET_ADMIN"]),
        ]
        return self.enter(HardenedBundle(rows, capabilities=(*COMPOSE, "net_admin"), secrets={}, without=without or ()))

    def test_the_sockets_that_listen_are_told_by_the_kernel_alone(self) -> None:
        bundle = self.attacked()
        bundle.until((bundle.place / "done").exists, PATIENCE, "the attack is done")
        bundle.catch_up()
        self.assertIn(b"[hostile] refused: Connection refused\n", bundle.log)
        self.assertEqual(bundle.events("ready", "web"), [])
        self.assertNotIn(b"web is not ready", bundle.log)

    def test_control_without_a_connection_to_it_a_daemon_can_tell_of_others(self) -> None:
        self.attacked("netlink-to-the-kernel-alone").wait_for_event("ready", "web")


class UserNamespaceTest(AttackTestCase):
    """Without a seccomp profile every daemon can have all capabilities, over a namespace of its own."""

    def test_in_a_user_namespace_it_has_every_capability_and_finds_nothing(self) -> None:
        for user in (None, "daemon"):
            fields = {"user": user} if user else {}
            attack = attacker("hostile.py", "/run/place/report", "--private", "/run/place/private", "--user-namespace")
            hold = 'umask 077; printf %s "$EGRESS_TOKEN_CANARY" >/run/place/token; exec 9</run/place/token; sleep 1000'
            rows = [daemon("egress", *shell(hold), user=OWNER), daemon("hostile", *attack, **fields)]
            rows.append(daemon("pipelock", *SLEEP))
            with self.subTest(user), HardenedBundle(rows) as bundle:
                self.private_file(bundle)
                bundle.until(lambda: bundle.found("report"), 3 * PATIENCE, "the attacker's report")
                results = json.loads(bundle.found("report"))
                if "capabilities" not in results:
                    self.skipTest("no user namespaces here")
                self.assertRegex(results["capabilities"]["found"][0], "^0*[1-9a-f]+f$", "it has them all")
                found = {name for name, one in results.items() if TOKEN in one["found"]}
                self.assertEqual(found, set())
                bundle.catch_up()
                self.assertEqual(bundle.daemon("egress")["restarts"], 0)


if __name__ == "__main__":
    unittest.main()
