"""Models load whole while a ZeRO-3 configuration is alive, and the configuration is alive again afterwards."""

from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from reward.placement import whole


def test_the_trainers_configuration_is_set_aside_and_put_back():
    with whole():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert is_deepspeed_zero3_enabled()
    with whole():
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled()
    del config  # transformers holds it weakly
    assert not is_deepspeed_zero3_enabled()
