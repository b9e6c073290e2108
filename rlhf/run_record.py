"""The record of a run: what it was told, with which versions, from which commit. Secrets stay out of it."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STARTED = datetime.now(UTC)
LIBRARIES = ("torch", "trl", "transformers", "deepspeed", "accelerate", "peft", "datasets")
SECRET = re.compile(r"(token|password|secret|api_?key)$")  # names whose values are never written down


def write_run_record(output_dir: str | Path, arguments: Sequence[Any], extra: Mapping[str, Any]) -> None:
    """Writes `run.json` into `output_dir`, on rank 0: what this run was told, with which versions, from which commit.

    `arguments` are dataclass instances; values whose name ends in token, password, secret or api_key are left out, on
    the command line too.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    settings = {
        type(group).__name__: {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
        for group in arguments
    }
    seeds = [group["seed"] for group in settings.values() if "seed" in group]
    record = {
        "started": STARTED.isoformat(timespec="seconds"),
        "command": _without_secret_words([sys.executable, *sys.argv]),
        "commit": _commit(),
        "seed": seeds[0] if seeds else None,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": {"python": platform.python_version()} | {library: _version(library) for library in LIBRARIES},
        "settings": settings,
        **extra,
    }
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(_without_secrets(record), indent=2, default=str) + "\n")


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(item) for key, item in value.items() if not SECRET.search(str(key).lower())}
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return value


def _without_secret_words(words: list[str]) -> list[str]:
    kept, hide_next = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and SECRET.search(name.lower().replace("-", "_")) is not None
        kept.append("…" if hide_next and not name.startswith("--") else f"{name}=…" if secret and equals else word)
        hide_next = secret and not equals
    return kept


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=ROOT,
                                capture_output=True, text=True, check=False)  # fmt: skip
    except FileNotFoundError:  # no git here
        return None
    return answer.stdout.strip() or None
