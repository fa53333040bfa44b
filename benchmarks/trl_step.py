"""One step of TRL's GRPOTrainer on given completions; `benchmarks.learner against-trl` calls it with TRL's Python.

    PYTHON -m benchmarks.trl_step MODEL WORK.json --micro-batch 8

The trainer is whole: only `rollout_func` hands it the completions of WORK.json in place of generating some. Activations
are not recomputed, weights are in pure bfloat16 (no autocast), and the optimizer is torch's fused AdamW: the
fastest that it has on a CPU. TRL scores every position of a row there; with `--compact` only those under the loss, as on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def make_trainer(options: argparse.Namespace, work: list[dict[str, Any]], folder: str) -> Any:
    """A trainer that takes `options.steps` steps over the same completions."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import utils

    torch.set_num_threads(1)
    if options.compact:
        utils._use_triton = lambda _: True

    def given(prompts: list[str], _: Any) -> dict[str, Any]:
        assert len(prompts) == len(work)
        return {
            "prompt_ids": [one["prompt"] for one in work],
            "completion_ids": [one["completion"] for one in work],
            "logprobs": None,
        }

    def rewards(completions: list[str], **_: Any) -> list[float]:
        return [one["reward"] for one in work[: len(completions)]]

    parts = len(work) // options.micro_batch
    settings = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=parts,
        steps_per_generation=parts,
        num_generations=options.group,
        max_completion_length=max(len(one["completion"]) for one in work),
        max_steps=options.steps,
        learning_rate=1e-6,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        reward_funcs=rewards,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [f"prompt {at}" for at in range(len(work))]}),
        rollout_func=given,
    )


def main() -> None:
    """Take the steps and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path)
    parser.add_argument("--micro-batch", type=int, default=8, help="completions of one pass")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--compact", action="store_true")
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    work = json.loads(options.work.read_text())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, work, folder)
        from transformers import TrainerCallback

        seconds: list[float] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                seconds.append(-time.process_time())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                seconds[-1] += time.process_time()

        trainer.add_callback(Clock())
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"cpu_s": seconds, "peak_gib": round(peak, 2)}))


if __name__ == "__main__":
    main()
