"""Which backend runs an op, and why the others do not.

Each op registers its backends in the order of preference. A backend has two predicates on the op's first tensor,
`can` (it gives right results there) and `auto` (it is worth taking unasked): each returns None for yes, else the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rwkv.errors import KernelError

Predicate = Callable[[Tensor], str | None]


@dataclass(frozen=True)
class Backend:
    name: str
    run: Callable
    can: Predicate
    auto: Predicate
    device: str | None  # the type of device that it is made for; None: any


_OPS: dict[str, dict[str, Backend]] = {}


def register(
    op: str, name: str, run: Callable, *, can: Predicate = lambda _: None, auto: Predicate = lambda _: None, device: str | None = None
) -> None:
    """Add a backend to an op; the earlier registered is preferred."""
    _OPS.setdefault(op, {})[name] = Backend(name, run, can, auto, device)


def ops() -> list[str]:
    return list(_OPS)


def names(op: str) -> list[str]:
    """The backends of an op, most preferred first."""
    return list(_OPS[op])


def why_not(op: str, sample: Tensor) -> dict[str, str | None]:
    """For each backend None, or the reason why `auto` does not take it for a tensor like `sample`."""
    return {b.name: b.can(sample) or b.auto(sample) for b in _OPS[op].values()}


def cannot(op: str, backend: str, sample: Tensor) -> str | None:
    """None if the backend gives right results for a tensor like `sample`, else the reason."""
    return _OPS[op][backend].can(sample)


def passed_over(op: str, sample: Tensor) -> dict[str, str]:
    """The backends that are made for the device of `sample` and would be preferred to what `auto` takes, and why they are not taken."""
    reasons = why_not(op, sample)
    better = list(reasons)[: list(reasons.values()).index(None)]
    return {name: reasons[name] for name in better if _OPS[op][name].device == sample.device.type}


def chosen(op: str, backend: str, sample: Tensor) -> str:
    """The name of the backend that `pick` would run. Raises KernelError as `pick` does."""
    if backend == "auto":
        return next(b.name for b in _OPS[op].values() if not (b.can(sample) or b.auto(sample)))
    if backend not in _OPS[op]:
        raise KernelError(f"kernel={backend}: {op} has no such backend; it has {', '.join(names(op))}")
    if reason := _OPS[op][backend].can(sample):
        raise KernelError(f"kernel={backend}: {op} cannot run there: {reason}")
    return backend


def pick(op: str, backend: str, sample: Tensor) -> Callable:
    """The function that runs `op` for a tensor like `sample`.

    Raises:
        KernelError: no such backend, or it cannot run for such a tensor.
    """
    return _OPS[op][chosen(op, backend, sample)].run
