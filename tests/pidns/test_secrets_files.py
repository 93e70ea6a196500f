"""Files that PID 1 reads for a daemon: they reach their owner alone, and no daemon can have PID 1 read another file.

The attacker owns what stands in the way to its own file, and puts something else there before its next start.
"""

from __future__ import annotations

import unittest
from collections.abc import Sequence
from pathlib import Path
from signal import SIGUSR2
from typing import Any, ClassVar

from tests.pidns.hardened import COMPOSE, DOCKER, OTHER, OWNER, TOKEN, AttackTestCase, HardenedBundle, attacker
from tests.pidns.harness import PATIENCE, SLEEP, Bundle, child, daemon, open_files, quiet_for, shell
from tests.support import wait_until

PRIVATE = f"printf {TOKEN} >/run/private; chown {OWNER} /run/private; chmod 600 /run/private"
# A daemon that keeps what it is given, and is started again and again.
TAKE = shell("cat $KEY >>/run/place/loot; sleep 0.05; exit 1")


class StandInTest(AttackTestCase):
    """What a daemon puts in the place of its own file, in a place that it may change."""

    def after(
        self, attack: str, path: str, setup: str, *, capabilities: Sequence[str] = DOCKER, without: Sequence[str] = ()
    ) -> HardenedBundle:
        """`attack` is done by a daemon of the account whose file `path` is; then it is started several times."""
        done = f"{attack}; : >/run/place/done; exec sleep 1000"
        rows = [
            daemon("hostile", *shell(done), user=OTHER),
            daemon("web", *TAKE, user=OTHER, restart="always", files={"KEY": path}, after=["hostile"]),
            daemon("egress", *SLEEP, user=OWNER),
        ]
        bundle = HardenedBundle(
            rows,
            setup=f"{PRIVATE}; {setup}",
            capabilities=capabilities,
            without=without,
            tunables={"_BACKOFF_FIRST": 0.05, "_BACKOFF_LAST": 0.05},
        )
        self.enter(bundle)
        bundle.until((bundle.place / "done").exists, PATIENCE, "the attack is done")
        return bundle

    def assert_safe(self, bundle: HardenedBundle, reason: bytes = b"") -> None:
        before = len(bundle.events(None, "web"))
        bundle.until(lambda: len(bundle.events(None, "web")) > before + 6, PATIENCE, "several tries")
        bundle.catch_up()
        self.assertNotIn(TOKEN.encode(), bundle.found())
        self.assertIn(reason, bundle.log)

    def assert_found(self, bundle: HardenedBundle) -> None:
        bundle.until(lambda: TOKEN.encode() in bundle.found(), PATIENCE, "the token")

    OWN = f"mkdir /run/own; echo mine >/run/own/key; chown -R {OTHER} /run/own"
    CHANGED = b"/run/own may be changed by others; root must own it, with mode 0755 or less"

    def test_a_link_to_the_file_of_another_account(self) -> None:
        for target in ("/run/private", "../private"):
            attack = f"ln -sf {target} /run/own/key"
            for capabilities in (DOCKER, COMPOSE):
                bundle = self.after(attack, "/run/own/key", self.OWN, capabilities=capabilities)
                self.assert_safe(bundle, self.CHANGED)
            self.assert_safe(self.after(attack, "/run/own/key", self.OWN, without=["checked-folders"]))

    def test_control_opened_by_its_path_the_link_gives_it(self) -> None:
        attack = "ln -sf /run/private /run/own/key"
        self.assert_found(self.after(attack, "/run/own/key", self.OWN, without=["safe-reading"]))

    def test_a_link_to_the_environment_of_pid_1(self) -> None:
        attack = "ln -sf /proc/self/environ /run/own/key"
        self.assert_safe(self.after(attack, "/run/own/key", self.OWN), self.CHANGED)
        self.assert_safe(self.after(attack, "/run/own/key", self.OWN, without=["checked-folders"]))

    def test_control_opened_by_its_path_it_gives_the_tokens(self) -> None:
        attack = "ln -sf /proc/self/environ /run/own/key"
        without = ["safe-reading", "empty-environment-block"]
        self.assert_found(self.after(attack, "/run/own/key", self.OWN, without=without))

    def test_another_name_for_the_file_of_another_account(self) -> None:
        """What fs.protected_hardlinks leaves to an attacker if it is off; here, root makes the link for it."""
        link = f"{self.OWN}; ln -f /run/private /run/own/key"
        self.assert_safe(self.after("true", "/run/own/key", link), self.CHANGED)

    def test_control_in_a_folder_that_is_not_checked_it_gives_it(self) -> None:
        link = f"{self.OWN}; ln -f /run/private /run/own/key"
        self.assert_found(self.after("true", "/run/own/key", link, without=["checked-folders"]))

    # The folder is root's; the one around it is not.
    AROUND = "mkdir -p /run/own/keys /run/others; ln /run/private /run/others/key; echo mine >/run/own/keys/key;"
    AROUND += f"chown {OTHER} /run/own; chmod 600 /run/own/keys/key; chown {OTHER} /run/own/keys/key"
    SWAP = "mv /run/own/keys /run/own/away; ln -s /run/others /run/own/keys"

    def test_another_folder_in_its_place(self) -> None:
        bundle = self.after(self.SWAP, "/run/own/keys/key", self.AROUND)
        self.assert_safe(bundle)
        self.assertIn(b"mine\n", bundle.found(), "it still gets its own")

    def test_control_opened_by_its_path_the_other_folder_gives_it(self) -> None:
        self.assert_found(self.after(self.SWAP, "/run/own/keys/key", self.AROUND, without=["safe-reading"]))

    # It was put there before the container was restarted.
    EARLIER = f"{AROUND}; {SWAP}; chown -h {OTHER} /run/own/keys"

    def test_a_link_of_an_earlier_run_in_the_place_of_the_folder(self) -> None:
        bundle = self.after("true", "/run/own/keys/key", self.EARLIER)
        self.assert_safe(bundle, b"the link /run/own/keys may be changed by others; root must own it")
        through = f"{self.EARLIER}; ln -s own /run/safe; ln -s safe/keys /run/keys"
        bundle = self.after("true", "/run/keys/key", through)
        self.assert_safe(bundle, b"the link /run/own/keys may be changed by others; root must own it")

    def test_control_not_looked_at_it_gives_the_other_folder(self) -> None:
        self.assert_found(self.after("true", "/run/own/keys/key", self.EARLIER, without=["checked-links"]))

    def test_links_of_root_are_followed(self) -> None:
        setup = f"{self.AROUND}; ln -s keys /run/own/link; ln -s /run/own/link /run/to"
        bundle = self.after("true", "/run/to/key", setup)
        bundle.until(lambda: b"mine\n" in bundle.found(), PATIENCE, "its own file")

    # As Kubernetes arranges it, but for the account that owns what the links lead to.
    DATA = f"mkdir -p /run/keys/1; echo mine >/run/keys/1/key; chown -R {OTHER} /run/keys/1;"
    DATA += "ln -s 1 /run/keys/..data; ln -s ..data/key /run/keys/key"

    def test_a_link_below_the_folder_cannot_lead_out_of_it(self) -> None:
        for target in ("/run/private", "../../private", "/proc/self/environ", "/proc/self/cwd/run/private"):
            bundle = self.after(f"ln -sf {target} /run/keys/1/key", "/run/keys/key", self.DATA)
            self.assert_safe(bundle, b"cannot read KEY from /run/keys/key: its link leads out of its folder")

    def test_control_looked_up_without_a_limit_it_does(self) -> None:
        attack = "ln -sf ../../private /run/keys/1/key"
        self.assert_found(self.after(attack, "/run/keys/key", self.DATA, without=["lookup-beneath"]))

    def answers(self, bundle: Bundle) -> bool:
        """Whether PID 1 handles a signal within a second."""
        status = bundle.state / "status.json"
        before = status.exists() and bundle._version()
        bundle.signal(SIGUSR2)
        quiet_for(1)
        return (status.exists() and bundle._version()) != before

    FIFO = "rm /run/keys/1/key; mkfifo /run/keys/1/key"

    def test_a_pipe_does_not_hold_up_pid_1(self) -> None:
        bundle = self.after(self.FIFO, "/run/keys/key", self.DATA)
        self.assert_safe(bundle, b"cannot read KEY from /run/keys/key: it is not a regular file")

    def test_control_opened_by_its_path_a_pipe_holds_it_up(self) -> None:
        bundle = self.after(self.FIFO, "/run/keys/key", self.DATA, without=["safe-reading"])
        bundle.until(lambda: not self.answers(bundle), PATIENCE, "PID 1 hangs")

    def leased(self, without: Sequence[str] = ()) -> HardenedBundle:
        rows = [
            daemon("hostile", *attacker("lease.py", "/run/keys/key", "/run/place/done"), user=OTHER),
            daemon("web", *TAKE, user=OTHER, restart="always", files={"KEY": "/run/keys/key"}, after=["hostile"]),
        ]
        setup = f"mkdir /run/keys; echo mine >/run/keys/key; chown {OTHER} /run/keys/key"
        tunables = {"_BACKOFF_FIRST": 0.05, "_BACKOFF_LAST": 0.05}
        bundle = self.enter(HardenedBundle(rows, setup=setup, without=without, tunables=tunables, secrets={}))
        bundle.until((bundle.place / "done").exists, PATIENCE, "the lease")
        return bundle

    def test_a_lease_does_not_hold_up_pid_1(self) -> None:
        """The kernel makes who opens the file wait until its holder gives it up, for 45 s at most."""
        bundle = self.leased()
        reason = b"cannot read KEY from /run/keys/key: Resource temporarily unavailable; trying again"
        bundle.wait_for(reason, times=3)

    def test_control_an_open_that_waits_holds_it_up(self) -> None:
        bundle = self.leased(["reading-without-waiting"])
        bundle.until(lambda: not self.answers(bundle), PATIENCE, "PID 1 hangs")


