"""The demo's model: small enough to ship, standard enough to load, and byte-compatible with the renderer."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demo trains (pip install agentrl[train])")
pytest.importorskip("transformers")

import agentrl
from agentrl.config.loading import load_settings
from agentrl.renderers.making import make_renderer
from agentrl.tasks.task import load_tasks
from agentrl.training.rendered_traces import render_trace
from agentrl.training.traces import make_trace
from agentrl_envs import ToolResult
from agentrl_envs.arithmetic import Arithmetic

DEMO = Path(agentrl.__file__).parent / "demo"
CODE = "<code>\n```python\nprint(123*45+678)\n```\n</code>"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "model")


def test_it_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) <= 6_000_000


def test_its_settings_are_ordinary_ones():
    settings = load_settings(DEMO / "demo.toml", ["--model.path=somewhere"])
    assert settings.run.steps * settings.stream.batch / 250 >= 8
    (task,) = load_tasks(settings.env, settings.data)
    assert len(task.rows) == 250


def test_training_and_held_out_prompts_share_none():
    train = {row["problem"] for row in Arithmetic.generate_rows(250, split="train")}
    test = {row["problem"] for row in Arithmetic.generate_rows(256, split="test")}
    assert len(test) == 256
    assert not train & test


def test_prompt_code_and_answer_go_through_the_renderer_as_written(tokenizer):
    renderer = make_renderer(tokenizer, "code")
    tools = Arithmetic.tool_specs()
    prompt = renderer.start([{"role": "user", "content": "123*45+678"}], tools)
    assert tokenizer.decode(prompt) == "123*45+678\n"
    said = tokenizer.encode(CODE, add_special_tokens=False)
    (call,) = renderer.parse(said).tool_calls
    assert call.arguments == {"code": "print(123*45+678)"}
    result = ToolResult(call.id, "python", "6213", ok=True, seconds=0.0)
    added = renderer.extend(said, [result])
    assert tokenizer.decode(added) == "<interpreter>\n6213\n</interpreter>\n\n"
    # What the warm start taught is token for token what an episode is made of.
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": "print(123*45+678)"}}}
    trace = make_trace(
        {
            "messages": [
                {"role": "user", "content": "123*45+678"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "6213"},
                {"role": "assistant", "content": "\\boxed{6213}"},
            ],
            "tools": [tool.as_openai() for tool in tools],
        }
    )
    segment = render_trace(trace, renderer, tokenizer, "code")
    last = [*tokenizer.encode("\\boxed{6213}", add_special_tokens=False), tokenizer.eos_token_id]
    assert list(segment.token_ids) == [*prompt, *said, *added, *last]


def test_digits_are_single_tokens_and_marks_are_few(tokenizer):
    assert len(tokenizer.encode("1234567890", add_special_tokens=False)) == 10
    assert len(tokenizer.encode(CODE, add_special_tokens=False)) <= 20
    text = "any text: naïve, 漢字, \t\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_model_copies_what_the_interpreter_says(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    text = "645*93+901\n<code>\n```python\nprint(645*93+901)\n```\n</code>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids += tokenizer.encode("<interpreter>\n60886\n</interpreter>\n\n", add_special_tokens=False)
    with torch.no_grad():
        for _ in range(9):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids).endswith("\\boxed{60886}<|end|>")
