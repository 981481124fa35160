"""Work without a GPU keeps off GPU pools, and still finds a node where there are no others."""

from pathlib import Path

import pytest

from equipoise.platform.cluster.pools import (
    AVOIDS_GPU_POOL,
    GPU_POOL,
    POOL,
    cpu_label_selector,
    no_room,
    require_room,
    selector_for,
)
from equipoise.platform.errors import ResourceError

CPU_NODE, GPU_NODE = ({"CPU": 16}, {"pool": "tiling"}), ({"CPU": 16, "GPU": 1}, {"pool": "gpu"})
HEAD: tuple[dict, dict] = ({"control": 100}, {})


@pytest.mark.parametrize(
    ("nodes", "types", "kept_off"),
    [
        ([HEAD, CPU_NODE, GPU_NODE], [], True),
        ([HEAD], [{"CPU": 16}, {"CPU": 16, "GPU": 1}], True),  # pools are empty
        ([HEAD], [], True),  # and the autoscaler has said nothing yet
        ([HEAD, GPU_NODE], [{"CPU": 16}], True),  # tiling nodes come when they are asked for
        ([HEAD, GPU_NODE], [], False),
        ([HEAD, GPU_NODE, GPU_NODE], [{"CPU": 16, "GPU": 1}, {"control": 1}], False),
    ],
)
def test_where_work_for_cpus_may_run(nodes: list, types: list, kept_off: bool) -> None:
    assert selector_for(nodes, types) == (AVOIDS_GPU_POOL if kept_off else {})


@pytest.mark.parametrize(
    ("request_", "nodes", "types", "may_grow", "refused"),
    [
        ({"CPU": 2}, [{"CPU": 2}], [], False, ""),
        ({"CPU": 0, "GPU": 0}, [{"CPU": 2}], [], False, ""),  # trials whose workers reserve their own
        ({"CPU": 3}, [{"CPU": 2}, {"CPU": 2}], [], True, "3 CPU on one node; the most that one has is 2 CPU"),
        ({"CPU": 1, "GPU": 0.25}, [{"CPU": 2}], [], False, "the most that one has is 2 CPU, 0 GPU"),
        ({"CPU": 1, "GPU": 0.25}, [{"CPU": 2}], [], True, ""),  # its GPU nodes are not there yet
        ({"CPU": 1, "GPU": 0.25}, [{"CPU": 2}], [{"CPU": 16}], True, "0 GPU"),  # it says that it has none
        (
            {"CPU": 8, "GPU": 1},
            [{"CPU": 16}, {"CPU": 4, "GPU": 1}],
            [],
            True,
            "16 CPU, 1 GPU",
        ),  # not together
        ({"CPU": 16}, [HEAD[0]], [{"CPU": 16}], True, ""),
        ({"CPU": 16}, [HEAD[0]], [], True, ""),
    ],
)
def test_what_no_node_can_hold(
    request_: dict, nodes: list, types: list, may_grow: bool, refused: str
) -> None:
    said = no_room(request_, nodes, types, may_grow)
    assert refused in said
    assert bool(said) == bool(refused)


@pytest.mark.usefixtures("ray_session")
def test_work_that_no_node_holds_is_refused_before_it_waits() -> None:
    require_room({"CPU": 2}, "a fold", where="training.threads", fix="less")
    with pytest.raises(ResourceError, match=r"training\.threads: a fold asks for 64 CPU on one node"):
        require_room({"CPU": 64}, "a fold", where="training.threads", fix="less")
    with pytest.raises(
        ResourceError, match="2 CPU, 0 GPU"
    ):  # a Ray that was started here gets no further node
        require_room({"CPU": 1, "GPU": 1}, "a trial", where="search.gpus", fix="less")


def test_shipped_clusters_label_their_gpu_pools_and_no_other(root: Path) -> None:
    import yaml

    for file in ("cluster.yaml", "deploy/gcp.yaml"):
        types = yaml.safe_load((root / file).read_text())["available_node_types"]
        for name, node in types.items():
            in_pool = node.get("labels", {}).get(POOL) == GPU_POOL
            assert in_pool == bool(node["resources"].get("GPU")), f"{file}: {name}"
    for file in ("deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"):
        spec = yaml.safe_load((root / file).read_text())["spec"]
        for group in spec.get("rayClusterSpec", spec)["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            in_pool = group.get("labels", {}).get(POOL) == GPU_POOL
            assert in_pool == ("nvidia.com/gpu" in limits), f"{file}: {group['groupName']}"


@pytest.mark.usefixtures("ray_session")
def test_tasks_with_the_selector_run_on_a_node_without_labels() -> None:
    import ray

    labels = cpu_label_selector()
    assert labels == AVOIDS_GPU_POOL
    number = ray.remote(num_cpus=0.1, label_selector=labels)(_seven)
    assert ray.get(number.remote(), timeout=60) == 7


def _seven() -> int:
    return 7
