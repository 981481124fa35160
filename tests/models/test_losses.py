"""Losses against closed forms, brute force and lifelines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.models.batch import TaskHead
from equipoise.models.cox import cox_partial_likelihood
from equipoise.models.losses import TaskLosses, balanced_weights

HEADS = (
    TaskHead("MSI", "binary", 2, main=True),
    TaskHead("grade", "multiclass", 3),
    TaskHead("LF", "regression", 1),
    TaskHead("OS", "survival", 1),
)


def outputs_and_targets(
    b: int, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    outputs = {h.name: torch.randn(b, h.outputs, generator=rng, dtype=torch.float64) for h in HEADS}
    days = torch.randint(1, 6, (b,), generator=rng)
    targets = {
        "MSI": torch.randint(0, 2, (b,), generator=rng).double(),
        "grade": torch.randint(0, 3, (b,), generator=rng).double(),
        "LF": torch.rand(b, generator=rng, dtype=torch.float64),
        "OS": torch.stack([days, torch.randint(0, 2, (b,), generator=rng)], dim=1).double(),
    }
    return outputs, targets, {h.name: torch.ones(b, dtype=torch.bool) for h in HEADS}


def brute_force(s: np.ndarray, t: np.ndarray, e: np.ndarray, ties: str) -> float:
    """The definition, one event time at a time."""
    total = 0.0
    for time in np.unique(t[e == 1]):
        dead = (t == time) & (e == 1)
        at_risk, tied = np.exp(s[t >= time]).sum(), np.exp(s[dead]).sum()
        for rank in range(dead.sum()):
            share = rank / dead.sum() if ties == "efron" else 0.0
            total += math.log(at_risk - share * tied)
        total -= s[dead].sum()
    return total


def tied_survival(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.integers(1, 12, n).astype(float), (rng.random(n) < 0.6).astype(float)


def test_efron_is_lifelines_log_likelihood_on_tied_data() -> None:
    import pandas as pd
    from lifelines import CoxPHFitter

    x, t, e = tied_survival(150, seed=3)
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "t": t, "e": e})
    fitted = CoxPHFitter().fit(table, "t", "e")
    score = torch.tensor(x @ fitted.params_.to_numpy())
    ours = cox_partial_likelihood(score, torch.tensor(t), torch.tensor(e))
    assert ours.item() == pytest.approx(-fitted.log_likelihood_, rel=1e-10)


def test_cox_gradient_vanishes_at_the_lifelines_estimate() -> None:
    import pandas as pd
    from lifelines import CoxPHFitter

    x, t, e = tied_survival(80, seed=4)
    fitted = CoxPHFitter().fit(pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "t": t, "e": e}), "t", "e")
    beta = torch.tensor(fitted.params_.to_numpy(), requires_grad=True)
    cox_partial_likelihood(torch.tensor(x) @ beta, torch.tensor(t), torch.tensor(e)).backward()
    assert beta.grad is not None
    assert beta.grad.norm() < 1e-3  # lifelines stops at this precision; the gradient at 0 has norm 16


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("seed", range(4))
def test_cox_is_its_definition(ties: str, seed: int) -> None:
    x, t, e = tied_survival(40, seed)
    ours = cox_partial_likelihood(torch.tensor(x[:, 0]), torch.tensor(t), torch.tensor(e), ties=ties)  # type: ignore[arg-type]
    assert ours.item() == pytest.approx(brute_force(x[:, 0], t, e, ties), rel=1e-12)


def stratified(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tied survival of three cohorts of unequal size with different baselines."""
    x, t, e = tied_survival(n, seed)
    cohort = np.random.default_rng(seed + 100).choice([4, -1, 7], n, p=[0.6, 0.3, 0.1])
    return x, t + 3 * (cohort == 4), e, cohort


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("seed", range(4))
def test_stratified_cox_is_the_sum_over_strata_with_its_gradient(ties: str, seed: int) -> None:
    x, t, e, cohort = stratified(60, seed)
    score = torch.tensor(x[:, 0], requires_grad=True)
    days, event, strata = torch.tensor(t), torch.tensor(e), torch.tensor(cohort)
    ours = cox_partial_likelihood(score, days, event, ties=ties, strata=strata)  # type: ignore[arg-type]
    parts = [brute_force(x[cohort == k, 0], t[cohort == k], e[cohort == k], ties) for k in np.unique(cohort)]
    assert ours.item() == pytest.approx(sum(parts), rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda s: cox_partial_likelihood(s, days, event, ties=ties, strata=strata),  # type: ignore[arg-type]
        (score,),
    )


