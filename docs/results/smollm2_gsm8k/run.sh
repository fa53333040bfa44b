#!/usr/bin/env bash
# SmolLM2-135M-Instruct on GSM8K with a Python interpreter: warm start, prompts that can be learned from, SPO, evaluations.
# $1: train.jsonl of GSM8K (github.com/openai/grade-school-math), with its solutions. The test set: AGENTRL_DATA, or a hub.
set -euo pipefail
bin="${BIN:-.venv/bin}"
evaluate() { # $1: weights or run, $2: name, $3: data, $4: seed; more options after these
  "$bin/agentrl" eval "$1" --data "$3" --samples 4 --seed "$4" --engine vllm --vllm-python .venv-vllm/bin/python --dtype bfloat16 \
    --temperature 0.6 --top-p 0.95 --max-tokens 256 --context-tokens 1024 --max-turns 3 --concurrency 64 --out "evals/$2" "${@:5}"
}
"$bin/python" scripts/build_smollm2.py --out models/smollm2
"$bin/python" scripts/make_gsm8k_traces.py "$1" --out gsm8k_traces.jsonl
"$bin/agentrl" sft gsm8k_traces.jsonl --model models/smollm2 --out models/smollm2-sft --limit 2400 --batch 8 --dtype bfloat16 \
  --learning-rate 3e-4 --seed 0
evaluate models/smollm2 base-tool gsm8k 0 --limit 200
evaluate models/smollm2 base-no-tool gsm8k 0 --limit 200 --no-tools
evaluate models/smollm2-sft sft gsm8k 0 --limit 200

# 175 of the 800 shortest problems that the warm start saw: those solved at least once in three tries.
"$bin/python" scripts/choose_prompts.py short "$1" --first 2500 --shortest 800 --out candidates.jsonl
evaluate models/smollm2-sft candidates candidates.jsonl 0 --samples 3 --temperature 0.7 --top-p 1
"$bin/python" scripts/choose_prompts.py solved candidates.jsonl --eval evals/candidates --out learnable.jsonl --rewards learnable_rewards.jsonl

# As it was run: it was told 1,000 steps, and stopped (SIGTERM) after 143; the last command ends it there.
"$bin/agentrl" train examples/gsm8k_python.toml --run.steps=143
evaluate runs/gsm8k spo gsm8k 0 --limit 200
evaluate models/smollm2-sft sft-learnable learnable.jsonl 1
evaluate runs/gsm8k spo-learnable learnable.jsonl 1
"$bin/agentrl" compare evals/sft evals/spo
"$bin/agentrl" compare evals/sft-learnable evals/spo-learnable

# An earlier run: 20 steps from the first 100 problems of the file, killed with SIGKILL three times.
# "$bin/python" scripts/kill_and_resume.py examples/gsm8k_python.toml --run runs/gsm8k20 --kills 3 --longest-s 300 --seed 0 -- \
#   --data.train=gsm8k_train --data.limit=100 --tracker.initial_file= --tracker.initial_rollouts=0 --tracker.clock_tokens=2048 \
#   --learner.learning_rate=2e-5 --run.steps=20
