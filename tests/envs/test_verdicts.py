r"""The verdict a mathematician would give, case by case; most cases are known mistakes of rule-based graders.

`docs/grading.md` states the conventions. Each case is (answer in the box, gold answer, right?).
"""

import pytest

from agentrl_envs import Grader, Verdict

RIGHT, WRONG = Verdict.RIGHT, Verdict.WRONG

NUMBERS = [
    ("7", "7", RIGHT), ("7", "8", WRONG), ("-7", "7", WRONG), ("+7", "7", RIGHT), ("007", "7", RIGHT),
    ("7.0", "7", RIGHT), ("7.", "7", RIGHT), ("3.5", "7/2", RIGHT), (".5", r"\frac{1}{2}", RIGHT),
    (r"\dfrac{1}{2}", r"\frac12", RIGHT), (r"\tfrac{2}{4}", r"\frac{1}{2}", RIGHT),
    (r"-\frac{1}{2}", "-0.5", RIGHT),
    (r"\frac{-1}{2}", r"-\frac{1}{2}", RIGHT), (r"1\frac{4}{5}", "9/5", RIGHT),
    (r"2\cdot\frac{1}{2}", "2.5", WRONG),
    (r"137 \frac{1}{2}", "137.5", RIGHT), ("1 1/2", "1.5", RIGHT), ("{6/1}", "6", RIGHT), ("(5)", "5", RIGHT),
    (r"3\times 10^{5}", "300000", RIGHT), (r"3 \cdot 10^5", "300000", RIGHT), ("3e5", "300000", RIGHT),
    ("$7$", "7", RIGHT),
    (r"\(7\)", "7", RIGHT), ("７", "7", RIGHT), ("−5", "-5", RIGHT), ("½", "0.5", RIGHT), ("١٢", "12", RIGHT),
    (r"\text{7}", "7", RIGHT), ("7.", "7", RIGHT), ("{}", "7", WRONG), (r"\mathbf{7}", "7", RIGHT),
    (r"\mathbf{\frac{14}{3}}", r"\frac{14}{3}", RIGHT),
]  # fmt: skip
SEPARATORS = [
    ("1,234", "1234", RIGHT), ("1{,}234", "1234", RIGHT), (r"1\,234", "1234", RIGHT),
    (r"1,\!234", "1234", RIGHT),
    ("1 234", "1234", RIGHT), (r"11,\! 111,\! 111,\! 100", "11111111100", RIGHT),
    ("1,234,567.5", "1234567.5", RIGHT),
    ("1234", r"10,\!080", WRONG), ("1,2345", "12345", WRONG), ("12,34", "1234", WRONG),
    ("58500", "58,500", RIGHT),
    ("100, 200", "100,200", RIGHT), ("(100,200)", "100200", WRONG), ("1, 234", "1234", WRONG),
    ("4112", "(4,112)", WRONG),
]  # fmt: skip
DECIMALS = [
    ("0.333333333333", r"\frac{1}{3}", RIGHT), ("0.333333", "1/3", RIGHT), ("0.3333", "1/3", WRONG),
    ("0.333334", "1/3", RIGHT), ("0.333335", "1/3", WRONG),
    (r"0.011535644531", r"\frac{189}{16384}", RIGHT),
    ("0.01153564453", "189/16384", RIGHT), ("0.1250001", "1/8", WRONG),
    ("4.9999999999", "5", WRONG),
    (r"0.\overline{3}", r"\frac13", RIGHT), (r"\frac13", r"0.\overline{3}", RIGHT), (r"0.1\overline{6}", "1/6", RIGHT),
    (r"-1.\overline{27}", r"-\frac{14}{11}", RIGHT), (r"0.\overline{3}", "0.3", WRONG), (r".\bar 3", "1/3", RIGHT),
    ("12345.678", "12345", WRONG), ("3.14", r"\pi", WRONG), ("3.141592653590", r"\pi", RIGHT),
    (r"\frac{1}{3}", "0.33", WRONG), ("1.41421356", r"\sqrt{2}", RIGHT), ("1.41421", r"\sqrt{2}", WRONG),
]  # fmt: skip
PERCENT_AND_UNITS = [
    (r"50\%", "50", RIGHT), ("50", r"50\%", RIGHT), (r"50\%", "0.5", RIGHT), (r"50\%", r"\frac{1}{2}", RIGHT),
    ("0.5", r"50\%", RIGHT), ("0.5", "50", WRONG), ("50", "0.5", WRONG), (r"50\%", r"5\%", WRONG),
    (r"-1000\%", "-10", RIGHT),
    (r"5\text{ cm}", "5", RIGHT), ("5", r"5\text{ cm}", RIGHT), ("5 cm", r"5\text{ centimeters}", RIGHT),
    (r"5\text{ m}", r"5\text{ cm}", WRONG), (r"500\text{ cm}", r"5\text{ m}", RIGHT),
    (r"\$18.90", "18.9", RIGHT),
    (r"15\mbox{ cm}^2", r"15\text{ square cm}", RIGHT), (r"15\text{ cm}^3", r"15\mbox{ cm}^2", WRONG),
    (r"864 \mbox{ inches}^2", "864", RIGHT), ("5.4", r"5.4 \text{ cents}", RIGHT), ("90", r"90^\circ", RIGHT),
    (r"90^\circ", r"\frac{\pi}{2}", RIGHT), (r"\frac{\pi}{2}", r"90^{\circ}", RIGHT),
    (r"30^\circ", r"\frac{\pi}{2}", WRONG),
    ("18 degrees", r"18^\circ", RIGHT), (r"18\text{ integers}", "18", RIGHT),
    (r"2\sqrt{3}\text{ feet}", r"2\sqrt{3}", RIGHT),
    # Two units that do not convert are two answers, even where we know neither.
    (r"10\text{ p.m.}", r"10\text{ a.m.}", WRONG), (r"10\text{ PM}", r"10\text{ p.m.}", RIGHT),
    (r"9\text{ N}", r"9\text{ E}", WRONG), (r"5\text{ minutes}", r"5\text{ apples}", WRONG),
    (r"5\text{ Apples}", r"5\text{ apple}", RIGHT), (r"5\text{ boxes}", r"5\text{ box}", RIGHT),
    (r"5\text{ mph}", r"5\text{ km/h}", WRONG), (r"30\text{ mi/h}", r"30\text{ ft/s}", WRONG),
    (r"30\text{ mph}", r"44\text{ ft/s}", RIGHT), ("30 miles per hour", r"30\text{ mph}", RIGHT),
    (r"30^\circ\text{C}", r"30^\circ\text{F}", WRONG), (r"30^\circ\text{C}", r"30^\circ", RIGHT),
    (r"30\text{ degrees Celsius}", r"30^\circ C", RIGHT), (r"2\text{ days}", r"2\text{ units}", RIGHT),
    # Bare letters are variables unless the other side states them as its unit.
    ("5 m", r"5\text{ m}", RIGHT), ("5 m", r"5\text{ s}", WRONG), ("60 km/h", r"60\text{ km/h}", RIGHT),
    ("4", "4s", WRONG), ("4l", "4", WRONG), ("x+2", "x+2t", WRONG), ("3x+2s", "3x+2t", WRONG),
    ("18 students", "18", RIGHT), ("18", "18 students", RIGHT), ("18 students", "18 teachers", WRONG),
    ("5 million", "5", WRONG), ("2theta", "2", WRONG), ("2 cos x", "2", WRONG),
    (r"4\text{ or 5}", "4", WRONG), (r"4\text{ (maybe 5)}", "4", WRONG), (r"4\text{ or five}", "4", WRONG),
]  # fmt: skip
BASES = [
    ("1024_5", "1024_{5}", RIGHT), ("1024", "1024_5", WRONG), ("1024_5", "1024", WRONG),
    ("1024_5", "139", RIGHT),
    ("1024_{10}", "1024", RIGHT), ("139", "1024_5", WRONG), ("1024_6", "1024_5", WRONG),
    ("152A_{11}", "152a_{11}", RIGHT),
]  # fmt: skip
EQUATIONS = [
    ("5=4", "4", WRONG), ("4+1=4", "4", WRONG), ("3=4", "4", WRONG), ("2+2=4", "4", RIGHT),
    ("x=4", "4", RIGHT),
    ("4", "x=4", RIGHT), ("x=5", "x=4", WRONG), ("y=4", "x=4", WRONG), ("m+n=12", "12", RIGHT),
    ("x+1=x", "x", WRONG),
    (r"x = \frac{10}{2} = 5", "5", RIGHT), (r"x = \frac{10}{2} = 5", "6", WRONG),
    ("f(x)=2x+1", "2x+1", RIGHT),
    ("y = 2x+3", "2x+3", RIGHT), ("2x+3", "y = 2x + 3", RIGHT), ("3x+3", "y=2x+3", WRONG),
    ("AB=12", "12", RIGHT),
    ("2y = 4x+6", "y = 2x + 3", RIGHT), ("10x-14y+22z+8=0", "5x - 7y + 11z + 4 = 0", RIGHT),
    ("5x-7y+11z+5=0", "5x - 7y + 11z + 4 = 0", WRONG), ("0=0", "5x - 7y + 11z + 4 = 0", WRONG),
    (r"\text{Area} = 4", "4", RIGHT), (r"\theta = \frac{\pi}{6}", r"\frac{\pi}{6}", RIGHT),
    ("p - q+1=p - q", "p - q", WRONG), ("None+1=None", "None", WRONG), ("S = p - q", "p - q", RIGHT),
    # What was asked for may stand on the left; an equation that is not solved may not.
    ("x^2=4", "4", WRONG), ("2x=10", "10", WRONG), ("n+1=7", "7", WRONG), ("x+3=5", "5", WRONG),
    ("-x=5", "5", WRONG), (r"\sqrt{x}=5", "5", WRONG), (r"\sqrt x = 5", "5", WRONG), (r"\ln x=5", "5", WRONG),
    ("x/2=5", "5", WRONG), (r"\frac{x}{y+1}=5", "5", WRONG), ("x+x=10", "10", WRONG), ("2x+3y=12", "12", WRONG),
    ("a+b+c=12", "12", RIGHT), (r"\frac{m}{n}=\frac{1}{2}", "1/2", RIGHT), ("f(3)=12", "12", RIGHT),
    ("f(2)+f(-3)=12", "12", RIGHT), ("AB+AC=12", "12", RIGHT), ("a_1+a_2=12", "12", RIGHT), ("S_{10}=55", "55", RIGHT),
    ("f'(2)=3", "3", RIGHT), (r"\sin A=\frac{3}{5}", "3/5", RIGHT), ("|z|=5", "5", RIGHT),
    (r"\angle A + \angle B = 90", "90", RIGHT), (r"P(2 \text{ heads})=\frac{3}{8}", "3/8", RIGHT),
    (r"\overline{AB}=12", "12", RIGHT), (r"\text{Area of } ABC = 4", "4", RIGHT),
    (r"a \approx 4", "4", WRONG), (r"x \ge 4", "4", WRONG), (r"\pm 4", "4", WRONG), (r"x \ne 4", "4", WRONG),
]  # fmt: skip
LISTS = [
    ("3, 5, 7", "7,5,3", RIGHT), ("3,5", "3,5,7", WRONG), ("3,5,7,9", "3,5,7", WRONG),
    (r"\{3,5,7\}", "3, 5, 7", RIGHT),
    (r"-2 \text{ or } -12", "-12, -2", RIGHT), (r"2, 3, \text{ and } 4", "2,3,4", RIGHT),
    ("12 and 13", r"12\text{ and }13", RIGHT),
    ("0,1,2,3,4,5,6,7,8,9", "7", WRONG), ("7, 7", "7", RIGHT),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", RIGHT),
    (r"1+\sqrt{19}", r"1 \pm \sqrt{19}", WRONG), (r"\{1\pm\sqrt{5},-2\}", r"-2, 1-\sqrt5, 1+\sqrt5", RIGHT),
    ("x=3, x=4", "3, 4", RIGHT), ("x=1, y=2", "x=2, y=1", WRONG), (r"\emptyset", r"\varnothing", RIGHT),
    (r"\text{B}, \text{C}", "B, C", RIGHT), ("1,-2", "-2,1", RIGHT),
]  # fmt: skip
TUPLES_AND_INTERVALS = [
    ("(1,2)", "(1, 2)", RIGHT), ("(2,1)", "(1,2)", WRONG), ("1,2", "(1,2)", WRONG), ("(1,2)", "1,2", WRONG),
    ("[1,2]", "(1,2)", WRONG), (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", RIGHT),
    (r"(1/4,1/27)+1", "(1/4,1/27)", WRONG),
    (r"(0.25,\frac{1}{27})", "(1/4,1/27)", RIGHT), (r"2\le x<5", "[2,5)", RIGHT),
    ("[2,5)", r"2 \leq x < 5", RIGHT),
    (r"2<x<5", "[2,5)", WRONG), (r"x \ge 2", r"[2, \infty)", RIGHT), (r"x \in [-2,7]", "[-2,7]", RIGHT),
    (r"[-2,7]", r"x \in [-2,7]", RIGHT), (r"5 > x \ge 2", "[2,5)", RIGHT),
    (r"-80\leq g(x)\leq 82", "[-80,82]", RIGHT),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)", RIGHT),
    (r"x<2 \text{ or } x>3", r"(-\infty,2)\cup(3,\infty)", RIGHT),
    (r"(3,\infty)\cup(-\infty,2)", r"(-\infty,2)\cup(3,\infty)", RIGHT),
    (r"(-\infty,2]\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)", WRONG),
    (r"\langle 1,2\rangle", r"\langle 1, 2\rangle", RIGHT), (r"\left\langle 1,2\right\rangle", "(1,2)", RIGHT),
    (r"\langle 2,1\rangle", r"\langle 1, 2\rangle", WRONG),
    (r"(6,235^\circ)", "(6,235)", RIGHT), ("(x,y)=(1,2)", "(1,2)", RIGHT),
]  # fmt: skip
MATRICES = [
    (r"\begin{pmatrix}-2\\ -14 \\ -7\end{pmatrix}", r"\begin{bmatrix}-2 \\ -14 \\ -7 \end{bmatrix}", RIGHT),
    (r"\begin{pmatrix} 0.2 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", RIGHT),
    (r"\begin{pmatrix}-1&0\\0&1\end{pmatrix}", r"\begin{pmatrix}-1 & 0 \\ 0 & -1 \end{pmatrix}", WRONG),
    (r"A=\begin{pmatrix}7\\5\end{pmatrix}", r"\begin{pmatrix}7\\5\end{pmatrix}", RIGHT),
    (r"\begin{pmatrix}7\\5\end{pmatrix}+1=\begin{pmatrix}7\\5\end{pmatrix}", r"(7,5)", WRONG),
    (
        r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        RIGHT,
    ),
    (r"\left[\begin{matrix}1\\2\end{matrix}\right]", r"\begin{pmatrix}1\\2\end{pmatrix}", RIGHT),
    (r"\left[\begin{matrix}2\\1\end{matrix}\right]", r"\begin{pmatrix}1\\2\end{pmatrix}", WRONG),
    (r"\begin{pmatrix}a\\[2pt] b\end{pmatrix}", r"\begin{pmatrix}a\\b\end{pmatrix}", RIGHT),
    (r"\langle 1,2\rangle", r"\begin{pmatrix}1\\2\end{pmatrix}", RIGHT),
    (r"(-2,-14,-7)", r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}", RIGHT),
]  # fmt: skip
WORDS = [
    ("Evelyn", r"\text{Evelyn}", RIGHT), ("evelyn", r"\text{Evelyn}", RIGHT),
    ("Navin", r"\text{Evelyn}", WRONG),
    ("Eve lyn", r"\text{Evelyn}", RIGHT), ("nylevE", r"\text{Evelyn}", WRONG),
    (r"\text{east}", "east", RIGHT), ("C", r"\text{(C)}", RIGHT),
    ("(C)", "C", RIGHT), ("B", r"\text{(C)}", WRONG), ("5", r"\text{even}", WRONG), ("even", "5", WRONG),
    # A choice with its value.
    (r"\textbf{(C)}\ 12", "12", RIGHT), (r"\textbf{(C)}\ 12", "C", RIGHT), ("12", r"\textbf{(C)}\ 12", RIGHT),
    (r"\textbf{(C)}\ 12", r"\text{(C)}", RIGHT), (r"\text{(C) }12", r"\textbf{(C)}\ 12.0", RIGHT),
    (r"\textbf{(A)}\ 12", r"\textbf{(C)}\ 12", WRONG), (r"\textbf{(C)}\ 12", "13", WRONG),
    (r"\text{(A)}, \text{(C)}", "C, A", RIGHT), ("A", r"\text{(A)}, \text{(C)}", WRONG),
    (r"\textbf{(C)}\ 12", "B", WRONG), ("13", r"\textbf{(C)}\ 12", WRONG), ("B", r"\textbf{(C)}\ 12", WRONG),
    # Short words and names of points are no products of letters; variables are.
    ("BAC", "ABC", WRONG), ("ABC", r"\text{ABC}", RIGHT), ("BA", "AB", WRONG), ("VI", "IV", WRONG),
    ("no", "on", WRONG), ("no", r"\text{No}", RIGHT), ("yes", "Yes", RIGHT), ("ab", "ba", RIGHT), ("C", "(C)", RIGHT),
]  # fmt: skip
ALGEBRA = [
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt 3}", RIGHT), (r"11\sqrt2", r"11\sqrt{2}", RIGHT),
    ("6-5i", "-5i+6", RIGHT),
    ("6+5i", "6-5i", WRONG), ("(x+1)^2", "x^2+2x+1", RIGHT), ("(x+1)^2", "x^2+2x+2", WRONG),
    ("2k+2", "2(k+1)", RIGHT),
    (r"\sqrt{1/n}", r"\frac{1}{\sqrt{n}}", RIGHT), ("|x|", "x", WRONG),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", WRONG),
    (r"\cot x", r"\frac{\cos x}{\sin x}", RIGHT), (r"18+2\pi", r"2(\pi+9)", RIGHT), ("2^{10}", "1024", RIGHT),
    (r"\binom{5}{2}", "10", RIGHT), ("5!", "120", RIGHT), (r"\sqrt{16}", "4", RIGHT),
    ("10^{50}+1", "10^{50}", WRONG), ("(a+5)(b+2)", "(b+2)(a+5)", RIGHT), ("xy", "yx", RIGHT),
    ("x", "y", WRONG),
    ("2(3)", "6", RIGHT), ("2(3)", "5", WRONG), ("(2)(3)", "6", RIGHT), ("(2)(3)", "5", WRONG),
    ("2(3)(4)", "24", RIGHT), (r"\log_2(8)", "3", RIGHT), ("(x+1)(x-1)", "x^2-1", RIGHT),
    # complex constants, and degrees inside functions
    ("(1+i)^2", "2i", RIGHT), (r"\frac{1}{1+i}", r"\frac{1-i}{2}", RIGHT), (r"\sqrt{-4}", "2i", RIGHT),
    (r"\sqrt{-4}", "2", WRONG), ("i", "-i", WRONG), ("(2+i)(2-i)", "5", RIGHT), ("1+xi", "1+ix", RIGHT),
    (r"\sin 30^\circ", r"\frac12", RIGHT), (r"\tan 45^{\circ}", "1", RIGHT), (r"\sin 30", r"\frac12", WRONG),
    (r"\sin 30", r"\sin 30^\circ", WRONG), (r"2\cos 20^\circ", r"2\sin 70^\circ", RIGHT),
    # roots as models write them
    ("√13", r"\sqrt{13}", RIGHT), ("√13", "3", WRONG), ("2√13", r"2\sqrt{13}", RIGHT), ("√(2)", r"\sqrt{2}", RIGHT),
    (r"\sqrt13", r"\sqrt{13}", RIGHT), (r"\sqrt13", "3", WRONG), (r"\sqrt2x", r"x\sqrt{2}", RIGHT),
    ("√x", r"\sqrt{x}", RIGHT), ("√(x+1)+1", r"1+\sqrt{1+x}", RIGHT), (r"\sqrt[3]{8}", "2", RIGHT),
    # Python
    ("3*pi/4", r"\frac{3\pi}{4}", RIGHT), ("2pi", r"2\pi", RIGHT), ("oo", r"\infty", RIGHT),
    ("-oo", r"\infty", WRONG), ("x**2+1", "x^2+1", RIGHT), ("x**10", "x^{10}", RIGHT), ("x**(-1)", "1/x", RIGHT),
    ("10**6", "1000000", RIGHT), ("2**(n+1)", "2^{n+1}", RIGHT), ("2**(n+1)", "2^n+1", WRONG),
    ("1/2 + sqrt(5)/2", r"\frac{1+\sqrt5}{2}", RIGHT), ("sqrt(2*(3+4))", r"\sqrt{14}", RIGHT),
    ("[0, sqrt(2))", r"[0,\sqrt{2})", RIGHT), ("(0, sqrt(2)]", r"(0,\sqrt{2}]", RIGHT), ("sqrt(2", r"\sqrt{2}", WRONG),
    (r"\text{pi}", r"\text{Pi}", RIGHT),
]  # fmt: skip
TABLES = {
    "numbers": NUMBERS, "separators": SEPARATORS, "decimals": DECIMALS,
    "percent and units": PERCENT_AND_UNITS,
    "bases": BASES, "equations": EQUATIONS, "lists": LISTS, "tuples and intervals": TUPLES_AND_INTERVALS,
    "matrices": MATRICES, "words": WORDS, "algebra": ALGEBRA,
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_verdict_of_a_mathematician(table: str, grader: Grader):
    faults = []
    for answer, gold, want in TABLES[table]:
        verdict = grader.grade_sync(f"so \\boxed{{{answer}}}.", gold)
        # An answer that is no mathematics is wrong too; which of the two it is called is not tested here.
        wrong = want is WRONG and verdict in (Verdict.CANNOT_PARSE, Verdict.NO_ANSWER)
        if verdict is not want and not wrong:
            faults.append(f"{answer!r} against {gold!r}: {verdict}, want {want}")
    assert not faults, "\n".join(faults)
