"""Every backend that can run on this device against the plain one in fp64, on the CPU: outputs and all gradients, extremes included."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rwkv.kernels import fused, registry
from rwkv.kernels.common import state_dtype
from rwkv.kernels.wkv4 import wkv4
from rwkv.kernels.wkv5 import wkv5
from rwkv.kernels.wkv6 import wkv6
from rwkv.kernels.wkv7 import wkv7

# of the relative L2 distance. In fp32 the loop over tokens rounds the state at each; plain PyTorch in bf16 rounds after each operation
BOUNDS = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 8e-3}
ROUNDING, ROUNDING_BOUND = ("torch", torch.bfloat16), 2e-2
PLAIN = ("reference", "torch")  # the backends that define an op
WKV = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6, "wkv7": wkv7}
FP32 = ("state", "scale")  # never in bf16


@dataclass
class Case:
    """One call of an op: `inputs` in fp64 by name; `run(backend, *inputs)` gives outputs, named by `outputs`."""

    name: str
    run: Callable
    inputs: dict[str, Tensor]
    outputs: list[str]
    grad: bool = True
    rounding: bool = True  # whether plain PyTorch in bf16 is compared: on a CPU its layer norm sums over tokens in bf16, so of many it is far off


@dataclass
class Errors:
    """Of one backend in one dtype: the largest of each output and gradient over all cases, and where the largest of all is."""

    op: str
    backend: str
    dtype: torch.dtype
    found: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0
    where: str = ""

    @property
    def bound(self) -> float:
        return ROUNDING_BOUND if (self.backend, self.dtype) == ROUNDING else BOUNDS[self.dtype]

    @property
    def passed(self) -> bool:
        return self.worst <= self.bound


def errors(op: str, device: torch.device, backends: list[str]) -> Iterator[Errors | tuple[str, str]]:
    """For each of the backends and each dtype of an op its errors; for a backend that cannot run its name and dtype, and why."""
    for backend in backends:
        for dtype in BOUNDS:
            sample = torch.empty(1, 2, 1, 64, dtype=dtype, device=device)
            if reason := registry.cannot(op, backend, sample):
                yield f"{backend} {short(dtype)}", reason
            elif (backend, dtype) not in [(plain, torch.float64) for plain in PLAIN]:
                yield compare(op, backend, dtype, device)


def compare(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> Errors:
    plain, errors = next(name for name in registry.names(op) if name in PLAIN), Errors(op, backend, dtype)
    for case in cases(op):
        if "r" in case.inputs and registry.cannot(op, backend, case.inputs["r"].to(device, dtype)):
            continue  # other heads than it takes
        if not case.rounding and (backend, dtype) == ROUNDING:
            continue
        rounded = {name: x.to(dtype if name not in FP32 else state_dtype(x.to(dtype))).double() for name, x in case.inputs.items()}
        want = results(case, rounded, torch.float64, plain, torch.device("cpu"), dtype)
        got = results(case, rounded, dtype, backend, device, dtype)
        for name, value in want.items():
            scale = value.norm() if value.any() else math.sqrt(value.numel())  # where zero is right, that of ones
            error = ((got[name].double().cpu() - value).norm() / scale).item()
            error = math.inf if math.isnan(error) else error
            errors.found[name] = max(errors.found.get(name, 0.0), error)
            if error >= errors.worst:
                errors.worst, errors.where = error, f"{name}, {case.name}"
    return errors


def results(case: Case, inputs: dict[str, Tensor], dtype: torch.dtype, backend: str, device: torch.device, rounded: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients by name, computed in `dtype`, from gradients of the outputs rounded as `rounded` is."""
    fp32 = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.to(device, fp32 if name in FP32 else dtype, copy=True).requires_grad_(case.grad) for name, x in inputs.items()]
    outs = case.run(backend, *leaves)
    named = dict(zip(case.outputs, (o.detach() for o in outs), strict=True))
    if case.grad:
        rand = random(1)
        grads = [rand(*o.shape).to(rounded).to(o) for o in outs]
        found = torch.autograd.grad(outs, leaves, grads)
        # the exponent that WKV-4 takes out of its state hands no gradient back
        found = [g[:, :2] if name == "state" and case.outputs[-1] == "sums" else g for name, g in zip(inputs, found, strict=True)]
        named |= {f"d{name}": g for name, g in zip(inputs, found, strict=True)}
    return named


