"""Secrets in the log: a value never comes out, however it is split, nested or repeated."""

from __future__ import annotations

import os
import random
import unittest

import sidecar_init
from sidecar_init import _LINE_LIMIT, _READ_SIZE, _Lines
from tests.unit.support import secrets, written

TOKEN = b"ghp_0123456789abcdefghij0123456789abcdefghij"
A = b"[redacted EGRESS_TOKEN_A]"
B = b"[redacted EGRESS_TOKEN_B]"


def model(data: bytes, values: dict[bytes, bytes]) -> bytes:
    """Each stretch that values cover becomes the name of the longest that begins it; byte by byte."""
    out, end, position = b"", 0, 0
    while position < len(data):
        found = max((value for value in values if data.startswith(value, position)), key=len, default=b"")
        if found and position >= end:
            out += values[found]
        if found:
            end = max(end, position + len(found))
        if position >= end:
            out += data[position : position + 1]
        position += 1
    return out


class Redaction(unittest.TestCase):
    def test_without_secrets_the_data_is_not_even_copied(self) -> None:
        data = b"x" * 100
        self.assertIs(secrets().redact(data), data)

    def test_a_value_becomes_its_name(self) -> None:
        self.assertEqual(secrets(A=TOKEN).redact(b"token=" + TOKEN + b"!"), b"token=" + A + b"!")

    def test_every_occurrence_in_every_line_is_replaced(self) -> None:
        data = b"1 %s 2 %s\n3 %s\n" % (TOKEN, TOKEN, TOKEN)
        self.assertEqual(secrets(A=TOKEN).redact(data), b"1 %s 2 %s\n3 %s\n" % (A, A, A))

    def test_several_at_once_keep_their_names(self) -> None:
        both = secrets(A=TOKEN, B=b"another-secret")
        self.assertEqual(both.redact(b"another-secret " + TOKEN + b"another-secret"), B + b" " + A + B)

    def test_one_that_contains_another_hides_both(self) -> None:
        both = secrets(A=b"abcdefghij", B=b"cdefgh")
        self.assertEqual(both.redact(b"-abcdefghij-cdefgh-"), b"-" + A + b"-" + B + b"-")

    def test_overlapping_ones_leave_no_rest(self) -> None:
        both = secrets(A=b"abcdefgh", B=b"fghijklm")
        self.assertEqual(both.redact(b"-abcdefghijklm-"), b"-" + A + b"-")

    def test_one_that_overlaps_itself_leaves_no_rest(self) -> None:
        self.assertEqual(secrets(A=b"ababab").redact(b"-abababab-"), b"-" + A + b"-")

    def test_two_names_for_one_value_are_one(self) -> None:
        self.assertIn(secrets(A=TOKEN, B=TOKEN).redact(TOKEN), (A, B))

    def test_a_value_with_newlines_is_redacted_line_by_line(self) -> None:
        key = secrets(A=b"-----BEGIN\nsecret-line-1\nsecret-line-2\n-----END---\n")
        self.assertEqual(key.redact(b"x secret-line-2\n-----BEGIN\n"), b"x " + A + b"\n" + A + b"\n")

    def test_the_line_ends_and_outer_spaces_of_such_a_value_do_not_matter(self) -> None:
        key = secrets(A=b"-----BEGIN\nfirst-line\r\nsecond-line\n")
        self.assertEqual(key.redact(b"first-line\n  second-line \r\n"), A + b"\n  " + A + b" \r\n")

    def test_short_values_and_short_lines_of_values_are_left_alone(self) -> None:
        short = secrets(A=b"12345", B=b"abc\nlonger-line")
        self.assertEqual(short.redact(b"12345 abc longer-line"), b"12345 abc " + B)

    def test_six_bytes_are_long_enough(self) -> None:
        self.assertEqual(secrets(A=b"123456").redact(b"1234567"), A + b"7")

    def test_bytes_that_are_no_text_are_redacted_too(self) -> None:
        self.assertEqual(secrets(A=b"\xff\0\x80abc").redact(b"\xff\0\x80abc"), A)

    def test_variables_without_a_secret_prefix_are_no_secrets(self) -> None:
        none = sidecar_init._Secrets({b"HOME": b"/home/somebody"}, ["EGRESS_TOKEN_"])
        self.assertEqual(none.redact(b"/home/somebody"), b"/home/somebody")

    def test_random_values_in_random_text_are_redacted_as_the_model_says(self) -> None:
        for seed in range(300):
            choice = random.Random(seed)
            letters = b"ab" if seed % 2 else b"abcdef"
            chosen = {bytes(choice.choices(letters, k=choice.randint(6, 9))): n for n in range(choice.randint(1, 4))}
            names = {value: b"[redacted EGRESS_TOKEN_%d]" % n for value, n in chosen.items()}
            noise = [bytes(choice.choices(letters, k=choice.randint(0, 7))) for _ in range(9)]
            data = b"".join(part + choice.choice([b"", *chosen]) for part in noise)
            found = secrets(**{str(n): value for value, n in chosen.items()}).redact(data)
            self.assertEqual(found, model(data, names), f"seed {seed}")


