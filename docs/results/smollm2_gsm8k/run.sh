#!/usr/bin/env bash
# SmolLM2-135M-Instruct on GSM8K with a Python interpreter: warm start, SPO killed three times, three evaluations.
# $1: train.jsonl of GSM8K with its solutions (traces are made from them), $2: rows {"problem", "answer"} of the same.
set -euo pipefail
bin="${BIN:-.venv/bin}"
evaluate() { # $1: weights or run, $2: name
  "$bin/agentrl" eval "$1" --data gsm8k --limit 200 --samples 4 --engine vllm --vllm-python .venv-vllm/bin/python --dtype bfloat16 \
    --temperature 0.6 --top-p 0.95 --max-tokens 256 --context-tokens 1024 --max-turns 3 --concurrency 64 --seed 0 --out "evals/$2"
}
"$bin/python" scripts/build_smollm2.py --out models/smollm2
"$bin/python" scripts/make_gsm8k_traces.py "$1" --out gsm8k_traces.jsonl
"$bin/agentrl" sft gsm8k_traces.jsonl --model models/smollm2 --out models/smollm2-sft --limit 2400 --batch 8 --dtype bfloat16 \
  --learning-rate 3e-4 --seed 0
evaluate models/smollm2 base
evaluate models/smollm2-sft sft
"$bin/python" scripts/kill_and_resume.py examples/gsm8k_python.toml --run runs/gsm8k --kills 3 --longest-s 300 --seed 0 -- \
  "--data.train=$2" --run.steps=20
evaluate runs/gsm8k spo
