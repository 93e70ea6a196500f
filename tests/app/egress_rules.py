"""The rules of egress on their own, run by test_egress.py in the Python that has mitmproxy."""

from __future__ import annotations

import unittest
from pathlib import Path

from app.egress_rules import InvalidRoutes, Refusal, Route, Routes, explain, is_ambiguous, parse_routes

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "app" / "egress_routes.example.yaml"


def found(routes: Routes, host: str, method: str = "GET", target: str = "/", port: int = 443) -> Route | None:
    return routes.find(host, port, method, target)


class MatchingTests(unittest.TestCase):
    def test_suffix_matches_every_name_below_it_and_not_itself(self) -> None:
        routes = parse_routes('routes: [{host: "*.a.test"}]')
        for host in ("x.a.test", "x.y.a.test"):
            self.assertIsNotNone(found(routes, host))
        for host in ("a.test", ".a.test", "xa.test", "x.a.test.evil.test", "x.a.test."):
            self.assertIsNone(found(routes, host))

    def test_most_specific_route_wins_whatever_the_order(self) -> None:
        entries = ['{host: "*.test"}'.replace("*.test", "*.a.test"), "{host: x.a.test}", "{host: x.a.test, path: /p}"]
        entries += ["{host: x.a.test, path: /p/q}", "{host: x.a.test, path: /p, methods: [PUT]}"]
        for order in (entries, entries[::-1]):
            routes = parse_routes(f"routes: [{', '.join(order)}]")
            self.assertEqual(Route("*.a.test"), found(routes, "y.a.test"))
            self.assertEqual(Route("x.a.test"), found(routes, "x.a.test"))
            self.assertEqual(Route("x.a.test", path="/p"), found(routes, "x.a.test", target="/p/z"))
            self.assertEqual(Route("x.a.test", path="/p/q"), found(routes, "x.a.test", target="/p/q?z"))
            self.assertEqual(frozenset({"PUT"}), (found(routes, "x.a.test", "PUT", "/p") or Route("")).methods)

    def test_port_is_443_unless_given(self) -> None:
        routes = parse_routes("routes: [{host: a.test}, {host: b.test, port: 80}]")
        self.assertIsNone(found(routes, "a.test", port=80))
        self.assertIsNone(found(routes, "b.test", port=443))
        self.assertIsNotNone(found(routes, "b.test", port=80))

    def test_prefix_is_of_whole_segments(self) -> None:
        routes = parse_routes("routes: [{host: a.test, path: /v1}, {host: b.test, path: /v1/}]")
        for target, with_slash in (("/v1", False), ("/v1/", True), ("/v1/x", True), ("/v1?x", False)):
            self.assertIsNotNone(found(routes, "a.test", target=target))
            self.assertEqual(with_slash, found(routes, "b.test", target=target) is not None)
        for target in ("/v10", "/"):
            self.assertIsNone(found(routes, "a.test", target=target))

    def test_ambiguous_paths_are_refused_where_a_path_matters_and_only_there(self) -> None:
        routes = parse_routes("routes: [{host: a.test}, {host: a.test, path: /v1}, {host: b.test}]")
        with self.assertRaises(Refusal):
            found(routes, "a.test", target="/@scope%2fname")
        self.assertIsNotNone(found(routes, "b.test", target="/@scope%2fname"))

    def test_a_path_with_more_escapes_than_can_be_normalized_in_time_is_refused(self) -> None:
        self.assertFalse(is_ambiguous("/" + "%C3%A9" * 2048))
        self.assertTrue(is_ambiguous("/" + "%C3%A9" * 2049))

    def test_plain_paths_are_not_ambiguous(self) -> None:
        for path in ("/", "/a", "/a/", "/a.b/..c/.d.", "/a%20b", "/%E2%82%AC", "/a;v=1/b", "/~me/@x:y/$(a)'*+,=!&"):
            self.assertFalse(is_ambiguous(path), path)


