"""Secrets inside of texts and words: where they stand, hidden for readers, and read from variables.

Knows nothing of settings. A secret is written `$NAME`, alone or after a word such as `Bearer`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

from .errors import EnvError

__all__ = [
    "HIDDEN",
    "exposed_in",
    "exposed_in_words",
    "filled_text",
    "filled_words",
    "is_reference",
    "is_secret",
    "masked",
    "masked_words",
    "variables_in",
    "with_variables",
]

HIDDEN = "***"
_SECRET = re.compile(
    r"(api|access|auth|private|signing|encryption)_?key|secret|passw(or)?d|passphrase|credential"
    r"|authorization|cookie|(auth|access|bearer|refresh|hub|hf)_?token|^(token|pat|pwd)$"
    r"|_(key|token|pat|pwd)$",
    re.I,
)
_DATA = re.compile(
    r"(^|_)(answer|cache|candidate|category|chat|choice|class|column|completion|config|context|data|dataset"
    r"|date|dict|doc|document|env|feature|field|foreign|gold|group|hash|id|image|images|index|input|instruction"
    r"|item|join|json|label|lookup|map|message|messages|meta|metadata|metric|name|option|output|partition"
    r"|primary|problem|prompt|public|query|question|record|response|reward|row|score|solution|sort|source"
    r"|split|state|target|task|template|text|time|tool|tools|truth|type|value|video)_key$"
    r"|(^|_)(audio|begin|bos|cls|end|eos|extra|first|image|last|mask|new|next|pad|per|sep|special|start|stop"
    r"|think|tool|turn|unk|video)_token$",
    re.I,
)
"""Names of columns, and of tokens of a vocabulary."""
_IN_ADDRESSES = re.compile(r"key|sig|signature|auth", re.I)
"""What is a secret as a parameter of an address or as an option of a command, and as a setting may not be."""
_LIKE_A_KEY = re.compile(
    r"\b(sk-[\w-]{20,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}"
    r"|xapp-[\w-]{10,}|(AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35})(?![\w-])"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.A)
_REFERENCE = re.compile(rf"(?:[A-Za-z][A-Za-z-]* )?{_VARIABLE.pattern}", re.A)
_USER = re.compile(r"(?P<shown>\w://[^\s/?#@:]*:)(?P<secret>[^\s/?#]+)(?=@)")
_PARAMETER = re.compile(r"(?P<shown>[?&;#](?P<name>[\w.-]+)=)(?P<secret>[^\s&;#'\"<>]+)")
_QUOTE = r""""(?:[^"\\]|\\.)*"|'[^']*'"""
_BARE = r"""(?:(?:Bearer|Basic|Token)\s+)?[^\s,;&{}\[\]("'][^\s,;&}\])"']*"""
_VALUE = rf"(?P<secret>{_QUOTE}|\[[^\]]*\]|\{{[^}}]*\}}|{_BARE})"
_OPTION = re.compile(rf"(?P<shown>(?<!\S)--?(?P<name>[A-Za-z][\w.-]*)\s+)(?!-){_VALUE}", re.I)
_ASSIGNED = re.compile(rf"(?P<shown>(?<![\w.?&;#-])(?:--?)?(?P<name>[A-Za-z][\w.-]*)\s*=\s*){_VALUE}", re.I)
_QUOTED = re.compile(rf"""(?P<shown>["'](?P<name>[A-Za-z][\w.-]*)["']\s*[=:]\s*){_VALUE}""", re.I)
_LISTED = re.compile(rf"""(?P<shown>["']--?(?P<name>[A-Za-z][\w.-]*)["']\s*,\s*){_VALUE}""", re.I)
_HEADER = re.compile(rf"(?P<shown>\b(?P<name>(?:proxy-)?authorization|(?:set-)?cookie)\s*:\s*){_VALUE}", re.I)
_WORD = re.compile(r"((?:--?)?([A-Za-z][\w.-]*)(?:=|\s*:\s*))(.+)", re.S)
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)")


