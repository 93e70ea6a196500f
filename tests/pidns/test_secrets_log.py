"""The log: what a daemon prints comes out whole, under its own name and without secrets, however it is cut."""

from __future__ import annotations

import base64
import json
import os
import re
import unittest
from collections.abc import Sequence
from signal import SIGKILL, SIGTERM, SIGUSR1, SIGUSR2
from typing import Any, ClassVar

from tests.pidns.hardened import OTHER, OWNER, PREFIXES, TOKEN, AttackTestCase, HardenedBundle, attacker
from tests.pidns.harness import PATIENCE, PYTHON, SLEEP, Bundle, NamespaceTestCase, daemon, shell

HALF = len(TOKEN) // 2
RESTART_EGRESS = {"USR1": {"restart": "egress"}}


class CutTest(AttackTestCase):
    """A secret that is cut in two where PID 1 ends a line of its own accord."""

    TWO_WRITES = """
import os, signal, time
token, half = os.environb[b"EGRESS_TOKEN_CANARY"], len(os.environb[b"EGRESS_TOKEN_CANARY"]) // 2
os.write(1, b"my token is " + token[:half])
open("/run/place/written", "w")
while not os.path.exists("/run/place/go"):
    time.sleep(0.005)
os.write(1, token[half:] + b" and that was it\\n")
signal.pause()
"""

    def after_a_check_in_between(self, says: str, without: str | Sequence[str] = ()) -> bytes:
        """The log, when a check of egress ended while egress was in the middle of a line."""
        talk = [attacker("")[0], "-I", "-S", "-c", self.TWO_WRITES]
        rows = [daemon("egress", *talk, user=OWNER, check=shell(f"{says}; exit 1"))]
        with HardenedBundle(rows, signals=RESTART_EGRESS, without=without) as bundle:
            bundle.until((bundle.place / "written").exists, PATIENCE, "half of the token is written")
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"sidecar-init: cannot restart egress: ")
            bundle.catch_up()
            (bundle.place / "go").touch()
            bundle.wait_for(b"and that was it\n")
            return bundle.log

    def test_the_end_of_a_check_does_not_cut_the_line_of_its_daemon(self) -> None:
        log = self.after_a_check_in_between("echo 'not today'")
        self.assertIn(b"[egress] my token is [redacted EGRESS_TOKEN_CANARY] and that was it\n", log)
        self.assertIn(b"not today\n", log)

    def test_control_with_its_lines_in_common_the_token_comes_out_in_halves(self) -> None:
        log = self.after_a_check_in_between(":", ("own-lines-of-a-check", "redaction-of-beginnings"))
        self.assertIn(TOKEN[:HALF].encode() + b"\n", log)
        self.assertIn(b"[egress] " + TOKEN[HALF:].encode(), log)

    def after_an_exit_in_the_middle(self, size: int, without: str = "") -> tuple[bytes, bytes]:
        """The log and the state, when egress has ended after so many bytes of its token."""
        talk = shell(f'printf "last words: %.{size}s" "$EGRESS_TOKEN_CANARY"')
        rows = [daemon("egress", *talk, user=OWNER), daemon("web", *SLEEP)]
        with HardenedBundle(rows, without=without or ()) as bundle:
            bundle.wait_for_event("exited", "egress")
            bundle.catch_up()
            names = ("status.json", "events.jsonl")
            return bundle.log, b"".join((bundle.state / name).read_bytes() for name in names)

    def test_an_exit_in_the_middle_of_a_write_does_not_log_the_beginning_of_a_secret(self) -> None:
        for size in (6, HALF, len(TOKEN) - 1):
            log, state = self.after_an_exit_in_the_middle(size)
            self.assertNotIn(TOKEN[:6].encode(), log + state, size)
            self.assertIn(b"last words: [redacted EGRESS_TOKEN_CANARY", log)

    def test_control_five_bytes_are_too_few_to_tell_a_secret_by(self) -> None:
        log, _ = self.after_an_exit_in_the_middle(5)
        self.assertIn(b"last words: " + TOKEN[:5].encode(), log)

    def test_control_without_that_rule_it_does(self) -> None:
        log, _ = self.after_an_exit_in_the_middle(len(TOKEN) - 1, "redaction-of-beginnings")
        self.assertIn(TOKEN[:-1].encode(), log)

    def after_an_exit_between_the_halves(self, without: str = "") -> bytes:
        """The log, when egress exited after half its token, and a process that it left behind wrote the rest.

        That has a session of its own, so that the exit of its parent does not end it.
        """
        grandchild = ": >/run/place/up; until [ -e /run/place/go ]; do sleep 0.01; done; "
        grandchild += 'echo "${EGRESS_TOKEN_CANARY#"$0"}"; echo and that was it'
        talk = f"""
            half=$(printf "%.{HALF}s" "$EGRESS_TOKEN_CANARY")
            printf %s "$half"
            setsid sh -c '{grandchild}' "$half" &
            until [ -e /run/place/up ]; do sleep 0.01; done
        """
        rows = [daemon("egress", *shell(talk), user=OWNER), daemon("web", *SLEEP)]
        with HardenedBundle(rows, without=without or ()) as bundle:
            bundle.wait_for_event("exited", "egress")
            bundle.catch_up()
            (bundle.place / "go").touch()
            bundle.wait_for(b"[egress] and that was it\n")
            return bundle.log

    def test_what_a_process_writes_after_the_exit_does_not_end_a_secret_in_the_clear(self) -> None:
        log = self.after_an_exit_between_the_halves()
        self.assertNotIn(TOKEN[:6].encode(), log)
        self.assertNotIn(TOKEN[HALF:].encode(), log)

    def test_control_if_the_cut_is_forgotten_it_does(self) -> None:
        self.assertIn(TOKEN[HALF:].encode(), self.after_an_exit_between_the_halves("redaction-of-rests"))

    def test_a_restart_in_the_middle_of_a_write_does_not_log_either_half(self) -> None:
        talk = [attacker("")[0], "-I", "-S", "-c", self.TWO_WRITES]
        rows = [daemon("egress", *talk, user=OWNER)]
        with HardenedBundle(rows, signals=RESTART_EGRESS) as bundle:
            bundle.until((bundle.place / "written").exists, PATIENCE, "half of the token is written")
            bundle.signal(SIGUSR1)
            bundle.wait_for_event("restarted", "egress")
            (bundle.place / "go").touch()
            bundle.wait_for(b"and that was it\n")
            self.assertNotIn(TOKEN[:HALF].encode(), bundle.log)
            self.assertNotIn(TOKEN[HALF:].encode(), bundle.log)

    FLOOD = """
import os, signal
for _ in range(64):
    os.write(1, b"y" * 65535 + b"\\n")
signal.pause()
"""
    # The pipe outlives a process. If it is not empty at a start, the log took no more of what earlier ones had written.
    SEVERAL_LIVES = """
import array, fcntl, os, signal, termios
token, half = os.environb[b"EGRESS_TOKEN_CANARY"], len(os.environb[b"EGRESS_TOKEN_CANARY"]) // 2
left = array.array("i", [0])
fcntl.ioctl(1, termios.FIONREAD, left)
if os.path.exists("/run/place/written"):
    os.write(1, b"and more\\n")
    open("/run/place/said", "w")
    signal.pause()
elif left[0]:
    os.write(1, b"my token is " + token[:half])
    open("/run/place/written", "w")
else:
    while not os.path.exists("/run/place/go"):
        signal.sigtimedwait([], 0.005)
    os.write(1, b"x" * 7999 + b"\\n")
"""

    def of_two_processes_while_the_log_is_full(self, without: str = "") -> bytes:
        """The log, when a process ended in the middle of its token, and the next one wrote, before either was read."""
        rows = [
            daemon("flood", attacker("")[0], "-I", "-S", "-c", self.FLOOD, user=OTHER),
            daemon("egress", attacker("")[0], "-I", "-S", "-c", self.SEVERAL_LIVES, user=OWNER, restart="always"),
        ]
        quick = {"_BACKOFF_FIRST": 0.001, "_BACKOFF_LAST": 0.002}
        with HardenedBundle(rows, tunables=quick, without=without or ()) as bundle:
            bundle.reader.pause()
            bundle.wait_for_stall("65535")
            (bundle.place / "go").touch()
            bundle.until((bundle.place / "said").exists, PATIENCE, "both have written")
            bundle.reader.resume()
            bundle.wait_for(b"and more\n")
            return bundle.log

    def test_a_process_does_not_continue_the_line_that_another_cut_in_the_middle_of_a_secret(self) -> None:
        log = self.of_two_processes_while_the_log_is_full()
        self.assertIn(b"[egress] my token is [redacted EGRESS_TOKEN_CANARY]\n", log)
        self.assertIn(b"[egress] and more\n", log)
        self.assertNotIn(TOKEN[:6].encode(), log)

    def test_control_not_told_apart_the_line_has_the_half(self) -> None:
        log = self.of_two_processes_while_the_log_is_full("lines-of-one-process")
        self.assertIn(b"[egress] my token is " + TOKEN[:HALF].encode() + b"and more\n", log)

    def test_redaction_does_not_make_lines_longer_than_64_kib(self) -> None:
        """The name of a secret may be longer than the secret, and any line of a read may be the long one."""
        name = "EGRESS_TOKEN_" + "X" * 60
        talk = (
            'import os, sys; t = os.environ[sys.argv[1]]; os.write(1, ("short\\n" + t * 9000 + "\\nshort\\n").encode())'
        )
        rows = [daemon("egress", *PYTHON, "-c", talk, name)]
        with Bundle(rows, secrets=PREFIXES, env={name: "abcdefg"}) as bundle:
            bundle.exit()
            lines = bundle.log.split(b"\n")
            self.assertNotIn(b"abcdefg", bundle.log)
            self.assertGreaterEqual(bundle.log.count(b"[redacted"), 8900)
            self.assertLessEqual(max(map(len, lines)), 65536 + len("[egress] "))
            self.assertIn(b"[egress] short\n", bundle.log)


