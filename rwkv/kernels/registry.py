"""Which backend runs an op, and why the others do not.

Each op registers its backends in the order of preference. A backend has two predicates on the op's first tensor,
`can` (it gives right results there) and `auto` (it is worth taking unasked): each returns None for yes, else the reason.
"""

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class Kernels:
    """The backend asked for of each op, `kernels[op]`: `auto` where none is named."""

    named: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, op: str) -> str:
        return dict(self.named).get(op, "auto")

    @staticmethod
    def of(kernel: str | Mapping[str, str], recurrence: str) -> "Kernels":
        """From the setting: a backend of the recurrence, or one of each op named. Raises KernelError at an op that the model has not."""
        named = {recurrence: kernel} if isinstance(kernel, str) else dict(kernel)
        has = ops_of(recurrence)
        if unknown := [op for op in named if op not in has]:
            raise KernelError(f"model.kernel.{unknown[0]}={named[unknown[0]]}: the model has no such operation; it has {', '.join(has)}")
        return Kernels(tuple(sorted(named.items())))


def register(
    op: str, name: str, run: Callable, *, can: Predicate = lambda _: None, auto: Predicate = lambda _: None, device: str | None = None
) -> None:
    """Add a backend to an op; the earlier registered is preferred."""
    _OPS.setdefault(op, {})[name] = Backend(name, run, can, auto, device)


def ops() -> list[str]:
    return list(_OPS)


def ops_of(recurrence: str) -> list[str]:
    """The recurrence itself and the ops around it."""
    return [recurrence, *(op for op in _OPS if not op.startswith("wkv") or op.startswith(f"{recurrence}_"))]


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
