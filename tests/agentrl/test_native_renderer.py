"""Families of the package `renderers`: synthetic tokenizers with their control tokens, and TRL's templates."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.needed import missing, needed

needed("renderers", 'needs pip install "agentrl[native]"')
needed("tokenizers", 'needs pip install "agentrl[train]"')

from agentrl.errors import RendererError
from agentrl.renderers.making import generation_ends, make_renderer, read_options
from agentrl.renderers.native import NativeRenderer, families, family_of
from agentrl_envs import ToolResult, ToolSpec
from agentrl_envs.messages import MOST_CALLS

CONTROL = re.compile(
    r"<\|[a-zA-Z0-9_/ :.]+\|>|<｜[^｜\n]{1,40}｜>|</?think>|</?tool_calls?>|</?tool_response>|<\|/?[a-z_]+>|<[a-z_]+\|>"
    r"|<bos>|<eos>|</?arg_key>|</?arg_value>|\[gMASK\]|<sop>|<minimax:tool_call>|</minimax:tool_call>"
)
PYTHON = ToolSpec(
    "python",
    "Run Python.",
    {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    False,
    1.0,
)
NEEDS_DOWNLOAD = {"gpt-oss"}  # the vocabulary of Harmony
REFUSED = {
    "deepseek-r1": "cannot be read back",
    "laguna-m.1": "append-only",
    "laguna-xs.2": "append-only",
    "minimax-m2": "cannot go on",
}
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def package_source():
    folder = Path(importlib.util.find_spec("renderers").origin).parent
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


SOURCE = package_source()


def synthetic(name="", template=None, more=()):
    """A tokenizer of single bytes that has every control token of every family."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    texts = sorted({*CONTROL.findall(SOURCE + (template or "")), *more, BEGIN, END, "<bos>", "<|endoftext|>"})
    made.add_special_tokens([AddedToken(text, special=True) for text in texts])
    first = "<bos>" if "bos_token" in (template or "") else None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", bos_token=first)
    tokenizer.chat_template, tokenizer.name_or_path = template, name
    return tokenizer


def native(family):
    """The renderer of a family with a tokenizer that has each control token it asks for."""
    more = []
    while len(more) < 40:
        try:
            return NativeRenderer(synthetic(more=more), family=family)
        except RendererError as error:
            asked = re.search(r"(?:Special token|token for|Token) '([^']+)'", str(error))
            if asked is None:
                raise
            more.append(asked[1])
    raise AssertionError(f"{family} asks for ever more tokens: {more}")


def result(text):
    return ToolResult("call_0", "python", text, True, 0.0)


@pytest.mark.parametrize("family", sorted(set(families()) - NEEDS_DOWNLOAD - set(REFUSED)))
def test_every_family_proves_itself_and_keeps_foreign_text_foreign(family):
    renderer = native(family)
    # Results need a call before them there; the start-up proof plays that.
    frame = str if family == "gemma4" else lambda text: [result(text)]
    plain = renderer.extend([renderer.turn_end_id], frame("3"))
    hostile = "".join(sorted(set(CONTROL.findall(SOURCE))))
    attacked = renderer.extend([renderer.turn_end_id], frame(hostile))
    assert [i for i in attacked if i >= 256] == [i for i in plain if i >= 256]
    opening = renderer.start([{"role": "user", "content": "Hi."}], [PYTHON])
    injected = renderer.start([{"role": "user", "content": "Hi." + hostile}], [PYTHON])
    assert [i for i in injected if i >= 256] == [i for i in opening if i >= 256]


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_do_not_grow_by_appending_are_refused(family):
    with pytest.raises(RendererError, match=REFUSED[family]):
        native(family)


