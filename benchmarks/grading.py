"""Numbers of the grader: `python -m benchmarks.grading [--data FOLDER] [--quick]`.

Gold against itself in many renderings, wrong on purpose, adversarial answers, throughput of the exact and the
symbolic path, coverage of the intervals (`benchmarks/intervals.py`). Times are CPU seconds beside wall seconds; A and B run interleaved, ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from agentrl_envs import Grader, Verdict, last_answer, load_rows
from agentrl_envs.graders.exact import number_of
from agentrl_envs.graders.pool import PoolLimits
from benchmarks import intervals

Rendering = Callable[[str], str | None]
"""Gold answer -> the same answer written in another way; None where the rendering does not apply."""


def _number(write: Callable[[Fraction], str | None]) -> Rendering:
    def rendering(gold: str) -> str | None:
        number = number_of(gold)
        return None if number is None else write(number)

    return rendering


def _integer(write: Callable[[int], str]) -> Rendering:
    return _number(lambda number: write(int(number)) if number.denominator == 1 else None)


def _decimals(number: Fraction) -> str | None:
    digits = f"{abs(number) * 10**12 // 1:013d}" if abs(number) < 10**6 else None
    return None if digits is None else ("-" if number < 0 else "") + f"{digits[:-12]}.{digits[-12:]}"


def _relation(gold: str) -> bool:
    return bool(re.search(r"[=<>,]|\\(?:leq?|geq?|neq?|lt|gt|approx|text|mbox|in|pm|cup)(?![A-Za-z])", gold))


def _sized(gold: str) -> str:
    return re.sub(r"(?<![a-z])\(", r"\\left(", gold).replace(")", "\\right)")


RENDERINGS: dict[str, Rendering] = {
    r"\boxed{g}": lambda g: g,
    "spaces": lambda g: f" {g} ",
    "full stop": lambda g: f"{g}.",
    "$g$": lambda g: f"${g}$",
    r"\(g\)": lambda g: rf"\({g}\)",
    r"\displaystyle g": lambda g: rf"\displaystyle {g}",
    r"\dfrac": lambda g: g.replace("\\frac", "\\dfrac"),
    r"\tfrac": lambda g: g.replace("\\frac", "\\tfrac"),
    r"\left( \right)": lambda g: None if "\\left" in g else _sized(g),
    "x = g": lambda g: None if _relation(g) else f"x = {g}",
    r"\text{g}": lambda g: rf"\text{{{g}}}" if re.fullmatch(r"[\w .,]+", g) and "_" not in g else None,
    r"\mathbf{g}": lambda g: rf"\mathbf{{{g}}}" if number_of(g) is not None else None,
    "a/b": _number(lambda n: f"{n.numerator}/{n.denominator}"),
    r"\frac{a}{b}": _number(lambda n: rf"\frac{{{n.numerator}}}{{{n.denominator}}}"),
    "12 decimals": _number(_decimals),
    "percent": _number(lambda n: rf"{n.numerator * 100}/{n.denominator}\%" if n.denominator > 1 else None),
    "n.0": _integer(lambda n: f"{n}.0"),
    "0n": _integer(lambda n: f"0{n}" if n >= 0 else f"-0{-n}"),
    "{n/1}": _integer(lambda n: f"{{{n}/1}}"),
    "degree": _integer(lambda n: rf"{n}^\circ"),
    "$n": _integer(lambda n: rf"\${n}"),
    r"n\text{ cm}": lambda g: rf"{g}\text{{ cm}}" if re.fullmatch(r"-?\d+", g) else None,
    r"n\%": lambda g: rf"{g}\%" if re.fullmatch(r"-?\d+", g) else None,
    "1,234": _integer(lambda n: f"{n:,}"),
    "1{,}234": _integer(lambda n: f"{n:,}".replace(",", "{,}")),
    r"1\,234": _integer(lambda n: f"{n:,}".replace(",", r"\,")),
    r"1,\!234": _integer(lambda n: f"{n:,}".replace(",", r",\!")),
    "unicode minus": lambda g: g.replace("-", "−"),
    r"\pi as π": lambda g: g.replace("\\pi", "π") if "\\pi" in g else None,
}  # fmt: skip

WRONG_ON_PURPOSE: dict[str, Rendering] = {
    "g+1": lambda g: None if _relation(g) else f"{g}+1",
    "-g": lambda g: f"-({g})" if number_of(g) not in (None, 0) else None,
    "g+1=g": lambda g: None if _relation(g) else f"{g}+1={g}",
    "987654=g": lambda g: None if _relation(g) else f"987654={g}",
    "list": lambda g: None if _relation(g) else f"{g}, 987654",
    "0..29": lambda g: ",".join(map(str, range(30))),
    "set": lambda g: None if _relation(g) else rf"\{{{g}, 987654\}}",
    "interval": lambda g: None if _relation(g) else f"[{g}, 987654]",
    r"x \ge g": lambda g: None if _relation(g) else rf"x \ge {g}",
    r"\pm g": lambda g: rf"\pm {g}" if number_of(g) not in (None, 0) and "-" not in g else None,
    r"a \approx g": lambda g: None if _relation(g) else rf"a \approx {g}",
    "12345.678": lambda g: "12345.678",
    "base 5": lambda g: f"{g}_5" if re.fullmatch(r"[1-4][0-4]+", g) else None,
    "1/g": _number(lambda n: rf"\frac{{{n.denominator}}}{{{n.numerator}}}" if abs(n) not in (0, 1) else None),
}

ADVERSARIAL = {
    "10^{10^5}": r"10^{10^5}",
    "10^{10^8}": r"10^{10^8}",
    "10^{10^{10}}": r"10^{10^{10}}",
    "tower that ignores alarms": r"\dfrac{5^{(5^{(5^{(5^5)})} - 4)} - 5}{16}",
    "1000000!": "1000000!",
    "10000000!": "10000000!",
    "binomial": r"\binom{1000000}{500000}",
    "harmonic sum": r"\sum_{i=1}^{1000000} \frac{1}{i}",
    "parentheses, depth 50": "2+" + "(x+" * 50 + "1" + ")" * 50,
    "parentheses, depth 5000": "(" * 5000 + "1" + ")" * 5000,
    "fractions, depth 30": r"\frac{1}{x+" * 30 + "x" + "}" * 30,
    "integral": r"\int_0^1 e^{-x^2} \sin(x) \ln(x) dx",
    "(x+y+z+w+1)^{40}": "(x+y+z+w+1)^{40}",
    "300 terms": "+".join(f"{k}x^{{{k}}}" for k in range(2, 200)),
    "set of 300": ",".join(f"x+{k}" for k in range(300)),
    "20,000 digits": "3." + "1" * 20_000,
    "100 kB": "7" * 100_000,
    "100 kB of LaTeX": r"\sqrt{x}+" * 11_000 + "1",
    "code": "__import__('os').system('sleep 60')",
    "square roots, depth 300": r"\sqrt{" * 300 + "2" + "}" * 300,
}


def _verdicts(grader: Grader, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    texts = [(f"The answer is $\\boxed{{{answer}}}$.", gold) for answer, gold in pairs]
    verdicts: list[Any] = [grader.exact(text, gold) for text, gold in texts]
    waiting = {
        i: grader._submit(last_answer(text) or "", gold)
        for i, ((text, gold), verdict) in enumerate(zip(texts, verdicts, strict=True))
        if verdict is None
    }
    for i, future in waiting.items():
        verdicts[i] = future.result(600)
    return verdicts


def accepted(grader: Grader, golds: Sequence[str], rendering: Rendering) -> list[tuple[str, str, str]]:
    """(gold, rendering, verdict) of every rendering of a gold answer that is not called right."""
    pairs = [(text, gold) for gold in golds if (text := rendering(gold)) is not None]
    verdicts = _verdicts(grader, pairs)
    return [(g, a, v.value) for (a, g), v in zip(pairs, verdicts, strict=True) if v is not Verdict.RIGHT]


def wrongly_accepted(grader: Grader, golds: Sequence[str], spoil: Rendering) -> list[tuple[str, str]]:
    """(gold, answer) of every answer spoilt on purpose that is called right."""
    pairs = [(text, gold) for gold in golds if (text := spoil(gold)) is not None]
    verdicts = _verdicts(grader, pairs)
    return [(g, a) for (a, g), v in zip(pairs, verdicts, strict=True) if v is Verdict.RIGHT]


def gold_against_itself(grader: Grader, folder: Path, quick: bool) -> dict[str, Any]:
    """Counts per data set: renderings tried, not accepted, wrong ones accepted."""
    results: dict[str, Any] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem.startswith("countdown"):
            continue
        rows = [row["answer"] for row in load_rows(path)]
        golds = list(dict.fromkeys(rows))[: 100 if quick else None]  # equal answers are decided equally
        tried, missed, fooled, wrong = 0, [], [], 0
        for rendering in RENDERINGS.values():
            tried += sum(rendering(gold) is not None for gold in golds)
            missed += accepted(grader, golds, rendering)
        small = golds[:500]
        for spoil in WRONG_ON_PURPOSE.values():
            wrong += sum(spoil(gold) is not None for gold in small)
            fooled += wrongly_accepted(grader, small, spoil)
        results[path.stem] = {
            "rows": len(rows), "different": len(golds),
            "renderings": tried, "not_accepted": len(missed), "examples": missed[:5],
            "wrong_on_purpose": wrong, "wrongly_accepted": len(fooled), "fooled_by": fooled[:5],
        }  # fmt: skip
        print(f"{path.stem:24} {len(rows):6} rows, {len(golds):5} different", end="")
        print(f"  {tried:7} renderings, {len(missed)} not accepted", end="")
        print(f"  {wrong:6} wrong on purpose, {len(fooled)} accepted  {missed[:2] or ''}{fooled[:2] or ''}")
    return results


def adversarial(limit_s: float) -> dict[str, Any]:
    """Verdict, the child's own seconds and wall seconds for each adversarial answer."""
    grader = Grader(limits=PoolLimits(time_s=limit_s), processes=1)
    grader.start()
    results: dict[str, Any] = {}
    for name, answer in ADVERSARIAL.items():
        started, boxed, gold = time.monotonic(), f"\\boxed{{{answer}}}", r"x^2+\sqrt{3}"
        at_once = grader.exact(boxed, gold)
        verdict = at_once or grader.grade_sync(boxed, gold)
        wall, own = (
            time.monotonic() - started,
            0.0 if at_once or grader._pool is None else grader._pool._state["own_s"],
        )
        results[name] = {"verdict": verdict.value, "wall_s": round(wall, 2), "own_s": round(own, 2)}
        print(f"{name:28} {verdict.value:14} {own:6.2f} s of its own, {wall:6.2f} s wall")
    after = grader.grade_sync(r"\boxed{\sqrt{12}}", r"2\sqrt{3}")
    grader.close()
    print(f"afterwards an honest answer is {after.value}; limit {limit_s:g} s of the child's own time")
    return results