def random(seed: int) -> Callable[..., Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)


def cases(op: str) -> Iterator[Case]:
    if op in WKV:
        yield from wkv_cases(op)
    else:
        yield from {"norm_mix": norm_mix, "wkv7_inputs": wkv7_inputs, "wkv7_readout": wkv7_readout, "relu_squared": relu_squared, "cross_entropy_": entropy}[op]()


def wkv_cases(op: str) -> Iterator[Case]:
    fast, slow = (8.0, -12.0) if op == "wkv7" else (3.5, -12.0)  # raw decays
    for i, (name, B, T, H, N, decay, resets, one_key) in enumerate([
        ("mixed decays", 2, 70, 2, 64, (-6.0, 1.0), 0.0, False),
        ("heads of 32, resets", 2, 100, 2, 32, (-6.0, 1.0), 0.05, False),
        ("slow decay", 2, 70, 2, 64, (slow, slow), 0.0, False),
        ("fast decay", 2, 70, 2, 64, (fast, fast), 0.0, False),
        ("decays far apart", 2, 70, 2, 64, (-20.0, 5.0), 0.05, False),
        ("one key", 2, 48, 2, 64, (-8.0, -8.0), 0.0, True),
        ("one token", 2, 1, 2, 64, (-6.0, 1.0), 0.0, False),
        ("resets everywhere", 2, 35, 2, 64, (-6.0, 1.0), 1.0, False),
        ("many heads", 5, 70, 4, 64, (-6.0, 1.0), 0.05, False),  # WKV-7 is launched in another way on a GPU
    ]):  # fmt: skip
        yield wkv_case(op, name, B, T, H, N, decay, resets, one_key, random(i))


def wkv_case(op, name, B, T, H, N, decay, resets, one_key, rand) -> Case:
    lo, hi = decay
    of_decay = lambda *s: lo + (hi - lo) * torch.sigmoid(2 * rand(*s))  # noqa: E731
    reset = rand(B, T) < math.sqrt(2) * torch.erfinv(torch.tensor(2 * resets - 1)).item() if resets else None
    at = lambda x: None if reset is None else reset.to(x.device)  # noqa: E731
    if op == "wkv4":
        C = H * N
        k = 2 * (rand(B, 1, C).expand(B, T, C) if one_key else rand(B, T, C))
        state = torch.stack([rand(B, C), rand(B, C).abs() + 0.1, rand(B, C)], 1)

        def run4(backend, *x):
            y, s = wkv4(*x, at(x[0]), backend=backend)
            return y, s[:, :2] * torch.exp(s[:, 2:])

        return Case(name, run4, {"w": of_decay(C), "u": rand(C), "k": k, "v": rand(B, T, C), "state": state}, ["y", "sums"])
    per_token = {"r": rand(B, T, H, N), "w": of_decay(B, T, H, N), "k": rand(B, T, H, N), "v": rand(B, T, H, N)}
    key = rand(B, 1, H, N).expand(B, T, H, N) if one_key else rand(B, T, H, N)
    if op == "wkv7":
        kk, gate = torch.nn.functional.normalize(key, dim=-1), torch.ones(()) if one_key else torch.sigmoid(rand(B, T, H, N))
        more = {"a": -kk, "b": kk * gate}
    else:
        more = {"u": rand(H, N)}
        per_token |= {"k": key} | ({"w": of_decay(H, N)} if op == "wkv5" else {})
    run = lambda backend, *x: WKV[op](*x, at(x[0]), backend=backend)  # noqa: E731
    return Case(name, run, {**per_token, **more, "state": rand(B, H, N, N)}, ["y", "last"])


