"""Traces: what is learned is exactly what the renderer would have the model write."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from agentrl.errors import DataError
from agentrl.renderers.making import make_renderer
from agentrl.training.rendered_traces import render_trace, render_traces, written_message
from agentrl.training.traces import load_traces, make_trace

CALL = {"type": "function", "function": {"name": "python", "arguments": json.dumps({"code": "print(6*7)"})}}
TOOL = {
    "type": "function",
    "function": {
        "name": "python",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "6*7"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "\\boxed{42}"},
    ],
    "tools": [TOOL],
}


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0, **{char: i + 1 for i, char in enumerate(alphabet)}}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>")


def decode_where(segment, tokenizer, wanted: int) -> str:
    ids = [i for i, mask in zip(segment.token_ids, segment.loss_mask, strict=True) if mask == wanted]
    return tokenizer.decode(ids)


def test_a_trace_becomes_the_text_of_an_episode(tokenizer):
    segment = render_trace(make_trace(CONVERSATION), make_renderer(tokenizer), tokenizer, "code")
    assert tokenizer.decode(list(segment.token_ids)) == (
        "6*7\n<code>\n```python\nprint(6*7)\n```\n</code><interpreter>\n42\n</interpreter>\n\n\\boxed{42}<|end|>"
    )


def test_only_what_the_assistant_writes_is_learned(tokenizer):
    # Fails when `_exchange` appends the results of tools as sampled.
    segment = render_trace(make_trace(CONVERSATION), make_renderer(tokenizer), tokenizer, "code")
    assert (
        decode_where(segment, tokenizer, 1) == "<code>\n```python\nprint(6*7)\n```\n</code>\\boxed{42}<|end|>"
    )
    assert decode_where(segment, tokenizer, 0) == "6*7\n<interpreter>\n42\n</interpreter>\n\n"


def test_a_message_of_weight_zero_is_shown_and_not_learned(tokenizer):
    messages = [dict(message) for message in CONVERSATION["messages"]]
    messages[1]["weight"] = 0
    trace = make_trace(CONVERSATION | {"messages": messages})
    segment = render_trace(trace, make_renderer(tokenizer), tokenizer, "code")
    assert decode_where(segment, tokenizer, 1) == "\\boxed{42}<|end|>"


def test_calls_are_written_in_both_formats():
    message = CONVERSATION["messages"][1] | {"content": "I compute."}
    assert written_message(message, "code") == "I compute.\n<code>\n```python\nprint(6*7)\n```\n</code>"
    assert written_message(message, "hermes") == (
        'I compute.\n<tool_call>\n{"name": "python", "arguments": {"code": "print(6*7)"}}\n</tool_call>'
    )


def test_two_calls_cannot_be_written_as_code():
    message = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    with pytest.raises(DataError, match="2 calls in one message"):
        written_message(message, "code")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], '"messages" must be a list'),
        ([{"role": "robot", "content": ""}], "message 0 has the role 'robot'"),
        ([{"role": "user", "content": "?"}], "the last message must be the assistant's"),
        ([{"role": "assistant", "content": "!"}], "the first message is the assistant's; nothing"),
    ],
)
def test_a_line_that_is_no_trace_names_its_place(tmp_path: Path, messages, text):
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(CONVERSATION) + "\n" + json.dumps({"messages": messages}) + "\n")
    with pytest.raises(DataError, match=f"traces.jsonl:2: {text}"):
        load_traces(path)


def test_missing_file_and_broken_json(tmp_path: Path):
    with pytest.raises(DataError, match="no such file of traces"):
        load_traces(tmp_path / "nothing.jsonl")
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"broken\.jsonl:1: not JSON"):
        load_traces(tmp_path / "broken.jsonl")


def test_results_that_answer_no_call_are_an_error(tokenizer):
    messages = [
        {"role": "user", "content": "6*7"},
        {"role": "assistant", "content": "I do not know"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "42"},
    ]
    with pytest.raises(DataError, match="calls 0 tools and is answered by 1"):
        render_trace(make_trace({"messages": messages}), make_renderer(tokenizer), tokenizer, "code")


def test_the_end_of_a_turn_inside_a_message_is_an_error(tokenizer):
    messages = [{"role": "user", "content": "6*7"}, {"role": "assistant", "content": "42<|end|>43"}]
    with pytest.raises(DataError, match="ends a turn in its middle"):
        render_trace(make_trace({"messages": messages}), make_renderer(tokenizer), tokenizer, "code")


def test_long_traces_are_left_out_and_counted(tokenizer, tmp_path: Path):
    long = {"messages": [{"role": "user", "content": "1" * 500}, {"role": "assistant", "content": "1"}]}
    traces = tmp_path / "traces.jsonl"
    traces.write_text("".join(json.dumps(one) + "\n" for one in (CONVERSATION, long)))
    rendered = render_traces(load_traces(traces), tokenizer, max_tokens=200)
    assert (len(rendered.segments), rendered.too_long) == (1, 1)
    with pytest.raises(DataError, match="no trace of 2 has at most 10 tokens"):
        render_traces(load_traces(traces), tokenizer, max_tokens=10)