class ValidationTests(unittest.TestCase):
    def test_example_is_valid_and_denies_all(self) -> None:
        self.assertEqual(Routes(False, ()), parse_routes(EXAMPLE.read_text()))

    def test_example_in_its_comment_is_valid(self) -> None:
        comment = EXAMPLE.read_text().partition("# routes:\n")[2].partition("\n\n")[0]
        routes = parse_routes("routes:\n" + "\n".join(line.removeprefix("# ") for line in comment.splitlines()))
        self.assertEqual(3, len(routes.table))

    def test_invalid_files_are_reported_by_their_key_and_never_quoted(self) -> None:
        for text, told in (
            ("", "the file must be a mapping"),
            ("[]", "the file must be a mapping"),
            ("rotues: []", "each key of the file"),
            ("default: denied", "default must be"),
            ("default: true", "default must be"),
            ("routes: {}", "routes must be a list"),
            ("routes: [x]", "routes[0] must be"),
            ("routes: [{path: /x}]", "routes[0] must be"),
            ("routes: [{host: a.test, hots: SECRET}]", "each key of routes[0]"),
            ("routes: [{host: 1}]", "routes[0].host"),
            ("routes: [{host: a.test, path: SECRET}]", "routes[0].path"),
            ("routes: [{host: a.test, path: /SECRET/../x}]", "routes[0].path"),
            ("routes: [{host: a.test, path: /x?SECRET}]", "routes[0].path"),
            ("routes: [{host: a.test, port: '443'}]", "routes[0].port"),
            ("routes: [{host: a.test, port: true}]", "routes[0].port"),
            ("routes: [{host: a.test, port: 65536}]", "routes[0].port"),
            ("routes: [{host: a.test, methods: GET}]", "routes[0].methods"),
            ("routes: [{host: a.test, methods: []}]", "routes[0].methods"),
            ("routes: [{host: a.test, methods: [get]}]", "routes[0].methods"),
            ("routes: [{host: a.test, methods: null}]", "routes[0].methods"),
            ("routes: [{host: a.test, token: SECRET}]", "routes[0].token"),
            ("routes: [{host: a.test, token: PATH}]", "routes[0].token"),
            ("routes: [{host: a.test, token: null}]", "routes[0].token"),
            ('routes: [{host: a.test, token: "EGRESS_TOKEN_A\\n"}]', "routes[0].token"),
            ("routes: [{host: a.test, header: X-Key}]", "routes[0].token"),
            ("routes: [{host: a.test, token: EGRESS_TOKEN_A, header: 'a b'}]", "routes[0].header"),
            ("routes: [{host: a.test, token: EGRESS_TOKEN_A, scheme: 'Bearer SECRET'}]", "routes[0].scheme"),
            ("routes: [{host: a.test}, {host: a.test, port: 443}]", "routes[1]"),
            ("routes: [{host: a.test, methods: [GET, PUT]}, {host: a.test, methods: [PUT]}]", "routes[1]"),
        ):
            with self.subTest(text):
                with self.assertRaises(InvalidRoutes) as raised:
                    parse_routes(text)
                self.assertTrue(str(raised.exception).startswith(told), raised.exception)
                self.assertNotIn("SECRET", str(raised.exception))

    def test_hosts_are_names_in_lower_case_or_a_suffix_of_two_labels(self) -> None:
        for host in ("*", "*.com", "a.*.test", "*a.test", "A.test", "a..test", ".a.test", "a.test.", "a.test:443"):
            with self.subTest(host), self.assertRaises(InvalidRoutes):
                parse_routes(f"routes: [{{host: '{host}'}}]")
        for host in ("127.0.0.1", "https://a.test", "a_b.test", "a.test/x", "", "\u212a.test"):
            with self.subTest(host), self.assertRaises(InvalidRoutes):
                parse_routes(f"routes: [{{host: '{host}'}}]")

    def test_same_host_with_other_methods_is_no_duplicate(self) -> None:
        text = "routes: [{host: a.test, methods: [GET]}, {host: a.test, methods: [PUT]}, {host: a.test, port: 80}]"
        self.assertEqual(3, len(parse_routes(text).table))

    def test_yaml_errors_are_reported_by_their_line_and_never_quoted(self) -> None:
        for text, line in (
            ("routes: [", 1),
            ("routes:\n  - {host: a.test, token: SECRET, token: OTHER}", 2),
            ("routes:\n  - *SECRET", 2),
            ("default: deny\n\troutes: SECRET", 2),
        ):
            with self.subTest(text):
                with self.assertRaises(Exception) as raised:
                    parse_routes(text)
                self.assertRegex(explain(raised.exception), rf"^\w+ in line {line}$")


if __name__ == "__main__":
    unittest.main()
