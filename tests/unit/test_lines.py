"""Framing: the bytes that a daemon writes come out as whole lines, each with its name, and nothing else changed."""

from __future__ import annotations

import os
import random
import unittest

from sidecar_init import _LINE_LIMIT, _READ_SIZE, _Lines
from tests.unit.support import NO_SECRETS, secrets

PREFIX = b"[x] "


def model(stream: bytes) -> bytes:
    """What must come out, line by line and as simple as can be."""
    lines = stream.split(b"\n")
    if not lines[-1]:
        lines.pop()
    out = b""
    for line in lines:
        for start in range(0, len(line) or 1, _LINE_LIMIT):
            out += PREFIX + line[start : start + _LINE_LIMIT] + b"\n"
    return out


def framed(stream: bytes, sizes: list[int]) -> bytes:
    """What comes out of a daemon's lines if reads return so many bytes each."""
    lines, out = _Lines(PREFIX, NO_SECRETS), b""
    while stream:
        size = sizes.pop(0) if sizes else _READ_SIZE
        out += lines.feed(stream[:size])
        stream = stream[size:]
    return out + lines.finish()


class Lines(unittest.TestCase):
    def fed(self, *chunks: bytes) -> list[bytes]:
        """What came out after each chunk, and at the end."""
        lines = _Lines(PREFIX, NO_SECRETS)
        return [lines.feed(chunk) for chunk in chunks] + [lines.finish()]

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

    def test_a_carriage_return_ends_no_line(self) -> None:
        self.assertEqual(self.fed(b"50 %\r100 %\r\ndos\r", b"\n"), [b"[x] 50 %\r100 %\r\n", b"[x] dos\r\n", b""])

    def test_a_line_of_the_limit_is_whole(self) -> None:
        self.assertEqual(framed(b"a" * _LINE_LIMIT + b"\n", []), PREFIX + b"a" * _LINE_LIMIT + b"\n")

    def test_one_byte_more_makes_a_second_piece(self) -> None:
        self.assertEqual(framed(b"a" * _LINE_LIMIT + b"b\n", []), PREFIX + b"a" * _LINE_LIMIT + b"\n[x] b\n")

    def test_ten_mib_without_a_newline_are_complete_and_not_kept(self) -> None:
        lines, pieces = _Lines(PREFIX, NO_SECRETS), []
        chunk = os.urandom(_READ_SIZE).replace(b"\n", b" ").replace(b"\r", b" ")
        for _ in range(160):
            pieces.append(lines.feed(chunk))
            self.assertLessEqual(len(lines._tail), _LINE_LIMIT)
        pieces.append(lines.finish())
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


class OtherPrefixes(unittest.TestCase):
    def fed(self, prefix: bytes, chunk: bytes) -> bytes:
        return _Lines(prefix, NO_SECRETS).feed(chunk)

    def test_without_a_prefix_whole_lines_pass_unchanged(self) -> None:
        self.assertEqual(self.fed(b"", b'{"a": 1}\n\n{"b": "\r"}\r\nhalf'), b'{"a": 1}\n\n{"b": "\r"}\r\n')

    def test_without_a_prefix_long_lines_are_still_split(self) -> None:
        self.assertEqual(self.fed(b"", b"a" * (_LINE_LIMIT + 1) + b"\n"), b"a" * _LINE_LIMIT + b"\na\n")


class LinesThatRedactionMakesLong(unittest.TestCase):
    """A short secret becomes 25 bytes, so that a line can grow beyond the limit after it was read."""

    def check(self, stream: bytes) -> None:
        name, value = b"[redacted EGRESS_TOKEN_A]", b"secret"
        lines = _Lines(PREFIX, secrets(A=value))
        out = lines.feed(stream[:_READ_SIZE]) + lines.feed(stream[_READ_SIZE:]) + lines.finish()
        written = out.split(b"\n")
        self.assertEqual(written.pop(), b"")
        self.assertLessEqual(max(map(len, written)), _LINE_LIMIT + len(PREFIX))
        self.assertTrue(all(line.startswith(PREFIX) for line in written))
        whole = b"".join(line.removeprefix(PREFIX) for line in written)
        self.assertEqual(whole, stream.replace(value, name).replace(b"\n", b""))

    def test_the_first_line_of_a_read_is_split(self) -> None:
        self.check(b"secret" * 10000 + b"\n")

    def test_every_other_line_of_a_read_is_split_too(self) -> None:
        self.check(b"first\n" + b"secret" * 5000 + b"\n" + b"secret" * 5000 + b"\nlast\n")

    def test_the_last_line_without_a_newline_is_split_too(self) -> None:
        self.check(b"first\n" + b"secret" * 10000)

    def test_a_line_of_several_reads_is_split_too(self) -> None:
        self.check(b"secret" * 20000 + b"\nlast\n")


class LastLines(unittest.TestCase):
    def test_the_end_of_what_was_written_is_remembered_without_prefix(self) -> None:
        lines = _Lines(PREFIX, NO_SECRETS)
        lines.feed(b"one\ntwo\nthr")
        lines.feed(b"ee")
        lines.finish()
        self.assertEqual(lines.last_lines, b"one\ntwo\nthree\n")

    def test_it_is_bounded(self) -> None:
        lines = _Lines(PREFIX, NO_SECRETS)
        for number in range(10000):
            lines.feed(b"%d\n" % number)
        self.assertLessEqual(len(lines.last_lines), 4096)
        self.assertTrue(lines.last_lines.endswith(b"9998\n9999\n"))


if __name__ == "__main__":
    unittest.main()
