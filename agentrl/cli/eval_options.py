"""The options of `agentrl eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from agentrl.config import registry
from agentrl.config.ranges import Amount, Count, Number, Seconds, Seed, Share, number
from agentrl.config.settings import Nucleus

EPILOG = """\
examples:
  agentrl eval runs/001 --data gsm8k --samples 4 --limit 200
  agentrl eval models/smollm2 --data gsm8k --samples 4 --limit 200 --no-tools
  agentrl eval Qwen/Qwen3-8B --engine vllm --data aime25 --preset spo-paper --format hermes \\
    --context-tokens 40960
  agentrl eval --endpoint http://localhost:8000/v1 --model NAME --data my.jsonl --map problem=question
  agentrl eval models/smollm2 --data gsm8k,math500 --by subject --samples 4
  agentrl eval --rescore evals/smollm2-math500 --grader strict
  agentrl eval --report evals/smollm2-math500 --by level --export inspect

The same command again goes on where a killed one stopped. Definitions: docs/evaluation.md.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all of them, in groups."""
    _add_task(parser)
    _add_scoring(parser)
    _add_sampling(parser)
    _add_engine(parser)
    _add_endpoint(parser)
    _add_output(parser)


def _add_task(parser: argparse.ArgumentParser) -> None:
    task = parser.add_argument_group("task")
    task.add_argument(
        "--data",
        action="append",
        default=[],
        help="name of a benchmark, a jsonl or parquet file, generated:test:200, or a file of tasks (.toml); "
        "several with commas or given again",
    )
    task.add_argument("--data-dir", default="", help="folder with the files of the benchmarks")
    task.add_argument("--map", default="", metavar="NEW=OLD,...", help="problem=question,answer=final")
    task.add_argument("--limit", type=number(Number), default=0, help="first rows only; 0 takes all")
    task.add_argument("--env", help="a registered name or a file (default: the run's, or math_with_python)")
    task.add_argument(
        "--env-set", action="append", default=[], metavar="KEY=VALUE", help="of the environment"
    )
    task.add_argument("--no-tools", action="store_true", help="hide the tools; one turn")
    task.add_argument("--system", metavar="TEXT", help="system message; empty sends none")
    task.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEMPLATE",
        help="first message, with {problem} and other columns, or @file; given again: variants",
    )
    task.add_argument("--shots", type=number(Number), default=0, metavar="N", help="worked examples")
    task.add_argument("--shots-data", default="", metavar="FILE", help="(default: the training set)")
    task.add_argument("--choices", default="", metavar="COLUMN", help="of multiple choice")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--grader", help="equivalence (default), strict, or file.py:function(answer, gold)")
    scoring.add_argument("--tolerance", type=number(Share), help="relative, between numbers")
    scoring.add_argument(
        "--convention",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the data set's answers: decimal_comma, log_base (docs/grading.md)",
    )
    scoring.add_argument("--by", action="append", default=[], metavar="COLUMN", help="accuracy by its values")
    scoring.add_argument("--rescore", type=Path, metavar="FOLDER", help="score stored results again")
    scoring.add_argument("--report", type=Path, metavar="FOLDER", help="print stored results again")
    scoring.add_argument(
        "--export",
        action="append",
        default=[],
        choices=("inspect", "lm-eval"),
        help="write for others too",
    )
    scoring.add_argument("--judge", default="", metavar="URL", help="endpoint that is asked too")
    scoring.add_argument("--judge-model", default="", metavar="NAME")
    scoring.add_argument("--judge-key-variable", default="OPENAI_API_KEY", metavar="NAME")
    scoring.add_argument(
        "--judge-over",
        choices=("undecided", "wrong"),
        default="undecided",
        help="which verdicts of the grader it may turn to right",
    )
    scoring.add_argument(
        "--judge-share",
        type=number(Share),
        default=0.1,
        help="of decided answers shown to it, to measure agreement (0.1)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling (defaults: the run's [eval] and [rollout], or the preset)")
    sampling.add_argument("--preset", default="", help="a named protocol: spo-paper")
    sampling.add_argument("--samples", type=number(Count), help="episodes per problem (k)")
    sampling.add_argument("--temperature", type=number(Amount))
    sampling.add_argument("--top-p", type=number(Nucleus))
    sampling.add_argument("--top-k", type=number(Number))
    sampling.add_argument("--max-tokens", type=number(Count), help="sampled tokens of one episode")
    sampling.add_argument("--max-turn-tokens", type=number(Number), help="sampled tokens of one message")
    sampling.add_argument("--max-turns", type=number(Number), help="messages of one episode")
    sampling.add_argument(
        "--format",
        type=registry.argument("renderer", "auto"),
        help="how tools are called: auto, code, hermes, or a renderer's file.py:Name",
    )
    sampling.add_argument("--seed", type=number(Seed), default=0)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine and sandbox")
    engine.add_argument("--engine", choices=("transformers", "vllm"), default="")
    engine.add_argument("--concurrency", type=number(Count), default=64, help="episodes in flight")
    engine.add_argument("--device", default="auto", help="of the transformers engine")
    engine.add_argument("--dtype", choices=("auto", "float32", "bfloat16"))
    engine.add_argument("--context-tokens", type=number(Number), help="longest sequence")
    engine.add_argument("--vllm-url", action="append", default=[], help="a running server to attach to")
    engine.add_argument("--vllm-python", default="", help="Python that has vLLM")
    engine.add_argument("--sandbox", choices=("local", "docker", "remote", "broken"))
    engine.add_argument("--sandbox-url", action="append", default=[], help="servers of a remote pool")
    engine.add_argument("--min-level", help="lowest level of isolation accepted")
    engine.add_argument("--allow-unsafe", action="store_true", help="run programs without isolation")
    engine.add_argument("--limit-s", type=number(Seconds), help="longest wall time of one episode")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    endpoint = parser.add_argument_group("endpoint (OpenAI-compatible)")
    endpoint.add_argument("--endpoint", default="", metavar="URL")
    endpoint.add_argument("--model", default="", help="name of the model at the endpoint")
    endpoint.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="environment variable that holds the key (default: OPENAI_API_KEY)",
    )
    endpoint.add_argument("--tool-format", choices=("native", "code"), default="native")
    endpoint.add_argument(
        "--limit-name",
        choices=("max_tokens", "max_completion_tokens"),
        default="max_tokens",
        help="name of the limit on an answer; reasoning models want max_completion_tokens",
    )
    endpoint.add_argument(
        "--no-temperature", action="store_true", help="send none, for models that refuse one"
    )
    endpoint.add_argument(
        "--body",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="""further field of every request: --body 'chat_template_kwargs={"enable_thinking": false}'""",
    )
    endpoint.add_argument(
        "--timeout-s", type=number(Seconds), default=300.0, help="longest wait for one answer (300)"
    )
    endpoint.add_argument("--attempts", type=number(Count), default=6, help="tries of one request (6)")
    endpoint.add_argument("--requests-per-minute", type=number(Number), default=0)
    endpoint.add_argument("--tokens-per-minute", type=number(Number), default=0)
    endpoint.add_argument("--budget-tokens", type=number(Number), default=0)
    endpoint.add_argument(
        "--budget", type=number(Amount), default=0.0, help="money, in the currency of the prices"
    )
    endpoint.add_argument("--price-prompt", type=number(Amount), default=0.0, help="of a million tokens")
    endpoint.add_argument("--price-completion", type=number(Amount), default=0.0, help="of a million tokens")


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="folder of the results (default: evals/NAME-DATA)")
    output.add_argument(
        "--votes", choices=("equivalence", "canonical", "text", "none"), default="equivalence"
    )
    output.add_argument("--retry-failures", action="store_true", help="play failed episodes again")
    output.add_argument("--no-text", action="store_true", help="keep no transcripts")
    output.add_argument("--json", action="store_true", help="print the summary instead of the table")
    output.add_argument("--quiet", action="store_true", help="no live progress")
