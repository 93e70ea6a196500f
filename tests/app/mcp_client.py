"""What the official client (`mcp` on PyPI) gets from the server at argv[1] in mode argv[2], as JSON on stdout.

Run by test_supervise with an interpreter that has that package.
"""

import asyncio
import json
import sys

from mcp import Client


async def main(url: str, mode: str) -> None:
    async with Client(url, mode=mode) as client:
        tools = await client.list_tools()
        status = await client.call_tool("bundle_status", {})
        events = await client.call_tool("bundle_events", {"count": 1, "daemon": "egress"})
        wrong = await client.call_tool("bundle_events", {"count": "many"})
        seen = {
            "revision": client.protocol_version,
            "server": client.server_info.name if client.server_info else None,
            "tools": [tool.name for tool in tools.tools],
            "status": status.structured_content,
            "status_text": status.content[0].text,
            "events": events.structured_content,
            "wrong": wrong.is_error,
        }
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1], sys.argv[2]))