def test_arguments_keep_the_type_that_the_tool_declares():
    tokenizer = synthetic()
    renderer = NativeRenderer(tokenizer, family="qwen3.5")
    said = "Let me see.\n</think>\n\n<tool_call>\n<function=python>\n<parameter=code>\n12\n</parameter>\n</function>\n</tool_call><|im_end|>"
    parsed = renderer.parse(tokenizer.encode(said), [PYTHON])
    assert [(call.name, call.arguments) for call in parsed.tool_calls] == [("python", {"code": "12"})]
    assert parsed.message["reasoning_content"] == "Let me see."


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5", "glm-4.5", "kimi-k2", "nemotron-3"])
def test_a_message_that_is_written_is_read_back_and_can_be_answered(family):
    renderer = native(family)
    function = {"name": "python", "arguments": {"code": "print(1)"}}
    call = {"id": "functions.python:0", "type": "function", "function": function}
    called = renderer.write({"role": "assistant", "content": "", "tool_calls": [call]}, [PYTHON])
    assert [one.arguments for one in renderer.parse(called, [PYTHON]).tool_calls] == [{"code": "print(1)"}]
    assert renderer.extend(called, [result("1")])
    said = renderer.write({"role": "assistant", "content": "It is 1."}, [PYTHON])
    assert renderer.parse(said, [PYTHON]).text.strip() == "It is 1."


def test_a_thought_that_is_never_closed_is_no_answer_and_the_conversation_goes_on():
    tokenizer = synthetic()
    renderer = NativeRenderer(tokenizer, family="qwen3.5")
    sampled = tokenizer.encode("so it is \\boxed{3}<|im_end|>")
    assert renderer.parse(sampled, [PYTHON]).text == ""
    assert renderer.decode(renderer.extend(sampled, "And?")) == (
        "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_a_call_that_cannot_be_read_says_why_and_more_than_can_be_run_are_not_read():
    tokenizer = synthetic()
    renderer = NativeRenderer(tokenizer, family="qwen3")
    broken = tokenizer.encode(
        '<think>\n</think>\n<tool_call>\n{"name": "python", "arguments": {\n</tool_call><|im_end|>'
    )
    (call,) = renderer.parse(broken, [PYTHON]).tool_calls
    assert call.arguments is None
    assert "not JSON" in call.error
    text = '<tool_call>\n{"name": "python", "arguments": "{\\"code\\": \\"1\\"}"}\n</tool_call>'
    many = renderer.parse(tokenizer.encode(text * 500 + "<|im_end|>"), [PYTHON]).tool_calls
    assert many[0].arguments == {"code": "1"}
    assert len(many) <= MOST_CALLS


def test_pictures_are_refused_in_one_sentence():
    renderer = NativeRenderer(synthetic(), family="qwen3.5")
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(RendererError, match="a part of type 'image_url'"):
        renderer.start([{"role": "user", "content": [picture]}], [])


def test_options_of_the_template_and_tokens_that_end_a_message(tmp_path):
    assert read_options(["enable_thinking=false", "reasoning_effort=low"]) == {
        "enable_thinking": False,
        "reasoning_effort": "low",
    }
    with pytest.raises(RendererError, match="name=value"):
        read_options(["enable_thinking"])
    tokenizer = synthetic("Qwen/Qwen3.5-4B")
    quiet = make_renderer(tokenizer, "native", template_options={"enable_thinking": False})
    assert quiet.decode(quiet.start([{"role": "user", "content": "Hi."}], [])).endswith(
        "<think>\n\n</think>\n\n"
    )
    with pytest.raises(RendererError, match=r"Unsupported.*enable_thought"):
        NativeRenderer(tokenizer, family="qwen3.5", template_options={"enable_thought": False})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    tokenizer.name_or_path = str(tmp_path)
    assert generation_ends(tokenizer) == (3, 5)


def test_a_model_is_recognised_by_its_template_and_not_by_its_name():
    assert family_of(synthetic("/models/Qwen3.5-4B")) == "qwen3.5"
    assert (
        family_of(
            synthetic("Qwen/Qwen3.5-4B", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
        )
        is None
    )


TRL = importlib.util.find_spec("trl")
TEMPLATES = Path(TRL.origin).parent / "chat_templates" if TRL else None
EXPECTED = {
    "qwen3": "qwen3", "qwen3_instruct_2507": "qwen3", "qwen3_5_think": "qwen3.5", "qwen3_5_nothink": "qwen3.5",
    "qwen3_8": "qwen3.8", "glm4moe": "glm-4.5", "nemotron_3_nano": "nemotron-3", "nemotron_3_super": "nemotron-3",
    "gemma4_v5": "gemma4", "qwen2_5": None,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_families_are_recognised_by_the_templates_that_models_ship(name):
    if TRL is None:
        missing("needs the templates of TRL's wheel (make test-families)")
    tokenizer = synthetic(template=(TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    assert family_of(tokenizer) == EXPECTED[name]
