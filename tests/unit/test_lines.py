"""Framing: the bytes that a daemon writes come out as whole lines, each with its name, and nothing else changed."""

from __future__ import annotations

import os
import random
import re
import unittest

from sidecar_init import _LINE_LIMIT, _READ_SIZE, _Lines
from tests.unit.support import NO_SECRETS, written

PREFIX = b"[x] "


def model(stream: bytes) -> bytes:
    """What must come out, line by line and as simple as can be."""
    lines = stream.split(b"\n")
    if not lines[-1]:
        lines.pop()
    out = b""
    for line in lines:
        for start in range(0, len(line) or 1, _LINE_LIMIT):
            piece = line[start : start + _LINE_LIMIT]
            out += PREFIX + re.sub(rb"\r(?=.)", b"\r" + PREFIX, piece, flags=re.DOTALL) + b"\n"
    return out


def framed(stream: bytes, sizes: list[int]) -> bytes:
    """What comes out of a daemon's lines where reads return so many bytes each."""
    lines, out = _Lines("x", NO_SECRETS), b""
    while stream:
        size = sizes.pop(0) if sizes else _READ_SIZE
        out += written(lines.feed(stream[:size]))
        stream = stream[size:]
    return out + written(lines.finish())


class Lines(unittest.TestCase):
    def fed(self, *chunks: bytes) -> list[bytes]:
        """What came out after each chunk, and at the end."""
        lines = _Lines("x", NO_SECRETS)
        return [written(lines.feed(chunk)) for chunk in chunks] + [written(lines.finish())]

    def test_each_line_gets_the_name(self) -> None:
        self.assertEqual(self.fed(b"a\n\nb\n"), [b"[x] a\n[x] \n[x] b\n", b""])

    def test_half_a_line_waits_for_its_end(self) -> None:
        self.assertEqual(self.fed(b"a\nb", b"c", b"d\n"), [b"[x] a\n", b"", b"[x] bcd\n", b""])

    def test_a_last_line_without_newline_gets_one(self) -> None:
        self.assertEqual(self.fed(b"a\nb"), [b"[x] a\n", b"[x] b\n"])

    def test_silence_stays_silent(self) -> None:
        self.assertEqual(self.fed(), [b""])

    def test_nul_and_invalid_utf8_pass(self) -> None:
        self.assertEqual(self.fed(b"\0\xff\xfe\x80\n"), [b"[x] \0\xff\xfe\x80\n", b""])

    def test_a_carriage_return_shows_the_prefix_once_more(self) -> None:
        self.assertEqual(self.fed(b"good\revil\n"), [b"[x] good\r[x] evil\n", b""])

    def test_a_carriage_return_cannot_pass_by_coming_in_parts(self) -> None:
        self.assertEqual(self.fed(b"good\r", b"evil\n"), [b"", b"[x] good\r[x] evil\n", b""])

    def test_a_carriage_return_before_the_newline_passes_unchanged(self) -> None:
        self.assertEqual(self.fed(b"dos\r\ndos\r", b"\n"), [b"[x] dos\r\n", b"[x] dos\r\n", b""])

    def test_what_looks_like_a_prefix_is_no_exception(self) -> None:
        self.assertEqual(self.fed(b"a\r[x] \n"), [b"[x] a\r[x] [x] \n", b""])

    def test_a_line_of_the_limit_is_whole(self) -> None:
        self.assertEqual(framed(b"a" * _LINE_LIMIT + b"\n", []), PREFIX + b"a" * _LINE_LIMIT + b"\n")

    def test_one_byte_more_makes_a_second_piece(self) -> None:
        self.assertEqual(framed(b"a" * _LINE_LIMIT + b"b\n", []), PREFIX + b"a" * _LINE_LIMIT + b"\n[x] b\n")

    def test_ten_mib_without_a_newline_are_complete_and_not_kept(self) -> None:
        lines, pieces = _Lines("x", NO_SECRETS), []
        chunk = os.urandom(_READ_SIZE).replace(b"\n", b" ").replace(b"\r", b" ")
        for _ in range(160):
            pieces.append(written(lines.feed(chunk)))
            self.assertLessEqual(len(lines._tail), _LINE_LIMIT)
        pieces.append(written(lines.finish()))
        self.assertEqual(b"".join(pieces), (PREFIX + chunk + b"\n") * 160)

    def test_random_bytes_in_random_reads_come_out_as_the_model_says(self) -> None:
        for seed in range(300):
            choice = random.Random(seed)
            alphabet = choice.choice([b"\n\r\0a", b"\n\r[x] ", bytes(range(256)), b"\xff\xc3\n"])
            stream = bytes(choice.choices(alphabet, k=choice.randrange(400)))
            sizes = [choice.randint(1, 40) for _ in stream]
            self.assertEqual(framed(stream, sizes), model(stream), f"seed {seed}")

    def test_random_long_lines_in_random_reads_come_out_as_the_model_says(self) -> None:
        for seed in range(40):
            choice = random.Random(seed)
            lengths = [choice.choice([0, 1, 65535, 65536, 65537, 131072, choice.randrange(300000)]) for _ in range(3)]
            lines = [choice.randbytes(length).replace(b"\n", b"\r") for length in lengths]
            stream = b"\n".join(lines) + choice.choice([b"\n", b""])
            sizes = [choice.choice([1, 4096, 65535, 65536, choice.randint(1, 65536)]) for _ in range(100)]
            self.assertEqual(framed(stream, sizes), model(stream), f"seed {seed}")


class LastWords(unittest.TestCase):
    def test_the_end_of_what_was_written_is_remembered_without_prefix(self) -> None:
        lines = _Lines("x", NO_SECRETS)
        lines.feed(b"one\ntwo\nthr")
        lines.feed(b"ee")
        lines.finish()
        self.assertEqual(lines.last_words, b"one\ntwo\nthree\n")

    def test_it_is_bounded(self) -> None:
        lines = _Lines("x", NO_SECRETS)
        for number in range(10000):
            lines.feed(b"%d\n" % number)
        self.assertLessEqual(len(lines.last_words), 4096)
        self.assertTrue(lines.last_words.endswith(b"9998\n9999\n"))


if __name__ == "__main__":
    unittest.main()
