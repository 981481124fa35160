"""What lies in ``deploy/`` is sound as far as that can be seen without a cloud; broken copies are noticed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from equipoise.platform.cluster.cluster_file import DEMANDS, validate_cluster

kubernetes_validate = pytest.importorskip("kubernetes_validate")

KUBERNETES = "1.31"
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
LABELS = {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", **known: Any) -> dict[str, Any]:
    """A schema of an object that has these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": required.split(),
        "additionalProperties": False,
    }


#: Fields of KubeRay's resources (its reference of ray.io/v1, release 1.7); pods are checked by Kubernetes' own schema.
GROUP = {"rayStartParams": LABELS, "template": {"type": "object"}, "labels": LABELS, "resources": LABELS}
CLUSTER = fields(
    "rayVersion headGroupSpec workerGroupSpecs authOptions",
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"enum": ["token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=NUMBER,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources={"type": "object"},
    ),
    headGroupSpec=fields("rayStartParams template", serviceType=TEXT, **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            "groupName template minReplicas maxReplicas",
            groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, idleTimeoutSeconds=NUMBER,
            numOfHosts=NUMBER, **GROUP,
        ),
    },
)  # fmt: skip
JOB = fields(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    activeDeadlineSeconds=NUMBER,
    backoffLimit=NUMBER,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=CLUSTER,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def pods(resource: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = cluster_of(resource)
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def check(resource: dict[str, Any]) -> None:
    """KubeRay's fields, Kubernetes' pods, and what we ask of both."""
    jsonschema.validate(resource["spec"], SPECS[resource["kind"]])
    for name, spec in pods(resource):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert spec["securityContext"]["runAsNonRoot"], name
        mounts = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounts
            assert re.search(r":\d+\.\d+\.\d+", container["image"]), "images are pinned"
            assert container["resources"]["requests"] == container["resources"]["limits"], "Ray counts limits"


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay(root: Path, name: str) -> None:
    resource = read(root / "deploy" / "kuberay" / name)
    check(resource)
    cluster = cluster_of(resource)
    import ray

    assert cluster["rayVersion"] == ray.__version__
    head = cluster["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0"
    assert "control" in head["resources"]
    offers = [{"control": 100.0}]
    for group, spec in list(pods(resource))[1:]:
        limits = spec["containers"][0]["resources"]["limits"]
        offers.append({"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))})
        assert group
    for job, demand in DEMANDS.items():
        assert any(all(offer.get(key, 0) >= n for key, n in demand.items()) for offer in offers), job


def test_the_job_and_the_cluster_are_the_same_cluster(root: Path) -> None:
    cluster, job = (read(root / "deploy" / "kuberay" / f"{name}.yaml") for name in ("raycluster", "rayjob"))
    assert cluster_of(job) == cluster_of(cluster)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("restartPolicy: Never", "restartPolcy: Never"),
        ("minReplicas", "minReplica"),
        ("mode: token", "mode: disabled"),
        ("runAsNonRoot: true", "runAsNonRoot: false"),
        ("image: equipoise:0.1.0", "image: equipoise:latest"),
        ("name: shm, mountPath", "name: shmm, mountPath"),
        ("autoscalerOptions", "autoscalerOption"),
        ("drop: \\[ALL\\]", "drop: ALL"),
    ],
)
def test_broken_resources_are_noticed(root: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(
        pattern, replacement, (root / "deploy" / "kuberay" / "raycluster.yaml").read_text(), count=1
    )
    assert count
    with pytest.raises((AssertionError, jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(yaml.safe_load(text))


def test_kustomization_names_files_that_kubernetes_understands(root: Path) -> None:
    folder = root / "deploy" / "kuberay"
    kustomization = read(folder / "kustomization.yaml")
    for name in kustomization["resources"]:
        resource = read(folder / name)
        assert resource["metadata"].get("namespace", "equipoise") == kustomization["namespace"]
        if resource["kind"] not in SPECS:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    images = {
        c["image"].partition(":")[0]
        for _, pod in pods(read(folder / "raycluster.yaml"))
        for c in pod["containers"]
    }
    assert {image["name"] for image in kustomization["images"]} == images


@pytest.mark.parametrize("name", ["gcp.yaml", "on-premise.yaml"])
def test_cluster_files(root: Path, name: str) -> None:
    assert validate_cluster(root / "deploy" / name) == []


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "said"),
    [
        ("gcp.yaml", "machineType: c2", "machinType: c2", "unknown key of a node of Compute Engine. Did you mean"),
        ("gcp.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true", "is spot, which cannot be stopped"),
        ("gcp.yaml", "dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0", "the dashboard would listen on 0.0.0.0"),
        ("on-premise.yaml", "--num-cpus=0 ", "", "needs --num-cpus=0"),
        ("on-premise.yaml", "--resources='{\"control\": 100}'", "", "drivers of trials ask for it"),
        ("on-premise.yaml", "RAY_AUTH_MODE=token ray start --address", "ray start --address", "without RAY_AUTH_MODE"),
        ("on-premise.yaml", "head_ip", "head_ipp", "head_ip"),
    ],
)  # fmt: skip
def test_broken_cluster_files(
    root: Path, tmp_path: Path, name: str, pattern: str, replacement: str, said: str
) -> None:
    text = (root / "deploy" / name).read_text()
    assert pattern in text
    text = text.replace(pattern, replacement, 1)
    (tmp_path / name).write_text(text)
    problems = validate_cluster(tmp_path / name)
    assert any(said in problem for problem in problems), problems
    assert all(re.match(rf"{name}:\d+: ", problem) for problem in problems)


def test_image(root: Path) -> None:
    """Pinned, not root, no secrets, and nothing travels that is not named."""
    lines = [
        line for line in (root / "deploy" / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    text = "\n".join(lines)
    import ray

    assert f"ARG RAY_TAG={ray.__version__}-py311" in lines
    assert "FROM rayproject/ray:${RAY_TAG}" in lines
    assert [line.split()[1] for line in lines if line.startswith("USER")] == ["ray"]
    assert not re.search(r"(?i)(password|secret|token)\s*=\s*(?!token\b)\S|\bADD\b|curl|latest", text)
    ignored = (root / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    kept = {name[1:] for name in ignored if name.startswith("!")}
    copied = {
        word.rstrip("/")
        for line in lines
        if line.startswith("COPY")
        for word in line.split()[2:-1]
        if word != "."
    }
    assert copied <= kept
    assert {"platform", "jobs", "datasets", "models", ".src"} <= kept
    for name in kept:
        assert (root / name).exists()
