"""Checks a Ray cluster file (``cluster.yaml``) offline: no cloud account, no credentials, no launch.

Ray's own validation (schema, then the rules of ``ray up``) comes first. Further checks find what it accepts: a
minimum above the maximum of one node type, misspelt keys of the cloud's node configuration, a head that would
run tasks, a cluster without tokens, a dashboard on a public address, spot nodes that are to be stopped, images
of another Ray version, and jobs that fit on no node type.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from equipoise.platform.errors import StudyError
from equipoise.platform.registry import nearest
from equipoise.platform.yaml_files import parse, read_text

#: Parameters of EC2's RunInstances that a node may need; any other key is more likely a typo.
EC2_KEYS = frozenset(
    {
        "BlockDeviceMappings",
        "EbsOptimized",
        "IamInstanceProfile",
        "ImageId",
        "InstanceMarketOptions",
        "InstanceType",
        "KeyName",
        "MetadataOptions",
        "NetworkInterfaces",
        "Placement",
        "SecurityGroupIds",
        "SubnetId",
        "SubnetIds",
        "TagSpecifications",
        "UserData",
    }
)

#: Fields of an instance of Compute Engine that a node may need, as Ray's launcher takes them.
GCE_KEYS = frozenset(
    {
        "canIpForward",
        "disks",
        "guestAccelerators",
        "labels",
        "machineType",
        "metadata",
        "minCpuPlatform",
        "networkInterfaces",
        "networkConfig",
        "scheduling",
        "schedulingConfig",
        "serviceAccounts",
        "shieldedInstanceConfig",
        "sourceMachineImage",
        "tags",
    }
)
#: Provider → what its nodes are called, and their keys. Machines of one's own (``local``) have none.
CLOUDS = {"aws": ("an EC2 node", EC2_KEYS), "gcp": ("a node of Compute Engine", GCE_KEYS)}

#: Resources that one task of each job requests. If one of them fits on no node, the cluster waits for ever.
DEMANDS: Mapping[str, Mapping[str, float]] = {
    "synthesize": {"CPU": 1},
    "extract, slides": {"CPU": 1},
    "extract, encoder on a GPU": {"CPU": 1, "GPU": 1},
    "train on a GPU": {"CPU": 1, "GPU": 1},
    "driver of a trial": {"control": 1},
}

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Keys of the file, from the root: names of mappings and positions in lists.
KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]


def validate_cluster(path: Path | str, demands: Mapping[str, Mapping[str, float]] = DEMANDS) -> list[str]:
    """All problems of a cluster file, each as ``file:line: key: what is wrong``; empty if there is none.

    Parameters
    ----------
    path
        The YAML file.
    demands
        Resources of one task by job; each must fit on some node type.

    Raises
    ------
    StudyError
        If the file cannot be read or is no YAML mapping.
    """
    path = Path(path)
    config, key_lines = _read(path)
    lines = dict(key_lines)
    problems = [*_schema_problems(config)]
    if not problems:  # the rules need a file of the right shape
        prepared, problems = _prepare(config)
        problems += _rules(prepared, demands) if prepared else []
    counts = Counter(key_path for key_path, _ in key_lines)
    problems += [
        (key_path, "written twice, the last one wins") for key_path, count in counts.items() if count > 1
    ]
    located = sorted(
        {(_line(lines, key_path), _format_problem(key_path, what)) for key_path, what in problems}
    )
    return [f"{path.name}:{line}: {text}" for line, text in located]


def _rules(config: dict[str, Any], demands: Mapping[str, Mapping[str, float]]) -> list[Problem]:
    """Problems that Ray does not check; ``config`` has Ray's defaults filled in."""
    return [
        *_worker_counts(config),
        *_cloud_keys(config),
        *_head_resources(config),
        *_tokens(config),
        *_dashboard(config),
        *_spot(config),
        *_images(config),
        *_unsatisfiable(config, demands),
    ]


