"""Proximal policy optimisation: the rollout of TRL's `GRPOTrainer`, a critic, GAE.

What TRL's trainer keeps doing: sampling, batching, the clipped policy loss (which takes advantages of shape (B, T)),
logging, checkpoints, PEFT, vLLM. What is ours: references, groups and scores; log-probabilities, values and
advantages of a rollout; the critic's steps.

Legend: B responses in a batch, G responses of a prompt, P prompt tokens, T response tokens.
"""

import json
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import (
    add_fused_lm_head,
    create_model_from_path,
    get_config_model_id,
    pad,
    print_prompt_completions_sample,
    use_adapter,
)

from reward.errors import NoVerdictError, SettingsError, require_finite_loss
from reward.trl_signature import groups_from_rows
from reward.types import RewardBackend, as_prompt
from rlhf.advantages import (
    adapt_kl_coef,
    explained_variance,
    explained_variance_of,
    gae,
    last_token,
    masked_sums,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf.critic import Critic, load_critic
from rlhf.ppo_config import PPOConfig, check_data

_STATE_NAME = "ppo_state.json"
_GRPO_METRICS = ("frac_reward_zero_std", "reward", "reward_std", "kl")  # of a group's spread, which PPO does not use


class PPOTrainer(GRPOTrainer):
    """Trains `model` on the scores of `backend`.

    Args:
        model: the policy, a path or a loaded causal language model.
        backend: scores groups; a NaN score masks the response out of both losses.
        args: `PPOConfig`.
        train_dataset: rows with `prompt` (text or messages), and `reference` (text) for `reference="dataset"`.
        reference: what responses are measured against: the current policy's `greedy` response (the method as
            published), the `initial` policy's greedy response, or the `dataset`'s.
        critic: a loaded critic instead of `args.critic_model`.
        gold: a second backend whose scores are logged as `objective/gold` and never trained on.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo"]
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}

    def __init__(
        self,
        model: str | PreTrainedModel,
        backend: RewardBackend,
        args: PPOConfig,
        train_dataset: Dataset,
        *,
        reference: str = "greedy",
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        critic: PreTrainedModel | None = None,
        gold: RewardBackend | None = None,
        peft_config=None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        check_data(train_dataset, args, reference)
        self.backend = backend
        self.gold = gold
        self.reference = reference
        self.kl_coef = args.kl_coef
        self._phase_seconds: dict[str, float] = defaultdict(float)
        self._initial_responses: dict = {}  # prompt -> the initial policy's greedy response
        self._rollouts = 0
        self._no_verdict_reasons: list[str] = []

        def score(prompts, completions, **columns):
            return self._score_rows(prompts, completions, **columns)

        score.__name__ = backend.name  # TRL names metrics and columns after the function
        super().__init__(
            model=model,
            reward_funcs=score,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            peft_config=peft_config,
        )
        self._peft = peft_config is not None
        if is_peft_model(self.model) and not self._peft:
            raise SettingsError(
                f"the policy ({type(model).__name__}) is an adapter already, and the initial policy would be its base "
                "without it: merge it into its base first, or start from the base with --use_peft"
            )
        if not self._peft:
            self.ref_model = self._load_initial_policy()
        self.critic = None
        if not args.constant_critic:
            critic = critic or load_critic(
                args.critic_model or get_config_model_id(self.model.config),
                initial_value=args.critic_initial_value,
                dtype=self.model.dtype,
                revision=None if args.critic_model else (args.model_init_kwargs or {}).get("revision"),
                trust_remote_code=args.trust_remote_code,
            )
            if args.gradient_checkpointing:
                critic.gradient_checkpointing_enable()
            self.critic = Critic(
                critic,
                self.accelerator,
                learning_rate=args.critic_learning_rate,
                max_grad_norm=args.max_grad_norm,
                betas=(args.adam_beta1, args.adam_beta2),
                epsilon=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        self._greedy = {
            "do_sample": False,
            "repetition_penalty": 1.0,  # some models' own generation_config sets one, and greedy means the arg max
            "max_new_tokens": args.max_completion_length,
            "pad_token_id": self._tokenizer.pad_token_id,
            "bos_token_id": self._tokenizer.bos_token_id,
            "eos_token_id": self.eos_token_ids,
        }

    def _load_initial_policy(self) -> torch.nn.Module:
        """The frozen policy of the KL term, as TRL makes it when its `beta` is not 0 (ours sits in the rewards)."""
        kwargs = {**(self.args.model_init_kwargs or {}), "device_map": None}
        kwargs.setdefault("dtype", self.model.dtype)
        kwargs.setdefault("attn_implementation", self.model.config._attn_implementation)
        model = create_model_from_path(get_config_model_id(self.model.config), **kwargs)
        add_fused_lm_head(model, temperature=self.temperature, cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        return self.accelerator.prepare_model(model.eval(), evaluation_mode=True)

    # --- rollout: sampling, references, scores --------------------------------------------------------------------

    @contextmanager
    def _phase(self, name: str):
        started = time.perf_counter()
        yield
        self._phase_seconds[name] += time.perf_counter() - started

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "reference" not in self._signature_columns:
            self._signature_columns.append("reference")

    def _generate(self, prompts: list):
        with self._phase("rollout"):
            return super()._generate(prompts)

    def _score_rows(self, prompts, completions, *, log_metric, log_extra, **columns) -> list[float | None]:
        """TRL's reward function: rows of this rank in, one score a row out, None where there is none."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        unique = prompts[::size]
        with self._phase("rollout"):
            references = self._references(unique, columns.get("reference"), size)
        groups = groups_from_rows(prompts, completions, size, references)
        with self._phase("judging"):
            results = self.backend.score(groups)
            if self._win_rate_is_due():
                self._log_win_rate(groups, unique, log_metric)
        if self.gold is not None:
            gold = [score for result in self.gold.score(groups) for score in result.scores if score == score]
            if gold:
                log_metric("objective/gold", sum(gold) / len(gold))
        self._no_verdict_reasons = [reason for result in results for reason in result.reasons]
        values = defaultdict(list)
        for result in results:
            for name, value in result.metrics:
                values[name].append(value)
        for name, of_groups in values.items():
            log_metric(f"reward/{self.backend.name}/{name}", sum(of_groups) / len(of_groups))
        if references is not None:
            log_extra("reference", [reference for reference in references for _ in range(size)])
        scores = [score for result in results for score in result.scores]
        return [None if score != score else score for score in scores]

    def _references(self, prompts: list, column: list | None, size: int) -> list[str]:
        if self.reference == "dataset":
            return list(column[::size])
        if self.reference == "greedy":
            return self._greedy_responses(self.model_wrapped, prompts)
        return self._initial_policy_responses(prompts)

    def _initial_policy_responses(self, prompts: list) -> list[str]:
        """Greedy responses of the frozen initial policy, each prompt decoded once in a run."""
        keys = [as_prompt(prompt) for prompt in prompts]
        missing = torch.tensor(
            [any(key not in self._initial_responses for key in keys)], device=self.accelerator.device
        )
        if self.accelerator.gather(missing).any():  # decoding under ZeRO-3 is a collective: all ranks or none
            if self._peft:
                with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                    responses = self._greedy_responses(self.model_wrapped, prompts)
            else:
                responses = self._greedy_responses(self.ref_model, prompts)
            self._initial_responses.update(zip(keys, responses, strict=True))
        return [self._initial_responses[key] for key in keys]

    @torch.no_grad()
    def _greedy_responses(self, model, prompts: list) -> list[str]:
        ids, _, _ = self._tokenize_prompts(prompts)
        rows = [torch.tensor(row) for row in ids]
        padded = pad(rows, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left")
        with unwrap_model_for_generation(
            model,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self._greedy,  # in place of the model's own, which would fill what is left open
        ) as unwrapped:
            training = unwrapped.training
            out = unwrapped.eval().generate(
                input_ids=padded.to(self.accelerator.device),
                attention_mask=mask.to(self.accelerator.device),
                generation_config=GenerationConfig(**self._greedy, disable_compile=True),
            )
            unwrapped.train(training)
        return self._tokenizer.batch_decode(out[:, padded.size(1) :], skip_special_tokens=True)

    def _win_rate_is_due(self) -> bool:
        every = self.args.win_rate_steps
        return bool(every) and (not self.model.training or self._rollouts % every == 0)

    def _log_win_rate(self, groups, prompts, log_metric) -> None:
        """The share of responses that score above the initial policy's greedy response; a tie counts half.

        Every backend can answer: that response is scored as one more member of the group, against itself.
        """
        initial = self._initial_policy_responses(prompts)
        widened = [
            replace(group, responses=(*group.responses, rival), reference=rival)
            for group, rival in zip(groups, initial, strict=True)
        ]
        wins = [
            0.5 if score == result.scores[-1] else float(score > result.scores[-1])
            for result in self.backend.score(widened)
            for score in result.scores[:-1]
            if score == score and result.scores[-1] == result.scores[-1]
        ]
        if wins:
            log_metric("objective/win_rate_vs_initial", sum(wins) / len(wins))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # (B of all ranks, 1)
        missing = rewards[:, 0].isnan().float().mean().item()
        if missing == 1.0 or missing > self.args.max_no_verdict_rate:
            reasons = sorted(set(gather_object(self._no_verdict_reasons)))[:5]
            raise NoVerdictError(
                f"the reward backend {self.backend.name!r} gave no score to {missing:.0%} of the {len(rewards)} "
                f"responses of a rollout (at most --max_no_verdict_rate {self.args.max_no_verdict_rate:.0%} may lack "
                f"one) at step {self.state.global_step}. Reasons: {'; '.join(reasons) or 'none given'}"
            )
        start = self.accelerator.process_index * len(prompts)
        self._scores = rewards[start : start + len(prompts), 0]
        return rewards

    # --- rollout: log-probabilities, values, advantages -----------------------------------------------------------

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        for name in _GRPO_METRICS:
            self._metrics[mode].pop(name, None)
        scores = self._scores  # (B,), NaN where not scored
        mask = batch["completion_mask"] * batch.get("tool_mask", 1) * (~scores.isnan()).unsqueeze(1)  # (B, T)
        with torch.no_grad(), self._phase("scoring"):
            old_logps, ref_logps, values = self._score_tokens(batch, mode)
        kl = (old_logps - ref_logps) * mask  # (B, T)
        ended = batch["completion_ids"].gather(1, last_token(batch["completion_mask"]).unsqueeze(1)).squeeze(1)
        has_eos = torch.isin(ended, torch.tensor(self.eos_token_ids, device=ended.device))
        rewards = token_rewards(
            scores, kl, mask, kl_coef=self.kl_coef, has_eos=has_eos, missing_eos_penalty=self.args.missing_eos_penalty
        )
        advantages, returns = gae(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        sums = self.accelerator.reduce(masked_sums(advantages, mask))
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, sums, std_floor=self.args.advantage_std_floor)
        self._log_rollout(mode, scores, rewards, kl, old_logps, values, returns, mask)
        self._show_advantages(advantages, mask)
        if mode == "train":
            self._rollouts += 1
        batch |= {
            "advantages": advantages,
            "returns": returns,
            "old_values": values,
            "old_per_token_logps": old_logps,
            "tool_mask": mask,  # TRL multiplies its loss mask with this one
            "num_items_in_batch": self.accelerator.gather(mask.sum()).sum(),
        }
        return batch

    def _score_tokens(self, batch, mode: str) -> tuple[Tensor, Tensor, Tensor]:
        """Old log-probabilities, those of the initial policy, and values, each (B, T), in minibatches."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].size(1)
        size = self.args.per_device_train_batch_size if mode == "train" else self.args.per_device_eval_batch_size

        def logps(model):
            return self._get_per_token_logps_and_entropies(model, ids, mask, length, batch_size=size)[0]

        old = batch["old_per_token_logps"] if "old_per_token_logps" in batch else logps(self.model)
        if self._peft:
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                reference = logps(self.model)
        else:
            reference = logps(self.ref_model)
        if self.critic is None:
            return old, reference, torch.full_like(old, self.args.critic_initial_value)
        parts = [
            self.critic.values(*(batch[name][start : start + size] for name in _CRITIC_INPUTS))
            for start in range(0, len(ids), size)
        ]
        return old, reference, torch.cat(parts)

    def _log_rollout(self, mode, scores, rewards, kl, logps, values, returns, mask) -> None:
        scored = ~scores.isnan()
        per_response = torch.stack(
            [
                scored.float(),
                scores.nan_to_num(0.0),
                rewards.sum(1),
                kl.sum(1),
                (-logps * mask).sum(1),
                mask.sum(1).float(),
            ]
        )  # (6, B)
        per_response[2:] *= scored
        totals = self.accelerator.reduce(per_response.sum(1))
        count = totals[0].clamp(min=1)
        score, reward, sequence_kl, entropy, length = (totals[1:] / count).tolist()
        log = self._metrics[mode]
        log["objective/scores"].append(score)
        log["objective/rlhf_reward"].append(reward)
        log["objective/kl"].append(sequence_kl)
        log["objective/entropy"].append(entropy)
        log["objective/response_length"].append(length)
        log["objective/kl_coef"].append(self.kl_coef)
        log["objective/scored_share"].append(self.accelerator.reduce(scored.float().mean(), "mean").item())
        if self.critic is not None:
            spread = self.accelerator.reduce(explained_variance(values, returns, mask))
            log["value/explained_variance"].append(explained_variance_of(spread))
        if mode == "train" and self.args.kl_target is not None:
            step = count.item() / self.args.kl_horizon
            self.kl_coef = adapt_kl_coef(self.kl_coef, sequence_kl, target=self.args.kl_target, step=step)

    def _show_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """Mean advantage of each response into the sample table, where TRL has put those of a group."""
        means = self.accelerator.gather(advantages.sum(1) / mask.sum(1).clamp(min=1)).tolist()
        shown = self._logs["advantages"]
        for _ in range(min(len(means), len(shown))):  # an evaluation batch can be larger than the table
            shown.pop()
        shown.extend(means)

    # --- optimisation ---------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch):
        started = time.perf_counter()
        inputs = super()._prepare_inputs(generation_batch)
        self._phase_seconds["optimisation"] -= time.perf_counter() - started  # training_step adds the whole step
        return inputs

    def training_step(self, model, inputs, num_items_in_batch):
        with self._phase("optimisation"):
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.critic is not None:
                self._critic_step(self._minibatch)
        return loss

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        read = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if read[0].requires_grad:
            self._logps, self._entropies = read[0].detach(), read[1].detach()  # of the minibatch, for metrics
        return read

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        mode = "train" if self.model.training else "eval"
        log = self._metrics[mode]
        for ours, theirs in (("clip_fraction", "clip_ratio/region_mean"), ("entropy", "entropy")):
            log[f"policy/{ours}"].append(log[theirs][-1])
        if mode == "train":
            require_finite_loss(
                loss.item(), term="the policy loss", step=self.state.global_step, output_dir=self.args.output_dir
            )
            self._minibatch = inputs
            mask = inputs["tool_mask"]
            log_ratio = (self._logps - inputs["old_per_token_logps"]) * mask
            sums = torch.stack([0.5 * log_ratio.square().sum(), log_ratio.exp().mul(mask).sum(), mask.sum().float()])
            half_square, ratio, count = self.accelerator.reduce(sums).tolist()
            log["policy/approx_kl"].append(half_square / max(count, 1))
            log["policy/ratio"].append(ratio / max(count, 1))
            log["policy/loss"].append(self.accelerator.reduce(loss.detach(), "mean").item())
        return loss

    def _critic_step(self, inputs) -> None:
        """Value regression on the minibatch the policy has just stepped on, with the same token normaliser.

        A minibatch without a single scored token still runs forward and backward: under ZeRO-3 both are collectives.
        """
        mask = inputs["tool_mask"]
        values = self.critic.values(*(inputs[name] for name in _CRITIC_INPUTS))
        per_token, clipped = value_loss(
            values, inputs["old_values"], inputs["returns"], cliprange=self.args.cliprange_value
        )
        window = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        normaliser = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes * window
        loss = (per_token * mask).sum() / normaliser
        require_finite_loss(
            loss.item(), term="the value loss", step=self.state.global_step, output_dir=self.args.output_dir
        )
        peak = self.args.learning_rate
        self.critic.step(
            loss,
            boundary=self.accelerator.sync_gradients,
            schedule=self._get_learning_rate() / peak if peak else 1.0,
        )
        sums = torch.stack(
            [(per_token * mask).sum(), (clipped * mask).sum(), (values * mask).sum(), mask.sum().float()]
        )
        total, share, mean, count = self.accelerator.reduce(sums.detach()).tolist()
        log = self._metrics["train"]
        log["value/loss"].append(total / max(count, 1))
        log["value/clip_fraction"].append(share / max(count, 1))
        log["value/mean"].append(mean / max(count, 1))

    # --- logging, saving, resuming --------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if mode == "train" and self._metrics[mode]:
            total = sum(self._phase_seconds.values())
            for name, seconds in self._phase_seconds.items():
                self._metrics[mode][f"seconds/{name}"] = [seconds]
                self._metrics[mode][f"share/{name}"] = [seconds / total]
            self._phase_seconds.clear()
        super().log(logs, start_time)
        every = self.args.sample_steps
        due = mode == "train" and every and self.state.global_step % every == 0 and self._logs["prompt"]
        if due and self.accelerator.is_main_process:
            print_prompt_completions_sample(
                self._logs["prompt"],
                self._logs["completion"],
                self._logs["rewards"],
                self._logs["advantages"],
                self.state.global_step,
                self.num_completions_to_print or 4,
                extra=dict(self._logs["extra"]),
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """The policy, and beside it `critic/`; both load with `from_pretrained`."""
        super().save_model(output_dir, _internal_call)
        if self.critic is not None:
            self.critic.save_pretrained(Path(output_dir or self.args.output_dir, "critic"))

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        if self.critic is not None:
            self.critic.save_state(folder)
        if self.args.should_save:
            state = {"kl_coef": self.kl_coef, "rollouts": self._rollouts}
            Path(folder, _STATE_NAME).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.critic is not None:
            self.critic.load_state(checkpoint)
        state = json.loads(Path(checkpoint, _STATE_NAME).read_text())
        self.kl_coef, self._rollouts = state["kl_coef"], state["rollouts"]


_CRITIC_INPUTS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
