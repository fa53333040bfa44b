"""Methods of `examples/methods`: four rows worked by hand, and the trap of each."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.algorithms.advantage import CreditBatch
from agentrl.config import registry
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.learner.batch import build_sequences
from agentrl.storage import nested
from agentrl_envs import load_env
from agentrl_envs.math_with_python import MathWithPython
from tests.agentrl.test_segments import play

METHODS = Path(__file__).parents[1] / "examples" / "methods"


def load(path: Path) -> dict[str, Any]:
    """What a file of methods defines."""
    return runpy.run_path(str(path))


ONE_GROUP = np.zeros(4, dtype=np.int64)


def make(family: str, spec: str, **own: Any) -> Any:
    return registry.make(family, f"{METHODS / spec}", own)


def episode(tokens: int = 2, *, logprob: float = -1.0, **more: Any) -> Episode:
    builder = SegmentBuilder()
    builder.append_given([1])
    builder.append_sampled([2] * tokens, [logprob] * tokens, [0] * tokens)
    fields: dict[str, Any] = {
        "episode_id": "e",
        "dispatch_index": 0,
        "prompt_id": "p",
        "segments": (builder.build(),),
        "turns": (),
        "reward": 1.0,
        "stop_reason": StopReason.ANSWERED,
        "start_version": 0,
        "temperature": 1.0,
    }
    return Episode(**(fields | more))


def batch(scores: list[float], groups: Any = ONE_GROUP, **more: Any) -> CreditBatch:
    return CreditBatch(np.array(scores), groups=groups, **more)


def near(values: Any) -> Any:
    return pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize("path", sorted(METHODS.glob("*.py")), ids=lambda path: path.stem)
def test_a_method_says_how_it_is_run_and_where_it_is_from(path: Path) -> None:
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith("agentrl train run.toml --")]
    assert lines, "a line to type"
    for line in lines:
        family, _, spec = line.split()[3].removeprefix("--").partition(".")[0], "", line.split()[4]
        if family == "env":
            assert load_env(str(METHODS.parents[1] / spec)).__doc__
            continue
        declared = registry.declared(family, str(METHODS.parents[1] / spec))
        assert declared.text
    assert "arXiv" in text or "code read" in text


def test_hints(tmp_path: Path) -> None:
    row = {"id": "a", "problem": "p", "answer": "7", "solution": "one two three four five 7 seven eight"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    command = (sys.executable, METHODS / "hints.py", tmp_path / "rows.jsonl", tmp_path / "hinted.jsonl")
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (tmp_path / "hinted.jsonl").read_text().splitlines()]
    # Of eight words 0, 2 and 4. The trap: six of them would tell the answer, so that level is left out.
    assert [(one["id"], one["hint"]) for one in rows] == [
        ("a+0%", ""),
        ("a+25%", "one two"),
        ("a+50%", "one two three four"),
    ]
    env = load_env(f"{METHODS / 'hints.py'}:Hinted")
    env.check_rows(rows)
    assert env().prompt(rows[1]).endswith("The solution begins: one two")
    assert env().prompt(rows[0]) == MathWithPython().prompt(row)


def test_mc_grpo() -> None:
    part = make("estimator", "mc_grpo.py:MCGRPO")
    # Median .2, deviations .2, 0, .8: their median .2; / .201.
    result = part(batch([0.0, 0.2, 1.0], np.zeros(3, dtype=np.int64)))
    assert result.tolist() == near([-0.995025, 0.0, 3.0])
    # The trap: with rewards of 0 and 1 a deviation is 0, and the scale is that of 1e-3.
    binary = batch([1.0, 0.0, 0.0], np.zeros(3, dtype=np.int64))
    assert make("estimator", "mc_grpo.py:MCGRPO", bound=5000.0)(binary).tolist() == near([1000.0, 0.0, 0.0])
    assert part(binary).tolist() == [3.0, 0.0, 0.0]


def test_capo() -> None:
    rows = [episode(logprob=value) for value in (-0.5, -0.7, -0.4, -0.9)]
    result = make("estimator", "capo_calibration.py:CAPO")(batch([1.0, 1.0, 0.0, 0.0], episodes=rows))
    # sigma of -(-.1, .4, -.3, .2) / .6: .541570, .339244, .622459, .417430.
    assert result.tolist() == pytest.approx([0.880814, 1.039889, -1.164029, -0.756674], abs=1e-5)
    assert float(result.sum()) == pytest.approx(0.0, abs=1e-9)
    # A right answer of perplexity e^1 is above 2.5, a wrong one of e^.04 below 1.05.
    rows = [episode(logprob=value) for value in (-1.0, -0.7, -0.04, -0.9)]
    masked = make("estimator", "capo_calibration.py:CAPO")(batch([1.0, 1.0, 0.0, 0.0], episodes=rows))
    assert [value == 0.0 for value in masked] == [True, False, True, False]


def test_empo() -> None:
    rows = [episode(answer=answer) for answer in ("7", " 7", "8", None)]
    # Shares .5, .5, .25, 0; mean .3125, deviation .239357. The reward says nothing.
    result = make("estimator", "empo.py:EMPO")(batch([0.0, 1.0, 1.0, 1.0], episodes=rows))
    assert result.tolist() == pytest.approx([0.783346, 0.783346, -0.261116, -1.305576], abs=1e-5)
    rows = [episode(answer=answer) for answer in "1234"]
    assert make("estimator", "empo.py:EMPO")(batch([1.0] * 4, episodes=rows)).tolist() == [0.0] * 4


def test_adora() -> None:
    rows = [episode(tokens) for tokens in (10, 20, 30, 20)]
    result = make("estimator", "adora.py:ADORA")(
        batch([1.0, 0.0, 1.0, 0.0], np.array([0, 0, 1, 1]), episodes=rows)
    )
    # +-.5 / .707107; the right answer of the first group is the shorter one.
    assert result.tolist() == near([0.0707107, -0.0707107, 0.707107, -0.707107])
    # A wrong answer that was cut off is not counted among the lengths.
    rows[1] = episode(20, stop_reason=StopReason.MAX_TOKENS)
    result = make("estimator", "adora.py:ADORA")(
        batch([1.0, 0.0, 1.0, 0.0], np.array([0, 0, 1, 1]), episodes=rows)
    )
    assert result[0] == pytest.approx(0.707107, abs=2e-6)


def test_risk() -> None:
    scores = [1.0] * 5 + [0.0] * 5
    part = make("estimator", "risk.py:RiskPO", centred=False)
    # Quantiles 1 and 4. Sum 5: (4 - 1 + 1 - 4) / .6 = 0; sum 0: -3 / .6 = -5 between, -1 / .2 = -5 below: -5.
    result = part(batch(scores))
    assert result.tolist() == near([0.0] * 5 + [-5.0] * 5)
    # The trap: no advantage is above 0, until the mean is taken away.
    assert make("estimator", "risk.py:RiskPO")(batch(scores)).tolist() == near([2.5] * 5 + [-2.5] * 5)
    assert part(batch([1.0] * 4)).tolist() == [0.0] * 4


def test_the_quantiles_of_risk_are_learned_and_saved() -> None:
    part, other = (
        make("estimator", "risk.py:RiskPO", rate=0.01),
        make("estimator", "risk.py:RiskPO", rate=0.01),
    )
    rng = np.random.default_rng(0)
    for reward in rng.random(20_000):
        part.fold(episode(reward=float(reward)))
    # Sums of five uniform numbers: 2.5 -+ .8416 sqrt(5 / 12).
    assert part.quantiles[3] == pytest.approx(1.957, abs=0.15)
    assert part.quantiles[15] == pytest.approx(3.043, abs=0.15)
    part.fold(episode())
    other.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert other.state_dict() == part.state_dict()


torch = pytest.importorskip("torch", reason="losses need torch (pip install agentrl[train])")

from agentrl.learner.losses.clipped import LossInputs


def inputs(ratios: list[float], advantage: list[float], **more: Any) -> LossInputs:
    old, places = torch.full((len(ratios),), -1.0), torch.arange(len(ratios))
    fields: dict[str, Any] = {
        "current": (old + torch.tensor(ratios).log()).requires_grad_(),
        "proximal": old,
        "behaviour": old,
        "advantage": torch.tensor(advantage),
        "entropy": torch.zeros(len(ratios)),
        "logsumexp": torch.zeros(len(ratios)),
        "segment": torch.zeros_like(places),
        "sequence": torch.zeros_like(places),
        "position": places,
        "turn": torch.zeros_like(places),
    }
    return LossInputs(**fields | more)


def run(spec: str, it: LossInputs, **own: Any) -> tuple[list[float], list[float]]:
    loss, _ = make("loss", spec, **own)(it)
    return loss.tolist(), torch.autograd.grad(loss.sum(), it.current)[0].tolist()


def test_nft() -> None:
    score = torch.tensor([1.0, 1.0, 0.0, 0.0])
    loss, gradient = run("nft.py:NFT", inputs([1.0, 2.0, 0.5, 2.0], [0.5] * 4, score=score))
    # -log 1, -log 2; implicit ratios of wrong ones (1 - .25) / .5 = 1.5, and 0, which is held at .1.
    assert loss == near([0.0, -math.log(2), -math.log(1.5), -math.log(0.1)])
    # Straight through the bound: a gradient at the last one too, ratio / (1 - p) p / .1 = 2 * 10.
    assert gradient == near([-1.0, -1.0, 1 / 3, 20.0])
    rates = make("estimator", "nft.py:Rate")(batch([1.0, 0.0], baselines=np.array([0.999, 0.3])))
    assert rates.tolist() == [0.98, 0.3]


def test_nft_on_the_policy_is_grpo() -> None:
    # At ratio 1 right ones have gradient -1 and wrong ones p / (1 - p): the advantages, over the rate of wrong ones.
    score = torch.tensor([1.0, 0.0])
    _, gradient = run("nft.py:NFT", inputs([1.0, 1.0], [0.25, 0.25], score=score))
    assert gradient == near([-1.0, 1 / 3])


def test_ratios_of_messages() -> None:
    it = inputs([2.0, 0.5, 1.5, 1.0], [1.0] * 4, turn=torch.tensor([0, 0, 1, 1]))
    # Geometric means 1 and sqrt 1.5 = 1.224745, clipped at 1.2.
    loss, gradient = run("sentence_ratio.py:TurnRatio", it)
    assert loss == near([-1.0, -1.0, -1.2, -1.2])
    assert gradient == near([-1.0, -1.0, 0.0, 0.0])
    # The same message number in two sequences is two messages.
    apart = inputs([2.0, 1.0, 0.5, 1.0], [1.0] * 4, sequence=torch.tensor([0, 0, 1, 1]))
    assert run("sentence_ratio.py:TurnRatio", apart)[0] == near([-1.2, -1.2, -0.707107, -0.707107])


def test_hybrid_ratio() -> None:
    # Token ratios 2 and .5 clipped at 1.2 and .8, sequence's 1: mixed 1.1 and .9 against 1.5 and .75.
    loss, gradient = run("sentence_ratio.py:HybridRatio", inputs([2.0, 0.5], [1.0, 1.0]))
    assert loss == near([-1.1, -0.75])
    assert gradient[0] == near(-0.5)  # the token's branch is clipped, the sequence's still learns
    assert gradient[1] == near(-0.75)


def test_ratio_variance() -> None:
    loss, gradient = run("ratio_variance.py:RatioVariance", inputs([2.0, 0.5, 1.0], [1.0, -1.0, 1.0]))
    assert loss == near([-1.0, 0.75, -1.0])
    # -ratio (A - 2 (ratio - 1)): beyond 1.5 a positive advantage is pulled back, without a clip.
    assert gradient == near([2.0, 0.0, -1.0])


def of_prompt(features: list[float], reward: float, said: int = 9) -> Episode:
    """An episode of a prompt with these hidden states."""
    builder = SegmentBuilder()
    builder.append_given([1])
    builder.note_prompt(features)
    builder.append_sampled([said], [-1.0], [0])
    return episode(segments=(builder.build(),), reward=reward)


def test_poise_predicts_from_hidden_states_of_the_prompt() -> None:
    it = make("estimator", "poise.py:PromptPrior", weight=1.0)
    assert it.predicted([np.ones(2)]) == near([0.5])
    for place, reward in ((2.0, 1.0), (2.0, 1.0), (0.0, 0.0), (0.0, 0.0)):
        it.fold(of_prompt([place, 7.0], reward))
    # Mean (2 + .5) / 5 = .5, centre (1, 7), mean square length 1: one feature u = +-1, scores +-.5 from the mean.
    # Ridge: sum(.5) / (sum u^2 + 1) = 2 / 5 a unit.
    assert it.predicted(np.array([[2.0, 7.0], [0.0, 7.0], [1.0, 0.0], [9.0, 7.0]])) == near(
        [0.9, 0.1, 0.5, 1.0]
    )
    rows = [of_prompt([2, 7], 1.0), of_prompt([2, 7], 0.0), of_prompt([0, 7], 1.0), of_prompt([0, 7], 0.0)]
    known = {"baselines": np.full(4, 0.5), "counts": np.ones(4), "episodes": rows}
    # Baselines (.5 + .9) / 2 = .7 and .3: .3, -.7, .7, -.3 over the deviation sqrt(1.16 / 3).
    wanted = np.array([0.3, -0.7, 0.7, -0.3]) / (1.16 / 3) ** 0.5
    assert it(batch([1, 0, 1, 0], **known)) == near(wanted)
    # What was said does not move the baseline, and neither does asking.
    other = [of_prompt([2, 7], 1.0, said=3), *rows[1:]]
    assert it(batch([1, 0, 1, 0], **(known | {"episodes": other}))) == near(wanted)
    again = make("estimator", "poise.py:PromptPrior", weight=1.0)
    again.load_state_dict(json.loads(json.dumps(it.state_dict())))
    assert (again(batch([1, 0, 1, 0], **known)) == it(batch([1, 0, 1, 0], **known))).all()
    # A prompt that is known well has its own value, and so has an episode without a hidden state.
    sure = near(np.array([0.5, -0.5, 0.5, -0.5]) / (1 / 3) ** 0.5)
    assert it(batch([1, 0, 1, 0], **(known | {"counts": np.full(4, 1e9)}))) == sure
    unread = [of_prompt([], reward) for reward in (1.0, 0.0, 1.0, 0.0)]
    assert it(batch([1, 0, 1, 0], **(known | {"episodes": unread}))) == sure
    it.fold(unread[0])
    assert it.state_dict() == again.state_dict()


def test_poise_forgets_what_left_its_buffer() -> None:
    it = make("estimator", "poise.py:PromptPrior", buffer=4)
    for place, reward in ((5.0, 0.0), (2.0, 1.0), (2.0, 1.0), (0.0, 0.0), (0.0, 0.0)):
        it.fold(of_prompt([place], reward))
    assert it.predicted(np.array([[2.0], [0.0]])) == near([0.9, 0.1])
    # With each step goes what changed of the state: one of four hidden states, in the oldest one's place.
    before = it.state_dict()
    it.fold(of_prompt([3.0], 1.0))
    change = nested.difference(before, it.state_dict())
    assert list(change["in"]["features"]["in"]) == ["1"]
    again = make("estimator", "poise.py:PromptPrior", buffer=4)
    again.load_state_dict(nested.applied(before, change))
    assert again.state_dict() == it.state_dict()
    shorter = make("estimator", "poise.py:PromptPrior", buffer=2)
    shorter.load_state_dict(before)
    assert len(shorter.features) == len(shorter.scores) == 2


def test_poise_errs_less_than_the_mean_where_hidden_states_tell_the_difficulty() -> None:
    it, rng = make("estimator", "poise.py:PromptPrior"), np.random.default_rng(0)
    hidden = rng.normal(size=(600, 16))
    chances = 1.0 / (1.0 + np.exp(-2.0 * hidden[:, 3]))
    for features, chance in zip(hidden[:300], chances[:300], strict=True):
        it.fold(of_prompt(features.tolist(), float(rng.random() < chance)))
    own = np.mean((it.predicted(hidden[300:]) - chances[300:]) ** 2)
    assert own < 0.3 * np.mean((np.mean(it.scores) - chances[300:]) ** 2)


def test_brpo_by_hand() -> None:
    span = load(METHODS / "anytime.py")["span_advantages"]
    # Two budgets, value .5. First spans: half the sum of both answers, less .5. Second ones: half the last
    # answer, less (V1 + .5 * .5) / 2, where V1 is half the first answer.
    rows = {(1, 1): (0.5, 0.125), (0, 1): (0.0, 0.375), (1, 0): (0.0, -0.375), (0, 0): (-0.5, -0.125)}
    for rewards, wanted in rows.items():
        assert span(np.array(rewards, dtype=float), 0.5).tolist() == near(list(wanted))
    # Of four: V1 weighs earlier answers 1, 2, 4: of 1, 0, 1 it promises 5/7 of the last quarter.
    assert span(np.array([1.0, 0.0, 1.0, 0.0]), 0.5)[3] == near(-(3 * 5 / 7 * 0.25 + 0.5 * 0.25) / 4)


async def test_an_answer_at_every_budget_is_a_segment_of_its_own() -> None:
    said = ["It is six times", r"\boxed{40}", "seven, so", r"\boxed{42}"]
    env = load_env(f"{METHODS / 'anytime.py'}:Anytime")
    row = {"problem": "6*7?", "answer": "42"}
    episode = await play(lambda: env(steps=2), [f"{one}<|end|>" for one in said], row=row)
    assert (episode.failure, episode.reward, episode.answer) == (None, 0.5, r"\boxed{42}")
    assert dict(episode.agent_rewards) == {"answer after 0": 0.0, "answer after 1": 1.0}
    it = make("estimator", "anytime.py:BRPO", deviation_floor=1e9)
    (given,) = it(CreditBatch(np.array([0.5]), np.array([0.5]), episodes=[episode]))
    credit = [float(given[turn.segment][turn.start]) * 1e9 for turn in episode.turns]
    # Spans 0 and .375, answers -.5 and .5, less their mean .09375; in the order they were said.
    assert credit == near([-0.09375, -0.59375, 0.28125, 0.40625])
    # Each sampled token is learned from once, though conversations share what was thought.
    assert sum(len(one.positions) for one in build_sequences([episode])) == episode.num_sampled
