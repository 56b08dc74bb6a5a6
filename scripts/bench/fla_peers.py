"""flash-linear-attention's kernels, for the benchmarks beside this file: where its ops are installed (`pip install fla-core`).

By themselves its kernels try many settings, each of which takes seconds to compile. Here they try SETTINGS at most, so its times can be some
percent too long, and those are compiled beforehand, in as many processes at once.
"""

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable

import torch

SETTINGS = 8
LOG_DECAY_SCALE = -0.6065306597126334  # of RWKV-7: the least logarithm of a decay


def forms(op: str, part: int | None = None) -> dict[str, Callable]:
    """fla's forms of an op by name, none if it is not installed. They take the op's arguments, of WKV-7 the logarithm of the decay as w.

    part: only this setting of each kernel. Only what is imported first in a process counts.
    """
    if importlib.util.find_spec("fla") is None:
        return {}
    with _trying(part):
        if op == "wkv4":
            from fla.ops.rwkv4 import fused_recurrent_rwkv4
        elif op == "wkv7":
            from fla.ops.rwkv7 import chunk_rwkv7
        else:
            from fla.ops.rwkv6 import chunk_rwkv6

    def wkv4(w, u, k, v, state, reset=None):
        y, s = fused_recurrent_rwkv4(w, u, k, v, state.unsqueeze(2))
        return y, s[:, :2, 0]

    def wkv6(r, w, k, v, u, state, reset=None):
        lw = -torch.exp(w.float()).expand(r.shape)
        return chunk_rwkv6(r, k, v, lw, u, scale=1.0, initial_state=state, output_final_state=True)

    def wkv7(more):
        def run(r, w, k, v, a, b, state, reset=None):
            settings = {"scale": 1.0, "safe_gate": True, "lower_bound": LOG_DECAY_SCALE, "chunk_size": 64} | more
            return chunk_rwkv7(r, w, k, v, a, b, initial_state=state, output_final_state=True, **settings)

        return run

    if op == "wkv7":  # as its layer calls it, and without computing again
        return {"fla": wkv7({}), "fla, keeping more": wkv7({"disable_recompute": True})}
    return {"fla": wkv4 if op == "wkv4" else wkv6}


@contextlib.contextmanager
def _trying(part):
    import triton

    tune = triton.autotune

    def fewer(configs, key, **more):
        kept = _settings(configs)
        return tune(kept if part is None else [kept[part % len(kept)]], key, **more)

    triton.autotune = fewer
    try:
        yield
    finally:
        triton.autotune = tune


def _settings(configs: list) -> list:
    """Few warps, little loaded ahead, small tiles: what its kernels choose in the end."""
    depths = sorted({c.num_stages for c in configs})[:2]
    sizes = lambda c: max([0, *(x for x in c.kwargs.values() if isinstance(x, int))])  # noqa: E731
    return [c for c in configs if c.num_warps in (2, 4) and c.num_stages in depths and sizes(c) <= 64][:SETTINGS] or configs[:SETTINGS]


def compile_ahead(ops: list[str], seconds: float = 120) -> None:
    """Fills Triton's cache: a process for each setting of each op."""
    if importlib.util.find_spec("fla") is None:
        return
    start = time.perf_counter()
    running = [subprocess.Popen([sys.executable, __file__, op, str(part)], stderr=subprocess.PIPE, text=True) for op in ops for part in range(SETTINGS)]
    for process in running:
        try:
            _, said = process.communicate(timeout=max(1, seconds - (time.perf_counter() - start)))
            if process.returncode:
                print(f"  compiling {' '.join(process.args[2:])} of fla: {(said.strip().splitlines() or ['failed'])[-1][:200]}")
        except subprocess.TimeoutExpired:
            process.kill()
    print(f"fla compiled in {time.perf_counter() - start:.0f} s", flush=True)


def main(op: str, part: int) -> None:
    """One forward and backward of each form, small."""
    B, T, H, N = 2, 256, 2, 64
    rand = lambda *s: torch.randn(*s, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    state = torch.randn(B, H, N, N, device="cuda")
    tokens = [rand(B, T, H, N) for _ in range(6)]
    if op == "wkv4":
        inputs = [torch.rand(H * N, device="cuda"), torch.rand(H * N, device="cuda"), rand(B, T, H * N), rand(B, T, H * N), torch.rand(B, 3, H * N, device="cuda")]
    elif op == "wkv7":
        inputs = [tokens[0], -torch.rand_like(tokens[1]) / 2, *tokens[2:], state]
    else:
        inputs = [*tokens[:4], torch.randn(H, N, device="cuda"), state]
    for form in forms(op, part).values():
        leaves = [x.detach().requires_grad_() for x in inputs]
        y, s = form(*leaves)
        torch.autograd.grad([y, s], leaves, [torch.ones_like(y), torch.ones_like(s)], allow_unused=True)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