class OracleTest(AttackTestCase):
    """Redaction must not tell a daemon anything about a secret that it was not given.

    That a whole value is redacted can be seen by any daemon, in the events, and tells it what it knew. That a part
    is, would give the secret away character by character.
    """

    def learned(self, without: str = "") -> str:
        hostile = attacker("oracle.py", "sesame-", "0123456789abcdef")
        rows = [
            daemon("egress", *SLEEP, user=OWNER),
            daemon("hostile", *hostile, user=OTHER, restart="always"),
        ]
        quick = {"_BACKOFF_FIRST": 0.001, "_BACKOFF_LAST": 0.002}
        with HardenedBundle(rows, tunables=quick, without=without or ()) as bundle:
            bundle.until(
                lambda: len(bundle.found("known")) >= len("sesame-123"), 6 * PATIENCE, "some characters, or none"
            )
            return bundle.found("known").decode()

    def test_no_daemon_learns_a_secret_from_what_is_redacted_at_the_end_of_its_own_output(self) -> None:
        self.assertEqual(self.learned(), "sesame- done")

    def test_control_with_beginnings_redacted_for_all_it_does(self) -> None:
        learned = self.learned("redaction-of-beginnings-for-owners")  # or more, by the time that we look
        self.assertEqual(learned[: len("sesame-123")], TOKEN[: len("sesame-123")])


