"""The git gate with the real git, ssh, sshd and gitleaks: what passes, what is refused, what a crash leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path

from tests.app.git_support import GITLEAKS, GateCase, World, needs_the_real_programs, secret
from tests.support import ROOT, free_port, wait_until


@needs_the_real_programs
class WhatPasses(GateCase):
    one_rule_only = True

    def test_a_push_by_git_reaches_upstream_and_another_clone(self) -> None:
        work = self.world.clone(self.world.by_git())
        other = self.world.clone(self.world.by_git())
        head = self.world.commit(work, {"by-git": "a\n"})
        self.assert_accepted(work, "main")
        self.assertIn(f"refs/heads/main {head}", self.world.both()[0])
        self.world.git("pull", "--quiet", cwd=other)
        self.assertEqual(self.world.git("rev-parse", "HEAD", cwd=other), head)

    def test_a_push_by_http_reaches_upstream_and_another_clone(self) -> None:
        work = self.world.clone(self.world.by_http())
        other = self.world.clone(self.world.by_http())
        head = self.world.commit(work, {"by-http": "a\n"})
        self.assert_accepted(work, "main")
        self.assertIn(f"refs/heads/main {head}", self.world.both()[0])
        self.world.git("pull", "--quiet", cwd=other)
        self.assertEqual(self.world.git("rev-parse", "HEAD", cwd=other), head)

    def test_a_fetch_brings_what_upstream_got_by_another_way(self) -> None:
        for url in (self.world.by_git(), self.world.by_http()):
            with self.subTest(url):
                work = self.world.clone(url)
                seed = self.world.dir / "seed-demo"
                self.world.git("pull", "--quiet", "origin", "main", cwd=seed)
                head = self.world.commit(seed, {"from-upstream": secret()})  # what upstream holds is not judged
                self.world.git("push", "--quiet", "origin", "main", cwd=seed)
                self.world.git("pull", "--quiet", cwd=work)
                self.assertEqual(self.world.git("rev-parse", "HEAD", cwd=work), head)
                self.assert_mirror_is_upstream()

    def test_commits_in_which_gitleaks_finds_nothing_to_read(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"gone": "a\n", "moved": "b\n" * 9, "emptied": "c\n", "script": "d\n"})
        self.assert_accepted(work, "HEAD:refs/heads/odd")
        self.world.commit(work, {}, "empty commit")
        self.world.commit(work, {"gone": None}, "deletion")
        self.world.git("mv", "moved", "elsewhere", cwd=work)
        self.world.commit(work, {"emptied": ""}, "rename")
        (work / "script").chmod(0o755)
        self.world.commit(work, {"empty": "", "binary": bytes(range(256)) * 50, 'odd "\t\n name': "x"}, "the rest")
        (work / "link").symlink_to("/etc/passwd")
        self.world.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},submodule", cwd=work)
        self.world.git("commit", "--quiet", "--message", "a submodule", cwd=work)
        self.world.git("checkout", "--quiet", "-b", "side", "HEAD~3", cwd=work)
        self.world.commit(work, {"side": "s\n"})
        self.world.git("merge", "--quiet", "--no-edit", "main", cwd=work)
        tree = self.world.git("rev-parse", "HEAD^{tree}", cwd=work)
        parents = [self.world.git("commit-tree", "-p", "HEAD", "-m", name, tree, cwd=work) for name in "ab"]
        merge = self.world.git("commit-tree", "-p", parents[0], "-p", parents[1], "-m", "m", tree, cwd=work)
        self.assert_accepted(work, f"{merge}:refs/heads/odd")

    def test_branches_and_tags_come_go_and_move_together(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_git())
        old = self.world.git("rev-parse", "HEAD", cwd=work)
        self.world.commit(work, {"one": "1\n"})
        self.world.git("tag", "-a", "-m", "a release", "v1", cwd=work)
        self.world.git("tag", "light", cwd=work)
        self.assert_accepted(work, "--atomic", "HEAD:refs/heads/topic", f"{old}:refs/heads/old", "v1", "light")
        self.world.git("reset", "--quiet", "--hard", old, cwd=work)
        self.world.commit(work, {"two": "2\n"})
        self.assert_accepted(work, "--force", "HEAD:refs/heads/topic", ":refs/tags/light", ":refs/heads/old")
        self.assertNotIn("light", self.world.both()[0])

    def test_what_upstream_refuses_is_refused_with_its_reason_and_as_a_whole(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"protected": "1\n"})
        hook = self.world.hook("update", 'case $1 in *protected) echo "this branch is protected"; exit 1;; esac')
        self.addCleanup(hook.unlink)
        said = self.assert_refused(work, "HEAD:refs/heads/protected", "HEAD:refs/heads/free")
        self.assertIn("this branch is protected", said)

    def test_a_push_that_is_behind_upstream_is_told_to_fetch(self) -> None:
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"behind": "1\n"})
        seed = self.world.dir / "seed-demo"
        self.world.git("pull", "--quiet", "origin", "main", cwd=seed)
        self.world.commit(seed, {"ahead": "1\n"})
        self.world.git("push", "--quiet", "origin", "main", cwd=seed)
        done = self.world.try_git("push", "origin", "main", cwd=work)
        self.assertIn("fetch first", done.stderr)
        self.assert_mirror_is_upstream()

    def test_nothing_but_the_mirrors_can_be_reached(self) -> None:
        outside = self.world.dir / "outside.git"
        self.world.git("init", "--quiet", "--bare", str(outside))
        for path in ("../outside", str(outside), "demo.git/../../outside.git", "~root/outside"):
            done = self.world.try_git("ls-remote", f"git://127.0.0.1:{self.world.git_port}/{path}")
            self.assertNotEqual(done.returncode, 0, path)


@needs_the_real_programs
class WhatIsRefused(GateCase):
    def setUp(self) -> None:
        self.secret = secret()
        self.line = f"token = {self.secret}\n"
        self.work = self.world.clone_of_upstream(self.world.by_git())

    def refused(self, *refspecs: str, commit: str = "", url: str | None = None) -> str:
        said = self.assert_refused(self.work, *refspecs, hidden=self.secret, url=url)
        self.assertIn("it contains secrets", said)
        self.assertIn("github-pat (REDACTED)", said)
        if commit:
            self.assertIn(f"commit {commit[:12]}", said)
        return said

    def test_a_secret_by_git(self) -> None:
        commit = self.world.commit(self.work, {"config.py": "# here\n" + self.line})
        self.assertIn("config.py, line 2", self.refused("main", commit=commit))

    def test_a_secret_by_http(self) -> None:
        commit = self.world.commit(self.work, {"config.py": self.line})
        self.refused("main", commit=commit, url=self.world.by_http())

    def test_a_secret_on_a_new_branch_without_a_common_history(self) -> None:
        self.world.git("checkout", "--quiet", "--orphan", "new", cwd=self.work)
        commit = self.world.commit(self.work, {"config.py": self.line})
        self.refused("new", commit=commit)

    def test_a_secret_that_only_a_merge_brings_in(self) -> None:
        self.world.git("checkout", "--quiet", "-b", "side", cwd=self.work)
        self.world.commit(self.work, {"side": "s\n"})
        self.world.git("checkout", "--quiet", "main", cwd=self.work)
        self.world.commit(self.work, {"ours": "o\n"})
        self.world.git("merge", "--quiet", "--no-commit", "side", cwd=self.work)
        commit = self.world.commit(self.work, {"evil": self.line}, "merge")
        self.assertEqual(len(self.world.git("rev-parse", "HEAD^@", cwd=self.work).split()), 2)
        self.refused("main", commit=commit)

    def test_a_secret_that_a_later_commit_takes_away(self) -> None:
        commit = self.world.commit(self.work, {"config.py": self.line})
        self.world.commit(self.work, {"config.py": None})
        self.refused("main", commit=commit)

    def test_a_secret_that_its_own_commit_declares_harmless(self) -> None:
        self.world.commit(
            self.work,
            {
                ".gitleaks.toml": "[allowlist]\npaths = ['''.*''']\n[extend]\nuseDefault = false\n",
                ".gitattributes": "* -diff -text binary\n",
            },
        )
        commit = self.world.commit(self.work, {"config.py": self.line.strip() + "  # gitleaks:allow\n"})
        self.world.commit(self.work, {".gitleaksignore": f"{commit}:config.py:github-pat:1\n"})
        self.refused("main", commit=commit)

    def crafted_commit(self, end: str) -> str:
        """An object that no `git commit` makes: the usual headers, and then whatever is given."""
        start = self.world.git("cat-file", "commit", "origin/main", cwd=self.work).partition("\n\n")[0]
        crafted = self.world.dir / "crafted"
        crafted.write_text(f"{start}\n{end}")
        return self.world.git("hash-object", "-t", "commit", "-w", "--literally", str(crafted), cwd=self.work)

    def test_secrets_where_gitleaks_git_does_not_look(self) -> None:
        """One push of one branch a place; every place has to be named in the refusal."""
        places: dict[str, dict[str, str | bytes | None]] = {
            "an image": {"logo.svg": self.line},
            "a file named like gitleaks' own": {"gitleaks.toml": self.line},
            "a lock file": {"package-lock.json": self.line},
            "a vendored tree": {"node_modules/x/index.js": self.line},
            "a binary file": {"data": b"\0" * 100 + self.line.encode()},
            "a file in UTF-16": {"settings.ps1": self.line.encode("utf-16")},
            "the end of a line of 200 kB": {"a.png": "x" * 200_000 + " " + self.line},
        }
        commits = {}
        for number, (place, files) in enumerate(places.items()):
            self.world.git("checkout", "--quiet", "-b", f"place-{number}", "origin/main", cwd=self.work)
            commits[place] = self.world.commit(self.work, files)
        self.world.git("checkout", "--quiet", "-b", "message", "origin/main", cwd=self.work)
        commits["a message"] = self.world.commit(self.work, {}, f"uses {self.secret} for now")
        headers = f"diff --git a/x b/x\n@@ -1 +1 @@\n-{self.line}"
        commits["a header that looks like a diff"] = self.crafted_commit(f"{headers}\nmessage\n")
        self.world.git("branch", "header", commits["a header that looks like a diff"], cwd=self.work)
        said = self.refused("--all")
        for place, commit in commits.items():
            with self.subTest(place):
                self.assertIn(f"commit {commit[:12]}", said)

    def test_a_secret_in_a_files_name_is_not_shown_with_any_finding(self) -> None:
        commit = self.world.commit(self.work, {f"{self.secret}.txt": self.line})
        self.assertIn("the name of a file", self.refused("main", commit=commit))

    def test_a_secret_at_every_position_of_a_long_stream(self) -> None:
        """gitleaks cuts a stream where no empty line comes; no cut may fall into a secret."""
        lines = {secret(): "x" * 61 for _ in range(6000)}
        content = "".join(f"{filler} {token}\n" for token, filler in lines.items())
        commit = self.world.commit(self.work, {"a.svg": content})
        self.world.git("checkout", "--quiet", "--detach", "origin/main", cwd=self.work)
        self.world.git("branch", "--quiet", "--force", "main", "origin/main", cwd=self.work)
        command = [sys.executable, "-c", COUNT_FINDINGS, commit]
        environment = (
            self.world.client
            | self.world.environment
            | {"GIT_GATE_GITLEAKS_CONFIG": str(ROOT / "app" / "gitleaks.toml")}
        )
        found = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=True)
        self.assertEqual(
            set(found.stdout.splitlines()), {f"line {number}: {token}" for number, token in enumerate(lines, 1)}
        )

    def test_secrets_in_the_text_or_the_name_of_a_tag_on_an_old_commit(self) -> None:
        self.world.git("tag", "-a", "-m", self.line, "v9", cwd=self.work)
        self.assertIn("a ref or tag", self.refused("v9"))
        said = self.assert_refused(self.work, f"HEAD:refs/heads/{self.secret}")
        self.assertIn("a ref or tag: github-pat", said)

    def test_what_cannot_be_scanned(self) -> None:
        blob = self.world.git("hash-object", "-w", "README", cwd=self.work)
        tree = self.world.git("rev-parse", "HEAD^{tree}", cwd=self.work)
        self.world.git("tag", "-a", "-m", "m", "of-a-tree", tree, cwd=self.work)
        head = self.world.commit(self.work, {"x": "x\n"})
        for refspec, reason in {
            f"{blob}:refs/tags/blob": "is a blob, not a commit",
            f"{tree}:refs/tags/tree": "is a tree, not a commit",
            "of-a-tree:refs/tags/of-a-tree": "is a tree, not a commit",
            f"{self.crafted_commit(f'{chr(10)}message{chr(0)}{self.line}')}:refs/heads/nul": "nulInCommit",
            f"{head}:refs/notes/commits": "neither a branch nor a tag",
            f"{head}:refs/replace/{head}": "neither a branch nor a tag",
        }.items():
            with self.subTest(refspec):
                self.assertIn(reason, self.assert_refused(self.work, refspec, f"{head}:refs/heads/rides-along"))

    def test_a_push_from_a_shallow_clone_with_a_history_that_is_not_here(self) -> None:
        other = self.world.dir / "unrelated"
        self.world.git("init", "--quiet", str(other))
        self.world.commit(other, {"a": "a\n"})
        self.world.commit(other, {"b": "b\n"})
        shallow = self.world.dir / "shallow"
        self.world.git("clone", "--quiet", "--depth=1", f"file://{other}", str(shallow))
        self.assertIn("shallow", self.assert_refused(shallow, "HEAD:refs/heads/shallow", url=self.world.by_git()))


COUNT_FINDINGS = """
import os, sys
sys.path.insert(0, os.environ["GIT_GATE_APP"])
import git_gate_scan as gate
redacted = gate.gitleaks
gate.gitleaks = lambda *arguments: [word for word in redacted(*arguments) if word != "--redact"]
gate.rule = lambda leak: leak["Secret"]
new = gate.NewObjects([sys.argv[1]], [], [], set())
for finding in gate.scan_text([], new, [sys.argv[1]]):
    print(finding.rpartition(", ")[2])
