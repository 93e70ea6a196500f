"""Every command block, link and picture of the pages: shell parses, files exist, the program has the options."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import unittest
from xml.etree import ElementTree

import sidecar_init
from tests.pages.test_readme import blocks
from tests.support import MODULE, ROOT

PAGES = sorted(
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "app/*.md", "bench/README.md", "tests/*/*.md")
    for page in ROOT.glob(pattern)
)


def invocations(page: str) -> list[list[str]]:
    """The arguments of every sidecar_init in the page's shell blocks, wherever it runs."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            places = [
                i for i, word in enumerate(words) if re.search(r"(sidecar_init|init)\.pyc?$|^sidecar-init$", word)
            ]
            if places and "docker build" not in line:
                found.append([word for word in words[places[0] + 1 :] if word not in ("|", ">", "&&")])
    return found


class Blocks(unittest.TestCase):
    def test_shell_blocks_parse(self) -> None:
        self.assertIn("SECURITY.md", PAGES)
        for page in PAGES:
            for block in blocks(page, "sh"):
                with self.subTest(page, block=block):
                    done = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True)
                    self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_blocks_have_a_language_that_a_test_knows(self) -> None:
        for page in PAGES:
            fences = re.findall(r"^```(\S*)$", (ROOT / page).read_text(), re.MULTILINE)
            with self.subTest(page):
                self.assertEqual(len(fences) % 2, 0)
                self.assertLessEqual(set(fences[::2]), {"sh", "toml", "dockerfile", "nginx", "text"})

    def test_commands_have_options_that_the_program_knows(self) -> None:
        self.assertTrue(any(invocations(page) for page in PAGES))
        for page in PAGES:
            for arguments in invocations(page):
                with self.subTest(page, arguments=arguments):
                    done = subprocess.run([sys.executable, str(MODULE), *arguments, "--help"], capture_output=True)
                    self.assertEqual(done.returncode, 0, done.stderr)

    def test_files_of_the_repository_that_a_page_names_exist(self) -> None:
        for page in PAGES:
            text = (ROOT / page).read_text()
            for name in re.findall(r"(?<![/\w.])(?:tests|bench|examples|docs|app|\.ci)/[\w./*-]*\w", text):
                with self.subTest(page, file=name):
                    self.assertTrue(list(ROOT.glob(name)))

    def test_names_of_the_module_that_a_page_uses_exist(self) -> None:
        for page in ("CONTRIBUTING.md", "SECURITY.md"):
            text = (ROOT / page).read_text()
            in_tables = [
                name for row in re.findall(r"^\|.*", text, re.MULTILINE) for name in re.findall(r"`(_\w[\w.]*)", row)
            ]
            for name in [*in_tables, *re.findall(r"`(_[A-Z][\w.]*)", text)]:
                with self.subTest(page, name=name):
                    self.assertTrue(functools.reduce(getattr, name.split("."), sidecar_init))

    def test_symptoms_are_what_the_program_says(self) -> None:
        page, module = ((ROOT / name).read_text() for name in ("docs/troubleshooting.md", "sidecar_init.py"))
        for words in (
            "another process holds port",
            "all daemons run as the supervisor's user: only root can switch to another",
            "the container must have SETUID and SETGID",
            "the container must have SETPCAP, or none at all",
            "the container needs the capability KILL",
            "cannot keep status and events in",
            "cannot find a supervisor: there is no",
            "may be changed by others",
            "did not exist at startup",
            "(out of memory)",
            "was delivered, and it",
            "exiting with status",
            "unhealthy: not ready: ",
        ):
            with self.subTest(words):
                self.assertIn(words, " ".join(page.split()))
                self.assertIn(words, module)

    def test_fields_on_the_right_of_the_migration_tables_exist(self) -> None:
        known = {*sidecar_init._FIELDS, "signal", "to", "grace", "HUP", "forward"}
        text = (ROOT / "docs" / "migrating.md").read_text()
        right = " ".join(line.split(" | ", 1)[1] for line in text.splitlines() if " | " in line)
        fields = set(re.findall(r"[`{,] ?(\w+) = ", right))
        self.assertGreaterEqual(len(fields), 10)
        self.assertLessEqual(fields, known)

    def test_links_lead_somewhere(self) -> None:
        for page in PAGES:
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
                with self.subTest(page, link=link):
                    self.assertTrue((ROOT / page).parent.joinpath(link).exists())

    def test_pictures_have_a_background_and_need_no_css_variables(self) -> None:
        for picture in [*ROOT.glob("examples/*.svg"), *ROOT.glob("bench/*.svg")]:
            with self.subTest(picture.name):
                text = picture.read_text()
                self.assertNotIn("var(", text)
                self.assertIn("prefers-color-scheme:dark", text.replace(": dark", ":dark"))
                _, _, width, height = map(float, ElementTree.fromstring(text).attrib["viewBox"].split())
                paper = next(ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}rect")).attrib
                self.assertGreaterEqual((float(paper["width"]) + 1, float(paper["height"]) + 1), (width, height))


if __name__ == "__main__":
    unittest.main()
