"""An MCP connection that stays open: a call, "open" on stdout, and after a line on stdin a call on the same socket."""

from __future__ import annotations

import http.client
import json
import sys

connection = http.client.HTTPConnection("127.0.0.1", 9100, timeout=20)
connection.connect()
connection.auto_open = 0  # a connection that the server closed is an error, not a new one


def call(number: int, method: str, params: dict[str, object]) -> dict[str, object]:
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    connection.request("POST", "/mcp", json.dumps(message), headers)
    answer: dict[str, object] = json.loads(connection.getresponse().read())
    return answer


client = {"name": "test", "version": "1"}
call(1, "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client})
print("open", flush=True)
sys.stdin.readline()
print(json.dumps(call(2, "tools/call", {"name": "bundle_status", "arguments": {}})), flush=True)
