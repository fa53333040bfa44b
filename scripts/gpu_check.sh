#!/usr/bin/env bash
# What a machine with one NVIDIA GPU shows in at most ten minutes: tests, speed and memory of the learner, a run.
# $1: folder for the results (JSON lines and logs). Needs torch and transformers in `python3`; PYTHON names another.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:?a folder for the results}"
python="${PYTHON:-python3}"
device="${DEVICE:-cuda}"
export PYTHONPATH="$PWD:$PWD/envs:$PWD/sandbox${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
started=$SECONDS
mkdir -p "$out"

note() { echo "== $((SECONDS - started)) s: $*"; }

step() { # a line of benchmarks.learner; what fails is told and the rest goes on
  note "step $*"
  timeout "${LIMIT_S:-120}" "$python" -m benchmarks.learner step --device "$device" --dtype bfloat16 --clock-tokens 0 \
    --repeats 3 --folder "${SCRATCH:-/dev/shm}" "$@" 2>"$out/last.err" | tee -a "$out/learner.jsonl"
  [ "${PIPESTATUS[0]}" = 0 ] || tail -n 5 "$out/last.err"
}

note "$("$python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")')"
case " ${PARTS:-tests learner run} " in *" tests "*)
  note "tests/gpu"
  timeout 240 "$python" -m pytest -q -p no:cacheprovider -W default -o asyncio_mode=auto tests/gpu 2>&1 | tee "$out/tests.log" | tail -n 25
esac
case " ${PARTS:-tests learner run} " in *" learner "*)
  long="--tokens ${TOKENS:-16384} --lengths equal --micro-batch-tokens ${TOKENS:-16384} --batch ${BATCH:-4}"
  # The same work padded, packed, and packed and fused; then larger models and an adapter.
  step --size "${SMALL:-0.6b}" $long --packing off
  step --size "${SMALL:-0.6b}" $long
  step --size "${SMALL:-0.6b}" $long --compile
  step --size "${SMALL:-0.6b}" --tokens 1024 --batch 64 --lengths heavy --micro-batch-tokens 16384 --packing off
  step --size "${SMALL:-0.6b}" --tokens 1024 --batch 64 --lengths heavy --micro-batch-tokens 16384
  step --size "${MIDDLE:-1.7b}" $long --compile --repeats 2
  step --size "${LARGE:-4b}" $long --batch 2 --compile --checkpointing --repeats 2
  step --size "${LARGE:-4b}" $long --batch 2 --checkpointing --rank 16 --repeats 2
  step --size "${LARGE:-4b}" $long --batch 2 --checkpointing --offload --repeats 2
  LIMIT_S=180 step --size "${LARGE:-4b}" $long --batch 2 --compile --checkpointing --rank 16 --repeats 2
  # Last, and not yet run on a GPU: adapters of the smaller models.
  step --size "${SMALL:-0.6b}" $long --rank 16 --repeats 2
  step --size "${MIDDLE:-1.7b}" $long --rank 16 --repeats 2
esac
case " ${PARTS:-tests learner run} " in *" run "*)
  note "a run of SPO: the demo's model and task"
  timeout "${RUN_LIMIT_S:-120}" "$python" -c 'import sys; from agentrl.cli.main import main; sys.exit(main())' demo \
    --model.device="$device" --run.directory="$out/runs" >"$out/demo.log" 2>&1
  echo "exit $?"; tail -n 25 "$out/demo.log"
esac
# Not yet run on a GPU: the same with SmolLM2 (scripts/build_smollm2.py), where MODEL names its folder and GSM8K is at hand.
[ -z "${MODEL:-}" ] || {
  note "a run of SPO: $MODEL on GSM8K, embedded engine, three steps"
  timeout "${RUN_LIMIT_S:-120}" "$python" -c 'import sys; from agentrl.cli.main import main; sys.exit(main())' train \
    examples/gsm8k_python.toml --model.path="$MODEL" --model.device="$device" --run.steps=3 \
    --data.train="${DATA:-gsm8k_train}" --tracker.initial_file= --run.directory="$out/runs" >"$out/smollm2.log" 2>&1
  echo "exit $?"; tail -n 10 "$out/smollm2.log"
}
note "done"
