"""The balancing section: its sentence, its figures, and when it is left out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.report.blocks import Figures, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.balancing import build, cosine_matrix, method_name, over_folds


class Run(RunFiles):
    """A run of nothing but histories and a study."""

    def __init__(self, histories: dict[str, pd.DataFrame], study: dict | None = None) -> None:
        super().__init__(Path("nowhere"))
        self.__dict__["histories"] = histories
        known = {"balancing": {"weighting": "dwa", "aggregation": "pcgrad"}}
        self.__dict__["study"] = known if study is None else study


def history(weights: dict[str, list[float]], **more: list[float]) -> pd.DataFrame:
    table = pd.DataFrame({f"weight/{task}": values for task, values in weights.items()})
    return table.assign(epoch=np.arange(1, len(table) + 1), **more)


@pytest.mark.parametrize(
    ("weighting", "aggregation", "name"),
    [
        ("equal", "none", "equal"),
        ("dwa", "none", "dwa"),
        ("equal", "cagrad", "cagrad"),
        ("dwa", "cagrad", "dwa+cagrad"),
    ],
)
def test_names_of_methods(weighting: str, aggregation: str, name: str) -> None:
    assert method_name({"balancing": {"weighting": weighting, "aggregation": aggregation}}) == name


def test_the_sentence_says_what_happened() -> None:
    one = history({"A": [1.0, 1.5], "B": [1.0, 0.5]}, conflict_rate=[0.4, 0.2]).assign(
        **{"cosine/A|B": [-0.2, 0.0]}
    )
    other = history({"A": [1.0, 1.7, 1.9], "B": [1.0, 0.3, 0.1]}, conflict_rate=[0.3, 0.3, 0.3])
    section = build(
        Run({"0-0": one, "0-1": other.assign(**{"cosine/A|B": [0.1, 0.1, 0.1]})}), SectionParams()
    )
    assert section is not None
    assert section.lead == (
        "Balancing method dwa+pcgrad: at the end the most weight was on A (1.70) and the least on B (0.30). The "
        "gradients of two tasks were in conflict in 30 % of the steps and pairs (mean cosine 0.00)."
    )
    (figures,) = [b for b in section.blocks if isinstance(b, Figures)]
    assert [f.slug for f in figures.items] == [
        "balancing-weights",
        "balancing-conflicts",
        "balancing-cosines",
    ]


def test_figures_say_where_gradients_were_compared() -> None:
    table = history({"A": [1.0, 1.5], "B": [1.0, 0.5]}, conflict_rate=[0.4, 0.2]).assign(
        **{"cosine/A|B": -0.2}
    )
    for at, said in (
        ("parameters", "on shared parameters"),
        ("representation", "at the shared representation"),
    ):
        section = build(Run({"0-0": table}, {"balancing": {"weighting": "dwa", "at": at}}), SectionParams())
        assert section is not None
        (figures,) = [b for b in section.blocks if isinstance(b, Figures)]
        assert [said in figure.how_to_read for figure in figures.items[1:]] == [True, True]


def test_equal_weights_and_unmeasured_conflicts() -> None:
    same = history({"A": [1.0, 1.0], "B": [1.0, 1.0]}, conflict_rate=[np.nan] * 2)
    section = build(Run({"0-0": same.assign(**{"cosine/A|B": np.nan})}, {}), SectionParams())
    assert section is not None
    assert section.lead == "Balancing method equal: all tasks kept the same weight."
    # One sentence says it: neither a chart nor a table.
    (only,) = section.blocks
    assert isinstance(only, Text)
    assert "not measured" in only.text


def test_fixed_weights_are_listed_once_and_conflicts_still_drawn() -> None:
    fixed = history({"A": [2.0, 2.0], "B": [0.5, 0.5]}, conflict_rate=[0.4, 0.2]).assign(
        **{"cosine/A|B": -0.2}
    )
    section = build(Run({"0-0": fixed, "0-1": fixed}), SectionParams())
    assert section is not None
    assert section.lead.startswith("Balancing method dwa+pcgrad: fixed weights, A 2.00, B 0.50. ")
    (figures,) = [b for b in section.blocks if isinstance(b, Figures)]
    assert [f.slug for f in figures.items] == ["balancing-conflicts", "balancing-cosines"]
    assert figures.beside is None


def test_weights_that_differ_between_folds_are_drawn() -> None:
    one, other = ({"A": [w, w], "B": [1.0, 1.0]} for w in (1.0, 2.0))
    section = build(Run({"0-0": history(one), "0-1": history(other)}), SectionParams())
    assert section is not None
    (figures,) = [b for b in section.blocks if isinstance(b, Figures)]
    assert [f.slug for f in figures.items] == ["balancing-weights"]


def test_weights_that_did_not_arrive_are_said() -> None:
    still = {"A": [1.0, 1.001, 1.001, 1.002], "B": [1.0, 1.0, 1.0, 1.0]}
    on_the_way = {"A": [1.0, 2.0, 4.0, 8.0], "B": [1.0, 1.0, 1.0, 1.0]}
    settled = {"A": [1.0, 3.0, 3.3, 3.3], "B": [1.0, 0.5, 0.45, 0.45]}
    histories = {str(i): history(w) for i, w in enumerate((still, on_the_way, on_the_way, settled))}
    for weighting, said in (
        ("uncertainty", "In 1 of 4 folds the weights of uncertainty did not move and in 2 of 4 folds"),
        ("dwa", ""),
    ):
        run = Run(histories, {"balancing": {"weighting": weighting, "aggregation": "none"}})
        section = build(run, SectionParams())
        assert section is not None
        warnings = [b.text for b in section.blocks if isinstance(b, Text) and b.tone == "warn"]
        assert [text.startswith(said) for text in warnings] == ([True] if said else [])


def test_a_single_task_or_an_older_run_has_no_section() -> None:
    old = pd.DataFrame({"epoch": [1, 2], "train/A": [0.5, 0.4], "monitor": [1.0, 0.9]})
    assert build(Run({"0-0": history({"A": [1.0, 1.0]})}), SectionParams()) is None
    assert build(Run({"0-0": old}), SectionParams()) is None
    assert build(Run({}), SectionParams()) is None


def test_means_are_over_the_folds_that_reached_the_epoch() -> None:
    table = over_folds({"a": history({"A": [1.0, 3.0]}), "b": history({"A": [2.0]})}, "weight/A")
    assert table.to_dict("list") == {
        "epoch": [1, 2], "mean": [1.5, 3.0], "low": [1.0, 3.0], "high": [2.0, 3.0], "folds": [2, 1]
    }  # fmt: skip


def test_cosines_are_found_in_either_order_and_folds_count_alike() -> None:
    one = pd.DataFrame({"epoch": [1, 2], "cosine/B|A": [0.2, 0.4]})
    other = pd.DataFrame({"epoch": [1], "cosine/B|A": [-0.1], "cosine/B|C": [np.nan]})
    result = cosine_matrix({"a": one, "b": other}, ["A", "B", "C"])
    assert result.loc["A", "B"] == result.loc["B", "A"] == pytest.approx((0.3 - 0.1) / 2)
    assert np.isnan(result.loc["B", "C"])
    assert (np.diag(result) == 1).all()


def test_a_range_is_drawn_for_few_tasks() -> None:
    from equipoise.platform.report.sections.balancing import weight_curves

    histories = {"a": history({"A": [1.0], "B": [1.0]}), "b": history({"A": [2.0], "B": [1.0]})}
    figure = weight_curves(histories, ["A", "B"])
    assert figure is not None
    assert sum("fill" in trace for trace in figure.data) == 2
    assert list(figure.table["high"]) == [2.0, 1.0]
