"""Writes docs/algorithms/ from what the parts say of themselves (`make docs`)."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from agentrl.config import registry
from agentrl.config.presets import ALGORITHMS
from agentrl.config.tree import describe_type, own_hints
from agentrl_envs import load_env

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "loss": "Losses",
    "estimator": "Estimators",
    "shaper": "Shapers",
    "sampler": "Samplers",
    "tracker": "Trackers",
    "aggregator": "Aggregators",
    "controller": "Controllers",
}
MADE = "This page is made by `scripts/algorithm_pages.py`; a test keeps it current."

WHERE = {
    "PPO's clip, clipped higher, dual clip": "`loss.kind=clipped`: `loss.clip_low`, `loss.clip_high`, `loss.dual_clip`",
    "decoupled: behaviour, proximal, current": "`loss.kind=clipped`: `loss.importance`; others that clip: `loss.importance_max`",
    "CISPO; MinPRO; GSPO; BPO; REAL; TBRM": "`loss.kind=cispo`, `loss.kind=minpro`, `loss.kind=gspo`, `loss.kind=bpo`, "
    "`loss.kind=real`, `loss.kind=tbrm`",
    "importance weights of tokens and sequences (geometric mean, product), truncated or masked at one end or both": "`loss.importance_level`, "
    "`loss.importance`, `loss.importance_min`, `loss.importance_max`",
    "dropping by age": "`stream.stale_policy`, `stream.staleness`; `controller.kind=effective_share`",
    "mean over tokens, over sequences, over a constant": "`aggregator.kind=tokens`, `aggregator.kind=sequences`, `aggregator.kind=constant`",
    "KL as k1, k2, k3, in the loss or in the reward; adaptive": "`loss.kl`, `loss.kl_coefficient`; `controller.kind=target_kl`, "
    "`controller.kind=accuracy_kl` (FG-ExPO's AKL)",
    "entropy bonus, adaptive": "`loss.entropy_coefficient`; `controller.kind=target_entropy`",
    "DAPO's soft penalty for length": "`shaper.kind=soft_length`",
    "learning-rate schedules": "`learner.schedule`, `learner.warmup_steps`",
    "a teacher's KL of each token, by weights or a vLLM server": "`loss.kind=distillation`, `loss.teacher`",
    "score centering": "`loss.kind=score_centering`, `loss.behaviour_top_k`",
    "GDPO; DGPO (DGAE, DQW); BNPO": "`estimator.kind=gdpo`, `estimator.kind=gdpo_value`, `estimator.kind=dgpo`, "
    "`estimator.kind=dgpo_value`, `estimator.kind=bnpo`",
    "ASPO (early calls); OTC": "`estimator.kind=aspo`; `shaper.kind=otc`",
    "FG-ExPO's curriculum (GCS)": "`sampler.kind=gaussian`",
    "D3S, of episodes and of tokens": "`estimator.kind=d3s`, `loss.kind=d3s_tokens`",
    "HAPO's clip; GTPO's entropy filter": "`loss.kind=hapo`, `loss.kind=gtpo`",
    "PIPO's gate": "`controller.kind=improvement_gate`",
    "KRPO with the prior mean": "`tracker.kind=kalman`",
    "Lion; StoSignSGD": "`learner.optimizer`",
    "MC-GRPO; CAPO (calibration); NFT; EMPO; ADORA; RiskPO; R2VPO": "`mc_grpo.py`, `capo_calibration.py`, `nft.py`, "
    "`empo.py`, `adora.py`, `risk.py`, `ratio_variance.py`",
    "POISE's prompt-only prior": "`poise.py`",
    "GHPO's and Scaf-GRPO's hints": "`hints.py`: each level is a prompt of its own, so it has a value of its own",
    "DHPO; SSPO; BRPO": "`sentence_ratio.py`, `anytime.py`",
    "right answers a call, calls a right answer, tokens to the first call, share of failing calls, entropy, parts of the reward": "every "
    "row of a step: `right_per_call`, `calls_per_right`, `first_call_tokens_mean`, `tool_error_share`, `entropy`, `reward_parts`",
    "pass@k, AUC of the policy's own confidence": "every evaluation: `pass@k`, `auc`",
}
"""Of the literature around SPO, what is here and where."""

NOT_SHIPPED = {
    "ETR (2601.03723), FiberPO, WS-GRPO": "formula not found",
    "COPO (2508.04138)": "global reward and constants not found",
    "DPPO pruning (2603.04135)": "rule of keeping not found",
    "GRPO-VPS (2604.20659)": "weight of a segment's gain not found",
    "ProGRPO (2602.05281)": "its alpha was not found (looked for twice), and it needs log-probabilities of the prompt",
    "EARL": "threshold of its gate not found",
    "SRPO (2604.02288)": "weights of its distillation not found",
    "SSL (2601.22491)": "tiers for maths not found",
    "MDPO, INPO, BVPO, PFPO": "not read in full",
    "POISE (2605.07579) with features of the answer": "they bias the baseline of one rollout, and pairs were not made; its layer and PCA "
    "were not found; of the prompt alone: `poise.py`",
    "TRPA (2504.04524), CoPG (2406.19185)": "formulas known; losses of pairs of completions of a prompt",
    "CAPO (curvature, 2510.00819)": "closed forms of its curvature not found",
    "T-PPO, AsyPPO, POAD": "need a critic",
    "FAPO, CAPO (GenPRM)": "need a judge's server",
    "GTPO's conflict tokens": "compare completions of one prompt token by token; its entropy filter is the loss `gtpo`",
}


def part_lines(part: registry.Declaration) -> list[str]:
    """A part: its text, what it requires, its settings."""
    lines = [f"## `{part.kind}`", "", *paragraphs(inspect.cleandoc(part.text))]
    for name in part.requires:
        lines += [f"Requires {name}: {registry.REQUIREMENTS[name]}.", ""]
    if part.settings is not None:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        defaults = part.defaults()
        lines += [
            f"| `{part.family}.{name}` | {describe_type(hint)} | `{defaults.get(name, 'needed')!r}` | "
            f"{part.texts.get(name, '').replace('|', chr(92) + '|')} |"
            for name, hint in own_hints(part).items()
        ]
        lines.append("")
    return lines


def paragraphs(text: str) -> list[str]:
    """Each paragraph on a line, with a line between."""
    lines: list[str] = []
    for one in text.split("\n\n"):
        flat = " ".join(one.split()).replace("|", "\\|")
        lines += [flat, ""]
    return lines


def family_page(family: str, title: str) -> str:
    """All parts of a family."""
    lines = [f"# {title}", "", f"What `{family}.kind` may name. {MADE}", ""]
    for kind in registry.BUILT_IN[family]:
        lines += part_lines(registry.declared(family, kind))
    return "\n".join(lines)


def presets_page() -> str:
    """What each preset stands for."""
    lines = ["# Presets", "", f'`--preset NAME`, or `preset = "NAME"` at the top of the file. {MADE}', ""]
    lines += ["| preset | settings | source |", "|---|---|---|"]
    for name, preset in ALGORITHMS.items():
        shown = ", ".join(f"`{key}={value}`" for key, value in preset.values.items())
        lines.append(f"| `{name}` | {shown} | {preset.source} |")
    return "\n".join([*lines, ""])


def methods_page() -> str:
    """Methods that are files."""
    lines = ["# Methods as files", "", f"Files of `examples/methods`. {MADE}", ""]
    for path in sorted((ROOT / "examples" / "methods").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        head = inspect.cleandoc(text.split('"""')[1])
        lines += [f"## `{path.name}`", "", *method_head(head)]
        for family, name in re.findall(r"--(\w+)\.kind examples/methods/\S+?:(\w+)", head):
            part = registry.declared(family, f"{path}:{name}")
            lines += [f"**{family} `{name}`.** " + paragraphs(inspect.cleandoc(part.text))[0], ""]
            lines += paragraphs(inspect.cleandoc(part.text))[2:]
        for name in re.findall(r"--env\.name examples/methods/\S+?:(\w+)", head):
            text = inspect.cleandoc(load_env(f"{path}:{name}").__doc__ or "")
            lines += [f"**environment `{name}`.** " + paragraphs(text)[0], ""]
    return "\n".join([*lines, ""])


def method_head(head: str) -> list[str]:
    """The text of a file, its commands as code."""
    lines: list[str] = []
    for one in head.split("\n\n"):
        if one.startswith(("agentrl ", "python ")):
            lines += ["```bash", *one.splitlines(), "```", ""]
        else:
            lines += paragraphs(one)
    return lines


def pages() -> dict[str, str]:
    """Each page by its name."""
    made = {f"{family}.md": family_page(family, title) for family, title in FAMILIES.items()}
    made |= {"presets.md": presets_page(), "methods.md": methods_page()}
    index = ["# Algorithms", "", f"{MADE} How a part of your own is written: [parts](../parts.md).", ""]
    index += [f"- [{name.removesuffix('.md')}]({name})" for name in made]
    index += [
        "",
        "## What is here, and where",
        "",
        "| what | setting, file of `examples/methods`, or metric |",
        "|---|---|",
    ]
    index += [f"| {what} | {where} |" for what, where in WHERE.items()]
    index += [f"| {name} | not shipped: {why} |" for name, why in NOT_SHIPPED.items()]
    return made | {"README.md": "\n".join([*index, ""])}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "algorithms"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