class OwnerTest(AttackTestCase):
    """The owner can read its file, and no other account can."""

    HOST: ClassVar = {  # a key of the host, as it is mounted: mode 0600, the host's uid, read-only
        "a file": "mkdir /run/gate; : >/run/gate/id; printf %s host-key >/run/host; chmod 600 /run/host;"
        "chown 1000 /run/host; mount --bind /run/host /run/gate/id; mount -o remount,bind,ro /run/gate/id",
        "a folder": "mkdir /run/gate; mount -t tmpfs tmpfs /run/gate; printf %s host-key >/run/gate/id;"
        "chmod 600 /run/gate/id; chmod 700 /run/gate; chown -R 1000 /run/gate; mount -o remount,ro /run/gate",
    }
    ROWS = (daemon("git-gate", *shell("cat $KEY; echo; exec sleep 1000"), user=OWNER, files={"KEY": "/run/gate/id"}),)

    def test_a_key_of_the_host_is_read_with_dockers_capabilities_and_with_four(self) -> None:
        for what, setup in self.HOST.items():
            for capabilities in (DOCKER, COMPOSE):
                bundle = HardenedBundle(self.ROWS, setup=setup, capabilities=capabilities, secrets={})
                with self.subTest(what, capabilities=len(capabilities)), bundle:
                    bundle.wait_for(b"[git-gate] host-key\n")

    def test_control_read_as_root_it_needs_a_fifth(self) -> None:
        for what, setup in self.HOST.items():
            with self.subTest(what):
                bundle = HardenedBundle(self.ROWS, setup=setup, without="reading-as-the-owner", secrets={})
                with bundle:
                    bundle.wait_for(b"cannot read KEY from /run/gate/id: Permission denied")

    SECRET = f"mkdir /run/keys; printf {TOKEN} >/run/keys/token; chmod 600 /run/keys/token"

    def thief(self, user: str, **how: Any) -> HardenedBundle:
        look = "cat /proc/[0-9]*/fd/[3-9] /proc/[0-9]*/environ >>/run/place/loot 2>/dev/null"
        steal = shell(f"for n in 1 2 3 4 5; do {look}; sleep 0.02; done; : >/run/place/done; exec sleep 1000")
        rows = [
            daemon("egress", *SLEEP, user=OWNER, **how),
            daemon("hostile", *steal, user=user, after=["egress"]),
        ]
        env = {} if how else {"EGRESS_TOKEN_CANARY_FILE": "/run/keys/token"}
        bundle = self.enter(HardenedBundle(rows, env=env, setup=self.SECRET))
        bundle.until((bundle.place / "done").exists, PATIENCE, "the attacker has looked everywhere")
        return bundle

    def test_another_account_cannot_read_the_descriptor_nor_the_environment(self) -> None:
        for how in ({"files": {"KEY": "/run/keys/token"}}, {}):
            with self.subTest(how):
                bundle = self.thief(OTHER, **how)
                self.assertNotIn(TOKEN.encode(), bundle.found())
                self.assertIn(b"PATH=", bundle.found(), "it has read its own")
                self.assertNotIn(TOKEN.encode(), bundle.log + Path(bundle.state / "events.jsonl").read_bytes())

    def test_control_the_same_account_can(self) -> None:
        for how in ({"files": {"KEY": "/run/keys/token"}}, {}):
            with self.subTest(how):
                self.assertIn(TOKEN.encode(), self.thief(OWNER, **how).found())

    def test_what_pid_1_has_read_is_not_in_its_environment(self) -> None:
        bundle = self.thief(OTHER)
        environ = Path(f"/proc/{bundle.pid1}/environ").read_bytes()
        self.assertNotIn(TOKEN.encode(), environ)

    def test_a_daemon_has_no_descriptor_but_its_own(self) -> None:
        """And PID 1 keeps none of them."""
        files = {"GONE": "/run/keys/gone", "KEY": "/run/keys/token", "NONE": "/no/folder", "LAST": "/run/keys/token"}
        rows = [daemon("web", *SLEEP, user=OWNER, files=files, restart="always")]
        bundle = self.enter(HardenedBundle(rows, setup=self.SECRET, secrets={}))
        bundle.wait_for_state("web", "running")
        pid = bundle.host_pid(bundle.daemon("web")["pid"])
        folder = Path(f"/proc/{pid}/fd")
        # A program that was executed a moment ago may still be opening its libraries.
        wait_until(lambda: sorted(open_files(pid)) == [0, 1, 2, 4, 6], PATIENCE, "these descriptors and no other")
        links = open_files(pid)
        self.assertEqual({links[4], links[6]}, {"/memfd:KEY (deleted)", "/memfd:LAST (deleted)"})
        for descriptor in (4, 6):
            about = (folder / str(descriptor)).stat()
            owner = Path(f"{folder.parent}/status").read_text().partition("Uid:\t")[2].split()[0]
            self.assertEqual((oct(about.st_mode & 0o7777), str(about.st_uid)), ("0o400", owner))
        self.assertEqual([path for path in open_files(bundle.pid1).values() if "memfd" in path], [])


