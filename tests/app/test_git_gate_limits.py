"""What a hostile agent may cost others at the git gate: memory, time, branches, and the upstream's token."""

from __future__ import annotations

import fcntl
import glob
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.app import git_wire
from tests.app.git_support import GITLEAKS, needs_the_real_programs, secret
from tests.app.git_wire import NOTHING
from tests.app.test_git_gate_attacks import HOOK, MIRROR, NO_PERMISSIONS, SCAN, Attack
from tests.support import ROOT, free_port, wait_until

NO_SIZES = (SCAN, "size) > largest:", "size) > 1 << 60:")
NO_LINES = (SCAN, "> most_lines:", "> 1 << 60:")
NO_MEMORY_LIMIT = (HOOK, '        mirror.limit_memory(int(os.environ["GIT_GATE_SCAN_MIB"]))\n', "")
NO_ALLOCATION_LIMIT = ("git_gate_env.sh", "GIT_ALLOC_LIMIT=$((GIT_GATE_SCAN_MIB / 4))m", "GIT_ALLOC_LIMIT=0")
NO_LIMIT_OF_SCANS = (HOOK, "while not any(is_locked_now(candidate) for candidate in candidates):", "while False:")
NO_TURNS_OF_A_PEER = (HOOK, '/.scan-of-{peer()}")), fcntl.LOCK_EX)', '/.scan-of-{peer()}")), fcntl.LOCK_SH)')
LOOSE_OBJECTS = ("git_gate_env.sh", "setting receive.unpackLimit 1 ", "setting receive.unpackLimit 100 ")
NO_LIMIT_OF_FILES = ("git_gate_front.py", " && ulimit -S -f $((GIT_GATE_PUSH_MIB * 2048))", "")
NO_LIMIT_OF_UNPACKING = ("git_gate_front.py", "    ulimit -S -d $((GIT_GATE_SCAN_MIB * 384)) || exit\n", "")
NO_LIMIT_OF_A_WINDOW = ("git_gate_env.sh", "setting pack.windowMemory 32m ", "setting pack.windowMemory 0 ")
NO_COMMON_FETCH = (MIRROR, "return fetches_begun(counter) != before", "return False")


