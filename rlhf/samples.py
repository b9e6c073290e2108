"""Samples of a run: the table on the screen, and the same rows in `samples.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl.trainer.utils import print_prompt_completions_sample

FILE = "samples.jsonl"


def choose(logs: Mapping[str, Any], number: int) -> dict[str, Any]:
    """At most `number` of the responses in TRL's `logs`, evenly over the rollout: without dice, whose state is the
    run's.
    """
    size = len(logs["prompt"])
    rows = sorted({index * size // number for index in range(number)}) if size > number else range(size)

    def pick(column: Sequence) -> list:
        return [column[row] for row in rows if row < len(column)]

    chosen = {name: pick(logs[name]) for name in ("prompt", "completion", "advantages")}
    return chosen | {kind: {name: pick(column) for name, column in logs[kind].items()} for kind in ("rewards", "extra")}


def show(chosen: Mapping[str, Any], step: int) -> None:
    """Prints the table."""
    print_prompt_completions_sample(
        chosen["prompt"], chosen["completion"], chosen["rewards"], chosen["advantages"], step, extra=chosen["extra"]
    )


def append(folder: str | Path, chosen: Mapping[str, Any], step: int, *, fresh: bool, first: bool) -> None:
    """Adds the rows to `samples.jsonl`: step, prompt, response, score, advantage and further columns (reference).

    Of what an earlier process left there, the `first` call keeps nothing when the run is `fresh`, and else the rows
    before `step`: those after it will be sampled again. NaN is null.
    """
    (scores,) = chosen["rewards"].values()
    columns = {
        "prompt": chosen["prompt"],
        "response": [_text(completion) for completion in chosen["completion"]],
        **chosen["extra"],
        "score": scores,
        "advantage": chosen["advantages"],
    }
    lines = []
    for row in zip(*columns.values(), strict=True):
        values = [None if value != value else value for value in row]
        lines.append(json.dumps({"step": step, **dict(zip(columns, values, strict=True))}, ensure_ascii=False) + "\n")
    path = Path(folder, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    if first:
        lines = ([] if fresh else _before(path, step)) + lines
        beside = path.with_suffix(".unfinished")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.rename(path)
        return
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def _text(completion: str | list[Mapping[str, Any]]) -> Any:
    """A message alone is its text; several, with tool calls and their results, stay messages."""
    return completion[0]["content"] if isinstance(completion, list) and len(completion) == 1 else completion


def _before(path: Path, step: int) -> list[str]:
    """The whole lines of steps before `step`; a process that was killed may have left half a line at the end."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:  # not `splitlines`, which also splits at U+2028
        return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
