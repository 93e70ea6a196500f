"""Too little memory for all that daemons would have PID 1 keep: it survives, and counts what it drops."""

from __future__ import annotations

import os
import resource
import unittest
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1, SIGUSR2

from tests.faults.support import Bundle, FaultTestCase, injected
from tests.faults.test_limits import memory_cgroup
from tests.pidns.harness import PYTHON, SLEEP, Daemon, child, daemon, quiet_for

SIGNALS = child("signals.py")
MIB = 1 << 20
ENDLESS = "import os\nblock = b'x' * 65536\nwhile True: os.write(1, block)"
UNFINISHED = "import os, signal\nos.write(1, b'x' * 65000)\nsignal.pause()"
HUGE_LINES = "import os\nline = b'y' * 300_000 + b'\\n'\nwhile True: os.write(1, line)"
QUICK = {"_BACKOFF_FIRST": 0.001, "_BACKOFF_LAST": 0.002}


def python(program: str) -> list[str]:
    return [*PYTHON, "-c", program]


def floods() -> list[Daemon]:
    """Output with and without newlines, and events: as many exits as possible."""
    return [
        *(daemon(f"endless{n}", *python(ENDLESS)) for n in range(3)),
        *(daemon(f"huge{n}", *python(HUGE_LINES)) for n in range(3)),
        *(daemon(f"unfinished{n}", *python(UNFINISHED)) for n in range(10)),
        *(daemon(f"exits{n}", "false", restart="always") for n in range(4)),
        daemon("egress", *SIGNALS),
        daemon("pipelock", *SLEEP),
    ]


class FloodTest(FaultTestCase):
    def assert_serves(self, bundle: Bundle) -> None:
        bundle.wait_for(b"[egress] ready\n", 30)
        for turn in range(1, 21):
            bundle.signal(SIGHUP)
            bundle.signal(SIGUSR1)
            bundle.signal(SIGUSR2)
            bundle.wait_for(b"[egress] SIGHUP\n", 30, times=turn)
        bundle.catch_up(30)
        self.assertEqual(bundle.daemon("egress")["restarts"], 0)
        bundle.signal(SIGTERM)
        self.assertIn(bundle.exit(40), (1, 137, 143))

    def test_in_an_address_space_of_64_mib_it_survives_every_flood(self) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (64 * MIB, resource.RLIM_INFINITY))

        with Bundle(floods(), before_exec=limit, tunables=QUICK) as bundle:
            self.assert_serves(bundle)

    def test_in_a_cgroup_of_64_mib_it_survives_every_flood_even_if_the_log_is_not_read(self) -> None:
        with memory_cgroup(64 * MIB) as enter:
            rows = [row for row in floods() if not row["name"].startswith("unfinished")]
            with Bundle(rows, before_exec=enter, tunables=QUICK, reading=False) as bundle:
                bundle.wait_for_state("egress", "running", 30)
                quiet_for(3)  # exits and events go on, while the log is not read
                bundle.reader.resume()
                self.assert_serves(bundle)

    def test_an_unfinished_line_costs_no_more_than_its_64_kib(self) -> None:
        """What came after the last newline is kept until more comes, on top of the 1 MiB for the reader."""

        def grown(count: int) -> int:
            rows = [daemon(f"d{n}", *python(UNFINISHED)) for n in range(count)]
            with Bundle([*rows, daemon("egress", *SIGNALS)]) as bundle:
                bundle.wait_for(b"[egress] ready\n", 60)
                for row in rows:
                    bundle.wait_for_state(row["name"], "running", 60)
                bundle.catch_up(30)
                quiet_for(1)
                bundle.catch_up(30)
                return bundle.proc("VmData")

        self.assertLess(grown(120) - grown(20), 100 * 80, "KiB for 100 lines")

    def test_an_enomem_out_of_poll_costs_nothing_but_a_line(self) -> None:
        with Bundle([daemon("egress", *SIGNALS), daemon("web", *SLEEP, restart="always")]) as bundle:
            bundle.wait_for(b"[egress] ready\n")
            with injected(bundle.pid1, "poll:error=ENOMEM:when=1..3"):
                bundle.signal(SIGHUP)
                bundle.wait_for(b"[egress] SIGHUP\n")
            os.kill(bundle.running_commands("sleep 1000")[0].pid, SIGKILL)
            bundle.wait_for(b"web was terminated by SIGKILL")
            bundle.signal(SIGTERM)
            bundle.exit()


if __name__ == "__main__":
    unittest.main()