def test_stratified_efron_is_lifelines() -> None:
    import pandas as pd
    from lifelines import CoxPHFitter

    x, t, e, cohort = stratified(150, seed=5)
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "t": t, "e": e, "cohort": cohort})
    fitted = CoxPHFitter(strata=["cohort"]).fit(table, "t", "e")
    beta = torch.tensor(fitted.params_.to_numpy(), requires_grad=True)
    strata = torch.tensor(cohort)
    ours = cox_partial_likelihood(torch.tensor(x) @ beta, torch.tensor(t), torch.tensor(e), strata=strata)
    assert ours.item() == pytest.approx(-fitted.log_likelihood_, rel=1e-10)
    ours.backward()
    assert beta.grad is not None
    assert beta.grad.norm() < 1e-3  # lifelines stops at this precision


def test_a_risk_of_the_cohort_alone_is_worth_nothing_to_stratified_cox() -> None:
    _, t, e, cohort = stratified(60, seed=6)
    days, event, strata = torch.tensor(t), torch.tensor(e), torch.tensor(cohort)
    score = torch.tensor(cohort.astype(float), requires_grad=True)
    loss = cox_partial_likelihood(score, days, event, strata=strata)
    loss.backward()
    assert loss.item() == pytest.approx(cox_partial_likelihood(0 * score, days, event, strata=strata).item())
    assert score.grad is not None
    assert all(abs(score.grad[strata == k].sum()) < 1e-12 for k in strata.unique())


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_extreme_scores_of_strata_stay_finite(ties: str) -> None:
    s = torch.tensor([1e4, -1e4, 0.0, 5e3, -1e4], requires_grad=True)
    days, event = torch.tensor([1.0, 1, 1, 2, 2]), torch.tensor([1.0, 1, 0, 1, 0])
    strata = torch.tensor([0, 0, 1, 0, 2])
    loss = cox_partial_likelihood(s, days, event, ties=ties, strata=strata)  # type: ignore[arg-type]
    loss.backward()
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def test_stratified_heads_compare_within_cohorts_also_across_workers() -> None:
    outputs, targets, mask = outputs_and_targets(12)
    mask["OS"][3] = False
    cohort = torch.tensor([0, 1, 1, 0, -1, 0, 1, -1, 0, 1, 0, -1])
    head = (TaskHead("OS", "survival", 1, stratified=True),)
    whole = TaskLosses(head)(outputs, targets, mask, cohort)
    known = mask["OS"].numpy()
    rows = outputs["OS"][known, 0].numpy(), *targets["OS"].numpy()[known].T
    at = cohort.numpy()[known]
    expected = sum(brute_force(*(part[at == k] for part in rows), "efron") for k in (-1, 0, 1))
    assert whole.sums[0].item() == pytest.approx(expected)
    assert whole.counts[0] == rows[2].sum()
    mine = [{k: v[:7] for k, v in part.items()} for part in (outputs, targets, mask)]
    labels = torch.stack([mask["OS"], cohort], dim=1)
    theirs = torch.cat([outputs["OS"], targets["OS"], labels], dim=1)[7:]
    joined = TaskLosses(head, gather=lambda part: torch.cat([part, theirs]))(*mine, cohort[:7])
    torch.testing.assert_close(joined.sums, whole.sums)
    with pytest.raises(ValueError, match="the cohorts of the cases are not given"):
        TaskLosses(head)(outputs, targets, mask)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_gradient_is_the_numerical_one(ties: str) -> None:
    x, t, e = tied_survival(12, seed=1)
    scores = torch.tensor(x[:, 0], requires_grad=True)
    loss = lambda s: cox_partial_likelihood(s, torch.tensor(t), torch.tensor(e), ties=ties)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (scores,))


