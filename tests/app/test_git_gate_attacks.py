"""A hostile agent at the git gate: ways to bring upstream or the mirror what was not scanned.

A control shows that an attack works: against a copy of the gate that lacks one of its checks.
"""

from __future__ import annotations

import base64
import random
import re
import socket
import string
import subprocess
import sys
import unittest

from tests.app import git_wire
from tests.app.git_support import GITLEAKS, Daemon, World, needs_the_real_programs, secret
from tests.app.git_wire import NOTHING
from tests.support import wait_until

HOOK, SCAN, MIRROR = "git_gate_pre_receive.py", "git_gate_scan.py", "git_gate_mirror.py"

# The checks, each as the gate has it and as it is without it.
NO_NAMES_OF_REFS = (HOOK, "        check_name(ref)\n", "")
NO_PEELING = (HOOK, "update.new + '^{object}'", "update.new")
NO_LOOK_AT_SURPLUS = (SCAN, "    refuse_what_is_not_reachable(arrived.difference(reachable))\n", "")
NO_NAMES_IN_TREES = (SCAN, "objects(new.trees)", "objects([])")
NO_LOOK_AT_SIGNED = (HOOK, "        refuse_signed_push()\n", "")
NO_LOOK_AT_BLANKS = (SCAN, "and not line.strip():", r'and line.isspace() and line.endswith(b"\n"):')
NO_SECOND_LOOK = (HOOK, "        refuse_what_was_not_scanned(updates, scanned)\n", "")
NO_LOOK_AT_UPSTREAM = (HOOK, "        bring_up_to_date(lock, seconds, upstream)\n", "")
NO_LOOK_AT_MOVES = (HOOK, "        refuse_what_has_moved(updates)\n", "")
NO_PERMISSIONS = (HOOK, "        check_permission(update)\n", "        pass\n")

BLANKS = ("\0" * 70_000, " " + "\0" * 70_001)


