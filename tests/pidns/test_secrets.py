"""Secrets stay with their owner: a daemon that was taken over looks for the secret of another, in every way it can.

Beside each protection stands a control in which it is switched off, and the same attack finds what it looks for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import unittest
from collections.abc import Sequence
from pathlib import Path
from signal import SIGABRT, SIGTERM, SIGUSR1, SIGUSR2
from typing import Any

from tests.pidns.hardened import ENVIRONMENT, OTHER, OWNER, PREFIXES, TOKEN
from tests.pidns.harness import (
    PATIENCE,
    SLEEP,
    Bundle,
    Daemon,
    Namespace,
    NamespaceTestCase,
    daemon,
    shell,
    small_disk,
)
from tests.support import CHILDREN

OF_ONE = [
    *("environ", "task", "maps", "auxv", "cwd", "root"),
    *("mem", "fd", "ptrace", "process_vm_readv", "pidfd_getfd", "perf_event_open"),
]
REFUSED = {f"{what} of {target}" for what in OF_ONE for target in ("supervisor", "egress")} | {
    *("file of mode 0600", "setuid to egress's account", "setuid program"),
    *("mount", "chroot", "setns", "mknod", "bpf"),
}


def under(bundle: Bundle, *command: str) -> Bundle:
    """The same bundle, started by another command."""
    bundle.argv = [*command, *bundle.argv]
    return bundle


def state_of(bundle: Bundle) -> bytes:
    """All that the supervisor keeps for others; `status.json.new` may come and go while we look."""
    paths = [bundle.state / name for name in ("status.json", "events.jsonl.1", "events.jsonl")]
    return b"".join(path.read_bytes() for path in paths if path.exists())


def privileges(pid: int) -> dict[str, str]:
    """What /proc tells of a process's privileges, by the kernel's names."""
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(re.findall(r"^(NoNewPrivs|Cap\w+|Uid|Gid|Groups):\t(.*?) *$", text, re.MULTILINE))


OPEN = ("undumpable", "empty-environment-block")
NONE = f"{0:016x}"


class SecretsTestCase(NamespaceTestCase):
    def enter(self, bundle: Bundle) -> Bundle:
        return self.enterContext(bundle)

    def assert_answers(self, bundle: Bundle) -> None:
        """The supervisor's loop is alive: a heartbeat replaces status.json."""

        def version() -> tuple[int, int]:
            status = (bundle.state / "status.json").stat()
            return status.st_ino, status.st_mtime_ns

        before = version()
        bundle.signal(SIGUSR2)
        bundle.until(lambda: version() != before, PATIENCE, "another status.json")


