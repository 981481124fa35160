"""Where work may run: what needs no GPU not on the nodes of a GPU pool, which would start, at a price, for nothing.

Ray's autoscaler prefers nodes without GPU for such work, but takes one with a GPU as soon as the other pools are at
their limit or have nodes on their way out. The nodes of GPU pools therefore carry the label ``pool: gpu`` in our
cluster files, and work for CPUs says that it does not want it.

Ray waits for ever for a node that no pool has: :func:`require_room` refuses such work before it starts.
"""

from collections.abc import Iterable, Mapping

from equipoise.platform.cluster import session
from equipoise.platform.errors import ResourceError

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


def require_room(request: Resources, work: str, *, where: str, fix: str) -> None:
    """Refuse work that no node of the open session holds, and none that its autoscaler may start.

    Parameters
    ----------
    request
        Amounts that have to be on one node: ``{"CPU": 8, "GPU": 0.5}``.
    work
        What asks for them, for the message.
    where, fix
        The setting, and what to do.

    Raises
    ------
    ResourceError
        With what the largest nodes have.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if lacking := no_room(request, nodes, _node_types(), session.may_grow()):
        raise ResourceError(f"{work} asks for {lacking}", where=where, fix=fix)


def no_room(
    request: Resources, nodes: Iterable[Resources], node_types: Iterable[Resources], may_grow: bool = True
) -> str:
    """Why no node holds a request, as text; empty if one does, or one may come.

    A cluster that may grow without saying which nodes come, and has none for work yet, or none with a GPU for work
    that needs one, is taken to have them.

    >>> no_room({"CPU": 8}, [{"CPU": 2}, {"CPU": 4, "GPU": 1}], [])
    '8 CPU on one node; the most that one has is 4 CPU'
    >>> no_room({"CPU": 8}, [{"CPU": 2}], [{"CPU": 16}])
    ''
    """
    nodes, types = list(nodes), list(node_types)
    asked = {name: amount for name, amount in request.items() if amount}
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in [*nodes, *types]):
        return ""
    largest = {name: max((node.get(name, 0) for node in [*nodes, *types]), default=0) for name in asked}
    if may_grow and not types and not all(largest.values()):
        return ""
    amounts = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
    most = ", ".join(f"{amount:g} {name}" for name, amount in largest.items())
    return f"{amounts} on one node; the most that one has is {most}"


def _node_types() -> list[Resources]:
    """Resources of the node types of an autoscaling cluster, where Ray says them."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return []
    return [dict(group.resources) for group in config.node_group_configs if group.max_count != 0]