class StateOfTheOwnerTest(AttackTestCase):
    """Every daemon can read the state, and no daemon the log: what the owner of a secret prints must not get there.

    Redaction finds a secret as it is, not one that is encoded, as in the header of a request that a traceback shows.
    """

    def told(self, without: str = "", token: str = '"$EGRESS_TOKEN_CANARY"', **how: Any) -> tuple[bytes, bytes]:
        """The state, when the owner has said an encoded token in its last words and in its check; and the log."""
        say = f"printf %s {token} | base64 -w0; echo"
        row = daemon("egress", *shell(f"{say}; sleep 1000"), check=shell(f"{say}; exit 1"), restart="always", **how)
        setup = f"mkdir /run/keys; printf %s {TOKEN} >/run/keys/token"
        rows = [{"user": OWNER, **row}, daemon("web", *SLEEP)]
        more: dict[str, Any] = {"env": {}} if how else {}
        with HardenedBundle(rows, signals=RESTART_EGRESS, setup=setup, without=without or (), **more) as bundle:
            bundle.wait_for(base64.b64encode(TOKEN.encode()))
            bundle.signal(SIGUSR1)
            bundle.wait_for(b"cannot restart egress: ")
            os.kill(bundle.host_pid(bundle.daemon("egress")["pid"]), SIGKILL)
            bundle.wait_for_event("exited", "egress")
            bundle.catch_up()
            names = ("status.json", "events.jsonl")
            return b"".join((bundle.state / name).read_bytes() for name in names), bundle.log

    def test_the_last_lines_of_a_daemon_that_owns_a_secret_are_in_the_log_alone(self) -> None:
        state, log = self.told()
        encoded = base64.b64encode(TOKEN.encode())
        self.assertIn(encoded, log)
        self.assertNotIn(encoded, state)

    def test_so_it_is_for_a_secret_that_is_too_short_to_be_redacted(self) -> None:
        rows = [daemon("egress", *shell('echo "pin $EGRESS_TOKEN_PIN"'), user=OWNER), daemon("web", *SLEEP)]
        with HardenedBundle(rows, env={"EGRESS_TOKEN_PIN": "12345"}) as bundle:
            bundle.wait_for(b"[egress] pin 12345\n")
            bundle.wait_for_event("exited", "egress")
            self.assertNotIn("pin", (bundle.state / "events.jsonl").read_text())

    FILES: ClassVar[dict[str, Any]] = {"token": '"$(cat $KEY)"', "files": {"KEY": "/run/keys/token"}}

    def test_so_are_those_of_a_daemon_that_has_files(self) -> None:
        state, log = self.told(**self.FILES)
        encoded = base64.b64encode(TOKEN.encode())
        self.assertIn(encoded, log)
        self.assertNotIn(encoded, state)

    def test_control_as_for_other_daemons_they_are_in_the_state(self) -> None:
        for how in ({}, self.FILES):
            state, _ = self.told("no-last-lines-of-owners", **how)
            self.assertEqual(state.count(base64.b64encode(TOKEN.encode())), 3, "status, refused and exited")

    def said(self, without: str = "") -> bytes:
        """The log and the state, when a daemon has said a secret that the table itself gives it."""
        say = shell('echo "it is $EGRESS_TOKEN_TABLE"')
        rows = [daemon("egress", *say, user=OWNER, env={"EGRESS_TOKEN_TABLE": TOKEN}), daemon("web", *SLEEP)]
        with HardenedBundle(rows, env={}, without=without or ()) as bundle:
            bundle.wait_for_event("exited", "egress")
            bundle.catch_up()
            return bundle.log + (bundle.state / "events.jsonl").read_bytes()

    def test_a_secret_that_the_table_itself_sets_is_redacted(self) -> None:
        said = self.said()
        self.assertIn(b"[egress] it is [redacted EGRESS_TOKEN_TABLE]\n", said)
        self.assertNotIn(TOKEN.encode(), said)
        self.assertIn(b'"last_lines": []', said)

    def test_control_looked_for_in_the_environment_alone_it_is_not(self) -> None:
        self.assertEqual(self.said("redaction-of-the-table").count(TOKEN.encode()), 2, "log and event")