class HostileDaemonTest(SecretsTestCase):
    """One long attack for each kind of account."""

    def setUp(self) -> None:
        self.place = self.scratch()
        disk = self.enterContext(small_disk(1024))
        self.setuid_cat = Path(shutil.copy("/bin/cat", disk / "cat"))
        self.setuid_cat.chmod(0o4755)
        self.program = Path(shutil.copy(CHILDREN / "hostile.py", self.place))
        self.program.chmod(0o644)
        self.private = self.place / "private" / "token"

    def bundle(self, attacker: str | None, owner: str | None = OWNER, **options: Any) -> Bundle:
        """The owner, who holds its token in every way that one can be held; one to restart; the attacker."""
        gate, report = self.place / "gate", self.place / "report"
        hold = f"""
            umask 077; mkdir -p {self.private.parent}; cd {self.private.parent}; trap '' HUP
            printf %s "$EGRESS_TOKEN_CANARY" >token; exec 9<token
            umask 0; : >{gate}; exec sleep 1000
        """
        attack = [self.interpreter(), "-I", "-S", str(self.program), str(report), "--private", str(self.private)]
        attack += ["--gate", str(gate), "--setuid-cat", str(self.setuid_cat)]

        def row(name: str, argv: Sequence[str], user: str | None, **fields: Any) -> Daemon:
            return daemon(name, *argv, **({"user": user} if user else {}), **fields)

        rows = [
            row("hostile", attack, attacker),  # the first, so that it sees the others come
            row("egress", shell(hold), owner),
            row("pipelock", SLEEP, None),
        ]
        return Bundle(rows, secrets=PREFIXES, env=ENVIRONMENT, **options)

    results: dict[str, dict[str, Any]]
    log: bytes
    state: bytes

    def finds(self, bundle: Bundle) -> set[str]:
        """The attempts that found the token, when all have been made; the supervisor is well afterwards."""
        report = self.place / "report"
        with bundle:
            bundle.until(report.exists, 3 * PATIENCE, "the attacker's report")
            self.results = json.loads(report.read_text())
            self.assert_answers(bundle)
            self.assertEqual(bundle.daemon("egress")["restarts"], 0)
            self.log, self.state = bundle.log, state_of(bundle)
        return {name for name, result in self.results.items() if TOKEN in result["found"]}

    def assert_finds_nothing(self, bundle: Bundle) -> None:
        self.assertEqual(self.finds(bundle), set())
        refused = {name for name, result in self.results.items() if result["refused"]}
        self.assertEqual(REFUSED - refused, set())
        self.assertNotIn(TOKEN.encode(), self.log)
        self.assertNotIn(TOKEN.encode(), self.state)

    def test_a_hostile_daemon_without_an_account_of_its_own_finds_nothing(self) -> None:
        self.assert_finds_nothing(self.bundle(attacker=None))
        self.assertGreaterEqual(self.log.count(b"pipelock restarted"), 5, "the storm made the supervisor fork")

    def test_a_hostile_daemon_of_another_account_finds_nothing(self) -> None:
        self.assert_finds_nothing(self.bundle(attacker=OTHER))
        self.assertEqual(self.results["storm"]["refused"], "EPERM")
        self.assertEqual(self.results["write_state"]["refused"], "EACCES")

    def test_control_with_its_capabilities_it_finds_it_everywhere(self) -> None:
        found = self.finds(self.bundle(attacker=None, without=("empty-capability-sets", "empty-environment-block")))
        everywhere = {f"{what} of egress" for what in OF_ONE if what not in ("maps", "auxv", "perf_event_open")}
        everywhere |= {f"{what} of supervisor" for what in ("environ", "task", "mem", "process_vm_readv", "ptrace")}
        everywhere |= {"file of mode 0600", "setuid to egress's account", "mount", "chroot", "setns", "storm"}
        self.assertEqual(everywhere - found, set())
        for way in ("mknod", "bpf", "perf_event_open of egress", "maps of supervisor", "auxv of supervisor"):
            self.assertEqual(self.results[way]["refused"], "", way)

    def test_control_with_the_account_of_the_owner_it_finds_it_there(self) -> None:
        found = self.finds(self.bundle(attacker=OTHER, owner=OTHER))
        self.assertLessEqual({"environ of egress", "mem of egress", "fd of egress", "file of mode 0600"}, found)
        self.assertNotIn("environ of supervisor", found)

    def test_control_an_owner_without_an_account_of_its_own_is_open_to_every_other(self) -> None:
        found = self.finds(self.bundle(attacker=None, owner=None))
        self.assertLessEqual({"environ of egress", "mem of egress", "ptrace of egress"}, found)
        self.assertNotIn("environ of supervisor", found)

    def test_control_without_no_new_privs_a_setuid_program_finds_it(self) -> None:
        found = self.finds(self.bundle(attacker=OTHER, without="no-new-privs"))
        self.assertEqual(found, {"setuid program"})

    def test_control_with_one_environment_for_all_it_has_it(self) -> None:
        found = self.finds(self.bundle(attacker=OTHER, without="own-environment"))
        self.assertIn("own environment", found)

    def test_pid_1_alone_is_out_of_reach_even_of_an_equal_without_capabilities(self) -> None:
        """Where PID 1 has no capabilities, only that it is not dumpable stands between it and a daemon of root."""
        found = self.finds(under(self.bundle(attacker=None, owner=None), "setpriv", "--bounding-set", "-all"))
        self.assertEqual({name for name in found if name.endswith("of supervisor")}, {"root of supervisor"} & found)

    def test_control_where_it_is_dumpable_an_equal_reads_it(self) -> None:
        bundle = self.bundle(attacker=None, owner=None, without=OPEN)
        found = self.finds(under(bundle, "setpriv", "--bounding-set", "-all"))
        self.assertLessEqual({"environ of supervisor", "mem of supervisor", "ptrace of supervisor"}, found)


