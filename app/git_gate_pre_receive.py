#!/usr/bin/env -S python3 -I
"""The gate: git receive-pack runs this, in the mirror, before it moves any ref.

It exits with 0 only after gitleaks has read all that the push would add, without a finding and without a doubt about
its having read it, and after upstream has taken every ref of the push at once. Every other way out is a refusal:
the mirror and upstream stay as they are, and the pusher is told why, without the secret.

gitleaks reads twice. First, by `gitleaks stdin`, all that the push adds and the messages and names around it, as plain
text; then the same commits by `gitleaks git`, which knows the rules that go by a file's name, but passes over binary
files and the paths that its default configuration allows (images, lock files, vendored trees, any gitleaks.toml).
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, NoReturn

_LEAKS_FOUND = 42  # gitleaks' own default, 1, is also its code for a fatal error
_LOCK_SECONDS = 60.0
_PIECE = 1 << 16
_NEW_TEXT_BETWEEN_BREAKS = 1 << 14
_OVERLAP = 1 << 12

# How what is new is shown: each merge against each of its parents.
_LOG = ("-m", "--no-ext-diff", "--no-textconv")

_NAME = "the name of a file"


class Refused(Exception):
    """Says to the pusher why nothing was changed."""


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
    signal.signal(signal.SIGALRM, _scan_took_too_long)
    try:
        updates = [Update(*os.fsdecode(line).split()) for line in sys.stdin.buffer]
        signal.alarm(int(os.environ["GIT_GATE_SCAN_SECONDS"]))
        scan(updates)
        signal.alarm(0)
        lock_until_the_mirror_has_moved()
        push_to_upstream(updates)
    except Refused as why:
        print(f"cannot accept this push: {why}", file=sys.stderr)
        return 1
    except Exception as surprise:
        kind = type(surprise).__name__
        print(f"cannot accept this push: the gate itself failed: {kind}: {surprise}", file=sys.stderr)
        return 1
    return 0


def scan(updates: list[Update]) -> None:
    if git("rev-parse", "--is-shallow-repository") != "false" or os.environ.get("GIT_SHALLOW_FILE"):
        raise Refused("it is shallow, so its history cannot be scanned; run git fetch --unshallow and push again")
    names = {}
    for update in updates:
        if not update.ref.startswith(("refs/heads/", "refs/tags/")):
            raise Refused(f"{update.ref} is neither a branch nor a tag")
        if not update.deletes:
            names[update.ref] = objects_above_commit(update)
    revisions = [*sorted({update.new for update in updates if not update.deletes}), "--not", "--all"]
    commits = git("rev-list", *revisions).split() if names else []
    print(f"scanning {len(commits)} new commit(s) for secrets", file=sys.stderr, flush=True)
    findings = scan_text(names, commits, revisions) if names else []
    if commits and not findings:
        findings = scan_diffs(revisions)
    if in_names := [finding for finding in findings if _NAME in finding]:
        findings = in_names  # the others would show the name
    if findings:
        raise Refused("it holds secrets; take them out of its commits\n  " + "\n  ".join(dict.fromkeys(findings)))


def objects_above_commit(update: Update) -> list[str]:
    """The names of the annotated tags between a ref and its commit; a ref to anything but a commit is refused."""
    tags, name = [], update.new
    while (kind := git("cat-file", "-t", name)) == "tag" and update.ref.startswith("refs/tags/"):
        tags.append(name)
        name = git("cat-file", "tag", name).split(maxsplit=2)[1]  # "object NAME\n"
    if kind != "commit":
        raise Refused(f"{update.ref} is a {kind}, not a commit, and would not be scanned")
    return tags


def scan_diffs(revisions: list[str]) -> list[str]:
    """What `gitleaks git` finds in the text files of the new commits."""
    # gitleaks does not count commits in which it finds nothing to read: empty ones, modes, deleted or binary files.
    options = [*_LOG, "--diff-filter=d"]
    expected, commit = set(), ""
    for line in git("log", *options, "--numstat", "--no-color", "--format=commit:%H", *revisions).splitlines():
        if line.startswith("commit:"):
            commit = line
        elif re.match(r"(?!0\t0\t)\d+\t\d+\t", line):
            expected.add(commit)
    command = gitleaks("git", f"--log-opts={' '.join([*options, *revisions])}", ".")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    report = trusted_report(done.returncode, done.stdout, done.stderr)
    # An invalid range is "0 commits scanned" and "no leaks found" to gitleaks.
    scanned = re.search(r" INF (\d+) commits scanned\.$", done.stderr, re.MULTILINE)
    if scanned is None or int(scanned[1]) != len(expected):
        raise Refused(f"gitleaks did not read all of the {len(expected)} commits that change text")
    return [f"commit {leak['Commit'][:12]}, {leak['File']}, line {leak['StartLine']}: {rule(leak)}" for leak in report]


def scan_text(refs: dict[str, list[str]], commits: list[str], revisions: list[str]) -> list[str]:
    """What `gitleaks stdin` finds in refs, tags, commit objects, names and every added line, binary files included."""
    with contextlib.ExitStack() as stack:
        report, log = (stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(2))
        scanner = stack.enter_context(running(gitleaks("stdin"), stdin=subprocess.PIPE, stdout=report, stderr=log))
        assert scanner.stdin is not None
        text = TextFeed(scanner.stdin)
        with contextlib.suppress(BrokenPipeError):  # gitleaks has ended: its code and log say why
            for ref, tags in refs.items():
                text.section("a ref or tag")
                text.write(ref.encode(errors="surrogateescape"))
                for _, content in objects(tags):
                    text.section("a ref or tag")
                    text.write(content)
            for name, content in objects(commits):
                text.section(f"commit {name[:12]}, its message or headers")
                text.write(content)
            if commits:
                command = ["git", "log", *_LOG, "-p", "-U0", "--text", "--no-color", "--format=commit %H", *revisions]
                history = stack.enter_context(running(command, stdout=subprocess.PIPE))
                assert history.stdout is not None
                if feed_additions(history.stdout, text) != set(commits) or history.wait() != 0:
                    raise Refused("git did not show all commits that are new")
            scanner.stdin.close()
        code = scanner.wait()
        report.seek(0)
        log.seek(0)
        said = log.read()
        leaks = trusted_report(code, report.read(), said)
        if f" INF scanned ~{text.size} bytes " not in said:
            raise Refused(f"gitleaks did not read all of the {text.size} bytes it was given")
    return [f"{text.place(leak['StartLine'])}: {rule(leak)}" for leak in leaks]


class TextFeed:
    """Hands text to gitleaks and remembers where each line of it came from.

    gitleaks reads a stream in chunks that end at an empty line where one comes soon, and anywhere otherwise. Long text
    without one gets one, and what stood before it once more after it, so that no secret is cut in two.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self.size = 0
        self._out = out
        self._line = 1
        self._unbroken = b""
        self._starts: list[int] = []
        self._places: list[tuple[str, int | None]] = []

    def section(self, place: str, first_line: int | None = None) -> None:
        """What follows comes from this place, and there from this line on."""
        self._emit(b"\n\n")
        self._unbroken = b""
        self._starts.append(self._line)
        self._places.append((place, first_line))

    def write(self, text: bytes) -> None:
        text = text.replace(b"\0", b"")  # makes UTF-16 of ASCII readable, which some editors write
        for start in range(0, len(text), _OVERLAP):
            piece = text[start : start + _OVERLAP]
            self._emit(piece)
            self._unbroken += piece
            if len(self._unbroken) > _NEW_TEXT_BETWEEN_BREAKS:
                again = self._unbroken[-_OVERLAP:]
                place, line = self._place(self._line)
                self.section(place, None if line is None else line - again.count(b"\n"))
                self._emit(again)
                self._unbroken = again

    def place(self, line: int) -> str:
        place, its_line = self._place(line)
        return place if its_line is None else f"{place}, line {its_line}"

    def _place(self, line: int) -> tuple[str, int | None]:
        index = bisect.bisect_right(self._starts, line) - 1
        place, first_line = self._places[index]
        return place, None if first_line is None else first_line + line - self._starts[index]

    def _emit(self, text: bytes) -> None:
        self._out.write(text)
        self.size += len(text)
        self._line += text.count(b"\n")


