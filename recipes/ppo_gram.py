# deepspeed recipes/ppo_gram.py                                       the small world, no network, no GPU
# deepspeed --num_gpus 2 recipes/ppo_gram.py                          the same on two ranks
# deepspeed recipes/ppo_gram.py --config recipes/configs/ppo_gram_qwen3.yaml
"""PPO with a generative reward model: the policy learns to write what the judge prefers to a reference response."""

from pathlib import Path

import small_world_cache
import yaml
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer
from trl import ModelConfig, get_peft_config

from reward.config import RewardArguments, build_reward, check_reward
from reward.errors import SettingsError
from reward.small_world import GoldReward
from reward.training.arguments import DataArguments
from reward.training.data import read_prompts
from rlhf.launch import explicit_flags, parse_args, run_main, start, write_run_record
from rlhf.ppo import PPOTrainer
from rlhf.ppo_config import PPOConfig, check_data
from rlhf.prompts import PolicyPrompts, fit_prompts

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    start()
    in_small_world = not {"model_name_or_path", "dataset"} & explicit_flags()
    defaults = small_world_defaults() if in_small_world else {}
    data, reward_args, args, model_args = parse_args(
        (DataArguments, RewardArguments, PPOConfig, ModelConfig), defaults=defaults
    )
    if in_small_world:
        small_world_cache.ensure_built()

    # Everything that can be refused is refused before any weights load.
    if model_args.model_name_or_path is None:
        raise SettingsError("--model_name_or_path is missing; with neither it nor --dataset the small world is used")
    check_reward(reward_args)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    except OSError as error:
        raise SettingsError(f"--model_name_or_path cannot be loaded: {error}") from error
    prompts = fit(data.read_train(read_prompts, args.seed), ", ".join(data.dataset), args, model_args, tokenizer)
    held_out = data.read_eval(read_prompts, args.seed)
    eval_dataset = None
    if held_out:
        eval_dataset = Dataset.from_list(fit(held_out, "the evaluation prompts", args, model_args, tokenizer).rows)
    dataset, reference = Dataset.from_list(prompts.rows), reward_args.reward_reference or "greedy"
    check_data(dataset, args, reference)

    backend = build_reward(reward_args)
    args.model_init_kwargs = {
        **(args.model_init_kwargs or {}),
        "revision": model_args.model_revision,
        "dtype": model_args.dtype or "float32",
        "attn_implementation": model_args.attn_implementation,
    }
    trainer = PPOTrainer(
        model_args.model_name_or_path,
        backend,
        args,
        dataset,
        reference=reference,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        gold=GoldReward() if in_small_world else None,
        peft_config=get_peft_config(model_args),
    )
    if trainer.accelerator.is_main_process:
        write_run_record(
            args.output_dir,
            (data, reward_args, args, model_args),
            {"prompts": {"kept": len(prompts.rows), "dropped": prompts.dropped, "rendering": prompts.rendering}},
        )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        print(f"policy in {args.output_dir}, critic in {args.output_dir}/critic, log in trainer_state.json there")


def small_world_defaults() -> dict:
    """The settings of `configs/ppo_small_world.yaml`, with the paths of the small world."""
    world = small_world_cache.folder()
    settings = yaml.safe_load((CONFIGS / "ppo_small_world.yaml").read_text())
    paths = {
        "model_name_or_path": str(world / "policy"),
        "reward_model": str(world / "judge"),
        "dataset": [str(world / "data" / "train_prompts.jsonl")],
    }
    return settings | paths


def fit(rows: list[dict], source: str, args: PPOConfig, model_args: ModelConfig, tokenizer) -> PolicyPrompts:
    """The prompts that fit beside a response of `max_completion_length` tokens."""
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=args.trust_remote_code,
    )
    room = getattr(config.get_text_config(), "max_position_embeddings", 2**20) - args.max_completion_length
    limit = min(room, args.max_prompt_length or room)
    prompts = fit_prompts(rows, tokenizer, max_prompt_length=limit, source=source)
    if args.process_index == 0:
        print(f"{source}: {len(prompts.rows)} prompts of at most {prompts.longest} tokens, {prompts.dropped} too long")
    return prompts


if __name__ == "__main__":
    run_main(main)
