"""Secrets in the log: a value never appears, however it is split, nested, repeated or cut off."""

from __future__ import annotations

import os
import random
import unittest

import sidecar_init
from sidecar_init import _LINE_LIMIT, _READ_SIZE, _Lines
from tests.unit.support import UnitTest, secrets

TOKEN = b"ghp_0123456789abcdefghij0123456789abcdefghij"
A = b"[redacted EGRESS_TOKEN_A]"
B = b"[redacted EGRESS_TOKEN_B]"


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

    def test_of_two_that_overlap_the_end_of_the_second_may_remain(self) -> None:
        both = secrets(A=b"abcdefgh", B=b"fghijklm")
        self.assertEqual(both.redact(b"-abcdefghijklm-"), b"-" + A + b"ijklm-")

    def test_of_one_that_overlaps_itself_the_end_may_remain(self) -> None:
        self.assertEqual(secrets(A=b"ababab").redact(b"-abababab-"), b"-" + A + b"ab-")

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
        none = sidecar_init._Secrets({b"HOME": b"/home/web"}, ["EGRESS_TOKEN_"])
        self.assertEqual(none.redact(b"/home/web"), b"/home/web")

    def test_random_values_in_random_text_never_appear_whole(self) -> None:
        for seed in range(300):
            choice = random.Random(seed)
            letters = b"ab" if seed % 2 else b"abcdef"
            values = {
                str(n): bytes(choice.choices(letters, k=choice.randint(6, 9))) for n in range(choice.randint(1, 4))
            }
            noise = [bytes(choice.choices(letters, k=choice.randint(0, 7))) for _ in range(9)]
            data = b"".join(part + choice.choice([b"", *values.values()]) for part in noise)
            found = secrets(**values).redact(data)
            self.assertEqual([value for value in values.values() if value in found], [], f"seed {seed}")

    def test_random_values_with_other_text_between_them_are_replaced_and_nothing_else_is(self) -> None:
        for seed in range(300):
            choice = random.Random(seed)
            values = {str(n): b"<%d" % n + bytes(choice.choices(b"abc", k=6)) + b">" for n in range(5)}
            noise = [bytes(choice.choices(b"abc<>0123", k=choice.randint(0, 7))) + b"." for _ in range(9)]
            names = [choice.choice(list(values)) for _ in noise]
            data = b"".join(part + values[name] for part, name in zip(noise, names, strict=True))
            expected = b"".join(
                part + b"[redacted EGRESS_TOKEN_%s]" % name.encode() for part, name in zip(noise, names, strict=True)
            )
            self.assertEqual(secrets(**values).redact(data), expected, f"seed {seed}")


class SecretsThatChange(unittest.TestCase):
    def test_one_that_is_read_again_at_each_start_takes_no_more_memory(self) -> None:
        values = secrets(A=TOKEN)
        before = len(values._variables), len(values._values)
        values.add(b"EGRESS_TOKEN_A", TOKEN)
        self.assertEqual((len(values._variables), len(values._values)), before)

    def test_the_old_value_and_the_new_one_are_redacted(self) -> None:
        values = secrets(A=TOKEN)
        values.add(b"EGRESS_TOKEN_A", b"another-secret")
        self.assertEqual(values.redact(TOKEN + b" another-secret"), A + b" " + A)


