"""Bad input: mutated tables and environments, odd names, odd bytes. Each is refused with one line, or runs."""

from __future__ import annotations

import contextlib
import io
import marshal
import os
import random
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGTERM

import sidecar_init
from tests.faults.support import Bundle, FaultTestCase, seed
from tests.pidns.harness import PYTHON, SLEEP, daemon, shell
from tests.support import MODULE, wait_until

PARSED, REAL = 10_000, 300
TABLE = b"""\
[[daemon]]
name = "web"
argv = ["sleep", "1000"]
restart = "always"
port = 8000
after = ["db"]

[[daemon]]
name = "db"
argv = ["true", "--x=\\u00e4", ""]
check = ["true"]
user = "nobody"

[[daemon]]
name = "job"
argv = ["sleep", "0.1"]
oneshot = true
cwd = "/tmp"
env = { MODE = "fast", "B" = "" }
prefix = false

[[daemon]]
name = "app"
argv = ["sleep", "1000"]
after = ["job"]
ready = ["true"]
essential = true
stop = { signal = "QUIT", to = "leader", grace = 0.5 }

[secrets]
"API_KEY_" = "web"

[signals]
HUP = { forward = "web" }
USR1 = { restart = "db" }
"""
PIECES = [
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\r", b"\n", b'"', b"'", b"[", b"]]", b"{", b"}", b"=", b".", b",", b"#"),
    *(b"\\", b"-1", b"0", b"65536", b"1e400", b"nan", b"true", b"1979-05-27T07:32:00Z", b"99999999999999999999"),
    *(b'""', b"[]", b"{}", b'"""', b"\\u0000", b"\\ud800", b"name", b"argv", b"after", b"daemon", b"check", b"port"),
    *(b"oneshot", b"env", b"stop", b'"KILL"', b"-0.0", b"-inf", b"inf", b"false", b'"group"', b"grace", b"MODE"),
    *(b"[" * 5000, b"9" * 5000, b"a." * 2000 + b"b = 1", b"x" * 10_000, b"[[daemon]]", b'"web"'),
    "\u20ac\u2028\U0001f600".encode(),
]
NAMES = ["web", "db", "", " ", ",", ", ,", "web,web", "\udcff", "w\u00e4b", "\n", "x" * 10_000, "web, db", "-", "../x"]