class Attack(unittest.TestCase):
    """A world for each test, with a clone to attack from."""

    def setUp(self) -> None:
        self.world = World()
        self.world.look_for_one_rule_only()
        self.addCleanup(self.world.close)
        self.upstream = self.world.upstreams / "demo.git"
        self.mirror = self.world.mirrors / "demo.git"
        self.secret = secret()
        self.line = f"token = {self.secret}\n"
        self.work = self.world.clone_of_upstream(self.world.by_git())
        self.base = self.world.git("rev-parse", "HEAD", cwd=self.work)

    def gate(self, *without: tuple[str, str, str], **environment: str) -> Daemon:
        """Start the gate, or one that lacks some checks."""
        if without:
            environment["GIT_GATE_APP"] = str(self.world.app_without(*without))
        return self.world.gate(**environment)

    def tree(self, *entries: str) -> str:
        """A tree of the lines of `git ls-tree`, each ended by a NUL."""
        done = subprocess.run(
            ["git", "mktree", "-z", "--missing"],
            cwd=self.work,
            env=self.world.client,
            input="".join(f"{entry}\0" for entry in entries).encode(),
            capture_output=True,
            check=True,
        )
        return done.stdout.decode().strip()

    def blob(self, content: str) -> str:
        file = self.world.dir / "content"
        file.write_text(content)
        return self.world.git("hash-object", "-w", str(file), cwd=self.work)

    def commit_of(self, tree: str, *parents: str, message: str = "m") -> str:
        options = [option for parent in parents for option in ("-p", parent)]
        return self.world.git("commit-tree", *options, "-m", message, tree, cwd=self.work)

    def pack(self, *names: str) -> bytes:
        return git_wire.pack_of(self.work, self.world.client, *names)

    def wire(self, *updates: tuple[str, str, str | bytes], pack: bytes) -> str:
        return git_wire.push(self.world.git_port, git_wire.commands(*updates) + pack)

    def push(self, *refspecs: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.world.try_git("push", "origin", *refspecs, cwd=self.work, **environment)

    def assert_refused(self, *refspecs: str, because: str) -> None:
        before = self.world.both()
        done = self.push(*refspecs)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(because, done.stderr)
        self.assertEqual(self.world.both(), before)

    def assert_accepted(self, *refspecs: str) -> None:
        done = self.push(*refspecs)
        self.assertEqual(done.returncode, 0, done.stderr)
        upstream, mirror = self.world.both()
        self.assertEqual(upstream, mirror)

    def assert_clean(self) -> None:
        for repository in (self.upstream, self.mirror):
            self.assertFalse(self.world.holds(repository, self.secret), f"the secret is in {repository}")


@needs_the_real_programs
class NamesOfRefs(Attack):
    def colon(self) -> str:
        """Push a ref whose name, after NEW and a colon, names a path in NEW's tree: a gitlink to a commit that is sent
        along, and that no scan of NEW's history shows."""
        self.push("main:pwn")  # else git would not understand the lease
        blob = self.blob(self.line)
        self.hidden = self.commit_of(self.tree(f"100644 blob {blob}\tconfig"), self.base)
        heads = self.tree(f"160000 commit {self.hidden}\ta")
        refs = self.tree(f"040000 tree {heads}\theads")
        root = self.tree(f"040000 tree {refs}\trefs")
        new = self.commit_of(root, self.base)
        hidden_tree = self.world.git("rev-parse", f"{self.hidden}^{{tree}}", cwd=self.work)
        sent = self.pack(blob, self.hidden, hidden_tree, heads, refs, root, new)
        return self.wire((NOTHING, new, "refs/heads/a:refs/heads/pwn"), pack=sent)

    def test_a_colon_in_the_name_of_a_ref(self) -> None:
        self.gate()
        self.assertIn("is not a valid name", self.colon())
        self.assert_clean()

    def test_control_a_colon_brings_upstream_a_commit_that_was_not_scanned(self) -> None:
        self.gate(NO_NAMES_OF_REFS, NO_PEELING, NO_LOOK_AT_SURPLUS)
        self.colon()
        self.assertIn(f"refs/heads/pwn {self.hidden}", self.world.refs(self.upstream))
        self.assertTrue(self.world.holds(self.upstream, self.secret))

    def test_a_colon_in_the_name_of_a_ref_does_not_help_if_only_its_objects_are_looked_at(self) -> None:
        self.gate(NO_NAMES_OF_REFS, NO_PEELING)
        self.assertIn("belong to no branch or tag", self.colon())
        self.assert_clean()

    def test_names_that_are_no_branch_and_no_tag(self) -> None:
        self.gate()
        commit = self.world.commit(self.work, {"a": "a\n"})
        sent = self.pack(
            *self.world.git("rev-list", "--objects", "--no-object-names", f"{self.base}..", cwd=self.work).split()
        )
        before = self.world.both()
        for name, reason in {
            b"refs/notes/n": "is neither a branch nor a tag",
            b"refs/replace/" + commit.encode(): "is neither a branch nor a tag",
            b"refs/headsx": "is neither a branch nor a tag",
            b"HEAD": "is neither a branch nor a tag",
            b"config": "is neither a branch nor a tag",
            b"../demo.git/refs/heads/x": "is neither a branch nor a tag",
            b"refs/heads/": "is not a valid name",
            b"refs/heads/../../config": "is not a valid name",
            b"refs/heads/a b": "is not a valid name",
            b"refs/heads/a  b": "is not a valid name",
            b"refs/heads/a\tb": "is not a valid name",
            b"refs/heads/a\x7f": "is not a valid name",
            b"refs/heads/a*": "is not a valid name",
            b"refs/heads/a.lock": "is not a valid name",
            b"refs/heads/a@{0}": "is not a valid name",
            b"refs/heads//a": "is not a valid name",
            b"refs/heads/refs/heads/main": "is not a valid name",
            b"refs/tags/refs/heads/main": "is not a valid name",
        }.items():
            with self.subTest(name):
                said = self.wire((NOTHING, commit, "refs/heads/rides-along"), (NOTHING, commit, name), pack=sent)
                self.assertIn(reason, said)
                self.assertEqual(self.world.both(), before)

    def test_a_name_that_is_no_utf8(self) -> None:
        self.gate()
        commit = self.world.commit(self.work, {"a": "a\n"})
        sent = self.pack(
            *self.world.git("rev-list", "--objects", "--no-object-names", f"{self.base}..", cwd=self.work).split()
        )
        self.wire((NOTHING, commit, b"refs/heads/caf\xe9\x85"), pack=sent)
        for repository in (self.upstream, self.mirror):
            listed = subprocess.run(["git", "for-each-ref"], cwd=repository, env=self.world.client, capture_output=True)
            self.assertIn(b"refs/heads/caf\xe9\x85\n", listed.stdout)

    def test_a_branch_that_is_named_like_a_commit_does_not_go_upstream_in_its_place(self) -> None:
        self.gate()
        self.push_named_like_a_commit()
        upstream, mirror = self.world.both()
        self.assertEqual(upstream, mirror)

    def test_control_a_branch_that_is_named_like_a_commit_goes_upstream_in_its_place(self) -> None:
        self.gate(NO_PEELING)
        commit = self.push_named_like_a_commit()
        upstream, mirror = self.world.both()
        self.assertIn(f"refs/heads/topic {self.base}", upstream)
        self.assertIn(f"refs/heads/topic {commit}", mirror)

    def push_named_like_a_commit(self) -> str:
        commit = self.world.commit(self.work, {"a": "a\n"})
        self.push(f"{self.base}:refs/heads/{commit}")
        self.push(f"{commit}:refs/heads/topic")
        return commit


@needs_the_real_programs
class ObjectsThatNoDiffShows(Attack):
    def empty_directory(self, name: str) -> subprocess.CompletedProcess[str]:
        """A directory with this name and nothing in it: no diff shows it."""
        empty = self.tree()
        readme = self.world.git("rev-parse", "HEAD:README", cwd=self.work)
        commit = self.commit_of(self.tree(f"100644 blob {readme}\tREADME", f"040000 tree {empty}\t{name}"), self.base)
        return self.push(f"{commit}:refs/heads/empty")

    def test_the_name_of_an_empty_directory(self) -> None:
        self.gate()
        done = self.empty_directory(self.secret)
        self.assertIn("the name of a file or directory: github-pat (REDACTED)", done.stderr)
        self.assertNotIn(self.secret, done.stderr)
        self.assert_clean()
        self.assertEqual(self.empty_directory("harmless").returncode, 0)

    def test_control_the_name_of_an_empty_directory_goes_upstream(self) -> None:
        self.gate(NO_NAMES_IN_TREES)
        self.empty_directory(self.secret)
        self.assertTrue(self.world.holds(self.upstream, self.secret))

    def surplus(self) -> str:
        """Push a harmless commit and, beside it, a file that belongs to nothing; then fetch that file by its id."""
        commit = self.world.commit(self.work, {"a": "a\n"})
        blob = self.blob(self.line)
        names = self.world.git("rev-list", "--objects", "--no-object-names", f"{self.base}..", cwd=self.work).split()
        said = self.wire((NOTHING, commit, "refs/heads/topic"), pack=self.pack(blob, *names))
        other = self.world.clone(str(self.upstream))
        self.fetched = self.world.try_git("fetch", self.world.by_git(), blob, cwd=other).returncode == 0
        return said

    def test_an_object_that_belongs_to_no_ref(self) -> None:
        self.gate()
        self.assertIn("belong to no branch or tag", self.surplus())
        self.assertFalse(self.fetched)
        self.assert_clean()

    def test_control_an_object_that_belongs_to_no_ref_can_be_fetched_from_the_mirror(self) -> None:
        self.gate(NO_LOOK_AT_SURPLUS)
        self.surplus()
        self.assertTrue(self.fetched)

    def test_a_pack_that_repeats_what_the_mirror_has_passes(self) -> None:
        """As git's own packs do, which are completed by the bases of their deltas."""
        self.gate()
        text = "".join(f"line {number} {secret()[4:]}\n" for number in range(2000))
        self.world.commit(self.work, {"large": text})
        self.assert_accepted("main")
        self.world.commit(
            self.work, {"large": text + "end\n"} | {f"file-{number}": f"{number}\n" for number in range(150)}
        )
        self.assert_accepted("main")
        commit = self.world.commit(self.work, {"last": "l\n"})
        everything = self.world.git("rev-list", "--objects", "--no-object-names", commit, cwd=self.work).split()
        self.assertNotIn("cannot accept", self.wire((NOTHING, commit, "refs/heads/all"), pack=self.pack(*everything)))
        self.assertIn(f"refs/heads/all {commit}", self.world.refs(self.upstream))

    def signed(self) -> str:
        """receive-pack writes what a push says to be signed to the mirror before it asks the gate, signed or not."""
        update = f"{NOTHING} {self.base} refs/heads/signed\n"
        text = f"certificate version 0.1\npusher x\n\n{update}-----BEGIN PGP SIGNATURE-----\n{self.line}"
        return git_wire.push(self.world.git_port, git_wire.signed(text.encode()) + git_wire.pack([]))

    def test_the_text_of_a_signed_push(self) -> None:
        self.gate()
        self.assertIn("it is signed", self.signed())
        self.assert_clean()

    def test_control_the_text_of_a_signed_push_stays_in_the_mirror(self) -> None:
        self.gate(NO_LOOK_AT_SIGNED)
        self.signed()
        self.assertTrue(self.world.holds(self.mirror, self.secret))

    def test_a_signed_push_cannot_remove_an_object_that_the_mirror_needs(self) -> None:
        self.gate()
        text = "certificate version 0.1\nanything\n"
        self.world.commit(self.work, {"like-a-certificate": text})
        self.assert_accepted("main")
        git_wire.push(self.world.git_port, git_wire.signed(text.encode()) + git_wire.pack([]))
        self.world.git("fsck", "--full", cwd=self.mirror)

    def test_every_kind_of_place_is_scanned(self) -> None:
        """One push for each; the scan of one does not stand for that of another."""
        self.gate()
        blob = self.blob("a\n")
        link = self.blob(self.secret)
        plain = self.tree(f"100644 blob {blob}\ta")
        start = self.world.git("cat-file", "commit", self.base, cwd=self.work).partition("\n\n")[0]
        person = "N <n@example.org> 1700000000 +0000"
        merged = f"object {self.base}\n type commit\n tag x\n tagger {person}\n \n {self.secret}"
        places = {
            "a symlink's target": self.commit_of(self.tree(f"120000 blob {link}\tlink")),
            "a directory's name": self.commit_of(self.tree(f"040000 tree {plain}\t{self.secret}")),
            "a submodule's name": self.commit_of(self.tree(f"160000 commit {self.base}\t{self.secret}")),
            "a name with a newline": self.commit_of(self.tree(f"100644 blob {blob}\tx\n{self.secret}")),
            "a name with quotes": self.commit_of(self.tree(f'100644 blob {blob}\t"{self.secret}"')),
            "a name in an ISO 8859 letter": self.commit_of(self.tree(f"100644 blob {blob}\té {self.secret}")),
            "a message": self.commit_of(plain, message=self.secret),
            "an author": self.crafted(
                "commit", f"tree {plain}\nauthor {self.secret} <> 1 +0000\ncommitter {person}\n\nm\n"
            ),
            "an email": self.crafted(
                "commit", f"tree {plain}\nauthor {person}\ncommitter N <{self.secret}> 1 +0000\n\nm\n"
            ),
            "a header": self.crafted("commit", f"{start}\ngpgsig x\n y\n {self.secret}\n\nm\n"),
            "an encoding": self.crafted("commit", f"{start}\nencoding {self.secret}\n\nm\n"),
            "a merged tag": self.crafted(
                "commit",
                f"{start}\nmergetag {merged}\n\nm\n",
            ),
            "a tag": self.tag(self.base, self.secret),
            "a tag of a tag of a tag": self.tag(self.tag(self.tag(self.base, self.secret), "b"), "c"),
            "a tag's name": self.tag(self.base, "m", name=self.secret),
            "a tag after a NUL": self.tag(self.base, f"m\0{self.secret}"),
        }
        for number, (place, name) in enumerate(places.items()):
            with self.subTest(place):
                kind = "tags" if "tag" in place and place != "a merged tag" else "heads"
                done = self.push(f"{name}:refs/{kind}/place-{number}")
                self.assertIn("it contains secrets", done.stderr)
        self.assert_clean()

    def crafted(self, kind: str, content: str) -> str:
        file = self.world.dir / "crafted"
        file.write_bytes(content.encode())
        return self.world.git("hash-object", "-t", kind, "-w", "--literally", str(file), cwd=self.work)

    def tag(self, target: str, message: str, name: str = "t") -> str:
        kind = self.world.git("cat-file", "-t", target, cwd=self.work)
        return self.crafted("tag", f"object {target}\ntype {kind}\ntag {name}\ntagger N <n@x> 1 +0000\n\n{message}\n")


@needs_the_real_programs
class WhatUpstreamNoLongerHas(Attack):
    """A branch with a secret came to upstream by another way, so it is in the mirror. Its owner then purges it."""

    def setUp(self) -> None:
        super().setUp()
        self.seed = self.world.dir / "seed-demo"
        self.world.git("checkout", "--quiet", "-b", "oops", cwd=self.seed)
        self.purged = self.world.commit(self.seed, {"config": self.line})
        self.world.git("push", "--quiet", "origin", "oops", cwd=self.seed)
        self.request = git_wire.commands((NOTHING, self.purged, "refs/heads/back")) + git_wire.pack([])

    def both_daemons(self, *without: tuple[str, str, str]) -> None:
        if without:
            self.world.environment["GIT_GATE_APP"] = str(self.world.app_without(*without))
        self.gate()
        self.world.http()

    def purge(self) -> None:
        self.world.git("push", "--quiet", "origin", ":oops", cwd=self.seed)
        self.world.git("gc", "--quiet", "--prune=now", cwd=self.upstream)
        self.assertFalse(self.world.holds(self.upstream, self.secret))

    def push_by_a_post_alone(self) -> str:
        """An HTTP client that does not ask for the refs first does not bring the mirror up to date."""
        self.purge()
        return git_wire.push_by_http(self.world.http_port, self.request)

    def push_on_an_old_connection(self) -> str:
        """Ask before the purge, and push after it."""
        with socket.create_connection(("127.0.0.1", self.world.git_port), timeout=60) as connection:
            connection.sendall(git_wire.pkt_line(b"git-receive-pack /demo\0host=127.0.0.1\0"))
            stream = connection.makefile("rb")
            while (size := int(stream.read(4), 16)) != 0:
                stream.read(size - 4)
            self.purge()
            connection.sendall(self.request)
            connection.shutdown(socket.SHUT_WR)
            return stream.read().decode(errors="replace")

    def assert_refused_for(self, said: str) -> None:
        self.assertIn("upstream no longer has 3 of its objects", said)
        self.assertFalse(self.world.holds(self.upstream, self.secret))
        self.assertEqual(self.world.refs(self.upstream), f"refs/heads/main {self.base}")

    def assert_is_back(self) -> None:
        self.assertIn(f"refs/heads/back {self.purged}", self.world.refs(self.upstream))
        self.assertTrue(self.world.holds(self.upstream, self.secret))

    def test_a_post_alone(self) -> None:
        self.both_daemons()
        self.assert_refused_for(self.push_by_a_post_alone())

    def test_control_a_post_alone_brings_it_back(self) -> None:
        self.both_daemons(NO_SECOND_LOOK)
        self.push_by_a_post_alone()
        self.assert_is_back()

    def test_control_a_second_look_at_an_old_mirror_does_not_help(self) -> None:
        self.both_daemons(NO_LOOK_AT_UPSTREAM)
        self.push_by_a_post_alone()
        self.assert_is_back()

    def test_an_old_connection(self) -> None:
        self.gate()
        self.assert_refused_for(self.push_on_an_old_connection())

    def test_control_an_old_connection_brings_it_back(self) -> None:
        self.gate(NO_SECOND_LOOK)
        self.push_on_an_old_connection()
        self.assert_is_back()

    def test_a_purge_that_the_mirror_hears_of_during_the_scan(self) -> None:
        """Then the mirror has no ref that reaches it when the push goes on."""
        busy, scanning, program = (self.world.dir / name for name in ("busy", "scanning", "gitleaks"))
        program.write_text(f'#!/bin/sh\ntouch {scanning}; while [ -e {busy} ]; do sleep 0.05; done; {GITLEAKS} "$@"\n')
        program.chmod(0o755)
        busy.touch()
        self.addCleanup(busy.unlink, missing_ok=True)
        self.gate(GIT_GATE_GITLEAKS=str(program))
        command = ["git", "push", "--quiet", "origin", "oops:refs/heads/back"]
        self.world.git("fetch", "--quiet", "origin", "oops:oops", cwd=self.work)
        push = subprocess.Popen(
            command, cwd=self.work, env=self.world.client, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        wait_until(scanning.exists, 30, "the scan")
        self.purge()
        self.world.git("ls-remote", self.world.by_git())
        self.assertNotIn("oops", self.world.refs(self.mirror))
        busy.unlink()
        self.assert_refused_for(push.communicate(timeout=60)[1])

    def test_a_purged_tag_with_a_secret_in_its_text(self) -> None:
        self.world.git("tag", "-a", "-m", self.line, "v1", "main", cwd=self.seed)
        self.world.git("push", "--quiet", "origin", "v1", cwd=self.seed)
        tag = self.world.git("rev-parse", "v1", cwd=self.seed)
        self.both_daemons()
        self.world.git("push", "--quiet", "origin", ":v1", cwd=self.seed)
        self.purge()
        request = git_wire.commands((NOTHING, tag, "refs/tags/back")) + git_wire.pack([])
        said = git_wire.push_by_http(self.world.http_port, request)
        self.assertIn("upstream no longer has 1 of its objects", said)
        self.assertFalse(self.world.holds(self.upstream, self.secret))

    def test_what_goes_on_at_upstream_does_not_stop_a_push_of_something_else(self) -> None:
        """A POST alone after branches and tags have come, moved and gone there; the mirror then has all of that."""
        commit = self.world.commit(self.work, {"harmless": "a\n"})
        names = self.world.git("rev-list", "--objects", "--no-object-names", f"{self.base}..", cwd=self.work).split()
        for kind, name in (("heads", "branch"), ("tags", "light"), ("tags", "other")):
            self.world.git("push", "--quiet", "origin", f"main:refs/{kind}/{name}", cwd=self.seed)
        self.world.git("tag", "-a", "-m", "m", "annotated", "main", cwd=self.seed)
        self.world.git("push", "--quiet", "origin", "annotated", cwd=self.seed)
        self.both_daemons()
        self.world.git("checkout", "--quiet", "main", cwd=self.seed)
        self.world.commit(self.seed, {"ahead": "b\n"})
        self.world.git("push", "--quiet", "origin", "main", ":branch", ":light", "main:refs/heads/new", cwd=self.seed)
        updates = [(NOTHING, commit, f"refs/{name}") for name in ("heads/a", "heads/b", "tags/c")]
        request = git_wire.commands(*updates, (self.base, NOTHING, "refs/tags/other")) + self.pack(*names)
        self.assertNotIn("cannot accept", git_wire.push_by_http(self.world.http_port, request))
        upstream, mirror = self.world.both()
        self.assertEqual(upstream, mirror)
        self.assertEqual(upstream.count(commit), 3)
        self.assertNotIn("refs/tags/other", upstream)

    def push_what_upstream_has_already(self) -> str:
        commit = self.world.commit(self.work, {"harmless": "a\n"})
        names = self.world.git("rev-list", "--objects", "--no-object-names", f"{self.base}..", cwd=self.work).split()
        self.world.git("push", "--quiet", str(self.upstream), "main", cwd=self.work)
        request = git_wire.commands((self.base, commit, "refs/heads/main")) + self.pack(*names)
        return git_wire.push_by_http(self.world.http_port, request)

    def test_a_branch_that_upstream_has_moved_there_already(self) -> None:
        self.both_daemons()
        self.assertIn("has moved at upstream; fetch and push again", self.push_what_upstream_has_already())
        self.assertEqual(*self.world.both())

    def test_control_without_a_look_at_moves_git_fails_after_upstreams_yes(self) -> None:
        self.both_daemons(NO_LOOK_AT_MOVES)
        said = self.push_what_upstream_has_already()
        self.assertNotIn("cannot accept", said)
        self.assertIn("ng refs/heads/main", said)


@needs_the_real_programs
class SecretsInPieces(Attack):
    def halves(self) -> subprocess.CompletedProcess[str]:
        """Push the first half of a private key, and then the other half."""
        key = private_key(4000).splitlines(True)
        self.key = "".join(key)
        half = len(key) // 2
        self.world.commit(self.work, {"a": "x\n", "key.svg": "".join(key[:half]) + "<!-- to be continued -->\n"})
        self.assert_accepted("main")
        self.world.commit(self.work, {"key.svg": self.key})
        return self.push("main")

    def find_keys(self) -> None:
        (self.world.dir / "one-rule.toml").write_text("[extend]\nuseDefault = true\n")

    def test_a_key_whose_halves_come_one_after_the_other(self) -> None:
        self.find_keys()
        self.gate()
        self.assertIn("private-key (REDACTED)", self.halves().stderr)
        self.assertFalse(self.world.holds(self.upstream, self.key))

    def test_control_a_key_whose_halves_come_one_after_the_other_goes_upstream(self) -> None:
        self.find_keys()
        self.gate((SCAN, "-U{_CONTEXT_LINES}", "-U0"))
        self.assertEqual(self.halves().returncode, 0)
        self.assertTrue(self.world.holds(self.upstream, self.key))

    def between_blanks(self, blanks: str) -> subprocess.CompletedProcess[str]:
        """Push a key with so many NULs or blanks after each line that the scan reads them in more than one part."""
        key = private_key(1600).splitlines()
        self.key = key[5]
        self.world.git("reset", "--quiet", "--hard", self.base, cwd=self.work)
        filler = [f"filler text line {number:04}" for number in range(4500)]
        self.world.commit(self.work, {"key.bin": "\n".join(filler + [f"{line}\n" + blanks for line in key])})
        return self.push(f"main:refs/heads/{len(blanks)}")

    def test_a_key_with_many_blanks_between_its_lines(self) -> None:
        self.find_keys()
        self.gate()
        for blanks in BLANKS:
            with self.subTest(blanks[:2]):
                self.assertIn("private-key (REDACTED)", self.between_blanks(blanks).stderr)
                self.assertFalse(self.world.holds(self.upstream, self.key))

    def test_control_a_key_with_many_blanks_between_its_lines_goes_upstream(self) -> None:
        self.find_keys()
        self.gate(NO_LOOK_AT_BLANKS)
        for blanks in BLANKS:
            with self.subTest(blanks[:2]):
                self.assertEqual(self.between_blanks(blanks).returncode, 0)
                self.assertTrue(self.world.holds(self.upstream, self.key))

    def test_a_key_that_the_removal_of_a_line_completes(self) -> None:
        self.find_keys()
        self.gate()
        key = private_key(4000)
        begin = key.partition("\n")[0]
        self.world.commit(self.work, {"key.svg": key.replace(begin, begin.replace("PRIVATE", "P\nRIVATE"))})
        self.assert_accepted("main")
        self.world.commit(self.work, {"key.svg": "first\n" + key})
        self.assertIn("private-key (REDACTED)", self.push("main").stderr)

    def behind_another_change(self) -> subprocess.CompletedProcess[str]:
        """Complete a key, and change a line so far before it that the text after that line ends within the key."""
        key = private_key(8000).splitlines(True)
        self.key = "".join(key)
        half = len(key) // 2
        filler = [f"{number:63}\n" for number in range(400)]
        self.world.commit(self.work, {"key.svg": "".join([*filler, *key[:half], "x\n"])})
        self.assert_accepted("main")
        filler[-200] = "changed\n"
        self.world.commit(self.work, {"key.svg": "".join([*filler, *key])})
        return self.push("main")

    def test_a_key_that_is_completed_some_way_behind_another_change(self) -> None:
        self.find_keys()
        self.gate()
        self.assertIn("private-key (REDACTED)", self.behind_another_change().stderr)

    def test_what_upstream_has_already_does_not_stop_a_change_beside_it(self) -> None:
        """Before it, after it, and of the lines next to it, which is not a change of the secret."""
        self.find_keys()
        lines = [f"line {number}\n" for number in range(20)]
        known = [*lines, self.line, *lines, private_key(3000), *lines]
        seed = self.world.dir / "seed-demo"
        self.world.commit(seed, {"known.svg": "".join(known)})
        self.world.git("push", "--quiet", "origin", "main", cwd=seed)
        self.gate()
        self.world.git("pull", "--quiet", cwd=self.work)
        for position in (0, 19, 20, 21, 40, 42, len(known)):
            with self.subTest(position=position):
                self.world.commit(self.work, {"known.svg": "".join([*known[:position], "new\n", *known[position:]])})
                self.assert_accepted("main")
        for gone in (19, 21, 40, 42):
            with self.subTest(gone=gone):
                self.world.commit(self.work, {"known.svg": "".join([*known[:gone], *known[gone + 1 :]])})
                self.assert_accepted("main")
        self.world.commit(self.work, {"known.svg": "".join([*known, f"again = {secret()}\n"])})
        self.assert_refused("main", because=f"known.svg, line {len(''.join(known).splitlines()) + 1}: github-pat")

    def test_exactly_the_new_lines_are_found_whatever_stands_around_them(self) -> None:
        """Thirty files with known secrets, empty lines and long lines, and as many changes with a secret in each."""
        seed = random.SystemRandom().randrange(1 << 32)
        chance = random.Random(seed)
        before, after = {}, {}
        expected = set()
        for file in (f"{number}.svg" for number in range(30)):
            old = [random_line(chance) for _ in range(chance.choice((1, 50, 1500)))]
            new = list(old)
            for _ in range(chance.choice((0, 3))):
                new[chance.randrange(len(new))] = chance.choice(("", "changed\n", "\nx\n"))
            plain = f"new = {secret()}"
            added = chance.choice((plain, base64.b64encode(plain.encode()).decode(), plain.encode().hex()))
            new.insert(chance.randrange(len(new) + 1), added + "\n")
            before[file], after[file] = "".join(old), "".join(new)
            expected.add(f"{file}, line {after[file].split(chr(10)).index(added) + 1}")
        seed_clone = self.world.dir / "seed-demo"
        self.world.commit(seed_clone, before)
        self.world.git("push", "--quiet", "origin", "main", cwd=seed_clone)
        self.gate()
        self.world.git("pull", "--quiet", cwd=self.work)
        self.world.commit(self.work, after)
        said = self.push("main").stderr
        self.assertEqual(set(re.findall(r"[0-9]+\.svg, line [0-9]+", said)), expected, f"seed {seed}")

    def test_a_key_at_every_position_of_a_long_stream(self) -> None:
        """gitleaks cuts a stream at empty lines, of which a key may have some, and elsewhere if none comes."""
        self.find_keys()
        self.assertEqual(self.keys_found(""), 56)

    def test_control_keys_are_missed_with_a_shorter_overlap_or_with_the_empty_lines_kept(self) -> None:
        self.find_keys()
        self.assertLess(self.keys_found("gate._LONGEST_SECRET = 4096; gate._LONGEST_BLOCK = 20480"), 56)
        self.assertLess(self.keys_found("gate.TextFeed.write = lambda self, line: self._write_part(line)"), 56)

    def keys_found(self, change: str) -> int:
        """How many of 56 keys of 16384 bits, each at another distance from its neighbour, `gitleaks stdin` finds."""
        self.world.gate().kill()
        keys = []
        for number in range(56):
            filler = "".join(f"{random.random()}\n" for _ in range(100 + 37 * number))
            keys.append(filler + private_key(12_500, with_empty_lines=True))
        commit = self.world.commit(self.work, {"a.svg": "".join(keys)})
        self.world.git("checkout", "--quiet", "--detach", "origin/main", cwd=self.work)
        self.world.git("branch", "--quiet", "--force", "main", "origin/main", cwd=self.work)
        command = [sys.executable, "-c", COUNT_KEYS.replace("CHANGE", change), commit]
        environment = self.world.client | self.world.environment
        found = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True)
        self.assertEqual(found.returncode, 0, found.stderr)
        return len(found.stdout.splitlines())


COUNT_KEYS = """
import os, sys
sys.path.insert(0, os.environ["GIT_GATE_APP"])
import git_gate_scan as gate
CHANGE
new = gate.NewObjects([sys.argv[1]], [], [], set())
findings = gate.scan_text([], new, [sys.argv[1]])
for place in sorted({finding for finding in findings if "private-key" in finding}):
    print(place)
"""


def random_line(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.3:
        return chance.choice(("\n", " \n", "\t\r\n", "\n\n\n"))
    if kind < 0.32:
        return "y" * chance.choice((1023, 1024, 1025, 5000, 66_000)) + "\n"
    if kind < 0.34:
        return f"token = {secret()}\n"
    return f"line {chance.random()}\n"


def private_key(size: int, with_empty_lines: bool = False) -> str:
    """What gitleaks takes for a private key of so many characters."""
    # Without an f: gitleaks exempts what contains the word "false", which the random letters of a long key may do.
    letters = random.SystemRandom().choices(re.sub("(?i)f", "", string.ascii_letters) + string.digits + "+/", k=size)
    lines = ["".join(letters[start : start + 64]) + "\n" for start in range(0, size, 64)]
    kind = "PGP PRIVATE KEY BLOCK" if with_empty_lines else "RSA PRIVATE KEY"
    if with_empty_lines:
        lines[0:0] = ["Version: 1\n", "\n"]
        lines[20:20] = ["\n", " \t\r\n"]
    return f"-----BEGIN {kind}-----\n{''.join(lines)}-----END {kind}-----\n"
