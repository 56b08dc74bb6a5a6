"""python -m rwkv.kernels: which backend runs each operation here, and why the others do not; `check` compares all that can with fp64."""

import sys
import textwrap

from rwkv.config import cli
from rwkv.errors import ConfigError

USAGE = """usage: python -m rwkv.kernels [check [kernel=BACKEND ...] [OP ...]]

Without arguments: each operation, its backends in the order of preference, and why one is not taken on this device.
check: compares each backend that can run here, or only those named, with the plain form in fp64, from the same rounded inputs: the
relative L2 distance of outputs and of all gradients, over fast and slow decays, one key, one token, resets. Exit code 1 if one is above
its bound, or none can run."""


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        print(USAGE)
        return 0
    if argv and argv[0] != "check":
        raise ConfigError(f"{argv[0]}: unknown; {USAGE.splitlines()[0]}")

    import torch

    from rwkv.kernels import check as checks
    from rwkv.kernels import registry

    named = {arg.removeprefix("kernel=") for arg in argv[1:] if arg.startswith("kernel=")}
    asked = [arg for arg in argv[1:] if not arg.startswith("kernel=")]
    if unknown := [op for op in asked if op not in registry.ops()]:
        raise ConfigError(f"{unknown[0]}: no such operation; there are {', '.join(sorted(registry.ops()))}")
    backends = {op: [name for name in registry.names(op) if not named or name in named] for op in asked or sorted(registry.ops())}
    if lost := named - {name for names in backends.values() for name in names}:
        raise ConfigError(f"kernel={min(lost)}: no backend of {', '.join(backends)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    return check(backends, device, checks) if argv else show(backends, device)


def show(ops, device) -> int:
    """The backends of each op for a training chunk, in the dtype of the device's own kernels."""
    import torch

    from rwkv.kernels import registry

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sample = torch.empty(1, 128, 1, 64, dtype=dtype, device=device)
    print(f"for {dtype} and heads of 64; `python -m rwkv.kernels check` compares what can run\n")
    for op in ops:
        taken = registry.chosen(op, "auto", sample)
        for backend, reason in registry.why_not(op, sample).items():
            label, op = op, ""
            print(f"{label:15} {backend:10} {'runs' if backend == taken else reason or 'can run'}")
    return 0


def check(backends, device, checks) -> int:
    print("relative L2 distance to fp64, the largest over all cases and the largest of each tensor\n")
    print(f"{'operation':14} {'backend':9} {'dtype':5} {'largest':7} {'bound':5}      where")
    compared = failed = 0
    for op, names in backends.items():
        cannot: dict[tuple[str, str], list[str]] = {}
        for found in checks.errors(op, device, names):
            if isinstance(found, tuple):
                backend, dtype = found[0].split()
                cannot.setdefault((backend, found[1]), []).append(dtype)
                continue
            compared += 1
            failed += not found.passed
            verdict = "ok" if found.passed else "FAIL"
            print(f"{op:14} {found.backend:9} {checks.short(found.dtype):5} {found.worst:<7.1e} {found.bound:.0e} {verdict:4} {found.where}")
            print_each(found.found)
        for (backend, reason), dtypes in cannot.items():
            print(f"{op:14} {backend:9} {' '.join(dtypes)}: cannot run: {reason}")
        sys.stdout.flush()
    if not compared:
        print("\nFAILED: none of them can run here")
        return 1
    print(f"\n{f'FAILED: {failed} of them above the bound' if failed else 'all within their bounds'}")
    return 1 if failed else 0


def print_each(errors: dict[str, float]) -> None:
    """The tensors' errors, in lines of 80 columns."""
    text = "  ".join(f"{name}\xa0{error:.0e}" for name, error in errors.items())
    print(textwrap.fill(text, 80, initial_indent=" " * 15, subsequent_indent=" " * 15, break_long_words=False).replace("\xa0", " "))


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
