import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.inference.embedded.stop_rules import StopRule, TokenTexts
from agentrl.inference.scripted import ByteTokenizer


class Words:
    """Tokens of one to three letters, parts of a character among them; drops a leading space."""

    texts = (
        b"a",
        b"b",
        b"<",
        b"/",
        b"c>",
        b"</",
        b"</c",
        b">x",
        b"</c>",
        b"\xe2",
        b"\x82\xac",
        b" ",
        b" a",
        b"",
    )

    def encode(self, text, add_special_tokens=False):
        return [0] * len(text)

    def decode(self, token_ids, skip_special_tokens=False):
        return b"".join(self.texts[i] for i in token_ids).decode(errors="replace").removeprefix(" ")


def first_end(rule, prompt, sampled):
    ids = list(prompt)
    for n, token in enumerate(sampled, 1):
        ids.append(token)
        if rule.ended(ids, len(prompt)):
            return n
    return None


@given(
    st.lists(st.integers(0, 13), max_size=12),
    st.lists(st.sampled_from(["</c>", "a b", "<", "ca", "\u20ac", "b\u20ac<"]), min_size=1, max_size=3),
)
def test_a_message_ends_with_the_token_that_completes_a_stop_text(sampled, stop):
    # Fails when `_may_complete` looks for the stop text inside single tokens only.
    words = Words()
    rule = StopRule(len(Words.texts), stop, texts=TokenTexts(words))
    whole = [
        b"".join(Words.texts[i] for i in sampled[:n]).decode(errors="replace")
        for n in range(len(sampled) + 1)
    ]
    expected = next((n for n, text in enumerate(whole) if any(s in text for s in stop)), None)
    assert first_end(rule, [8, 8], sampled) == expected


def test_the_prompt_is_not_searched():
    rule = StopRule(257, ["ab"], texts=TokenTexts(ByteTokenizer()))
    assert first_end(rule, b"xa", b"bab") == 3


def test_stop_tokens_need_no_tokenizer():
    rule = StopRule(300, stop_token_ids=[256, 999])
    assert first_end(rule, [256], [1, 2, 256, 3]) == 3
    assert first_end(rule, [], [1, 2]) is None


def test_a_stop_text_needs_a_tokenizer_and_a_character():
    with pytest.raises(ConfigError, match="need an engine with a tokenizer"):
        StopRule(10, ["a"])
    with pytest.raises(ConfigError, match="empty stop text"):
        StopRule(10, [""], texts=TokenTexts(ByteTokenizer()))
