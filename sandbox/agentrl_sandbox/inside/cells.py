"""From the text of a cell to a syntax tree: Python first, then what people and models put around it.

Text that compiles is taken as it stands. Text that does not is read again without what belongs to a page or
a terminal (Markdown fences, `>>>` prompts, a common indentation, lines that only set up a notebook), and an
error that remains gets one line about what to write instead. Standard library only; knows nothing of how
cells run.
"""

from __future__ import annotations

import re

# All but the prompts are for lines without white space around them, so that no two parts of one can match the
# same spaces: the time is linear.
_FENCE = re.compile(r"(?:`{3,}|~{3,})[ \t]*[\w+.{}-]*")
_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.(?!:)|In ?\[\d*\]:|\.{3,}:)(?:[ ]|$)")
_FIRST_PROMPT = re.compile(r"[ \t]*(?:>>>|In ?\[\d*\]:)(?:[ ]|$)")
_FIRST_OF_IPYTHON = re.compile(r"\s*In ?\[\d*\]: ")
_OUTPUT_PROMPT = re.compile(r"[ \t]*Out ?\[\d*\]:")
_INSTALL = re.compile(r"[!%]?[ \t]*(?:python3? -m )?(?:pip3?|conda|mamba|apt|apt-get|uv pip)[ \t]+install\b")
_SET_UP = re.compile(r"%(?:matplotlib|config|load_ext|reload_ext|autoreload|pdb)\b")
_COMMAND = re.compile(r"(?:[A-Za-z_][\w, ]*=[ \t]*)?(%%?)[ \t]*([A-Za-z]\w*)")
_SHELL = re.compile(r"(?:[A-Za-z_][\w, ]*=[ \t]*)?(?:!{1,2}|\$[ \t])[ \t]*(\S.*)")
_QUESTION = re.compile(r"\?{1,2}[ \t]*([A-Za-z_][\w.]*)|([A-Za-z_][\w.]*)(?:\(\))?[ \t]*\?{1,2}")

_MOST_LINES_IGNORED = 20
_LONGEST_COMMAND = 2_000  # characters of a line that are looked at for one
_MOST_LINES = 10_000  # of a cell that is read again: what is longer was not written for a notebook
_INSTEAD = {
    "time": "put time.perf_counter() before and after the code",
    "timeit": "call timeit.timeit(lambda: ..., number=100)",
    "bash": "call subprocess.run(..., shell=True, capture_output=True, text=True)",
    "writefile": "call open(name, 'w').write(text)",
    "run": "call runpy.run_path(name)",
    "cd": "call os.chdir(path)",
    "pwd": "call os.getcwd()",
    "ls": "call os.listdir()",
    "env": "use os.environ",
    "who": "call dir()",
    "debug": "print what you want to see",
    "prun": "use cProfile.run(...)",
    "capture": "use contextlib.redirect_stdout(io.StringIO())",
}
_INSTEAD |= {"sh": _INSTEAD["bash"], "script": _INSTEAD["bash"], "system": _INSTEAD["bash"]}
_INSTEAD |= {"file": _INSTEAD["writefile"], "whos": _INSTEAD["who"], "sx": _INSTEAD["bash"]}


