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
ONE_POD = ROOT / "examples" / "kubernetes-one-pod.yaml"
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
    """What compose makes of the file; None if there is no compose."""
    compose = compose_command()
    if compose is None:
        return None
    command = [*compose, "--project-directory", str(COMPOSE.parent), "--file", "-", "config"]
    return subprocess.run(command, input=COMPOSE.read_text(), capture_output=True, text=True)


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
                self.assertNotIn("healthcheck", service)  # the image's own waits for daemons that start
                self.assertGreater(int(service["stop_grace_period"].removesuffix("s")), 8)  # the supervisor's own
                self.assertEqual({"privileged", "ports", "init", "pid"} & service.keys(), set())

    def configured(self) -> str:
        """The file as compose understands it."""
        ended = read_by_compose()
        if ended is None:
            self.skipTest("neither `docker compose` nor docker-compose is installed")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended.stdout


def by_kind(text: str) -> dict[str, dict[str, Any]]:
    """What a file for Kubernetes holds: kind, name, and the whole object."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for item in yaml.safe_load_all(text):
        found.setdefault(item["kind"], {})[item["metadata"]["name"]] = item
    return found


@needs_yaml
class BundleInKubernetes(unittest.TestCase):
    """What holds for the bundle, in a pod of its own and beside the agent."""

    def setUp(self) -> None:
        pods = by_kind(KUBERNETES.read_text())["Pod"]
        together = by_kind(ONE_POD.read_text())["Pod"]["agent"]["spec"]
        apart = pods["sidecars"]["spec"], pods["agent"]["spec"]
        self.forms = {  # pods of the bundle and of the agent, and the two containers
            "apart": (*apart, apart[0]["containers"][0], apart[1]["containers"][0]),
            "together": (together, together, together["initContainers"][1], together["containers"][0]),
        }

    @unittest.skipUnless(find_spec("kubernetes_validate"), "no kubernetes-validate: pip install kubernetes-validate")
    def test_the_schemas_of_kubernetes_accept_the_files(self) -> None:
        kubernetes_validate = import_module("kubernetes_validate")
        for version in ("1.29", kubernetes_validate.latest_version()):
            for file in (KUBERNETES, ONE_POD):
                for kind, items in by_kind(file.read_text()).items():
                    for name, item in items.items():
                        with self.subTest(version, file=file.name, kind=kind, name=name):
                            kubernetes_validate.validate(item, version, strict=True)

    def test_the_bundle_has_the_probes_of_the_supervisor_and_its_time_to_stop(self) -> None:
        for form, (pod, _, bundle, _) in self.forms.items():
            with self.subTest(form):
                for probe in ("startupProbe", "readinessProbe"):
                    self.assertEqual(bundle[probe]["exec"]["command"], HEALTH)
                self.assertGreater(pod["terminationGracePeriodSeconds"], 8)

    def test_the_bundle_has_what_it_needs_and_no_more(self) -> None:
        for form, (_, _, bundle, _) in self.forms.items():
            with self.subTest(form):
                context = bundle["securityContext"]
                self.assertEqual(context["capabilities"]["drop"], ["ALL"])
                self.assertEqual(sorted(context["capabilities"]["add"]), CAPABILITIES)
                self.assertIs(context["allowPrivilegeEscalation"], False)
                self.assertIs(context["readOnlyRootFilesystem"], True)
                self.assertEqual({port["name"]: port["containerPort"] for port in bundle["ports"]}, PORTS)

    def test_the_tokens_are_files_that_go_to_the_bundle_alone_and_the_agent_has_placeholders(self) -> None:
        for form, (pod, agents_pod, bundle, agent) in self.forms.items():
            with self.subTest(form):
                tokens = {row["name"]: row["value"] for row in bundle["env"] if row["name"].startswith("EGRESS_TOKEN_")}
                self.assertTrue(tokens)
                for name, path in tokens.items():
                    self.assertTrue(name.endswith("_FILE") and path.startswith("/etc/egress-tokens/"), (name, path))
                self.assertIn("egress-tokens", [volume["name"] for volume in pod["volumes"]])
                self.assertNotIn("EGRESS_TOKEN_", str(agent))
                self.assertNotIn("envFrom", agent)
                given = {row["name"]: row["value"] for row in agent["env"]}
                self.assertEqual([given[name] for name in ("ANTHROPIC_API_KEY", "GH_TOKEN")], ["placeholder"] * 2)
                for one in (pod, agents_pod):
                    self.assertIs(one["automountServiceAccountToken"], False)

    def test_the_agent_shares_no_volume_with_the_bundle_and_every_volume_is_there(self) -> None:
        for form, (pod, agents_pod, *containers) in self.forms.items():
            with self.subTest(form):
                bundle, agent = ({mount["name"] for mount in container["volumeMounts"]} for container in containers)
                self.assertEqual(bundle & agent, set())
                there = {volume["name"] for one in (pod, agents_pod) for volume in one["volumes"]}
                self.assertEqual(bundle | agent, there)

    def test_no_emptydir_is_mounted_where_a_daemon_could_replace_what_is_not_its_own(self) -> None:
        for form, (pod, _, bundle, _) in self.forms.items():
            with self.subTest(form):
                places = {mount["name"]: mount for mount in bundle["volumeMounts"]}
                self.assertEqual(places["run"]["mountPath"], "/run/sidecar-init")
                self.assertEqual(places["mirrors"]["subPath"], "git")
                mirrors = pod["initContainers"][0]
                self.assertEqual(mirrors["command"][-1], "/volume/git")
                self.assertEqual(mirrors["securityContext"]["runAsUser"], 9418)


@needs_yaml
class Apart(unittest.TestCase):
    """The main form: two pods, and policies between them."""

    AGENTS_PORTS = sorted(set(PORTS.values()) - {PORTS["pipelock"]})

    def setUp(self) -> None:
        self.file = by_kind(KUBERNETES.read_text())

    def selector(self, item: dict[str, Any]) -> dict[str, str]:
        labels: dict[str, str] = item["spec"]["podSelector"]["matchLabels"]
        return labels

    def test_the_agent_may_send_to_the_bundle_alone_and_not_to_pipelock(self) -> None:
        policy = self.file["NetworkPolicy"]["agent"]
        self.assertEqual(self.selector(policy), self.file["Pod"]["agent"]["metadata"]["labels"])
        self.assertEqual(sorted(policy["spec"]["policyTypes"]), ["Egress", "Ingress"])
        self.assertNotIn("ingress", policy["spec"])
        [rule] = policy["spec"]["egress"]
        self.assertEqual(rule["to"], [{"podSelector": {"matchLabels": {"app": "sidecars"}}}])
        self.assertEqual(sorted(row["port"] for row in rule["ports"]), self.AGENTS_PORTS)

    def test_the_bundle_hears_the_agent_alone(self) -> None:
        policy = self.file["NetworkPolicy"]["sidecars"]
        self.assertEqual(self.selector(policy), self.file["Pod"]["sidecars"]["metadata"]["labels"])
        [rule] = policy["spec"]["ingress"]
        self.assertEqual(rule["from"], [{"podSelector": {"matchLabels": {"app": "agent"}}}])
        self.assertEqual(sorted(row["port"] for row in rule["ports"]), self.AGENTS_PORTS)

    def test_the_service_leads_to_the_bundle_and_its_variables_are_no_settings(self) -> None:
        service = self.file["Service"]["sidecars"]["spec"]
        self.assertEqual(service["selector"], self.file["Pod"]["sidecars"]["metadata"]["labels"])
        self.assertEqual(sorted(row["port"] for row in service["ports"]), self.AGENTS_PORTS)
        self.assertIs(self.file["Pod"]["sidecars"]["spec"]["enableServiceLinks"], False)

    def test_the_agent_needs_no_dns(self) -> None:
        spec = self.file["Pod"]["agent"]["spec"]
        self.assertEqual(spec["dnsPolicy"], "None")
        proxy = next(row["value"] for row in spec["containers"][0]["env"] if row["name"] == "HTTPS_PROXY")
        self.assertEqual(proxy, "http://$(SIDECARS_SERVICE_HOST):9099")
        self.assertNotEqual(spec.get("enableServiceLinks"), False)


@needs_yaml
class Together(unittest.TestCase):
    """The second form, in one pod."""

    def setUp(self) -> None:
        self.spec = by_kind(ONE_POD.read_text())["Pod"]["agent"]["spec"]

    def test_the_bundle_is_a_native_sidecar_whose_processes_the_agent_does_not_see(self) -> None:
        _, bundle = self.spec["initContainers"]
        self.assertEqual(bundle["restartPolicy"], "Always")
        self.assertIs(self.spec["shareProcessNamespace"], False)

    def test_it_has_the_names_that_it_has_elsewhere(self) -> None:
        [alias] = self.spec["hostAliases"]
        self.assertEqual(alias, {"ip": "127.0.0.1", "hostnames": ["egress", "pipelock", "git-gate", "supervise"]})

    def test_its_limitation_comes_first(self) -> None:
        comment = ONE_POD.read_text().partition("apiVersion")[0]
        self.assertLess(comment.index("limitation"), comment.index("native sidecar"))


if __name__ == "__main__":
    unittest.main()