class PathologicalSecrets(unittest.TestCase):
    """Values and data that make searching slow; what comes out must be right all the same."""

    def test_a_run_of_one_letter_in_a_block_of_it(self) -> None:
        self.assertEqual(secrets(A=b"x" * 8).redact(b"x" * _READ_SIZE + b"\n"), A * (_READ_SIZE // 8) + b"\n")

    def test_what_is_left_of_such_a_run_is_shorter_than_the_value(self) -> None:
        self.assertEqual(secrets(A=b"x" * 8).redact(b"x" * 23), A * 2 + b"x" * 7)

    def test_a_hundred_runs_of_one_letter_in_a_block_of_it(self) -> None:
        hundred = secrets(**{str(length): b"x" * length for length in range(8, 108)})
        longest = b"[redacted EGRESS_TOKEN_107]"
        self.assertEqual(hundred.redact(b"x" * 1070 + b"." + b"x" * 9), longest * 10 + b".[redacted EGRESS_TOKEN_9]")

    def test_a_hundred_values_that_nearly_occur_everywhere(self) -> None:
        nearly = {str(n): b"x" * n + b"y" + b"x" * (99 - n) for n in range(100)}
        data = b"x" * 60000 + nearly["50"] + b"." + nearly["0"]
        expected = b"x" * 60000 + b"[redacted EGRESS_TOKEN_50].[redacted EGRESS_TOKEN_0]"
        self.assertEqual(secrets(**nearly).redact(data), expected)

    def test_a_periodic_value_of_100_kb(self) -> None:
        periodic = b"ab" * 50000
        lines, out = _Lines(b"", secrets(A=periodic)), b""
        stream = b"begin " + periodic + b" end\n"
        for start in range(0, len(stream), _READ_SIZE):
            out += lines.feed(stream[start : start + _READ_SIZE])
        self.assertEqual(out, b"begin " + A + b" end\n")


class CutOff(unittest.TestCase):
    """A daemon that exits in the middle of a write leaves the beginning of a secret, which no newline follows."""

    def finished(self, stream: bytes, daemon: str = "egress", **values: bytes) -> bytes:
        lines = _Lines(b"", secrets(**values), daemon)
        return lines.feed(stream) + lines.finish()

    def test_the_beginning_of_a_value_at_the_end_is_redacted(self) -> None:
        for length in range(6, len(TOKEN) + 1):
            self.assertEqual(self.finished(b"token=" + TOKEN[:length], A=TOKEN), b"token=" + A + b"\n", length)

    def test_five_bytes_are_too_few_to_recognize_one(self) -> None:
        self.assertEqual(self.finished(b"token=" + TOKEN[:5], A=TOKEN), b"token=" + TOKEN[:5] + b"\n")

    def test_it_is_redacted_after_whole_values_and_whole_lines(self) -> None:
        self.assertEqual(self.finished(b"a\n" + TOKEN + b" " + TOKEN[:20], A=TOKEN), b"a\n" + A + b" " + A + b"\n")

    def test_a_beginning_that_fits_two_values_is_redacted(self) -> None:
        found = self.finished(b"token=secret-of-", A=b"secret-of-web", B=b"secret-of-the-database")
        self.assertEqual(found, b"token=" + B + b"\n")

    def test_the_beginning_of_a_value_of_100_kb_is_redacted(self) -> None:
        value = os.urandom(50000).hex().encode()
        for length in (6, 31, 32, 33, 60000):
            self.assertEqual(self.finished(b"key=" + value[:length], A=value), b"key=" + A + b"\n", length)

    def test_the_beginning_of_a_value_that_begins_again_inside_itself_is_redacted(self) -> None:
        value = b"abcabcabcabcabcabcabcabcabcabcabcabcabc!"
        for length in range(6, len(value)):
            found = self.finished(b"." + value[:length], A=value)
            self.assertEqual(found, b"." + A + b"\n", length)

    def test_a_daemon_that_tries_beginnings_of_secrets_of_others_learns_nothing_from_its_log(self) -> None:
        for length in range(6, len(TOKEN)):
            self.assertEqual(self.finished(TOKEN[:length], "web", A=TOKEN), TOKEN[:length] + b"\n")

    def test_a_beginning_that_another_byte_follows_is_no_value(self) -> None:
        self.assertEqual(self.finished(TOKEN[:20] + b"!", A=TOKEN), TOKEN[:20] + b"!\n")

    def test_of_a_daemon_with_secrets_no_last_lines_are_kept_for_the_events_that_all_can_read(self) -> None:
        for daemon, values, expected in (
            ("egress", {"A": TOKEN}, b""),
            ("egress", {}, b"half a line\n"),
            ("web", {"A": TOKEN}, b"half a line\n"),
        ):
            lines = _Lines(b"", secrets(**values), daemon)
            lines.feed(b"half a line")
            lines.finish()
            self.assertEqual(lines.last_lines, expected, (daemon, values))


class RedactionOfLines(unittest.TestCase):
    def logged(self, stream: bytes, sizes: list[int], **values: bytes) -> bytes:
        """The bytes that come out, with the breaks of long lines taken away again."""
        lines, out = _Lines(b"[x] ", secrets(**values)), b""
        while stream:
            size = sizes.pop(0) if sizes else _READ_SIZE
            out += lines.feed(stream[:size])
            stream = stream[size:]
        out += lines.finish()
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

    def test_the_last_lines_are_redacted(self) -> None:
        lines = _Lines(b"[x] ", secrets(A=TOKEN))
        lines.feed(b"exiting with " + TOKEN[:9])
        lines.feed(TOKEN[9:])
        lines.finish()
        self.assertEqual(lines.last_lines, b"exiting with " + A + b"\n")


class RedactionOfOwnLines(UnitTest):
    def said(self, text: str, **values: bytes) -> bytes:
        reader, writer = self.pipe()
        log = sidecar_init._Log(writer, secrets(**values))
        self.close_later(log.fd)
        log.say(text)
        log.flush()
        return os.read(reader, 1000)

    def test_the_supervisors_own_lines_are_redacted(self) -> None:
        said = self.said(f"cannot execute {TOKEN.decode()}", A=TOKEN)
        self.assertEqual(said, b"sidecar-init: cannot execute " + A + b"\n")

    def test_they_are_redacted_before_anything_in_them_is_escaped(self) -> None:
        for value in (b"open\tsesame", b"open\x1bsesame", b"open\xffsesame", "open\u2028sesame".encode()):
            with self.subTest(value):
                said = self.said(f"cannot execute {os.fsdecode(value)}", A=value)
                self.assertEqual(said, b"sidecar-init: cannot execute " + A + b"\n")


if __name__ == "__main__":
    unittest.main()
