#!/usr/bin/env bash
# SmolLM2-135M-Instruct on word problems: checkpoint, a warm start of 80 traces, SPO and GRPO at equal tokens.
# usage, in the root of the repository: docs/results/reference/run.sh [seed]
set -euo pipefail
bin="$(realpath "${BIN:-.venv/bin}")" here="$(dirname "$(realpath "$0")")" seed="${1:-0}"
test -e models/smollm2 || "$bin/python" scripts/build_smollm2.py --out models/smollm2
if ! test -e models/smollm2-words; then
  "$bin/python" "$here/word_problems.py" word_traces.jsonl 80
  "$bin/agentrl" sft word_traces.jsonl --model models/smollm2 --out models/smollm2-words --batch 8 --dtype bfloat16 \
    --learning-rate 2e-4 --seed 0
fi
"$bin/agentrl" train "$here/word_problems.toml" --name "words-spo-$seed" --seed "$seed"
"$bin/agentrl" train "$here/word_problems.toml" --name "words-grpo-$seed" --seed "$seed" \
  --estimator.kind=grpo --estimator.group_size=8 --sampler.kind=uniform
