# python benchmarks/judging.py                                         a model of 0.5B parameters, random weights
# python benchmarks/judging.py --hidden 448 --layers 6 --vocabulary 50257
"""Judgments per second against what people write themselves, and against what must be computed in any case.

All ordered pairs of G real responses to a prompt (../shared/data, GPT-2's tokenizer), a Qwen2-shaped model with random
weights, every method on the same pairs in the same precision:

    loop     one pair after the other, all logits of all positions, as the published evaluation script does
    batched  sorted by length under our token budget, left-padded, the last position's logits alone
    ours     GramJudge: beginnings that pairs share are read once

The floor is the tokens of each beginning counted once, times the arithmetic of a token, at the matrix rate that this
machine shows for the model's own shapes. Ratios stand beside the ratios of tokens. Methods take turns within a round,
and the processor time is told beside the clock's: neighbours disturb it less. Writes judging.csv and judging.png.
"""

import argparse
import csv
import gzip
import itertools
import json
import statistics
import time
from pathlib import Path

import matplotlib
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from reward.encoding import JudgeConfig, JudgeEncoder
from reward.judges.gram import GramJudge
from reward.judges.label_logits import left_pad
from reward.judges.prefixes import plan, tokens_read
from reward.models import batches_by_length
from reward.types import Pair, as_prompt

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="responses of a group")
    parser.add_argument("--groups", type=int, default=1, help="of each size")
    parser.add_argument("--max_response_words", type=int, default=120, help="longer responses are cut")
    parser.add_argument("--loop_pairs", type=int, default=8, help="the loop reads so many; its speed is a pair's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "tokenizers" / "gpt2")
    encoder = JudgeEncoder(tokenizer, JudgeConfig(prompt="gram", rendering="plain"), 8192)
    model = qwen2(arguments).to(device, dtype).eval()
    judge = GramJudge(model, encoder)
    rate = matrix_rate(model, judge.token_budget)
    print(f"{model.num_parameters() / 1e6:.0f}M parameters, {dtype}, {torch.get_num_threads()} threads, ", end="")
    print(f"budget {judge.token_budget:,} tokens, {rate / 1e9:.0f} GFLOP/s in the model's own products")
    rows = []
    for size in arguments.sizes:
        rows += measure(judge, pairs_of(arguments, size), rate, arguments, size)
    with (arguments.output_dir / "judging.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    draw(rows, arguments.output_dir / "judging.png")


def qwen2(arguments) -> Qwen2ForCausalLM:
    """Heads of 64, a seventh of them with keys of their own, as Qwen2-0.5B has them."""
    torch.manual_seed(0)
    heads = arguments.hidden // 64
    config = Qwen2Config(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 38 // 7,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 7),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def pairs_of(arguments, size: int) -> list[Pair]:
    file = SHARED / "data" / "unlabeled" / "bon16.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, arguments.groups)]
    pairs = []
    for row in rows:
        words = [response.split(" ")[: arguments.max_response_words] for response in row["responses"]]
        texts = list(dict.fromkeys(map(" ".join, words)))[:size]
        pairs += [Pair(as_prompt(row["prompt"]), *both) for both in itertools.permutations(texts, 2)]
    return pairs


def measure(judge: GramJudge, pairs: list[Pair], rate: float, arguments, size: int) -> list[dict]:
    """A row a method: pairs a second (the median of the rounds), its share of the floor, ratios to the loop."""
    ids = [list(item.ids) for item in judge.encoder.encode(pairs)]
    few = ids[:: max(1, len(ids) // arguments.loop_pairs)][: arguments.loop_pairs]
    floor = tokens_read(plan(dict(enumerate(ids)), 10**9))
    tokens = {"loop": sum(map(len, ids)), "batched": sum(map(len, ids)), "ours": floor}
    work = {
        "loop": (lambda: loop(judge, few), sum(map(len, few)) / sum(map(len, ids))),
        "batched": (lambda: batched(judge, ids), 1.0),
        "ours": (lambda: [judgment.prob_a for judgment in judge.compare(pairs)], 1.0),
    }
    clocks = {name: [] for name in work}
    answers = {}
    for number in range(-1, arguments.rounds):  # the first warms up
        for name, (call, share) in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            answers[name] = call()
            clock = ((time.perf_counter() - wall) / share, (time.process_time() - cpu) / share)
            clocks[name] += [clock] if number >= 0 else []
    worst = max(abs(a - b) for a, b in zip(answers["ours"], answers["batched"], strict=True))
    least = floor * flops_of_a_token(judge.model) / rate
    rows = []
    for name, measured in clocks.items():
        wall, cpu = (statistics.median(values) for values in zip(*measured, strict=True))
        loops, batches = (statistics.median(clocks[other])[0] for other in ("loop", "batched"))
        rows.append(
            {
                "responses": size,
                "pairs": len(pairs),
                "method": name,
                "pairs_per_second": round(len(pairs) / wall, 3),
                "cpu_seconds_per_pair": round(cpu / len(pairs), 4),
                "tokens_read": tokens[name],
                "share_of_floor": round(least / wall, 3),
                "times_loop": round(loops / wall, 2),
                "times_batched": round(batches / wall, 2),
                "token_ratio": round(tokens["batched"] / tokens[name], 2),
            }
        )
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(f"largest difference of a probability between ours and batched: {worst:.1e}")
    return rows


@torch.no_grad()
def loop(judge: GramJudge, ids: list[list[int]]) -> list[float]:
    a, b = judge.encoder.label_ids
    found = []
    for row in ids:
        logits = judge.model(torch.tensor([row], device=judge.model.device)).logits[0, -1].float()
        found.append((logits[a] - logits[b]).sigmoid().item())
    return found


@torch.no_grad()
def batched(judge: GramJudge, ids: list[list[int]]) -> list[float]:
    labels, found = list(judge.encoder.label_ids), [0.0] * len(ids)
    for batch in batches_by_length({i: len(row) for i, row in enumerate(ids)}, judge.token_budget):
        inputs = left_pad([ids[i] for i in batch], 0, judge.model.device)
        logits = judge.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, labels].float()
        for i, probability in zip(batch, (logits[:, 0] - logits[:, 1]).sigmoid().tolist(), strict=True):
            found[i] = probability
    return found


def flops_of_a_token(model: Qwen2ForCausalLM) -> int:
    """Two for each weight of the layers; attention (a few percent at these lengths) and the labels' rows left out."""
    return 2 * (model.num_parameters() - model.get_input_embeddings().weight.numel())


@torch.no_grad()
def matrix_rate(model: Qwen2ForCausalLM, tokens: int) -> float:
    """Operations a second of the layers' own products at `tokens` rows, the best of ten."""
    mlp = model.model.layers[0].mlp
    rows = torch.randn(tokens, model.config.hidden_size, device=model.device, dtype=model.dtype)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        mlp.up_proj(rows)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * mlp.up_proj.weight.numel() / best


def draw(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    sizes = sorted({row["responses"] for row in rows})
    for name in ("loop", "batched", "ours"):
        axes.plot(sizes, [row["pairs_per_second"] for row in rows if row["method"] == name], marker="o", label=name)
    axes.set(xlabel="responses of a group (all ordered pairs)", ylabel="pairs per second", xticks=sizes, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