class FirstMomentTest(SecretsTestCase):
    """The first thing that runs beside PID 1 finds it closed. No capabilities: nothing else would hinder it."""

    def what_the_first_child_reads(self, without: str | Sequence[str] = ()) -> str:
        seen = self.scratch() / "seen"
        first = daemon("first", *shell(f"cat /proc/1/environ >{seen}.new 2>&1; mv {seen}.new {seen}; exec sleep 1000"))
        bundle = Bundle([first, daemon("egress", *SLEEP)], secrets=PREFIXES, env=ENVIRONMENT, without=without)
        bundle = under(bundle, "setpriv", "--bounding-set", "-all")
        with bundle:
            bundle.until(seen.exists, PATIENCE, "what the first child read")
        return seen.read_text()

    def test_pid_1_is_closed_before_the_first_child_runs(self) -> None:
        seen = self.what_the_first_child_reads()
        self.assertIn("/proc/1/environ: Permission denied", seen)
        self.assertNotIn(TOKEN, seen)

    def test_control_without_the_guard_the_first_child_reads_it(self) -> None:
        self.assertIn(TOKEN, self.what_the_first_child_reads(OPEN))


class VisitorTest(SecretsTestCase):
    """A health check or `docker exec` gets the container's whole environment, tokens too, as root, beside daemons."""

    def what_a_daemon_reads_of_a_visitor(self, *kept: str) -> str:
        place = self.scratch()
        read = f"until [ -e {place}/go ]; do sleep 0.01; done; cat /proc/[0-9]*/environ >{place}/new 2>/dev/null"
        spy = daemon("spy", *shell(f"{read}; mv {place}/new {place}/seen; exec sleep 1000"))
        with Bundle([spy, daemon("egress", *SLEEP, user=OWNER)], secrets=PREFIXES, env=ENVIRONMENT) as bundle:
            bundle.wait_for_state("egress", "running")
            enter = ["nsenter", "-t", str(bundle.pid1), "-p", "-m", "-n"]
            drop = ["setpriv", "--bounding-set", ",".join(("-all", *kept))]
            # Without an exec, during which its environment cannot be read.
            visit = shell(f": >{place}/go; while :; do sleep 1000; done")
            visitor = subprocess.Popen([*enter, *drop, *visit], env=bundle.env)
            try:
                bundle.until((place / "seen").exists, PATIENCE, "what the daemon read")
            finally:
                visitor.kill()
                visitor.wait()
        return (place / "seen").read_text()

    def test_a_daemon_cannot_read_who_has_pid_1s_capabilities(self) -> None:
        seen = self.what_a_daemon_reads_of_a_visitor("+setuid", "+setgid", "+kill", "+setpcap")
        self.assertIn("SIDECAR_STATUS_FILE=", seen, "at least it reads itself")
        self.assertNotIn(TOKEN, seen)

    def test_control_a_visitor_without_capabilities_is_an_open_book(self) -> None:
        self.assertIn(TOKEN, self.what_a_daemon_reads_of_a_visitor())


CORE_PATTERN = Path("/proc/sys/kernel/core_pattern").read_text().strip()


