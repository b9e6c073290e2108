"""Greedy responses of the current and of the initial policy: what sampled ones are measured against.

The one place that decodes outside TRL's own rollout.
"""

import torch
from accelerate.utils import is_peft_model
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, get_config_model_id, pad, use_adapter

from reward.errors import SettingsError
from reward.types import Prompt, as_prompt


def load_initial_policy(trainer: GRPOTrainer) -> torch.nn.Module:
    """A frozen copy of what the policy started from, prepared as TRL prepares its reference model."""
    args = trainer.args
    kwargs = {**(args.model_init_kwargs or {}), "device_map": None}
    kwargs.setdefault("dtype", trainer.model.dtype)
    kwargs.setdefault("attn_implementation", trainer.model.config._attn_implementation)
    model = create_model_from_path(get_config_model_id(trainer.model.config), **kwargs)
    add_fused_lm_head(model, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model.eval(), evaluation_mode=True)


def refuse_loaded_adapter(trainer: GRPOTrainer, peft_config) -> None:
    """Raises SettingsError: the policy came as an adapter, and the initial one cannot be told from its base."""
    if is_peft_model(trainer.model) and peft_config is None:
        raise SettingsError(
            f"the policy ({type(trainer.model).__name__}) is an adapter already, and the initial policy would be its "
            "base without it: merge it into its base first, or start from the base with --use_peft"
        )


class References:
    """Greedy responses, one a prompt, from the policy of `trainer`.

    Every rank calls together: decoding under ZeRO-3 is a collective.

    Args:
        initial_policy: the frozen copy; None with an adapter, where the policy without it is the initial one.
    """

    def __init__(self, trainer: GRPOTrainer, initial_policy: torch.nn.Module | None):
        self._trainer = trainer
        self._initial_policy = initial_policy
        self._known: dict[Prompt, str] = {}  # the initial policy's responses
        self._settings = {
            "do_sample": False,
            "repetition_penalty": 1.0,  # some models' own generation_config sets one, and greedy means the arg max
            "max_new_tokens": trainer.args.max_completion_length,
            "pad_token_id": trainer._tokenizer.pad_token_id,
            "bos_token_id": trainer._tokenizer.bos_token_id,
            "eos_token_id": trainer.eos_token_ids,
        }

    def current(self, prompts: list) -> list[str]:
        """The current policy's responses."""
        return self._decode(self._trainer.model_wrapped, prompts)

    def initial(self, prompts: list) -> list[str]:
        """The initial policy's responses, each prompt decoded once in a run."""
        accelerator = self._trainer.accelerator
        keys = [as_prompt(prompt) for prompt in prompts]
        missing = torch.tensor([any(key not in self._known for key in keys)], device=accelerator.device)
        if accelerator.gather(missing).any():  # all ranks decode or none
            if self._initial_policy is None:
                with use_adapter(accelerator.unwrap_model(self._trainer.model), adapter_name=None):
                    responses = self._decode(self._trainer.model_wrapped, prompts)
            else:
                responses = self._decode(self._initial_policy, prompts)
            self._known.update(zip(keys, responses, strict=True))
        return [self._known[key] for key in keys]

    @torch.no_grad()
    def _decode(self, model: torch.nn.Module, prompts: list) -> list[str]:
        trainer = self._trainer
        device = trainer.accelerator.device
        ids, _, _ = trainer._tokenize_prompts(prompts)
        rows = [torch.tensor(row) for row in ids]
        padded = pad(rows, padding_value=trainer._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left")
        with unwrap_model_for_generation(
            model,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            generation_kwargs=self._settings,  # in place of the model's own, which would fill what is left open
        ) as unwrapped:
            training = unwrapped.training
            out = unwrapped.eval().generate(
                input_ids=padded.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(**self._settings, disable_compile=True),
            )
            unwrapped.train(training)
        return trainer._tokenizer.batch_decode(out[:, padded.size(1) :], skip_special_tokens=True)
