"""Writes stored results in the forms that other tools read: Inspect's log, lm-eval's results and samples.

Inspect: `inspect view --log-dir FOLDER/inspect` shows messages, tool calls, scores and errors.
lm-eval: `results_*.json` and `samples_*.jsonl`, as `lm_eval --log_samples` writes them. Knows nothing of how
the results came about.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentrl.evaluation.rescoring import Stored
from agentrl.evaluation.results import Record, golds_of
from agentrl.storage.durable import write_file


def export(folder: Path, kind: str) -> list[Path]:
    """Write the results of a folder beside them in another form; returns the files.

    Args:
        folder: of an evaluation.
        kind: one of `KINDS`.

    Raises:
        DataError: the folder holds no evaluation.
    """
    stored = Stored.read(folder)
    files = KINDS[kind](stored, time.strftime("%Y-%m-%dT%H-%M-%S"))
    for name, text in files.items():
        write_file(folder / name, text.encode("utf-8", "replace"), "export")
    return [folder / name for name in files]


def _task(stored: Stored) -> str:
    return str(stored.summary.get("task") or stored.plan["data"])


def _model(stored: Stored) -> str:
    policy = stored.plan["policy"]
    return str(policy.get("model") or policy.get("weights") or policy.get("script") or policy["kind"])


def _file_name(task: str) -> str:
    return re.sub(r"[^\w.-]", "-", task)


def _problem(row: Mapping[str, Any]) -> str:
    return str(row.get("problem", json.dumps(row, ensure_ascii=False, default=str)))


# ---- Inspect -----------------------------------------------------------------------------------------------


def _inspect(stored: Stored, now: str) -> dict[str, str]:
    summary = stored.summary
    created = str(summary.get("finished") or time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()))
    created = created if created[-3] == ":" else f"{created[:-2]}:{created[-2:]}"
    kept = [record for record in stored.records if not record.failed]
    entry = summary.get("table", {}).get("avg@k")
    metrics = {} if entry is None else {"accuracy": {"name": "accuracy", "value": entry["value"]}}
    if entry is not None:
        interval = entry["new_problems"]
        deviation = (interval["high"] - interval["low"]) / 3.92
        metrics["stderr"] = {"name": "stderr", "value": deviation, "metadata": dict(interval)}
    log = {
        "version": 2,
        "status": "success" if summary.get("complete", True) else "cancelled",
        "eval": {
            "created": created,
            "task": _task(stored),
            "dataset": {
                "name": str(stored.plan["data"]),
                "samples": len(stored.rows),
                "sample_ids": list(stored.rows),
            },
            "model": _model(stored),
            "config": {"epochs": max((record.draw for record in stored.records), default=0) + 1},
            "packages": dict(summary.get("versions", {})),
            "metadata": {"environment": stored.plan["environment"], "seed": stored.plan["seed"]},
        },
        "results": {
            "total_samples": len(stored.records),
            "completed_samples": len(kept),
            "scores": [
                {
                    "name": "reward",
                    "scorer": str(stored.plan.get("grader", "equivalence")),
                    "scored_samples": len(kept),
                    "unscored_samples": len(stored.records) - len(kept),
                    "metrics": metrics,
                }
            ],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": [
            _inspect_sample(record, stored.rows[record.problem], _model(stored)) for record in stored.records
        ],
    }
    # The viewer lists files whose names begin with a time.
    name = f"{created.replace(':', '-')}_{_file_name(_task(stored))}_agentrl.json"
    return {f"inspect/{name}": json.dumps(log, ensure_ascii=False)}


def _inspect_sample(record: Record, row: Mapping[str, Any], model: str) -> dict[str, Any]:
    golds = golds_of(row)
    sample: dict[str, Any] = {
        "id": record.problem,
        "epoch": record.draw + 1,
        "input": _problem(row),
        "target": list(golds) if isinstance(golds, tuple) else golds or "",
        "messages": [{"role": "user", "content": _problem(row)}, *_messages(record)],
        "output": {
            "model": model,
            "choices": [
                {
                    "message": {"role": "assistant", "content": record.final_text or ""},
                    "stop_reason": "max_tokens" if record.truncated else "stop",
                }
            ],
            "usage": {
                "input_tokens": record.prompt_tokens,
                "output_tokens": record.sampled_tokens,
                "total_tokens": record.prompt_tokens + record.sampled_tokens,
            },
        },
        "metadata": {
            "seed": record.seed,
            "stop_reason": record.stop_reason,
            "attempts": record.attempts,
            "judge": record.judge,
        },
        "total_time": record.seconds,
    }
    if record.failure is not None:
        boundary, error, message = record.failure
        text = f"{boundary}: {error}: {message}"
        return sample | {"error": {"message": text, "traceback": text, "traceback_ansi": text}}
    score = {
        "value": record.score,
        "answer": record.stated or "",
        "explanation": record.verdict or "",
        "metadata": {"parts": dict(record.parts), "strict": record.strict, "lenient": record.lenient},
    }
    return sample | {"scores": {"reward": score}}


def _messages(record: Record) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(record.transcript):
        content: Any = turn["text"]
        if turn.get("reasoning"):
            content = [
                {"type": "reasoning", "reasoning": turn["reasoning"]},
                {"type": "text", "text": turn["text"]},
            ]
        calls = [(f"call_{number}_{place}", call) for place, call in enumerate(turn["tool_calls"])]
        message = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": call["name"],
                    "arguments": call["arguments"] if isinstance(call["arguments"], dict) else {},
                }
                for call_id, call in calls
            ]
        messages.append(message)
        messages += [
            {
                "role": "tool",
                "tool_call_id": name,
                "function": call["name"],
                "content": str(call["result"]),
            }
            for name, call in calls
        ]
    return messages


# ---- lm-eval -----------------------------------------------------------------------------------------------


def _lm_eval(stored: Stored, now: str) -> dict[str, str]:
    task, table = _task(stored), stored.summary.get("table", {})
    names = {"avg@k": "exact_match,none", "avg@k_lenient": "exact_match,flexible-extract"}
    metrics: dict[str, Any] = {"alias": task}
    for key, metric in names.items():
        if key in table:
            low, high = (table[key]["new_problems"][end] for end in ("low", "high"))
            metrics[metric] = table[key]["value"]
            metrics[metric.replace(",", "_stderr,")] = (high - low) / 3.92
    shots = int(stored.plan.get("shots", 0))
    problems = len({record.problem for record in stored.records})
    results = {
        "results": {task: metrics},
        "configs": {task: {"task": task, "num_fewshot": shots, "metadata": {"version": 1.0}}},
        "versions": {task: 1.0},
        "n-shot": {task: shots},
        "higher_is_better": {task: {"exact_match": True}},
        "n-samples": {task: {"original": problems, "effective": problems}},
        "config": {"model": stored.plan["policy"]["kind"], "model_args": _model(stored)},
        "model_name": _model(stored),
    }
    place = {problem: index for index, problem in enumerate(stored.rows)}
    lines = [
        json.dumps(
            _lm_eval_sample(record, stored.rows[record.problem], place[record.problem]), ensure_ascii=False
        )
        for record in stored.records
        if not record.failed
    ]
    return {
        f"results_{now}.json": json.dumps(results, indent=2, ensure_ascii=False),
        f"samples_{_file_name(task)}_{now}.jsonl": "".join(line + "\n" for line in lines),
    }


def _lm_eval_sample(record: Record, row: Mapping[str, Any], index: int) -> dict[str, Any]:
    golds = golds_of(row)
    text = record.final_text or ""
    return {
        "doc_id": index,
        "doc": json.loads(json.dumps(row, default=str)),
        "target": golds[0] if isinstance(golds, tuple) else golds,
        "arguments": {"gen_args_0": {"arg_0": _problem(row), "arg_1": {}}},
        "resps": [[text]],
        "filtered_resps": [record.stated or ""],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": float(record.right),
        "draw": record.draw,
    }


KINDS: dict[str, Callable[[Stored, str], dict[str, str]]] = {"inspect": _inspect, "lm-eval": _lm_eval}
"""Forms of an export, by name."""