def is_secret(name: str) -> bool:
    """Whether a setting of that name holds what nobody else should read."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2].replace("-", "_"))
    return bool(_SECRET.search(last)) and not _DATA.search(last)


def is_reference(text: str) -> bool:
    """Whether a text is `$NAME`, alone or after one word, and so holds no secret itself."""
    return bool(_REFERENCE.fullmatch(text))


def variables_in(text: str) -> list[str]:
    """Names of the variables that a text names."""
    return [found[1] or found[2] for found in _VARIABLE.finditer(text)]


def with_variables(text: str, what: str) -> str:
    """A text with what its variables hold, `what` being the name of the text.

    Raises:
        EnvError: a variable is not set; names it.
    """

    def held(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise EnvError(f"{what} is read from the variable {name}, which is not set: export {name}=...")
        return os.environ[name]

    return _VARIABLE.sub(held, text)


def exposed_in(text: str, refers: bool = True) -> str:
    """Why a text holds a secret, as a key or in the addresses that it names; empty where it does not.

    Args:
        text: any.
        refers: whether `$NAME` may stand in an address, since it is read there.
    """
    if _LIKE_A_KEY.search(text):
        return "it holds what looks like a key"
    found = next((one for one in _in_addresses(text) if not (refers and is_reference(one["secret"]))), None)
    return "" if found is None else f"the URL holds a {'password' if found.re is _USER else 'key'}"


def exposed_in_words(words: Sequence[str]) -> bool:
    """Whether the words of a command hold a secret after an option or a name that wants one."""
    return any(secret and not is_reference(secret) for _, secret in _parted(words))


def filled_text(text: str) -> str:
    """A text in whose addresses `$NAME`, where a secret stands, is what that variable holds.

    Raises:
        EnvError: there is no such variable.
    """
    for found in reversed(list(_in_addresses(text))):
        if is_reference(found["secret"]):
            held = with_variables(found["secret"], masked(found["shown"]))
            text = text[: found.start("secret")] + held + text[found.end("secret") :]
    return text


def filled_words(words: Sequence[str]) -> list[str]:
    """Words of a command in which `$NAME`, where a secret is wanted, is what that variable holds.

    Raises:
        EnvError: there is no such variable.
    """
    before = ("", *words)
    return [
        shown + with_variables(secret, f"what follows {shown or before[place]!r}")
        if is_reference(secret)
        else filled_text(words[place])
        for place, (shown, secret) in enumerate(_parted(words))
    ]


def masked(text: str) -> str:
    """A text for others to read: passwords and keys of addresses, options and assignments are `***`."""

    def hide(found: re.Match[str]) -> str:
        wanted = _wants if found.re in (_PARAMETER, _OPTION) else is_secret
        named = found.re is _USER or wanted(found["name"])
        quote = found["secret"][0] if found["secret"][0] in "\"'" else ""
        if not named:
            return found["shown"] + found.re.sub(hide, found["secret"])
        if is_reference(found["secret"].strip("\"'")) or found["secret"] == "...":
            return found[0]
        return f"{found['shown']}{quote}{HIDDEN}{quote}"

    for pattern in (_USER, _PARAMETER, _OPTION, _ASSIGNED, _QUOTED, _LISTED, _HEADER):
        text = pattern.sub(hide, text)
    return _LIKE_A_KEY.sub(HIDDEN, text)


def masked_words(words: Sequence[str]) -> list[str]:
    """Words of a command for others to read; what follows an option that names a secret is `***`."""
    return [
        shown + HIDDEN if secret and not is_reference(secret) else masked(word)
        for word, (shown, secret) in zip(words, _parted(words), strict=True)
    ]


def _wants(name: str) -> bool:
    return is_secret(name) or bool(_IN_ADDRESSES.fullmatch(name.rpartition(".")[2]))


def _in_addresses(text: str) -> Iterator[re.Match[str]]:
    """Passwords and keys of the addresses in a text, by their place."""
    if "://" in text:
        found: list[re.Match[str]] = [*_USER.finditer(text), *_PARAMETER.finditer(text)]
        wanted: Callable[[re.Match[str]], bool] = lambda one: one.re is _USER or _wants(one["name"])  # noqa: E731
        yield from sorted(filter(wanted, found), key=lambda one: one.start())


def _parted(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word as what may be shown of it, and what is wanted secret; that is empty for most."""
    wanted = False
    for word in words:
        named, flag = _WORD.fullmatch(word), _FLAG.fullmatch(word)
        if wanted and not flag:
            yield "", word
        elif named and (_wants if word.startswith("-") else is_secret)(named[2]):
            yield named[1], named[3]
        else:
            yield word, ""
        wanted = flag is not None and _wants(flag[1])
