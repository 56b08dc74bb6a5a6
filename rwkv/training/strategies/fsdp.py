"""strategy=fsdp: PyTorch's FSDP2. Every rank holds its share of each weight, gradient and moment; blocks are gathered when they run."""

import warnings

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rwkv.bptt.chunks import Eager
from rwkv.config.schema import TrainConfig
from rwkv.model.rwkv import RWKV
from rwkv.training.optimizer import master_dtype
from rwkv.training.strategies.whole import Whole


class Fsdp(Whole):
    """The optimizer of `Whole` over shards: rows of each weight (torch.chunk along dimension 0), in fp32 where weights are bf16.

    Gradients are summed over the ranks, in the masters' dtype, after each chunk's backward: none is ever held whole.
    """

    together = True

    def _place(self, rwkv: RWKV) -> RWKV:
        dtype = rwkv.emb.weight.dtype
        master = master_dtype(dtype)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=master, cast_forward_inputs=False)
        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.world,))
        rwkv = rwkv.to(master)
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing is changed in place
        # what is called by itself is gathered by itself; the whole, last, is the root that orders them
        for part in (rwkv.emb, *rwkv.blocks, rwkv.ln_out, rwkv.head, rwkv):
            fully_shard(part, mesh=mesh, mp_policy=policy)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # a plain sum, which Gloo can do too
        return rwkv

    def _make_runner(self, cfg: TrainConfig) -> Eager:
        return Eager(self.model, cfg.bptt.recompute == "selective")

    def clip(self, max_norm: float) -> float:
        return self.optimizer.clip(max_norm).full_tensor().item()

    def whole(self, name: str, wanted: bool) -> dict[str, Tensor]:
        gathered = ((n, x.full_tensor() if isinstance(x, DTensor) else x) for n, x in self.optimizer.entries(name).items())
        return {n: x.detach() for n, x in gathered if wanted}

    def put(self, name: str, entries: dict[str, Tensor]) -> None:
        super().put(name, {n: self._shard(name, x) if x.dim() else x for n, x in entries.items()})

    def _shard(self, name: str, whole: Tensor) -> DTensor:
        """This rank's rows of a whole tensor of the form of the parameter `name`."""
        master = self.optimizer.masters[name]
        rows = whole.chunk(self.ranks.world)
        mine = rows[self.ranks.rank] if self.ranks.rank < len(rows) else whole[:0]
        return self._local(name, mine.to(master.device, master.dtype))

    def _local(self, name: str, mine: Tensor) -> DTensor:
        master = self.optimizer.masters[name]
        return DTensor.from_local(mine, master.device_mesh, master.placements, shape=master.shape, stride=master.stride())

    def gradients(self) -> dict[str, Tensor]:
        return {n: m.grad.to_local().cpu() for n, m in self.optimizer.masters.items() if m.grad is not None}

    def put_gradients(self, grads: dict[str, Tensor]) -> None:
        for name, grad in grads.items():
            self.optimizer.masters[name].grad = self._local(name, grad.to(self.ranks.device))