def _worker_counts(config: dict[str, Any]) -> Iterator[Problem]:
    for name, node in config["available_node_types"].items():
        low, high = node.get("min_workers", 0), node.get("max_workers", config["max_workers"])
        if low > high:
            yield _node(name, "min_workers"), f"{low} is above max_workers of this type ({high})"


def _cloud_keys(config: dict[str, Any]) -> Iterator[Problem]:
    if config["provider"]["type"] not in CLOUDS:
        return
    what, keys = CLOUDS[config["provider"]["type"]]
    for name, node in config["available_node_types"].items():
        for key in node["node_config"].keys() - keys:
            yield _node(name, "node_config", key), f"unknown key of {what}{nearest(key, keys)}"
    # Ray's schema lets every key of the provider pass, so a misspelt one is silently without effect.
    known = _schema()["properties"]["provider"]["properties"]
    for key in config["provider"].keys() - known.keys():
        if hint := nearest(key, known):
            yield ("provider", key), f"unknown key{hint}"


def _head_resources(config: dict[str, Any]) -> Iterator[Problem]:
    if _has_own_machines(config):
        yield from _head_command(config)
        return
    head = config["head_node_type"]
    resources = config["available_node_types"][head]["resources"]
    key_path = _node(head, "resources")
    if resources.get("CPU", 1) != 0:
        yield (
            key_path,
            "CPU must be 0: tasks on the head compete with the services that keep the cluster alive",
        )
    if not resources.get("control"):
        yield (
            key_path,
            "needs the resource control (say 100): drivers ask for it, so as never to sit on a spot node",
        )


def _has_own_machines(config: dict[str, Any]) -> bool:
    """Whether the file lists machines; their resources are found when Ray starts there, and stand nowhere in it."""
    return "head_ip" in config["provider"]


def _head_command(config: dict[str, Any]) -> Iterator[Problem]:
    """The head of machines of one's own gets its resources from the command that starts it."""
    for key, index, command in _start_commands(config):
        if "--head" not in command:
            continue
        if not re.search(r"--num-cpus[= ]0\b", command):
            yield (
                (key, index),
                "needs --num-cpus=0: tasks on the head compete with the services of the cluster",
            )
        if not re.search(r"--resources[= ]\S*[\"']control", command):
            yield (key, index), "needs --resources='{\"control\": 100}': drivers of trials ask for it"


def _tokens(config: dict[str, Any]) -> Iterator[Problem]:
    for key, index, command in _start_commands(config):
        if "RAY_AUTH_MODE=token" not in command:
            yield (
                (key, index),
                "starts Ray without RAY_AUTH_MODE=token: whoever reaches the node can run code on it",
            )
    mounted = any(str(target).endswith("/.ray/auth_token") for target in config.get("file_mounts") or {})
    if not mounted and not all(
        "RAY_AUTH_TOKEN_PATH=" in command for _, _, command in _start_commands(config)
    ):
        yield ("file_mounts",), "no token reaches the nodes: add /home/ray/.ray/auth_token: ~/.ray/auth_token"


def _dashboard(config: dict[str, Any]) -> Iterator[Problem]:
    for key, index, command in _start_commands(config):
        for host in re.findall(r"--dashboard-host[= ](\S+)", command):
            if host.strip("'\"") not in LOOPBACK:
                yield (key, index), f"the dashboard would listen on {host}; use 127.0.0.1 and `ray dashboard`"


def _spot(config: dict[str, Any]) -> Iterator[Problem]:
    for name, node in config["available_node_types"].items():
        spot = _is_spot(node["node_config"])
        if spot and config["provider"].get("cache_stopped_nodes", True):
            yield ("provider",), f"{name} is spot, which cannot be stopped: set cache_stopped_nodes: false"
        if spot and name == config["head_node_type"]:
            yield _node(name, "node_config"), "the head must not be spot: the cluster dies with it"


def _is_spot(node_config: Mapping[str, Any]) -> bool:
    """Whether the cloud may take a node back: as EC2 says it, and as Compute Engine does."""
    scheduling = node_config.get("scheduling") or []
    said = [node_config.get("InstanceMarketOptions", {}), *scheduling]
    return any(
        part.get("MarketType") == "spot" or part.get("provisioningModel") == "SPOT" or part.get("preemptible")
        for part in said
    )


