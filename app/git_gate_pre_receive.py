#!/usr/bin/env -S python3 -I
"""The gate: git receive-pack runs this, in the mirror, before it moves any ref.

It exits with 0 only after git_gate_scan.py has found no secret in all that the push would add, and after upstream has
taken every ref of the push at once. Every other way out is a refusal: the mirror and upstream stay as they are, and the
pusher is told why, without the secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import re
import select
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:  # which sees this directory as a package; a program that runs in it does not
    from app import git_gate_mirror as mirror
    from app import git_gate_scan
    from app.git_gate_scan import Refused, git
else:
    import git_gate_mirror as mirror
    import git_gate_scan
    from git_gate_scan import Refused, git

_SETTLE_SECONDS = 60  # between upstream's yes and the mirror's own ref update
_PROTECTED = "main,master"

# git itself looks at the names of refs only after this hook has run. Everything after "refs/heads/" that git could take
# for the beginning of a full name would also be searched for by its end.
_REF = re.compile(rb"refs/(?:heads|tags)/(?!refs/).+")
_COMMAND = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) ([0-9a-f]{40}|[0-9a-f]{64}) ([^\n]+)\n")


class Update(NamedTuple):
    old: str
    new: str
    ref: str

    @property
    def deletes(self) -> bool:
        return not self.new.strip("0")

    @property
    def creates(self) -> bool:
        return not self.old.strip("0")


def main() -> int:
    try:
        mirror.unlimit_unpacking()
        refuse_signed_push()
        updates = read_updates()
        mirror.limit_memory(int(os.environ["GIT_GATE_SCAN_MIB"]))
        with a_place_among_the_scans():
            scanned = scan(updates)
        mirror.unlimit_memory()
        push_to_upstream(updates, scanned)
    except Refused as why:
        return refused(str(why))
    except MemoryError:
        return refused(f"its scan needs more memory than GIT_GATE_SCAN_MIB={os.environ['GIT_GATE_SCAN_MIB']} allows")
    except Exception as surprise:
        return refused(f"the gate itself failed: {type(surprise).__name__}: {surprise}")
    return 0


def refused(why: str) -> int:
    print(f"cannot accept this push: {why}", file=sys.stderr)
    return 1


# --- which refs ---


def read_updates() -> list[Update]:
    updates: list[Update] = []
    for line in sys.stdin.buffer:
        command = _COMMAND.fullmatch(line)
        if command is None:
            raise Refused("git has passed on a line that is not OLD NEW REF")
        old, new, ref = command.groups()
        check_name(ref)
        updates.append(Update(old.decode(), new.decode(), os.fsdecode(ref)))
    return updates


def check_name(ref: bytes) -> None:
    shown = ref.decode(errors="backslashreplace")
    if not ref.startswith((b"refs/heads/", b"refs/tags/")):
        raise Refused(f"{shown} is neither a branch nor a tag")
    if not _REF.fullmatch(ref) or subprocess.run(["git", "check-ref-format", ref]).returncode != 0:
        raise Refused(f"{shown} is not a valid name of a branch or tag")


def check_permission(update: Update) -> None:
    """The list of mirrors says what agents may neither delete nor force-push."""
    name = update.ref.removeprefix("refs/heads/").removeprefix("refs/")
    forbidden = []
    if update.deletes:
        forbidden = [("no-delete", "gate.noDelete", "deleted")]
    elif not update.creates and not is_ancestor(update.old, update.new):
        forbidden = [("no-force-push", "gate.noForcePush", "force-pushed")]
    for option, setting, what in forbidden:
        patterns = git("config", "--default", _PROTECTED, setting)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(",")):
            raise Refused(f"{name} may not be {what}: the list of mirrors has {option}={patterns}")


def is_ancestor(old: str, new: str) -> bool:
    done = subprocess.run(["git", "merge-base", "--is-ancestor", old, new], capture_output=True)
    if done.returncode not in (0, 1):
        raise Refused(f"git cannot compare {old} with {new}: {done.stderr.decode(errors='replace').strip()}")
    return done.returncode == 0


def refuse_signed_push() -> None:
    """receive-pack has already written the signed text, whatever it says, to the mirror, from where anyone could fetch
    it by its id: remove it, unless the mirror had it before."""
    certificate = os.environ.get("GIT_PUSH_CERT")
    if not certificate:
        return
    file = Path("objects", certificate[:2], certificate[2:])
    if file.exists():
        with mirror.turn_at_upstream():  # without a limit of time, which would leave it there
            if certificate not in git("rev-list", "--objects", "--no-object-names", "--all").split():
                file.unlink()
    raise Refused("it is signed, which the gate does not support; push without --signed")


# --- the scan ---


def scan(updates: list[Update]) -> set[str]:
    """Return the objects that were scanned."""
    if git("rev-parse", "--is-shallow-repository") != "false" or os.environ.get("GIT_SHALLOW_FILE"):
        raise Refused("it is shallow, so its history cannot be scanned; run git fetch --unshallow and push again")
    kept = [update for update in updates if not update.deletes]
    wanted = "".join(f"{update.new}\n{update.new}^{{}}\n" for update in kept)
    kinds = git("cat-file", "--batch-check=%(objecttype)", stdin=wanted).splitlines()
    for update, kind, kind_at_the_end in zip(kept, kinds[::2], kinds[1::2], strict=True):
        if kind_at_the_end != "commit":
            raise Refused(f"{update.ref} is a {kind_at_the_end}, not a commit, and would not be scanned")
        if kind != "commit" and not update.ref.startswith("refs/tags/"):
            raise Refused(f"{update.ref} is a {kind}, not a commit")
    for update in updates:
        check_permission(update)
    return git_gate_scan.scan([os.fsencode(update.ref) for update in updates], [update.new for update in kept])


@contextlib.contextmanager
def a_place_among_the_scans() -> Iterator[None]:
    """For the block, which takes GIT_GATE_SCAN_SECONDS at most, one of GIT_GATE_SCANS files; waiting takes as long."""
    seconds, places = int(os.environ["GIT_GATE_SCAN_SECONDS"]), int(os.environ["GIT_GATE_SCANS"])
    root = os.environ["GIT_GATE_ROOT"]
    with contextlib.ExitStack() as files:
        try:
            with mirror.time_limit(seconds), mirror.opened(f"{root}/.scan-next") as queue:
                fcntl.flock(files.enter_context(mirror.opened(f"{root}/.scan-of-{peer()}")), fcntl.LOCK_EX)
                fcntl.flock(queue, fcntl.LOCK_EX)
                candidates = [files.enter_context(mirror.opened(f"{root}/.scan-{place}")) for place in range(places)]
                while not any(is_locked_now(candidate) for candidate in candidates):
                    time.sleep(0.05)
        except TimeoutError:
            raise Refused(f"GIT_GATE_SCANS={places} other scans kept it waiting for {seconds} s; try again") from None
        try:
            with mirror.time_limit(seconds):
                yield
        except TimeoutError:
            raise Refused(f"the scan took longer than GIT_GATE_SCAN_SECONDS={seconds} allows") from None


def peer() -> int:
    """One of 64 numbers for the pusher's network: who pushes much waits for itself before it waits with others."""
    return zlib.crc32(os.environ.get("GIT_GATE_PEER", "").encode()) % 64


