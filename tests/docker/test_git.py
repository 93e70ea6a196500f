"""The git gate in the image: a real client on one side, a real sshd with the upstream repository on the other."""

from __future__ import annotations

import subprocess
import unittest

from tests.docker.engine import Bundle, BundleTest, World, docker

GIT_PROTOCOL, HTTP = "git://127.0.0.1/demo.git", "http://127.0.0.1:9420/demo.git"
UPSTREAM = "/srv/upstream/demo.git"
# Put together here, so that this file is none of the gate's findings.
SECRET = "ghp_" + "x7Kq2mW9vB4nR8tL1cZ6" + "yH3jD5fG0sPaQeUi"


class Clone:
    """What the agent works in."""

    def __init__(self, world: World, directory: str) -> None:
        self._world, self._directory = world, directory

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._world.git("-C", self._directory, *arguments, check=check)

    def commit(self, message: str, content: str, file: str = "settings") -> None:
        append = (
            f'cd {self._directory} && printf "%s\\n" "$1" >>"$2" && git add "$2" && git commit --quiet --message "$3"'
        )
        self._world.exec("sh", "-c", append, "sh", content, file, message)

    def push(self, ref: str = "HEAD", to: str = "origin") -> subprocess.CompletedProcess[str]:
        return self.git("push", "--quiet", to, ref, check=False)

    def pushing(self) -> subprocess.Popen[str]:
        return self._world.popen("git", "-C", self._directory, "push", "origin", "HEAD")

    def head(self, ref: str = "HEAD") -> str:
        return self.git("rev-parse", ref).stdout.strip()


class Gate(BundleTest):
    daemons = "git-gate,git-http"

    def clone(self, url: str) -> Clone:
        directory = self.world.exec("mktemp", "--directory").stdout.strip()
        self.world.git("clone", "--quiet", url, directory)
        return Clone(self.world, directory)

    def upstream(self) -> str:
        return self.refs(self.world)

    def mirror(self) -> str:
        return self.refs(self.bundle, "/srv/git/demo.git")

    @staticmethod
    def refs(container: World | Bundle, repository: str = UPSTREAM) -> str:
        list_refs = ("git", "-c", "safe.directory=*", "-C", repository, "for-each-ref")
        return container.exec(*list_refs, "--format=%(refname) %(objectname)").stdout


class Passing(Gate):
    def test_clone_and_push_by_both_protocols(self) -> None:
        for url in (GIT_PROTOCOL, HTTP):
            with self.subTest(url):
                clone = self.clone(url)
                clone.commit("a change", f"by {url}")
                pushed = clone.push()
                self.assertEqual(pushed.returncode, 0, pushed.stderr)
                self.assertIn(f"refs/heads/main {clone.head()}", self.upstream())
                self.assertEqual(self.mirror(), self.upstream())

    def test_a_fetch_gets_what_came_to_upstream_meanwhile(self) -> None:
        for url in (GIT_PROTOCOL, HTTP):
            with self.subTest(url):
                clone, elsewhere = self.clone(url), self.clone(UPSTREAM)
                elsewhere.commit("from elsewhere", f"to be seen by {url}")
                self.assertEqual(elsewhere.push().returncode, 0)
                clone.git("fetch", "--quiet")
                self.assertEqual(clone.head("origin/main"), elsewhere.head())


class Refused(Gate):
    """A secret, wherever it stands: the pusher is told without it, and it is neither at upstream nor in the mirror."""

    def setUp(self) -> None:
        self.work = self.clone(GIT_PROTOCOL)
        self.before = self.upstream()

    def assert_refused(self, ref: str = "HEAD") -> None:
        for url in (GIT_PROTOCOL, HTTP):
            with self.subTest(url):
                pushed = self.work.push(ref, to=url)
                self.assertNotEqual(pushed.returncode, 0)
                self.assertIn("it contains secrets", pushed.stderr)
                self.assertNotIn(SECRET, pushed.stderr)
                self.assertEqual(self.upstream(), self.before)
                self.assertEqual(self.mirror(), self.before)
        self.assertNotIn(SECRET, self.bundle.log())

    def test_in_a_commit(self) -> None:
        self.work.commit("a secret", f"token = {SECRET}")
        self.work.commit("another", "harmless")
        self.assert_refused()

    def test_on_a_new_branch(self) -> None:
        self.work.git("switch", "--quiet", "--create", "fresh")
        self.work.commit("a secret", f"token = {SECRET}")
        self.assert_refused("fresh")

    def test_in_a_merge_alone(self) -> None:
        self.work.git("switch", "--quiet", "--create", "side")
        self.work.commit("on the side", "harmless", file="side")
        self.work.git("switch", "--quiet", "main")
        self.work.commit("on main", "harmless as well", file="main")
        self.work.git("merge", "--quiet", "--no-commit", "--no-ff", "side")
        self.work.commit("a merge that adds a secret", f"token = {SECRET}")
        self.assertEqual(len(self.work.git("show", "--no-patch", "--format=%P").stdout.split()), 2)
        self.assert_refused("main")

    def test_with_a_comment_that_asks_for_leave(self) -> None:
        self.work.commit("a secret", f"token = {SECRET}  # gitleaks:allow")
        self.assert_refused()

    def test_with_a_configuration_that_allows_everything(self) -> None:
        self.work.commit("leave", "[allowlist]\npaths = ['''.*''']", file=".gitleaks.toml")
        self.work.commit("a secret", f"token = {SECRET}")
        self.assert_refused()

    def test_a_push_without_a_secret_passes_where_these_were_refused(self) -> None:
        self.work.commit("no secret", "token = read from the environment")
        self.assertEqual(self.work.push().returncode, 0)
        self.assertNotEqual(self.upstream(), self.before)


class Killed(Gate):
    def test_the_mirror_agrees_with_upstream_after_a_kill_in_the_middle_of_a_push(self) -> None:
        """At the worst moment: upstream has taken the push, and the mirror does not know it yet."""
        hook = f"{UPSTREAM}/hooks/post-receive"
        wait = "#!/bin/sh\ntouch /tmp/taken\nwhile [ ! -e /tmp/go ]; do sleep 0.1; done\n"
        self.world.exec("sh", "-c", 'printf "%s" "$1" >"$2" && chmod 0755 "$2"', "sh", wait, hook)
        clone = self.clone(GIT_PROTOCOL)
        clone.commit("a change", "a line")
        with clone.pushing() as push:
            taken = ("test", "-e", "/tmp/taken")
            self.bundle.wait_for(lambda: self.world.exec(*taken, check=False).returncode == 0, "upstream's yes")
            self.bundle.signal("KILL")
            self.world.exec("touch", "/tmp/go")
            self.assertNotEqual(push.wait(), 0)
        docker("start", self.bundle.name)
        self.bundle.wait_until_healthy()
        self.assertEqual(self.mirror(), self.upstream())
        self.assertIn(clone.head(), self.mirror())
        self.assertEqual(self.bundle.exec("find", "/srv/git", "-name", "tmp_objdir-*").stdout, "")
        again = clone.push()
        self.assertEqual(again.returncode, 0, again.stderr)


if __name__ == "__main__":
    unittest.main()
