"""What deploy/ holds, each file read by a checker of its format: the packages `compose-spec` and `kubernetes-validate`
(Kubernetes' own schemas), Ray Serve's schema, and nginx. No cluster and no container is started."""

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from serving_runs import nginx_configuration

DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = [*yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())]
COMPOSE = yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]*\}", r"/\1", (DEPLOY / "compose.yaml").read_text()))


def pods() -> list[dict]:
    return [one["spec"]["template"]["spec"] for one in KUBERNETES if "template" in one["spec"]]


def commands() -> list[list[str]]:
    """What containers of llmrec are told."""
    told = [container["args"] for pod in pods() for container in pod["containers"]]
    return told + [service["command"] for service in COMPOSE["services"].values() if "command" in service]


def test_the_servers_know_every_flag(monkeypatch):
    from llmrec.serving import __main__ as server

    parsed = []

    class Parsed(Exception):  # noqa: N818
        pass

    def parse(self, arguments):
        parsed.append(parse_args(self, arguments))
        raise Parsed

    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for command in commands():
        with pytest.raises(Parsed):
            server.main([str(word) for word in command])
    assert [one.modes for one in parsed].count([]) == 2  # a writer in each
    assert all(one.follow or one.modes == [] for one in parsed)
    urls = {one.follow for one in parsed if one.follow}
    services = {one["metadata"]["name"] for one in KUBERNETES if one["kind"] == "Service"} | {*COMPOSE["services"]}
    assert urls and all(re.fullmatch(r"http://([\w-]+):8000", url)[1] in services for url in urls)


def test_compose_follows_its_specification():
    compose_spec = pytest.importorskip("compose_spec")
    read = compose_spec.PyCompose.from_json(json.dumps(COMPOSE))
    read.validate()
    read.to_spec()
    assert read.service_names() == ["catalogue", "front_0", "front_1", "balancer"]
    wrong = {**COMPOSE, "services": {**COMPOSE["services"], "balancer": {"image": "nginx", "prots": ["80:80"]}}}
    with pytest.raises(Exception, match="prots"):
        compose_spec.PyCompose.from_json(json.dumps(wrong)).to_spec()


def test_kubernetes_knows_every_object():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for one in KUBERNETES:
        kubernetes_validate.validate(one, "1.31", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**KUBERNETES[0], "spec": {"ports": [{"prot": 8000}]}}, "1.31", strict=True)


def test_volumes_keys_and_labels_of_kubernetes_belong_together():
    for pod in pods():
        claims = [
            claim["metadata"]["name"] for one in KUBERNETES for claim in one["spec"].get("volumeClaimTemplates", [])
        ]
        volumes = {volume["name"] for volume in pod["volumes"]} | {*claims}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
            assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in KUBERNETES if "template" in one["spec"]]
    for one in KUBERNETES:
        selector = one["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        assert [selector.items() <= label.items() for label in labels].count(True) == 1


def test_ray_serve_reads_its_configuration():
    schema = pytest.importorskip("ray.serve.schema", reason="needs ray[serve]", exc_type=ImportError)
    text = (DEPLOY / "ray_serve.yaml").read_text()
    (application,) = schema.ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert [one.name for one in application.deployments] == ["Recommender"]
    with pytest.raises(ValueError):
        schema.ServeDeploySchema.model_validate(yaml.safe_load(text.replace("num_replicas: 2", "num_replicas: -2")))


NGINX = shutil.which("nginx")


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_nginx_takes_its_configuration(tmp_path):
    path = nginx_configuration(tmp_path, 8080, front_0=8001, front_1=8002, catalogue=8003)
    command = [NGINX, "-t", "-c", path, "-e", tmp_path / "error"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