"""


@needs_the_real_programs
class WhenTheGateIsInDoubt(unittest.TestCase):
    """gitleaks, its configuration or the hook are not what they should be; each test has a gate of its own."""

    def setUp(self) -> None:
        self.world = World()
        self.addCleanup(self.world.close)

    def start(self, scan_seconds: int = 60) -> None:
        """A gate whose gitleaks and configuration can be replaced while it runs."""
        self.program = self.world.dir / "gitleaks"
        self.program.symlink_to(str(GITLEAKS))
        self.config = self.world.dir / "gitleaks.toml"
        shutil.copy(ROOT / "app" / "gitleaks.toml", self.config)
        self.world.gate(
            GIT_GATE_GITLEAKS=str(self.program),
            GIT_GATE_GITLEAKS_CONFIG=str(self.config),
            GIT_GATE_SCAN_SECONDS=str(scan_seconds),
        )
        self.work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(self.work, {"harmless": "a\n"})

    def refusal(self, script: str | None = None) -> str:
        if script is not None:
            self.program.unlink(missing_ok=True)
            self.program.write_text(f"#!/bin/sh\ncat >/dev/null\n{script}\n")
            self.program.chmod(0o755)
        before = self.world.both()
        done = self.world.try_git("push", "origin", "main", cwd=self.work)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(self.world.both(), before)
        return done.stderr

    def test_gitleaks_or_its_configuration_is_missing_or_broken(self) -> None:
        self.start()
        self.config.write_text("[[[")
        self.assertIn("gitleaks failed", self.refusal())
        self.config.unlink()
        self.assertIn("gitleaks failed", self.refusal())
        self.program.unlink()
        self.assertIn("FileNotFoundError", self.refusal())

    def test_gitleaks_ends_well_without_having_read(self) -> None:
        self.start()
        nothing_found = "echo '[]'; echo '1:00AM INF no leaks found' >&2"
        self.assertIn("bytes it was given", self.refusal(nothing_found))
        too_few = f"{nothing_found}; echo '1:00AM INF scanned ~0 bytes (0)' >&2"
        self.assertIn("bytes it was given", self.refusal(too_few))
        self.assertIn("[git] oh", self.refusal(f"{nothing_found}; echo '1:00AM ERR [git] oh' >&2"))
        reads_text_only = f"{nothing_found}; echo '1:00AM INF 0 commits scanned.' >&2"
        self.program.write_text(f'#!/bin/sh\n[ $1 = git ] || exec {GITLEAKS} "$@"\n{reads_text_only}\n')
        self.assertIn("did not read all of the 1 commits", self.refusal())

    def test_gitleaks_is_killed_or_fails_or_never_ends(self) -> None:
        self.start(scan_seconds=3)
        self.assertIn("gitleaks failed with code -9", self.refusal("kill -KILL $$"))
        self.assertIn("gitleaks failed with code 1", self.refusal("echo '[]'; exit 1"))
        self.assertIn("took longer than GIT_GATE_SCAN_SECONDS=3", self.refusal("exec sleep 1000"))

    def test_without_an_executable_hook_nothing_is_served(self) -> None:
        app = self.world.copy_of_the_app()
        hooks = app / "git_gate_hooks"
        gate = self.world.gate(GIT_GATE_APP=str(app))
        http = self.world.http(GIT_GATE_APP=str(app))
        self.world.clone(self.world.by_git())
        self.world.clone(self.world.by_http())
        (hooks / "pre-receive").unlink()
        for url in (self.world.by_git(), self.world.by_http()):
            self.assertNotEqual(self.world.try_git("ls-remote", url).returncode, 0)
        self.assertIn("cannot execute", gate.log)
        self.assertIn("cannot execute", http.log)
        gate.kill()
        with self.assertRaisesRegex(AssertionError, "cannot execute"):
            self.world.gate(GIT_GATE_APP=str(app))


@needs_the_real_programs
class UpstreamAndStart(unittest.TestCase):
    """The list, the key, an upstream that cannot be reached or trusted, and what a crash leaves."""

    def setUp(self) -> None:
        self.world = World()
        self.world.look_for_one_rule_only()
        self.addCleanup(self.world.close)
        self.mirror = self.world.mirrors / "demo.git"

    def test_an_upstream_that_is_away_leaves_the_mirror_readable_and_the_gate_closed(self) -> None:
        self.world.gate().kill()
        self.world.sshd.kill()
        gate = self.world.gate()
        self.assertIn("cannot bring mirror demo up to date", gate.log)
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        before = self.world.both()
        done = self.world.try_git("push", "origin", "main", cwd=work)
        self.assertIn("the mirror cannot be brought up to date", done.stderr)
        self.assertEqual(self.world.both(), before)
        self.world.start_sshd()
        self.world.git("push", "origin", "main", cwd=work)
        self.assertEqual(*self.world.both())

    def test_a_host_key_other_than_the_known_one_is_refused(self) -> None:
        gate = self.world.gate()
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        before = self.world.both()
        self.world.trust(self.world.dir / "id.pub")
        done = self.world.try_git("push", "origin", "main", cwd=work)
        self.assertIn("Host key verification failed", done.stderr)
        self.assertEqual(self.world.both(), before)
        self.assertIn("cannot bring mirror demo up to date: Host key verification failed", gate.log)

    def test_a_list_with_mistakes_serves_the_lines_that_are_right(self) -> None:
        url = self.world.url("demo")
        bad = ("../evil", ".hidden", "a/b", "-x", "two..dots", "name.lock")
        lines = [f"{name} {url}" for name in bad]
        lines += ["nothing", f"more {url} words", "pass https://user:word@host/x", "# a comment", "", f"demo {url}\r"]
        (self.world.dir / "list").write_text("\n".join(lines))
        gate = self.world.gate()
        self.assertEqual([path.name for path in self.world.mirrors.glob("*.git")], ["demo.git"])
        self.assertEqual(gate.log.count("cannot use line"), len(bad) + 3)
        self.world.clone(self.world.by_git())

    def test_what_is_no_longer_listed_is_no_longer_served(self) -> None:
        self.world.gate().kill()
        (self.world.dir / "list").unlink()
        gate = self.world.gate()
        self.assertIn("no mirrors configured", gate.log)
        self.assertIn("removed mirror demo", gate.log)
        self.assertNotEqual(self.world.try_git("ls-remote", self.world.by_git()).returncode, 0)

    def test_the_mirror_takes_over_upstream_default_branch_and_deletions(self) -> None:
        seed = self.world.dir / "seed-demo"
        self.world.git("push", "--quiet", "origin", "main:trunk", "main:doomed", cwd=seed)
        upstream = self.world.upstreams / "demo.git"
        self.world.git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=upstream)
        self.world.gate().kill()
        self.world.git("push", "--quiet", "origin", ":doomed", ":main", cwd=seed)
        self.world.gate()
        self.assertEqual(*self.world.both())
        self.assertEqual(self.world.git("branch", "--show-current", cwd=self.world.clone(self.world.by_git())), "trunk")

    def test_a_kill_between_upstreams_yes_and_the_mirrors_ref_is_mended_at_the_next_start(self) -> None:
        gate = self.world.gate()
        work = self.world.clone_of_upstream(self.world.by_git())
        head = self.world.commit(work, {"a": "a\n"})
        arrived, go_on = self.world.waiting_hook("post-receive")
        push = subprocess.Popen(
            ["git", "push", "origin", "main"], cwd=work, env=self.world.client, stderr=subprocess.DEVNULL
        )
        wait_until(arrived.exists, 30, "the push at upstream")
        gate.kill()
        self.assertNotEqual(push.wait(30), 0)
        upstream, mirror = self.world.both()
        self.assertIn(head, upstream)
        self.assertNotIn(head, mirror)
        self.assertTrue(list(self.mirror.glob("objects/tmp_objdir-incoming-*")))
        (self.mirror / "refs" / "heads" / "main.lock").touch()
        go_on.touch()
        self.world.gate()
        self.assertEqual(*self.world.both())
        self.assertEqual([*self.mirror.glob("objects/tmp_objdir-*"), *self.mirror.glob("refs/**/*.lock")], [])

    def test_term_ends_the_daemon_at_once_and_lets_a_push_finish(self) -> None:
        gate = self.world.gate()
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        arrived, go_on = self.world.waiting_hook("pre-receive")
        push = subprocess.Popen(
            ["git", "push", "origin", "main"], cwd=work, env=self.world.client, stderr=subprocess.DEVNULL
        )
        wait_until(arrived.exists, 30, "the push at upstream")
        gate.signal_group(signal.SIGTERM)
        gate.process.wait(5)
        self.assertIsNone(push.poll())
        go_on.touch()
        self.assertEqual(push.wait(30), 0)
        self.assertEqual(*self.world.both())
        wait_until(lambda: not gate.group_is_alive(), 10, "the end of the push's processes")

    def test_a_fetch_during_a_push_waits_for_the_mirrors_ref(self) -> None:
        self.world.gate(GIT_GATE_SYNC_SECONDS="30")
        work = self.world.clone_of_upstream(self.world.by_git())
        head = self.world.commit(work, {"a": "a\n"})
        arrived, go_on = self.world.waiting_hook("post-receive")
        push = subprocess.Popen(
            ["git", "push", "origin", "main"], cwd=work, env=self.world.client, stderr=subprocess.DEVNULL
        )
        wait_until(arrived.exists, 30, "the push at upstream")
        fetch = subprocess.Popen(
            ["git", "ls-remote", self.world.by_git()], env=self.world.client, stdout=subprocess.PIPE, text=True
        )
        lock_inode = f":{(self.mirror / 'gate.lock').stat().st_ino} "
        is_waited_for = re.compile(rf"-> FLOCK .*{lock_inode}")
        wait_until(lambda: is_waited_for.search(Path("/proc/locks").read_text()), 30, "the fetch waiting for the push")
        go_on.touch()
        self.assertEqual(push.wait(30), 0)
        self.assertIn(head, fetch.communicate(timeout=30)[0])

    def test_the_mirror_stays_locked_until_its_ref_has_moved(self) -> None:
        app = self.world.copy_of_the_app()
        arrived, go_on = self.world.dir / "arrived", self.world.dir / "go-on"
        slow = app / "git_gate_hooks" / "reference-transaction"
        slow.write_text(
            f"#!/bin/sh\n[ -e {self.world.dir}/armed ] && [ $1 = prepared ] || exit 0\n"
            f"touch {arrived}; while [ -e {arrived} ] && ! [ -e {go_on} ]; do sleep 0.1; done\n"
        )
        self.world.gate(GIT_GATE_APP=str(app))
        slow.chmod(0o755)
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        (self.world.dir / "armed").touch()
        push = subprocess.Popen(
            ["git", "push", "origin", "main"], cwd=work, env=self.world.client, stderr=subprocess.DEVNULL
        )
        wait_until(arrived.exists, 30, "the mirror's ref update")
        lock = ["flock", "--nonblock", str(self.mirror / "gate.lock"), "true"]
        self.assertEqual(subprocess.run(lock).returncode, 1)
        go_on.touch()
        self.assertEqual(push.wait(30), 0)
        wait_until(lambda: subprocess.run(lock).returncode == 0, 10, "the unlocked mirror")

    def test_a_setting_that_was_planted_in_a_mirror_does_not_outlive_a_start(self) -> None:
        self.world.gate().kill()
        planted = ("config", "url.ssh://elsewhere/.insteadOf", self.world.url("demo"))
        self.world.git(*planted, cwd=self.mirror)
        gate = self.world.gate()
        self.assertNotIn("elsewhere", (self.mirror / "config").read_text())
        self.assertNotIn("cannot", gate.log)
        self.assertEqual(*self.world.both())

    def test_the_key_may_be_a_file(self) -> None:
        """The supervisor passes the key in memory, as all other tests do; without it, the variable names a file."""
        key = self.world.dir / "id"
        key.chmod(0o444)  # which ssh itself would refuse
        gate = self.world.gate(GIT_GATE_SSH_KEY=str(key))
        self.assertNotIn("cannot", gate.log)
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        self.world.git("push", "origin", "main", cwd=work)
        self.assertEqual(*self.world.both())

    def test_ssh_refuses_the_key_as_it_is(self) -> None:
        """The control: without the copy that the gate makes of it, the key of these tests opens nothing."""
        raw = self.world.app_without(("git_gate_mirror.py", '.replace(b"\\r", b"").rstrip(b"\\n") + b"\\n"', ""))
        gate = self.world.gate(GIT_GATE_APP=str(raw))
        self.assertIn("cannot bring mirror demo up to date", gate.log)

    def test_a_missing_key_is_reported_at_the_start(self) -> None:
        gate = self.world.gate(GIT_GATE_SSH_KEY="/nowhere/id")
        self.assertIn("cannot read the ssh key /nowhere/id: mount one there", gate.log)

    def test_a_git_http_request_that_is_alive_keeps_its_files_at_a_start_of_git_gate(self) -> None:
        self.world.gate().kill()
        leftover = self.mirror / "objects" / "tmp_objdir-incoming-alive"
        leftover.mkdir()
        command = ["flock", "--shared", str(self.world.mirrors / ".busy"), "cat"]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write(b"locked\n")
        holder.stdin.flush()
        holder.stdout.readline()
        self.world.gate().kill()
        self.assertTrue(leftover.exists())
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
        self.world.git_port = free_port()
        self.world.gate(GIT_GATE_PORT=str(self.world.git_port))
        self.assertFalse(leftover.exists())

    def lock_files(self) -> list[Path]:
        return [*self.world.mirrors.glob(".*"), *self.mirror.glob("gate.*")]

    def start_and_push(self) -> None:
        self.world.gate(GIT_GATE_SCANS="1")
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        self.world.git("push", "origin", "main", cwd=work)

    def test_lock_files_are_for_one_account_alone(self) -> None:
        self.start_and_push()
        self.assertEqual(
            {re.sub("[0-9]+$", "N", path.name) for path in self.lock_files()},
            {".busy", ".scan-next", ".scan-of-N", ".scan-N", "gate.lock", "gate.next", "gate.sync"},
        )
        self.assertEqual({path.stat().st_mode & 0o777 for path in self.lock_files()}, {0o600})

    def test_the_lock_of_git_http_is_for_one_account_alone(self) -> None:
        self.world.gate().kill()
        busy = self.world.mirrors / ".busy"
        busy.unlink()
        self.world.http()
        self.world.git("ls-remote", self.world.by_http())
        self.assertEqual(busy.stat().st_mode & 0o777, 0o600)

    def test_a_start_closes_the_lock_files_of_an_earlier_version(self) -> None:
        self.world.gate().kill()
        for path in (*self.lock_files(), self.world.mirrors / ".scan-7"):
            path.touch()
            path.chmod(0o644)
        self.world.git_port = free_port()
        self.world.gate(GIT_GATE_PORT=str(self.world.git_port))
        self.assertEqual({path.stat().st_mode & 0o777 for path in self.lock_files()}, {0o600})

    @unittest.skipUnless(os.geteuid() == 0, "only root can become another account")
    def test_another_account_cannot_hold_a_lock(self) -> None:
        self.start_and_push()

        def hold(path: Path) -> subprocess.CompletedProcess[bytes]:
            command = ["flock", "--nonblock", "--shared", path.name, "true"]
            # Its directory is entered as root: those above it may be private.
            return subprocess.run(command, cwd=path.parent, user=65534, group=65534, capture_output=True)

        for path in self.lock_files():
            with self.subTest(path.name):
                self.assertIn(b"Permission denied", hold(path).stderr)
        readable = self.world.mirrors / ".scan-next"
        readable.chmod(0o644)  # the control
        self.assertEqual(hold(readable).returncode, 0)

    @unittest.skipUnless(os.geteuid() == 0, "only root can own another account's files")
    def test_a_volume_of_another_account_is_served(self) -> None:
        self.world.gate().kill()
        for path in [self.mirror, *self.mirror.rglob("*")]:
            os.chown(path, 12345, 12345)
        self.world.gate()
        work = self.world.clone_of_upstream(self.world.by_git())
        self.world.commit(work, {"a": "a\n"})
        self.world.git("push", "origin", "main", cwd=work)
        self.assertEqual(*self.world.both())


if __name__ == "__main__":
    unittest.main()
