"""What an ε means: the closed forms of a Gaussian, and that nothing is promised where nothing is."""

from statistics import NormalDist

import pytest

from node.privacy.accountant import Mechanism, Spent, epsilon_total, privacy_profile
from node.privacy.membership import FPR, highest_tpr, membership

NORMAL = NormalDist()


@pytest.mark.parametrize("fpr", [FPR, 0.001])
@pytest.mark.parametrize(("sigma", "rounds"), [(2.0, 4), (4.0, 1), (1.0, 4)])
def test_of_a_gaussian_it_is_the_neyman_pearson_test(sigma: float, rounds: int, fpr: float) -> None:
    """μ = √T/σ; TPR = Φ(Φ⁻¹(FPR) + μ)."""
    exact = NORMAL.cdf(NORMAL.inv_cdf(fpr) + rounds**0.5 / sigma)
    bound = highest_tpr([Spent(Mechanism(sigma=sigma, rate=1.0), rounds)], fpr)
    assert exact <= bound < 1.01 * exact


def test_the_profile_goes_through_the_stated_epsilon() -> None:
    mechanism = Mechanism(sigma=1.5, rate=0.05, releases=3)
    spent = [Spent(mechanism, mechanism.compositions(20))]
    epsilon = epsilon_total(mechanism, 20, 1e-5)
    [delta] = privacy_profile(spent, [epsilon])
    assert delta == pytest.approx(1e-5, rel=1e-2)


def test_one_link_tells_less_than_all_and_both_more_than_guessing() -> None:
    known = membership(Mechanism(sigma=1.0, rate=0.1, releases=3), 30)
    assert FPR < known.link < known.total < 1


def test_without_a_guarantee_everything_may_be_told() -> None:
    assert highest_tpr([Spent(Mechanism(sigma=0.0, rate=1.0, mode="none"), 1)]) == 1.0
    assert highest_tpr([Spent(Mechanism(sigma=1e-3, rate=1.0), 10)]) == 1.0
    assert highest_tpr([]) == FPR