def test_two_patients_by_hand() -> None:
    s = torch.tensor([0.7, -0.2], dtype=torch.float64)
    loss = cox_partial_likelihood(s, torch.tensor([10.0, 20.0]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.9)))


def test_cox_ignores_a_common_shift_and_the_order_of_patients() -> None:
    x, t, e = (torch.tensor(a) for a in tied_survival(60, seed=2))
    s, order = x[:, 0], torch.randperm(60, generator=torch.Generator().manual_seed(0))
    value = cox_partial_likelihood(s, t, e)
    assert cox_partial_likelihood(s + 100, t, e).item() == pytest.approx(value.item(), rel=1e-9)
    assert cox_partial_likelihood(s[order], t[order], e[order]).item() == pytest.approx(
        value.item(), rel=1e-12
    )


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_extreme_scores_stay_finite(ties: str) -> None:
    s = torch.tensor([1e4, -1e4, 0.0, 5e3, -1e4], requires_grad=True)
    loss = cox_partial_likelihood(
        s,
        torch.tensor([1.0, 1, 1, 2, 2]),
        torch.tensor([1.0, 1, 0, 1, 0]),
        ties=ties,  # type: ignore[arg-type]
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("size", [5.0, 400.0, 5000.0])
def test_scores_of_any_size_equal_sixty_digits(ties: str, size: float) -> None:
    import mpmath

    rng = np.random.default_rng(9)
    s, t = rng.uniform(-size, size, 60), rng.integers(1, 9, 60).astype(float)
    e = (rng.random(60) < 0.7).astype(float)
    score = torch.tensor(s, requires_grad=True)
    loss = cox_partial_likelihood(score, torch.tensor(t), torch.tensor(e), ties=ties)  # type: ignore[arg-type]
    loss.backward()
    with mpmath.workdps(60):
        # exp(±5000) is a number of 2,172 digits, which 60-digit floats hold; each digit they cut is far below float64.
        exp = [mpmath.exp(mpmath.mpf(x)) for x in s]
        total, gradient = mpmath.mpf(0), [mpmath.mpf(0)] * 60
        for time in np.unique(t[e == 1]):
            dead = [i for i in range(60) if t[i] == time and e[i]]
            at_risk = [i for i in range(60) if t[i] >= time]
            for rank in range(len(dead)):
                share = mpmath.mpf(rank) / len(dead) if ties == "efron" else mpmath.mpf(0)
                sum_ = mpmath.fsum(exp[i] for i in at_risk) - share * mpmath.fsum(exp[i] for i in dead)
                total += mpmath.log(sum_) - mpmath.mpf(s[dead[rank]])
                gradient[dead[rank]] -= 1
                for i in at_risk:
                    gradient[i] += exp[i] * (1 - share * (i in dead)) / sum_
        expected, by_patient = float(total), [float(g) for g in gradient]
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert score.grad is not None
    assert score.grad.tolist() == pytest.approx(by_patient, rel=1e-9, abs=1e-12)


def test_single_precision_scores_are_summed_in_double() -> None:
    x, t, e = tied_survival(3000, seed=6)
    single = torch.tensor(x[:, 0], dtype=torch.float32, requires_grad=True)
    double = single.detach().double().requires_grad_()
    losses = [cox_partial_likelihood(s, torch.tensor(t), torch.tensor(e)) for s in (single, double)]
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=6e-8)  # half a unit in the last place
    for loss in losses:
        loss.backward()
    assert single.grad is not None
    assert double.grad is not None
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=6e-8, atol=0)


def test_a_censored_case_in_a_tied_group_without_weight_gives_no_nan() -> None:
    # The tied events hold all of the risk set in floating point: log1p(-1) lurks for the censored case.
    s = torch.tensor([50.0, 50.0, -80.0], requires_grad=True)
    cox_partial_likelihood(s, torch.ones(3), torch.tensor([1.0, 1.0, 0.0])).backward()
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("event", [[0.0, 0.0], []])
def test_no_event_no_loss(event: list[float]) -> None:
    s = torch.zeros(len(event), requires_grad=True)
    loss = cox_partial_likelihood(s, torch.ones(len(event)), torch.tensor(event))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert not s.grad.any()