def norm_mix() -> Iterator[Case]:
    for name, B, T, C, M, added, resets in (
        ("six mixes, added", 2, 37, 64, 6, True, True), ("one mix", 3, 21, 40, 1, False, False), ("one token", 2, 1, 64, 2, True, True),
        ("many tokens", 1, 2500, 768, 6, True, True),  # on a GPU several for each program
    ):  # fmt: skip
        rand = random(T)
        inputs = {"x": 3 * rand(B, T, C) + 1, "weight": 1 + rand(C) / 4, "bias": rand(C), "last": rand(B, C), **({"out": rand(B, T, C)} if added else {})}
        mixes = {f"mix{i}": rand(1, 1, C) for i in range(M)}
        reset = rand(B, T) > 1.0 if resets else None

        def run(backend, x, weight, bias, last, *rest, added=added, reset=reset):
            out, mixes = (rest[0], rest[1:]) if added else (None, rest)
            x, mixed, end = fused.norm_mix(x * 1, out, weight, bias, last, list(mixes), None if reset is None else reset.to(x.device), backend)
            return x, *mixed, end

        yield Case(name, run, inputs | mixes, ["sum", *(f"mixed{i}" for i in range(M)), "end"], rounding=T < 1000)


def wkv7_inputs() -> Iterator[Case]:
    for name, B, T, H, N, first in (
        ("heads of 64", 2, 37, 2, 64, False), ("first layer", 1, 33, 3, 32, True), ("one token", 2, 1, 2, 64, False), ("many tokens", 1, 2500, 12, 64, False),
    ):  # fmt: skip
        rand, C = random(T), H * N
        inputs = {x: rand(B, T, C) for x in ("r", "k", "v", "a")} | ({} if first else {x: rand(B, T, C) for x in ("v_gate", "v_first")})
        inputs |= {x: rand(1, 1, C) for x in (("a0", "k_k", "k_a") if first else ("a0", "v0", "k_k", "k_a"))} | {"r_k": rand(H, N)}

        def run(backend, r, k, v, a, *rest, first=first):
            if first:
                a0, k_k, k_a, r_k = rest
                return fused.wkv7_inputs(r, k, v, a, None, None, a0, torch.zeros_like(a0), k_k, k_a, r_k, backend)
            return fused.wkv7_inputs(r, k, v, a, *rest, backend)

        yield Case(name, run, inputs, ["r", "k", "v", "a", "b", "bonus"])


def wkv7_readout() -> Iterator[Case]:
    for name, B, T, H, N in (("heads of 64", 2, 37, 2, 64), ("one token", 2, 1, 2, 32), ("many tokens", 1, 2500, 12, 64)):
        rand, C = random(T), H * N
        inputs = {"y": 2 * rand(B, T, H, N) + 1, "v": rand(B, T, H, N), "bonus": rand(B, T, H), "g": rand(B, T, C)}
        yield Case(name, lambda backend, *x: (fused.wkv7_readout(*x, backend),), inputs | {"weight": 1 + rand(C) / 4, "bias": rand(C)}, ["out"])


def relu_squared() -> Iterator[Case]:
    yield Case("a matrix", lambda backend, x: (fused.relu_squared(x * 1, backend),), {"x": random(0)(37, 1500)}, ["y"])


def entropy() -> Iterator[Case]:
    for name, V, l2wrap in (("1000 words", 1000, 0.0), ("with l2wrap", 1000, 0.3), ("256 words, far apart", 256, 0.0)):
        rand = random(V)
        logits = (40.0 if "far" in name else 4.0) * rand(13, V)
        targets = torch.arange(13) * 7

        def run(backend, x, scale, targets=targets, l2wrap=l2wrap):
            return fused.cross_entropy_(x, targets.to(x.device), scale, l2wrap, True, backend), x

        yield Case(name, run, {"logits": logits, "scale": rand(13).abs()}, ["losses", "gradient"], grad=False)


def short(dtype: torch.dtype) -> str:
    return {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
