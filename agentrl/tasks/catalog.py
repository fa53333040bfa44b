"""Benchmarks by name: their size, the kind of their answers, where the hub has them, and their checksums.

The checksum is over the problems and answers of the file of that name in a local data folder
(`datasets.checksum`). Revisions on the hub are git commits and so fix the content by themselves; they are the
ones public evaluation code quotes most. Where none could be confirmed, `hub` is None and the benchmark needs
a local file. Knows nothing of reading files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Answers = Literal["integer", "expression", "countdown"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a public repository, at a commit."""

    repository: str
    revision: str
    file: str
    """Path in the repository; on the hub a pattern of it."""
    columns: dict[str, str] = field(default_factory=dict)
    """`problem` and `answer` to the names of their columns."""
    answer: Literal["plain", "hash_marks", "boxed", "first"] = "plain"
    """The answer column is the answer, or a solution with `#### answer`, or one with `\\boxed{answer}`,
    or a list whose first item it is."""


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """Where the Hugging Face hub has a benchmark."""

    rows: int = 0
    """Rows when they differ from the file's."""


@dataclass(frozen=True, slots=True)
class GitHubSource(Source):
    """Where a public repository on GitHub has a benchmark."""

    suffix: str = ""
    """End of every problem that is an instruction, not the problem's."""

    @property
    def url(self) -> str:
        """Of the file at its commit."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.revision}/{self.file}"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One data set with a name."""

    name: str
    file: str
    """Name in a local data folder."""
    rows: int
    answers: Answers
    train: bool = False
    """For learning, not for reporting."""
    hub: HubSource | None = None
    github: GitHubSource | None = None
    """For those that the hub has at no revision that could be confirmed."""

    @property
    def checksum(self) -> str:
        """Of the local file's content; empty where no copy was at hand to compute it."""
        return _CHECKSUMS.get(self.name, "")


_CHECKSUMS = {
    "gsm8k": "91d3c28f9402dc71916f55bac10ce4c0fe910358424a66f180ec06241607147d",
    "gsm8k_train": "7efa399b004c521ab301e5c4c305126e489a362085d88591238cb3be6061c947",
    "math500": "558e71e218c938660d01ec5cc055ebd7e6a97314b34ac77e9e26244fdf26d21e",
    "aime24": "865282f93077980f90e717cfcc67f281cc79f41a5401b72becbba99daf6c6eb0",
    "aime25": "b57aa45c1f9c1caa637a0c43397e0b0ded0cdea20faf20feb988fb184f6e62e2",
    "amc23": "1e3e11ffd3f0c6d6c6b94e1f04f18aa71f687d39dcedf6cc8b662a636640eaee",
    "hmmt_feb_2025": "de48344b0e91afa26f0344aa2734666726ef5716bc277ad14f210fa3af972969",
    "brumo_2025": "b45627a0ec876ec7f723d84140d78fdcd37bcf87e81015d23f01a6bc97df332d",
    "cmimc_2025": "91c77d8edbb4f982ab8c1146c364e6e8ff452b2bbc40b6808cfe6458f64bff24",
    "countdown": "51206bf0aa03f6f9845305b6187236fd3cb97312acc993c0192ac52641cc502d",
    "countdown_train": "9ff6f28046866a2c67dde1757b586b7f0ac015408770389f745c1bafcfff5c83",
    "dapo_math_17k": "47f138f1bd27e23fdcadf9e15fcb324b377885a6a1a9a20e77ffef3454ee36d3",
    "math_train": "ce79d3a178751e4c62bc29c5d11ff58e0cd6d65db66c3b5c658c791176ac24ce",
    "math_lvl3to5_train": "b7cab778bca69b080c0638a40992082e2f96cbf3c4ef5d7f199ae87635864fc9",
    "aime_1983_2023_train": "effe04c279ab76269cf971e75a4a6447cd3c3e417721fed0aba24630af23ce1b",
}

_PROBLEM = {"problem": "problem", "answer": "answer"}
_QUESTION = {"problem": "question", "answer": "answer"}

_JUSTRL = ("thunlp/JustRL", "cf444e9920b599c865ee6742c88dc162dcabcec2")

