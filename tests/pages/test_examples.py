"""The examples: accepted by the tools that read them, and as tight as they say."""

from __future__ import annotations

import functools
import shutil
import subprocess
import unittest
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tests.support import ROOT

COMPOSE = ROOT / "examples" / "compose.yaml"
KUBERNETES = ROOT / "examples" / "kubernetes.yaml"
CAPABILITIES = ["KILL", "SETGID", "SETPCAP", "SETUID"]
HEALTH = ["python3", "/app/sidecar_init.py", "health"]
PORTS = {"egress": 9099, "pipelock": 8888, "git-gate": 9418, "git-http": 9420, "supervise": 9100}

needs_yaml = unittest.skipUnless(find_spec("yaml"), "no PyYAML: pip install PyYAML")


def compose_command() -> list[str] | None:
    """The plugin, or the older program of its own; None where neither is installed."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return ["docker-compose"] if shutil.which("docker-compose") else None


@functools.cache
def knows_start_interval() -> bool:
    """The compose of before 2020 refuses the word, and engines before 25 refuse its use."""
    if compose_command() == ["docker-compose"]:
        return False
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    version = subprocess.run(asked, capture_output=True, text=True).stdout.partition(".")[0]
    return version.isdecimal() and int(version) >= 25


def without_start_interval(text: str) -> str:
    """The example for the programs of this machine."""
    if knows_start_interval():
        return text
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("start_interval:")]
    assert len(kept) == len(lines) - 1
    return "".join(kept)


@functools.cache
def read_by_compose() -> subprocess.CompletedProcess[str] | None:
    """What compose makes of the file; None where there is no compose."""
    compose = compose_command()
    if compose is None:
        return None
    command = [*compose, "--project-directory", str(COMPOSE.parent), "--file", "-", "config"]
    return subprocess.run(command, input=without_start_interval(COMPOSE.read_text()), capture_output=True, text=True)


def load(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


class Compose(unittest.TestCase):
    def test_compose_accepts_the_file(self) -> None:
        self.configured()

    @needs_yaml
    def test_the_tokens_are_files_that_go_to_egress_alone(self) -> None:
        file = load(COMPOSE.read_text())
        bundle, others = file["services"].pop("sidecars"), file["services"]
        tokens = {name: value for name, value in bundle["environment"].items() if name.startswith("EGRESS_TOKEN_")}
        self.assertTrue(tokens)
        for name, path in tokens.items():
            self.assertTrue(name.endswith("_FILE"), name)
            self.assertIn(path.removeprefix("/run/secrets/"), bundle["secrets"])
        self.assertEqual(set(bundle["secrets"]), set(file["secrets"]))
        for service in others.values():
            self.assertNotIn("secrets", service)
            self.assertNotIn("EGRESS_TOKEN_", str(service))

    @needs_yaml
    def test_the_agent_has_placeholders_instead_of_credentials(self) -> None:
        environment = load(COMPOSE.read_text())["services"]["agent"]["environment"]
        for name in ("ANTHROPIC_API_KEY", "GH_TOKEN"):
            self.assertEqual(environment[name], "placeholder")

    @needs_yaml
    def test_the_agent_is_on_the_internal_network_alone_and_pipelock_is_not_there(self) -> None:
        file = load(COMPOSE.read_text())
        services = file["services"]
        self.assertEqual(services["agent"]["networks"], ["inside"])
        self.assertIs(file["networks"]["inside"]["internal"], True)
        self.assertNotIn("network_mode", services["agent"])
        self.assertEqual(services["sidecars"]["networks"]["inside"]["aliases"], ["egress", "git-gate", "supervise"])
        self.assertEqual(services["pipelock"]["networks"], ["outside"])

    @needs_yaml
    def test_the_two_containers_run_all_the_daemons_and_egress_asks_pipelock(self) -> None:
        services = load(COMPOSE.read_text())["services"]
        selected = [services[name]["environment"]["BOT_BOTTLE_SIDECAR_DAEMONS"] for name in ("sidecars", "pipelock")]
        self.assertEqual(set(",".join(selected).split(",")), set(PORTS))
        self.assertEqual(selected[1], "pipelock")
        self.assertEqual(services["sidecars"]["environment"]["EGRESS_UPSTREAM_PROXY"], "http://pipelock:8888")

    @needs_yaml
    def test_the_agent_shares_no_volume_with_the_others(self) -> None:
        services = load(COMPOSE.read_text())["services"]
        sources = {name: {volume.split(":")[0] for volume in services[name]["volumes"]} for name in services}
        self.assertEqual(sources["agent"] & (sources["sidecars"] | sources["pipelock"]), set())

    @needs_yaml
    def test_each_container_with_sidecars_has_what_it_needs_and_no_more(self) -> None:
        for name in ("sidecars", "pipelock"):
            service = load(COMPOSE.read_text())["services"][name]
            with self.subTest(name):
                self.assertEqual((service["cap_drop"], sorted(service["cap_add"])), (["ALL"], CAPABILITIES))
                self.assertEqual((service["read_only"], service["tmpfs"]), (True, ["/run"]))
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertEqual(service["healthcheck"]["test"], ["CMD", *HEALTH])
                self.assertGreater(int(service["stop_grace_period"].removesuffix("s")), 8)  # the supervisor's own
                self.assertEqual({"privileged", "ports", "init", "pid"} & service.keys(), set())

    def configured(self) -> str:
        """The file as compose understands it."""
        ended = read_by_compose()
        if ended is None:
            self.skipTest("neither `docker compose` nor docker-compose is installed")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended.stdout


@needs_yaml
class Kubernetes(unittest.TestCase):
    def setUp(self) -> None:
        self.spec = load(KUBERNETES.read_text())["spec"]
        [self.bundle] = self.spec["initContainers"]
        [self.agent] = self.spec["containers"]

    @unittest.skipUnless(find_spec("kubernetes_validate"), "no kubernetes-validate: pip install kubernetes-validate")
    def test_the_schemas_of_kubernetes_accept_the_file(self) -> None:
        kubernetes_validate = import_module("kubernetes_validate")
        for version in ("1.29", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(load(KUBERNETES.read_text()), version, strict=True)

    def test_the_bundle_is_a_native_sidecar_with_the_probes_of_the_supervisor(self) -> None:
        self.assertEqual(self.bundle["restartPolicy"], "Always")
        for probe in ("startupProbe", "readinessProbe"):
            self.assertEqual(self.bundle[probe]["exec"]["command"], HEALTH)
        self.assertGreater(self.spec["terminationGracePeriodSeconds"], 8)

    def test_the_bundle_has_what_it_needs_and_no_more(self) -> None:
        context = self.bundle["securityContext"]
        self.assertEqual(context["capabilities"]["drop"], ["ALL"])
        self.assertEqual(sorted(context["capabilities"]["add"]), CAPABILITIES)
        self.assertIs(context["allowPrivilegeEscalation"], False)
        self.assertIs(context["readOnlyRootFilesystem"], True)
        self.assertEqual({port["name"]: port["containerPort"] for port in self.bundle["ports"]}, PORTS)

    def test_the_tokens_go_to_the_bundle_alone(self) -> None:
        tokens = [variable for variable in self.bundle["env"] if variable["name"].startswith("EGRESS_TOKEN_")]
        self.assertTrue(tokens)
        self.assertTrue(all("secretKeyRef" in token["valueFrom"] for token in tokens))
        self.assertNotIn("EGRESS_TOKEN_", str(self.agent))
        self.assertNotIn("envFrom", self.agent)
        self.assertIs(self.spec["automountServiceAccountToken"], False)
        self.assertIs(self.spec["shareProcessNamespace"], False)

    def test_the_agent_shares_no_volume_with_the_bundle_and_every_volume_is_there(self) -> None:
        bundle, agent = ({mount["name"] for mount in part["volumeMounts"]} for part in (self.bundle, self.agent))
        self.assertEqual(bundle & agent, set())
        self.assertEqual(bundle | agent, {volume["name"] for volume in self.spec["volumes"]})
        self.assertIn({"name": "run", "mountPath": "/run"}, self.bundle["volumeMounts"])


if __name__ == "__main__":
    unittest.main()