class MutatedTableTest(FaultTestCase):
    def test_10_000_mutated_tables_are_refused_in_one_line_or_make_a_sound_table(self) -> None:
        dice, refused = random.Random(seed()), 0
        path = self.scratch() / "table.toml"
        for number in range(PARSED):
            text = _mutated(dice)
            path.write_bytes(text)
            with self.subTest(number=number, seed=seed(), text=text[:2000]), _shipped_table_afterwards():
                try:
                    sidecar_init._use_table(str(path))
                except sidecar_init._Refusal:
                    refused += 1
                    self.assertIs(sidecar_init._DAEMONS, SHIPPED[0], "nothing is changed by a table that is refused")
                else:
                    sidecar_init._load_table(marshal.loads(marshal.dumps(sidecar_init._TABLE)))
                    self._is_sound()
        self.assertGreater(refused, PARSED // 10)
        self.assertLess(refused, PARSED)

    def _is_sound(self) -> None:
        names = [spec.name for spec in sidecar_init._DAEMONS]
        self.assertTrue(names)
        self.assertEqual(len(set(names)), len(names))
        for spec in sidecar_init._DAEMONS:
            self.assertRegex(spec.name, r"\A[A-Za-z0-9._-]{1,64}\Z")
            self.assertTrue(spec.argv and spec.argv[0] and all(isinstance(word, str) for word in spec.argv))
            self.assertLessEqual(set(spec.after), set(names) - {spec.name})
            self.assertFalse(spec.oneshot and (spec.port or spec.ready))
            self.assertTrue(spec.stop_grace is None or 0 <= spec.stop_grace <= 86400)
            self.assertIn(spec.stop_to, ("group", "leader"))
            self.assertTrue(spec.cwd is None or spec.cwd.startswith("/"))
            self.assertTrue(all(isinstance(one, str) and "\0" not in one for pair in spec.env.items() for one in pair))
            foreign = {key for key in spec.env if key not in sidecar_init._env_for_daemon(spec.name, spec.env)}
            self.assertEqual(foreign, set(), "no variable that belongs to another daemon")
        for owners in sidecar_init._SECRETS.values():
            self.assertTrue(owners)
            self.assertLessEqual(set(owners), set(names))
        self.assertLessEqual({target for _, target in sidecar_init._SIGNALS.values()}, set(names))

    def test_10_000_odd_environments_are_sorted_without_a_traceback(self) -> None:
        dice = random.Random(seed())
        for number in range(PARSED):
            env = _environment(dice)
            with self.subTest(number=number, seed=seed(), env=env):
                selected = [spec.name for spec in sidecar_init._selected_daemons(env)]
                self.assertLessEqual(set(selected), {spec.name for spec in sidecar_init._DAEMONS})
                for name in ("egress", "pipelock"):
                    kept = sidecar_init._env_for_daemon(name, env)
                    missing = {key for key in env if key not in kept}
                    wanted = {key for key in env if key.startswith("EGRESS_TOKEN_")} if name != "egress" else set()
                    self.assertEqual(missing, wanted)
                raw = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
                sidecar_init._Secrets(raw, sidecar_init._SECRETS).redact(b"a line\n")

    def test_300_mutated_tables_and_environments_with_the_real_program(self) -> None:
        """Each ends with 2 and one line, or runs until TERM. It finds no programs but true and sleep."""
        dice = random.Random(seed())
        programs = self.scratch()
        for name in ("true", "sleep"):
            (programs / name).symlink_to(f"/bin/{name}")
        cases = [(_mutated(dice), _environment(dice)) for _ in range(REAL)]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda case: self._one_real(programs, *case), cases))
        for (text, env), (code, stdout, stderr) in zip(cases, results, strict=True):
            with self.subTest(seed=seed(), text=text[:2000], env=env):
                if code == 2:
                    self.assertRegex(stderr, rb"\Acannot use table [^\n]+\n\Z")
                    self.assertEqual(stdout, b"")
                else:
                    self.assertEqual(stderr, b"")
                    # Where all its daemons have ended so has it, and as a usual process a late TERM strikes it.
                    self.assertIn(code, (0, 1, 126, 127, 137, 143, -SIGTERM))
        self.assertEqual({code == 2 for code, _, _ in results}, {True, False})

    def _one_real(self, programs: Path, text: bytes, env: dict[str, str]) -> tuple[int, bytes, bytes]:
        with tempfile.TemporaryDirectory(prefix="sidecar-init-test-") as directory:
            path = Path(directory) / "table.toml"
            path.write_bytes(text)
            environment = env | {"PATH": str(programs), "BOT_BOTTLE_SIDECAR_STATE_DIR": directory}
            command = [*PYTHON, str(MODULE), "--table", str(path)]
            kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
            with subprocess.Popen(command, env=environment, **kept) as process:  # type: ignore[call-overload]
                status = Path(directory) / "status.json"
                wait_until(lambda: status.exists() or process.poll() is not None, 30, "it runs, or has ended")
                if process.poll() is None:
                    process.send_signal(SIGTERM)
                stdout, stderr = process.communicate(timeout=30)
                return process.returncode, stdout, stderr