def split_lines(text):
    """Lines as Python counts them: a form feed or U+2028 ends none."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read(code, parse):
    """`(tree, text, notes)` of a cell.

    Args:
        code: what was sent.
        parse: from text to a syntax tree; raises SyntaxError.

    Returns `text` with the line numbers of `code`, and `notes`: what was left out of it, for the reader of
    the output. Raises the SyntaxError of the last reading, with a note on what to write instead where that is
    known.
    """
    text, notes = code, []
    if "In" in code and _FIRST_OF_IPYTHON.match(code):  # it may well compile: as a type of a variable `In[1]`
        text = "\n".join(_without_prompts(split_lines(code), None, notes) or ())
    try:
        return parse(text), text, notes
    except SyntaxError as error:
        failure = error
    readings = [
        _without_fences,
        _without_prompts,
        _without_indentation,
        *[_without_set_up] * _MOST_LINES_IGNORED,
    ]
    if text.count("\n") + text.count("\r") > _MOST_LINES:
        readings = []
    for strip in readings:
        changed = strip(split_lines(text), failure, notes)
        if changed is None:
            if strip is _without_set_up:
                break
            continue
        text = "\n".join(changed)
        try:
            return parse(text), text, notes
        except SyntaxError as error:
            failure = error
    hint = _hint(split_lines(text), failure)
    if hint:
        failure.add_note(hint)
    raise failure


def ends_quietly(expression, text):
    """True when a semicolon, and not one of a string or a comment, follows the last expression of a cell."""
    if ";" not in text:
        return False
    lines = split_lines(text)[expression.end_lineno - 1 :]
    lines[0] = (
        lines[0].encode("utf-8", "surrogatepass")[expression.end_col_offset :].decode("utf-8", "replace")
    )
    return any(";" in line.partition("#")[0] for line in lines)


def _without_fences(lines, _failure, _notes):
    """Without ``` or ~~~ around the whole; either of the two may be missing."""
    written = [at for at, line in enumerate(lines) if line.strip()]
    edges = [at for at in {*written[:1], *written[-1:]} if _FENCE.fullmatch(lines[at].strip())]
    return _blank(lines, edges) if edges else None


def _without_prompts(lines, _failure, notes):
    """A transcript without its prompts; lines without one were output."""
    first = next((line for line in lines if line.strip()), "")
    if not _FIRST_PROMPT.match(first):
        return None
    kept = [line[found.end() :] if (found := _PROMPT.match(line)) else "" for line in lines]
    dropped = [
        line for line in lines if line.strip() and not (_PROMPT.match(line) or _OUTPUT_PROMPT.match(line))
    ]
    if dropped:
        notes.append("Lines without a prompt were taken for output and left out.")
    return kept


def _without_indentation(lines, _failure, _notes):
    """Without the indentation of the first line, where lines have it."""
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    indentation = first[: len(first) - len(first.lstrip(" \t"))]
    return [line.removeprefix(indentation) for line in lines] if indentation else None


def _without_set_up(lines, failure, notes):
    """Without one line that prepares a notebook, or installs what cannot be installed."""
    for at in _suspects(lines, failure):
        line = lines[at].strip()[:_LONGEST_COMMAND]
        if _SET_UP.match(line):
            notes.append(f"Ignored: {line[:80]}")
        elif _INSTALL.match(line):
            notes.append(f"Ignored: {line[:80]} ({_NO_INSTALL})")
        else:
            continue
        changed = list(lines)
        changed[at] = lines[at][: len(lines[at]) - len(lines[at].lstrip(" \t"))] + "pass"
        return changed
    return None


_NO_INSTALL = "there is no network; packages that are here can be imported at once"


def _hint(lines, failure):
    """One line about what to write in place of a notebook's or shell's command; None for other errors."""
    for at in _suspects(lines, failure):
        line = lines[at].strip()[:_LONGEST_COMMAND]
        shell, command, question = _SHELL.match(line), _COMMAND.match(line), _QUESTION.fullmatch(line)
        if _INSTALL.match(line):
            return f"Nothing can be installed: {_NO_INSTALL}."
        if shell:
            program = shell[1].strip()[:60]
            return (
                f"Shell commands are no Python. Call subprocess.run({program!r}, shell=True, "
                "capture_output=True, text=True).stdout, or use os, pathlib and shutil."
            )
        if command:
            instead = _INSTEAD.get(command[2])
            what = f"{command[1]}{command[2]} is a command of IPython, and this is plain Python"
            return f"{what}: {instead}." if instead else f"{what}."
        if question:
            return f"Questions are no Python: call help({question[1] or question[2]})."
    if any(_FENCE.fullmatch(line.strip()) for line in lines[:_MOST_LINES]):
        return "The code has Markdown fences in it: send only what is between them."
    return None


def _suspects(lines, failure):
    """Indices of the lines that an error may be about: its own line, then those that look like commands.

    The parser names a later line when that has, say, a string without an end.
    """
    own = (failure.lineno or 1) - 1
    looked_at = lines[:_MOST_LINES]
    commands = [at for at, line in enumerate(looked_at) if line.lstrip()[:1] in ("!", "%", "$", "?")]
    return [at for at in dict.fromkeys([own, *commands[:_MOST_LINES_IGNORED]]) if 0 <= at < len(lines)]


def _blank(lines, places):
    return ["" if at in places else line for at, line in enumerate(lines)]
