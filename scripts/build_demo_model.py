"""Build the demo's model: a tokenizer, and a warm start on written traces.

A transformer of about a million parameters learns two things from written text: that a sum is answered
by a boxed number (in four of five traces a random one), or by a program whose output is boxed. It has
never seen a reward. Takes a few minutes on one core::

    python scripts/build_demo_model.py [--out agentrl/demo]

Writes `model/`, standard Hugging Face files. The traces are about training problems; the held-out ones
of the demo are never among them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from agentrl.config.settings import LossSettings, ModelSettings
from agentrl.learner.learner import Learner
from agentrl.learner.metrics import StepMetrics
from agentrl.training.rendered_traces import render_traces, written_message
from agentrl.training.sft import OnStep, WarmLearnerSettings, WarmStartSettings, learn
from agentrl.training.traces import Trace, make_trace
from agentrl.weights.model_files import WARM_START
from agentrl_envs.arithmetic import Arithmetic, arithmetic_rows

TOOL_SHARE = 0.2
"""Of the mixture."""
ERROR_SHARE = 0.1
"""Of the programs in the traces: the interpreter answers with an error."""

ERRORS = (
    "Traceback (most recent call last):\n  File \"<cell 1>\", line 1, in <module>\nNameError: name 'x'",
    '  File "<cell 1>", line 1\n    print(1*)\n            ^\nSyntaxError: invalid syntax',
    'Traceback (most recent call last):\n  File "<cell 1>", line 1, in <module>\nRuntimeError: broken',
    "MemoryError",
    "TimeoutError: no code is run",
)
"""What an interpreter may say instead of a number; the model then guesses."""


def trace(row: dict[str, Any], rng: random.Random, tool_share: float) -> Trace:
    """One written conversation about a row."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": row["problem"]}]
    boxed = row["answer"]
    if rng.random() < tool_share:
        broken = rng.random() < ERROR_SHARE
        output = rng.choice(ERRORS) if broken else row["answer"]
        code = {"name": "python", "arguments": json.dumps({"code": f"print({row['problem']})"})}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": code}]},
            {"role": "tool", "content": output},
        ]
        boxed = guess(row["answer"], rng) if broken else row["answer"]
    else:
        boxed = guess(row["answer"], rng)
    messages.append({"role": "assistant", "content": f"\\boxed{{{boxed}}}"})
    tools = [spec.as_openai() for spec in Arithmetic.tool_specs()]
    return make_trace({"messages": messages, "tools": tools})


def guess(answer: str, rng: random.Random) -> str:
    """A random number as long as the answer; right about once in ten thousand times."""
    sign, digits = ("-", answer[1:]) if answer.startswith("-") else ("", answer)
    first = rng.choice("123456789")
    return sign + first + "".join(rng.choice("0123456789") for _ in digits[1:])


def text_of_trace(one: Trace) -> list[str]:
    """The pieces of text that are encoded one by one."""
    pieces: list[str] = []
    for message in one.messages:
        if message["role"] == "assistant":
            pieces.append(written_message(message, "code"))
        elif message["role"] == "tool":
            pieces.append(f"<interpreter>\n{message['content']}\n</interpreter>\n\n")
        else:
            pieces.append(f"{message['content']}\n")
    return pieces


def build_tokenizer(traces: list[Trace]) -> Any:
    """Byte-level BPE: digits, operators and brackets stay single; the marks of the format are one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9+*(){}-]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|pad|>"],
        show_progress=False,
    )
    texts = [text for one in traces for text in text_of_trace(one)]
    tokenizer.train_from_iterator(texts + list(ERRORS) * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=512
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """A new Qwen3 of about 1.2 million parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def report(phase: str) -> OnStep:
    """Prints every 50th step."""

    def on_step(step: int, steps: int, metrics: StepMetrics) -> None:
        if step % 50 == 0 or step == steps:
            print(f"{phase} step {step}/{steps} loss {metrics.loss:.4f}", flush=True)

    return on_step


def main() -> None:
    """Build and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "agentrl" / "demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--copy-steps", type=int, default=250, help="steps on tool traces only")
    parser.add_argument("--mixed-steps", type=int, default=350, help="steps on the mixture")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    batch, rng = 64, random.Random(options.seed)
    steps = options.copy_steps + options.mixed_steps
    rows = arithmetic_rows(steps * batch, seed=options.seed + 1000, split="train")
    copying = [trace(row, rng, 1.0) for row in rows[: options.copy_steps * batch]]
    mixed = [trace(row, rng, TOOL_SHARE) for row in rows[options.copy_steps * batch :]]
    tokenizer = build_tokenizer(copying[:500] + mixed[:500])
    model = build_model(tokenizer, options.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    folder = options.out / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    once = {"batch": batch, "seed": options.seed}
    phases = [
        ("copying", copying, 2e-3, WarmStartSettings(final_share=0.5, warmup_share=0.2, **once)),
        ("mixture", mixed, 1e-3, WarmStartSettings(final_share=0.02, **once)),
    ]
    for name, traces, rate, settings in phases:
        rendered = render_traces(traces, tokenizer, "code", max_tokens=512)
        chosen = WarmLearnerSettings(learning_rate=rate)
        learner = Learner(ModelSettings(str(folder)), chosen, LossSettings("cross_entropy"))
        outcome = learn(learner, rendered.segments, settings, rate, report(name))
        print(f"{name}: held-out loss {outcome['loss_first']:.4f} -> {outcome['loss_last']:.4f} nats a token")
        print(f"{name}: {outcome['cpu_s']:.0f} CPU-seconds", flush=True)
        if name == "mixture":
            learner.model.to(torch.float16)
        learner.save_weights(folder)
    (options.out / "model" / WARM_START).write_text('{"format": "code"}\n')


if __name__ == "__main__":
    main()
