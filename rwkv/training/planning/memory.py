"""The one model of a training run's memory: bytes of a rank by category, on its device and on the host, for each strategy.

What a chunk takes is counted (`chunk.py`); what each strategy holds of the model is said here, with the sources of the rules.
"""

import math
from dataclasses import dataclass

from rwkv.bptt.states import place_of_inputs, place_of_states
from rwkv.config.schema import WHOLE
from rwkv.training.planning.chunk import Chunk, chunk_bytes
from rwkv.training.planning.machine import CONTEXT, PROGRAM, PROGRAM_CUDA, Machine
from rwkv.training.planning.work import Parameters, Work, parameters
from rwkv.training.ranks import REDUCE_BYTES
from rwkv.training.step import VAL_ROWS
from rwkv.training.strategies import swap
from rwkv.training.strategies.ds_config import zero_of

CATEGORIES = ("weights", "masters", "gradients", "optimizer", "activations", "logits", "states", "buffers", "checkpoint", "program")
BUCKET = 5 * 10**8  # elements: DeepSpeed's reduce_bucket_size
LIVE = 10**9  # elements: its stage3_max_live_parameters, which stay gathered
# of activations on a CPU, what `rwkv.kernels.pool` and malloc keep free beside them: measured. With bptt.recompute=true it is far more, the
# process up to twice what is planned: malloc's heap is fragmented by blocks that come and go. With MALLOC_TRIM_THRESHOLD_=33554432 in the
# environment, which keeps malloc from moving its threshold for mmap, it is as planned (1.05), and a step takes 1.8 times as long
KEPT_FREE = 0.25
SWAPPED = 4  # DeepSpeed's buffers of a piece that comes from the disk: master weights, moments, gradients
STATES_AT_WORK = 5  # carried, entering, its leaf, its gradient, the gradient of the end

Bytes = dict[str, int]


@dataclass(frozen=True)
class Need:
    """Bytes of a rank by category: on its device (empty where that is the CPU), and on the host."""

    device: Bytes
    host: Bytes

    def of_node(self, ranks: int) -> int:
        """On the host."""
        return sum(self.host.values()) * ranks

    @property
    def of_device(self) -> int:
        return sum(self.device.values())

    @property
    def of_tensors(self) -> int:
        """What PyTorch's allocator gives out on a CUDA device."""
        return self.of_device - self.device.get("program", 0)


