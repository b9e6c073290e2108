# python recipes/best_of_n.py                                         the small world, no network, no GPU
# python recipes/best_of_n.py --model_name_or_path Qwen/Qwen3-1.7B --dataset prompts.jsonl --reward_model JUDGE
# python recipes/best_of_n.py --samples runs/best_of_n/samples.jsonl --reward bradley_terry --reward_model RM
"""Best-of-n: sample N responses a prompt, pick the best by any reward, and say what n buys.

Writes into --output_dir: samples.jsonl (continued where a run stopped), picks.jsonl (best of N with its score),
sft.jsonl (the picks as prompt and completion), curve.csv, curve.png and results.json.
"""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from policy_run import in_small_world, load_tokenizer, prepare_small_world, small_world_paths
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from reward.aggregation import bradley_terry
from reward.backends import PairwiseReward
from reward.config import RewardArguments, Run, build_reward, check_reward, reward_help
from reward.errors import DataError, SettingsError
from reward.metrics import mean_interval
from reward.pairing import Result
from reward.small_world import GoldReward
from reward.training.arguments import DataArguments
from reward.training.data import read_prompts
from reward.types import Group, Pair, RewardBackend, as_prompt
from rlhf.best_of_n import (
    kl_upper_bound,
    knockout,
    linear_scan,
    pairwise_curve,
    pointwise_curve,
    win_share,
)
from rlhf.launch import explicit_flags, parse_args, run_main, start, write_run_record
from rlhf.prompts import fit_prompts


