import pytest

from agentrl.evaluation.statistics.quantiles import (
    beta_cdf,
    beta_quantile,
    clopper_pearson,
    normal_quantile,
    student_t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (1, 12.7062047),
        (2, 4.30265273),
        (5, 2.57058184),
        (29, 2.04522964),
        (99, 1.98421695),
        (1e7, 1.95996398),
    ],
)
def test_student_t_against_printed_tables(degrees, expected):
    assert student_t_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-7)
    assert student_t_quantile(0.025, degrees) == pytest.approx(-expected, rel=1e-7)


def test_student_t_with_one_degree_is_cauchy_and_its_median_is_zero():
    assert student_t_quantile(0.75, 1) == pytest.approx(1.0, rel=1e-12)
    assert student_t_quantile(0.5, 3) == 0.0


def test_beta_with_closed_forms():
    # I_x(1, b) = 1 - (1 - x)^b ; I_x(a, 1) = x^a ; I_x(2, 2) = 3 x^2 - 2 x^3
    assert beta_cdf(0.3, 1, 4) == pytest.approx(1 - 0.7**4, rel=1e-13)
    assert beta_cdf(0.3, 5, 1) == pytest.approx(0.3**5, rel=1e-13)
    assert beta_cdf(0.9, 2, 2) == pytest.approx(3 * 0.81 - 2 * 0.729, rel=1e-13)
    assert beta_cdf(-1.0, 2, 2) == 0.0
    assert beta_cdf(1.0, 2, 2) == 1.0
    assert beta_quantile(0.25, 1, 1) == pytest.approx(0.25)


def test_clopper_pearson_by_hand():
    # none of n: the upper bound is 1 - 0.025^(1/n)
    low, high = clopper_pearson(0, 30)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 30), rel=1e-10)
    assert clopper_pearson(30, 30) == (pytest.approx(1 - high), 1.0)


def test_normal():
    assert normal_quantile(0.975) == pytest.approx(1.959963985, rel=1e-9)
