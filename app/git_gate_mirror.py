"""One mirror and its upstream: what is fetched before a client is served, and what the gate pushes, one at a time.

    git_gate_mirror.py SERVICE MIRROR ...      by way of git_gate_access_hook.sh, in the gate's environment

Brings the mirror up to date. If upstream cannot be asked, what the mirror holds is served. Exit status 1 refuses the
client; the line on stdout is the reason.

A mirror has three lock files. The process that holds gate.lock talks to upstream. The one that waits for gate.lock
holds gate.next, so no other overtakes it. Clients that fetch queue for gate.sync first, and one fetch from upstream
serves all of those that were waiting when it began: however many clients fetch, few of their fetches delay a push.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NoReturn

_COUNTER_DIGITS = 20
_TELLING = re.compile(r"failed|denied|refused|timed out|resolve|fatal|error", re.IGNORECASE)


class Stale(Exception):
    """Says why the mirror was not brought up to date."""


def main() -> int:
    service, mirror = sys.argv[1:3]
    name = Path(mirror).name.removesuffix(".git")
    os.chdir(mirror)
    upstream = subprocess.run(["git", "config", "gate.upstream"], stdout=subprocess.PIPE, text=True).stdout.strip()
    if not upstream:
        print(f"cannot serve {name}: it has no upstream; start git-gate again")
        return 1
    unlimit_memory()
    try:
        bring_up_to_date(upstream, is_start=service == "start")
    except Stale as why:
        print(f"cannot bring mirror {name} up to date: {why}; serving what it holds", file=sys.stderr)
    return 0


def bring_up_to_date(upstream: str, is_start: bool) -> None:
    seconds = int(os.environ["GIT_GATE_SYNC_SECONDS"])
    with contextlib.ExitStack() as held:
        try:
            with time_limit(seconds):
                counter = held.enter_context(opened("gate.sync"))
                if others_have_fetched(counter):
                    return
                lock = held.enter_context(turn_at_upstream())
        except TimeoutError:
            raise Stale("a push is underway, or upstream is slow") from None
        os.pwrite(counter, b"%0*d" % (_COUNTER_DIGITS, fetches_begun(counter) + 1), 0)
        ask_upstream(lock, seconds, *fetch(upstream))
        if is_start or subprocess.run(["git", "rev-parse", "--quiet", "--verify", "HEAD"], stdout=2).returncode != 0:
            head = ask_upstream(lock, seconds, "ls-remote", "--symref", upstream, "HEAD")
            if branch := re.match(r"ref: (refs/heads/\S+)\tHEAD$", head, re.MULTILINE):
                subprocess.run(["git", "symbolic-ref", "HEAD", branch[1]], stdout=2)


def fetch(upstream: str) -> tuple[str, ...]:
    """The arguments of the git that makes the mirror's branches and tags those of upstream."""
    options = ("--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    return ("fetch", *options, upstream, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


def ask_upstream(lock: int, seconds: int, *arguments: str) -> str:
    done = at_upstream(lock, seconds, arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode(errors="replace")
    if was_too_slow(done):
        raise Stale(f"upstream timed out after GIT_GATE_SYNC_SECONDS={seconds} s")
    if done.returncode != 0:
        reason = next((line for line in said.splitlines() if _TELLING.search(line)), "")
        raise Stale(reason or f"git {arguments[0]} exited with status {done.returncode}")
    return said


def at_upstream(
    lock: int,
    seconds: int,
    arguments: tuple[str, ...],
    *,
    stdout: int | IO[str],
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run git for a limited time, with the mirror locked for as long as it runs, whatever becomes of this program.

    `timeout` moves to a process group of its own, so it ends ssh as well, which would otherwise keep the output open.
    The daemons' children ignore TERM and would hand that down.
    """
    limit = ["env", "--default-signal=TERM", "timeout", "--kill-after=2", str(seconds)]
    with ssh_key() as key:
        return subprocess.run(
            [*limit, "git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**(os.environ if environment is None else environment), "GIT_GATE_SSH_KEY": key},
            pass_fds=[lock],
        )


@contextlib.contextmanager
def ssh_key() -> Iterator[str]:
    """The path of a copy of the ssh key, in memory, that ssh accepts: private, with a final newline and without CR.

    ssh closes all descriptors above 2 when it starts, so the path leads to those of this process.
    """
    path = os.environ["GIT_GATE_SSH_KEY"]
    try:
        key = Path(path).read_bytes()
    except OSError:
        yield path  # not every upstream needs one; ssh says that it is missing
        return
    with os.fdopen(os.memfd_create("ssh-key"), "wb") as copy:
        os.fchmod(copy.fileno(), 0o400)
        copy.write(key.replace(b"\r", b"").rstrip(b"\n") + b"\n")
        copy.flush()
        yield f"/proc/{os.getpid()}/fd/{copy.fileno()}"


def was_too_slow(done: subprocess.CompletedProcess[bytes]) -> bool:
    return done.returncode in (124, -signal.SIGKILL, 128 + signal.SIGKILL)


def others_have_fetched(counter: int) -> bool:
    """Wait for other clients' fetches from upstream, and say whether one of them began after this client came, and so
    has brought all that this client could ask for."""
    before = fetches_begun(counter)
    fcntl.flock(counter, fcntl.LOCK_EX)
    return fetches_begun(counter) != before


def fetches_begun(counter: int) -> int:
    return int(os.pread(counter, _COUNTER_DIGITS, 0) or b"0")


@contextlib.contextmanager
def turn_at_upstream() -> Iterator[int]:
    """The descriptor of the mirror's lock; the mirror is locked until its last copy in any process is closed."""
    with opened("gate.lock") as lock:
        with opened("gate.next") as place:
            fcntl.flock(place, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A lock file, for this account alone: one that can read a file can lock it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError if the block takes longer. One at a time, in the main thread."""
    previous = signal.signal(signal.SIGALRM, _time_is_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _time_is_up(*_: object) -> NoReturn:
    raise TimeoutError


def limit_memory(mebibytes: int) -> None:
    """Limit what this process and each of its later children can allocate.

    RLIMIT_DATA, not RLIMIT_AS: gitleaks reserves gigabytes of addresses, and git maps the mirror's packs, whatever
    their size.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (mebibytes << 20, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def unlimit_unpacking() -> None:
    """What is left of a push has limits of its own, and git's fetches have none."""
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_DATA):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))


def unlimit_memory() -> None:
    """Upstream is trusted, and its repository may be large."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    os.environ.pop("GIT_ALLOC_LIMIT", None)


if __name__ == "__main__":
    sys.exit(main())