@dataclass
class BestOfNArguments:
    """Best-of-n sampling."""

    output_dir: str = field(default="runs/best_of_n", metadata={"help": "Where everything is written."})
    num_samples: int = field(default=16, metadata={"help": "N: samples of each prompt."})
    samples: str | None = field(
        default=None, metadata={"help": "Read samples from this file (prompt, responses) instead of a policy."}
    )
    pick: str = field(
        default="argmax",
        metadata={
            "help": "argmax of the scores (default), or from all comparisons: linear (GRAM's scan), knockout, "
            "bradley_terry."
        },
    )
    gold_reward: str | None = field(
        default=None, metadata={"help": "A second reward that is only measured: FILE.yaml or package.module:factory."}
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Use the first so many prompts."})
    batch_size: int = field(default=16, metadata={"help": "Prompts that are sampled and scored at a time."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest response in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampling; the KL bound is to this distribution."})
    seed: int = field(default=0, metadata={"help": "Of sampling and of random subsets."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that the policy's hub page brings."}
    )

    def __post_init__(self):
        if self.pick not in PICKS:
            raise SettingsError(f"--pick {self.pick}: choose one of {', '.join(PICKS)}")
        for name in ("num_samples", "batch_size", "max_completion_length"):
            if getattr(self, name) < 1:
                raise SettingsError(f"--{name} {getattr(self, name)}: give 1 or more")


def bradley_terry_pick(wins: np.ndarray) -> int:
    """The strongest by Bradley-Terry over all comparisons."""
    size = len(wins)
    results = [Result(i, j, wins[i, j]) for i in range(size) for j in range(i + 1, size)]
    strength = bradley_terry(size, results).probability
    return 0 if np.isnan(strength).all() else int(np.nanargmax(strength))


PICKS = {"argmax": None, "linear": linear_scan, "knockout": knockout, "bradley_terry": bradley_terry_pick}


def main() -> None:
    start()
    small_world = in_small_world() and "samples" not in explicit_flags()
    defaults = small_world_paths("test_prompts.jsonl") | {"max_completion_length": 40} if small_world else {}
    args, data, reward_args, model_args = parse_args(
        (BestOfNArguments, DataArguments, RewardArguments, ModelConfig), defaults=defaults
    )
    if reward_args.reward == "help":
        print(reward_help())
        return
    if small_world:
        prepare_small_world(reward_args)

    # Everything that can be refused is refused before any weights load.
    run = Run("round_robin" if args.num_samples > 1 else "reference", args.num_samples)
    if check_reward(reward_args, run) is not None:
        raise SettingsError(
            "--reward_pairing reference measures against a response that best-of-n does not have: let the samples meet "
            "each other (--reward_pairing round_robin), or give them as --samples to a reward that scores alone"
        )
    gold_args = None if args.gold_reward is None else RewardArguments(reward=args.gold_reward)
    if gold_args is not None:
        check_reward(gold_args, run)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    groups = read_samples(Path(args.samples), args) if args.samples else sample(args, data, model_args, out)

    reward = build_reward(reward_args, run)
    gold = build_reward(gold_args, run).backend if gold_args else GoldReward() if small_world else None
    scores = score(reward.backend, groups, args.batch_size, "scoring")
    worth = {"proxy": scores}
    if gold is not None:
        worth["gold"] = score(gold, groups, args.batch_size, "gold")
    wins = None if args.pick == "argmax" else all_comparisons(reward.versus, groups, args.batch_size)
    rows = curve(scores, worth, wins, args)
    write(out, groups, scores, wins, rows, args)
    draw(rows, list(worth), out / "curve.png", args)
    write_run_record(args.output_dir, (args, data, reward_args, model_args), {})
    for row in rows:
        print(
            "  ".join(
                f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    print(f"{out}/picks.jsonl   {out}/sft.jsonl   {out}/curve.csv   {out}/curve.png   {out}/results.json")


# --- samples ----------------------------------------------------------------------------------------------------------


def read_samples(path: Path, args: BestOfNArguments) -> list[Group]:
    """Raises DataError: a row without a prompt or with fewer than N responses."""
    groups = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        responses = row.get("responses")
        if "prompt" not in row or not isinstance(responses, list) or len(responses) < args.num_samples:
            found = len(responses) if isinstance(responses, list) else "no"
            raise DataError(
                f"{path}, row {number}: it needs `prompt` and --num_samples {args.num_samples} `responses`, and has "
                f"{found}: lower --num_samples, or sample more"
            )
        groups.append(Group(as_prompt(row["prompt"]), tuple(responses[: args.num_samples])))
    return groups[: args.max_prompts]


@torch.no_grad()
def sample(args: BestOfNArguments, data: DataArguments, model_args: ModelConfig, out: Path) -> list[Group]:
    """N responses a prompt from the policy; what samples.jsonl holds already is not sampled again."""
    tokenizer = load_tokenizer(model_args, args.trust_remote_code)
    rows = data.read_train(read_prompts, args.seed)[: args.max_prompts]
    rows = fit_prompts(rows, tokenizer, max_prompt_length=2**20, source=", ".join(data.dataset)).rows
    path = out / "samples.jsonl"
    done = read_samples(path, args) if path.exists() else []
    for number, (group, row) in enumerate(zip(done, rows, strict=False), 1):
        if group.prompt != as_prompt(row["prompt"]):
            raise DataError(f"{path}, row {number} answers another prompt than this run's: give another --output_dir")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype or "float32",
        trust_remote_code=args.trust_remote_code,
    ).to(device)
    with path.open("a", encoding="utf-8") as file, tqdm(total=len(rows), initial=len(done), desc="sampling") as bar:
        for start_at in range(len(done), len(rows), args.batch_size):
            batch = [row["prompt"] for row in rows[start_at : start_at + args.batch_size]]
            torch.manual_seed(args.seed + start_at)  # a continued run samples what an unbroken one would
            texts = [
                prompt
                if isinstance(prompt, str)
                else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
                for prompt in batch
            ]
            plain = isinstance(batch[0], str)
            inputs = tokenizer(texts, padding=True, add_special_tokens=plain, return_tensors="pt").to(device)
            ids = policy.generate(
                **inputs,
                do_sample=True,
                temperature=args.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=args.max_completion_length,
                num_return_sequences=args.num_samples,
            )
            responses = tokenizer.batch_decode(ids[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)
            for index, prompt in enumerate(batch):
                own = responses[index * args.num_samples : (index + 1) * args.num_samples]
                file.write(json.dumps({"prompt": prompt, "responses": own}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))
    return read_samples(path, args)[: len(rows)]


# --- scores and comparisons -------------------------------------------------------------------------------------------


def score(backend: RewardBackend, groups: list[Group], batch_size: int, what: str) -> np.ndarray:
    """(P, N), NaN where there is no score."""
    rows = []
    for start_at in tqdm(range(0, len(groups), batch_size), desc=what):
        rows += [result.scores for result in backend.score(groups[start_at : start_at + batch_size])]
    return np.array(rows, dtype=float)


def all_comparisons(versus: RewardBackend, groups: list[Group], batch_size: int) -> np.ndarray:
    """P(i beats j) of every two samples, (P, N, N), NaN without a verdict; with --reward_cache nothing is asked twice.

    Raises SettingsError: the reward compares nothing.
    """
    if not isinstance(versus, PairwiseReward):
        raise SettingsError(f"--pick: {versus.name!r} scores responses one by one: choose --pick argmax")
    size = len(groups[0].responses)
    wins = np.full((len(groups), size, size), 0.5)
    upper = [(i, j) for i in range(size) for j in range(i + 1, size)]
    for start_at in tqdm(range(0, len(groups), batch_size), desc="comparing"):
        batch = groups[start_at : start_at + batch_size]
        pairs = [Pair(group.prompt, group.responses[i], group.responses[j]) for group in batch for i, j in upper]
        judgments = iter(versus.judge.compare(pairs))
        for position in range(start_at, start_at + len(batch)):
            for i, j in upper:
                wins[position, i, j] = next(judgments).prob_a
                wins[position, j, i] = 1 - wins[position, i, j]
    return wins


def curve(
    scores: np.ndarray, worth: dict[str, np.ndarray], wins: np.ndarray | None, args: BestOfNArguments
) -> list[dict]:
    """A row for n = 1, 2, 4 … N: KL bound, proxy, gold and win rate against n = 1 with 95 % intervals over prompts."""
    measured = {**worth, "win_rate": win_share(worth.get("gold", worth["proxy"]))}
    sizes = sorted(
        {2**k for k in range(args.num_samples.bit_length()) if 2**k <= args.num_samples} | {args.num_samples}
    )
    rows = []
    for n in sizes:
        row: dict = {"n": n, "kl_upper_bound": kl_upper_bound(n)}
        for name, values in measured.items():
            if wins is None:
                of_prompts, errors = pointwise_curve(scores, values, n), np.zeros(len(scores))
            else:
                of_prompts, errors = pairwise_curve(wins, values, n, PICKS[args.pick], seed=args.seed)
            mean, low, high = mean_interval(of_prompts)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
            row[f"{name}_monte_carlo_error"] = float(np.sqrt(np.nansum(errors**2)) / len(errors))
        rows.append(row)
    return rows


# --- results ----------------------------------------------------------------------------------------------------------


def write(out: Path, groups: list[Group], scores: np.ndarray, wins, rows: list[dict], args: BestOfNArguments) -> None:
    with (
        (out / "picks.jsonl").open("w", encoding="utf-8") as picks,
        (out / "sft.jsonl").open("w", encoding="utf-8") as sft,
    ):
        for position, (group, row) in enumerate(zip(groups, scores, strict=True)):
            if np.isnan(row).all():
                continue  # nobody can say which is best
            best = int(np.nanargmax(row)) if wins is None else PICKS[args.pick](wins[position])
            prompt = [{"role": message.role, "content": message.content} for message in group.prompt]
            pick = {"prompt": prompt, "response": group.responses[best], "score": float(row[best]), "index": best}
            picks.write(json.dumps(pick, ensure_ascii=False) + "\n")
            completion = [{"role": "assistant", "content": group.responses[best]}]
            sft.write(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n")
    with (out / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary = {"prompts": len(groups), "pick": args.pick, "unscored": int(np.isnan(scores).sum()), "curve": rows}
    (out / "results.json").write_text(json.dumps(summary, indent=1))


def draw(rows: list[dict], names: list[str], path: Path, args: BestOfNArguments) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    kl = [row["kl_upper_bound"] for row in rows]
    for axis, of_axis in ((axes[0], names), (axes[1], ["win_rate"])):
        for name in of_axis:
            axis.plot(kl, [row[name] for row in rows], marker="o", markersize=4, label=name.replace("_", " "))
            axis.fill_between(
                kl, [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows], alpha=0.2
            )
        axis.set_xlabel("upper bound on the KL to the sampling policy (nats): log n - (n - 1) / n")
        axis.grid(alpha=0.3)
        axis.margins(x=0.12)  # room for the last label
        axis.legend(loc="lower right")
        for row in rows:
            axis.annotate(
                f"n = {row['n']}", (row["kl_upper_bound"], row[of_axis[0]]), (3, 6), textcoords="offset points"
            )
    axes[0].set(ylabel="reward of the pick", title=f"best of n by {args.pick}, 95 % over prompts")
    axes[1].set(
        ylabel=f"P(beats one sample), by {'gold' if 'gold' in names else 'proxy'}", title="win rate against n = 1"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_main(main)
