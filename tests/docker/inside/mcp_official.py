"""What the official client gets from supervise in mode argv[1], as JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import sys

from mcp import Client


async def main(mode: str) -> None:
    async with Client("http://127.0.0.1:9100/mcp", mode=mode) as client:
        tools = await client.list_tools()
        status = await client.call_tool("bundle_status", {})
        events = await client.call_tool("bundle_events", {"count": 50})
        seen = {
            "revision": client.protocol_version,
            "tools": [tool.name for tool in tools.tools],
            "status": status.content[0].text,
            "events": events.content[0].text,
        }
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1]))