_ALL = (
    Benchmark(
        "gsm8k",
        "gsm8k_test.jsonl",
        1319,
        "integer",
        hub=HubSource(
            "openai/gsm8k",
            "740312add88f781978c0658806c59bc2815b9866",
            "main/test-*.parquet",
            _QUESTION,
            "hash_marks",
        ),
    ),
    Benchmark(
        "gsm8k_train",
        "gsm8k_train.jsonl",
        7473,
        "integer",
        train=True,
        hub=HubSource(
            "openai/gsm8k",
            "740312add88f781978c0658806c59bc2815b9866",
            "main/train-*.parquet",
            _QUESTION,
            "hash_marks",
        ),
    ),
    Benchmark(
        "math500",
        "math500.jsonl",
        500,
        "expression",
        hub=HubSource(
            "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl", _PROBLEM
        ),
    ),
    Benchmark(
        "aime24",
        "aime24.jsonl",
        30,
        "integer",
        hub=HubSource(
            "math-ai/aime24",
            "83a7f387baaa524a8bda0022eac0541582297103",
            "*test*.parquet",
            {"problem": "problem", "answer": "solution"},
            "boxed",
        ),
    ),
    Benchmark(
        "aime25",
        "aime25.jsonl",
        30,
        "integer",
        hub=HubSource("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test.jsonl", _PROBLEM),
    ),
    Benchmark(
        "hmmt_feb_2025",
        "hmmt_feb_2025.jsonl",
        30,
        "expression",
        github=GitHubSource(*_JUSTRL, "data/HMMT25/test.parquet", _PROBLEM),
    ),
    Benchmark(
        "brumo_2025",
        "brumo_2025.jsonl",
        30,
        "expression",
        github=GitHubSource(*_JUSTRL, "data/BRUMO25/test.parquet", _PROBLEM),
    ),
    Benchmark(
        "cmimc_2025",
        "cmimc_2025.jsonl",
        40,
        "expression",
        github=GitHubSource(*_JUSTRL, "data/CMIMC25/test.parquet", _PROBLEM),
    ),
    Benchmark(
        "beyond_aime",
        "beyond_aime.jsonl",
        100,
        "integer",
        github=GitHubSource(
            "eecrazy/SAO",
            "05175c8e5132211c74f9edb0dad51f9f112ca66f",
            "data/bench/beyondaime.jsonl",
            {"problem": "prompt", "answer": "label"},
            suffix="Please reason step by step, and put your final answer within \\boxed{}.",
        ),
    ),
    Benchmark(
        "amc23",
        "amc23.jsonl",
        40,
        "integer",
        hub=HubSource(
            "math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "*test*.parquet", _QUESTION
        ),
    ),
    Benchmark(
        "minerva_math",
        "minerva_math.jsonl",
        272,
        "expression",
        hub=HubSource("math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96", "*test*", _QUESTION),
    ),
    Benchmark(
        "olympiadbench",
        "olympiadbench.jsonl",
        675,
        "expression",
        hub=HubSource(
            "math-ai/olympiadbench",
            "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84",
            "*test*",
            {"problem": "question", "answer": "final_answer"},
            "first",
            rows=674,
        ),
    ),
    Benchmark("countdown", "countdown_test.jsonl", 1024, "countdown"),
    Benchmark("countdown_train", "countdown_train.jsonl", 10229, "countdown", train=True),
    Benchmark(
        "dapo_math_17k",
        "dapo_math_17k_en.jsonl",
        13366,
        "integer",
        train=True,
        hub=HubSource(
            "open-r1/DAPO-Math-17k-Processed",
            "31dd309567e3da778038cc87d868b6097a3ccf68",
            "en/train-*.parquet",
            {"problem": "prompt", "answer": "solution"},
            rows=14116,
        ),
    ),
    Benchmark("math_train", "math_train.jsonl", 7468, "expression", train=True),
    Benchmark("math_lvl3to5_train", "math_lvl3to5_train.jsonl", 8513, "expression", train=True),
    Benchmark("aime_1983_2023_train", "aime_1983_2023_train.jsonl", 969, "integer", train=True),
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
"""Every benchmark, by name."""
