"""The settings of DeepSpeed's own file, made from those here."""

from pathlib import Path

import torch

from rwkv.config.schema import TrainConfig
from rwkv.errors import ConfigError
from rwkv.training.strategies import swap

ELSEWHERE = {  # DeepSpeed's names of what has a setting here
    "gradient_accumulation_steps": "layout.accumulate", "train_batch_size": "layout.rows", "optimizer": "optim", "scheduler": "schedule",
    "fp16": "precision", "amp": "precision", "gradient_clipping": "optim.clip", "train_micro_batch_size_per_gpu": "layout.rows", "stage": "strategy",
}  # fmt: skip


def zero_of(kind: str) -> tuple[int, str]:
    """Of strategy=ds*: (ZeRO's stage, what shares go to: "offload", the host; "nvme", a disk; "", neither)."""
    return int(kind[2]), kind[4:]


def ds_config(cfg: TrainConfig, swap_folder: Path | None = None) -> dict:
    """DeepSpeed's own settings, `strategy.deepspeed` among them. Raises ConfigError where it would contradict other settings."""
    stage, where = zero_of(cfg.strategy.kind)
    zero: dict = {"stage": stage}
    if where:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cfg.strategy.accelerator != "cpu" and torch.cuda.is_available()}
    if where and stage == 3:
        zero["offload_param"] = dict(zero["offload_optimizer"])
    if where == "nvme":
        zero["offload_optimizer"] |= {"device": "nvme", "nvme_path": str(swap_folder)}
        zero["sub_group_size"] = swap.PIECE
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": cfg.optim.clip,
        # off in stage 1, else an optimizer of its own would be taken there; this one goes by the weights' dtype
        "bf16": {"enabled": cfg.precision.weights == "bf16" and stage > 1},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }
    return _joined(ours, cfg.strategy.deepspeed, "strategy.deepspeed")


def _joined(ours: dict, theirs: dict, name: str) -> dict:
    for key, value in theirs.items():
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            value = _joined(ours[key], value, f"{name}.{key}")
        elif key in (*ours, *ELSEWHERE):
            remedy = f"set {ELSEWHERE[key]}" if key in ELSEWHERE else "leave it out"
            raise ConfigError(f"{name}.{key}={value}: other settings say that already; {remedy}", f"{name}.{key} contradicts other settings")
        ours = ours | {key: value}
    return ours