def is_locked_now(candidate: int) -> bool:
    try:
        fcntl.flock(candidate, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- upstream ---


def push_to_upstream(updates: list[Update], scanned: set[str]) -> None:
    """Move the refs at upstream as they will be moved here, all or none, and only from where they are here."""
    leases = [f"--force-with-lease={update.ref}:{'' if update.creates else update.old}" for update in updates]
    # A bare name could also be that of a branch; no name of a branch has a "^".
    refspecs = [f"{'' if update.deletes else update.new + '^{object}'}:{update.ref}" for update in updates]
    options = ("--atomic", "--no-progress", "--no-follow-tags", "--recurse-submodules=no")
    # Quarantine forbids changing refs of this repository; git takes a local path, too, for this repository.
    environment = environment_without("GIT_QUARANTINE_PATH", "GIT_PROTOCOL")
    upstream = git("config", "gate.upstream")
    command = ("push", *options, *leases, "--", upstream, *refspecs)
    seconds = int(os.environ["GIT_GATE_PUSH_SECONDS"])
    with turn_at_upstream() as lock:
        bring_up_to_date(lock, seconds, upstream)
        refuse_what_has_moved(updates)
        refuse_what_was_not_scanned(updates, scanned)
        keep_locked_until_the_mirror_has_moved()
        done = mirror.at_upstream(lock, seconds, command, stdout=sys.stderr, environment=environment)
    if mirror.was_too_slow(done):
        limit = f"GIT_GATE_PUSH_SECONDS={seconds}"
        raise Refused(f"upstream took longer than {limit} allows; fetch to see whether it took the push after all")
    if done.returncode != 0:
        raise Refused("upstream did not take it; its reason is above")


def environment_without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def bring_up_to_date(lock: int, seconds: int, upstream: str) -> None:
    """The mirror may be old: a client can ask for its refs long before it pushes, and by HTTP it need not ask at all.

    What is fetched belongs to the mirror even if the push is refused, so it must not go into the push's quarantine.
    """
    quarantine = ("GIT_QUARANTINE_PATH", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES")
    environment = environment_without(*quarantine, "GIT_PROTOCOL")
    done = mirror.at_upstream(lock, seconds, mirror.fetch(upstream), stdout=sys.stderr, environment=environment)
    if mirror.was_too_slow(done):
        raise Refused(f"upstream took longer than GIT_GATE_PUSH_SECONDS={seconds} allows; try again")
    if done.returncode != 0:
        raise Refused("the mirror cannot be brought up to date; git's reason is above")


def refuse_what_has_moved(updates: list[Update]) -> None:
    """If upstream has moved a ref to where the push moves it, it accepts the push, and receive-pack then fails."""
    command = ["git", "for-each-ref", "--format=%(refname) %(objectname)"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    here = dict(os.fsdecode(line).rsplit(" ", 1) for line in listed.splitlines())
    for update in updates:
        if here.get(update.ref, "") != ("" if update.creates else update.old):
            raise Refused("a branch or tag that it updates has moved at upstream; fetch and push again")


def refuse_what_was_not_scanned(updates: list[Update], scanned: set[str]) -> None:
    """The scan leaves out what the mirror's refs reach. If upstream has removed some of that since, for example a
    secret, the push would bring it back.

    The mirror is now as upstream was a moment ago. What upstream removes after that moment needs no check: it is as if
    the push had come first.
    """
    kept = sorted({update.new for update in updates if not update.deletes})
    unknown = set(git_gate_scan.new_to_the_mirror(kept)) - scanned
    if unknown:
        raise Refused(
            f"upstream no longer has {len(unknown)} of its objects, which were not scanned; fetch and push again"
        )


@contextlib.contextmanager
def turn_at_upstream() -> Iterator[int]:
    seconds = int(os.environ["GIT_GATE_PUSH_SECONDS"])
    with contextlib.ExitStack() as turn:
        try:
            with mirror.time_limit(seconds):
                lock = turn.enter_context(mirror.turn_at_upstream())
        except TimeoutError:
            limit = f"GIT_GATE_PUSH_SECONDS={seconds}"
            raise Refused(f"other pushes kept the mirror busy for longer than {limit} allows; try again") from None
        yield lock


def keep_locked_until_the_mirror_has_moved() -> None:
    """Keep a fetch from coming between upstream's yes and the mirror's own ref update.

    That update comes after this program's exit: a child keeps the lock until receive-pack, the parent, is gone. If
    that has to wait for its client, the refs have moved long before.
    """
    receive_pack, gate = os.pidfd_open(os.getppid()), os.pidfd_open(os.getpid())
    if os.fork() == 0:
        for stream in (0, 1, 2):  # git reads the hook's stderr until the last copy is closed
            os.close(stream)
        select.select([gate], [], [])
        select.select([receive_pack], [], [], _SETTLE_SECONDS)
        os._exit(0)
    os.close(receive_pack)
    os.close(gate)


if __name__ == "__main__":
    sys.exit(main())