def test_unknown_ties_are_refused() -> None:
    with pytest.raises(ValueError, match="'efron' or 'breslow', not 'exact'"):
        cox_partial_likelihood(torch.zeros(1), torch.ones(1), torch.ones(1), ties="exact")  # type: ignore[arg-type]


def test_losses_are_sums_and_counts_of_their_closed_forms() -> None:
    outputs, targets, mask = outputs_and_targets(9)
    sums, counts = TaskLosses(HEADS)(outputs, targets, mask)
    entropy = torch.nn.functional.cross_entropy
    assert counts.tolist() == [9, 9, 9, targets["OS"][:, 1].sum()]
    assert sums[0] == pytest.approx(entropy(outputs["MSI"], targets["MSI"].long(), reduction="sum").item())
    assert sums[1] == pytest.approx(
        entropy(outputs["grade"], targets["grade"].long(), reduction="sum").item()
    )
    assert sums[2] == pytest.approx(((outputs["LF"][:, 0] - targets["LF"]) ** 2).sum().item())
    expected = brute_force(outputs["OS"][:, 0].numpy(), *targets["OS"].numpy().T, "efron")
    assert sums[3] == pytest.approx(expected)


def test_missing_labels_give_zero_gradient_and_do_not_count() -> None:
    outputs, targets, mask = outputs_and_targets(8)
    for name in mask:
        mask[name] = torch.tensor([True] * 5 + [False] * 3)
        targets[name][5:] = 0  # as collate fills them
        outputs[name].requires_grad_()
    result = TaskLosses(HEADS)(outputs, targets, mask)
    result.sums.sum().backward()
    assert len(outputs) > 0
    for name, out in outputs.items():
        assert out.grad is not None
        assert not out.grad[5:].any(), name
        assert out.grad[:5].any(), name
    shorter = TaskLosses(HEADS)(*({k: v[:5] for k, v in part.items()} for part in (outputs, targets, mask)))
    torch.testing.assert_close(result.sums, shorter.sums)
    torch.testing.assert_close(result.counts, shorter.counts)


def test_a_task_without_any_label_has_loss_zero_and_a_zero_gradient() -> None:
    outputs, targets, mask = outputs_and_targets(4)
    mask = {name: torch.zeros_like(m) for name, m in mask.items()}
    for out in outputs.values():
        out.requires_grad_()
    result = TaskLosses(HEADS)(outputs, targets, mask)
    result.means().sum().backward()
    assert result.means().tolist() == [0, 0, 0, 0]
    assert result.counts.tolist() == [0, 0, 0, 0]
    assert all(out.grad is not None and not out.grad.any() for out in outputs.values())


def test_class_weights_count_in_batches_of_one() -> None:
    # With the weighted mean of torch a weight cancels out there.
    head = (TaskHead("MSI", "binary", 2),)
    plain, weighted = TaskLosses(head), TaskLosses(head, {"MSI": [0.5, 3.0]})
    part = {"MSI": torch.randn(1, 2)}, {"MSI": torch.ones(1)}, {"MSI": torch.ones(1, dtype=torch.bool)}
    assert weighted(*part).means().item() == pytest.approx(3 * plain(*part).means().item())


def test_class_weights_are_buffers() -> None:
    losses = TaskLosses(HEADS, {"MSI": [0.5, 3.0]})
    assert [buffer.tolist() for buffer in losses.buffers()] == [[0.5, 3.0]]
    assert not list(losses.parameters())


