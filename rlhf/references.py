"""What the current and the initial policy say outside TRL's own rollout: the one place that decodes there.

Greedy responses are what sampled ones are measured against; samples at temperature 1 measure how far the policy is.

Legend: B prompts, P prompt tokens, T response tokens.
"""

from dataclasses import dataclass

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import (
    add_fused_lm_head,
    create_model_from_path,
    get_config_model_id,
    pad,
    selective_log_softmax,
    use_adapter,
)

from reward.errors import SettingsError
from reward.types import Message, Prompt, as_prompt
from rlhf.logprobs import suit_processor


def load_initial_policy(trainer: GRPOTrainer) -> torch.nn.Module:
    """A frozen copy of what the policy started from, prepared as TRL prepares its reference model."""
    args = trainer.args
    kwargs = {**(args.model_init_kwargs or {}), "device_map": None}
    kwargs.setdefault("dtype", trainer.model.dtype)
    kwargs.setdefault("attn_implementation", trainer.model.config._attn_implementation)
    model = create_model_from_path(get_config_model_id(trainer.model.config), **kwargs)
    add_fused_lm_head(model, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    suit_processor(model, trainer.accelerator.device)
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


_SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # the policy's own distribution


@dataclass(frozen=True)
class Decoded:
    """Responses as tokens and as text; an end token is part of its response, what follows it is not."""

    prompt_ids: Tensor  # (B, P), padded on the left
    prompt_mask: Tensor  # (B, P)
    ids: Tensor  # (B, T), padded on the right
    mask: Tensor  # (B, T)
    ended: Tensor  # (B,), False where the response was cut off at the longest length
    texts: list[str]


class References:
    """Responses of the policy of `trainer`, one a prompt.

    Every rank calls together: decoding under ZeRO-3 is a collective.

    Args:
        initial_policy: the frozen copy; None with an adapter, where the policy without it is the initial one.
    """

    def __init__(self, trainer: GRPOTrainer, initial_policy: torch.nn.Module | None):
        self._trainer = trainer
        self.initial_policy = initial_policy
        self._known: dict[Prompt, str] = {}  # the initial policy's responses
        self._beside: list[str] | None = None  # the current policy's, where they were decoded with the samples
        self._settings = {
            "do_sample": False,
            "repetition_penalty": 1.0,  # some models' own generation_config sets one, and greedy means the arg max
            "max_new_tokens": trainer.args.max_completion_length,
            "pad_token_id": trainer._tokenizer.pad_token_id,
            "bos_token_id": trainer._tokenizer.bos_token_id,
            "eos_token_id": trainer.eos_token_ids,
        }

    def keep(self, ids: list[list[int]]) -> None:
        """The tokens of the current policy's responses to the prompts that `current` is asked for next."""
        self._beside = self._trainer._tokenizer.batch_decode(ids, skip_special_tokens=True)

    def current(self, prompts: list) -> list[str]:
        """The current policy's responses."""
        if self._beside is not None:
            texts, self._beside = self._beside, None
            return texts
        return self._decode(self._trainer.model_wrapped, prompts).texts

    def initial(self, prompts: list) -> list[str]:
        """The initial policy's responses, each prompt decoded once in a run."""
        accelerator = self._trainer.accelerator
        keys = [as_prompt(prompt) for prompt in prompts]
        missing = torch.tensor([any(key not in self._known for key in keys)], device=accelerator.device)
        if accelerator.gather(missing).any():  # all ranks decode or none
            if self.initial_policy is None:
                with use_adapter(accelerator.unwrap_model(self._trainer.model), adapter_name=None):
                    responses = self._decode(self._trainer.model_wrapped, prompts)
            else:
                responses = self._decode(self.initial_policy, prompts)
            self._known.update(zip(keys, responses.texts, strict=True))
        return [self._known[key] for key in keys]

    def sample(self, prompts: list, seed: int) -> Decoded:
        """The current policy's responses, sampled at temperature 1 without filters.

        The random state of the run stays as it is: training goes on as if nothing had been sampled.
        """
        device = self._trainer.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._decode(self._trainer.model_wrapped, prompts, _SAMPLING)

    def log_ratio(self, decoded: Decoded) -> Tensor:
        """log π(response) - log π_initial(response) at temperature 1, (B,): its mean over samples of π is the KL."""
        current = self._logprob(self._trainer.model, decoded)
        if self.initial_policy is not None:
            return current - self._logprob(self.initial_policy, decoded)
        with use_adapter(self._trainer.accelerator.unwrap_model(self._trainer.model), adapter_name=None):
            return current - self._logprob(self._trainer.model, decoded)

    def state(self) -> list:
        """The initial policy's responses so far. Decoded again beside other prompts, one could differ by a token."""
        return [([(turn.role, turn.content) for turn in prompt], text) for prompt, text in self._known.items()]

    def load(self, state: list) -> None:
        """What `state` gave."""
        self._known = {tuple(Message(*turn) for turn in prompt): text for prompt, text in state}

    @torch.no_grad()
    def _logprob(self, model: torch.nn.Module, decoded: Decoded) -> Tensor:
        """(B,). Not TRL's fused head, which divides by the run's temperature."""
        mask = torch.cat([decoded.prompt_mask, decoded.mask], dim=1)
        training = model.training
        model.eval()
        with self._trainer.accelerator.autocast():
            logits = model(
                input_ids=torch.cat([decoded.prompt_ids, decoded.ids], dim=1),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=decoded.ids.size(1) + 1,
                use_cache=False,
            ).logits[:, :-1]  # (B, T, V)
        model.train(training)
        return (selective_log_softmax(logits.float(), decoded.ids) * decoded.mask).sum(1)

    @torch.no_grad()
    def _decode(self, model: torch.nn.Module, prompts: list, sampling: dict | None = None) -> Decoded:
        trainer, settings = self._trainer, self._settings | (sampling or {})
        device = trainer.accelerator.device
        ids, _, _ = trainer._tokenize_prompts(prompts)
        rows = [torch.tensor(row) for row in ids]
        padded = pad(rows, padding_value=trainer._tokenizer.pad_token_id, padding_side="left").to(device)
        mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left").to(device)
        with unwrap_model_for_generation(
            model,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            generation_kwargs=settings,  # in place of the model's own, which would fill what is left open
        ) as unwrapped:
            training = unwrapped.training
            out = unwrapped.eval().generate(
                input_ids=padded,
                attention_mask=mask,
                generation_config=GenerationConfig(**settings, disable_compile=True),
            )
            unwrapped.train(training)
        written = out[:, padded.size(1) :]
        ends = torch.isin(written, torch.tensor(trainer.eos_token_ids, device=device)).long()
        return Decoded(
            prompt_ids=padded,
            prompt_mask=mask,
            ids=written,
            mask=(ends.cumsum(1) - ends == 0).long(),
            ended=ends.any(1),
            texts=trainer._tokenizer.batch_decode(written, skip_special_tokens=True),
        )
