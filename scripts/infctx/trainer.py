"""The keys of the infctx trainer's environment, trainer and model sections."""

import re
from typing import Any

from infctx.conversion import Conversion, Row, copied, taken

STAGES = {f"deepspeed_stage_{stage}": f"ds{stage}" for stage in ("1", "2", "3", "2_offload", "3_offload")}
STRATEGIES = {"auto": "auto", "ddp": "ddp", "fsdp": "fsdp", **STAGES}
PRECISIONS = {"bf16": "bf16", "bf16-mixed": "bf16", "bf16-true": "bf16", "32": "fp32", "32-true": "fp32", "64": "fp64", "64-true": "fp64"}
LIGHTNING = (
    "fast_dev_run limit_train_batches limit_val_batches limit_test_batches limit_predict_batches overfit_batches check_val_every_n_epoch "
    "enable_checkpointing enable_progress_bar enable_model_summary gradient_clip_algorithm deterministic benchmark inference_mode profiler "
    "detect_anomaly barebones plugins sync_batchnorm reload_dataloaders_every_n_epochs"
).split()
WANDB = (
    "tags id resume save_dir version dir log_model entity group notes job_type config prefix anonymous experiment checkpoint_name reinit magic "
    "config_exclude_keys config_include_keys allow_val_change force tensorboard sync_tensorboard monitor_gym save_code settings"
).split()
CHECKPOINT = "trainer.callbacks.init_args."
LOGGER = "trainer.logger.init_args."


def _seed(c: Conversion, key: str, value: Any) -> None:
    if value is True:
        c.dropped[key] = "a random seed: a run here always has the seed that `seed` says, and can be repeated"
    else:
        c.set(seed=int(value))


def _devices(c: Conversion, key: str, value: Any) -> None:
    c.set(strategy__devices=len(value) if isinstance(value, list) else value)
    if isinstance(value, list):
        c.note(f"{key}={value}: their number is taken over; which ones, CUDA_VISIBLE_DEVICES says")


def _strategy(c: Conversion, key: str, value: Any) -> None:
    if value in STRATEGIES:
        c.set(_strategy=STRATEGIES[value])
    else:
        c.dropped[key] = f"{value}: here strategy is one of {', '.join(STRATEGIES.values())}"


def _precision(c: Conversion, key: str, value: Any) -> None:
    if str(value) in PRECISIONS:
        c.set(_precision=PRECISIONS[str(value)])
    else:
        c.dropped[key] = f"{value}: weights here are bf16 (fp32 master weights are kept), fp32 or fp64"


def _batch(c: Conversion, key: str, value: Any) -> None:
    micro, devices, nodes = int(c.get("trainer.microbatch_size", 1)), c.get("trainer.devices", "auto"), int(c.get("trainer.num_nodes", 1))
    target, accumulate = int(c.get("trainer.target_batch_size", -1)), c.get("trainer.accumulate_grad_batches")
    devices = len(devices) if isinstance(devices, list) else devices
    if target > 0:
        c.set(layout__rows=target, layout__at_once=micro)
        c.note(f"trainer.target_batch_size={target}: rows of a step over all devices, exactly; it has to be a multiple of their number")
    elif devices == "auto":
        c.dropped[key] = "the rows of a step depend on the number of devices, which is auto: set layout.rows to devices x microbatch_size"
    else:
        c.set(layout__rows=micro * int(devices) * nodes, layout__accumulate=int(accumulate or 1))


def _callbacks(c: Conversion, key: str, value: Any) -> None:
    if "ModelCheckpoint" not in str(value):
        c.dropped[key] = f"{value}: no such callback here"


def _interval(c: Conversion, key: str, value: Any) -> None:
    parts = [int(p) for p in str(value).split(":")] if isinstance(value, str) else []
    weights = (1440, 60, 1, 1 / 60)[-len(parts) :] if parts else ()
    units = {"days": 1440, "hours": 60, "minutes": 1, "seconds": 1 / 60}
    minutes = sum(p * w for p, w in zip(parts, weights, strict=True)) if parts else sum(units[k] * v for k, v in dict(value).items())
    c.set(checkpoint__minutes=float(minutes))


def _keep(c: Conversion, key: str, value: Any) -> None:
    if int(value) > 0:
        c.set(checkpoint__keep=int(value))
    else:
        c.dropped[key] = f"{value}: the newest are kept, at least one; checkpoint.keep says how many"


def _logger(c: Conversion, key: str, value: Any) -> None:
    if "Wandb" in str(value):
        c.set(_logger="wandb")
    else:
        c.dropped[key] = f"{value}: logger is wandb or none; metrics.jsonl and report.html are always written"


def _validate(c: Conversion, key: str, value: Any) -> None:
    if isinstance(value, int) and value > 0:
        c.set(trainer__val_every=value)
    else:
        c.dropped[key] = f"{value}: a share of an epoch; trainer.val_every counts optimizer steps"


