"""What DeepSpeed is told."""

import pytest

from rwkv.config.compose import load
from rwkv.errors import ConfigError
from rwkv.training.strategies.deepspeed import ds_config


def test_further_settings_are_joined():
    told = ds_config(load(["strategy=ds2", "strategy.deepspeed={zero_optimization: {overlap_comm: true}, dump_state: true}"]))
    assert told["zero_optimization"] == {"stage": 2, "overlap_comm": True} and told["dump_state"] is True


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{zero_optimization: {stage: 3}}", r"strategy\.deepspeed\.zero_optimization\.stage=3: .*; set strategy"),
        ("{gradient_accumulation_steps: 4}", r"strategy\.deepspeed\.gradient_accumulation_steps=4: .*; set layout\.accumulate"),
        ("{bf16: {enabled: true}}", r"strategy\.deepspeed\.bf16\.enabled=True: .*; leave it out"),
    ],
)
def test_what_other_settings_say_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        ds_config(load(["strategy=ds2", f"strategy.deepspeed={given}"]))