class FixedWordsTest(NamespaceTestCase):
    """A secret may be a word that the supervisor uses itself."""

    WORDS = (
        "running",
        "egress",
        "daemons",
        "restarts",
        "status",
        "signals",
        "restart",
        "started_at",
        "forward",
        "ready",
    )

    def bundle(self, without: str = "") -> Bundle:
        env = {f"EGRESS_TOKEN_{number}": word for number, word in enumerate(self.WORDS)}
        rows = [
            daemon("egress", *shell("trap : HUP; echo running; while :; do sleep 0.05; done")),
            daemon("pipelock", *SLEEP),
        ]
        bundle = self.enterContext(Bundle(rows, secrets=PREFIXES, env=env, without=without or ()))
        bundle.wait_for(b"[egress] [redacted EGRESS_TOKEN_0]\n")
        return bundle

    def test_such_a_secret_breaks_neither_the_state_nor_a_command(self) -> None:
        bundle = self.bundle()
        bundle.wait_for_state("pipelock", "running")
        for command in (("health",), ("status",), ("apply", "egress"), ("apply", "pipelock"), ("events",)):
            done = bundle.command(*command)
            self.assertEqual((done.returncode, done.stderr), (0, ""), command)
        status = json.loads(bundle.command("status", "--json").stdout)
        self.assertEqual([row["name"] for row in status["daemons"]], ["egress", "pipelock"])
        self.assertEqual({row["state"] for row in status["daemons"]}, {"running"})

    def test_control_redacted_when_it_is_json_already_the_state_is_of_no_use(self) -> None:
        bundle = self.bundle("redaction-before-encoding")
        bundle.until((bundle.state / "status.json").exists, PATIENCE, "a status")
        self.assertEqual(bundle.command("health").returncode, 1)