def _learning_rate(c: Conversion, key: str, value: Any) -> None:
    first, last = c.number("model.lr_init", -1), c.number("model.lr_final", -1)
    if first <= 0:
        c.dropped[key] = "without model.lr_init it says nothing; optim.lr=null is RWKV's rule of thumb"
        return
    c.set(optim__lr=first)
    if last > first:
        c.dropped["model.lr_final"] = f"{last} is above lr_init: schedules here do not rise"
    elif last > 0:
        c.set(_schedule="cosine", schedule__final=round(last / first, 12))
    else:
        c.set(_schedule="constant")


def _type(c: Conversion, key: str, value: Any) -> None:
    c.dropped[key] = f"{value}: schedules here are cosine and constant; the cosine ends at lr_final and does not rise again"


def _betas(c: Conversion, key: str, value: Any) -> None:
    c.set(optim__betas=[c.number("model.beta1", 0.9), c.number("model.beta2", 0.99)])


def _bptt(c: Conversion, key: str, value: Any) -> None:
    cut = c.get("model.bptt_truncated_learning", False) and c.get("model.bptt_learning", True)
    c.set(_bptt="truncated" if cut else "exact")
    if not cut:
        c.note("bptt=exact: the gradient is that of the whole document, which grad_cp, v6 and the CUDA kernels cut there whatever was set")


def _size(key: str) -> Row:
    return Row(f"model.{key}", f"model.{key}", "-1: that of the file", copied(f"model.{key}", int), taken(-1))


def _off(key: str, off: Any, why: str) -> Row:
    """A key that is dropped unless it has its value for "off"."""
    return Row(key, "", why, None, taken(off))


ENVIRONMENT = [
    Row("RWKV_JIT_ON", "", "no TorchScript here"),
    Row("RWKV_TORCH_COMPILE", "", "kernels are compiled beforehand"),
    Row("RWKV_NO_CUDA", "model.kernel", "1: model.kernel=chunked; auto takes the fastest that runs, all have exact gradients of the state"),
    Row("WANDB_MODE", "logger.mode", "offline, or online"),
    Row("AWS_*", "AWS_*", "read by s3fs for data.path=s3://..., as there"),
]

TRAINER = [
    Row("seed_everything", "seed", "true (random) is not taken over: a run can always be repeated", _seed),
    Row(
        "ckpt_path",
        "",
        "the same command goes on from the newest checkpoint; a DeepSpeed checkpoint of the infctx trainer: export it there, then model.path=FILE.pth",
    ),
    Row("trainer.accelerator", "strategy.accelerator", "gpu: cuda", copied("strategy.accelerator", lambda x: {"gpu": "cuda"}.get(x, x))),
    Row("trainer.devices", "strategy.devices", "auto, a number; of a list its length", _devices),
    Row("trainer.num_nodes", "strategy.nodes", "", copied("strategy.nodes", int)),
    Row("trainer.strategy", "strategy", "deepspeed_stage_2_offload: ds2_offload, and so on", _strategy),
    Row("trainer.precision", "precision", "bf16, bf16-mixed: bf16 with fp32 master weights and an fp32 loss", _precision),
    Row("trainer.target_batch_size", "layout.rows", "rows of an optimizer step over all devices, exactly", _batch, taken(-1)),
    Row("trainer.microbatch_size", "layout.at_once", "rows that a process computes side by side; without target_batch_size part of layout.rows", _batch),
    Row("trainer.accumulate_grad_batches", "layout.accumulate", "without target_batch_size", _batch),
    Row("trainer.logger", "logger", "WandbLogger: wandb", _logger, taken(False)),
    Row("trainer.logger.class_path", "logger", "WandbLogger: wandb", _logger),
    Row(LOGGER + "project", "logger.project", "", copied("logger.project")),
    Row(LOGGER + "name", "name", "the label of the run's folder, and of the run in W&B", copied("name", lambda x: re.sub(r"[^\w.-]+", "-", str(x)))),
    Row(LOGGER + "offline", "logger.mode", "true: offline", copied("logger.mode", lambda x: "offline" if x else "online")),
    Row(LOGGER + "mode", "logger.mode", "", copied("logger.mode")),
    *(Row(LOGGER + name, "", "W&B reads its own environment variables, as WANDB_ENTITY and WANDB_TAGS") for name in WANDB),
    Row("trainer.callbacks", "checkpoint", "ModelCheckpoint", _callbacks),
    Row("trainer.callbacks.class_path", "checkpoint", "ModelCheckpoint", _callbacks),
    Row(CHECKPOINT + "dirpath", "out", "the folder of the runs; each run has one of its own in it", copied("out", str)),
    Row(CHECKPOINT + "save_top_k", "checkpoint.keep", "the newest", _keep),
    Row(CHECKPOINT + "every_n_train_steps", "checkpoint.every", "optimizer steps", copied("checkpoint.every", int)),
    Row(CHECKPOINT + "train_time_interval", "checkpoint.minutes", "", _interval),
    *(
        Row(CHECKPOINT + name, "", "checkpoints are named by step, the newest kept, the last always written, and hold all that resuming needs")
        for name in (
            "filename",
            "monitor",
            "mode",
            "save_last",
            "save_weights_only",
            "save_on_train_epoch_end",
            "every_n_epochs",
            "verbose",
            "auto_insert_metric_name",
        )
    ),
    *(
        Row(
            f"trainer.{name}",
            "trainer.tokens",
            "not derived: the budget is tokens; epochs x the tokens that `python -m rwkv.preload` prints, or steps x tokens of a step",
            None,
            taken(-1),
        )
        for name in ("max_epochs", "min_epochs", "max_steps", "min_steps")
    ),
    Row("trainer.max_time", "", "a run ends at trainer.tokens; a scheduler's limit is answered with a checkpoint, and the same command goes on"),
    Row("trainer.gradient_clip_val", "optim.clip", "0.0 for none; here 1.0 unless set", copied("optim.clip", float)),
    _off("trainer.num_sanity_val_steps", 0, "the data is checked when it is prepared"),
    Row("trainer.use_distributed_sampler", "", "the order is a function of the seed, the same for any number of devices"),
    Row("trainer.log_every_n_steps", "trainer.log_every", "optimizer steps", copied("trainer.log_every", int)),
    Row("trainer.val_check_interval", "trainer.val_every", "a number of optimizer steps", _validate),
    Row("trainer.default_root_dir", "out", "the folder of the runs", copied("out", str)),
    *(Row(f"trainer.{name}", "", "a switch of Lightning's own") for name in LIGHTNING),
]

