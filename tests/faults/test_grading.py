r"""Verdicts that graders get wrong, by kind: of each kind one answer that is right and one that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agentrl_envs import Grader, last_answer
from agentrl_envs.graders import Conventions


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader(processes=1)
    yield grader
    grader.close()


KINDS = [  # (kind, gold, an answer that equals it, one that does not)
    ("letters of two cases", r"\frac{h}{H+h}", r"\frac{h}{h+H}", r"\frac{H}{H+h}"),
    ("steps", r"\lfloor m/3\rfloor+1", r"1+\lfloor\frac{m}{3}\rfloor", r"\lceil m/3\rceil"),
    ("gamma is a letter", r"(\gamma-1)E", r"\gamma E-E", r"(\gamma-3)E"),
    ("subscripts", "I_0+I_2", "I_2+I_0", "2I_0"),
    ("primes", "y''+4y=0", "4y+y''=0", "y'+4y=0"),
    ("opaque functions", r"\gcd(p,q)", r"\gcd(p, q)", r"\gcd(p,q+2)"),
    ("equations of numbers", r"14\sin\frac{\pi}{7}=6.07", r"14\cdot\sin(\frac{\pi}{7})=6.07", r"15\sin\frac{\pi}{7}=6.07"),
    ("both sides of an approximation", r"\cos 3\approx -0.99", r"\cos(3) \approx -0.99", r"\cos 3\approx 0.14"),
    ("digits that are all zero", r"\frac{1}{7^{50}}", "7^{-50}", "0.0000000"),
    ("a comma that groups nothing", "0.375", "3/8", "0,375"),
    ("named values", "a=6, b=7", "(6,7)", "7,6"),
    ("repetition", "4,4,9", "9,4,4", "4,9,9"),
    ("signs of infinity", r"[6,\infty)", r"[6,+\infty)", r"[6,-\infty)"),
    ("plus or minus inside", r"\frac{3+\sqrt7}{2},\frac{3-\sqrt7}{2}", r"\frac{3\pm\sqrt7}{2}", r"\frac{3\pm\sqrt5}{2}"),
    ("upright letters", "5e^{2t}", r"5\mathrm{e}^{2t}", r"5\mathrm{e}^{-2t}"),
    ("set builder", "[2,9)", r"\{z \mid 2\le z<9\}", r"\{z\in\mathbb{Z} : 2\le z<9\}"),
    ("exclusions", r"(-\infty,8)\cup(8,\infty)", r"\mathbb{R}\setminus\{8\}", r"\mathbb{R}\setminus\{9\}"),
    ("nothing", r"\text{no solution}", r"\varnothing", "0"),
    ("fractions without braces", r"\frac{\pi}{9}", r"\dfrac\pi9", r"\frac9\pi"),
    ("Python", r"\arctan\frac{2}{5}", "atan(Rational(2, 5))", "atan(5/2)"),
    ("binomials", "35", "C(7,3)", "C(7,2)"),
    ("qualifiers", "f(x)=4x", r"f(x)=4x \text{ for all real } x", r"f(x)=5x \text{ for all real } x"),
    ("compound units", r"12\text{ m/s}^2", r"12\text{ m s}^{-2}", r"12\text{ m/s}"),
    ("physics letters", r"\hbar\omega_0", r"\omega_{0}\hbar", r"\hbar\omega_1"),
    ("complex", "e^{i s}", r"\cos s+i\sin s", r"\cos s-i\sin s"),
    ("congruences", r"n\equiv 5 \pmod 9", r"n \equiv 5 \mod 9", r"n\equiv 5\pmod 8"),
    ("odd roots", "-6", r"\sqrt[3]{-216}", r"\sqrt{-36}"),
    ("decoration", "21", r"\text{The answer is: } \large{21}\ \checkmark", r"\text{The answer is: } -21"),
    ("ratios and times", "9:45", "9:45", "3:15"),
    ("scores and ranges", "7-4", "7-4", "3"),
    ("matrix arithmetic", r"\begin{pmatrix}4\\6\end{pmatrix}", r"2\begin{pmatrix}2\\3\end{pmatrix}", r"2\begin{pmatrix}2\\6\end{pmatrix}"),
    ("arbitrary constants", r"\tan x-x+C", r"\tan x-x+K", r"\tan x+x+K"),
    ("Unicode", "7^{12}", "7¹²", "7¹³"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "gold", "right", "wrong"), KINDS, ids=[kind for kind, *_ in KINDS])
def test_a_verdict_is_a_mathematicians(kind: str, gold: str, right: str, wrong: str, grader: Grader):
    assert grader.grade_sync(f"so $\\boxed{{{right}}}$.", gold).right, kind
    verdict = grader.grade_sync(f"so $\\boxed{{{wrong}}}$.", gold)
    assert not verdict.right, kind
    assert not verdict.failed, kind


@pytest.mark.parametrize(
    "answer", [r"9^{9^{9^9}}", "x+" * 3000 + "x", r"\frac{1}{}+", "(" * 90 + "1" + ")" * 90]
)
def test_an_answer_that_cannot_be_compared_is_wrong_and_says_why(answer: str):
    from agentrl_envs.graders.pool import PoolLimits

    grader = Grader(limits=PoolLimits(time_s=1.0), processes=1)
    try:
        verdict = grader.grade_sync(f"\\boxed{{{answer}}}", "x+3")
    finally:
        grader.close()
    assert not verdict.right
    assert verdict.undecided
    assert not verdict.failed


@pytest.mark.parametrize("tower", [r"6^{6^{6^{6}}}+x", r"\binom{10^{9}}{10^{8}}+x", r"x+8^{8^{8^{8}}}"])
def test_an_answer_that_computes_for_ever_is_wrong_while_others_take_the_processor(tower: str):
    from agentrl_envs.graders.pool import PoolLimits

    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 2)
    ]
    grader = Grader(limits=PoolLimits(time_s=0.3), processes=1)
    try:
        verdict = grader.grade_sync(f"\\boxed{{{tower}}}", "x+3")
    finally:
        grader.close()
        for burner in burners:
            burner.kill()
            burner.wait()
    assert not verdict.right
    assert not verdict.failed


def test_a_convention_is_a_setting():
    grader = Grader(conventions=Conventions(decimal_comma=True))
    assert grader.grade_sync(r"\boxed{2,75}", "11/4").right
    assert not Grader().grade_sync(r"\boxed{2,75}", "11/4").right


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 150_000, r"\boxed{" * 150_000 + "}", r"\fbox{1} " * 100_000, "\\boxed " * 150_000]
)
def test_a_megabyte_of_boxes_is_read_in_linear_time(text: str):
    began = time.process_time()
    last_answer(text)
    assert time.process_time() - began < 5.0


def test_control_characters_are_no_part_of_an_answer(grader: Grader):
    assert grader.grade_sync("\\boxed{4\x002}", "42").right
    assert grader.grade_sync("\\boxed{−4\x002}", "-42").right


def test_votes_follow_the_same_equivalence(grader: Grader):
    assert grader.equivalent_sync("x=5, x=6", "6,5")
    assert grader.equivalent_sync(r"\mathrm{e}^{2}", "e^2")
    assert not grader.equivalent_sync("1,1,2", "1,2,2")
    assert not grader.equivalent_sync("R", "r")