def test_gather_brings_the_risk_sets_of_workers_together() -> None:
    outputs, targets, mask = outputs_and_targets(10)
    head = HEADS[3:]
    whole = TaskLosses(head)(outputs, targets, mask)
    mine = [{k: v[:6] for k, v in part.items()} for part in (outputs, targets, mask)]
    labels = torch.stack([mask["OS"], torch.zeros(10)], dim=1)  # known, and the stratum
    theirs = torch.cat([outputs["OS"], targets["OS"], labels], dim=1)[6:]
    joined = TaskLosses(head, gather=lambda rows: torch.cat([rows, theirs]))(*mine)
    torch.testing.assert_close(joined.sums, whole.sums)
    torch.testing.assert_close(joined.counts, whole.counts)


def test_half_precision_outputs_are_computed_in_single() -> None:
    outputs, targets, mask = outputs_and_targets(6)
    half = {name: out.bfloat16() for name, out in outputs.items()}
    single = {name: out.float() for name, out in half.items()}
    torch.testing.assert_close(
        TaskLosses(HEADS)(half, targets, mask), TaskLosses(HEADS)(single, targets, mask)
    )


@pytest.mark.parametrize(
    ("heads", "weights", "message"),
    [
        (HEADS, {"LF": [1.0]}, "'LF' (regression, 1 outputs)"),
        (HEADS, {"MSI": [1.0, 1.0, 1.0]}, "'MSI' (binary, 2 outputs)"),
        (HEADS, {"HRD": [1.0, 1.0]}, "unknown tasks: HRD"),
        ((TaskHead("TME", "regression", 5),), {}, "defined for 1 output, not 5"),
    ],
)
def test_impossible_losses_are_refused(heads: tuple, weights: dict, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        TaskLosses(heads, weights)
    assert message in str(refused.value)


def test_balanced_weights_average_one_over_cases() -> None:
    counts = [30, 9, 1]
    weights = balanced_weights(counts)
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) == pytest.approx(40)
    assert weights[2] * 1 == pytest.approx(weights[0] * 30)
    with pytest.raises(ValueError, match="without training cases"):
        balanced_weights([3, 0])


#: Age and sex (a gap in sex is the mode) at lifelines' Efron estimates, and (age - 60) / 10, of PORPOISE's patients in
#: whole months: log likelihoods (Efron, Breslow) by lifelines, and summed losses of the fixed score.
PORPOISE = {
    "kirc": ((-464.0620365269, -464.5236405613), (486.0358776296, 486.7189736100), (345, 105)),
    "gbmlgg": ((-948.7979165070, -950.8464476555), (967.0383198673, 969.8394232177), (569, 98)),
}


@pytest.mark.real
@pytest.mark.parametrize("name", PORPOISE)
def test_real_patients_in_whole_months_are_lifelines(shared_data, name: str) -> None:
    import pandas as pd
    from lifelines import CoxPHFitter

    at_estimate, of_age, (patients, times) = PORPOISE[name]
    file = shared_data / "tcga" / "porpoise" / f"tcga_{name}_all_clean.csv.zip"
    columns = ["case_id", "age", "is_female", "survival_months", "censorship"]
    rows = pd.read_csv(file, usecols=columns).drop_duplicates("case_id")
    rows["T"], rows["E"] = np.floor(rows["survival_months"]) + 1, 1.0 - rows["censorship"]
    rows["is_female"] = rows["is_female"].fillna(rows["is_female"].mode()[0])
    assert (len(rows), rows["T"].nunique()) == (patients, times)
    t, e = (torch.tensor(rows[c].to_numpy(float)) for c in ("T", "E"))
    fitted = CoxPHFitter().fit(rows[["age", "is_female", "T", "E"]], "T", "E")
    scores = {
        "estimate": torch.tensor(rows[["age", "is_female"]].to_numpy(float) @ fitted.params_.to_numpy()),
        "age": torch.tensor((rows["age"].to_numpy(float) - 60) / 10),
    }
    expected = {"estimate": [-value for value in at_estimate], "age": list(of_age)}
    for kind, score in scores.items():
        losses = [cox_partial_likelihood(score, t, e, ties=ties).item() for ties in ("efron", "breslow")]
        assert losses == pytest.approx(expected[kind], abs=2e-9), kind
    assert -fitted.log_likelihood_ == pytest.approx(-at_estimate[0], abs=2e-9)
