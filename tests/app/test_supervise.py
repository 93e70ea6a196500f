"""The supervise daemon, as a real process: raw HTTP, both revisions of MCP, the official client, and hostile input."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support import ROOT, wait_until

APP = ROOT / "app"
MCP_PYTHON = os.environ.get("MCP_PYTHON") or (sys.executable if find_spec("mcp") else None)

LEGACY, MODERN = "2025-11-25", "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
STATUS = {
    "pid": 1,
    "updated_at": "2026-11-21T03:04:05.678Z",
    "state": "running",
    "daemons": [
        {"name": "egress", "state": "running", "ready": True, "pid": 12, "port": 9099, "restarts": 0},
        {
            "name": "pipelock",
            "state": "backoff",
            "ready": False,
            "pid": None,
            "restarts": 3,
            "last_exit": "exited with status 7",
        },
    ],
}


def event(number: int, daemon: str | None = "egress", kind: str = "started") -> dict[str, Any]:
    return {"time": f"2026-11-21T03:04:{number:02}.000Z", "event": kind, "daemon": daemon, "pid": number}


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> int:
        code: int = self.json["error"]["code"]
        return code


class SuperviseTestCase(unittest.TestCase):
    """A server on a free port, which serves the tests of a class until one ends it; state files for each test."""

    override = "pass"  # sets constants of the module, where a test cannot wait for the real ones
    process: subprocess.Popen[str]
    port: int
    status_file: Path
    events_file: Path

    @classmethod
    def setUpClass(cls) -> None:
        state = Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / "state"
        cls.status_file, cls.events_file = state / "status.json", state / "events.jsonl"
        cls.start()
        cls.addClassCleanup(cls.stop)

    def setUp(self) -> None:
        shutil.rmtree(self.status_file.parent, ignore_errors=True)
        self.status_file.parent.mkdir()
        self.write_status(STATUS)
        self.write_events([event(1), event(2, "pipelock"), event(3, None, "signal")])
        if self.process.poll() is not None:
            self.start()

    @classmethod
    def start(cls, port: str = "0") -> None:
        cls.process = subprocess.Popen(
            [sys.executable, "-S", "-c", f"import os, time, supervise_server as server\n{cls.override}\nserver.main()"],
            cwd=APP,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "1",
                "SUPERVISE_HOST": "127.0.0.1",
                "SUPERVISE_PORT": port,
                "SUPERVISE_ALLOWED_ORIGINS": "https://desk.example, https://other.example",
                "SIDECAR_STATUS_FILE": str(cls.status_file),
                "SIDECAR_EVENTS_FILE": str(cls.events_file),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert cls.process.stdout is not None
        cls.port = int(cls.process.stdout.readline().rpartition(":")[2])

    @classmethod
    def stop(cls) -> str:
        """End the server, however it fares; what it wrote to stderr."""
        cls.process.kill()
        return cls.process.communicate()[1]

    def write_status(self, status: object) -> None:
        self.status_file.write_text(json.dumps(status))

    def write_events(self, events: list[dict[str, Any]], suffix: str = "") -> None:
        path = self.events_file.with_name(self.events_file.name + suffix)
        path.write_text("".join(json.dumps(event) + "\n" for event in events))

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.addCleanup(connection.close)
        return connection

    def raw(self, data: bytes = b"") -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        self.addCleanup(peer.close)
        peer.sendall(data)
        return peer

    def ask(
        self,
        verb: str,
        path: str = "/mcp",
        body: bytes | None = None,
        connection: http.client.HTTPConnection | None = None,
        **headers: str,
    ) -> Reply:
        connection = connection or self.connect()
        connection.request(verb, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return Reply(connection.getresponse())

    def post(self, message: object, connection: http.client.HTTPConnection | None = None, **headers: str) -> Reply:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.ask("POST", body=body, connection=connection, **headers)

    def legacy(self, method: str, **params: object) -> Reply:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return self.post(message, MCP_Protocol_Version=LEGACY)

    def modern(self, method: str, headers: Mapping[str, str | None] | None = None, **params: object) -> Reply:
        """A request of 2026-07-28; `headers` replaces some of those that it needs, None leaves one out."""
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": META} | params}
        needed: dict[str, str | None] = {"MCP_Protocol_Version": MODERN, "Mcp_Method": method}
        if method == "tools/call":
            needed["Mcp_Name"] = str(params["name"])
        return self.post(message, None, **{k: v for k, v in (needed | dict(headers or {})).items() if v is not None})

    def tool(self, name: str, **arguments: object) -> dict[str, Any]:
        reply = self.legacy("tools/call", name=name, arguments=arguments)
        self.assertEqual(reply.status, 200, reply.body)
        result: dict[str, Any] = reply.json["result"]
        return result

    def assert_tool_error(self, result: dict[str, Any], text: str) -> None:
        self.assertIs(result["isError"], True)
        self.assertNotIn("structuredContent", result)
        self.assertIn(text, result["content"][0]["text"])

    def assert_serving_and_silent(self) -> None:
        """No harm was done: the next client is answered, and no traceback was written."""
        self.assertEqual(self.ask("GET", "/health").status, 200)
        self.assertEqual(self.stop(), "")


class Tools(SuperviseTestCase):
    def test_status_tells_every_daemons_state_as_text_and_as_structure(self) -> None:
        result = self.tool("bundle_status")
        self.assertEqual(result["structuredContent"], STATUS)
        self.assertIs(result["isError"], False)
        text = result["content"][0]["text"]
        self.assertIn("bundle running", text)
        self.assertIn("egress running ready=true pid=12 port=9099", text)
        self.assertIn('pipelock backoff ready=false restarts=3 last_exit="exited with status 7"', text)

    def test_status_is_read_again_for_each_call(self) -> None:
        self.tool("bundle_status")
        self.write_status(STATUS | {"state": "shutting-down"})
        self.assertEqual(self.tool("bundle_status")["structuredContent"]["state"], "shutting-down")

    def test_a_missing_status_file_is_a_tool_error_that_names_it(self) -> None:
        self.status_file.unlink()
        self.assert_tool_error(self.tool("bundle_status"), f"cannot read {self.status_file}: No such file")
        self.assert_serving_and_silent()

    def test_garbage_in_place_of_the_status_is_a_tool_error(self) -> None:
        whole = json.dumps(STATUS)
        garbage = [
            whole[: len(whole) // 2],
            "",
            "null",
            "[]",
            '"text"',
            "7",
            '{"state": "running"}',
            json.dumps(STATUS | {"daemons": None}),
            json.dumps(STATUS | {"daemons": [3]}),
            json.dumps(STATUS | {"daemons": ["egress"]}),
            json.dumps(STATUS | {"daemons": [{}]}),
            json.dumps(STATUS | {"pid": float("nan")}),
            "[" * 100_000,
        ]
        for text in garbage:
            with self.subTest(text[:60]):
                self.status_file.write_text(text)
                self.assert_tool_error(self.tool("bundle_status"), f"cannot understand {self.status_file}")
        self.status_file.write_bytes(b"\xff\x00\xfe" * 50)
        self.assert_tool_error(self.tool("bundle_status"), "cannot understand")
        self.assert_serving_and_silent()

    def test_a_directory_in_place_of_the_files_is_a_tool_error(self) -> None:
        for path, tool in ((self.status_file, "bundle_status"), (self.events_file, "bundle_events")):
            path.unlink()
            path.mkdir()
            self.assert_tool_error(self.tool(tool), f"cannot read {path}: Is a directory")
        self.assert_serving_and_silent()

    def test_events_are_the_latest_ones_oldest_first(self) -> None:
        result = self.tool("bundle_events", count=2)
        self.assertEqual(result["structuredContent"]["events"], [event(2, "pipelock"), event(3, None, "signal")])
        lines = result["content"][0]["text"].splitlines()
        self.assertEqual(lines[0], "2026-11-21T03:04:02.000Z pipelock started pid=2")
        self.assertEqual(lines[1], "2026-11-21T03:04:03.000Z - signal pid=3")

    def test_events_without_a_count_are_at_most_twenty(self) -> None:
        self.write_events([event(number) for number in range(30)])
        self.assertEqual(len(self.tool("bundle_events")["structuredContent"]["events"]), 20)

    def test_events_of_one_daemon_are_counted_after_the_filter(self) -> None:
        self.write_events([event(1), event(2), *(event(number, "pipelock") for number in range(3, 30))])
        result = self.tool("bundle_events", count=2, daemon="egress")
        self.assertEqual(result["structuredContent"]["events"], [event(1), event(2)])

    def test_events_of_an_unknown_daemon_are_none(self) -> None:
        result = self.tool("bundle_events", daemon="nobody")
        self.assertEqual(result["structuredContent"]["events"], [])
        self.assertEqual(result["content"][0]["text"], "no such event has been recorded")

    def test_events_go_on_into_the_rotated_file(self) -> None:
        self.write_events([event(1), event(2)], ".1")
        self.write_events([event(3)])
        found = self.tool("bundle_events", count=2)["structuredContent"]["events"]
        self.assertEqual(found, [event(2), event(3)])

    def test_events_that_a_rotation_shows_in_both_files_come_once(self) -> None:
        self.write_events([event(1), event(2), event(3)], ".1")
        self.write_events([event(2), event(3), event(4)])
        found = self.tool("bundle_events")["structuredContent"]["events"]
        self.assertEqual(found, [event(number) for number in (1, 2, 3, 4)])

    def test_events_are_there_while_the_file_is_being_rotated(self) -> None:
        self.events_file.rename(f"{self.events_file}.1")
        self.assertEqual(len(self.tool("bundle_events")["structuredContent"]["events"]), 3)

    def test_events_before_those_that_are_asked_for_are_not_even_read(self) -> None:
        garbage = "no event\n" * 10_000
        self.events_file.write_text(garbage + self.events_file.read_text())
        self.events_file.with_name(self.events_file.name + ".1").write_text(garbage)
        self.assertEqual(self.tool("bundle_events", count=3)["structuredContent"]["unreadable"], 0)
        self.assertGreater(self.tool("bundle_events", count=4)["structuredContent"]["unreadable"], 0)
        self.assertEqual(self.tool("bundle_events", count=4, daemon="web")["structuredContent"]["unreadable"], 0)

    def test_a_line_that_is_longer_than_what_is_read_at_once(self) -> None:
        long = event(4) | {"note": "x" * 200_000}
        self.write_events([event(1), long, event(3)])
        self.assertEqual(self.tool("bundle_events")["structuredContent"]["events"], [event(1), long, event(3)])

    def test_a_daemon_with_any_name_is_found(self) -> None:
        for name in ("x y", 'a"b', "\N{SNOWMAN}", "a\\b", ".*", "x\ny"):
            self.write_events([event(1, name), event(2)])
            found = self.tool("bundle_events", daemon=name)["structuredContent"]["events"]
            self.assertEqual(found, [event(1, name)])

    def test_half_a_line_and_garbage_among_the_events_are_left_out_and_counted(self) -> None:
        with self.events_file.open("ab") as file:
            file.write(b'\n7\nnull\n{}\n[1]\n\xff\xfe\n"x"\n' + b"[" * 100_000 + b"\n" + b'{"time": "2026-11-2')
        result = self.tool("bundle_events")
        self.assertEqual(len(result["structuredContent"]["events"]), 3)
        self.assertGreater(result["structuredContent"]["unreadable"], 6)
        self.assertIn("left out, not understood", result["content"][0]["text"])
        self.assert_serving_and_silent()

    def test_a_missing_events_file_is_a_tool_error_that_names_it(self) -> None:
        self.events_file.unlink()
        self.assert_tool_error(self.tool("bundle_events"), f"cannot read {self.events_file}: ")

    def test_wrong_arguments_are_tool_errors_that_say_what_is_right(self) -> None:
        counts: tuple[object, ...] = (0, -1, 201, 2.5, "2", True, None, [], {})
        for count in counts:
            with self.subTest(count=count):
                self.assert_tool_error(self.tool("bundle_events", count=count), "an integer from 1 to 200")
        daemons: tuple[object, ...] = (1, ["egress"], {}, True, "x" * 65)
        for daemon in daemons:
            with self.subTest(daemon=daemon):
                self.assert_tool_error(self.tool("bundle_events", daemon=daemon), "cannot take this daemon")
        self.assert_serving_and_silent()


class Revision2025(SuperviseTestCase):
    def test_initialize_offers_the_revision_and_the_tools(self) -> None:
        for wanted in (LEGACY, "2024-11-05", MODERN, "tomorrow"):
            message = {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": {"protocolVersion": wanted}}
            reply = self.post(message, MCP_Protocol_Version=MODERN if wanted == MODERN else LEGACY)
            self.assertEqual(reply.status, 200)
            self.assertEqual(reply.json["id"], "a")
            self.assertEqual(reply.json["result"]["protocolVersion"], LEGACY)
            self.assertEqual(reply.json["result"]["capabilities"], {"tools": {}})
            self.assertEqual(reply.json["result"]["serverInfo"]["name"], "sidecar-supervise")
            self.assertNotIn("Mcp-Session-Id", reply.headers)

    def test_initialized_and_responses_are_accepted_without_a_body(self) -> None:
        for message in (
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            {"jsonrpc": "2.0", "id": 4, "result": {}},
            {"jsonrpc": "2.0", "id": 4, "error": {"code": 1, "message": "no"}},
        ):
            reply = self.post(message, MCP_Protocol_Version=LEGACY)
            self.assertEqual((reply.status, reply.body), (202, b""))

    def test_tools_are_listed_with_their_schemas(self) -> None:
        result = self.legacy("tools/list").json["result"]
        self.assertEqual([tool["name"] for tool in result["tools"]], ["bundle_status", "bundle_events"])
        self.assertEqual(set(result["tools"][1]["inputSchema"]["properties"]), {"count", "daemon"})
        self.assertEqual(set(result), {"tools"})

    def test_ping_gets_an_empty_result(self) -> None:
        self.assertEqual(self.legacy("ping").json, {"jsonrpc": "2.0", "id": 1, "result": {}})

    def test_a_request_without_a_version_header_is_served(self) -> None:
        self.assertEqual(self.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).status, 200)

    def test_an_unknown_method_or_tool_is_an_error_in_a_200(self) -> None:
        for reply, code in (
            (self.legacy("resources/list"), -32601),
            (self.legacy("server/discover"), -32601),
            (self.legacy("tools/call", name="rm"), -32602),
            (self.legacy("tools/call", name=["bundle_status"]), -32602),
            (self.legacy("tools/call"), -32602),
            (self.legacy("tools/call", name="bundle_status", arguments=[]), -32602),
        ):
            self.assertEqual((reply.status, reply.error_code, reply.json["id"]), (200, code, 1))


class Revision2026(SuperviseTestCase):
    def test_discover_names_both_revisions_and_the_server(self) -> None:
        result = self.modern("server/discover").json["result"]
        self.assertEqual(result["supportedVersions"], [MODERN, LEGACY])
        self.assertEqual(result["capabilities"], {"tools": {}})
        self.assertEqual(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "sidecar-supervise")
        self.assertEqual(result["resultType"], "complete")
        self.assertLessEqual({"ttlMs", "cacheScope"}, set(result))

    def test_tools_are_listed_and_called_without_a_handshake(self) -> None:
        listed = self.modern("tools/list").json["result"]
        self.assertEqual(len(listed["tools"]), 2)
        self.assertLessEqual({"ttlMs", "cacheScope", "resultType"}, set(listed))
        called = self.modern("tools/call", name="bundle_status", arguments={}).json["result"]
        self.assertEqual((called["structuredContent"], called["resultType"]), (STATUS, "complete"))

    def test_a_name_in_base64_is_decoded_before_it_is_compared(self) -> None:
        wrapped = {"Mcp_Name": "=?base64?YnVuZGxlX3N0YXR1cw==?="}
        self.assertEqual(self.modern("tools/call", wrapped, name="bundle_status").status, 200)

    def test_headers_that_are_missing_or_disagree_with_the_body_are_refused(self) -> None:
        for headers in (
            {"MCP_Protocol_Version": None},
            {"MCP_Protocol_Version": LEGACY},
            {"Mcp_Method": None},
            {"Mcp_Method": "tools/list"},
            {"Mcp_Name": None},
            {"Mcp_Name": "bundle_events"},
            {"Mcp_Name": "=?base64?%%%?="},
            {"Mcp_Name": "=?base64?/w==?="},
        ):
            with self.subTest(headers):
                reply = self.modern("tools/call", headers, name="bundle_status")
                self.assertEqual((reply.status, reply.error_code, reply.json["id"]), (400, -32020, 1))

    def test_a_header_that_comes_twice_is_refused(self) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}).encode()
        connection = self.connect()
        connection.putrequest("POST", "/mcp")
        for name, value in (
            ("Content-Length", str(len(body))),
            ("MCP-Protocol-Version", MODERN),
            ("Mcp-Method", "tools/list"),
            ("Mcp-Method", "tools/call"),
        ):
            connection.putheader(name, value)
        connection.endheaders(body)
        reply = Reply(connection.getresponse())
        self.assertEqual((reply.status, reply.error_code), (400, -32020))

    def test_a_request_without_its_metadata_is_refused(self) -> None:
        without_capabilities = {k: v for k, v in META.items() if not k.endswith("Capabilities")}
        metas: tuple[object, ...] = (None, [], {}, without_capabilities)
        for meta in metas:
            with self.subTest(meta=meta):
                reply = self.modern("tools/list", _meta=meta)
                self.assertEqual((reply.status, reply.error_code), (400, -32602))

    def test_an_unknown_method_is_a_404_with_an_error(self) -> None:
        for method in ("resources/list", "ping", "subscriptions/listen", "initialize"):
            with self.subTest(method):
                reply = self.modern(method)
                self.assertEqual((reply.status, reply.error_code), (404, -32601))

    def test_an_unknown_tool_is_a_400_with_an_error(self) -> None:
        reply = self.modern("tools/call", name="rm")
        self.assertEqual((reply.status, reply.error_code), (400, -32602))


class BothRevisions(SuperviseTestCase):
    def test_an_unsupported_version_is_refused_with_those_that_are_supported(self) -> None:
        for method in ("tools/list", "server/discover", "initialize", "notifications/initialized"):
            message = {"jsonrpc": "2.0", "id": 9, "method": method}
            reply = self.post(message, MCP_Protocol_Version="1900-01-01")
            self.assertEqual((reply.status, reply.error_code, reply.json["id"]), (400, -32022, 9))
            self.assertEqual(reply.json["error"]["data"], {"supported": [MODERN, LEGACY], "requested": "1900-01-01"})

    def test_what_is_not_json_is_a_parse_error(self) -> None:
        for body in (b"", b"{", b"\xff\xfe\xfd", b"{'a': 1}", b"NaN", b'{"id": Infinity}', b"[" * 200_000, b"9" * 9999):
            with self.subTest(body[:20]):
                reply = self.post(body)
                self.assertEqual((reply.status, reply.error_code, reply.json["id"]), (400, -32700, None))
        self.assert_serving_and_silent()

    def test_what_is_no_single_message_is_an_invalid_request(self) -> None:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        for message in (
            [ping],
            [],
            {},
            7,
            "ping",
            None,
            {"jsonrpc": "2.0"},
            ping | {"jsonrpc": "1.0"},
            ping | {"jsonrpc": 2},
            ping | {"id": None},
            ping | {"id": 1.5},
            ping | {"id": True},
            ping | {"id": [1]},
            ping | {"method": 3},
            ping | {"method": None},
            ping | {"params": [1]},
            ping | {"params": None},
        ):
            for headers in ({}, {"MCP_Protocol_Version": LEGACY}, {"MCP_Protocol_Version": MODERN}):
                with self.subTest(message, **headers):
                    reply = self.post(message, None, **headers)
                    self.assertEqual((reply.status, reply.error_code), (400, -32600))
        self.assert_serving_and_silent()


@unittest.skipUnless(MCP_PYTHON, "no `mcp` package: pip install mcp, or name an interpreter that has it in MCP_PYTHON")
class OfficialClient(SuperviseTestCase):
    def see(self, mode: str) -> dict[str, Any]:
        script = str(ROOT / "tests" / "app" / "mcp_client.py")
        url = f"http://127.0.0.1:{self.port}/mcp"
        command = [str(MCP_PYTHON), script, url, mode]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        seen: dict[str, Any] = json.loads(ended.stdout)
        self.assertEqual(seen["tools"], ["bundle_status", "bundle_events"])
        self.assertEqual(seen["status"], STATUS)
        self.assertIn("egress running", seen["status_text"])
        self.assertEqual(seen["events"]["events"], [event(1)])
        self.assertIs(seen["wrong"], True)
        return seen

    def test_a_client_that_opens_with_initialize_gets_2025(self) -> None:
        seen = self.see("legacy")
        self.assertEqual((seen["revision"], seen["server"]), (LEGACY, "sidecar-supervise"))

    def test_a_client_that_discovers_gets_2026(self) -> None:
        seen = self.see("auto")
        self.assertEqual((seen["revision"], seen["server"]), (MODERN, "sidecar-supervise"))

    def test_a_client_that_asks_without_discovering_gets_2026(self) -> None:
        self.assertEqual(self.see(MODERN)["revision"], MODERN)


class Http(SuperviseTestCase):
    def test_health_is_200(self) -> None:
        reply = self.ask("GET", "/health?verbose")
        self.assertEqual((reply.status, reply.body), (200, b"ok\n"))

    def test_messages_are_taken_at_the_root_too_as_older_hosts_send_them(self) -> None:
        message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
        for path in ("/", "/mcp", "/?x"):
            self.assertEqual(self.ask("POST", path, message).json, {"jsonrpc": "2.0", "id": 1, "result": {}})
        reply = self.ask("GET", "/")
        self.assertEqual((reply.status, reply.headers["Allow"]), (405, "POST"))

    def test_a_head_over_the_limit_is_431_whatever_it_consists_of(self) -> None:
        for head in (b"A: " + b"b" * 40_000, b"A: b\r\n" * 8_000, b"A: " + b"b" * 500 + b"\r\n"):
            data = b"GET /health HTTP/1.1\r\n" + head * (80 if len(head) == 505 else 1) + b"\r\n"
            peer = self.raw()
            with suppress(OSError):
                peer.sendall(data)
            with suppress(ConnectionResetError):
                self.assertNotIn(b" 200 ", peer.recv(64))
        allowed = b"GET /health HTTP/1.1\r\nA: " + b"b" * 30_000 + b"\r\n\r\n"
        self.assertIn(b" 200 ", self.raw(allowed).recv(64))
        self.assert_serving_and_silent()

    def test_other_verbs_are_405_and_say_which_is_right(self) -> None:
        for verb, path, right in (("GET", "/mcp", "POST"), ("DELETE", "/mcp", "POST"), ("POST", "/health", "GET")):
            reply = self.ask(verb, path)
            self.assertEqual((reply.status, reply.headers["Allow"]), (405, right))

    def test_other_paths_are_404(self) -> None:
        self.assertEqual(self.ask("GET", "/run/sidecar-init/status.json").status, 404)
        self.assertEqual(self.ask("POST", "/mcp/../health", b"{}").status, 404)

    def test_a_foreign_origin_is_403_everywhere(self) -> None:
        for origin in ("https://evil.example", "null", "", "http://localhost.evil.example", "file://localhost"):
            for verb, path in (("POST", "/mcp"), ("GET", "/mcp"), ("GET", "/health"), ("DELETE", "/mcp")):
                with self.subTest(origin, path=path):
                    self.assertEqual(self.ask(verb, path, b"{}", Origin=origin).status, 403)

    def test_a_local_origin_a_listed_one_and_none_are_served(self) -> None:
        local = ("http://localhost", "https://localhost:8443", "http://127.0.0.1:3000", "http://[::1]:1")
        for origin in (*local, "https://desk.example", "https://other.example"):
            with self.subTest(origin):
                self.assertEqual(self.ask("GET", "/health", Origin=origin).status, 200)

    def test_a_connection_serves_one_request_after_the_other(self) -> None:
        connection = self.connect()
        connection.connect()
        opened = connection.sock
        for _ in range(3):
            self.assertEqual(self.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, connection).status, 200)
            self.assertEqual(self.post(b"{", connection).status, 400)
            self.assertEqual(self.ask("GET", connection=connection).status, 405)
            self.assertEqual(self.ask("GET", "/nowhere", b"a body", connection).status, 404)
            self.assertEqual(self.ask("POST", body=b"{}", connection=connection, Origin="x").status, 403)
        self.assertIs(connection.sock, opened)

    def test_requests_that_are_sent_in_one_go_are_all_answered(self) -> None:
        peer = self.raw(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        peer.shutdown(socket.SHUT_WR)
        with peer.makefile("rb") as answers:
            self.assertEqual(answers.read().count(b"HTTP/1.1 200 OK"), 3)

    def test_a_body_over_the_limit_is_413_though_it_is_sent_whole(self) -> None:
        reply = self.post(b" " * (8 * 1024 * 1024))
        self.assertEqual(reply.status, 413)
        self.assert_serving_and_silent()

    def test_a_length_that_cannot_be_is_refused(self) -> None:
        for length, status in (("-1", 400), ("+1", 400), ("1_0", 400), ("x", 400), ("9" * 5000, 413), ("262145", 413)):
            with self.subTest(length[:10]):
                self.assertEqual(self.ask("POST", Content_Length=length, Connection="close").status, status)
        peer = self.raw(b"POST /mcp HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}")
        self.assertIn(b" 400 ", peer.recv(64))
        self.assert_serving_and_silent()

    def test_a_chunked_body_is_refused_with_411(self) -> None:
        peer = self.raw(b"POST /mcp HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        self.assertIn(b" 411 ", peer.recv(64))

    def test_malformed_http_harms_nobody(self) -> None:
        for data in (
            b"\r\n\r\n",
            b"\x00" * 500 + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /health HTTP/9.9\r\n\r\n",
            b"GET /health HTTP/1.1.1\r\n\r\n",
            b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
            b"GET /health HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
            b"POST /mcp HTTP/1.1\r\nContent-Length: 50\r\n\r\n{",
            b"BREW /mcp HTTP/1.1\r\n\r\n",
            b"POST /mcp HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        ):
            # It may close before it has read all; an answer is not owed then.
            with self.subTest(data[:40]), suppress(OSError):
                peer = self.raw(data)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass
        self.assert_serving_and_silent()

    def test_an_address_that_cannot_be_had_is_one_line_and_exit_1(self) -> None:
        for host, port in (("127.0.0.1", str(self.port)), ("127.0.0.1", "x"), ("127.0.0.1", "70000")):
            env = {**os.environ, "SUPERVISE_HOST": host, "SUPERVISE_PORT": port}
            command = [sys.executable, "-S", str(APP / "supervise_server.py")]
            ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
            self.assertEqual(ended.returncode, 1)
            self.assertRegex(ended.stderr, rf"\Acannot listen on {host}:{port}: .*\n\Z")


class ManyClients(SuperviseTestCase):
    def test_two_hundred_idle_connections_keep_nobody_waiting_and_stay_open(self) -> None:
        idle = [self.connect() for _ in range(200)]
        for connection in idle:
            self.assertEqual(self.ask("GET", "/health", connection=connection).status, 200)
        self.assertEqual(len(self.tool("bundle_status")["structuredContent"]["daemons"]), 2)
        for connection in idle:
            opened = connection.sock
            self.assertEqual(self.ask("GET", "/health", connection=connection).status, 200)
            self.assertIs(connection.sock, opened)

    def test_term_ends_it_with_0_while_clients_are_connected(self) -> None:
        for _ in range(20):
            self.ask("GET", "/health", connection=self.connect())
        self.raw(b"POST /mcp HTTP/1.1\r\nContent-Le")
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                self.process.send_signal(number)
                wait_until(lambda: self.process.poll() is not None, 10, "the end of the server")
                self.assertEqual(self.process.returncode, 0)
                self.assertEqual(self.stop(), "")
                self.start()

    def test_the_port_can_be_taken_again_at_once_after_an_end_with_open_connections(self) -> None:
        self.ask("GET", "/health", connection=self.connect())
        self.process.terminate()
        self.process.wait(10)
        self.stop()
        self.start(str(self.port))
        self.assertEqual(self.ask("GET", "/health").status, 200)

    @unittest.skipUnless(Path("/proc/net/tcp").exists(), "no /proc/net/tcp to see a socket's timer in")
    def test_an_idle_connection_is_probed_so_that_a_vanished_client_frees_its_place(self) -> None:
        client = self.connect()
        self.ask("GET", "/health", connection=client)
        remote = f"{client.sock.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        timers = [row[5] for row in rows if row[1].endswith(f":{self.port:04X}") and row[2].endswith(f":{remote}")]
        self.assertEqual([timer[:2] for timer in timers], ["02"])  # the kernel's number for keepalive


class FewPlaces(SuperviseTestCase):
    override = "server._MAX_CONNECTIONS = 3"

    def is_open(self, connection: http.client.HTTPConnection) -> bool:
        try:
            return self.ask("GET", "/health", connection=connection).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def opened(self, number: int) -> list[http.client.HTTPConnection]:
        connections = [self.connect() for _ in range(number)]
        for connection in connections:
            connection.auto_open = 0
            connection.connect()
            self.assertTrue(self.is_open(connection))
        return connections

    def test_a_newcomer_takes_the_place_of_the_connection_that_has_been_idle_for_the_longest(self) -> None:
        first, second, third = self.opened(3)
        self.assertTrue(self.is_open(first))
        self.opened(1)
        self.assertEqual([self.is_open(connection) for connection in (first, second, third)], [True, False, True])

    def test_a_newcomer_takes_the_place_of_a_peer_that_has_more(self) -> None:
        modest = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20, source_address=("127.0.0.2", 0))
        self.addCleanup(modest.close)
        self.assertEqual(self.ask("GET", "/health", connection=modest).status, 200)
        modest.auto_open = 0
        self.opened(10)
        self.assertTrue(self.is_open(modest))

    def test_clients_that_never_ask_do_not_keep_out_others(self) -> None:
        for _ in range(100):
            self.raw()
        self.opened(1)
        threads = Path(f"/proc/{self.process.pid}/task")
        wait_until(lambda: len(list(threads.iterdir())) <= 4, 10, "the end of the threads of closed connections")


class OneAtATime(SuperviseTestCase):
    override = """