LONG = f"ghp_{'0123456789abcdef' * 8}"  # longer than what it is replaced by
TOKENS = {
    "EGRESS_TOKEN_CANARY": TOKEN,
    "EGRESS_TOKEN_LONG": LONG,
    "EGRESS_TOKEN_USER": "my-user",
    "EGRESS_TOKEN_BASIC": "my-user:my-password",
    "EGRESS_TOKEN_INNER": TOKEN[10:24],
    "EGRESS_TOKEN_KEY": "-----BEGIN KEY-----\nfirst-line-of-it\r\nsecond-line-of-it\n",
    "EGRESS_TOKEN_SHORT": "12345",
}
VALUES = [TOKEN, LONG, "my-user", "my-password", TOKEN[10:24], "first-line-of-it", "second-line-of-it"]


TALK = """
import os, sys, time
tokens = {key: value.encode() for key, value in os.environ.items() if key.startswith("EGRESS_TOKEN_")}
long, token = tokens["EGRESS_TOKEN_LONG"], tokens["EGRESS_TOKEN_CANARY"]
def say(*parts):
    for part in parts:
        os.write(1, part)
        time.sleep(0.02)  # so that they are likely to be read one by one; redacted they are in any case
say(token[:9], token[9:], b"\\n")
say(b"several: " + b" ".join(tokens.values()), b"\\n")
say(long * 3 + b"x" * (65536 - 3 * len(long)), b"y" * 140 + long[:-3], long[-3:], b"\\n")
os.write(2, b"on the other one: " + token + b"\\n")
say(b"last words: " + token)
sys.exit(7)
"""


class TellingLogTest(NamespaceTestCase):
    def told(self, without: str | Sequence[str] = ()) -> tuple[bytes, bytes, str]:
        """The log, the state files and what the commands print, of an owner that tells everything."""
        rows = [
            daemon("egress", *PYTHON, "-c", TALK),
            daemon("wrong", f"/no/such/{TOKEN}"),
            daemon("argument", "sleep", "1000", TOKEN),
            daemon("last", *SLEEP),
        ]
        env = {**TOKENS, "BOT_BOTTLE_SIDECAR_DAEMONS": f"egress,wrong,last,{TOKEN}"}
        with Bundle(rows, secrets=PREFIXES, env=env, without=without) as bundle:
            bundle.wait_for_event("exited", "egress")
            table = bundle.argv[-1]
            asked = [("plan", "--table", table), ("status",), ("status", "--json"), ("events",), ("events", "--json")]
            printed = "".join(done.stdout + done.stderr for done in (bundle.command(*one) for one in asked))
            names = ("status.json", "events.jsonl")
            state = b"".join((bundle.state / name).read_bytes() for name in names)
            bundle.signal(SIGTERM)
            bundle.exit()
            return bundle.log, state, printed

    def test_the_log_the_state_and_the_commands_hold_no_token(self) -> None:
        log, state, printed = self.told()
        for value in VALUES:
            self.assertNotIn(value.encode(), log)
            self.assertNotIn(value.encode(), log.replace(b"\n[egress] ", b""))
            self.assertNotIn(value.encode(), state)
            self.assertNotIn(value, printed)
        for text in (log, state, printed.encode()):
            self.assertIn(b"[redacted EGRESS_TOKEN_CANARY]", text)
        self.assertIn(b"last words: [redacted EGRESS_TOKEN_CANARY]", log)

    def test_control_without_redaction_all_of_them_hold_it(self) -> None:
        for text in self.told("redaction"):
            self.assertIn(TOKEN.encode(), text if isinstance(text, bytes) else text.encode())