class OldKernelTest(AttackTestCase):
    def test_without_openat2_a_file_is_read_and_a_link_refused(self) -> None:
        for error in ("ENOSYS", "EPERM"):
            with self.subTest(error):
                rows = [
                    daemon("web", *shell("cat $KEY; exec sleep 1000"), files={"KEY": "/etc/hostname"}),
                    daemon("link", *SLEEP, files={"KEY": "/proc/self"}),
                ]
                bundle = Bundle(rows, env={"SIDECAR_TEST_ERRNO": error})
                bundle.argv = [*child("denied.py", "openat2"), *bundle.argv]
                with bundle:
                    bundle.wait_for(b"[web] ")
                    bundle.wait_for(b"cannot read KEY from /proc/self: it is a symlink, which needs openat2")

    def test_before_linux_6_3_the_file_in_memory_is_made_without_its_newest_flag(self) -> None:
        rows = [daemon("web", *shell("cat $KEY; exec sleep 1000"), files={"KEY": "/etc/hostname"})]
        bundle = Bundle(rows, env={"SIDECAR_TEST_ERRNO": "EINVAL"})
        bundle.argv = [*child("denied.py", "memfd_create=11@1"), *bundle.argv]
        with bundle:
            bundle.wait_for(b"[web] ")

    def test_without_memory_for_it_the_daemon_is_tried_again(self) -> None:
        bundle = Bundle([daemon("web", *SLEEP, files={"KEY": "/etc/hostname"})], env={"SIDECAR_TEST_ERRNO": "ENOMEM"})
        bundle.argv = [*child("denied.py", "memfd_create"), *bundle.argv]
        with bundle:
            bundle.wait_for(b"cannot read KEY from /etc/hostname: Cannot allocate memory; trying again")


if __name__ == "__main__":
    unittest.main()