@unittest.skipIf(CORE_PATTERN[:1] in ("|", "/"), f"core dumps go elsewhere here: {CORE_PATTERN}")
class CoreDumpTest(SecretsTestCase):
    """PID 1 cannot be made to dump core at all; a supervisor that is not PID 1 can be killed, and leaves none."""

    def core_of(self, who: str, without: str | Sequence[str] = ()) -> bytes:
        """The core that is left when the supervisor, or its daemon egress, is aborted."""
        place = self.scratch()
        unlimited = [*shell('ulimit -c unlimited; cd "$0"; exec "$@"'), str(place)]
        with Namespace(SLEEP) as around:
            rows = [daemon("egress", *shell("exec sleep 1000"))]
            bundle = Bundle(rows, secrets=PREFIXES, env=ENVIRONMENT, inside=around, without=without)
            with under(bundle, *unlimited):
                bundle.wait_for_state("egress", "running")
                if who == "supervisor":
                    bundle.signal(SIGABRT)
                    bundle.exit()
                else:
                    os.kill(next(iter(bundle.processes())), SIGABRT)
                    bundle.wait_for(b"egress was terminated by SIGABRT")
        return b"".join(path.read_bytes() for path in place.glob("core*"))

    def test_neither_the_supervisor_nor_a_daemon_leaves_a_core(self) -> None:
        self.assertEqual(self.core_of("supervisor"), b"")
        self.assertEqual(self.core_of("egress"), b"")

    def test_control_without_the_guard_the_core_holds_the_token(self) -> None:
        self.assertIn(TOKEN.encode(), self.core_of("supervisor", OPEN))

    def test_control_without_the_limit_the_core_of_a_daemon_holds_its_token(self) -> None:
        self.assertIn(TOKEN.encode(), self.core_of("egress", "core-limit"))