class RedactionOfLines(unittest.TestCase):
    def logged(self, stream: bytes, sizes: list[int], **values: bytes) -> bytes:
        """The bytes that come out, with the breaks of long lines taken away again."""
        lines, out = _Lines("x", secrets(**values)), b""
        while stream:
            size = sizes.pop(0) if sizes else _READ_SIZE
            out += written(lines.feed(stream[:size]))
            stream = stream[size:]
        out += written(lines.finish())
        return out.replace(b"\n[x] ", b"").removeprefix(b"[x] ")

    def test_a_value_that_reads_split_anywhere_is_found(self) -> None:
        line = b"token " + TOKEN + b" end\n"
        for split in range(1, len(line)):
            self.assertEqual(self.logged(line, [split], A=TOKEN), b"token " + A + b" end\n", split)

    def test_a_value_that_comes_byte_by_byte_is_found(self) -> None:
        self.assertEqual(self.logged(TOKEN, [1] * len(TOKEN), A=TOKEN), A + b"\n")

    def test_a_value_across_the_break_of_a_long_line_is_found(self) -> None:
        for before in range(_LINE_LIMIT - len(TOKEN) - 2, _LINE_LIMIT + 3):
            line = b"." * before + TOKEN + b"." * 100 + b"\n"
            for size in (_READ_SIZE, before + 7, _LINE_LIMIT - 1):
                out = self.logged(line, [size], A=TOKEN)
                self.assertEqual(out, line.replace(TOKEN, A), (before, size))

    def test_values_that_shrink_a_long_line_do_not_uncover_the_one_at_its_break(self) -> None:
        whole = TOKEN * 3
        for before in range(_LINE_LIMIT, _LINE_LIMIT + len(TOKEN)):
            line = whole + b"." * (before - len(whole)) + TOKEN + b"\n"
            out = self.logged(line, [_READ_SIZE, len(TOKEN)], A=TOKEN)
            self.assertEqual(out, line.replace(TOKEN, A), before)

    def test_a_value_that_begins_a_longer_one_does_not_uncover_the_rest_of_it(self) -> None:
        user, login = b"my-user", b"my-user:my-password"
        for before in range(_LINE_LIMIT, _LINE_LIMIT + len(login)):
            for at in (len(user), len(login) - 4):
                out = self.logged(b"." * before + login + b"\n", [before + at], A=user, B=login)
                self.assertEqual(out, b"." * before + B + b"\n", (before, at))

    def test_a_long_line_of_nothing_but_values_is_all_redacted(self) -> None:
        out = self.logged(TOKEN * 10000, [], A=TOKEN)
        self.assertEqual(out, A * 10000 + b"\n")

    def test_random_long_lines_in_random_reads_are_redacted_as_whole_ones(self) -> None:
        values = {"A": TOKEN, "B": b"#" + b"0123456789" * 30 + b"#"}
        for seed in range(60):
            choice = random.Random(seed)
            parts = [b"." * choice.choice([0, 1, 100, 30000, choice.randrange(65536)]) for _ in range(8)]
            line = b"".join(part + choice.choice([TOKEN, values["B"]]) for part in parts) + b"\n"
            sizes = [choice.choice([65536, 65535, choice.randint(1, 65536)]) for _ in range(30)]
            expected = line.replace(TOKEN, A).replace(values["B"], B)
            self.assertEqual(self.logged(line, sizes, **values), expected, f"seed {seed}")

    def test_the_last_words_are_redacted(self) -> None:
        lines = _Lines("x", secrets(A=TOKEN))
        lines.feed(b"dying with " + TOKEN[:9])
        lines.feed(TOKEN[9:])
        lines.finish()
        self.assertEqual(lines.last_words, b"dying with " + A + b"\n")


class RedactionOfOwnLines(unittest.TestCase):
    def test_the_supervisors_own_lines_are_redacted(self) -> None:
        reader, writer = os.pipe()
        log = sidecar_init._Log(writer, secrets(A=TOKEN))
        log.say(f"cannot execute {TOKEN.decode()}")
        log.flush()
        self.assertEqual(os.read(reader, 1000), b"sidecar-init: cannot execute " + A + b"\n")
        for fd in (reader, writer, log.fd):
            os.close(fd)


if __name__ == "__main__":
    unittest.main()
