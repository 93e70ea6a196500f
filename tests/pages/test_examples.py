"""The examples: accepted by the tools that read them, and as tight as they say."""

from __future__ import annotations

import functools
import os
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
def read_by_compose() -> subprocess.CompletedProcess[str] | None:
    """What compose makes of the file; None where there is no compose."""
    compose = compose_command()
    if compose is None:
        return None
    command = [*compose, "--file", str(COMPOSE), "config"]
    return subprocess.run(command, env={**os.environ, "EGRESS_TOKEN_GITHUB": "a-token"}, capture_output=True, text=True)


def load(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


class Compose(unittest.TestCase):
    def test_compose_accepts_the_file(self) -> None:
        self.configured()

    @needs_yaml
    def test_the_tokens_come_from_the_environment_and_go_to_the_bundle_alone(self) -> None:
        services = load(self.configured())["services"]
        self.assertEqual(services["sidecars"]["environment"]["EGRESS_TOKEN_GITHUB"], "a-token")
        self.assertNotIn("a-token", str(services["agent"]))
        self.assertNotIn("a-token", COMPOSE.read_text())

    @needs_yaml
    def test_the_agent_is_on_the_internal_network_alone(self) -> None:
        file = load(COMPOSE.read_text())
        self.assertEqual(file["services"]["agent"]["networks"], ["inside"])
        self.assertIs(file["networks"]["inside"]["internal"], True)
        self.assertNotIn("network_mode", file["services"]["agent"])
        self.assertIn("inside", file["services"]["sidecars"]["networks"])

    @needs_yaml
    def test_the_agent_shares_no_volume_with_the_bundle(self) -> None:
        services = load(COMPOSE.read_text())["services"]
        sources = {name: {volume.split(":")[0] for volume in services[name]["volumes"]} for name in services}
        self.assertEqual(sources["agent"] & sources["sidecars"], set())

    @needs_yaml
    def test_the_bundle_has_what_it_needs_and_no_more(self) -> None:
        bundle = load(COMPOSE.read_text())["services"]["sidecars"]
        self.assertEqual((bundle["cap_drop"], sorted(bundle["cap_add"])), (["ALL"], CAPABILITIES))
        self.assertEqual((bundle["read_only"], bundle["tmpfs"]), (True, ["/run"]))
        self.assertEqual(bundle["security_opt"], ["no-new-privileges:true"])
        self.assertEqual(bundle["healthcheck"]["test"], ["CMD", *HEALTH])
        self.assertGreater(int(bundle["stop_grace_period"].removesuffix("s")), 8)  # the supervisor's own
        self.assertEqual({"privileged", "ports", "init", "pid"} & bundle.keys(), set())

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
