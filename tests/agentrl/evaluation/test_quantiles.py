import pytest

from agentrl.evaluation.statistics.quantiles import normal_quantile, student_t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (1, 12.7062047),
        (2, 4.30265273),
        (5, 2.57058184),
        (29, 2.04522964),
        (99, 1.98421695),
        (10_000_000, 1.95996398),
    ],
)
def test_student_t_against_printed_tables(degrees, expected):
    assert student_t_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-7)
    assert student_t_quantile(0.025, degrees) == pytest.approx(-expected, rel=1e-7)


def test_student_t_with_one_degree_is_cauchy_and_its_median_is_zero():
    assert student_t_quantile(0.75, 1) == pytest.approx(1.0, rel=1e-12)
    assert student_t_quantile(0.5, 3) == 0.0


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 17, 100, 1001, 50_000])
@pytest.mark.parametrize("probability", [0.01, 0.4, 0.6, 0.9, 0.975, 0.9999])
def test_student_t_against_scipy(degrees, probability):
    special = pytest.importorskip("scipy.special", reason="scipy is not installed (pip install agentrl[dev])")
    expected = special.stdtrit(degrees, probability)
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)


def test_normal():
    assert normal_quantile(0.975) == pytest.approx(1.959963985, rel=1e-9)
