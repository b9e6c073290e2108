"""Every private name of TRL and transformers that `rlhf` relies on: an upgrade fails here and not during a run."""

import inspect

from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer import utils

OVERRIDDEN = {
    "_generate": ["self", "prompts"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_set_signature_columns_if_needed": ["self"],
    "log": ["self", "logs", "start_time"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "_get_train_sampler": ["self", "dataset"],
    "_get_output_dir": ["self", "trial"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
}


def test_overridden_methods_keep_their_parameters():
    for name, parameters in OVERRIDDEN.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters, name


def test_called_methods_and_functions_keep_their_parameters():
    logps = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert logps[:6] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert list(inspect.signature(GRPOTrainer._tokenize_prompts).parameters) == ["self", "prompts"]
    assert list(inspect.signature(prepare_deepspeed).parameters) == ["model", "accelerator"]
    assert "gather_deepspeed3_params" in inspect.signature(unwrap_model_for_generation).parameters
    for name in (
        "add_fused_lm_head",
        "create_model_from_path",
        "disable_dropout_in_model",
        "get_config_model_id",
        "pad",
        "print_prompt_completions_sample",
        "use_adapter",
    ):
        assert callable(getattr(utils, name))


def test_what_the_inherited_code_reads_is_still_read():
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    for key in ('inputs["advantages"]', 'inputs["tool_mask"]', 'inputs.get("old_per_token_logps")'):
        assert key in loss
    assert 'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in loss
    assert "provide advantages with shape (B, T)" in loss
    assert GRPOConfig.__dataclass_fields__["loss_type"].default == "dapo"
    rollout = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'self._logs["advantages"].extend(all_process_advantages.tolist())' in rollout
    for key in ("completion_mask", "completion_ids", "prompt_ids", "prompt_mask", "num_items_in_batch"):
        assert f'"{key}": {key}' in rollout


def test_what_a_checkpoint_keeps_is_still_what_the_trainers_remember():
    window = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in window
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in window
    loop = inspect.getsource(GRPOTrainer._inner_training_loop)
    counted_anew = [
        loop.index(f"self.{name} = ") for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
    ]
    assert max(counted_anew) < loop.index("self.callback_handler.on_train_begin"), "what is put back there stays"
    assert loop.index("self.get_train_dataloader()") < loop.index("self._init_training_state(")
    saving = inspect.getsource(Trainer._save_checkpoint)
    assert saving.count("self._get_output_dir(trial=trial)") == 1
    assert "rotate_checkpoints(\n                output_dir=run_dir" in saving