server._MAX_WAITING = 2
answer = server._answer
def slow(*request):
    with open(server._STATUS_FILE + '.begun', 'a') as begun:
        begun.write('1')
    while not os.path.exists(server._STATUS_FILE + '.go'):
        time.sleep(0.01)
    return answer(*request)
server._answer = slow
""".replace("\n", "\n")

    def test_messages_wait_for_each_other_and_health_for_none(self) -> None:
        ping = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
        head = f"POST /mcp HTTP/1.1\r\nContent-Length: {len(ping)}\r\n\r\n".encode()
        peers = [self.raw(head + ping) for _ in range(5)]

        def answered() -> list[socket.socket]:
            return select.select(peers, [], [], 0)[0]

        wait_until(lambda: len(answered()) == 3, 20, "those that are too many")
        refused = answered()
        for peer in refused:
            self.assertIn(b" 503 ", peer.recv(64))
        self.assertEqual(self.ask("GET", "/health").status, 200)
        begun = self.status_file.with_name(self.status_file.name + ".begun")
        wait_until(begun.exists, 20, "the first message")
        self.assertEqual(begun.read_text(), "1")
        self.status_file.with_name(self.status_file.name + ".go").touch()
        for peer in set(peers) - set(refused):
            self.assertIn(b" 200 ", peer.recv(64))
        wait_until(lambda: self.post(ping).status == 200, 20, "a message that is answered again")


class ShortPatience(SuperviseTestCase):
    override = "server._REQUEST_SECONDS = 0.5"

    def assert_closed(self, peer: socket.socket) -> None:
        while peer.recv(65536):
            pass

    def test_a_request_that_never_becomes_whole_is_dropped(self) -> None:
        parts = (b"", b"G", b"POST /mcp HTTP/1.1\r\nA: b\r\n", b"POST /mcp HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        for data, peer in [(data, self.raw(data)) for data in parts]:
            with self.subTest(data):
                self.assert_closed(peer)
        self.assert_serving_and_silent()

    def test_a_request_that_trickles_is_dropped_though_it_never_pauses(self) -> None:
        peer = self.raw(b"POST /mcp HTTP/1.1\r\nX: ")
        ended = threading.Event()
        self.addCleanup(ended.set)

        def trickle() -> None:
            try:
                while not ended.wait(0.05):
                    peer.send(b"y")
            except OSError:
                ended.set()

        trickler = threading.Thread(target=trickle, daemon=True)
        trickler.start()
        wait_until(ended.is_set, 20, "the end of a connection that trickles")

    def test_a_body_without_an_end_is_dropped_though_it_never_pauses(self) -> None:
        peer = self.raw(b"POST /mcp HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n")
        deadline = time.monotonic() + 20
        with self.assertRaises(OSError):
            while time.monotonic() < deadline:
                peer.sendall(b" " * 4_000_000)

    def test_past_the_deadline_even_what_has_already_arrived_is_not_read(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, self.module() as server:
            theirs.send(b"late")
            reader = server._DeadlineReader(ours)
            reader.deadline = 0.0
            self.assertRaises(TimeoutError, reader.read, 4)
            reader.deadline = None
            self.assertEqual(reader.read(4), b"late")

    @contextmanager
    def module(self) -> Iterator[Any]:
        """The server's module, in this process."""
        with mock.patch.object(sys, "path", [str(APP), *sys.path]):
            yield import_module("supervise_server")

    def test_a_stalled_client_holds_up_nobody(self) -> None:
        self.raw(b"POST /mcp HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        self.assertEqual(self.ask("GET", "/health").status, 200)

    def test_an_idle_connection_outlives_the_patience_for_requests(self) -> None:
        kept = self.connect()
        self.ask("GET", "/health", connection=kept)
        opened = kept.sock
        stalled = self.raw(b"G")
        self.assert_closed(stalled)  # so at least that patience has passed since
        self.assert_closed(self.raw())
        self.assertEqual(self.ask("GET", "/health", connection=kept).status, 200)
        self.assertIs(kept.sock, opened)


if __name__ == "__main__":
    unittest.main()
