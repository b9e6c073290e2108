"""Where a frozen judge lives: for now a whole copy on every rank."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed as hf_deepspeed


@contextmanager
def whole() -> Iterator[None]:
    """Models loaded inside are whole, even while a ZeRO-3 configuration is alive.

    transformers shards every `from_pretrained` while such a configuration exists; a bare forward of a sharded model
    fails with `'weight' must be 2-D`.
    """
    alive = hf_deepspeed._hf_deepspeed_config_weak_ref  # transformers offers no public way to ask for it
    config = None if alive is None else alive()
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            hf_deepspeed.set_hf_deepspeed_config(config)
