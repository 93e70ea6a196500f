"""docs/reference.md names exactly what the program knows: a row for each field, variable, command, event and so on."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

import sidecar_init
from tests.support import MODULE, ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
TREE = ast.parse(MODULE.read_text())


def sections() -> dict[str, list[list[str]]]:
    """The rows of each section's table, without its heading."""
    found: dict[str, list[list[str]]] = {}
    for heading, text in re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", REFERENCE, re.MULTILINE):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        found[heading] = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    return found


def keys(heading: str) -> set[str]:
    """The first cells of a table; of `--follow`, `-f` the first."""
    return {row[0].split(", ")[0].strip("`") for row in sections()[heading]}


def strings(node: ast.AST) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def definition(name: str) -> ast.AST:
    [found] = [
        node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
    ]
    return found


def assigned(function: ast.AST, name: str) -> Iterator[ast.AST]:
    """Every value that the function assigns to this variable."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            [target] = node.targets
            is_tuple = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            targets = target.elts if isinstance(target, ast.Tuple) and is_tuple else [target]
            values = node.value.elts if isinstance(node.value, ast.Tuple) and is_tuple else [node.value]
            for one, value in zip(targets, values, strict=True):
                if isinstance(one, ast.Name) and one.id == name:
                    yield value


def recorded_events() -> dict[str, set[str]]:
    """What is passed to `record`, or to a method that passes it on: each event with the names of its details."""
    functions = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]
    recorders, others = {"record"}, set()
    for function in functions:
        parameters = {argument.arg for argument in function.args.args}
        for call in calls(function, {"record"}):
            if isinstance(call.args[0], ast.Name) and call.args[0].id in parameters:
                recorders.add(function.name)
                others |= {argument.arg for argument in function.args.kwonlyargs}
    events: dict[str, set[str]] = {}
    for function in functions:
        for call in calls(function, recorders):
            event = call.args[0]
            values = assigned(function, event.id) if isinstance(event, ast.Name) else [event]
            for name in [part for value in values for part in branches(value)]:
                if isinstance(name, ast.Constant):
                    details = {keyword.arg for keyword in call.keywords if keyword.arg} - others
                    events.setdefault(str(name.value), set()).update(details)
    return events


def calls(function: ast.AST, methods: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in methods
            and node.args
        ):
            yield node


def branches(value: ast.AST) -> list[ast.expr | ast.AST]:
    return [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]


def usage(*arguments: str) -> str:
    command = [sys.executable, str(MODULE), *arguments, "--help"]
    return subprocess.check_output(command, text=True, env={**os.environ, "COLUMNS": "200"})


def commands() -> list[str]:
    return re.findall(r"^    (\w+)  ", usage(), re.MULTILINE)


class Variables(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return False


class Reference(unittest.TestCase):
    def test_every_table_is_sorted_and_has_nothing_twice(self) -> None:
        for heading, rows in sections().items():
            with self.subTest(heading):
                first = [row[0].strip("`").replace("`", "") for row in rows]
                self.assertEqual(first, sorted(set(first), key=self.place))

    def test_every_field_of_a_daemon_has_a_row(self) -> None:
        stop = set(re.findall(r"(\w+) =", sidecar_init._FIELDS["stop"][0]))
        expected = {*(sidecar_init._FIELDS.keys() - {"stop"}), *(f"stop.{key}" for key in stop)}
        self.assertEqual(keys("Fields of `[[daemon]]`"), expected)

    def test_the_shipped_table_has_its_rows(self) -> None:
        expected = []
        for spec in sorted(sidecar_init._DAEMONS, key=lambda spec: spec.name):
            others = [f"`{field}`" for field in ("check", "files") if getattr(spec, field)]
            cells = [spec.name, f"`{' '.join(spec.argv)}`", str(spec.port), spec.user or "none"]
            expected.append([*cells, ", ".join(spec.after) or "none", ", ".join(others) or "none"])
            self.assertEqual(spec.restart, "always")
        self.assertEqual(sections()["Shipped table"], expected)

    def test_every_variable_has_a_row(self) -> None:
        environment = Variables()
        for call in ast.walk(TREE):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "_setting":
                sidecar_init._setting(environment, ast.literal_eval(call.args[1]))
        any_secret = {"NAME_FILE"}
        self.assertTrue(sidecar_init._secret_in_file("EGRESS_TOKEN_NAME_FILE"))
        self.assertEqual(keys("Variables"), environment.asked | set(self.other_variables()) | any_secret)

    def test_every_signal_has_a_row(self) -> None:
        handled = {signal.Signals(number).name.removeprefix("SIG") for number in sidecar_init._HANDLED_SIGNALS}
        self.assertEqual(keys("Signals to PID 1"), {*handled, f"{sidecar_init._FIRST_ROW_SIGNAL}+n"})

    def test_every_command_has_a_row(self) -> None:
        self.assertEqual({key.split()[0] for key in keys("Commands")}, {*commands(), "none"})

    def test_every_option_has_a_row_that_names_its_commands(self) -> None:
        owners: dict[str, set[str]] = {}
        for command in ["none", *commands()]:
            for line in re.findall(
                r"^  (-.*?)(?:  |$)", usage(*(() if command == "none" else (command,))), re.MULTILINE
            ):
                for option in re.findall(r"--?[a-zA-Z]+", line):
                    owners.setdefault(option, set()).add(command)
        documented: dict[str, set[str]] = {}
        for options, of, _ in sections()["Options"]:
            for option in re.findall(r"--?[a-zA-Z]+", options):
                documented[option] = {"none", *commands()} if of == "all" else set(of.replace("`", "").split(", "))
        self.assertEqual(documented, owners)

    def test_every_file_has_a_row(self) -> None:
        names = set(re.findall(r'"(\w+\.jsonl?(?:\.1)?)"', MODULE.read_text()))
        expected = {*names, sidecar_init._STATE_DIRECTORY, "/tmp/sidecar-init-UID"}
        self.assertEqual(keys("Files"), expected)

    def test_every_state_of_a_daemon_has_a_row(self) -> None:
        entered = {node.id for node in ast.walk(definition("_Daemon")) if isinstance(node, ast.Name)}
        values = {getattr(sidecar_init, name, None) for name in entered if name.isupper()}
        states = {value for value in values if isinstance(value, str)}
        self.assertGreaterEqual(len(states), 9)
        self.assertEqual(keys("States of a daemon"), states)

    def test_every_state_of_the_supervisor_has_a_row(self) -> None:
        written: set[str] = set()
        for node in ast.walk(definition("_write_status")):
            if isinstance(node, ast.IfExp):
                written |= strings(node)
        for call in ast.walk(TREE):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "_write_status"
            ):
                written |= strings(call)
        self.assertEqual(keys("States of the supervisor"), written)

    def test_every_field_of_the_status_has_a_row(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            table = Path(directory, "table.toml")
            table.write_text('[[daemon]]\nname = "one"\nargv = ["true"]\n')
            env = {**os.environ, "BOT_BOTTLE_SIDECAR_STATE_DIR": directory}
            command = [sys.executable, str(MODULE), "--table", str(table)]
            subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
            status = json.loads(Path(directory, "status.json").read_text())
            events = [json.loads(line) for line in Path(directory, "events.jsonl").read_text().splitlines()]
        self.assertEqual(keys("Fields of `status.json`"), status.keys())
        self.assertEqual(keys("Fields of a daemon in `status.json`"), status["daemons"][0].keys())
        details = {event["event"]: event.keys() - {"time", "event", "daemon", "pid"} for event in events}
        self.assertEqual(details["exited"], self.documented_events()["exited"])

    def test_every_event_has_a_row_with_its_details(self) -> None:
        self.assertEqual(self.documented_events(), recorded_events())

    def test_every_exit_status_has_a_row(self) -> None:
        numbers = {0, sidecar_init._Refusal("").exit_code}
        for node in ast.walk(definition("_use_table")):
            if isinstance(node, ast.keyword) and node.arg == "exit_code":
                numbers.add(ast.literal_eval(node.value))
        for name in ("_CannotStart", "main", "_shell_status"):
            for node in ast.walk(definition(name)):
                if isinstance(node, ast.Constant) and isinstance(node.value, int) and 100 < node.value < 256:
                    numbers.add(node.value)
        rows = keys("Exit status of the supervisor") | keys("Exit status of the commands")
        self.assertEqual(rows, {*map(str, numbers - {128}), "128+n", "n"})

    @staticmethod
    def place(cell: str) -> tuple[bool, str]:
        """`none` and other words come after what is written as code; dashes do not count."""
        return cell == "none", cell.replace("=", " ")

    @staticmethod
    def documented_events() -> dict[str, set[str]]:
        return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in sections()["Events"]}

    @staticmethod
    def other_variables() -> Iterator[str]:
        """What is looked up by its name, and what is put into a daemon's environment."""
        for node in ast.walk(TREE):
            names: list[ast.expr | None] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                names = [*node.args[:1]]
            elif isinstance(node, ast.Dict):
                names = node.keys
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
                names = [node.left]
            for name in names:
                if isinstance(name, ast.Constant) and re.fullmatch(r"[A-Z_]{4,}", str(name.value)):
                    yield re.sub("_$", "_*", str(name.value))


if __name__ == "__main__":
    unittest.main()