def need(kind: str, work: Work, machine: Machine, world: int) -> Need:
    """Of a rank of `world`, under a strategy. Raises KernelError if `model.kernel` cannot run on such a device."""
    params, each, cuda = parameters(work.size), min(machine.each, world), machine.device == "cuda"
    held, on_host = shares(kind, params, work, world, cuda)
    rows = work.rows_of_rank(world)
    group = min(work.at_once or rows, rows)
    chunk = chunk_bytes(work.size, group, work.ctx, work.weights, machine.device, work.kernels, work.selective, work.residual)
    held |= at_work(work, chunk, group, world)
    room = machine.memory - sum(held.values()) if cuda else None
    host = (machine.host or 2**60) / each
    states, place = states_kept(work, group, room, host)
    held["states"] = STATES_AT_WORK * group * work.state + (rows - group) * work.state
    _add(held if place == "device" or not cuda else on_host, "states", states)
    if work.recompute:
        size, place = inputs_kept(work, chunk, room, host)
        _add(held if place == "device" or not cuda else on_host, "activations", size)
    on_host["checkpoint"] = -(-3 * params.total * work.master // world)  # its share, held a second time from the first save on
    _add(on_host, "program", PROGRAM_CUDA if cuda else PROGRAM)
    if cuda:
        return Need(_sorted(held | {"program": CONTEXT}), _sorted(on_host))
    held["activations"] += int(KEPT_FREE * held["activations"])
    for name, size in held.items():
        _add(on_host, name, size)
    return Need({}, _sorted(on_host))


def shares(kind: str, params: Parameters, work: Work, world: int, cuda: bool) -> tuple[Bytes, Bytes]:
    """What a rank holds of the model and of Adam, and the buffers it talks through: (on the device, of that on the host instead).

    Sources: `strategies/whole.py`; FSDP2's gathering of a unit, the next one prefetched, and its reduce-scatter in the masters' dtype;
    DeepSpeed's runtime/zero/stage_1_and_2.py and stage3.py with the settings of `strategies/ds_config.py`.
    """
    n, e, m = params.total, work.element, work.master
    share = -(-n // world)
    if kind in WHOLE:
        buffers = min(n * m, REDUCE_BYTES + params.largest * m) if world > 1 else 0
        return _held(n * e, n * m if e < m else 0, n * m, 2 * n * m, buffers), {}
    if kind == "fsdp":
        return _held(share * m, 0, share * m, 2 * share * m, params.unit * (3 * e + m)), {}
    stage, where = zero_of(kind)
    bucket = (BUCKET if cuda else min(BUCKET, n)) * (m if stage == 1 else e) + (min(BUCKET, n) * m if e < m and stage > 1 else 0)
    if stage == 3:
        weights, gradients, buffers = share * e, share * m, bucket + min(LIVE, n) * e + params.unit * e
    else:
        weights, buffers = n * e, bucket + min(BUCKET, n) * e
        gradients = share * m + (n * m if stage == 1 else 0)
    held = _held(weights, share * m, gradients, 2 * share * m, buffers)
    moved = {k: held[k] for k in ["masters", "gradients", "optimizer"] + ["weights"] * (stage == 3)} if where else {}
    held = {k: v for k, v in held.items() if k not in moved}
    if where == "nvme":  # masters and moments are on the disk, but for the pieces at work
        moved = {"weights": weights, "gradients": gradients, "buffers": SWAPPED * min(share, swap.PIECE + params.largest // world) * m}
    return held, moved


def at_work(work: Work, chunk: Chunk, group: int, world: int) -> Bytes:
    """What is there while a chunk's gradient is computed, or in validation, whichever is more."""
    if work.recompute:  # `rwkv.bptt.layerwise`: the head's backward is through before a block is computed again
        training = chunk.inputs + max(chunk.logits, chunk.by_block + chunk.backward)
    else:
        training = chunk.kept + max(chunk.logits, chunk.backward)
    validation = chunk.forward * -(-VAL_ROWS // world) // group + chunk.logits
    return {"activations": max(training, validation) - chunk.logits, "logits": chunk.logits}


def states_kept(work: Work, rows: int, device: float | None, host: float) -> tuple[int, str]:
    """(bytes, place) of the states at chunk boundaries that wait for the second pass; place is "device", "host" or "disk".

    device, host: bytes free; device None: there is no other than the host."""
    each = rows * work.state
    kind = work.states if work.states != "auto" else place_of_states(each * work.window, device, host)
    if kind == "disk":
        return 0, kind
    if kind == "sqrt":
        return each * min(work.window, 2 * math.isqrt(work.window) + 2), "device"
    return each * work.window, kind


def inputs_kept(work: Work, chunk: Chunk, device: float | None, host: float) -> tuple[int, str]:
    """(bytes, place) of what entered the blocks of the chunks of the first pass, kept for the second where there is room."""
    place, count = place_of_inputs(chunk.inputs, work.window - 1, device, host)
    return count * chunk.inputs, place


def _held(weights: int, masters: int, gradients: int, optimizer: int, buffers: int) -> Bytes:
    return {"weights": weights, "masters": masters, "gradients": gradients, "optimizer": optimizer, "buffers": buffers}


def _add(to: Bytes, name: str, size: int) -> None:
    to[name] = to.get(name, 0) + size


def _sorted(sizes: Bytes) -> Bytes:
    """In the order of the categories, without those that are nothing."""
    return {name: sizes[name] for name in CATEGORIES if sizes.get(name)}
