"""Where work that needs no GPU may run: not on the nodes of a GPU pool, which would start, at a price, for nothing.

Ray's autoscaler prefers nodes without GPU for such work, but takes one with a GPU as soon as the other pools are at
their limit or have nodes on their way out. The nodes of GPU pools therefore carry the label ``pool: gpu`` in our
cluster files, and work for CPUs says that it does not want it.
"""

from collections.abc import Iterable, Mapping

#: Label of the nodes of a GPU pool, in cluster.yaml and the files below deploy/.
POOL, GPU_POOL = "pool", "gpu"
#: Ray's form of "any node but those".
AVOIDS_GPU_POOL = {POOL: f"!{GPU_POOL}"}

Resources = Mapping[str, float]


def cpu_label_selector() -> dict[str, str]:
    """The label selector of work that needs no GPU, in the cluster of the open session.

    Returns
    -------
    dict
        Empty where work would find no node at all without those of GPU pools.
    """
    import ray

    nodes = [(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]
    return selector_for(nodes, _node_types())


def selector_for(
    nodes: Iterable[tuple[Resources, Mapping[str, str]]], node_types: Iterable[Resources]
) -> dict[str, str]:
    """The selector for living nodes (resources, labels) and for node types that an autoscaler may start.

    Nodes without the label are of no GPU pool. A cluster with no node for work yet that does not say which may come
    is taken to have others than GPU nodes.

    >>> selector_for([({"CPU": 8}, {}), ({"CPU": 8, "GPU": 1}, {"pool": "gpu"})], [])
    {'pool': '!gpu'}
    >>> selector_for([({"CPU": 8, "GPU": 1}, {"pool": "gpu"})], [])
    {}
    """
    of_gpu_pool = [labels.get(POOL) == GPU_POOL for resources, labels in nodes if resources.get("CPU")]
    may_come = any(resources.get("CPU") and not resources.get("GPU") for resources in node_types)
    return {} if of_gpu_pool and all(of_gpu_pool) and not may_come else dict(AVOIDS_GPU_POOL)


def _node_types() -> list[Resources]:
    """Resources of the node types of an autoscaling cluster, where Ray says them."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return []
    return [dict(group.resources) for group in config.node_group_configs if group.max_count != 0]