class ForgingTest(NamespaceTestCase):
    """What a hostile daemon can print, and how it comes out."""

    def log_of(self, text: bytes) -> bytes:
        say = ["-c", "import os, sys; os.write(1, bytes.fromhex(sys.argv[1]))", text.hex()]
        with Bundle([daemon("bad", *PYTHON, *say), daemon("good", *shell("sleep 0.1; echo real"))]) as bundle:
            bundle.exit()
            return bundle.log

    def test_lines_of_others_come_out_under_its_own_name(self) -> None:
        log = self.log_of(b"[good] forged\nsidecar-init: exit 0\n\n[bad] [good] x\nno newline")
        for line in (b"[good] forged", b"sidecar-init: exit 0", b"", b"[bad] [good] x", b"no newline"):
            self.assertIn(b"[bad] " + line + b"\n", log)
        self.assertEqual(re.findall(rb"^\[good\].*", log, re.MULTILINE), [b"[good] real"])
        self.assertEqual(re.findall(rb"^(?!\[bad\] |\[good\] |sidecar-init: ).*\n", log, re.MULTILINE), [])

    def test_control_characters_pass_unchanged_and_stay_on_their_line(self) -> None:
        """Documented in SECURITY.md: the bytes are the daemon's, and a terminal may be steered by them."""
        text = b"\x1b[2K\x1b[1G[good] forged \r[good] forged \0 \x08\x08 \x0b \x0c \xc2\x85 \xe2\x80\xa8 \xff"
        self.assertIn(b"[bad] " + text + b"\n", self.log_of(text))

    def test_the_commands_do_not_pass_control_characters_on(self) -> None:
        say = ["-c", r"import sys; print('\033[2K[good] forged \x08\x9b'); sys.exit(3)"]
        rows = [daemon("bad", *PYTHON, *say), daemon("odd", *SLEEP, user="a\033[2Kb\nc"), daemon("good", *SLEEP)]
        with Bundle(rows) as bundle:
            bundle.wait_for_event("exited", "bad")
            bundle.wait_for_event("failed", "odd")
            for asked in (("events",), ("events", "--json"), ("status",), ("plan", "--table", bundle.argv[-1])):
                with self.subTest(asked[0]):
                    done = bundle.command(*asked)
                    self.assertIn(r"\u001b[2K" if asked[0] != "status" else "failed", done.stdout)
                    self.assertEqual(re.findall(r"[^\x20-\x7e\n]", done.stdout + done.stderr), [])

    def test_names_that_would_forge_are_refused(self) -> None:
        for name in ("a] sidecar-init", "a\nb", "a\r", "a b", "[a]", "", "a\x1b[2K", "\u0430", "x" * 65, "a,b", "a/b"):
            with self.subTest(name), Bundle([daemon(name, *SLEEP)]) as bundle:
                self.assertEqual(bundle.exit(), 2)
                self.assertEqual(bundle.log, b"")
                self.assertEqual(len(bundle.stderr.splitlines()), 1)
        with Bundle([daemon("twice", *SLEEP), daemon("twice", *SLEEP)]) as bundle:
            self.assertEqual(bundle.exit(), 2)

    def test_a_pipe_in_the_place_of_a_state_file_does_not_stop_pid_1(self) -> None:
        """Every daemon of root may put one there."""
        for name in ("events.jsonl", "status.json.new"):
            with self.subTest(name), Bundle([daemon("good", *SLEEP)]) as bundle:
                bundle.wait_for_state("good", "running")
                (bundle.state / name).unlink(missing_ok=True)
                os.mkfifo(bundle.state / name)
                bundle.signal(SIGUSR2)
                bundle.signal(SIGTERM)
                self.assertEqual(bundle.exit(), 143)


if __name__ == "__main__":
    unittest.main()
