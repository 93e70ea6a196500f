"""A bundle in the arrangement of examples/compose.yaml, for attacks on it.

A read-only root, a tmpfs on /run that root owns, a private /dev that is a tmpfs too, a read-only /proc/sys, four
capabilities and no_new_privs. Attackers are programs of tests/children (on /mnt inside) that run as daemons: as root
without capabilities, or under an account of their own. What they find they write to `place`, /run/place inside.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.pidns.harness import Bundle, Daemon, NamespaceTestCase, installed, public_interpreter
from tests.support import CHILDREN

OWNER, OTHER = "www-data", "daemon"  # two accounts that every Debian has
TOKEN = f"sesame-{secrets.token_hex(16)}"
ENVIRONMENT = {"EGRESS_TOKEN_CANARY": TOKEN}
PREFIXES = {"EGRESS_TOKEN_": "egress"}
PLACE = "/run/place"

COMPOSE = ("setuid", "setgid", "kill", "setpcap")
DOCKER = (  # what an engine gives when it is told nothing
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)

_SETUP = """
set -e
umask 022
outside=$1 children=$2 bounding=$3 extra=$4; shift 4
mount --bind "$children" /mnt
mount --bind "$outside" /run
mount -t tmpfs -o mode=755,nosuid tmpfs /dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "/dev/${device%:*}" c 1 "${device#*:}"
done
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
mkdir -m 1777 /dev/shm
mount -t tmpfs -o ro tmpfs /sys
eval "$extra"
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /mnt
mount -o remount,bind,ro /
exec setpriv --inh-caps=-all --bounding-set="$bounding" --no-new-privs "$@"
"""


def attacker(program: str, *arguments: object) -> list[str]:
    """The command of a program of tests/children, as any account inside can execute it."""
    return [public_interpreter(), "-I", "-S", f"/mnt/{program}", *map(str, arguments)]


class HardenedBundle(Bundle):
    """`capabilities`: PID 1's. `setup`: shell commands, run as root while the file systems are still writable."""

    def __init__(
        self, daemons: Sequence[Daemon], *, capabilities: Sequence[str] = COMPOSE, setup: str = "", **options: Any
    ) -> None:
        options = {"secrets": PREFIXES, "env": ENVIRONMENT, "state_dir": "/run/sidecar-init", **options}
        super().__init__(daemons, **options)
        self.run = self.directory / "run"
        self.state = self.run / os.path.relpath(options["state_dir"], "/run")
        self.place = self.run / "place"
        bounding = ",".join(("-all", *(f"+{name}" for name in capabilities)))
        self.argv = [
            "/bin/sh",
            "-c",
            _SETUP,
            "sh",
            str(self.run),
            str(installed() / CHILDREN.name),
            bounding,
            setup,
            *self.argv,
        ]

    def __enter__(self) -> Self:
        self.run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self.run], check=True)
        self.place.mkdir()
        self.place.chmod(0o1777)
        return super().__enter__()

    def discard(self) -> None:
        if os.path.ismount(self.run):
            subprocess.run(["umount", "-l", self.run], check=True)
        super().discard()

    def found(self, name: str = "loot") -> bytes:
        """What an attacker has written to a file of its place; nothing if there is none."""
        path = self.place / name
        return path.read_bytes() if path.exists() else b""


class AttackTestCase(NamespaceTestCase):
    """The base of the attacks: `private` is a file of another account, which only that account may read."""

    def enter(self, bundle: HardenedBundle) -> HardenedBundle:
        return self.enterContext(bundle)

    def private_file(self, bundle: HardenedBundle, user: str = OWNER) -> Path:
        path = bundle.place / "private"
        path.write_text(TOKEN)
        shutil.chown(path, user, user)
        path.chmod(0o600)
        return path