def _images(config: dict[str, Any]) -> Iterator[Problem]:
    import ray

    docker = config.get("docker") or {}
    named: dict[KeyPath, str] = {
        ("docker", key): docker[key] for key in ("image", "head_image", "worker_image") if docker.get(key)
    }
    for name, node in config["available_node_types"].items():
        if image := (node.get("docker") or {}).get("worker_image"):
            named[_node(name, "docker", "worker_image")] = image
    for key_path, image in named.items():
        version = re.match(r"rayproject/ray[\w-]*:(\d+\.\d+\.\d+)", image)
        if re.search(r":(latest|nightly)[\w-]*$", image) or ":" not in image.rpartition("/")[2]:
            yield key_path, f"{image} is another image every week; name a version"
        if version and version[1] != ray.__version__:
            yield key_path, f"holds Ray {version[1]}, this project is installed with {ray.__version__}"


def _unsatisfiable(config: dict[str, Any], demands: Mapping[str, Mapping[str, float]]) -> Iterator[Problem]:
    if _has_own_machines(config):
        return
    head = config["head_node_type"]
    offers = [
        node["resources"]
        for name, node in config["available_node_types"].items()
        if name == head or node.get("max_workers", config["max_workers"]) > 0
    ]
    for job, demand in demands.items():
        if not any(all(offer.get(name, 0) >= amount for name, amount in demand.items()) for offer in offers):
            needs = ", ".join(f"{name} {amount:g}" for name, amount in demand.items())
            yield ("available_node_types",), f"no node type can run {job!r}, which needs {needs} on one node"


def _start_commands(config: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """The commands that start Ray: key, position, command."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for index, command in enumerate(config.get(key) or []):
            if "ray start" in command:
                yield key, index, command


def _node(name: str, *keys: str) -> KeyPath:
    return ("available_node_types", name, *keys)


def _schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())


def _schema_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Every violation of Ray's schema; Ray itself reports the first."""
    import jsonschema

    for error in jsonschema.Draft7Validator(_schema()).iter_errors(config):
        key_path = tuple(error.absolute_path)
        if error.validator == "additionalProperties" and isinstance(error.schema, dict):
            known = error.schema.get("properties", {})
            for key in error.instance.keys() - known.keys():
                yield (*key_path, key), f"unknown key{nearest(key, known)}"
        else:
            yield key_path, error.message


def _prepare(config: dict[str, Any]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The file with Ray's defaults filled in as by ``ray up``, and the problems that Ray reports.

    None instead of the file if it is too broken for further checks.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = None
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except Exception as error:
        if prepared and prepared["head_node_type"] not in prepared["available_node_types"]:
            prepared = None
        return prepared, [((), _one_line(error))]
    return prepared, []


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[KeyPath, int]]]:
    """The file's content, and the line of every key in the order of the file."""
    try:
        config, root = parse(read_text(path), str(path))
    except FileNotFoundError:
        raise StudyError("no such cluster file", where=str(path)) from None
    if not isinstance(config, dict) or root is None:
        raise StudyError(
            "is no YAML mapping", where=str(path), fix="start from the cluster.yaml of the project"
        )
    return config, [((), 1), *_key_lines(root, ())]


def _key_lines(node: yaml.Node, key_path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    children: list[tuple[str | int, int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key.start_mark.line, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, value.start_mark.line, value) for index, value in enumerate(node.value)]
    for name, line, child in children:
        yield (*key_path, name), line + 1
        yield from _key_lines(child, (*key_path, name))


def _line(lines: dict[KeyPath, int], key_path: KeyPath) -> int:
    """Line of the key, or of its parent if the file leaves the key to Ray's defaults."""
    while key_path not in lines:
        key_path = key_path[:-1]
    return lines[key_path]


def _format_problem(key_path: KeyPath, what: str) -> str:
    return f"{'.'.join(map(str, key_path))}: {what}" if key_path else what
