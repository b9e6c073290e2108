"""Stage folders that know whether they are finished, and work that is shared by ranks and goes on after a kill."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import distributed
from tqdm.auto import tqdm

from reward.errors import SettingsError
from reward.training.gram_r2.rows import drop_unfinished_line, read_lines

_STATE = "stage.json"
Rows = list[dict[str, Any]]


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def together() -> None:
    """Waits until every rank is here."""
    if distributed.is_initialized():
        distributed.barrier()


def begin(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the stage of this folder is finished already; else it is begun, or goes on. Every rank calls it.

    Raises:
        SettingsError: the folder was begun with other settings, which are named.
    """
    settings = json.loads(json.dumps(settings, default=str))
    path = folder / _STATE
    stored = json.loads(path.read_text()) if path.exists() else None
    together()  # every rank has read before one writes
    if stored is None:
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, settings, finished=False)
        together()
        return False
    before = stored["settings"]
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if changed:
        name = changed[0]
        more = f" (and {', '.join(changed[1:])})" if len(changed) > 1 else ""
        raise SettingsError(
            f"{folder} was {'made' if stored['finished'] else 'begun'} with {name} {before.get(name)!r}, and this run "
            f"says {settings.get(name)!r}{more}: give the settings of before, another --output_dir, or remove the "
            "folder, and those of later stages, to make them anew"
        )
    return stored["finished"]


def finish(folder: Path) -> None:
    """Marks a stage as finished: the last thing that is written there. Every rank calls it."""
    together()
    if rank() == 0:
        _write(folder / _STATE, json.loads((folder / _STATE).read_text())["settings"], finished=True)
    together()


def is_finished(folder: Path) -> bool:
    path = folder / _STATE
    return path.exists() and json.loads(path.read_text())["finished"]


def identity(folder: Path) -> str:
    """A digest of the settings of a stage, which hold those of the stages before: what later ones depend on."""
    return digest(json.loads((folder / _STATE).read_text())["settings"])


def digest(value: Any) -> str:
    """A digest of settings or records."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _write(path: Path, settings: Mapping[str, Any], finished: bool) -> None:
    beside = path.with_suffix(".unfinished")
    beside.write_text(json.dumps({"finished": finished, "settings": settings}, indent=2) + "\n")
    beside.rename(path)


def shared_work(
    folder: Path,
    name: str,
    count: int,
    start: Callable[[], Callable[[Sequence[int]], Rows]],
    chunk: int = 64,
) -> Rows:
    """Does items 0 … count - 1, a share on each rank, and returns all their rows in order, on every rank.

    `start()` makes ready what works (it loads a model, so only where something is left to do) and returns a function
    from items to their rows. Rows are appended to `folder/NAME.rankR.jsonl` after every `chunk` items: what stands
    there is not done again, by however many ranks it was written.
    """
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    done = _read(folder, name)
    together()  # every rank has read before one writes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.rank{rank()}.jsonl"
    drop_unfinished_line(path)
    left = [item for item in range(count) if item not in done][rank() :: ranks]
    bar = tqdm(total=len(left), desc=f"{folder.name}: {name}", disable=rank() != 0 or not left)
    work = start() if left else None
    with bar, path.open("a", encoding="utf-8") as file:
        for at in range(0, len(left), chunk):
            items = left[at : at + chunk]
            for item, row in zip(items, work(items), strict=True):
                file.write(json.dumps({"item": item, **row}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(items))
    together()
    rows = _read(folder, name)
    return [rows[item] for item in range(count)]


def _read(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    return {row["item"]: row for path in sorted(folder.glob(f"{name}.rank*.jsonl")) for row in read_lines(path)}
