"""The only file that knows how TRL hands rows to a reward function: prompts, completions and columns, row by row.

TRL's rows of one group stand next to each other. Its `completion` is our `response`.
"""

from collections.abc import Mapping, Sequence

from reward.errors import SettingsError
from reward.types import Group, GroupScore, Prompt, as_prompt

Row = str | Sequence[Mapping[str, str]]


def response_text(completion: Row) -> str:
    """A completion as text: plain, one assistant message, or a role-labelled exchange with tools."""
    if isinstance(completion, str):
        return completion
    if len(completion) == 1:
        return completion[0]["content"] or ""
    return "\n\n".join(f"{message['role']}: {message['content'] or ''}" for message in completion)


def groups_from_rows(
    prompts: Sequence[Row], completions: Sequence[Row], num_generations: int, references: Sequence[str] | None = None
) -> list[Group]:
    """Groups of `num_generations` neighbouring rows; `references` has one text a group.

    Raises:
        SettingsError: the rows of a group do not share their prompt, or do not divide into groups.
    """
    if len(prompts) % num_generations:
        raise SettingsError(f"{len(prompts)} rows do not divide into groups of {num_generations}")
    groups = []
    for index, start in enumerate(range(0, len(prompts), num_generations)):
        rows: list[Prompt] = [as_prompt(prompt) for prompt in prompts[start : start + num_generations]]
        if len(set(rows)) != 1:
            raise SettingsError(f"rows {start} to {start + num_generations - 1} of a group have different prompts")
        responses = tuple(response_text(completion) for completion in completions[start : start + num_generations])
        groups.append(Group(rows[0], responses, None if references is None else references[index]))
    return groups


def rows_from_scores(results: Sequence[GroupScore]) -> list[float | None]:
    """One score a row, None where there is none: TRL then leaves the row out of its group and gives it advantage 0."""
    return [None if score != score else score for result in results for score in result.scores]


def require_whole_groups(
    *,
    per_device_batch_size: int,
    num_generations: int,
    world_size: int,
    steps_per_generation: int = 1,
    evaluation: bool = False,
) -> None:
    """Refuses batch sizes that would hand the responses of one prompt to two ranks.

    TRL checks only the batch of all ranks together; a reward function sees the rows of one rank, so a comparison
    within a split group would silently miss siblings.

    Raises:
        SettingsError: with the numbers and the way out.
    """
    rows = per_device_batch_size * steps_per_generation
    if rows % num_generations == 0:
        return
    if evaluation:
        batch, responses = "--per_device_eval_batch_size", "--num_generations_eval"
        product, remedy = f"{batch} = {rows} responses", ""
    else:
        batch, responses = "--per_device_train_batch_size", "--num_generations"
        product = (
            f"{batch} ({per_device_batch_size}) x --steps_per_generation ({steps_per_generation}) = {rows} responses"
        )
        remedy = ", or more --steps_per_generation"
    raise SettingsError(
        f"a rank holds {product} of each rollout, which {responses} ({num_generations}) does not divide: groups would "
        f"be split over the {world_size} ranks. Choose {batch} {num_generations} or another multiple{remedy}"
    )
