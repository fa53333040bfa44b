"""A teacher behind a real server says what the same weights say in the learner."""

from __future__ import annotations

import asyncio
import dataclasses
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import agentrl
from agentrl.episode import Episode, StopReason
from agentrl.errors import ConfigError, DataError, PolicyError, PolicyUnavailable
from agentrl.inference.vllm.teacher import ServedTeacher
from agentrl.learner.batch import build_sequences
from agentrl.learner.learner import Learner
from tests.agentrl.scoring_server import ScoringServer

MODEL = Path(agentrl.__file__).parent / "demo" / "model"


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """Other weights than the learner's."""
    folder = make_model(tmp_path_factory.mktemp("teacher"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def server(teacher_folder: Path) -> Iterator[ScoringServer]:
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    with ScoringServer(model).running() as it:
        yield it


@pytest.fixture(scope="module")
def demo() -> tuple[object, object]:
    """Model and tokenizer of the demo."""
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(MODEL)


def scored(episodes: list[Episode], url: str, **limits: float) -> list[Episode]:
    async def work() -> list[Episode]:
        teacher = ServedTeacher(url, **{"at_once": 2, "limit_s": 30.0, **limits})  # type: ignore[arg-type]
        try:
            return list(await asyncio.gather(*[teacher.score(episode) for episode in episodes]))
        finally:
            await teacher.close()

    return asyncio.run(work())


def test_a_served_teacher_is_the_teacher_of_the_same_weights(
    make_learner: Callable[..., Learner],
    episodes: list[Episode],
    advantages: list[float],
    server: ScoringServer,
    teacher_folder: Path,
) -> None:
    asked = scored([dataclasses.replace(one, temperature=1.0) for one in episodes], server.url)
    options = {"kind": "distillation", "own": {"reward": 0.5}, "learning_rate": 1e-3}
    here = make_learner(**options, teacher=str(teacher_folder))
    there = make_learner(**options, teacher=server.url)
    for _ in range(2):  # the second step with weights that have moved
        one, other = here.step(asked, advantages), there.step(asked, advantages)
        assert other.loss == pytest.approx(one.loss, abs=1e-4)
        divergence = [step.of_loss["teacher_divergence"] for step in (one, other)]
        assert divergence[1] == pytest.approx(divergence[0], abs=1e-4)
        assert abs(divergence[0]) > 0.01
    assert server.most_at_once == 2


def test_tokens_that_were_not_sampled_are_not_told(episodes: list[Episode], server: ScoringServer) -> None:
    (one,) = scored(episodes[:1], server.url)
    segment = one.segments[0]
    assert len(segment.teacher_logprobs) == segment.num_sampled
    assert server.asked == [segment.token_ids[: segment.loss_mask.rindex(1) + 1].tolist()]
    back = Episode.from_json(one.to_json())
    assert back.segments[0].teacher_logprobs == segment.teacher_logprobs
    cut = segment.until(segment.loss_mask.index(1) + 2)
    assert cut.teacher_logprobs == segment.teacher_logprobs[:2]
    sequence = build_sequences([one])[0]
    assert sequence.teacher.tolist() == segment.teacher_logprobs.tolist()


def test_a_prefix_that_two_segments_share_is_told_once(episodes: list[Episode]) -> None:
    segment = episodes[0].segments[0]
    values = np.linspace(-3.0, -1.0, segment.num_sampled, dtype=np.float32)
    taught = dataclasses.replace(segment, teacher_logprobs=array("f", values.tolist()))
    until = segment.loss_mask.index(1) + 2
    both = dataclasses.replace(episodes[0], segments=(taught.until(until), taught))
    first, rest = build_sequences([both])
    assert np.concatenate([first.teacher, rest.teacher]).tolist() == values.tolist()


@pytest.mark.slow
def test_a_busy_server_is_asked_again(episodes: list[Episode], server: ScoringServer) -> None:
    server.troubles = [503, 429]
    (one,) = scored(episodes[:1], server.url)
    assert one.failure is None
    assert server.troubles == []


@pytest.mark.parametrize(("troubles", "said"), [([400], "400"), ([503] * 9, "503")])
def test_where_it_says_nothing_the_episode_fails_at_the_teacher(
    episodes: list[Episode], server: ScoringServer, troubles: list[int], said: str
) -> None:
    server.troubles = troubles
    (one,) = scored(episodes[:1], server.url, limit_s=0.6)
    assert one.failure is not None
    assert (one.failure.boundary, one.stop_reason, one.reward) == ("teacher", StopReason.FAILED, None)
    assert said in one.failure.message


def test_what_is_left_of_an_episode_that_failed_is_not_asked(
    episodes: list[Episode], server: ScoringServer
) -> None:
    server.troubles = [400]
    episode = dataclasses.replace(episodes[0], segments=episodes[0].segments[:1] * 6)

    async def work() -> None:
        teacher = ServedTeacher(server.url, at_once=1, limit_s=30.0)
        assert (await teacher.score(episode)).failure is not None
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*rest, return_exceptions=True)
        await teacher.close()

    asyncio.run(work())
    assert len(server.asked) <= 2  # the next one may be under way


def test_a_server_that_is_gone_is_named(episodes: list[Episode]) -> None:
    (one,) = scored(episodes[:1], "http://127.0.0.1:9", limit_s=0.2)
    assert one.failure is not None
    assert one.failure.error == PolicyUnavailable.__name__
    assert "the teacher (http://127.0.0.1:9) refused the connection" in one.failure.message


def test_episodes_of_before_the_server_are_refused(
    make_learner: Callable[..., Learner], episodes: list[Episode], advantages: list[float]
) -> None:
    learner = make_learner(kind="distillation", teacher="http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"came without: played before loss.teacher named a server"):
        learner.step(episodes, advantages)


def begin(server: ScoringServer, tokenizer: object, *, key: str = "", context: int = 512) -> None:
    async def work() -> None:
        teacher = ServedTeacher(server.url + "/v1", key, limit_s=30.0)
        try:
            await teacher.start(tokenizer, context)
        finally:
            await teacher.close()

    asyncio.run(work())


def test_a_server_that_is_not_vllm_is_named(server: ScoringServer) -> None:
    server.context = None
    with pytest.raises(
        PolicyError, match=r"the teacher \(http.*/v1/models without a model and its max_model_len"
    ):
        begin(server, None)


def test_the_start_proves_tokenizer_context_and_scores(demo: tuple[object, object], tmp_path: Path) -> None:
    model, tokenizer = demo
    with ScoringServer(model, tokenizer, key="secret").running() as server:
        begin(server, tokenizer, key="secret")
        with pytest.raises(ConfigError, match=r"reads 4096 tokens, and it scores .* --max-model-len 4097"):
            begin(server, tokenizer, key="secret", context=4096)
        with pytest.raises(Exception, match=r"the teacher refuses the key"):
            begin(server, tokenizer, key="wrong")
        # Two tokens change places: the text of all tokens is encoded alike but for them.
        tokenizer.save_pretrained(tmp_path)  # type: ignore[attr-defined]
        text = (tmp_path / "tokenizer.json").read_text()
        vocabulary = tokenizer.get_vocab()  # type: ignore[attr-defined]
        one, other = (f'"{token}": {vocabulary[token]}' for token in ("x", "y"))
        assert one in text
        assert other in text
        swapped = text.replace(one, f'"x": {vocabulary["y"]}').replace(other, f'"y": {vocabulary["x"]}')
        (tmp_path / "tokenizer.json").write_text(swapped)
        server.tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"has another tokenizer than model.path"):
            begin(server, tokenizer, key="secret")
