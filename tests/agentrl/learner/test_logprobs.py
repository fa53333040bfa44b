import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from agentrl.errors import ConfigError
from agentrl.learner.logprobs import TokenScorer, check_head, selected_log_probs
from benchmarks.tiny_config import tiny_config


def full(hidden, weight, bias, targets, temperature):
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature[:, None]
    logp = torch.log_softmax(logits, dim=-1)
    return logp.gather(-1, targets[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("at_once", [11, 33, 10_000])  # one row, three rows, everything at a time
def test_values_and_gradients_equal_those_of_full_logits(with_bias: bool, at_once: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    bias = torch.randn(11, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 11, (7,))
    temperature = torch.tensor([0.7, 1.0, 1.3, 1.0, 0.7, 1.3, 2.0])
    leaves = [hidden, weight] + ([bias] if bias is not None else [])
    results = []
    for function in (
        full,
        lambda *arguments: selected_log_probs(*arguments, at_once=at_once)[:2],
    ):
        logprobs, entropy = function(hidden, weight, bias, targets, temperature)
        coefficients = torch.linspace(-1, 2, 7)
        gradients = torch.autograd.grad(
            (coefficients * logprobs).sum() + (coefficients.flip(0) * entropy).sum(), leaves
        )
        results.append((logprobs, entropy, *gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("used", ["logprobs", "entropy"])
def test_gradients_of_one_output_alone(used: str) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(4, 5, requires_grad=True), torch.randn(11, 5)
    arguments = (hidden, weight, None, torch.tensor([0, 3, 9, 10]), torch.ones(4))
    at = 0 if used == "logprobs" else 1
    (expected,) = torch.autograd.grad(full(*arguments)[at].sum(), hidden)
    (found,) = torch.autograd.grad(selected_log_probs(*arguments)[at].sum(), hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_changes_its_logits_after_the_head_is_refused() -> None:
    torch.manual_seed(0)
    config = tiny_config("gemma2", final_logit_softcapping=0.5, initializer_range=0.5)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises(ConfigError, match=r"'capped' \(Gemma2ForCausalLM\) changes its logits"):
        check_head(TokenScorer(model.eval()), "capped")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_padding_does_not_change_log_probabilities(kind: str, tmp_path: Path, make_model) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(make_model(tmp_path, kind)).eval()
    scorer = TokenScorer(model)
    ids = torch.randint(1, 50, (1, 12))
    columns, ones = torch.arange(11), torch.ones(11)
    with torch.no_grad():
        alone = scorer(ids, torch.zeros(11, dtype=torch.long), columns, ids[0, 1:], ones).logprobs
        padded = torch.nn.functional.pad(ids, (0, 9))
        beside = torch.cat([torch.randint(1, 50, (1, 21)), padded])
        found = scorer(beside, torch.ones(11, dtype=torch.long), columns, ids[0, 1:], ones).logprobs
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def test_logit_logsumexp_and_the_likeliest_by_hand() -> None:
    # Logits log 1, log 2, log 3, log 4: probabilities 0.1, 0.2, 0.3, 0.4, and logsumexp log 10. At temperature
    # 1/2 they are squared: 1, 4, 9, 16 of 30. The target is the third.
    weight = torch.log(torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)).float()
    weight.requires_grad_()
    hidden, targets = torch.ones(2, 1), torch.tensor([2, 2])
    found = selected_log_probs(hidden, weight, None, targets, torch.tensor([1.0, 0.5]), top=2)
    assert found.logsumexp.tolist() == pytest.approx([math.log(10), math.log(30)])
    logit = found.logprobs + found.logsumexp
    assert logit.tolist() == pytest.approx([math.log(3), math.log(9)])
    assert found.top_ids.tolist() == [[3, 2], [3, 2]]
    top = [[math.log(0.4), math.log(0.3)], [math.log(16 / 30), math.log(9 / 30)]]
    torch.testing.assert_close(found.top_logprobs, torch.tensor(top))
    # d logsumexp / d z = p; at temperature 1/2 the logit moves twice as fast.
    (gradient,) = torch.autograd.grad(found.logsumexp.sum(), weight, retain_graph=True)
    by_hand = torch.tensor([0.1 + 2 / 30, 0.2 + 8 / 30, 0.3 + 18 / 30, 0.4 + 32 / 30])
    torch.testing.assert_close(gradient[:, 0], by_hand)
    # d log p_4 / d z = (0, 0, 0, 1) - p, of the first position alone.
    (gradient,) = torch.autograd.grad(found.top_logprobs[0, 0], weight)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([-0.1, -0.2, -0.3, 0.6]))


def test_gradients_of_all_outputs_together() -> None:
    torch.manual_seed(2)
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets, temperature = torch.tensor([0, 3, 8, 8, 1]), torch.tensor([0.7, 1.0, 1.3, 1.0, 2.0])
    mix = [torch.randn(5), torch.randn(5), torch.randn(5), torch.randn(5, 3)]
    mine = selected_log_probs(hidden, weight, None, targets, temperature, at_once=18, top=3)
    logits = hidden @ weight.t() / temperature[:, None]
    logp = torch.log_softmax(logits, -1)
    outputs = (
        logp.gather(-1, targets[:, None])[:, 0],
        -(logp.exp() * logp).sum(-1),
        logits.logsumexp(-1),
        logp.gather(-1, mine.top_ids),
    )
    found = (mine.logprobs, mine.entropies, mine.logsumexp, mine.top_logprobs)
    for ours, theirs in zip(found, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    sums = [sum((one * by).sum() for one, by in zip(some, mix, strict=True)) for some in (found, outputs)]
    gradients = [torch.autograd.grad(one, (hidden, weight)) for one in sums]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
