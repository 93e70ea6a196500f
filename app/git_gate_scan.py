"""What a push would add, read by gitleaks: the scan of git_gate_pre_receive.py.

Nothing that arrived may stay unread: every object in the quarantine is either reachable from a new ref, and then
scanned as what it is (commits and tags as they are, trees by their names, files by the lines that they add), or the
mirror has it already. Anything else is a refusal, and so is every doubt about gitleaks' having read all of it.

gitleaks reads twice. First, by `gitleaks stdin`, all of the above as plain text; then the same commits by
`gitleaks git`, which knows the rules that go by a file's name, but passes over binary files and the paths that its
default configuration allows (images, lock files, vendored trees, any gitleaks.toml).
"""

from __future__ import annotations

import bisect
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

_LEAKS_FOUND = 42  # gitleaks' own default, 1, is also its code for a fatal error
_LONGEST_SECRET = 1 << 14  # an RSA key of 16384 bits, as PEM
_CONTEXT_LINES = 400
_SHOWN = 200
_PIECE = 1 << 16

# gitleaks reads a stream in chunks. One ends at the first empty line after some 100 kB, or 25,000 bytes later.
_LONGEST_BLOCK = 24_500
_LONGEST_PART = 1 << 10

# How what is new is shown: each merge against each of its parents.
_LOG = ("-m", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none")

_A_NAME = "the name of a file or directory"
_NO_MEMORY = re.compile(r"out of memory|cannot allocate memory|malloc failed|calloc failed|over limit", re.IGNORECASE)
_MODES = {b"100644", b"100755", b"100664", b"120000", b"40000", b"160000"}


class Refused(Exception):
    """Says to the pusher why nothing was changed."""


class NewObjects(NamedTuple):
    """What is reachable from the new refs and from no ref of the mirror; `new_files`: what else the mirror lacks."""

    commits: list[str]
    tags: list[str]
    trees: list[str]
    new_files: set[str]


def scan(refs: Iterable[bytes], new_tips: Iterable[str]) -> set[str]:
    """Refuse a push of these refs that would move some of them to these objects, or return the objects that it read."""
    tips = sorted(set(new_tips))
    reachable = new_to_the_mirror(tips)
    new = new_objects(tips, reachable)
    print(f"scanning {len(new.commits)} new commit(s) for secrets", file=sys.stderr, flush=True)
    findings = scan_text(refs, new, tips)
    if new.commits and not findings:
        findings = scan_diffs(tips)
    if in_names := [finding for finding in findings if _A_NAME in finding]:
        findings = in_names  # the others would show the name
    if findings:
        different = list(dict.fromkeys(findings))
        more = [f"and {len(different) - _SHOWN} more"] if len(different) > _SHOWN else []
        raise Refused("\n  ".join(["it contains secrets; remove them from its commits", *different[:_SHOWN], *more]))
    return set(reachable)


# --- what is new ---


def new_to_the_mirror(tips: Iterable[str]) -> list[str]:
    """The objects that these reach and no ref of the mirror does."""
    revisions = "\n".join(tips)
    if not revisions:
        return []
    return git("rev-list", "--objects", "--no-object-names", "--stdin", "--not", "--all", stdin=revisions).split()


def new_objects(tips: list[str], reachable: list[str]) -> NewObjects:
    if not tips:
        return NewObjects([], [], [], set())
    quarantine = os.environ.get("GIT_QUARANTINE_PATH")
    if not quarantine:
        raise Refused("git has not kept its objects apart from the mirror's")
    everything = ("cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)")
    arrived = set(git(*everything, store=quarantine).split())
    refuse_what_is_not_reachable(arrived.difference(reachable))
    return sorted_by_kind(reachable, arrived)


def refuse_what_is_not_reachable(surplus: set[str]) -> None:
    """Such an object would stay in the mirror, where anyone can fetch it by its id. A pack may repeat what the mirror
    has, as the base of a delta."""
    if surplus:
        known = git("cat-file", "--batch-check", stdin="\n".join(surplus), store=os.path.abspath("objects"))
        unknown = [line.split()[0] for line in known.splitlines() if line.endswith(" missing")]
        if unknown:
            raise Refused(
                f"{len(unknown)} of its objects belong to no branch or tag that it updates, such as {unknown[0]}"
            )


def sorted_by_kind(reachable: list[str], arrived: set[str]) -> NewObjects:
    """The objects by what they are, after a look at their sizes."""
    names: dict[str, list[str]] = {"commit": [], "tag": [], "tree": [], "blob": []}
    largest, most_lines = int(os.environ["GIT_GATE_OBJECT_MIB"]) << 20, int(os.environ["GIT_GATE_FILE_LINES"])
    may_have_too_many_lines = []
    format = "--batch-check=%(objectname) %(objecttype) %(objectsize)"
    for line in git("cat-file", "--buffer", format, stdin="\n".join(reachable)).splitlines():
        name, kind, size = line.split()
        names[kind].append(name)
        if name in arrived and int(size) > largest:
            limit = f"GIT_GATE_OBJECT_MIB={largest >> 20}"
            raise Refused(
                f"{kind} {name} has {size} bytes, more than {limit} allows; git log --find-object shows where"
            )
        if name in arrived and kind == "blob" and int(size) > most_lines:
            may_have_too_many_lines.append(name)
    for name, _, content in objects(may_have_too_many_lines):
        if (lines := content.count(b"\n")) > most_lines:
            limit = f"GIT_GATE_FILE_LINES={most_lines}"
            raise Refused(f"blob {name} has {lines} lines, more than {limit} allows; git log --find-object shows where")
    return NewObjects(names["commit"], names["tag"], names["tree"], arrived.intersection(names["blob"]))


def objects(names: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Name, kind and content of the objects as they are: `git log` would leave out what stands behind a NUL."""
    if not names:
        return
    with contextlib.ExitStack() as stack:
        wanted = stack.enter_context(lines_to_read(names))
        command = ["git", "cat-file", "--batch", "--buffer"]
        process = stack.enter_context(running(command, stdin=wanted, stdout=subprocess.PIPE))
        assert process.stdout is not None
        for name in names:
            header = process.stdout.readline().decode().split()
            if len(header) != 3 or header[0] != name:
                raise Refused(f"git cannot show object {name}")
            content = process.stdout.read(int(header[2]))
            process.stdout.read(1)
            yield name, header[1], content


def entry_names(tree: bytes, id_size: int) -> Iterator[bytes]:
    """The names in a tree object: "MODE NAME\\0" and the id in binary, again and again."""
    at = 0
    while at < len(tree):
        space, end = tree.index(b" ", at), tree.index(b"\0", at)
        if tree[at:space] not in _MODES:
            raise Refused("a file in it has a mode that git does not know")
        yield tree[space + 1 : end]
        at = end + 1 + id_size


# --- gitleaks ---


def scan_text(refs: Iterable[bytes], new: NewObjects, tips: list[str]) -> list[str]:
    """What `gitleaks stdin` finds in refs, tags, commit objects, names and changed lines, binary files included."""
    with contextlib.ExitStack() as stack:
        report, log = (stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(2))
        scanner = stack.enter_context(running(gitleaks("stdin"), stdin=subprocess.PIPE, stdout=report, stderr=log))
        assert scanner.stdin is not None
        text = TextFeed(scanner.stdin)
        with contextlib.suppress(BrokenPipeError):  # gitleaks has exited: its status and log say why
            feed_everything(refs, new, tips, text)
            scanner.stdin.close()
        code = scanner.wait()
        report.seek(0)
        log.seek(0)
        said = log.read()
        leaks = trusted_report(code, report.read(), said)
        if f" INF scanned ~{text.size} bytes " not in said:
            raise Refused(f"gitleaks did not read all of the {text.size} bytes it was given")
    changed = [leak for leak in leaks if text.is_new(leak["StartLine"], leak["EndLine"])]
    return [f"{text.place(leak['StartLine'])}: {rule(leak)}" for leak in changed]


def feed_everything(refs: Iterable[bytes], new: NewObjects, tips: list[str], text: TextFeed) -> None:
    for ref in refs:
        text.section("a ref or tag")
        text.write(ref)
    for name, kind, content in objects(new.tags + new.commits):
        text.section("a ref or tag" if kind == "tag" else f"commit {name[:12]}, its message or headers")
        for line in io.BytesIO(content):
            text.write(line)
    names: set[bytes] = set()
    text.section(_A_NAME)
    for tree, _, content in objects(new.trees):
        for entry in entry_names(content, len(tree) // 2):
            if entry not in names:
                names.add(entry)
                text.write(entry + b"\n")
    if new.commits:
        options = (*_LOG, "-p", f"-U{_CONTEXT_LINES}", "--full-index", "--text", "--no-color", "--format=commit %H")
        command = ["git", "log", *options, "--stdin", "--not", "--all"]
        with lines_to_read(tips) as revisions, tempfile.TemporaryFile("w+", errors="replace") as said:
            with running(command, stdin=revisions, stdout=subprocess.PIPE, stderr=said) as history:
                assert history.stdout is not None
                changes = Changes(text)
                changes.feed(history.stdout)
                status = history.wait()
            said.seek(0)
            complaint = said.read()
        refuse_for_memory(complaint)
        if status != 0 or changes.commits != set(new.commits) or not new.new_files <= changes.files:
            raise Refused(f"git did not show all that is new: {complaint.strip() or 'it says nothing'}")


def scan_diffs(tips: list[str]) -> list[str]:
    """What `gitleaks git` finds in the text files of the new commits."""
    # gitleaks does not count commits in which it finds nothing to read: empty ones, modes, deleted or binary files.
    options = [*_LOG, "--diff-filter=d"]
    expected, commit = set(), ""
    shown = ("--numstat", "--no-color", "--format=commit:%H", "--stdin", "--not", "--all")
    for line in git("log", *options, *shown, stdin="\n".join(tips)).splitlines():
        if line.startswith("commit:"):
            commit = line
        elif re.match(r"(?!0\t0\t)\d+\t\d+\t", line):
            expected.add(commit)
    command = gitleaks("git", f"--log-opts={' '.join([*options, *tips, '--not', '--all'])}", ".")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    report = trusted_report(done.returncode, done.stdout, done.stderr)
    # An invalid range is "0 commits scanned" and "no leaks found" to gitleaks.
    scanned = re.search(r" INF (\d+) commits scanned\.$", done.stderr, re.MULTILINE)
    if scanned is None or int(scanned[1]) != len(expected):
        raise Refused(f"gitleaks did not read all of the {len(expected)} commits that change text")
    return [f"commit {leak['Commit'][:12]}, {leak['File']}, line {leak['StartLine']}: {rule(leak)}" for leak in report]


def gitleaks(mode: str, *arguments: str) -> list[str]:
    """The command; nothing that was pushed (.gitleaks.toml, .gitleaksignore, gitleaks:allow) has a say in it."""
    program, config = os.environ["GIT_GATE_GITLEAKS"], os.environ["GIT_GATE_GITLEAKS_CONFIG"]
    fixed = f"--config={config} --gitleaks-ignore-path=/dev/null --ignore-gitleaks-allow --exit-code={_LEAKS_FOUND}"
    output = "--redact --no-banner --no-color --report-format=json --report-path=-"
    return [program, mode, *fixed.split(), *output.split(), *arguments]


def trusted_report(code: int, report: str, log: str) -> list[dict[str, Any]]:
    """The findings. Anything in gitleaks' exit status, log or report that does not fit together is a refusal."""
    trouble = re.search(r"^\S+ (?:ERR|FTL|PNC) .*", log, re.MULTILINE)
    if trouble or code not in (0, _LEAKS_FOUND):
        refuse_for_memory(log)
        raise Refused(f"gitleaks failed with code {code}: {trouble[0] if trouble else log.strip()[-300:]}")
    leaks: list[dict[str, Any]] = json.loads(report)
    if bool(leaks) != (code == _LEAKS_FOUND):
        raise Refused(f"gitleaks ended with code {code} and reports {len(leaks)} finding(s)")
    return leaks


def rule(leak: dict[str, Any]) -> str:
    return f"{leak['RuleID']} (REDACTED)"


# --- the text that gitleaks gets ---


class Section:
    """A stretch of text from one place; `new`: where it differs from what was there before, or None if all is new.

    A new line N is the position 2N, and a line that is gone from before line N is 2N-1.
    """

    __slots__ = ("new", "place")

    def __init__(self, place: str, new: array[int] | None) -> None:
        self.place, self.new = place, new


class TextFeed:
    """Hands text to gitleaks and remembers where each line of it came from.

    No secret may be cut in two where gitleaks cuts, and it cuts at empty lines. So those of the text are left out, and
    a long text gets some of the feed's own, each followed once more by the text before it.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self.size = 0
        self._out = out
        self._line = 1  # of what gitleaks reads
        self._block_size = 0
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_size = 0
        self._its_line = 1  # where the text has it
        self._expected_line = 0
        self._at_line_start = True
        self._sections: list[Section] = []
        # From a line of what gitleaks reads: which section, and which of its lines.
        self._starts, self._section_at, self._line_at = array("Q"), array("Q"), array("Q")

    def section(self, place: str, first_line: int = 0, new: array[int] | None = None) -> None:
        """What follows comes from this place, and there from this line on, if it has lines."""
        self._sections.append(Section(place, new))
        self._break()
        self._recent.clear()
        self._recent_size = 0
        self._its_line = first_line
        self._at_line_start = True

    def write(self, line: bytes) -> None:
        """A line or a part of one."""
        line = line.replace(b"\0", b"")  # makes UTF-16 of ASCII readable, which some editors write
        if self._at_line_start and not line.strip():  # an empty line, or the first part of what may be one
            self._its_line += line.endswith(b"\n")
            return
        for start in range(0, len(line), _LONGEST_PART):
            self._write_part(line[start : start + _LONGEST_PART])
        self._at_line_start = line.endswith(b"\n")

    def is_new(self, first: int, last: int) -> bool:
        """Whether a change touches these lines of what gitleaks has read."""
        (section, start), (last_section, end) = self._find(first), self._find(last)
        if section.new is None or section is not last_section:
            return True
        index = bisect.bisect_left(section.new, 2 * start)
        return index < len(section.new) and section.new[index] <= 2 * end

    def place(self, line: int) -> str:
        section, its_line = self._find(line)
        return section.place if section.new is None else f"{section.place}, line {its_line}"

    def _find(self, line: int) -> tuple[Section, int]:
        index = max(bisect.bisect_right(self._starts, line) - 1, 0)
        return self._sections[self._section_at[index]], self._line_at[index] + line - self._starts[index]

    def _write_part(self, part: bytes) -> None:
        if self._block_size + len(part) > _LONGEST_BLOCK:
            self._break()
            for its_line, again in self._recent:
                self._emit(its_line, again)
        self._emit(self._its_line, part)
        self._recent.append((self._its_line, part))
        self._recent_size += len(part)
        while self._recent_size - len(self._recent[0][1]) >= _LONGEST_SECRET:
            self._recent_size -= len(self._recent.popleft()[1])
        self._its_line += part.count(b"\n")

    def _break(self) -> None:
        self._out.write(b"\n\n")
        self.size += 2
        self._line += 2
        self._block_size = 0
        self._expected_line = -1

    def _emit(self, its_line: int, part: bytes) -> None:
        if its_line != self._expected_line:
            self._starts.append(self._line)
            self._section_at.append(len(self._sections) - 1)
            self._line_at.append(its_line)
        lines = part.count(b"\n")
        self._out.write(part)
        self.size += len(part)
        self._line += lines
        self._block_size += len(part)
        self._expected_line = its_line + lines


class Changes:
    """Feeds a `git log -p` whose only header is "commit NAME": names, lines that change, and what stands around them.

    What stands around them is read because a change can complete a secret, one half of which was there before.
    """

    def __init__(self, text: TextFeed) -> None:
        self.commits: set[str] = set()
        self.files: set[str] = set()
        self._text = text
        self._commit = self._place = self._name = ""
        self._line = 0
        self._new = array("Q")
        self._before = bytearray()  # the end of the unchanged text since the last change, which one may follow
        self._after = 0  # how much of the unchanged text after a change is still to be fed

    def feed(self, log: IO[bytes]) -> None:
        """In a hunk each line begins with a sign, so nothing in a file can pass for a header. A long line comes in
        pieces, and only its first tells what it is."""
        at_start, kind = True, b""
        while line := log.readline(_PIECE):
            is_start, at_start = at_start, line.endswith(b"\n")
            if is_start:
                kind = line[:1]
                if kind not in b" +-":
                    self._header(line)
                elif kind == b"-" and self._place:
                    self._change(2 * self._line - 1)
                elif kind == b"+" and self._place:
                    self._change(2 * self._line)
                line = line[1:]
            if self._place and kind == b"+":
                self._text.write(line)
                self._line += line.count(b"\n")
            elif self._place and kind == b" ":
                self._unchanged(line)
                self._line += line.count(b"\n")
            elif not self._place and kind == b"d":
                self._text.write(line)

    def _header(self, line: bytes) -> None:
        if line.startswith(b"@@ "):  # -OLD,COUNT +NEW,COUNT @@
            self._place = f"commit {self._commit[:12]}, {self._name}"
            self._line = max(int(line.split()[2].partition(b",")[0]), 1)
            self._new = array("Q")
            self._before.clear()
            self._after = 0
        elif line.startswith(b"commit "):
            self._place = ""
            self._commit = line[7:].decode().strip()
            self.commits.add(self._commit)
        elif line.startswith(b"diff --git "):
            self._place = ""
            self._name = line.rpartition(b" b/")[2].decode(errors="replace").strip()
            self._text.section(f"commit {self._commit[:12]}, {_A_NAME}")
        elif line.startswith(b"index "):
            self.files.add(line.split()[1].partition(b"..")[2].decode())

    def _change(self, position: int) -> None:
        if self._after <= 0:
            self._text.section(self._place, self._line - self._before.count(b"\n"), self._new)
            for line in io.BytesIO(self._before):
                self._text.write(line)
        self._before.clear()
        self._after = _LONGEST_SECRET
        self._new.append(position)

    def _unchanged(self, line: bytes) -> None:
        if self._after > 0:
            self._text.write(line[: self._after])
            self._after -= len(line)
        self._before += line
        del self._before[: max(len(self._before) - _LONGEST_SECRET, 0)]


# --- processes ---


def git(*arguments: str, stdin: str = "", store: str | None = None) -> str:
    """What git says; with `store`, of the objects in that directory alone."""
    environment = dict(os.environ)
    if store:
        environment["GIT_OBJECT_DIRECTORY"] = store
        environment.pop("GIT_ALTERNATE_OBJECT_DIRECTORIES", None)
    done = subprocess.run(["git", *arguments], input=stdin.encode(), env=environment, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        refuse_for_memory(said)
        raise Refused(f"git {arguments[0]} failed: {said}")
    return done.stdout.decode(errors="replace").rstrip("\n")


def refuse_for_memory(said: str) -> None:
    if _NO_MEMORY.search(said):
        limit = f"GIT_GATE_SCAN_MIB={os.environ['GIT_GATE_SCAN_MIB']}"
        raise Refused(f"its scan needs more memory than {limit} allows; push less at a time")


@contextlib.contextmanager
def lines_to_read(lines: Iterable[str]) -> Iterator[IO[str]]:
    with tempfile.TemporaryFile("w+") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.seek(0)
        yield file


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which does not outlive the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # of what is still buffered for it
                if process.stdin:
                    process.stdin.close()
