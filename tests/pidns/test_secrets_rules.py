"""The first rule, as the kernel sees it: once the first child runs, no path is opened that a daemon may have replaced.

PID 1 and its children, until they have given up their privileges, are traced: what they open, rename or ask for must be
relative to a descriptor that was opened before.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1, SIGUSR2

from tests.pidns.hardened import OWNER, PREFIXES, AttackTestCase
from tests.pidns.harness import PATIENCE, SLEEP, Bundle, daemon, public_interpreter, shell
from tests.support import wait_until

LISTEN = """
import signal, socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 7000))
server.listen()
while True: signal.pause()
"""
RELATIVE = re.compile(r'\w+\((\d+, "[^/]|\d+, ""|"", )')


def traced_by(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("TracerPid:\t")[2].split()[0])


@unittest.skipIf(shutil.which("strace") is None, "no strace on PATH")
class PathTest(AttackTestCase):
    def privileged_calls(self, without: str = "") -> list[str]:
        """The system calls with a path of PID 1, and of its children until they have no capability any more.

        Meanwhile daemons are started, checked, refused, restarted, killed, found ready, and one cannot be executed.
        None of them forks, so that every process but PID 1 is a child of PID 1.
        """
        place = self.scratch()
        (place / "good").touch()
        keys = place / "keys"
        keys.mkdir(mode=0o755)
        for name in ("key", "token"):
            (keys / name).write_text("sesame-file")
            shutil.chown(keys / name, OWNER)
        rows = [
            daemon(
                "egress",
                public_interpreter(),
                "-I",
                "-c",
                LISTEN,
                user=OWNER,
                restart="always",
                port=7000,
                files={"KEY": f"{keys}/key"},
            ),
            daemon("pipelock", *SLEEP, check=shell(f"test -e {place}/good"), ready=["true"], restart="always"),
            daemon("lost", "/no/such/program", user=OWNER, restart="always"),
            daemon("talks", *shell("echo one; printf two; exit 3"), restart="always"),
        ]
        env = {"EGRESS_TOKEN_X": "sesame-token", "EGRESS_TOKEN_Y_FILE": f"{keys}/token"}
        with Bundle(rows, secrets=PREFIXES, env=env, without=without or ()) as bundle:
            bundle.wait_for_event("ready", "pipelock")
            bundle.wait_for_event("ready", "egress")
            trace = place / "trace"
            command = ["strace", "-f", "-qq", "-s", "100", "-o", str(trace), "-e", "trace=%file,capset"]
            with subprocess.Popen([*command, "-p", str(bundle.pid1)], stderr=subprocess.DEVNULL) as strace:
                wait_until(lambda: traced_by(bundle.pid1) == strace.pid, PATIENCE, "PID 1 is traced")
                for number in (SIGUSR2, SIGUSR1, SIGHUP):
                    bundle.signal(number)
                bundle.wait_for_event("ready", "pipelock", times=2)
                bundle.wait_for_event("ready", "egress", times=2)
                (place / "good").unlink()
                bundle.signal(SIGUSR1)
                bundle.wait_for(b"cannot restart pipelock")
                os.kill(bundle.host_pid(bundle.daemon("pipelock")["pid"]), SIGKILL)
                bundle.wait_for_event("ready", "pipelock", times=3)
                bundle.wait_for_event("exited", "talks", times=2)
                bundle.signal(SIGTERM)
                bundle.exit()
                strace.wait(PATIENCE)
            pid1 = bundle.pid1
        calls, unprivileged = [], set()
        for line in trace.read_text().splitlines():
            pid, call = line.split(maxsplit=1)
            if call.startswith("capset("):
                unprivileged.add(pid)
            elif (int(pid) == pid1 or pid not in unprivileged) and re.match(r"\w+\(", call):
                calls.append(call)
        return calls

    def test_nothing_privileged_opens_a_path_once_the_first_child_runs(self) -> None:
        calls = self.privileged_calls()
        for allowed in ("status.json", '"key", {flags', '"token", {flags', '"self/fd/'):
            self.assertTrue([call for call in calls if allowed in call], f"the trace has what is allowed: {allowed}")
        self.assertEqual([call for call in calls if not RELATIVE.match(call)], [])

    def test_control_a_null_device_that_is_opened_by_its_path_is_seen(self) -> None:
        calls = self.privileged_calls("null-device")
        self.assertTrue([call for call in calls if '"/dev/null"' in call])


if __name__ == "__main__":
    unittest.main()