@needs_the_real_programs
class LimitsOfAPush(Attack):
    """Each refusal names its limit; with the limit raised or the check gone, the same push passes."""

    def test_a_large_file_of_newlines(self) -> None:
        self.world.commit(self.work, {"newlines": b"\n" * (60 << 20)})
        self.gate()
        self.assert_refused("main", because="more than GIT_GATE_OBJECT_MIB=32 allows")

    def test_many_lines_in_a_file_that_is_not_large(self) -> None:
        self.world.commit(self.work, {"newlines": b"\n" * 1_000_001})
        self.gate()
        self.assert_refused("main", because="has 1000001 lines, more than GIT_GATE_FILE_LINES=1000000 allows")

    def test_control_with_the_limits_of_a_file_raised_it_passes(self) -> None:
        self.world.commit(self.work, {"newlines": b"\n" * 1_000_001})
        self.gate(GIT_GATE_FILE_LINES="2000000")
        self.assert_accepted("main")

    def test_what_takes_too_much_memory_to_read(self) -> None:
        self.world.commit(self.work, {"newlines": b"\n" * 3_000_000})
        self.gate(GIT_GATE_FILE_LINES="4000000", GIT_GATE_SCAN_MIB="100")
        self.assert_refused("main", because="needs more memory than GIT_GATE_SCAN_MIB=100 allows")

    def test_control_without_a_limit_of_memory_it_is_read(self) -> None:
        self.world.commit(self.work, {"newlines": b"\n" * 3_000_000})
        self.gate(NO_MEMORY_LIMIT, NO_ALLOCATION_LIMIT, GIT_GATE_FILE_LINES="4000000", GIT_GATE_SCAN_MIB="100")
        self.assert_accepted("main")

    def test_a_tree_that_holds_the_same_tree_again_and_again(self) -> None:
        """A few objects that a diff shows as 10^9 files."""
        tree = self.tree(f"100644 blob {self.blob('x')}\tx")
        for _ in range(9):
            tree = self.tree(*(f"040000 tree {tree}\t{number}" for number in range(10)))
        self.gate(GIT_GATE_SCAN_MIB="150")
        self.assert_refused(
            f"{self.commit_of(tree)}:refs/heads/x", because="needs more memory than GIT_GATE_SCAN_MIB=150"
        )

    def test_a_large_commit_message(self) -> None:
        file = self.world.dir / "message"
        file.write_text("x\n" * (2 << 20))
        self.world.git("commit", "--quiet", "--allow-empty", "--file", str(file), cwd=self.work)
        self.gate(GIT_GATE_OBJECT_MIB="3")
        self.assert_refused("main", because="commit")

    def test_a_large_push(self) -> None:
        self.world.commit(self.work, {"random": os.urandom(2 << 20)})
        self.gate(GIT_GATE_PUSH_MIB="1")
        self.world.http(GIT_GATE_PUSH_MIB="1")
        before = self.world.both()
        done = self.world.try_git("push", self.world.by_http(), "main", cwd=self.work)
        self.assertIn("pack exceeds maximum allowed size", done.stderr)
        self.assertNotEqual(self.push("main").returncode, 0)
        self.assertEqual(self.world.both(), before)

    def test_a_push_of_many_refs(self) -> None:
        self.gate(GIT_GATE_PUSH_REFS="3")
        self.world.http(GIT_GATE_PUSH_REFS="3")
        four = [f"main:refs/heads/{n}" for n in range(4)]
        self.assert_refused(*four, because="allows; push fewer at a time")
        before = self.world.both()
        done = self.world.try_git("push", self.world.by_http(), *four, cwd=self.work)
        self.assertIn("updates more branches and tags than GIT_GATE_PUSH_REFS=3 allows", done.stderr)
        self.assertEqual(self.world.both(), before)
        self.assert_accepted(*four[:3])

    def test_a_push_of_101_refs_starts_no_process_for_each(self) -> None:
        """git would ask for the objects of each, one process after the other, if one is broken."""
        self.gate()
        names = [f"refs/heads/{number}" for number in range(101)]
        said = git_wire.push(self.world.git_port, git_wire.commands(*((NOTHING, self.base, name) for name in names)))
        self.assertIn("updates more branches and tags than GIT_GATE_PUSH_REFS=100 allows", said)
        said = git_wire.push(self.world.git_port, git_wire.commands(*((NOTHING, self.base, n) for n in names[:100])))
        self.assertNotIn("GIT_GATE_PUSH_REFS", said)

    def test_the_lines_of_a_shallow_clone_do_not_count(self) -> None:
        self.gate()
        lines = b"".join(git_wire.pkt_line(b"shallow " + self.base.encode()) for _ in range(200))
        request = lines + git_wire.commands((NOTHING, self.base, "refs/heads/x"))
        said = git_wire.push(self.world.git_port, request + git_wire.pack([]))
        self.assertNotIn("GIT_GATE_PUSH_REFS", said)
        self.assertIn("refs/heads/x", said)

    def unpack(self, pack: bytes) -> str:
        """What the gate says to a pack that should not be unpacked."""
        self.world.http()
        request = git_wire.commands((NOTHING, self.base, "refs/heads/x")) + pack
        return git_wire.push_by_http(self.world.http_port, request)

    def test_a_pack_that_claims_to_hold_two_billion_objects(self) -> None:
        self.gate()
        self.assertIn("attempting to allocate", self.unpack(git_wire.pack([], claimed=0x7FFFFFF0)))
        self.assertNotIn("refs/heads/x", self.world.refs(self.mirror))

    def test_a_delta_that_unpacks_to_gigabytes(self) -> None:
        """A few kilobytes, each instruction of which copies the 16 MiB of the file before it."""
        self.gate()
        before = b"\n" * (1 << 24)
        hashed = subprocess.run(["git", "hash-object", "--stdin"], input=before, capture_output=True, check=True)
        times = 200
        delta = varint(len(before)) + varint(times * 0xFFFFFF) + b"\xf0\xff\xff\xff" * times
        base = bytes.fromhex(hashed.stdout.decode().strip())
        pack = git_wire.pack([git_wire.entry(3, len(before), before), git_wire.entry(7, len(delta), delta, base)])
        self.assertLess(len(pack), 20_000)
        self.assertIn("attempting to allocate", self.unpack(pack))
        self.assertNotIn("refs/heads/x", self.world.refs(self.mirror))

    def deltas_of_a_file(self, mebibytes: int, files: int = 3) -> str:
        """What the gate says to a file of zeros, and others that have a few more bytes at its end."""
        before = bytes(mebibytes << 20)
        hashed = subprocess.run(["git", "hash-object", "--stdin"], input=before, capture_output=True, check=True)
        base = bytes.fromhex(hashed.stdout.decode().strip())
        entries = [git_wire.entry(3, len(before), before)]
        for number in range(files):
            delta = varint(len(before)) + varint(len(before) + 4)
            for start in range(0, len(before), 1 << 20):
                delta += b"\xff" + start.to_bytes(4, "little") + (1 << 20).to_bytes(3, "little")
            delta += b"\x04" + number.to_bytes(4, "big")
            entries.append(git_wire.entry(7, len(delta), delta, base))
        pack = git_wire.pack(entries)
        self.assertLess(len(pack), 300_000)
        return self.wire_surplus(pack)

    def test_a_small_pack_that_takes_much_memory_to_unpack(self) -> None:
        """Each allocation stays below the limit of one, but the two for a delta do not fit."""
        self.gate()
        said = self.deltas_of_a_file(250)
        self.assertIn("Out of memory", said)
        self.assertNotIn("unpack ok", said)

    def test_control_without_a_limit_of_memory_it_is_unpacked(self) -> None:
        self.gate(NO_LIMIT_OF_UNPACKING)
        self.assertIn("unpack ok", self.deltas_of_a_file(250))

    def test_deltas_of_the_largest_files_that_may_pass_are_unpacked(self) -> None:
        self.gate()
        self.assertIn("unpack ok", self.deltas_of_a_file(31, files=8))

    def test_a_push_near_its_size_limit_is_unpacked(self) -> None:
        """Only the scan then refuses its objects, which belong to nothing."""
        self.gate()
        files = [os.urandom(31 << 20) for _ in range(8)]
        pack = git_wire.pack([git_wire.entry(3, len(content), content) for content in files])
        self.assertGreater(len(pack), 240 << 20)
        self.assertIn("8 of its objects belong to no branch or tag", self.wire_surplus(pack))

    def small_pack_of_large_files(self, files: int, mebibytes: int) -> bytes:
        """Each is the same 64 KiB again and again, and four bytes of its own."""
        before = os.urandom(1 << 16)
        hashed = subprocess.run(["git", "hash-object", "--stdin"], input=before, capture_output=True, check=True)
        base = bytes.fromhex(hashed.stdout.decode().strip())
        entries = [git_wire.entry(3, len(before), before)]
        for number in range(files):
            delta = varint(len(before)) + varint((mebibytes << 20) + 4)
            delta += b"\x80" * (mebibytes << 4) + b"\x04" + number.to_bytes(4, "big")
            entries.append(git_wire.entry(7, len(delta), delta, base))
        return git_wire.pack(entries)

    def written(self, pack: bytes) -> int:
        """The bytes of the mirror's objects and of those of the push, after git has unpacked it and before its end."""
        with (self.world.mirrors / ".scan-0").open("ab") as place:
            fcntl.flock(place, fcntl.LOCK_EX)
            pushing = threading.Thread(
                target=self.wire, args=((NOTHING, self.base, "refs/heads/x"),), kwargs={"pack": pack}
            )
            pushing.start()
            try:
                wait_until(lambda: is_held(self.world.mirrors / ".scan-next"), 60, "the push that waits for its scan")
                files = [path for path in (self.mirror / "objects").rglob("*") if path.is_file()]
                return sum(path.stat().st_size for path in files)
            finally:
                fcntl.flock(place, fcntl.LOCK_UN)
                pushing.join()

    def test_a_small_pack_takes_little_of_the_disk(self) -> None:
        self.gate(GIT_GATE_SCANS="1")
        self.assertLess(self.written(self.small_pack_of_large_files(8, 16)), 1 << 20)

    def test_control_unpacked_to_loose_objects_a_small_pack_takes_much_of_the_disk(self) -> None:
        self.gate(LOOSE_OBJECTS, GIT_GATE_SCANS="1")
        self.assertGreater(self.written(self.small_pack_of_large_files(8, 16)), 100 << 20)

    def change_of_a_large_file(self) -> subprocess.CompletedProcess[str]:
        """A push of a few bytes, which git completes by the file that they are a change of."""
        self.world.git("push", "--quiet", str(self.upstream), "main", cwd=self.work)
        content = (self.work / "large").read_bytes()
        self.world.commit(self.work, {"large": content + b"end\n"})
        return self.push("main")

    def test_what_completes_a_small_pack_is_limited_too(self) -> None:
        self.world.commit(self.work, {"large": os.urandom(4 << 20)})
        self.gate(GIT_GATE_PUSH_MIB="1")
        done = self.change_of_a_large_file()
        self.assertIn("index-pack", done.stderr)
        self.assertNotEqual(done.returncode, 0)
        head = self.world.git("rev-parse", "HEAD", cwd=self.work)
        self.assertNotIn(head, "".join(self.world.both()))

    def test_control_without_a_limit_of_what_git_writes_it_is_completed(self) -> None:
        self.world.commit(self.work, {"large": os.urandom(4 << 20)})
        self.gate(NO_LIMIT_OF_FILES, GIT_GATE_PUSH_MIB="1")
        done = self.change_of_a_large_file()
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_small_pack_that_takes_long_to_unpack(self) -> None:
        self.gate(GIT_GATE_UNPACK_SECONDS="1")
        self.assertIn("index-pack", self.wire_surplus(self.small_pack_of_large_files(100, 30)))

    def test_control_with_more_time_it_is_unpacked_and_scanned(self) -> None:
        self.gate(GIT_GATE_UNPACK_SECONDS="300")
        self.assertIn("belong to no branch or tag", self.wire_surplus(self.small_pack_of_large_files(100, 30)))

    def wire_surplus(self, pack: bytes) -> str:
        return self.wire((NOTHING, self.base, "refs/heads/x"), pack=pack)


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