class PrivilegeTest(SecretsTestCase):
    def test_neither_daemons_nor_checks_have_or_can_get_a_privilege(self) -> None:
        place = self.scratch()
        look = f"cat /proc/self/status /proc/self/limits >{place}/new; env >>{place}/new"
        check = shell(f"{look}; mv {place}/new {place}/seen")
        rows = [daemon("pipelock", *SLEEP, check=check), daemon("egress", *SLEEP, user=OWNER)]
        bundle = self.enter(Bundle(rows, secrets=PREFIXES, env={**ENVIRONMENT, "PLAIN": "plain"}))
        bundle.wait_for_state("egress", "running")
        bundle.wait_for_state("pipelock", "running")
        own_score = int(Path(f"/proc/{bundle.pid1}/oom_score_adj").read_text())
        for name in ("pipelock", "egress"):
            pid = bundle.host_pid(bundle.daemon(name)["pid"])
            self.assert_no_privileges(privileges(pid))
            limits = Path(f"/proc/{pid}/limits").read_text()
            self.assertRegex(limits, r"Max core file size +0 +0 ")
            self.assertGreater(int(Path(f"/proc/{pid}/oom_score_adj").read_text()), own_score)
        bundle.signal(SIGUSR1)
        bundle.until((place / "seen").exists, PATIENCE, "what the check saw")
        seen = (place / "seen").read_text()
        self.assertRegex(seen, r"Max core file size +0 +0 ")
        self.assert_no_privileges(dict(re.findall(r"^(NoNewPrivs|Cap\w+):\t(.*)$", seen, re.MULTILINE)))
        self.assertIn("PLAIN=plain", seen)
        self.assertNotIn("EGRESS_TOKEN", seen)

    def assert_no_privileges(self, of: dict[str, str]) -> None:
        sets = {name: value for name, value in of.items() if name.startswith("Cap")}
        self.assertEqual(sets, dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), NONE))
        self.assertEqual(of["NoNewPrivs"], "1")

    def test_inheritable_and_ambient_capabilities_of_pid_1_do_not_reach_daemons(self) -> None:
        """Engines before Docker 20.10.14 gave PID 1 an inheritable set."""
        rows = [daemon("a", *SLEEP), daemon("b", *SLEEP, user=OWNER)]
        caps = "+chown,+dac_override,+setuid"
        bundle = self.enter(under(Bundle(rows), "setpriv", "--inh-caps", caps, "--ambient-caps", caps))
        bundle.wait_for_state("a", "running")
        bundle.wait_for_state("b", "running")
        self.assertNotEqual(privileges(bundle.pid1)["CapInh"], NONE, "the control: PID 1 has them")
        for name in ("a", "b"):
            self.assert_no_privileges(privileges(bundle.host_pid(bundle.daemon(name)["pid"])))

    def test_a_few_capabilities_are_enough_for_pid_1(self) -> None:
        rows = [daemon("egress", *SLEEP, user=OWNER), daemon("pipelock", *SLEEP)]
        bundle = Bundle(rows)
        few = ("setpriv", "--bounding-set", "-all,+setuid,+setgid,+kill,+setpcap")
        self.enter(under(bundle, *few))
        bundle.wait_for_state("pipelock", "running")
        bundle.signal(SIGTERM)
        self.assertEqual(bundle.exit(), 143)

    def assert_fails_closed(self, bundle: Bundle, name: str, reason: str) -> None:
        bundle.wait_for_state(name, "failed")
        self.assertEqual(len([line for line in bundle.own_lines() if reason in line]), 1, bundle.own_lines())
        self.assertIsNone(bundle.daemon(name)["pid"])
        self.assertEqual(bundle.events("started", name), [])

    def test_without_setpcap_nothing_starts_and_the_line_says_why(self) -> None:
        started = self.scratch() / "started"
        rows = [daemon("web", *shell(f"touch {started}; exec sleep 1000"), restart="always"), daemon("b", *SLEEP)]
        with under(Bundle(rows), "setpriv", "--bounding-set", "-setpcap") as bundle:
            assert isinstance(bundle, Bundle)
            self.assert_fails_closed(
                bundle, "web", "cannot start web: cannot drop capabilities (the container must have SETPCAP"
            )
            self.assertEqual(bundle.exit(), 126)
        self.assertFalse(started.exists())

    def test_without_setuid_or_setgid_the_owner_does_not_start(self) -> None:
        for missing in ("setuid", "setgid"):
            with self.subTest(missing):
                started = self.scratch() / "started"
                rows = [daemon("egress", *shell(f"touch {started}"), user=OWNER), daemon("b", *SLEEP)]
                with under(Bundle(rows), "setpriv", "--bounding-set", f"-{missing}") as bundle:
                    self.assert_fails_closed(bundle, "egress", f"cannot become {OWNER} (the container must have SETUID")
                    bundle.wait_for_state("b", "running")
                self.assertFalse(started.exists())

    def test_without_kill_a_daemon_that_cannot_be_signalled_does_not_hold_up_the_shutdown(self) -> None:
        """KILL does not reach its process. Two seconds later the kernel ends it together with PID 1."""
        rows = [daemon("egress", *SLEEP, user=OWNER), daemon("b", *shell("trap 'exit 0' TERM; sleep 1000 & wait"))]
        bundle = Bundle(rows, tunables={"_GRACE_SECONDS": 0.3})
        with under(bundle, "setpriv", "--bounding-set", "-kill"):
            bundle.wait_for_state("egress", "running")
            bundle.wait_for_state("b", "running")
            [owner] = bundle.running_commands("sleep 1000")[:1]
            bundle.signal(SIGTERM)
            self.assertEqual(bundle.exit(), 137)
            self.assertFalse(Path(f"/proc/{owner.pid}").exists())
            said = [line for line in bundle.own_lines() if line.startswith("cannot signal egress: ")]
            self.assertEqual(len(said), 1, bundle.own_lines())

    def test_without_any_capability_daemons_of_root_start(self) -> None:
        """The control of the two above: there is no capability to drop, and no account to become."""
        with under(Bundle([daemon("a", *SLEEP)]), "setpriv", "--bounding-set", "-all") as bundle:
            bundle.wait_for_state("a", "running")

    def test_root_and_no_such_account_is_failed_and_never_started(self) -> None:
        rows = [daemon("egress", *SLEEP, user="nobody-of-that-name", restart="always"), daemon("b", *SLEEP)]
        bundle = self.enter(Bundle(rows))
        self.assert_fails_closed(
            bundle, "egress", "cannot start egress: cannot become nobody-of-that-name: there is no such user"
        )
        bundle.wait_for_state("b", "running")


