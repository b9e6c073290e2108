"""The benchmarks of docs/benchmarks.md run, with less of everything."""

import csv
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, requires_shared
from tests.r2_toys import save_reasoning_judge

pytestmark = pytest.mark.slow


def benchmark(name, *words):
    command = [sys.executable, str(REPOSITORY / "benchmarks" / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_the_critic_ablation_draws_and_counts(tmp_path):
    output = benchmark("critic_ablation", "--seeds", 2, "--steps", 24, "--output_dir", tmp_path)
    assert "constant 0.5, λ 1: gold of the last 6 rollouts" in output
    assert len((tmp_path / "critic_ablation.csv").read_text().splitlines()) == 1 + 2 * 2 * 6
    assert (tmp_path / "critic_ablation.png").read_bytes().startswith(b"\x89PNG")


def test_the_pairing_simulation_draws_and_counts(tmp_path):
    benchmark("pairing", "--trials", 20, "--output_dir", tmp_path)
    assert "swiss" in (tmp_path / "pairing.csv").read_text().lower()
    assert (tmp_path / "pairing.png").read_bytes().startswith(b"\x89PNG")


def test_the_cache_serves_what_has_been_judged(tmp_path):
    benchmark("cache", "--prompts", 4, "--responses", 4, "--steps", 8, "--output_dir", tmp_path)
    rows = list(csv.DictReader((tmp_path / "cache.csv").open()))
    hits = {row["what"]: float(row["cache_hits"]) for row in rows}
    assert len(hits) == 5 + 2 * 3
    assert all(share == 1.0 for what, share in hits.items() if "again" in what or "continued" in what), hits
    assert all(share < 0.5 for what, share in hits.items() if what.endswith("a run")), hits


@requires_shared
def test_real_text_runs_to_the_end(tmp_path):
    output = benchmark("real_text", "--ppo_steps", 2, "--output_dir", tmp_path)
    assert "eval_truncated" in output
    assert "seconds/judging: mean" in output


def test_reasons_cost_more_than_a_label(tmp_path):
    judge = save_reasoning_judge(tmp_path)
    words = ("--judge", judge, "--pairs", 2, "--votes", 2, "--answer_tokens", 12, "--rounds", 1)
    lines = benchmark("reasons", *words).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["gram", "gram_r2"]
    label, reasons = (int(line.split()[-4]) for line in lines)
    assert reasons > label


@requires_shared
def test_judging_counts_tokens_and_agrees_with_a_plain_loop(tmp_path):
    words = ("--hidden", 64, "--layers", 1, "--curve_layers", 1, "--vocabulary", 50_257, "--words", 20, "--sizes", 2, 4)
    benchmark("judging", *words, "--curves", "budget", "--curve_size", 4, "--output_dir", tmp_path)
    rows = list(csv.DictReader((tmp_path / "judging.csv").open()))
    assert [row["method"] for row in rows] == ["loop", "batched", "ours", "packed"] * 2 + ["ours", "packed"] * 4
    assert all(float(row["largest_difference"]) < 1e-4 for row in rows if row["method"] in ("batched", "packed"))
    ratios = [float(row["token_ratio"]) for row in rows if row["method"] == "ours"]
    assert ratios[1] > ratios[0] > 1
    assert all(float(row["peak_mib"]) > 0 for row in rows)
    assert (tmp_path / "judging.png").read_bytes().startswith(b"\x89PNG")