def exact_throughput(seconds: float = 2.0) -> dict[str, float]:
    """Integer answers graded per CPU second, from short texts; no pair comes twice while it is cached."""
    grader = Grader()
    pairs = [
        (f"Adding up, the answer is \\boxed{{{i * 7919}}}.", str(i * 7919 + i % 2)) for i in range(20_000)
    ]
    rates = []
    for _ in range(5):
        started, graded = time.process_time(), 0
        while time.process_time() - started < seconds / 5:
            for text, gold in pairs[graded % 20_000 : graded % 20_000 + 1000]:
                grader.exact(text, gold)
            graded += 1000
        rates.append(graded / (time.process_time() - started))
    return {"integers_per_cpu_second": statistics.median(rates), "least": min(rates), "greatest": max(rates)}


_FRESH = """
import sys
sys.path[:] = sys.argv[3:]
from agentrl_envs.graders.comparison import equal
from agentrl_envs.graders.symbolic import symbolic_leaf
print(equal(sys.argv[1], sys.argv[2], symbolic_leaf))
"""


def symbolic_throughput(quick: bool) -> dict[str, float]:
    """Answers a second: the pool against a fresh process per answer, interleaved, one process at a time."""
    pairs = [(rf"\frac{{\sqrt{{{i}}}}}{{{i}}}+x", rf"x+\frac{{1}}{{\sqrt{{{i}}}}}") for i in range(2, 42)]
    grader = Grader(processes=1)
    grader.start()
    pooled, fresh = [], []
    for round_ in range(3 if quick else 5):
        started = time.monotonic()
        batch = pairs[round_ * 8 : round_ * 8 + 8]
        assert [grader.grade_sync(f"\\boxed{{{a}}}", g) for a, g in batch] == [Verdict.RIGHT] * 8
        pooled.append(8 / (time.monotonic() - started))
        started = time.monotonic()
        for a, g in batch[:2]:
            command = [sys.executable, "-c", _FRESH, a, g, *filter(None, sys.path)]
            assert subprocess.run(command, capture_output=True, timeout=120, check=True).stdout == b"True\n"
        fresh.append(2 / (time.monotonic() - started))
    grader.close()
    ratio = statistics.median(pooled) / statistics.median(fresh)
    return {"pool_per_s": statistics.median(pooled), "fresh_per_s": statistics.median(fresh), "ratio": ratio}


