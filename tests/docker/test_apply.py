"""Applying an allowlist and routes to a running bundle, as the tools on the host do it."""

from __future__ import annotations

import itertools
import json
import unittest
from signal import SIGHUP
from typing import ClassVar

from tests.docker.engine import PATIENCE, ROUTES, TOKEN, BundleTest, docker
from tests.support import wait_until


class Applying(BundleTest):
    ca: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.ca = cls.bundle.ca()

    def status(self, url: str, *options: str) -> int:
        return int(self.world.fetch(url, "--ca", self.ca, *options)["status"])

    def by_pipelock(self, host: str) -> int:
        return self.status(f"http://{host}/", "--proxy", "127.0.0.1:8888")


class Allowlist(Applying):
    def test_a_new_host_passes_and_no_other_daemon_notices(self) -> None:
        self.assertEqual(self.by_pipelock("late.example.test"), 403)
        client = self.world.popen("python3", "/inside/mcp_kept_open.py")
        load = self.world.popen("python3", "/inside/load.py", "https://api.example.test/", "--ca", self.ca)
        with client, load:
            assert client.stdin and client.stdout and load.stdin and load.stdout
            self.assertEqual([client.stdout.readline(), load.stdout.readline()], ["open\n", "answered\n"])
            before = self.bundle.pids()

            self.bundle.allow("api.example.test", "late.example.test")
            self.bundle.signal("USR1")
            self.bundle.wait_for(lambda: self.replaced(before), "another pipelock")

            self.assertEqual([self.by_pipelock(f"{host}.example.test") for host in ("late", "api")], [200, 200])
            self.assertEqual(self.by_pipelock("other.example.test"), 403)
            for process in (client, load):
                assert process.stdin
                print("go on", file=process.stdin, flush=True)
            answer = client.stdout.readline()
            self.assertIn("result", json.loads(answer), answer)
            statuses = json.loads(load.stdout.readline())
        self.assertEqual(statuses[-1], 200)
        self.assertLessEqual(set(statuses), {200, 502}, "egress answers 502 while pipelock is away, and nothing else")
        self.assertNotIn("SIGUSR1", self.bundle.daemons()["pipelock"]["last_exit"])
        after = self.bundle.pids()
        self.assertEqual({name for name in before if before[name] != after[name]}, {"pipelock"})

    def test_a_host_is_added_by_rewriting_the_mounted_file_in_place(self) -> None:
        self.bundle.allow("api.example.test")
        self.bundle.supervisor("apply", "pipelock")
        before = self.bundle.pids()
        self.assertEqual(self.by_pipelock("other.example.test"), 403)
        self.bundle.allow("api.example.test", "other.example.test")
        self.bundle.wait_for(lambda: self.by_pipelock("other.example.test") == 200, "pipelock's look at its file")
        self.assertEqual(self.bundle.pids(), before)

    def test_pipelock_says_that_it_is_healthy(self) -> None:
        asking = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8888/health').read().decode())"
        self.assertEqual(json.loads(self.bundle.exec("python3", "-c", asking).stdout)["status"], "healthy")

    def replaced(self, before: dict[str, int]) -> bool:
        pipelock = self.bundle.daemons()["pipelock"]
        return bool(pipelock["ready"]) and pipelock["pid"] != before["pipelock"]

    def test_an_invalid_file_leaves_the_old_pipelock_serving(self) -> None:
        before = self.bundle.pids()
        self.bundle.write("pipelock.yaml", "version: 1\nmode: strict\napi_alowlist: [late.example.test]\n")
        done = self.bundle.supervisor("apply", "pipelock", check=False)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("api_alowlist", done.stdout + done.stderr)
        self.assertEqual(self.bundle.pids(), before)
        self.assertEqual(self.by_pipelock("api.example.test"), 200)
        events = self.bundle.supervisor("events", "--json").stdout
        self.assertIn("refused", [json.loads(line)["event"] for line in events.splitlines()])


