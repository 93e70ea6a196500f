"""The supervise daemon, asked by the official MCP client."""

from __future__ import annotations

import json
import unittest
from typing import Any

from tests.docker.engine import DAEMONS, BundleTest


class OfficialClient(BundleTest):
    def ask(self, mode: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.world.python("mcp_official.py", mode).stdout)
        self.assertEqual(set(answer["tools"]), {"bundle_status", "bundle_events"})
        for daemon in DAEMONS:
            self.assertIn(daemon, answer["status"])
        self.assertIn("ready", answer["events"])
        return answer

    def test_by_the_revision_with_sessions(self) -> None:
        self.assertEqual(self.ask("legacy")["revision"], "2025-11-25")

    def test_by_the_revision_without(self) -> None:
        self.assertEqual(self.ask("2026-07-28")["revision"], "2026-07-28")

    def test_left_to_choose_for_itself(self) -> None:
        self.ask("auto")


if __name__ == "__main__":
    unittest.main()
