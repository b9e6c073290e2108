"""Weights to train: a whole causal language model, or a LoRA adapter on a frozen one."""

from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import ModelConfig, get_peft_config

from reward.errors import SettingsError
from reward.judges.gram import adapter_base


def load_for_training(
    arguments: ModelConfig, *, gradient_checkpointing: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """The model that TRL's model flags describe, ready for a trainer; sharded where a ZeRO-3 configuration is alive.

    With `use_peft` only an adapter is trained. Where the model is itself an adapter (stage 1 with LoRA), that one goes
    on being trained, with its own rank and targets, so that the saved adapter holds both stages.

    Raises:
        SettingsError: quantised weights are asked for; the model is an adapter and `use_peft` is off, in which case
            the trained weights could not be saved.
    """
    if arguments.load_in_8bit or arguments.load_in_4bit:
        raise SettingsError("load_in_8bit and load_in_4bit are not supported: the label logits need whole weights")
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
    )
    if not arguments.use_peft:
        return model
    if gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches the adapters through frozen embeddings
    if base is not None:
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    return get_peft_model(model, get_peft_config(arguments))