class OddNamesTest(FaultTestCase):
    def test_names_with_spaces_newlines_10_000_characters_or_no_ascii_are_refused_in_one_line(self) -> None:
        for name in ("two words", "two\nlines", "x" * 10_000, "\u00e4", "", "\x1b[2J", "a,b", "a]b", "\u0661"):
            with self.subTest(name=name[:20]):
                self._is_refused(Bundle([daemon(name, "true")]), "name")

    def test_an_after_of_1000_links_is_followed(self) -> None:
        # The last in the table starts first, so that no pass over the table finds two of them ready.
        links = [daemon(f"d{n}", "true", after=[f"d{n + 1}"]) for n in range(999)]
        many = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))  # noqa: E731
        patience = {"_AFTER_SECONDS": 100.0}
        with Bundle([*links, daemon("d999", "true")], before_exec=many, state_dir="", tunables=patience) as bundle:
            self.assertEqual(bundle.exit(100), 0)
            starts = [line.split()[0] for line in bundle.own_lines() if " started (pid " in line]
            self.assertEqual(starts, [f"d{n}" for n in range(999, -1, -1)])

    def test_an_after_of_1000_links_that_runs_in_a_circle_is_refused_in_one_line(self) -> None:
        links = [daemon(f"d{n}", "true", after=[f"d{(n + 1) % 1000}"]) for n in range(1000)]
        self._is_refused(Bundle(links), "after")

    def test_invalid_utf8_in_environment_and_argv_passes_unchanged_to_the_daemons(self) -> None:
        # Not by a shell: dash drops names that it could not write itself.
        show = "import os; os.write(1, b'|'.join(os.environb[b'ODD' + end] for end in (b'', b'\\xc3')) + b'\\n')"
        bundle = Bundle([daemon("a", *PYTHON, "-c", show)], env={"ODD": "\udcff\udcfe", "ODD\udcc3": "\n\udc80"})
        odd = Path(bundle.argv[-1]).with_name("t\udcff.toml")
        bundle.argv[-1] = str(Path(bundle.argv[-1]).rename(odd))
        with bundle:
            self.assertEqual(bundle.exit(), 0)
            self.assertEqual(bundle.log.count(b"[a] \xff\xfe|\n[a] \x80\n"), 1)

    def test_invalid_utf8_in_the_selection_is_one_warning(self) -> None:
        with Bundle([daemon("a", "true")], env={"BOT_BOTTLE_SIDECAR_DAEMONS": "a,\udcff\n\x1b[2J"}) as bundle:
            self.assertEqual(bundle.exit(), 0)
            warnings = [line for line in bundle.own_lines() if line.startswith("there is no daemon ")]
            self.assertEqual(len(warnings), 1)
            self.assertNotIn(b"\x1b", bundle.log)

    def test_a_table_file_with_an_odd_or_empty_name_is_refused_in_one_line(self) -> None:
        for name in ("/tmp/no\udcff\nsuch", "", "/", "/proc/self/mem", "x" * 5000):
            bundle = Bundle([daemon("a", "true")])
            bundle.argv[-1] = name
            with self.subTest(name=name[:20]):
                self._is_refused(bundle, "cannot use table")

    def test_an_odd_command_line_argument_is_2(self) -> None:
        for argument in ("\udcff\udcfe", "-\n", "", "x" * 10_000):
            done = subprocess.run([*PYTHON, str(MODULE), argument], capture_output=True)
            self.assertEqual(done.returncode, 2, argument[:20])
            self.assertNotIn(b"Traceback", done.stderr)

    def test_a_program_with_a_long_odd_path_that_cannot_be_executed_ends_no_other(self) -> None:
        for part in ("\u00e4" * 100, "\udcff" * 200):
            folder = self.scratch() / "/".join([part] * 8)
            folder.mkdir(parents=True)
            program = folder / "program"
            program.write_text("no program\n")  # execve: ENOEXEC, and its name is longer than a kilobyte
            program.chmod(0o755)
            folder_of_it = str(folder)
            odd = shell("true")
            with contextlib.suppress(UnicodeEncodeError):
                str(program).encode()
                odd = [str(program)]
            daemons = [daemon("odd", *odd), daemon("found", "program"), daemon("b", *SLEEP)]
            with Bundle(daemons, env={"PATH": f"/bin:/usr/bin:{folder_of_it}"}) as bundle:
                bundle.wait_for(b"cannot start found: cannot execute program")
                bundle.wait_for_state("b", "running")
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 126)

    def _is_refused(self, bundle: Bundle, word: str) -> None:
        with bundle:
            self.assertEqual(bundle.exit(), 2)
            self.assertRegex(bundle.stderr, r"\Acannot use table [^\n]*\n\Z")
            self.assertIn(word, bundle.stderr)
            self.assertEqual(bundle.log, b"")


SHIPPED = sidecar_init._DAEMONS, sidecar_init._SECRETS, sidecar_init._SIGNALS


@contextlib.contextmanager
def _shipped_table_afterwards() -> Iterator[None]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sidecar_init._DAEMONS, sidecar_init._SECRETS, sidecar_init._SIGNALS = SHIPPED


def _mutated(dice: random.Random) -> bytes:
    """The table with a few wounds: bytes changed, cut out, doubled, swapped, or replaced by something nasty."""
    text = bytearray(TABLE)
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        start = dice.randrange(len(text) + 1)
        end = min(len(text), start + dice.choice((0, 1, 1, 2, 5, 30)))
        kind = dice.randrange(6)
        if kind == 0:
            text[start:end] = dice.randbytes(end - start)
        elif kind == 1:
            del text[start:end]
        elif kind == 2:
            text[start:start] = text[start:end]
        elif kind == 3:
            text[start:end] = dice.choice(PIECES)
        elif kind == 4:
            lines = text.split(b"\n")
            dice.shuffle(lines)
            text = bytearray(b"\n".join(lines))
        else:
            words = [b"web", b"db", b'"always"', b"8000", b'["db"]', b"forward", b"HUP", b'["true"]', b'"nobody"']
            text = bytearray(bytes(text).replace(dice.choice(words), dice.choice(PIECES + words), 1))
    return bytes(text)


def _environment(dice: random.Random) -> dict[str, str]:
    keys = ["BOT_BOTTLE_SIDECAR_DAEMONS", "CLAUDE_BOTTLE_SIDECAR_DAEMONS", "BOT_BOTTLE_SIDECAR_RESTART"]
    keys += ["EGRESS_TOKEN_", "EGRESS_TOKEN_0", "EGRESS_TOKEN_\udcff", "API_KEY_X", "egress_token_1", "\udcff", "LANG"]
    return {
        key: dice.choice(NAMES) + dice.choice(["", ",", "never", dice.choice(NAMES)])
        for key in dice.sample(keys, dice.randrange(len(keys)))
    }
