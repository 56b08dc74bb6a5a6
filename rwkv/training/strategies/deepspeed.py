"""strategy=ds1, ds2, ds3, with offload to host or disk or without: DeepSpeed's ZeRO. Adam lies in shares on the ranks, with 2 gradients too, with 3 weights too.

Its engine takes part in every forward and backward, and sums gradients as its stage does. It must be told which backward is
a step's last: without that stages 1 and 2 sum wrongly, in silence.
"""

import logging
import math
import os
import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rwkv.bptt.chunks import Eager
from rwkv.config.compose import nearest
from rwkv.config.derived import model_of
from rwkv.config.schema import TrainConfig
from rwkv.data.batch import Chunk
from rwkv.errors import ConfigError
from rwkv.kernels import again
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import RWKV, Block
from rwkv.model.size import Size
from rwkv.model.state import DTYPES, State
from rwkv.training.optimizer import MASTER, adam_groups, set_rate
from rwkv.training.ranks import Ranks
from rwkv.training.strategies import swap
from rwkv.training.strategies.base import Strategy
from rwkv.training.strategies.ds_config import ELSEWHERE, ds_config, zero_of

MOMENTS = ("exp_avg", "exp_avg_sq")
REFUSED = "DeepSpeed refuses strategy.deepspeed"


