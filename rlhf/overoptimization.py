"""Proxy against gold while a policy is trained: fixed held-out prompts, measured every few optimizer steps.

The KL is that of whole responses, sampled at temperature 1, to the initial policy, so that runs of PPO and GRPO lie on
one axis (Gao et al. 2022, arXiv 2210.10760). A measurement is one line of `overoptimization.jsonl` in the output
folder. Every response, early or late, is sampled with the same random numbers: what differs is the policy.
"""

import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

from reward.errors import DataError, SettingsError
from reward.trl_signature import groups_from_rows
from reward.types import RewardBackend

FILE_NAME = "overoptimization.jsonl"
MEANS = ("kl", "proxy", "gold", "length", "ended", "type_token_ratio")
_logger = get_logger(__name__)


# --- what a response says of itself -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampled:
    """One response: tokens without the end token, log π - log π_initial in nats, two scores (NaN: none)."""

    tokens: tuple[int, ...]
    length: int  # tokens, with the end token
    ended: bool
    kl: float
    proxy: float
    gold: float


def type_token_ratio(tokens: Sequence[int]) -> float:
    """Different tokens / tokens of one response: it falls where a response repeats itself. NaN without tokens."""
    return len(set(tokens)) / len(tokens) if tokens else math.nan


def distinct_2(responses: Sequence[Sequence[int]]) -> float:
    """Different bigrams / bigrams over all responses (Li et al. 2016, arXiv 1510.03055); NaN without any.

    It falls where responses to different prompts become alike. Tokens, because they need no word boundaries.
    """
    bigrams = [pair for tokens in responses for pair in pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else math.nan


def summary(samples: Sequence[Sampled]) -> dict[str, float]:
    """Mean and standard error (`…_se`) of each of `MEANS` over the responses that have it, and `distinct_2`."""
    line = {}
    for name in MEANS:
        of_each = [type_token_ratio(s.tokens) if name == "type_token_ratio" else getattr(s, name) for s in samples]
        values = [float(value) for value in of_each if value == value]
        line[name] = float(np.mean(values)) if values else math.nan
        line[f"{name}_se"] = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan
    return line | {"distinct_2": distinct_2([sample.tokens for sample in samples])}


# --- the measurement --------------------------------------------------------------------------------------------------


class OverOptimization(TrainerCallback):
    """Measures the policy of `trainer` at the start, every `gold_steps` optimizer steps, and at the end.

    The proxy is the score that the training reward gives a response against the initial policy's greedy one
    (`versus`), whatever the run itself measures against: a yardstick that moved with the policy could not show a fall.
    A continued run keeps the lines up to its checkpoint and adds to them.

    Args:
        prompts: held-out rows; `gold_prompts` of them, drawn once, are the fixed prompts.
        gold: scores responses likewise and is never trained on; None measures all but the gold score.

    Raises:
        SettingsError: when training starts, lines of a continued run that were measured with other prompts or rewards.
    """

    def __init__(self, trainer: GRPOTrainer, prompts: Dataset, gold: RewardBackend | None):
        count = min(trainer.args.gold_prompts, len(prompts))
        self._trainer = trainer
        # The same ones whatever the run's seed; at random, because data sets repeat themselves at regular distances.
        self._rows = [prompts[index] for index in random.Random(0).sample(range(len(prompts)), count)]
        self._gold = gold
        texts = json.dumps([row["prompt"] for row in self._rows])
        self._yardstick = {
            "prompts": count,
            "prompts_hash": hashlib.sha256(texts.encode()).hexdigest()[:12],
            "proxy_backend": trainer.rollout.versus.name,
            "gold_backend": None if gold is None else gold.name,
        }
        self._path = Path(trainer.args.output_dir, FILE_NAME)
        self._lines: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **_):
        kept = [[]]
        if state.global_step and self._trainer.accelerator.is_main_process and self._path.exists():
            kept = [[line for line in read_lines(self._path) if line["step"] <= state.global_step]]
        self._lines = broadcast_object_list(kept)[0]  # ranks may not share a disk
        for line in self._lines:
            for name, value in self._yardstick.items():
                if line[name] != value:
                    raise SettingsError(
                        f"{self._path} was measured with {name} {line[name]} and this run has {value}: continue with "
                        "the flags of the run that began it, or give another --output_dir"
                    )
        self._measure_once(control)

    def on_step_end(self, args, state, control, **_):
        if state.global_step % args.gold_steps == 0:
            self._measure_once(control)

    def on_train_end(self, args, state, control, **_):
        self._measure_once(control)

    def _measure_once(self, control) -> None:
        step = self._trainer.state.global_step
        if any(line["step"] == step for line in self._lines):
            return
        started = time.perf_counter()
        samples, reasons = self._sample_all()
        line = {"step": step, **self._yardstick, **summary(samples)}
        line |= {f"{name}_unscored": sum(map(math.isnan, (getattr(s, name) for s in samples))) for name in _SCORES}
        line |= {"reasons": [reason for reason, _ in reasons.most_common(5)]}
        line |= {"seconds": time.perf_counter() - started}
        numbers = {name: value for name, value in line.items() if isinstance(value, float)}
        self._lines.append(line | {name: None for name, value in numbers.items() if math.isnan(value)})
        if self._trainer.accelerator.is_main_process:
            self._write()
        if reasons:
            told = "; ".join(f"{reason} ({count} x)" for reason, count in reasons.most_common(5))
            _logger.warning(f"step {step}: fixed prompts without a score. Reasons: {told}")
        # Not GRPOTrainer.log, which would hand over, and forget, what the training steps have gathered so far. And the
        # event behind `log` marks the log entry of this very step as written.
        due = control.should_log
        logged = {f"overopt/{name}": value for name, value in numbers.items() if not math.isnan(value)}
        Trainer.log(self._trainer, logged)
        control.should_log = due

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in self._lines), encoding="utf-8")
        unfinished.rename(self._path)

    def _sample_all(self) -> tuple[list[Sampled], Counter[str]]:
        """A response to every fixed prompt; each rank takes its share, with as many batches as every other."""
        trainer, references = self._trainer, self._trainer.rollout.references
        accelerator, size = trainer.accelerator, trainer.args.per_device_eval_batch_size
        ranks, count = accelerator.num_processes, len(self._rows)
        # The last ranks answer prompts of the first ones again where the numbers do not divide.
        share = [index % count for index in range(accelerator.process_index, -(-count // ranks) * ranks, ranks)]
        groups, told = [], []
        quiet = trainer.args.disable_tqdm or not accelerator.is_main_process
        for start in tqdm(range(0, len(share), size), desc="over-optimisation", leave=False, disable=quiet):
            batch = share[start : start + size]
            rows = [self._rows[index] for index in batch]
            prompts = [row["prompt"] for row in rows]
            decoded = references.sample(prompts, seed=trainer.args.seed + batch[0])
            columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "reference")}
            groups += groups_from_rows(prompts, decoded.texts, 1, references.initial(prompts), columns)
            lengths, ended = decoded.mask.sum(1).tolist(), decoded.ended.tolist()
            tokens = [tuple(ids[: n - e]) for ids, n, e in zip(decoded.ids.tolist(), lengths, ended, strict=True)]
            told += zip(tokens, lengths, ended, references.log_ratio(decoded).tolist(), strict=True)
        results = [trainer.rollout.versus.score(groups)]
        results.append([None] * len(groups) if self._gold is None else self._gold.score(groups))
        found = []
        for index, facts, *scored in zip(share, told, *results, strict=True):
            scores = [math.nan if result is None else result.scores[0] for result in scored]
            reasons = [reason for result in scored if result is not None for reason in result.reasons]
            found.append((index, Sampled(*facts, *scores), reasons))
        everyones = {index: (sample, reasons) for index, sample, reasons in gather_object(found)}
        told_reasons = Counter(reason for _, reasons in everyones.values() for reason in reasons)
        return [everyones[index][0] for index in range(count)], told_reasons


_SCORES = ("proxy", "gold")


# --- what was measured ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The measurements of a run in the order of their steps.

    Raises:
        DataError: a line that is not a measurement; it names the file, the row and the field.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, row {number} is not JSON ({error}): name a file that a run wrote") from error
        fields = ("step", *MEANS, "distinct_2")
        missing = [name for name in fields if not isinstance(line, dict) or name not in line]
        if missing:
            raise DataError(f"{path}, row {number} has no {', '.join(missing)}: name a file that a run wrote")
        lines.append(line)
    return sorted(lines, key=lambda line: line["step"])


def fit_gao(kl: Sequence[float], gain: Sequence[float], *, best_of_n: bool) -> tuple[float, float] | None:
    """α and β of Gao et al. 2022, section 3.1, by least squares; None with fewer than three points off the start.

    With d = sqrt(KL): gain = d (α - β d) for best-of-n, d (α - β log d) for reinforcement learning.

    Args:
        kl: nats. gain: reward less that of the initial policy. Points with KL <= 0 or a NaN say nothing and are left
            out.
    """
    d, gain = np.sqrt(np.maximum(np.asarray(kl, float), 0.0)), np.asarray(gain, float)
    used = (d > 0) & ~np.isnan(gain)
    d, gain = d[used], gain[used]
    if len(np.unique(d)) < 3:
        return None
    bend = d if best_of_n else np.log(d)
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * bend], axis=1), gain, rcond=None)
    return float(alpha), float(beta)


def gao_curve(kl: np.ndarray, alpha: float, beta: float, *, best_of_n: bool) -> np.ndarray:
    """The gain that `fit_gao` has fitted, at each KL >= 0; 0 at 0."""
    d = np.sqrt(kl)
    bend = d if best_of_n else np.log(np.maximum(d, np.finfo(float).tiny))
    return d * (alpha - beta * bend)
