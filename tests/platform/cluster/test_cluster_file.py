"""The shipped cluster.yaml is valid, and each typical mistake in a copy of it is reported with its line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from equipoise.platform.cluster.cluster_file import DEMANDS, validate_cluster
from equipoise.platform.errors import StudyError

Break = Callable[..., list[str]]


@pytest.fixture
def broken(root: Path, tmp_path: Path) -> Break:
    """Validate a copy of cluster.yaml in which one pattern is replaced (once)."""

    def validate(pattern: str, replacement: str) -> list[str]:
        text, count = re.subn(pattern, replacement, (root / "cluster.yaml").read_text(), count=1, flags=re.M)
        assert count == 1, f"cluster.yaml no longer holds {pattern!r}"
        path = tmp_path / "broken.yaml"
        path.write_text(text)
        return validate_cluster(path)

    return validate


def test_shipped_file_is_sound(root: Path) -> None:
    assert validate_cluster(root / "cluster.yaml") == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        # caught by Ray
        ("^idle_timeout_minutes", "idle_timeout_minute", "idle_timeout_minute: unknown key. Did you mean"),
        ("priority: 10", "prioritee: 10", "gpu_spot.prioritee: unknown key. Did you mean 'priority'?"),
        ('"GPU": 1,', '"GPU": 0.5,', "gpu_spot.resources.GPU: 0.5 is not of type 'integer'"),
        ("^head_node_type: head", "head_node_type: nope", "`head_node_type` must be one of"),
        ("^max_workers: 24", "max_workers: -1", "max_workers: -1 is less than the minimum of 0"),
        ("container_name: equipoise", "pull_before_run: true", "Must provide a container & image name"),
        ("type: aws", "type: awz", "Unsupported node provider: awz"),
        # not caught by Ray
        (
            "min_workers: 0",
            "min_workers: 17",
            "tiling_cpu.min_workers: 17 is above max_workers of this type (16)",
        ),
        (
            "InstanceType: g5",
            "InstanceTyp: g5",
            "node_config.InstanceTyp: unknown key of an EC2 node. Did you mean",
        ),
        ("availability_zone:", "availabilty_zone:", "provider.availabilty_zone: unknown key. Did you mean"),
        (r'resources: \{"CPU": 0, ', "resources: {", "head.resources: CPU must be 0"),
        (
            "RAY_AUTH_MODE=token ray start --head",
            "ray start --head",
            "head_start_ray_commands.1: starts Ray without",
        ),
        (
            "RAY_AUTH_MODE=token ray start --add",
            "ray start --add",
            "worker_start_ray_commands.1: starts Ray without",
        ),
        (r"^  /home/ray/.ray/auth_token.*\n", "", "no token reaches the nodes"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0", "the dashboard would listen on 0.0.0.0"),
        (
            "cache_stopped_nodes: false",
            "cache_stopped_nodes: true",
            "tiling_cpu is spot, which cannot be stopped",
        ),
        (
            "InstanceType: m6i.2xlarge",
            "InstanceMarketOptions: {MarketType: spot}",
            "the head must not be spot",
        ),
        (r"ray:2\.60\.0-py311-cu128", "ray:2.59.0-py311-cu128", "worker_image: holds Ray 2.59.0"),
        ("    priority: 1$", "    priority: 1\n    priority: 2", "gpu_on_demand.priority: written twice"),
    ],
)
def test_mistakes_are_told(broken: Break, pattern: str, replacement: str, said: str) -> None:
    problems = broken(pattern, replacement)
    assert any(said in problem for problem in problems), problems


def test_line_is_that_of_the_key(broken: Break, tmp_path: Path) -> None:
    [problem] = broken("min_workers: 0", "min_workers: 17")
    name, line, _ = problem.split(":", 2)
    assert name == "broken.yaml"
    assert (tmp_path / name).read_text().splitlines()[int(line) - 1].strip() == "min_workers: 17"


def test_all_problems_at_once(root: Path, tmp_path: Path) -> None:
    text = (root / "cluster.yaml").read_text().replace("min_workers: 0", "min_workers: 9")
    (tmp_path / "c.yaml").write_text(text.replace("127.0.0.1", "0.0.0.0"))
    problems = validate_cluster(tmp_path / "c.yaml")
    report = "\n".join(problems)
    assert "gpu_spot.min_workers: 9 is above" in report
    assert "gpu_on_demand.min_workers: 9 is above" in report
    assert "smaller than the sum of `min_workers`" in report
    assert "listen on 0.0.0.0" in report
    assert len(problems) == 4


def test_defaults_of_ray_are_evaluated_too(root: Path, tmp_path: Path) -> None:
    """A file without start commands gets Ray's, which open the dashboard to every address and use no tokens."""
    text = (root / "cluster.yaml").read_text()
    (tmp_path / "c.yaml").write_text(text[: text.index("head_start_ray_commands")])
    report = "\n".join(validate_cluster(tmp_path / "c.yaml"))
    assert "listen on 0.0.0.0" in report
    assert report.count("without RAY_AUTH_MODE=token") == 2


def test_every_job_fits_on_a_node(root: Path) -> None:
    file = root / "cluster.yaml"
    assert {"extract, slides", "train on a GPU"} <= DEMANDS.keys()
    assert validate_cluster(file, {"all of a GPU node": {"CPU": 16, "GPU": 1}}) == []
    [problem] = validate_cluster(file, {"too much": {"CPU": 1, "GPU": 2}})
    assert "no node type can run 'too much', which needs CPU 1, GPU 2 on one node" in problem


def test_pool_that_may_not_grow_offers_nothing(root: Path, tmp_path: Path) -> None:
    text = re.sub("max_workers: (8|2) ", "max_workers: 0 ", (root / "cluster.yaml").read_text() + " ")
    (tmp_path / "c.yaml").write_text(text.replace("max_workers: 8\n", "max_workers: 0\n"))
    report = "\n".join(validate_cluster(tmp_path / "c.yaml"))
    assert "no node type can run 'train on a GPU'" in report


@pytest.mark.parametrize("text", ["cluster_name: [", "- a list", ""])
def test_unreadable_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"c\.yaml"):
        validate_cluster(tmp_path / "c.yaml")
    with pytest.raises(StudyError, match="absent"):
        validate_cluster(tmp_path / "absent.yaml")
