"""What the predecessor's hosts and their tools do with a bundle, done with this one."""

from __future__ import annotations

import json
import subprocess
import unittest

from tests.docker.engine import Bundle, BundleTest, EngineTest, World

PORTS = {9099, 8888, 9418, 9420, 9100}


class PipelockAlone(BundleTest):
    """Their test of an apply: a bundle with nothing else, USR1, and a look at what came of it."""

    daemons = "pipelock"

    def test_it_runs_without_the_egress_that_it_comes_after_and_usr1_brings_the_new_file_into_force(self) -> None:
        self.assertEqual(list(self.bundle.daemons()), ["pipelock"])
        self.assertNotIn("egress", self.bundle.log())
        before = self.bundle.pids()["pipelock"]
        self.bundle.allow("api.example.test", "late.example.test")
        self.bundle.signal("USR1")
        self.bundle.wait_for(lambda: self.bundle.pids()["pipelock"] not in (before, None), "another pipelock")
        self.bundle.wait_until_healthy()
        answer = self.world.fetch("http://late.example.test/", "--proxy", "127.0.0.1:8888")
        self.assertEqual(answer["status"], 200, answer)


class EgressAlone(BundleTest):
    daemons = "egress"
    TOLD = "egress will answer every request with 502: pipelock is not selected; select pipelock, or set"

    def test_the_log_and_plan_say_that_nothing_will_pass_and_nothing_does(self) -> None:
        self.assertIn(self.TOLD, self.bundle.log())
        plan = self.bundle.supervisor("plan", check=False)
        self.assertEqual(plan.returncode, 1)
        self.assertIn(self.TOLD, plan.stdout)
        self.assertEqual(self.world.fetch("http://other.example.test/")["status"], 502)
        self.assertEqual(self.world.requests(), [])


class MountedCertificate(EngineTest):
    def test_a_ca_mounted_where_mitmproxy_looks_for_it_is_the_one_that_agents_are_shown(self) -> None:
        with World() as world:
            key, certificate = world.shared / "key.pem", world.shared / "their-ca.pem"
            make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=theirs"]
            make += ["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", str(key), "-out", str(certificate)]
            subprocess.run(make, check=True, capture_output=True)
            together = world.shared / "mitmproxy-ca.pem"
            together.write_text(key.read_text() + certificate.read_text())
            together.chmod(0o644)
            mount = f"{together}:/home/mitmproxy/.mitmproxy/mitmproxy-ca.pem:ro"
            with Bundle(world, "--volume", mount):
                answer = world.fetch("https://api.example.test/", "--ca", "/shared/their-ca.pem")
        self.assertEqual(answer["status"], 200, answer)


class Addresses(BundleTest):
    def test_each_daemon_listens_on_all_addresses_at_its_old_port(self) -> None:
        table = self.bundle.exec("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6").stdout
        rows = [line.split() for line in table.splitlines() if ": " in line]
        listening = [row[1].split(":") for row in rows if row[3] == "0A"]
        self.assertLessEqual(PORTS, {int(port, 16) for address, port in listening if not address.strip("0")})

    def test_mcp_is_posted_to_the_root_in_the_old_revision(self) -> None:
        hello = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}
        message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello})
        asking = (
            "import sys, urllib.request as u; h = {'Content-Type': 'application/json', 'Accept': 'application/json'};"
            "print(u.urlopen(u.Request('http://127.0.0.1:9100/', sys.argv[1].encode(), h)).read().decode())"
        )
        answer = json.loads(self.bundle.exec("python3", "-c", asking, message).stdout)
        self.assertEqual(answer["result"]["serverInfo"]["name"], "sidecar-supervise")


if __name__ == "__main__":
    unittest.main()