class AccountTest(SecretsTestCase):
    ASK = shell('echo "$(id -u) $(id -g) $(id -G) $HOME $USER $LOGNAME"; exec sleep 1000')

    def test_a_daemon_gets_the_whole_account(self) -> None:
        """An account that exists in this namespace alone, by files that are mounted over those of the machine."""
        place = self.scratch()
        files = {
            "passwd": "root:x:0:0::/root:/bin/sh\nproxy-owner:x:41:42::/var/lib/proxy:/bin/false\n",
            "group": "root:x:0:\nfirst:x:42:\nsecond:x:43:proxy-owner\nthird:x:44:root,proxy-owner\nother:x:45:root\n",
        }
        mounts = ""
        for name, text in files.items():
            (place / name).write_text(text)
            mounts += f"mount --bind {place}/{name} /etc/{name} && "
        rows = [daemon("egress", *self.ASK, user="proxy-owner"), daemon("root", *self.ASK)]
        env = {"HOME": "/root", "USER": "root"}
        self.enter(bundle := under(Bundle(rows, env=env), "/bin/sh", "-c", f'{mounts}exec "$0" "$@"'))
        bundle.wait_for(b"[egress] 41 42 42 43 44 /var/lib/proxy proxy-owner proxy-owner\n")
        bundle.wait_for(b"[root] 0 0 ")
        self.assertEqual(privileges(bundle.host_pid(bundle.daemon("egress")["pid"]))["Uid"], "41\t41\t41\t41")

    def test_ids_need_no_account_and_have_no_other_group(self) -> None:
        rows = [daemon("a", *self.ASK, user="12345"), daemon("b", *self.ASK, user="12345:0")]
        rows.append(daemon("last", *self.ASK, user="4294967294"))
        self.enter(bundle := Bundle(rows, env={"HOME": "/root", "USER": "root", "LOGNAME": "root"}))
        bundle.wait_for(b"[a] 12345 12345 12345 /  \n")
        bundle.wait_for(b"[b] 12345 0 0 /  \n")
        bundle.wait_for(b"[last] 4294967294 4294967294 4294967294 /  \n")
        for name, ids in (("a", "12345\t12345\t12345\t12345"), ("last", "\t".join(["4294967294"] * 4))):
            has = privileges(bundle.host_pid(bundle.daemon(name)["pid"]))
            self.assertEqual((has["Uid"], has["Groups"]), (ids, ""))

    def test_not_root_it_goes_on_as_itself_and_says_so_once(self) -> None:
        state = self.scratch() / "state"
        state.mkdir(mode=0o777)
        shutil.chown(state, OTHER)
        rows = [daemon("egress", *self.ASK, user=OWNER, restart="on-failure"), daemon("web", *SLEEP, user=OWNER)]
        bundle = Bundle(rows, state_dir=str(state), tunables={"_BACKOFF_FIRST": 0.05})
        bundle.argv = [self.interpreter(), *bundle.argv[1:]]
        bundle.state = state
        account = ["--reuid", OTHER, "--regid", OTHER, "--init-groups"]
        self.enter(under(bundle, "setpriv", *account))
        me = subprocess.check_output(["id", "-u", OTHER], text=True).strip()
        bundle.wait_for(f"[egress] {me} ".encode())
        os.kill(bundle.host_pid(bundle.wait_for_state("egress", "running")["pid"]), 9)
        bundle.wait_for(f"[egress] {me} ".encode(), times=2)
        said = [line for line in bundle.own_lines() if line.startswith("all daemons run as the supervisor's user")]
        self.assertEqual(len(said), 1, bundle.own_lines())


if __name__ == "__main__":
    unittest.main()