@needs_the_real_programs
class MemoryOfAFetch(Attack):
    def mebibytes(self, app: Path) -> int:
        """What git takes to pack ten large files that are much alike, as for a fetch."""
        common = os.urandom(20_000)
        for number in range(10):
            content = (f"{number:03}\n".encode() + common) * (15_900_000 // len(common))
            self.world.commit(self.work, {f"{number}/large": content})
        script = '. "$GIT_GATE_APP/git_gate_env.sh" && echo HEAD | exec git pack-objects --revs --stdout --quiet'
        return int(
            subprocess.run(
                [sys.executable, "-c", PEAK, "sh", "-c", script],
                cwd=self.work,
                env=self.world.environment | {"GIT_GATE_APP": str(app)},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )

    def test_a_fetch_of_large_files(self) -> None:
        self.assertLess(self.mebibytes(ROOT / "app"), 100)

    def test_control_without_a_limit_of_the_window_it_takes_more(self) -> None:
        self.assertGreater(self.mebibytes(self.world.app_without(NO_LIMIT_OF_A_WINDOW)), 150)


def is_held(lock: Path) -> bool:
    return subprocess.run(["flock", "--nonblock", str(lock), "true"]).returncode == 1


def varint(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits[-1] |= 0x80
        digits.append(number & 0x7F)
    return bytes(digits)


@needs_the_real_programs
class ScansAtTheSameTime(Attack):
    def start(self, *without: tuple[str, str, str], scans: int = 1) -> None:
        """A gate whose scans go on for as long as a file is there, and two pushes, the second after the first."""
        self.busy = self.world.dir / "busy"
        self.busy.touch()
        program = self.world.dir / "gitleaks"
        wait = f"touch {self.world.dir}/scanning.$$; while [ -e {self.busy} ]; do sleep 0.05; done"
        program.write_text(f'#!/bin/sh\n{wait}\nexec {GITLEAKS} "$@"\n')
        program.chmod(0o755)
        self.gate(*without, GIT_GATE_GITLEAKS=str(program), GIT_GATE_SCANS=str(scans))
        self.pushes = [self.start_push("first")]
        wait_until(lambda: self.scans() == 1, 30, "the first scan")
        self.pushes.append(self.start_push("second"))

    def start_push(self, branch: str) -> subprocess.Popen[bytes]:
        other = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(other, {branch: "a\n"})
        command = ["git", "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}"]
        push = subprocess.Popen(command, cwd=other, env=self.world.client, stderr=subprocess.DEVNULL)
        self.addCleanup(push.wait)
        self.addCleanup(self.busy.unlink, missing_ok=True)  # before that
        return push

    def scans(self) -> int:
        return len(list(self.world.dir.glob("scanning.*")))

    def test_a_scan_waits_for_a_place(self) -> None:
        self.start(NO_TURNS_OF_A_PEER)
        wait_until(lambda: is_held(self.world.mirrors / ".scan-next"), 30, "the second push that waits")
        self.assertEqual(self.scans(), 1)
        self.busy.unlink()
        self.assertEqual([push.wait(60) for push in self.pushes], [0, 0])

    def test_control_without_places_both_scan_at_the_same_time(self) -> None:
        self.start(NO_LIMIT_OF_SCANS, NO_TURNS_OF_A_PEER)
        wait_until(lambda: self.scans() == 2, 30, "the second scan")

    def push_of_another_peer(self) -> None:
        commit = self.world.commit(self.work, {"third": "a\n"})
        names = self.world.git("rev-list", "--objects", "--no-object-names", f"{self.base}..", cwd=self.work).split()
        request = git_wire.commands((NOTHING, commit, "refs/heads/third")) + self.pack(*names)
        pushing = threading.Thread(
            target=git_wire.push, args=(self.world.git_port, request), kwargs={"sender": "127.0.0.2"}
        )
        pushing.start()
        self.addCleanup(pushing.join)
        self.addCleanup(self.busy.unlink, missing_ok=True)  # before that

    def waiting_for_a_peers_turn(self) -> int:
        """How many processes have such a lock or wait for it."""
        having = set()
        for file in glob.glob("/proc/[0-9]*/fd/*"):  # that of pathlib raises if a process ends meanwhile
            with suppress(OSError):
                if "/.scan-of-" in os.readlink(file):
                    having.add(file.split("/")[2])
        return len(having)

    def test_a_peer_with_many_pushes_leaves_a_place_to_others(self) -> None:
        self.start(scans=2)
        wait_until(lambda: self.waiting_for_a_peers_turn() == 2, 30, "the second push")
        self.push_of_another_peer()
        wait_until(lambda: self.scans() == 2, 30, "the scan of the other peer's push")
        wait_until(lambda: self.waiting_for_a_peers_turn() == 3, 30, "all three pushes")
        self.busy.unlink()
        self.assertEqual([push.wait(60) for push in self.pushes], [0, 0])

    def test_control_without_turns_a_peer_with_many_pushes_takes_all_places(self) -> None:
        self.start(NO_TURNS_OF_A_PEER, scans=2)
        wait_until(lambda: self.scans() == 2, 30, "two scans of one peer")
        self.push_of_another_peer()
        wait_until(lambda: is_held(self.world.mirrors / ".scan-next"), 30, "the push that waits")
        self.assertEqual(self.scans(), 2)

    def test_a_scan_does_not_wait_forever(self) -> None:
        self.gate(GIT_GATE_SCANS="1", GIT_GATE_SCAN_SECONDS="2")
        self.world.commit(self.work, {"a": "a\n"})
        with (self.world.mirrors / ".scan-0").open("ab") as place:
            fcntl.flock(place, fcntl.LOCK_EX)
            self.assert_refused("main", because="GIT_GATE_SCANS=1 other scans kept it waiting for 2 s")


@needs_the_real_programs
class UpstreamIsSharedAndSlow(Attack):
    def waiting_for(self, name: str) -> int:
        """How many processes wait for this lock of the mirror."""
        inode = (self.mirror / name).stat().st_ino
        return len(re.findall(rf"-> FLOCK .*:{inode} ", Path("/proc/locks").read_text()))

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        with (self.mirror / name).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def fetches_of_eight_clients(self) -> int:
        """How many fetches from upstream it takes to serve eight clients that came at the same time."""
        (self.mirror / "gate.lock").touch()
        accepted = self.world.sshd.log.count("Accepted publickey")
        with self.locked("gate.lock"):
            command = ["git", "ls-remote", self.world.by_git()]
            options = {"env": self.world.client, "stdout": subprocess.DEVNULL}
            clients = [subprocess.Popen(command, **options) for _ in range(8)]  # type: ignore[call-overload]
            wait_until(lambda: self.waiting_for("gate.lock") == 1, 30, "one that waits for its turn")
            wait_until(lambda: self.waiting_for("gate.sync") == 7, 30, "the others behind it")
        self.assertEqual([client.wait(60) for client in clients], [0] * 8)
        return self.world.sshd.log.count("Accepted publickey") - accepted

    def test_one_fetch_from_upstream_serves_all_clients_that_wait(self) -> None:
        self.gate()
        self.assertEqual(self.fetches_of_eight_clients(), 1)

    def test_control_without_it_each_client_fetches_from_upstream(self) -> None:
        self.gate(NO_COMMON_FETCH)
        self.assertEqual(self.fetches_of_eight_clients(), 8)

    def test_none_overtakes_the_one_that_waits_for_upstream(self) -> None:
        self.gate()
        program = (
            "import sys; sys.path.insert(0, sys.argv[1]); import git_gate_mirror as m\n"
            "with m.turn_at_upstream():\n    print(sys.argv[2], flush=True)\n"
        )
        order = self.world.dir / "order"
        with order.open("wb") as out, self.locked("gate.lock"):

            def start(name: str) -> subprocess.Popen[bytes]:
                command = [sys.executable, "-c", program, str(ROOT / "app"), name]
                return subprocess.Popen(command, cwd=self.mirror, stdout=out)

            first = start("first")
            wait_until(lambda: self.waiting_for("gate.lock") == 1, 30, "the first that waits")
            second = start("second")
            wait_until(lambda: self.waiting_for("gate.next") == 1, 30, "the second, behind it")
            self.assertEqual(self.waiting_for("gate.lock"), 1)
        self.assertEqual([first.wait(30), second.wait(30)], [0, 0])
        self.assertEqual(order.read_text().split(), ["first", "second"])

    def test_a_push_that_upstream_does_not_answer_ends_and_frees_the_mirror(self) -> None:
        self.gate(GIT_GATE_PUSH_SECONDS="2")
        arrived, _ = self.world.waiting_hook("pre-receive")
        self.addCleanup(arrived.unlink, missing_ok=True)
        self.world.commit(self.work, {"a": "a\n"})
        self.assert_refused("main", because="upstream took longer than GIT_GATE_PUSH_SECONDS=2 allows")
        lock = ["flock", "--nonblock", str(self.mirror / "gate.lock"), "true"]
        wait_until(lambda: subprocess.run(lock).returncode == 0, 30, "the unlocked mirror")
        arrived.unlink(missing_ok=True)
        wait_until(lambda: not list(self.upstream.glob("objects/tmp_objdir-*")), 30, "the end of upstream's hook")

    def test_a_push_does_not_wait_for_the_mirror_forever(self) -> None:
        self.gate().kill()  # the mirror is made without a limit
        self.gate(GIT_GATE_PUSH_SECONDS="1", GIT_GATE_SYNC_SECONDS="1")
        self.world.commit(self.work, {"a": "a\n"})
        with self.locked("gate.lock"):
            self.assert_refused("main", because="busy for longer than GIT_GATE_PUSH_SECONDS=1 allows")

    def test_an_upstream_that_never_answers_a_fetch_does_not_keep_a_client(self) -> None:
        self.gate().kill()  # the mirror is made without a limit
        gate = self.gate(GIT_GATE_SYNC_SECONDS="2")
        keys = self.world.dir / "authorized_keys"
        keys.write_text(f'command="exec cat" {keys.read_text()}')
        self.world.git("ls-remote", self.world.by_git())
        self.assertIn("upstream timed out after GIT_GATE_SYNC_SECONDS=2 s; serving what it holds", gate.log)


@needs_the_real_programs
class TheListOfMirrors(Attack):
    def list(self, *lines: str) -> None:
        (self.world.dir / "list").write_text("".join(f"{line}\n" for line in lines))

    def served(self) -> set[str]:
        return {path.name.removesuffix(".git") for path in self.world.mirrors.glob("*.git")}

    def test_urls_with_a_token_or_a_password(self) -> None:
        bad = (
            "https://TOKEN@127.0.0.1:1/x",
            "https://user:TOKEN@127.0.0.1:1/x",
            "https://TOKEN@127.0.0.1:1",
            "http://TOKEN@127.0.0.1:1/x",
            "HTTPS://TOKEN@127.0.0.1:1/x",
            "https::https://TOKEN@127.0.0.1:1/x",
            "https::TOKEN@127.0.0.1:1/x",
            "https://127.0.0.1:1/x?private_token=TOKEN",
            "ftp://TOKEN@127.0.0.1:1/x",
            "ssh://user:TOKEN@127.0.0.1:1/x",
            "ext::sh -c TOKEN",
        )
        good = ("https://127.0.0.1:1/x@y", "ssh://git@127.0.0.1:1/x", "git@[::1]:x", "git@127.0.0.1:x", "/no/where")
        self.list(*(f"bad{n} {url}" for n, url in enumerate(bad)), *(f"good{n} {url}" for n, url in enumerate(good)))
        gate = self.gate()
        self.assertEqual(self.served(), {f"good{number}" for number in range(len(good))})
        self.assertNotIn("TOKEN", gate.log)
        self.assertEqual(gate.log.count("cannot use line"), len(bad))

    def test_control_git_shows_the_pusher_the_user_of_a_url_whose_upstream_answers_401(self) -> None:
        token = secret()
        gate = self.gate()
        with unauthorized() as port:
            self.world.git("config", "gate.upstream", f"http://{token}@127.0.0.1:{port}/x", cwd=self.mirror)
            self.world.commit(self.work, {"a": "a\n"})
            self.assertIn(token, self.push("main").stderr)
            self.assertIn(token, gate.log)

    def test_an_option_that_does_not_exist(self) -> None:
        url = self.world.url("demo")
        self.list(f"a {url} force=yes", f"b {url} no-delete", f"c {url} no-delete=main;x", f"demo {url} no-delete=x")
        gate = self.gate()
        self.assertEqual(self.served(), {"demo"})
        self.assertEqual(gate.log.count("cannot use line"), 3)

    def set_up_branches(self) -> None:
        """A commit that is not ahead of main, and branches to move to it."""
        self.gate_with_branches = ("main", "master", "topic", "release/1")
        for branch in self.gate_with_branches[1:]:
            self.world.git("push", "--quiet", str(self.upstream), f"main:refs/heads/{branch}", cwd=self.work)
        self.world.git("push", "--quiet", str(self.upstream), "main:refs/tags/v1", cwd=self.work)
        self.world.git("checkout", "--quiet", "--orphan", "other", cwd=self.work)
        self.world.commit(self.work, {"other": "o\n"})

    def test_main_and_master_can_be_neither_force_pushed_nor_deleted(self) -> None:
        self.set_up_branches()
        self.gate()
        for branch in ("main", "master"):
            self.assert_refused(f"+other:{branch}", because=f"{branch} may not be force-pushed")
            self.assert_refused(f":{branch}", because=f"{branch} may not be deleted")
            self.assert_refused(f"+other:{branch}", "other:refs/heads/rides-along", because="may not be force-pushed")
        self.assert_accepted("+other:topic", ":release/1", "+other:refs/tags/v1")
        self.world.git("checkout", "--quiet", "main", cwd=self.work)
        self.world.commit(self.work, {"ahead": "a\n"})
        self.assert_accepted("main")

    def test_control_without_the_check_main_is_replaced(self) -> None:
        self.set_up_branches()
        self.gate(NO_PERMISSIONS)
        self.assert_accepted("+other:main")

    def test_the_list_says_which_branches_and_tags_stay(self) -> None:
        self.set_up_branches()
        self.list(f"demo {self.world.url('demo')} no-delete=release/*,tags/* no-force-push=topic,tags/v?")
        self.gate()
        self.assert_refused(
            ":release/1", because="release/1 may not be deleted: the list of mirrors has no-delete=release/*"
        )
        self.assert_refused(":refs/tags/v1", because="tags/v1 may not be deleted")
        self.assert_refused("+other:refs/tags/v1", because="tags/v1 may not be force-pushed")
        self.assert_refused("+other:topic", because="topic may not be force-pushed")
        self.assert_accepted("+other:main", ":topic", "+other:release/1")

    def test_the_list_can_allow_everything(self) -> None:
        self.set_up_branches()
        self.list(f"demo {self.world.url('demo')} no-delete= no-force-push=")
        self.gate()
        self.assert_accepted("+other:main", ":master")

    def test_a_forged_old_value_does_not_make_a_force_push_of_what_is_none(self) -> None:
        self.set_up_branches()
        self.gate()
        other = self.world.git("rev-parse", "other", cwd=self.work)
        sent = self.world.git(
            "rev-list", "--objects", "--no-object-names", "other", "^main", "--", cwd=self.work
        ).split()
        before = self.world.both()
        for old in (NOTHING, "1" * 40, other):
            with self.subTest(old=old):
                said = self.wire((old, other, "refs/heads/main"), pack=self.pack(*sent))
                self.assertIn("cannot accept", said)
                self.assertEqual(self.world.both(), before)


@needs_the_real_programs
class LeftoversOfAKill(Attack):
    NAMES = (
        "objects/tmp_objdir-x",
        "objects/pack/tmp_x",
        "objects/pack/.tmp",
        "packed-refs.new",
        "packed-refs",
        "tmp_x",
    )

    def test_branches_and_tags_that_are_named_like_leftovers_stay(self) -> None:
        self.gate().kill()
        self.make_refs()
        before = self.world.refs(self.mirror)
        self.restart_without_upstream()
        self.assertEqual(self.world.refs(self.mirror), before)

    def test_control_a_search_by_name_alone_removes_them(self) -> None:
        self.gate().kill()
        self.make_refs()
        before = self.world.refs(self.mirror)
        patterns = ["(", "-path", "*/objects/tmp_objdir-*", "-o", "-name", "packed-refs.new", ")"]
        subprocess.run(["find", str(self.mirror), "-depth", *patterns, "-delete"], check=True)
        self.assertNotEqual(self.world.refs(self.mirror), before)

    def test_leftovers_are_removed(self) -> None:
        self.gate().kill()
        (self.mirror / "objects" / "tmp_objdir-incoming-x" / "pack").mkdir(parents=True)
        (self.mirror / "objects" / "ab").mkdir(exist_ok=True)
        leftovers = [
            "objects/tmp_objdir-incoming-x/pack/tmp_pack_x",
            "objects/pack/tmp_pack_x",
            "objects/pack/.tmp-1-pack-x",
        ]
        leftovers += ["objects/ab/tmp_obj_x", "packed-refs.new", "packed-refs.lock", "HEAD.lock", "config.lock"]
        leftovers += ["refs/heads/main.lock"]
        for name in leftovers:
            (self.mirror / name).touch()
        self.restart_without_upstream()
        self.assertEqual([name for name in leftovers if (self.mirror / name).exists()], [])

    def make_refs(self) -> None:
        for name in self.NAMES:
            for kind in ("heads", "tags"):
                path = self.mirror / "refs" / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{self.base}\n")

    def restart_without_upstream(self) -> None:
        """Else the start would fetch what it had removed."""
        self.world.sshd.kill()
        self.world.git_port = free_port()
        self.gate(GIT_GATE_PORT=str(self.world.git_port))


@contextmanager
def unauthorized() -> Iterator[int]:
    """A server on this port that answers each request with 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
