"""The accountant against published cases, and the end of a budget."""

import pytest

from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.privacy.accountant import Accountant, SampledGaussian, noise_for

# FLamby's Fed-TCGA-BRCA: noise is calibrated for 5 epochs of batches of 8, but 5 x 100 steps are taken.
# (batches of an epoch, noise for the target, target, what it really is)
PROTOCOL = [
    (31, 1.4542, 1.0, 1.88),
    (31, 0.54448, 10.0, 17.7),
    (5, 3.1851, 1.0, 5.58),
    (5, 0.74969, 10.0, 81.4),
]


@pytest.mark.parametrize(("batches", "noise", "target", "really"), PROTOCOL)
def test_counting_epochs_instead_of_steps_hides_most_of_what_is_spent(
    batches: int, noise: float, target: float, really: float
) -> None:
    account, mechanism = Accountant(delta=1e-3), SampledGaussian(1 / batches, noise)
    account.spend(mechanism, 5 * batches)
    assert account.spent() == pytest.approx(target, rel=2e-3)
    account.spend(mechanism, 500 - 5 * batches)
    assert account.spent() == pytest.approx(really, rel=1e-2)


def test_the_tight_value_is_below_the_bound() -> None:
    account = Accountant(1e-3, executed={SampledGaussian(0.2, 3.1851): 500})
    assert account.tight_epsilon() == pytest.approx(4.99, abs=0.01)
    assert account.tight_epsilon() < account.spent()


def test_a_full_sample_is_the_plain_gaussian_mechanism() -> None:
    # Gaussian mechanism, one step, sigma 1: delta(eps) of Balle and Wang 2018 at eps 1 is 0.12693674.
    account = Accountant(0.12693674, executed={SampledGaussian(1.0, 1.0): 1})
    assert account.tight_epsilon() == pytest.approx(1.0, abs=2e-3)


def test_stops_before_the_budget_is_exceeded() -> None:
    account, mechanism = Accountant(1e-5, epsilon=4.0), SampledGaussian(0.1, 1.0)
    most = account.max_steps(mechanism)
    assert most > 1
    account.spend(mechanism, most)
    assert account.spent() <= 4.0
    with pytest.raises(FederationError, match="more steps would spend"):
        account.spend(mechanism)
    assert account.executed[mechanism] == most
    assert account.max_steps(mechanism) == 0


def test_mechanisms_add_up() -> None:
    one, two = SampledGaussian(0.1, 1.0), SampledGaussian(0.3, 2.0)
    both = Accountant(1e-5)
    both.spend(one, 10)
    both.spend(two, 5)
    assert both.spent() > max(Accountant(1e-5, executed={m: n}).spent() for m, n in [(one, 10), (two, 5)])
    split = Accountant(1e-5)
    for _ in range(5):
        split.spend(two)
        split.spend(one, 2)
    assert split.spent() == both.spent()


def test_state_survives_a_checkpoint() -> None:
    account = Accountant(1e-5, 8.0, {SampledGaussian(0.1, 1.0): 12})
    again = Accountant.from_state(account.state())
    assert again == account
    assert again.spent() == account.spent()


def test_nothing_spent_is_zero() -> None:
    assert Accountant(1e-5).spent() == Accountant(1e-5).tight_epsilon() == 0


def test_calibrated_noise_keeps_the_budget_and_is_not_wasteful() -> None:
    z = noise_for(0.2, 25, 1.0, 1e-3, precision=0.01)
    account = Accountant(1e-3)
    assert 0.97 < account.after(SampledGaussian(0.2, z), 25) <= 1.0


@pytest.mark.parametrize(("rate", "noise"), [(0, 1), (1.2, 1), (0.5, 0), (0.5, -1), (0.5, float("inf"))])
def test_what_gives_no_privacy_is_refused(rate: float, noise: float) -> None:
    with pytest.raises(StudyError):
        SampledGaussian(rate, noise)
