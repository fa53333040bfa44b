import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.inference.scripted import ByteTokenizer
from agentrl.renderers.text import TextCodec, cut_text


def test_a_text_within_the_limit_is_not_cut():
    assert cut_text("abcdef", 6) == "abcdef"


def test_head_and_tail_of_an_odd_limit():
    assert cut_text("abcdefgh", 5) == "abc\n[... 3 of 8 characters left out ...]\ngh"


@pytest.mark.slow
@given(st.text(), st.integers(2, 40))
def test_cutting_keeps_what_was_at_both_ends(text, limit):
    cut = cut_text(text, limit)
    assert cut[: min(len(text), (limit + 1) // 2)] == text[: (limit + 1) // 2]
    assert cut == text or len(cut) <= limit + len(
        f"\n[... {len(text)} of {len(text)} characters left out ...]\n"
    )


class LongNames(ByteTokenizer):
    """Control texts that overlap, contain each other and repeat their first character."""

    names = ("<|a|>", "<|a|><|b|>", "<<|", "|>", "aa")

    def get_added_vocab(self):
        return {name: 300 + i for i, name in enumerate(self.names)}

    def encode(self, text, add_special_tokens=False):
        ids = []
        while text:
            name = max((n for n in self.names if text.startswith(n)), key=len, default="")
            ids += [300 + self.names.index(name)] if name else list(text[0].encode())
            text = text[len(name) or 1 :]
        return ids

    def decode(self, token_ids, skip_special_tokens=False, **_):
        return b"".join(self.names[i - 300].encode() if i >= 300 else bytes([i]) for i in token_ids).decode(
            errors="replace"
        )


@given(st.text(alphabet="<|ab>x", max_size=30))
def test_no_text_is_encoded_to_a_control_token(text):
    # Fails when the pattern finds control texts one after the other instead of overlapping.
    codec = TextCodec(LongNames())
    ids = codec.encode(codec.neutral(text))
    assert max(ids, default=0) < 300
    assert codec.decode(ids) == text


@pytest.mark.parametrize("text", ["<|a|>", "x<|a|><|b|>"])
def test_our_own_text_is_encoded_to_control_tokens(text):
    assert max(TextCodec(LongNames()).encode(text)) >= 300