def main() -> None:
    """Run everything and print it; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).parents[1]
    default = os.environ.get("AGENTRL_DATA") or str(root.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of jsonl data sets")
    parser.add_argument(
        "--limit", type=float, default=2.0, help="the grader's limit for adversarial answers, seconds"
    )
    parser.add_argument("--quick", action="store_true", help="200 rows per data set, fewer rounds")
    parser.add_argument("--parts", default="gold,adversarial,throughput,intervals", help="which parts to run")
    options = parser.parse_args()
    parts = options.parts.split(",")
    results: dict[str, Any] = {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
    }
    if "gold" in parts:
        print("-- gold against itself, wrong on purpose")
        if options.data.is_dir():
            grader = Grader()
            results["gold"] = gold_against_itself(grader, options.data, options.quick)
            grader.close()
        else:
            print(f"no data sets in {options.data}: skipped")
    if "adversarial" in parts:
        print("-- adversarial answers")
        results["adversarial"] = adversarial(options.limit)
    if "throughput" in parts:
        print("-- throughput")
        results["exact"] = exact = exact_throughput()
        results["symbolic"] = symbolic = symbolic_throughput(options.quick)
        print(f"exact path: {exact['integers_per_cpu_second']:.0f} integers a CPU second")
        print(f"symbolic path: {symbolic['pool_per_s']:.1f} a second in the pool", end="")
        print(f", {symbolic['fresh_per_s']:.2f} with a process each (ratio {symbolic['ratio']:.1f})")
    if "intervals" in parts:
        repeats = 400 if options.quick else 4000
        print(f"-- coverage of 95% intervals, {repeats} repetitions a cell")
        rows = list(intervals.cells(repeats, seed=0))
        print(intervals.summary(rows))
        middle = [row.coverage for row in rows if 0.2 <= row.mean <= 0.8 and " avg" in row.what]
        results["coverage_at_means_of_2_to_8_tenths"] = {"least": min(middle), "greatest": max(middle)}
    print(json.dumps(results, ensure_ascii=False))


if __name__ == "__main__":
    main()