MODEL = [
    Row(
        "model.load_model",
        "model=from_file model.path",
        "size and generation are read from the file",
        lambda c, key, value: c.set(_model="from_file", model__path=value),
    ),
    Row("model.ctx_len", "ctx_len", "tokens of a chunk: any number, and any length of document", copied("ctx_len.tokens", int)),
    Row("model.ctx_len_cutoffs", "", "data.max_tokens drops longer documents; layout.max_tokens cuts their gradient", None, taken([])),
    Row("model.ctx_len_warmup_steps", "", "as ctx_len_cutoffs", None, taken([])),
    Row("model.lr_init", "optim.lr", "", _learning_rate, taken(-1)),
    Row("model.lr_final", "schedule.final", "as a share of optim.lr; -1: schedule=constant", _learning_rate, taken(-1)),
    Row("model.lr_period", "", "the schedule spans the whole run, as -1 there, and stays at its end", None, taken(-1)),
    Row("model.lr_period_type", "", "the schedule spans the run", None, taken("epoch", "step")),
    Row("model.lr_type", "schedule", "cosine (which does not rise again); linear is none of ours", _type, taken("cosine")),
    Row("model.warmup_steps", "schedule.warmup_steps", "works together with a decay", copied("schedule.warmup_steps", int), taken(-1, 0)),
    Row("model.beta1", "optim.betas", "", _betas),
    Row("model.beta2", "optim.betas", "", _betas),
    Row("model.adam_eps", "optim.eps", "", copied("optim.eps", float)),
    Row(
        "model.weight_decay",
        "optim.weight_decay",
        "decoupled, on matrices; in v4 and v6 of the infctx trainer it has no effect",
        copied("optim.weight_decay", float),
    ),
    Row("model.layerwise_lr", "optim.layerwise_lr", "the official factors of the generation", copied("optim.layerwise_lr", bool)),
    _off("model.dropout", 0.0, "no dropout here, as in the official trainer"),
    Row("model.grad_cp", "bptt.recompute", "activation checkpointing; it cuts no gradient here", copied("bptt.recompute", bool)),
    Row("model.bptt_learning", "bptt", "false (one backward over all chunks) is the gradient that bptt=exact has", _bptt),
    Row(
        "model.bptt_learning_range", "", "every chunk is learnt from, as -1 there; how far back a gradient goes is bptt=truncated bptt.depth=K", None, taken(-1)
    ),
    Row("model.bptt_truncated_learning", "bptt", "true: truncated, bptt.depth=1; false: exact", _bptt),
    Row("model.bptt_full_segmented_loss", "", "every predicted token of an optimizer step counts the same", None, taken(False)),
    _off("model.position_loss_bias", 1.0, "every predicted token counts the same"),
    _off("model.position_loss_bias_in_validation", False, "every predicted token counts the same"),
    _off("model.token_loss_threshold", 0.0, "no selective loss: what is trained is set in data.record, token by token"),
    _off("model.token_dropout_rate", 0.0, "no selective loss: what is trained is set in data.record, token by token"),
    _size("n_embd"),
    _size("n_layer"),
    _size("vocab_size"),
    Row("model.dim_att", "", "n_embd, or that of the file"),
    Row("model.dim_ffn", "", "that of the generation, or of the file"),
    _off("model.substep_cuda_cache_clear", False, "memory is planned, and reported when it does not suffice"),
    _off("model.substep_logging", False, "a line of metrics.jsonl is an optimizer step"),
    Row("model.consolidated_logging", "", "metrics are always those of all devices together"),
    Row("model.torch_set_float32_matmul_precision", "", "precision=fp32 is fp32"),
]