class Routed(Applying):
    """Here pipelock lets all pass, and egress alone decides."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.bundle.allow("*.example.test")
        cls.bundle.supervisor("apply", "pipelock")


class Routes(Routed):
    def setUp(self) -> None:
        self.world.forget_requests()

    def test_the_token_goes_to_the_routed_host_only(self) -> None:
        self.assertEqual(self.status("https://api.example.test/", "--header", "Authorization=of the agent"), 200)
        [request] = self.world.requests()
        self.assertTrue(request["tls"])
        self.assertEqual(request["headers"]["authorization"], f"Bearer {TOKEN}")

    def test_nothing_else_gets_the_token(self) -> None:
        for url, spoofed in (
            ("https://other.example.test/", None),
            ("https://other.example.test/", "api.example.test"),
            ("http://other.example.test/", None),
            ("http://other.example.test/", "api.example.test"),
            ("http://api.example.test/", None),
            ("http://api.example.test/", "other.example.test"),
            ("http://api.example.test:443/", None),
            ("https://late.example.test/", "api.example.test"),
        ):
            with self.subTest(url, spoofed=spoofed):
                self.status(url, *(("--header", f"Host={spoofed}") if spoofed else ()))
                self.assertNotIn(TOKEN, json.dumps(self.world.requests()))

    def test_what_is_routed_passes_and_what_is_not_is_refused(self) -> None:
        self.assertEqual(self.status("https://other.example.test/"), 200)
        self.assertEqual(self.status("http://other.example.test/"), 200)
        self.assertEqual(self.status("https://late.example.test/"), 403)
        self.assertEqual(self.status("http://api.example.test/"), 403)


class ChangedRoutes(Routed):
    LATE = ROUTES + "  - host: late.example.test\n    token: EGRESS_TOKEN_API\n    header: x-api-key\n"

    def setUp(self) -> None:
        self.bundle.write("routes.yaml", ROUTES)
        docker("restart", self.bundle.name)
        self.bundle.wait_until_healthy()

    def test_hup_brings_a_new_route_into_force(self) -> None:
        self.assertEqual(self.status("https://late.example.test/"), 403)
        before = self.bundle.pids()
        self.bundle.write("routes.yaml", self.LATE)
        self.bundle.signal("HUP")
        self.bundle.wait_for(lambda: self.status("https://late.example.test/") == 200, "the new route")
        self.assertEqual(self.world.requests()[-1]["headers"]["x-api-key"], TOKEN)
        self.assertEqual(self.bundle.pids(), before)

    def test_a_file_that_does_not_parse_changes_nothing(self) -> None:
        self.bundle.write("routes.yaml", "routes: [")
        self.bundle.signal("HUP")
        self.bundle.wait_for_log("cannot load")
        self.assertEqual(self.status("https://api.example.test/"), 200)
        self.assertEqual(self.status("https://late.example.test/"), 403)

    def test_a_hup_in_the_first_moments_of_egress_is_not_lost(self) -> None:
        def takes_more_than_one() -> bool:
            docker("restart", self.bundle.name)
            return self.change_until_ready() > 1

        # An engine that takes long to run a command may find egress ready after the first change.
        self.assertTrue(any(takes_more_than_one() for _ in range(5)), "a second change before egress was ready")

    def test_a_hup_that_its_entrypoint_ignores_restarts_nothing(self) -> None:
        docker("restart", self.bundle.name)
        self.bundle.wait_for(lambda: self.bundle.survives(SIGHUP, "egress"), "the first line of the entrypoint")
        self.change_until_ready()
        log = self.bundle.log().rpartition("egress started")[2]
        self.assertIn("SIGHUP delivered to egress", log.partition("egress ready")[0])
        self.assertEqual(self.bundle.daemons()["egress"]["restarts"], 0, log)

    def change_until_ready(self) -> int:
        """One change after another while egress starts, a HUP after each: the last one, which is told, is in force."""
        versions = itertools.count(1)

        def ready_after_another_change() -> int:
            version = next(versions)
            self.bundle.write("routes.yaml", self.LATE.replace("x-api-key", f"x-version-{version}"))
            self.bundle.signal("HUP")
            return version if self.bundle.is_ready("egress") else 0

        last = wait_until(ready_after_another_change, PATIENCE, "egress to be ready")
        self.bundle.wait_until_healthy()
        self.assertEqual(self.status("https://late.example.test/"), 200)
        self.assertIn(f"x-version-{last}", self.world.requests()[-1]["headers"])
        return last


if __name__ == "__main__":
    unittest.main()
