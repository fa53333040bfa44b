r"""Verdicts by kind of mistake that graders make, in both directions: each kind has pairs that are equal and pairs that are not.

`docs/grading.md` states the conventions. `RIGHT` and `WRONG` hold (answer in the box, gold answer).
"""

import pytest

from agentrl_envs import Grader, Verdict

RIGHT: dict[str, list[tuple[str, str]]] = {
    "letters of two cases": [("a+A", "A+a"), (r"\frac{V}{v}", r"V/v"), ("Nn", "nN"), (r"\Phi", r"\Phi"), ("2T-t", "-t+2T"), ("I+i_1", "i_1+I")],
    "steps": [
        (r"\lceil x \rceil", r"-\lfloor -x\rfloor"), (r"\lfloor x+2\rfloor", r"\lfloor x\rfloor+2"), (r"\lceil n/2\rceil", r"\lfloor (n+1)/2\rfloor"),
        (r"2\lfloor k/3\rfloor", r"\lfloor \frac{k}{3}\rfloor\cdot 2"), (r"⌊x⌋+1", r"\lfloor x\rfloor+1"), (r"\left\lfloor\frac{n}{2}\right\rfloor", r"\lfloor 0.5n\rfloor"),
    ],
    "gamma is a letter": [
        (r"2(\gamma+1)", r"2\gamma+2"), (r"\gamma v", r"v\gamma"), (r"\gamma^2(1-\beta^2)", r"\gamma^2-\gamma^2\beta^2"),
        (r"\frac{1}{\gamma}+\gamma", r"\frac{\gamma^2+1}{\gamma}"), (r"\gamma_1+\gamma_2", r"\gamma_2+\gamma_1"), (r"\Gamma(5)", "24"),
    ],
    "subscripts": [
        ("I_1R_1", "R_1I_1"), ("E_{0}-E_1", "-E_1+E_{0}"), (r"v_{\text{max}}", r"v_{\max}"), ("T_{12}", "T_{1 2}"), ("x_1^2", "x_{1}^{2}"),
    ],
    "primes, derivatives, opaque functions": [
        ("2f'(x)", "f'(x)+f'(x)"), ("y''+y=0", "y+y''=0"), (r"\dot{x}+x", r"x+\dot x"), (r"\gcd(a,b)", r"\gcd(a, b)"),
        (r"\frac{\partial u}{\partial t}", r"\frac{\partial u}{\partial t}"), ("P(A)P(B)", "P(B)P(A)"), ("A^TB", "BA^T"),
    ],
    "equations of numbers": [
        (r"12\cdot 3=36", r"3\cdot 12=36"), (r"\sin\frac{\pi}{6}=\frac12", r"\sin(\frac{\pi}{6})=0.5"), ("8", "2^3=8"), (r"\log_2 32=5", r"\log_{2}(32)=5"),
        ("5", r"\log_2 32=5"), (r"\frac{1}{2}", r"\cos 60^\circ=\frac{1}{2}"),
    ],
    "equations with several sides or names": [
        (r"k=\frac{\ln 2}{3}=\frac{\ln 4}{6}", r"k=\frac{\ln 2}{3}"), ("a=b=7", "7"), ("(x-1)^2=x^2-2x+1", "x^2-2x+1=(x-1)^2"), (r"\frac{AB}{CD}=\frac{2}{3}", r"\frac23"),
        (r"\frac23", r"\frac{AB}{CD}=\frac{2}{3}"), ("p=2, Q=(1,3)", "Q=(1,3), p=2"), ("g(x)=x^2", "g=x^2"), ("3y=6x+3", "y=2x+1"), (r"a_n=\sum_{j=1}^{n} b_j c_{n-j}", r"a_n=\sum_{j=1}^{n} c_{n-j}b_j"),
    ],
    "approximations": [
        (r"\sqrt{3}\approx 1.732", r"\sqrt3"), (r"5\pi\approx 15.7", r"5\pi"), (r"x\approx 2.7", r"x\approx 2.7"), ("2.7", r"x \approx 2.7"),
        (r"\ln 2", r"\ln 2\approx 0.693"), ("0.693", r"\ln 2\approx 0.693"), (r"\frac{1}{3}\approx 0.333", "1/3"),
    ],
    "decimals": [
        ("0.142857142857", "1/7"), ("1.7320508", r"\sqrt3"), ("e^{-1.5}", r"e^{-\frac32}"), (r"\log_{2.5} 3", r"\frac{\ln 3}{\ln 2.5}"), ("0.2+0.1", "0.3"), (r"\frac{0.5}{0.25}", "2"),
        (r"\sin(0.5x)", r"\sin\frac{x}{2}"), ("2^{0.5}", r"\sqrt2"),
    ],
    "commas": [("2,500", "2500"), ("1, 2, 3", "3,2,1"), ("12,345,678", "12345678"), ("10,000", r"10\,000"), ("0.5, 1", "1, 0.5"), ("7,000", "7000")],
    "named values": [
        ("x=1, y=2", "y=2, x=1"), ("(1,2)", "x=1, y=2"), ("x=1, y=2", "(1,2)"), (r"a=4 \text{ and } b=5", "(4,5)"), (r"\begin{cases}x=1\\y=2\end{cases}", "x=1,y=2"),
        ("x=5, x=6", "5, 6"), ("x_1=5, x_2=6", "6,5"), (r"(r,\theta)=(2,\frac{\pi}{4})", r"(2,\frac{\pi}{4})"), (r"r=2,\ \theta=\frac{\pi}{4}", r"(2,\frac{\pi}{4})"), ("t=1, 2", "1,2"),
    ],
    "repetition": [("2,2,5", "5,2,2"), ("7, 7", "7"), (r"\{1,1,2\}", r"\{1,2\}"), ("a,a,b", "b,a,a"), ("1,2,1", "1,1,2"), (r"\{3,3\}", r"\{3\}")],
    "infinity with a sign": [
        ("(0,+\\infty)", r"(0,\infty)"), (r"x>0", r"(0,+\infty)"), (r"[1,+∞)", r"x \ge 1"), (r"(-\infty,0)\cup(1,+\infty)", r"(-\infty,0)\cup(1,\infty)"), (r"+\infty", r"\infty"), ("(3,+oo)", r"(3,\infty)"),
        (r"-\infty", r"-\infty"),
    ],
    "plus and minus": [
        (r"\frac{1\pm\sqrt{5}}{2}", r"\frac{1+\sqrt5}{2}, \frac{1-\sqrt5}{2}"), (r"3(2\pm\sqrt2)", r"6\pm 3\sqrt2"), (r"x=\pm 5", r"5, -5"), (r"x=1, x=\pm\sqrt3", r"1, \sqrt3, -\sqrt3"),
        (r"(\pm 2, 7)", "(2,7), (-2,7)"), (r"\pm\frac{i}{2}", r"\frac{i}{2},-\frac{i}{2}"), (r"\frac{-4\mp 2}{2}", "-1,-3"), (r"z\in\{\pm 3, 0\}", "0,3,-3"), (r"0, \frac{2 ± \sqrt{3}}{5}", r"\frac{2\pm\sqrt3}{5}, 0"),
    ],
    "upright letters": [
        (r"\mathrm{e}^{3x}", "e^{3x}"), (r"\text{e}^{-t}+1", "1+e^{-t}"), ("E**3", "e^3"), (r"2+3\mathrm{i}", "2+3i"), (r"x\mathrm{e}^{x}", "xe^x"), (r"\operatorname{e}^{2}", "e^2"), (r"\exp(2x)", r"\mathrm{e}^{2x}"),
    ],
    "set builder": [
        (r"\{t \mid t > 2\}", r"(2,\infty)"), (r"\{x : 0\le x<4\}", "[0,4)"), (r"\{x\in\mathbb{R} \mid x\le 1\}", r"x\le 1"), (r"\{y|y\ne 3\}", r"\{y \mid y\neq 3\}"), (r"(-\infty,5]", r"\{a \mid a\le 5\}"),
        (r"\{n \mid n=2k, k\in\mathbb{Z}\}", r"\{n : n=2k, k\in\mathbb Z\}"), (r"x\in\{1,2\}", "1,2"),
    ],
    "the reals, exclusions, nothing": [
        (r"\mathbb{R}", r"(-\infty,\infty)"), ("ℝ", r"\text{all real numbers}"), (r"x\ne 4", r"(-\infty,4)\cup(4,\infty)"), (r"\mathbb{R}\setminus\{0\}", r"x\neq 0"), (r"\mathbb{R}\setminus\{2,-2\}", r"(-\infty,-2)\cup(-2,2)\cup(2,\infty)"),
        (r"\text{No solution}", r"\emptyset"), (r"\varnothing", r"\text{no solutions}"), (r"\text{all real numbers except } 1", r"x\ne 1"), (r"x \not= 6", r"6\ne x"),
    ],
    "fractions without braces": [(r"\frac\pi3", r"\pi/3"), (r"2-\frac3x", r"2-\frac{3}{x}"), (r"\frac{a}b", "a/b"), (r"\frac1{x+1}", r"\frac{1}{x+1}"), (r"\dfrac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"), (r"\sqrt\pi", r"\sqrt{\pi}")],
    "Python": [
        ("acos(1/3)", r"\arccos\frac13"), ("exp(-2*x)", "e^{-2x}"), ("Rational(3, 4)", r"\frac34"), ("factorial(4)", "24"), ("np.sqrt(2)", r"\sqrt2"), ("3*cos(2*x)-1", r"3\cos 2x-1"), ("log(x)", r"\log x"),
        ("binomial(6,2)", "15"), ("math.pi/2", r"\frac{\pi}{2}"), ("abs(x)", "|x|"), ("E**(-1)", r"\frac1e"),
    ],
    "binomials and factorials": [
        (r"C(6,3)", "20"), (r"{6\choose 2}", "15"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), (r"\frac{(n+1)!}{n!}", "n+1"), ("k!^2", "(k!)^2"), (r"\binom{2n}{n}", r"\frac{(2n)!}{n!\,n!}"),
    ],
    "qualifiers": [
        (r"f(x)=3x \text{ for all } x", "f(x)=3x"), (r"g(n)=n+1\ \forall n\in\mathbb{N}", "g(n)=n+1"), (r"7 \text{ when } k=2", "7"), (r"f(x)=x\quad(x\in\mathbb{R})", "f(x)=x"), (r"h(x)\equiv 0", "h(x)=0"), (r"4, \text{ where } n=3", "4"),
    ],
    "compound units": [
        (r"9.8 \mathrm{~m} / \mathrm{s}^{2}", "9.8"), (r"9.8\text{ m s}^{-2}", r"9.8\text{ m/s}^2"), (r"3\text{ N}\cdot\text{m}", "3"), (r"10\ \Omega", "10"), (r"2\,\mu\mathrm{m}", "2"), ("25 ℃", r"25^\circ C"), (r"4\text{ m}^{-1}", "4"),
        (r"60\text{ km}/\text{h}", r"60\text{ km/h}"), (r"6 \times 10^{3} \text{ kg m}^{-3}", "6000"), (r"8\pi\text{ m}^2", r"8\pi\;m^{2}"),
    ],
    "symbols": [
        (r"\hbar\omega/2", r"\frac{\hbar\omega}{2}"), (r"\vec{u}+\vec v", r"\vec{v}+\vec{u}"), (r"\lambda_{blue}", r"\lambda_{\text{blue}}"), (r"m\ddot{x}+kx=0", r"kx+m\ddot x=0"), (r"\epsilon_0 E^2", r"E^2\epsilon_{0}"),
        (r"\bar{x}-\mu", r"-\mu+\bar x"), (r"\text{MC}=\text{MR}", "MC=MR"), (r"\delta(t)+1", r"1+\delta(t)"),
    ],
    "complex": [("x+y i", "x+yi"), (r"e^{i x}", r"\cos x+i\sin x"), ("(a+bi)(a-bi)", "a^2+b^2"), (r"\frac{2}{1+i}", "1-i"), ("e^{it}+1", "1+e^{i t}"), (r"i^3", "-i"), (r"\frac{4}{3+3i}e^{it}", r"\frac{2(1-i)}{3}e^{it}")],
    "congruences": [
        (r"x\equiv 2 \pmod 5", r"x \equiv 2 \mod 5"), (r"41 \pmod{100}", "41"), (r"n\equiv 41 \pmod{100}", "41"), (r"3 \ (\text{mod } 7)", "3"), (r"x\equiv 2\pmod{5}", r"2"), (r"a \equiv 1 \bmod 4", r"a\equiv 1\pmod 4"),
    ],
    "odd roots": [(r"\sqrt[3]{-27}", "-3"), (r"\sqrt[5]{-32}", "-2"), (r"\sqrt[3]{-5}", r"-\sqrt[3]{5}"), (r"(-8)^{1/3}", "-2"), (r"1+\sqrt[3]{-1}", "0"), (r"\sqrt[3]{-\frac18}", r"-\frac12")],
    "decoration": [
        (r"\text{The answer is } 8", "8"), ("= 8", "8"), (r"\Large{8}", "8"), (r"8\ ", "8"), (r"\therefore x=8", "8"), (r"8\ \checkmark", "8"), (r"\begin{aligned}x&=8\end{aligned}", "8"), (r"\color{red}{8}", "8"),
        (r"\boxed{8}", "8"), (r"\text{Option B}", "B"), (r"\text{B: } 8", "B"), (r"\\frac{1}{2}", r"\frac12"), (r"\text{exactly } 8", "8"), ("8\x00", "8"), (r"\underline{8}", "8"), (r"\text{(B) } 8", "8"),
    ],
    "relations": [(r"p\ne q", r"q\ne p"), (r"|x-2|<3", "(-1,5)"), (r"|x|\le 4", "[-4,4]"), (r"|x+1|<\frac12", r"(-\frac32,-\frac12)"), (r"3\ge x", r"x\le 3"), (r"x > 2 \text{ (i.e., } x\in(2,\infty))", r"x>2")],
    "ratios, bases, times": [
        ("2{:}3", "2:3"), (r"2\colon 3", "2 : 3"), ("4:6", "2:3"), ("(110)_2", "110_2"), ("3/4", "3:4"), ("10:45", "10:45"), (r"9:05\text{ a.m.}", r"9:05\text{ am}"), (r"AB:BC=2:3", "2:3"),
    ],
    "matrices": [
        (r"3\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}3\\6\end{pmatrix}"), (r"\begin{bmatrix}1&1\end{bmatrix}+\begin{bmatrix}2&3\end{bmatrix}", r"\begin{bmatrix}3&4\end{bmatrix}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}1\\1\end{pmatrix}", r"\begin{pmatrix}3\\7\end{pmatrix}"), (r"\begin{pmatrix}x+x\end{pmatrix}", r"\begin{pmatrix}2x\end{pmatrix}"),
        (r"\frac12\begin{pmatrix}2&4\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), (r"B^{-1}=\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
    ],
    "arbitrary constants": [
        (r"\sin x+K", r"\sin x+C"), (r"\frac{(x+1)^2}{2}+C", r"\frac{x^2}{2}+x+C"), (r"-\ln|\cos x|+c", r"-\ln|\cos x|+C"), (r"x^3+C_1", r"x^3+C"),
    ],
    "Unicode": [("𝑦=3", "3"), ("⅜", r"\frac38"), ("3⁵", "3^5"), ("x²+1", "x^2+1"), ("A ∪ B", r"A\cup B"), ("γ+1", r"\gamma+1"), ("２³", "8"), ("a₁", "a_1"), ("¼", "0.25"), ("x ≥ 2", r"[2,\infty)")],
    "indexed unions": [(r"\bigcup_{k=-∞}^{∞}(k\pi, (k+1)\pi)", r"\bigcup_{k=-\infty}^{\infty}(k \pi,(k+1) \pi)")],
    "words": [(r"\text{A necessary condition}", r"\text{necessary condition}"), (r"\text{the set }\{4,5\}", r"\{4,5\}"), (r"\text{True}", "true"), (r"\text{Yes}", "yes"), ("Even", r"\text{even}")],
}  # fmt: skip

WRONG: dict[str, list[tuple[str, str]]] = {
    "letters of two cases": [("a-A", "0"), (r"\frac{v}{V}", r"\frac{V}{v}"), ("2n", "N+n"), (r"\phi", r"\Phi"), ("t-T", "T-t"), (r"\frac{k}{K+k}", r"\frac{K}{K+k}"), ("Q(b)", "Q(B)"), ("x_N", "x_n"), ("G_1g_2", "g_1G_2"), ("a+b+c+d+2X", "a+b+c+d+X+x"), (r"abcd\sin X+x", r"abcd\sin x+X"), ("ABCD(F-m)", "0")],
    "steps": [
        (r"\lfloor x\rfloor+1", r"\lceil x\rceil"), (r"\lceil n/3\rceil", r"\lfloor n/3\rfloor+1"), (r"\lfloor\log_3 n\rfloor", r"\lfloor\log_2 n\rfloor"), (r"\lfloor n/2\rfloor", r"\frac{n}{2}"), (r"\lfloor x\rfloor", r"\lceil x\rceil-1"),
        (r"\lfloor m/4\rfloor+1", r"\lceil m/4\rceil"),
    ],
    "gamma is a letter": [(r"\gamma^2-3", r"\gamma^2-1"), (r"(\gamma+1)v", r"(\gamma-1)v"), (r"\gamma(2)", r"\gamma(3)"), (r"\gamma", "0.5772156649015329"), (r"\gamma_1", r"\gamma_2"), (r"\Gamma(5)", "120")],
    "subscripts": [("I_1", "I_2"), ("I_1", "i_1"), ("E_{xx}", "E_{xy}"), ("2I_1", "I_1+I_2"), ("a_{k+1}", "a_{k-1}"), ("x_1", "x"), ("T_{12}", "T_{21}")],
    "primes, derivatives, opaque functions": [
        ("f'(x)", "f(x)"), ("y'+y=0", "y''+y=0"), (r"\dot x", "x"), (r"\frac{dy}{dx}", r"\frac{dx}{dy}"), (r"\gcd(a,b)", r"\gcd(a,b+1)"), ("f(x+1)", "f(x)+f(1)"), (r"\frac{\partial u}{\partial t}", r"\frac{\partial u}{\partial x}"),
        ("A^T", "A"), (r"\gcd(a,b)", "1"), ("g(2x)", "2g(x)"), (r"\ddot x", r"\dot x"), ("P(A|B)", "P(B|A)"),
    ],
    "equations of numbers": [
        (r"12\cdot 4=36", r"12\cdot 3=36"), (r"\sin\frac{\pi}{6}=\frac12", r"\cos\frac{\pi}{6}=\frac12"), ("2=2", "3=3"), (r"15\cos\frac{\pi}{5}=12.1", r"15\cos\frac{\pi}{7}=12.1"), ("2+2=5", "1+3=4"), ("4", "2^3=8"), ("0=0", "1+1=2"),
    ],
    "equations with several sides or names": [("a=b=8", "7"), ("x=2", "y=2"), ("2x=4", "x=3"), ("(x-1)^2=x^2", "x^2-2x+1=(x-1)^2"), ("10", "2x=10"), (r"k=\ln 2=\ln 3", r"k=\ln 2"), ("5", "x+y=5"), ("p=3, Q=(1,3)", "p=2, Q=(1,3)")],
    "approximations": [(r"\ln 2\approx 0.7931", r"\ln 2"), (r"x\approx 2.7", r"y\approx 2.7"), (r"\sin 1\approx 0.5", r"\sin 1\approx 0.84"), (r"x\approx 4", "4"), (r"\pi\approx 3.14", "3.14"), ("0.69", r"\ln 3\approx 1.0986"), (r"\sqrt 2\approx 1.414", "1.414")],
    "decimals": [("0.000000", r"\frac{1}{3^{40}}"), ("0.000001", r"\frac{1}{1234567}"), ("0.00", "10^{-9}"), ("0.000000000", r"\frac{1}{10000000019}"), ("0.33", "1/3"), (r"e^{-0.5}", r"e^{-0.6}"), ("0.1+0.2", "0.30001"), ("1e-7", "0")],
    "commas": [("0,125", "125"), ("2,000", "2,0"), ("1,5", "15"), ("0,5", "5"), ("10,00", "1000"), ("1,23", "123"), ("3,14", "314"), ("0,001", "1")],
    "named values": [("2,1", "x=1, y=2"), ("(2,1)", "x=1, y=2"), ("x=2, y=1", "x=1, y=2"), ("3,2,1", "p=1, q=2, r=3"), ("x=1, y=2", "(2,1)"), (r"\begin{cases}x=2\\y=1\end{cases}", "x=1,y=2"), ("x=5, x=7", "5,6"), ("u=1, v=2", "x=1, y=2")],
    "repetition": [("2,5", "5,2,2"), ("2,5,5", "5,2,2"), ("1,1,2", "1,2"), ("a,b", "a,a,b"), ("1,2,2,3", "1,1,2,3"), ("4,4,4", "4,4")],
    "infinity with a sign": [(r"-\infty", r"+\infty"), (r"(0,-\infty)", r"(0,\infty)"), (r"[0,+\infty)", r"(0,\infty)"), (r"x>1", r"(0,+\infty)"), (r"+\infty", "0"), (r"\infty", r"2"), (r"\frac{1}{0}", r"\infty")],
    "plus and minus": [(r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2}"), (r"\frac{1+\sqrt5}{2}", r"\frac{1\pm\sqrt5}{2}"), (r"x=\pm 5", "5"), (r"\pm 4", r"\pm 5"), (r"(\pm 2,7)", "(2,7)"), (r"3\pm\sqrt2", r"3\pm\sqrt3"), (r"x=0,x=\pm 2", r"x=\pm 2")],
    "upright letters": [(r"\mathrm{e}^{3}", "e^{2}"), ("E^2", "e^2"), (r"\text{e}", "f"), (r"2+\mathrm{i}", "2-i"), ("E**2", "E_2"), (r"\mathrm{e}^{-x}", "e^{x}")],
    "set builder": [(r"\{x\in\mathbb{N} : x<4\}", r"(-\infty,4)"), (r"\{x \mid x\ge 0\}", r"(0,\infty)"), (r"\{x : x>1\}", r"\{x : x>2\}"), (r"\{n \mid n=2k\}", r"\{n\mid n=3k\}"), (r"\{x\mid x\ne 1\}", r"\{x \mid x\ne 2\}"), (r"\{x \mid x\in\mathbb{Z}\}", r"\mathbb{R}")],
    "the reals, exclusions, nothing": [(r"\mathbb{R}", r"(0,\infty)"), (r"\mathbb{Z}", r"\mathbb{R}"), (r"x\ne 4", "4"), (r"x\ne 4", r"x\ne 5"), (r"\mathbb{R}\setminus\{1\}", r"\mathbb{R}"), (r"\emptyset", "0"), (r"\text{no solution}", r"\text{all real numbers}"), (r"(0,5)\setminus\{3\}", r"(0,2)\cup(2,5)"), (r"\{0\}", r"\emptyset")],
    "fractions without braces": [(r"\frac\pi3", r"\pi/6"), (r"\frac{a}b", "b/a"), (r"\frac1{x}+1", r"\frac{1}{x+1}"), (r"\frac23x", r"\frac{2}{3x}"), (r"\sqrt\pi", r"\pi"), (r"\frac12", r"\frac21")],
    "Python": [("acos(1/3)", r"\arcsin\frac13"), ("exp(2*x)", "e^{x}"), ("Rational(3, 4)", r"\frac43"), ("factorial(4)", "4"), ("sin(x)/2", r"\sin(x/2)"), ("Matrix([[1, 2], [0, 0]])", r"\begin{pmatrix}1&0\\0&2\end{pmatrix}"), ("x**2*3", "x^6")],
    "binomials and factorials": [("C(6,3)", "18"), ("C_7^2", "49"), (r"\binom{n}{2}", r"\binom{n}{3}"), ("k!^2", "(k^2)!"), ("C_1^2", "0"), (r"\frac{(2n)!}{n!}", r"\binom{2n}{n}"), ("(2n)!", "2n!")],
    "qualifiers": [(r"f(x)=3x \text{ for all } x", "f(x)=2x"), (r"7 \text{ when } k=2", r"7 \text{ when } k=3"), (r"6 \text{ when } k=2", "7"), (r"x>1\ \forall x", "1"), (r"4 \text{ or } 5", "4"), (r"4 \text{ for } x=1 \text{ and } 5 \text{ for } x=2", "5")],
    "compound units": [(r"9\text{ m/s}", r"9\text{ m/s}^2"), (r"5\text{ N m}", r"5\text{ N/m}"), (r"3\text{ m}^{-1}", r"3\text{ m}"), (r"5\ \Omega", r"6\ \Omega"), (r"3 \text{ million}", "3"), (r"10\text{ km/h}", r"10\text{ m/s}"), (r"2\,\mu\mathrm{m}", r"2\text{ m}")],
    "symbols": [(r"\hbar\omega", r"\hbar"), (r"\vec a", r"\vec b"), (r"\lambda_{red}", r"\lambda_{blue}"), (r"\dot x", r"\ddot{x}"), (r"\epsilon_0", r"\epsilon_1"), (r"\bar x", "x"), (r"\text{MC}", r"\text{MR}"), (r"\alpha+\beta", r"2\alpha")],
    "complex": [("a+bi", "a-bi"), (r"e^{it}", r"e^{-it}"), (r"\cos t-i\sin t", "e^{it}"), ("x^2-1", "(x+i)(x-i)"), ("1+2i", "2+i"), (r"\frac{2}{1+i}", "1+i")],
    "congruences": [(r"x\equiv 2 \pmod 5", r"x\equiv 2\pmod 7"), (r"x\equiv 3\pmod 5", r"x\equiv 2\pmod 5"), (r"42\pmod{100}", "41"), (r"5", r"x\equiv 2\pmod 5"), (r"2 \pmod 3", "3"), (r"y\equiv 1\pmod 4", r"x\equiv 1\pmod 4")],
    "odd roots": [(r"\sqrt[3]{-27}", "3"), (r"\sqrt{-4}", "-2"), (r"\sqrt[4]{-16}", "-2"), (r"\sqrt[3]{-5}", r"\sqrt[3]{5}"), (r"\sqrt[3]{-8}", "-4"), (r"\sqrt[5]{-1}", "1")],
    "decoration": [(r"\text{The answer is not } 8", "8"), (r"\text{about } 8", "9"), (r"\text{Option A}", "B"), (r"\text{B: } 8", "C"), ("8!", "8"), (r"-8 \checkmark", "8"), (r"\text{exactly } 9", "8"), ("8?9", "8"), (r"\color{red}{8}9", "8")],
    "relations": [(r"p\ne q", r"p=q"), (r"|x-2|<3", "(-5,1)"), (r"|x|<4", "[-4,4]"), (r"|x|>4", "(-4,4)"), (r"x\ge 3", r"x\le 3"), (r"a<b", r"b<a")],
    "ratios, bases, times": [("3:2", "2:3"), ("10:30", "5:15"), ("1", "3-2"), ("2", "12-10"), ("110_3", "110_2"), ("7:30", "7"), (r"7:01\text{ pm}", r"7\text{ pm}"), (r"10:30\text{ am}", r"10:30\text{ pm}"), ("0.25", "1/2/2"), (r"7\text{ am}", r"7\text{ pm}")],
    "matrices": [(r"2\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\2\end{pmatrix}"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), (r"\begin{pmatrix}1\\1\end{pmatrix}\begin{pmatrix}1&1\end{pmatrix}", "2"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&2&0\end{pmatrix}"), (r"\begin{pmatrix}1&2\end{pmatrix}+\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), (r"2\begin{pmatrix}a\\b\end{pmatrix}", r"\begin{pmatrix}2a\\b\end{pmatrix}")],
    "arbitrary constants": [(r"\sin x", r"\sin x+C"), (r"\cos x+C", r"\sin x+C"), (r"Ae^x+Be^x", r"C_1e^x+C_2e^{-x}"), ("mk^2", "mc^2"), ("x+k+1", "x+k"), ("x^2+Cx", "x^2+C"), ("ac", "ak"), (r"x+C", "x+2C")],
    "Unicode": [("⅜", r"\frac83"), ("3⁵", "35"), ("a₁", "a_2"), ("x²", "x2"), ("２³", "6"), ("𝑦=4", "3"), ("γ", "y")],
    "indexed unions": [(r"\bigcup_{k=0}^{\infty}(k\pi, (k+1)\pi)", r"\bigcup_{k=-\infty}^{\infty}(k \pi,(k+1) \pi)"), (r"\bigcup_{k=-\infty}^{\infty}(k\pi, (k+2)\pi)", r"\bigcup_{k=-\infty}^{\infty}(k \pi,(k+1) \pi)")],
    "words": [(r"\text{not even}", r"\text{even}"), (r"\text{necessary}", r"\text{sufficient}"), (r"\text{True}", "false"), (r"\text{yes and no}", "yes"), (r"3\text{ by }4", "3"), (r"\text{the set }\{4,6\}", r"\{4,5\}")],
}  # fmt: skip


def test_each_kind_has_pairs_of_both_directions():
    assert RIGHT.keys() == WRONG.keys()
    assert len(RIGHT) >= 30


@pytest.mark.parametrize("kind", RIGHT)
def test_verdicts_by_kind(kind: str, grader: Grader):
    faults = []
    for wanted, pairs in ((True, RIGHT[kind]), (False, WRONG[kind])):
        for answer, gold in pairs:
            verdict = grader.grade_sync(f"so \\boxed{{{answer}}}.", gold)
            if verdict.right is not wanted or verdict in (Verdict.TIMED_OUT, Verdict.GRADER_FAILED):
                faults.append(f"{answer!r} against {gold!r}: {verdict}")
    assert not faults, "\n".join(faults)