def feed_additions(log: IO[bytes], text: TextFeed) -> set[str]:
    """Feed names and added lines of a `git log -p` whose only header is "commit NAME"; the commits it shows.

    In a hunk each line begins with a sign, so nothing in a file can pass for a header. A long line comes in pieces,
    and only its first tells what it is.
    """
    commits: set[str] = set()
    at_start, wanted, commit, name = True, True, "", ""
    while line := log.readline(_PIECE):
        if at_start:
            wanted = not line.startswith((b"-", b"@@ ", b"commit "))
            if line.startswith(b"commit "):
                commits.add(line[7:].decode().strip())
                commit = line[7:19].decode()
            elif line.startswith(b"diff --git "):
                name = line.rpartition(b" b/")[2].decode(errors="replace").strip()
                text.section(f"commit {commit}, {_NAME}")
            elif line.startswith(b"@@ "):  # -OLD,COUNT +NEW,COUNT @@
                text.section(f"commit {commit}, {name}", int(line.split()[2].partition(b",")[0]))
            elif line.startswith(b"+"):
                line = line[1:]
        if wanted:
            text.write(line)
        at_start = line.endswith(b"\n")
    return commits


def objects(names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The objects as they are: `git log` would leave out what stands behind a NUL."""
    command = ["git", "cat-file", "--batch"]
    done = subprocess.run(command, input="\n".join(names).encode(), capture_output=True, check=True)
    stream = io.BytesIO(done.stdout)
    for name in names:
        found, _, size = stream.readline().decode().split()
        if found != name:
            raise Refused(f"git shows {found} for {name}")
        yield name, stream.read(int(size))
        stream.read(1)


def gitleaks(mode: str, *arguments: str) -> list[str]:
    """The command; nothing that was pushed (.gitleaks.toml, .gitleaksignore, gitleaks:allow) has a say in it."""
    program, config = os.environ["GIT_GATE_GITLEAKS"], os.environ["GIT_GATE_GITLEAKS_CONFIG"]
    fixed = f"--config={config} --gitleaks-ignore-path=/dev/null --ignore-gitleaks-allow --exit-code={_LEAKS_FOUND}"
    output = "--redact --no-banner --no-color --report-format=json --report-path=-"
    return [program, mode, *fixed.split(), *output.split(), *arguments]


def trusted_report(code: int, report: str, log: str) -> list[dict[str, Any]]:
    """The findings. Anything in gitleaks' exit code, log or report that does not fit together is a refusal."""
    trouble = re.search(r"^\S+ (?:ERR|FTL|PNC) .*", log, re.MULTILINE)
    if trouble or code not in (0, _LEAKS_FOUND):
        raise Refused(f"gitleaks failed with code {code}: {trouble[0] if trouble else log.strip()[-300:]}")
    leaks: list[dict[str, Any]] = json.loads(report)
    if bool(leaks) != (code == _LEAKS_FOUND):
        raise Refused(f"gitleaks ended with code {code} and reports {len(leaks)} finding(s)")
    return leaks


def rule(leak: dict[str, Any]) -> str:
    return f"{leak['RuleID']} (REDACTED)"


def lock_until_the_mirror_has_moved() -> None:
    """Keep git_gate_access_hook.sh from fetching between upstream's yes and the mirror's own ref update.

    That update comes after this program's exit: a child keeps the lock until receive-pack, the parent, is gone.
    """
    lock = os.open("gate.lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Refused("another push or fetch has kept the mirror busy; try again") from None
            time.sleep(0.05)
    receive_pack = os.pidfd_open(os.getppid())
    if os.fork() == 0:
        for stream in (0, 1, 2):  # git reads the hook's stderr until everyone has closed it
            os.close(stream)
        select.select([receive_pack], [], [])
        os._exit(0)


def push_to_upstream(updates: list[Update]) -> None:
    """Move the refs at upstream as they will be moved here, all or none, and only from where they are here."""
    leases = [f"--force-with-lease={update.ref}:{'' if update.creates else update.old}" for update in updates]
    refspecs = [f"{'' if update.deletes else update.new}:{update.ref}" for update in updates]
    # Quarantine forbids changing refs of this repository; git takes a local path, too, for this repository.
    unwanted = ("GIT_QUARANTINE_PATH", "GIT_PROTOCOL")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    upstream = git("config", "gate.upstream")
    command = ["git", "push", "--atomic", "--no-progress", *leases, upstream, *refspecs]
    if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode != 0:
        raise Refused("upstream did not take it; its reason is above")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise Refused(f"git {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace").rstrip("\n")


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which does not outlive the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def _scan_took_too_long(*_: object) -> NoReturn:
    raise Refused(f"the scan took longer than {os.environ['GIT_GATE_SCAN_SECONDS']} s")


if __name__ == "__main__":
    sys.exit(main())
