"""Capabilities: a daemon keeps those that its row names, whatever its user, and no other."""

from __future__ import annotations

import re
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Any

from tests.pidns.hardened import OTHER, OWNER
from tests.pidns.harness import PATIENCE, SLEEP, Bundle, NamespaceTestCase, daemon, public_interpreter, shell

NET_BIND_SERVICE, SETUID = 1 << 10, 1 << 7
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
LISTEN = """
import signal, socket
server = socket.create_server(("0.0.0.0", 80))
print("bound", flush=True)
signal.pause()
"""


def sets(text: str) -> dict[str, int]:
    return {name: int(value, 16) for name, value in re.findall(r"^(Cap\w+):\t(\w+)$", text, re.MULTILINE)}


class CapabilitiesTest(NamespaceTestCase):
    def kept(self, bundle: Bundle, name: str) -> dict[str, int]:
        bundle.wait_for_state(name, "running")
        return sets(Path(f"/proc/{bundle.host_pid(bundle.daemon(name)['pid'])}/status").read_text())

    def test_those_that_are_named_are_kept_in_every_set_that_an_exec_looks_at(self) -> None:
        both = ["NET_BIND_SERVICE", "SETUID"]
        rows = [
            daemon("root", *SLEEP, capabilities=both),
            daemon("other", *SLEEP, user=OTHER, capabilities=both),
            daemon("ids", *SLEEP, user="12345:0", capabilities=both),
            daemon("none", *SLEEP, user=OTHER),
        ]
        bits = NET_BIND_SERVICE | SETUID
        with Bundle(rows) as bundle:
            self.assertEqual(self.kept(bundle, "root"), dict(zip(SETS, (0, bits, bits, bits, 0), strict=True)))
            for name in ("other", "ids"):
                self.assertEqual(self.kept(bundle, name), dict.fromkeys(SETS, bits))
            self.assertEqual(self.kept(bundle, "none"), dict.fromkeys(SETS, 0))

    def test_checks_and_readiness_commands_keep_them_too(self) -> None:
        ready = shell(f"[ $(grep -c 'Cap.*:.{SETUID:016x}' /proc/self/status) = {len(SETS)} ]")
        check = shell("grep Cap /proc/self/status")
        with Bundle([daemon("web", *SLEEP, user=OTHER, capabilities=["SETUID"], ready=ready, check=check)]) as bundle:
            bundle.wait_for_event("ready", "web")
            bundle.command("restart", "web")
            said = b"\n".join(bundle.lines("web")).decode()
            self.assertEqual(sets(said), dict.fromkeys(SETS, SETUID))

    def test_a_port_below_1024_needs_one(self) -> None:
        listen = [public_interpreter(), "-I", "-c", LISTEN]
        with Bundle([daemon("web", *listen, user=OTHER, capabilities=["NET_BIND_SERVICE"])]) as bundle:
            bundle.wait_for(b"[web] bound\n")
        with Bundle([daemon("web", *listen, user=OTHER)]) as bundle:
            bundle.wait_for(b"[web] PermissionError: [Errno 13] Permission denied")

    def test_one_that_the_container_lacks_is_named_and_nothing_is_started(self) -> None:
        started = self.scratch() / "started"
        row = daemon(
            "web", *shell(f"touch {started}"), capabilities=["NET_BIND_SERVICE", "NET_ADMIN"], restart="always"
        )
        bundle = Bundle([row, daemon("other", *SLEEP)])
        bundle.argv = ["setpriv", "--bounding-set", "-net_admin", *bundle.argv]
        with bundle:
            reason = "cannot keep NET_ADMIN: the container does not have this capability"
            self.assertEqual(bundle.wait_for_state("web", "failed")["reason"], reason)
            bundle.wait_for_state("other", "running")
            plan = bundle.command("plan", "--table", bundle.argv[-1])
        self.assertFalse(started.exists())
        self.assertEqual(plan.returncode, 0, "a command has the capabilities of who runs it")

    def test_without_root_it_is_started_without_and_that_is_said_once(self) -> None:
        state = self.scratch()
        row = daemon("web", *shell("grep CapEff /proc/self/status; exec sleep 1000"), capabilities=["CHOWN", "KILL"])
        bundle = Bundle([row], state_dir=str(state / "own"))
        bundle.argv = [
            "setpriv",
            "--reuid",
            OTHER,
            "--regid",
            OTHER,
            "--init-groups",
            public_interpreter(),
            *bundle.argv[1:],
        ]
        bundle.state = state / "own"
        with bundle:
            bundle.wait_for(b"[web] CapEff:\t0000000000000000\n")
            bundle.signal(34)
            bundle.wait_for(b"[web] CapEff:", times=2)
            said = [line for line in bundle.own_lines() if "CHOWN" in line]
            self.assertEqual(said, ["web runs without CHOWN, KILL: only root can keep capabilities"])

    def test_one_that_opens_the_secrets_of_others_is_reported(self) -> None:
        rows = [daemon("nginx", *SLEEP, capabilities=["SETUID"]), daemon("egress", *SLEEP, user=OWNER)]
        with Bundle(rows, secrets={"TOKEN_": "egress"}, env={"TOKEN_A": "sesame-token"}) as bundle:
            bundle.wait_for(b"cannot keep the secrets of egress from nginx: it has SETUID; remove these\n")


@unittest.skipIf(shutil.which("nginx") is None, "no nginx on PATH")
class NginxTest(NamespaceTestCase):
    """The stock nginx: a master that runs as root, and workers that it makes www-data."""

    def bundle(self, **fields: Any) -> Bundle:
        place = self.scratch()
        temporary = "".join(
            f"{kind}_temp_path {place}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (place / "nginx.conf").write_text(f"""
            user www-data; daemon off; worker_processes 1; pid {place}/pid; error_log /dev/stderr; events {{}}
            http {{ access_log /dev/stdout; {temporary}
                server {{ listen 127.0.0.1:8080; location / {{ return 200 "served\\n"; }} }} }}
        """)
        nginx = shutil.which("nginx") or ""
        row = daemon("nginx", nginx, "-p", str(place), "-c", str(place / "nginx.conf"), port=8080, **fields)
        bundle = Bundle([row])
        bundle.argv = ["/bin/sh", "-c", 'ip link set lo up; exec "$@"', "sh", *bundle.argv]
        return self.enterContext(bundle)

    def test_with_three_capabilities_it_drops_to_www_data_and_serves(self) -> None:
        bundle = self.bundle(capabilities=["SETUID", "SETGID", "CHOWN"])
        bundle.wait_for_event("ready", "nginx")
        [worker] = bundle.until(lambda: bundle.running_commands("worker process"), PATIENCE, "a worker")
        status = Path(f"/proc/{worker.pid}/status").read_text()
        uid = subprocess.check_output(["id", "-u", "www-data"], text=True).strip()
        self.assertIn("Uid:\t" + "\t".join([uid] * 4), status)
        self.assertEqual(sets(status)["CapPrm"], 0)
        fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/').read().decode())"
        self.assertEqual(bundle.inside([public_interpreter(), "-c", fetch]).stdout.strip(), "served")
        bundle.wait_for(b'"GET / HTTP/1.1" 200')

    def test_control_without_them_its_workers_cannot_start(self) -> None:
        bundle = self.bundle()
        bundle.wait_for(b"failed (1: Operation not permitted)")


if __name__ == "__main__":
    unittest.main()
