"""Learning rates by hand; the same after a resume; and the optimizer's state in host memory changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")

from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.loading import load_settings
from agentrl.config.settings import LearnerSettings
from agentrl.errors import ConfigError
from agentrl.learner.schedule import rate_share


def shares(count: int, **settings: object) -> list[float]:
    return [rate_share(step, LearnerSettings(**settings)) for step in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        # Two of warm-up, then four of the way: 1, 3/4, 2/4, 1/4.
        ({"schedule": "linear", "warmup_steps": 2, "schedule_steps": 6}, [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        # A third of six steps is two.
        ({"schedule": "linear", "warmup_steps": 1 / 3, "schedule_steps": 6}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        # cos 60 degrees is one half: 0.2 + 0.8 (1 + 1/2) / 2 = 0.8.
        (
            {"schedule": "cosine", "schedule_steps": 3, "schedule_floor": 0.2},
            [1, 0.8, 0.2 + 0.8 * 0.25, 0.2, 0.2],
        ),
    ],
)
def test_shares_by_hand(settings: dict[str, object], expected: list[float]) -> None:
    assert shares(len(expected), **settings) == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.one_of(st.integers(0, 20), st.floats(0.01, 0.99)),
    st.integers(21, 200),
    st.floats(0, 1),
)
def test_it_rises_then_never_rises_again(schedule: str, warmup: float, steps: int, floor: float) -> None:
    found = np.array(
        shares(steps + 3, schedule=schedule, warmup_steps=warmup, schedule_steps=steps, schedule_floor=floor)
    )
    top = int(found.argmax())
    assert found[top] == 1.0
    assert (np.diff(found[: top + 1]) > 0).all()
    assert (np.diff(found[top:]) <= 1e-12).all()
    assert found[-1] == pytest.approx(1.0 if schedule == "constant" else floor)


def test_a_schedule_goes_on_exactly_after_a_resume(
    make_learner, episodes, advantages, tmp_path: Path
) -> None:
    settings = {"schedule": "cosine", "warmup_steps": 0.25, "schedule_steps": 8, "mini_batch": 3}
    learner, other = make_learner(**settings), make_learner(**settings)
    learner.step(episodes, advantages)
    learner.save(tmp_path)
    other.load(tmp_path)
    for _ in range(2):
        one, two = learner.step(episodes, advantages), other.step(episodes, advantages)
        assert (one.learning_rate, one.loss) == (two.learning_rate, two.loss)
    assert all(
        torch.equal(a, b) for a, b in zip(learner.model.parameters(), other.model.parameters(), strict=True)
    )


def test_a_run_s_schedule_ends_with_its_steps() -> None:
    flags = ["--run.steps=10", "--stream.batch=100", "--learner.mini_batch=32", "--learner.epochs=2"]
    assert load_settings(None, flags).optimizer_steps == 10 * 2 * 4  # 100 = 25 + 25 + 25 + 25


def test_wrong_schedules_are_refused(make_learner) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'cosine'"):
        load_settings(None, ["--learner.schedule=cosin"])
    with pytest.raises(ConfigError, match=r"learner.warmup_steps = 9 leaves none"):
        load_settings(None, ["--learner.warmup_steps=9", "--learner.schedule_steps=9"])
    with pytest.raises(ConfigError, match=r"needs learner.schedule_steps"):
        make_learner(schedule="linear")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_in_host_memory_gives_the_same_weights(
    make_learner, episodes, advantages, tmp_path: Path, dtype: str
) -> None:
    one, two = (
        make_learner(dtype=dtype, offload=offload, mini_batch=3, learning_rate=1e-3)
        for offload in (False, True)
    )
    for _ in range(2):
        assert one.step(episodes, advantages).loss == two.step(episodes, advantages).loss
    # With offload every weight has a master apart from it, which a device's memory would not hold.
    masters = {tensor.data_ptr() for name, tensor in two._optimizer.tensors().items() if "master:" in name}
    assert not masters & {parameter.data_ptr() for parameter in two.model.parameters()}
    two.save(tmp_path)
    two.step(episodes, advantages)
    two.load(tmp_path)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    # And a run may go on with it, or without, or in the other type.
    for learner in (one, make_learner(dtype="float32", offload=True, mini_batch=3, learning_rate=1e-3)):
        learner.load(tmp_path)
        for name, tensor in learner._optimizer.tensors().items():
            assert torch.equal(tensor, two._optimizer.tensors()[name]), name


def test_a_float32_head_multiplies_in_float32(make_learner, episodes, advantages) -> None:
    exact = make_learner(float32_head=True).score(episodes)
    plain = make_learner().score(episodes)
    for a, b in zip(exact, plain, strict=True):
        np.testing.assert_array_equal(a[0], b[0])  # nothing changes in a model of float32

    learner = make_learner(dtype="bfloat16", float32_head=True)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    columns = torch.arange(4)
    with torch.no_grad():
        found = learner._forward.scorer(ids, columns * 0, columns, ids[0, 1:], torch.ones(4)).logprobs
        states = learner.model.base_model(input_ids=ids).last_hidden_state[0, :4].float()
        logits = states @ learner.model.get_output_embeddings().weight.float().t()
    expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert np.isfinite(learner.step(episodes, advantages).grad_norm)
