"""PPO steps on rollouts that are the same however many ranks share them. Run by test_ppo.py under `deepspeed`.

Arguments: POLICY OUTPUT_DIR. A response is a fixed function of its prompt, so that only arithmetic can differ.
"""

import json
import sys

import torch
from datasets import Dataset

from reward.types import GroupScore
from rlhf.launch import parse_args, run_main, start
from rlhf.overoptimization import OverOptimization
from rlhf.ppo import PPOTrainer
from rlhf.ppo_config import PPOConfig

GLOBAL_BATCH = 8


class Backend:
    name = "fixed"

    def score(self, groups):
        """Depends on the text; one prompt in seven gets no verdict."""
        scored = []
        for group in groups:
            number = int(group.prompt[0].content.rpartition(" ")[2])
            score = float("nan") if number % 7 == 3 else (number % 5) / 5
            scored.append(GroupScore((score,), reasons=("seventh prompt",) if score != score else ()))
        return scored


def main() -> None:
    policy, output_dir = [word for word in sys.argv[1:] if not word.startswith("--")]
    flags = [word for word in sys.argv[1:] if word.startswith("--")]
    start(flags)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    (args,) = parse_args(
        (PPOConfig,),
        flags,
        defaults={
            "output_dir": output_dir,
            "per_device_train_batch_size": GLOBAL_BATCH // ranks,
            "max_steps": 3,
            "max_completion_length": 6,
            "learning_rate": 0.05,
            "critic_learning_rate": 0.05,
            "adam_epsilon": 1.0,  # AdamW then follows the gradient's size, not only its sign
            "lr_scheduler_type": "constant",
            "win_rate_steps": 0,
            "gold_steps": 2,
            "per_device_eval_batch_size": 1,  # a sample then depends on its prompt alone, not on the ranks
            "report_to": "none",
            "gradient_checkpointing": False,
            "save_strategy": "no",
        },
    )
    rows = [{"prompt": f"Tell me about {number}", "reference": "tea"} for number in range(24)]
    trainer = PPOTrainer(policy, Backend(), args, Dataset.from_list(rows), reference="dataset")
    end = trainer._tokenizer.eos_token_id

    def fixed(prompt_ids, images, fields, num_generations, **_):
        rows = []
        for ids in prompt_ids:
            length = 2 + sum(ids) % 4
            rows.append([300 + (sum(ids) * k) % 40 for k in range(1, length)] + [end])
        return rows, None

    trainer._generate_single_turn = fixed
    trainer.add_callback(OverOptimization(trainer, Dataset.from_list(rows[:3]), Backend()))  # two ranks share three
    trainer.train()
    trainer.save_model()
    log = [entry for entry in trainer.state.log_history if "policy/loss" in entry]
    kept = ("policy/", "value/", "objective/", "grad_norm")
    numbers = [{key: value for key, value in entry.items() if key.startswith(kept)} for entry in log]
    print(f"RANK{args.process_index} {json.dumps(numbers)}", flush=True)


if __name__ == "__main__":
    run_main(main)
