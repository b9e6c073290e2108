"""`recipes/best_of_n.py` on a toy policy: sampling that continues, every pick, curves, bad input."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from reward.encoding import JudgeConfig
from tests.conftest import REPOSITORY
from tests.gram_toys import TOPICS, save_toy_model, write_rows

BREVITY = ["--reward", "rule", "--reward_rule", "reward.rules:LengthPenalty"]
BREVITY += ["--reward_rule_arguments", '{"limit": 1, "unit": "characters"}']


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    save_toy_model(folder / "policy", chat=True)
    save_toy_model(folder / "judge", seed=1)
    JudgeConfig(prompt="compact").save(folder / "judge")
    prompts = [{"prompt": [{"role": "user", "content": f"Tell me about {topic}"}]} for topic in TOPICS]
    write_rows(folder / "prompts.jsonl", prompts)
    samples = [{"prompt": f"Say {topic}", "responses": ["x" * k for k in (3, 1, 2, 4)]} for topic in TOPICS[:5]]
    write_rows(folder / "samples.jsonl", samples)
    return folder


def run(*words, status=0):
    command = [sys.executable, REPOSITORY / "recipes" / "best_of_n.py", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_are_picked_and_the_curve_is_exact(toys, tmp_path):
    run("--samples", toys / "samples.jsonl", "--num_samples", 4, "--output_dir", tmp_path, *BREVITY)
    assert [pick["response"] for pick in lines(tmp_path / "picks.jsonl")] == ["x"] * 5
    assert lines(tmp_path / "sft.jsonl")[0]["completion"] == [{"role": "assistant", "content": "x"}]
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["n"]) for row in rows] == [1, 2, 4]
    # One character is 0; two and more are -1. The shortest is in half of the pairs and in the whole.
    assert [float(row["proxy"]) for row in rows] == pytest.approx([-0.75, -0.5, 0.0])
    assert [float(row["win_rate"]) for row in rows] == pytest.approx([0.5, (0.875 + 0.375) / 2, 0.875])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text())["unscored"] == 0


@pytest.mark.parametrize("pick", ["linear", "bradley_terry"])
def test_sampling_continues_where_it_stopped_and_a_judge_picks(toys, tmp_path, pick):
    flags = ["--model_name_or_path", toys / "policy", "--dataset", toys / "prompts.jsonl", "--num_samples", 3]
    flags += ["--reward_model", toys / "judge", "--max_completion_length", 6, "--output_dir", tmp_path]
    flags += ["--batch_size", 2, "--pick", pick, "--reward_cache", tmp_path / "cache"]
    run(*flags, "--max_prompts", 6)
    whole = (tmp_path / "samples.jsonl").read_text()
    (tmp_path / "samples.jsonl").write_text("".join(whole.splitlines(keepends=True)[:4]))  # the last batch is lost
    run(*flags, "--max_prompts", 6)
    assert (tmp_path / "samples.jsonl").read_text() == whole, "sampled again as before"
    picks = lines(tmp_path / "picks.jsonl")
    assert len(picks) == 6
    for row, pick_ in zip(lines(tmp_path / "samples.jsonl"), picks, strict=True):
        assert row["responses"][pick_["index"]] == pick_["response"]
    first = next(csv.DictReader((tmp_path / "curve.csv").open()))
    assert float(first["proxy_monte_carlo_error"]) < 0.02
    assert np.isfinite(float(first["proxy"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_samples", 9], "row 1: it needs `prompt` and --num_samples 9 `responses`, and has 4"),
        (["--num_samples", 4, "--pick", "best"], "--pick best: choose one of argmax, linear"),
        (["--num_samples", 4, "--pick", "knockout"], "'LengthPenalty' scores responses one by one"),
    ],
)
def test_bad_input_is_one_line(toys, tmp_path, words, message):
    output = run("--samples", toys / "samples.jsonl", "--output_dir", tmp_path, *BREVITY, *words, status=2)
    assert message in output
    assert "Traceback" not in output
