"""Weights to train: a whole causal language model, or a LoRA adapter on a frozen, perhaps quantised one."""

import importlib.util

from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config, get_quantization_config

from reward.errors import SettingsError
from reward.judges.gram import adapter_base


def quantization_of(arguments: ModelConfig) -> BitsAndBytesConfig | None:
    """What TRL's flags say of the precision below the adapters (QLoRA); None is whole weights.

    Raises:
        SettingsError: quantised weights cannot be trained, only adapters on them; or bitsandbytes is not installed.
    """
    wanted = "--load_in_4bit" if arguments.load_in_4bit else "--load_in_8bit" if arguments.load_in_8bit else None
    if wanted is None:
        return None
    if not arguments.use_peft:
        raise SettingsError(f"{wanted}: quantised weights cannot be trained, adapters on them can: add --use_peft")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(f'{wanted} needs bitsandbytes: pip install "gram-rlhf[qlora]"')
    import bitsandbytes

    # Its layout for processors has no backward pass, is chosen by the first forward in evaluation mode, and stays.
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    return get_quantization_config(arguments)


def load_for_training(
    arguments: ModelConfig, *, gradient_checkpointing: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """The model that TRL's model flags describe, ready for a trainer; sharded where a ZeRO-3 configuration is alive.

    With `use_peft` only an adapter is trained. Where the model is itself an adapter (stage 1 with LoRA), that one goes
    on being trained, with its own rank and targets, so that the saved adapter holds both stages.

    Raises:
        SettingsError: see `quantization_of`; the model is an adapter and `use_peft` is off, in which case the trained
            weights could not be saved.
    """
    quantization = quantization_of(arguments)
    path, revision = arguments.model_name_or_path, arguments.model_revision
    base = adapter_base(path, revision)
    if base is not None and not arguments.use_peft:
        raise SettingsError(
            f"{path} holds a LoRA adapter of {base}: go on training it with --use_peft, or merge it into its base first"
        )
    model = AutoModelForCausalLM.from_pretrained(
        base or path,
        revision=None if base else revision,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        trust_remote_code=trust_remote_code,
        **({} if quantization is None else {"quantization_config": quantization}),
    )
    if not arguments.use_peft:
        return model
    if quantization is not None:  # the output embedding, which the label logits are read from, stays whole
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches the adapters through frozen embeddings
    if base is not None:
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    return get_peft_model(model, get_peft_config(arguments))