class DeepSpeed(Strategy):
    together = True
    stops_inside = False  # its sums of gradients are its own
    layerwise = False  # its engine takes part in whole passes

    def __init__(self, cfg: TrainConfig, size: Size, ranks: Ranks):
        deepspeed = _import(cfg.strategy.kind, ranks.device.type)
        os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.world), "LOCAL_RANK": str(ranks.fabric.local_rank)}
        self.ranks, (self.stage, where) = ranks, zero_of(cfg.strategy.kind)
        with torch.device("meta"):
            blank = RWKV(size)
        self.shapes = {n: p.shape for n, p in blank.named_parameters()}
        settings = ds_config(cfg, swap.folder(cfg.strategy) if where == "nvme" else None)
        if self.stage == 3:
            with deepspeed.zero.Init(config_dict_or_path=settings):
                rwkv = model_of(cfg, size)
            deepspeed.utils.set_z3_leaf_modules(rwkv, [Block])  # whose formulas use the weights of its parts: gathered all at once
        else:
            with torch.device("meta"):
                rwkv = model_of(cfg, size).to(DTYPES[cfg.precision.weights])
            rwkv = rwkv.to_empty(device=ranks.device)
        if cfg.bptt.recompute is True:
            for block in rwkv.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        self.model = LossModel(rwkv, cfg.optim.l2wrap)
        self.params = dict(rwkv.named_parameters())
        groups = adam_groups(self.params, blank.optimizer_groups(), cfg.optim.weight_decay, cfg.optim.layerwise_lr)
        self.inner = _Adam(groups, lr=0.0, betas=tuple(cfg.optim.betas), eps=cfg.optim.eps, fused=True)
        self.engine, self.adam, *_ = deepspeed.initialize(model=_Outer(self.model), optimizer=self.inner, config=settings)
        self.runner = _Runner(self.engine, self.model, ranks.world, cfg.bptt.recompute == "selective")
        self._make_moments()

    def _make_moments(self) -> None:
        """Adam's state as before the first step, so that it can be set."""
        for i, flat in enumerate(self.adam.fp32_partitioned_groups_flat if self.stage == 3 else self.adam.single_partition_of_fp32_groups):
            on_disk = self.stage == 3 and self.adam._swappable_optimizer_subgroup(i)
            if on_disk:
                self.adam._optimizer_states_and_gradient_swap_in(i)
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            self.adam.state[flat] = {"step": step, **{n: torch.zeros_like(flat) for n in MOMENTS}}
            if on_disk:
                self.adam._optimizer_states_and_gradient_swap_out(i)
        if self.stage < 3:
            self.adam._lazy_init_hp_params_optimizer_state()

    def last_pass(self, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)

    def clip(self, max_norm: float) -> float:
        """The scaling itself is done by `step`, with the same max_norm, of the settings."""
        if self.stage == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            return combine_grad_norm_groups(self.adam._get_norm_groups()).item()
        norm = float(self.adam.scaled_global_norm())
        return norm if norm >= 0 else math.nan

    def step(self, lr: float) -> None:
        set_rate(self.adam, lr)
        self.engine.step()

    def drop(self) -> None:
        self.inner.idle = True
        self.engine.step()
        self.inner.idle = False

    def whole(self, name: str, wanted: bool) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        param = self.params[name]
        entries = {MASTER: safe_get_full_fp32_param(param), **{n: safe_get_full_optimizer_state(param, n) for n in MOMENTS}}
        entries["step"] = next(s["step"] for s in self.adam.state.values()).clone()
        return {n: x.detach().view(self.shapes[name] if x.dim() else ()) for n, x in entries.items() if wanted}

    def put(self, name: str, entries: dict[str, Tensor]) -> None:
        (self._put_sharded if self.stage == 3 else self._put_flat)(self.params[name], entries)
        for state in self.adam.state.values():  # all weights have taken as many steps
            state["step"].fill_(entries.get("step", 0))

    def _put_flat(self, param: nn.Parameter, entries: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        weight = entries[MASTER].to(self.ranks.device, torch.float32)
        param.data.copy_(weight)
        safe_set_full_fp32_param(param, weight)
        for key in MOMENTS:
            moment = entries[key].to(weight) if key in entries else torch.zeros_like(weight)
            safe_set_full_optimizer_state(param, moment, key)

    def _put_sharded(self, param: nn.Parameter, entries: dict[str, Tensor]) -> None:
        """Each rank has an equal share of a weight's elements, the last filled up."""
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
            if self.ranks.first:
                param.data.copy_(entries[MASTER])
        each = -(-param.ds_numel // self.ranks.world)

        def share(key: str) -> Tensor:
            mine = torch.zeros(each, device=self.ranks.device)
            if key in entries:
                x = entries[key].flatten()[self.ranks.rank * each :][:each]
                mine[: len(x)] = x
            return mine

        safe_set_local_fp32_param(param, share(MASTER))
        for key in MOMENTS:
            safe_set_local_optimizer_state(param, share(key), key)


class _Adam(torch.optim.AdamW):
    """DeepSpeed clears gradients in a step alone; in one where Adam is idle, nothing else comes of it."""

    idle = False

    def step(self, closure=None):
        return None if self.idle else super().step(closure)


class _Outer(nn.Module):
    """The loss model as the engine calls it: it watches the tensors that come out."""

    def __init__(self, model: LossModel):
        super().__init__()
        self.model = model

    def forward(self, chunk: Chunk, state: State) -> tuple[Tensor, Tensor, Tensor]:
        loss, end = self.model(chunk.tokens, state, chunk.reset, chunk.targets, chunk.weight)
        return loss, *end.tensors()


class _Runner(Eager):
    """Chunks by way of the engine, which takes the mean over the ranks: what goes in is made so much larger."""

    def __init__(self, engine, model: LossModel, world: int, selective: bool):
        super().__init__(model, selective)
        self.engine, self.world = engine, world

    def forward_with_graph(self, chunk: Chunk, state: State) -> tuple[Tensor, State]:
        with again.selective(self.selective):
            loss, *end = self.engine(chunk, state)
        return loss, State(*end)

    def backward_from(self, scalar: Tensor) -> None:
        self.engine.backward(scalar * self.world, scale_wrt_gas=False)

    def backward(self, chunk: Chunk, state: State, d_end: list[Tensor] | None, wanted: bool) -> tuple[Tensor, State, list[Tensor] | None]:
        loss, end, d_start = super().backward(chunk, state, d_end, wanted)
        return loss, end, d_start and [x / self.world for x in d_start]


def check(cfg: TrainConfig, n: int, device: str, build: bool) -> None:
    """Raises ConfigError if a model of n parameters cannot be trained so with these settings, on this machine; see `strategies.check`."""
    _import(cfg.strategy.kind, device)
    _check_settings(ds_config(cfg), cfg.strategy.deepspeed)
    if cfg.strategy.kind == "ds3_nvme":
        swap.check(cfg.strategy, n, build)


def _check_settings(settings: dict, theirs: dict) -> None:
    """Raises ConfigError for what DeepSpeed refuses of `settings`, and for what it would never ask for of `theirs`, which are among them."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    told = _Told(settings)
    try:
        DeepSpeedConfig(told)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}={e['input']}: {e['msg'][0].lower()}{e['msg'][1:]}" for e in error.errors())
        section = next((f".{s}" for s, given in theirs.items() if isinstance(given, dict) and error.errors()[0]["loc"][0] in given), "")
        raise ConfigError(f"strategy.deepspeed{section}: DeepSpeed refuses {wrong}; its names are in its documentation ({error.title})", REFUSED) from error
    except Exception as error:  # of any type, and about these settings
        raise ConfigError(f"strategy.deepspeed={theirs}: DeepSpeed refuses it: {error}", REFUSED) from error
    for key in theirs.keys() - told.asked:
        known = sorted(told.asked - ELSEWHERE.keys())
        raise ConfigError(f"strategy.deepspeed.{key}: DeepSpeed has no such setting{nearest(key, known, 'strategy.deepspeed')}; it has {', '.join(known)}", REFUSED)


class _Told(dict):
    """Settings that note the names which are asked for: DeepSpeed has no list of them."""

    def __init__(self, settings: dict):
        super().__init__(settings)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> object:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: object = None) -> object:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> "_Told":
        return self


def _import(kind: str, device: str):
    """DeepSpeed, told of which device it is. Raises ConfigError if it is not installed, or does not work here."""
    os.environ["DS_ACCELERATOR"] = device
    try:
        import deepspeed
    except Exception as error:  # of any type: it looks for compilers and libraries
        missing = isinstance(error, ModuleNotFoundError)
        raise ConfigError(
            f"strategy={kind}: DeepSpeed cannot be imported: {error}; {'pip install deepspeed' if missing else 'mend that'}, "
            "or set strategy=fsdp, which needs nothing but PyTorch",
            "DeepSpeed is not installed" if missing and error.name == "deepspeed" else "DeepSpeed cannot be imported",
        ) from error
    warnings.filterwarnings("ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor).* is deprecated", category=FutureWarning)
    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a helper that would be compiled for 97 s of CPU time
    return deepspeed
