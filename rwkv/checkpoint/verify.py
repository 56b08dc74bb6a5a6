"""What can be wrong with a checkpoint or a model file, found without a model being built."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from rwkv.checkpoint import official, shards, store
from rwkv.errors import CheckpointError

ENTRIES = {"exp_avg", "exp_avg_sq", "step"}  # what Adam has of each weight that has taken part
NEEDED = {"step", "tokens", "seconds", "fingerprint", "position", "parts"}
AT_MOST = 5  # names in a message

Told = Callable[[int], None]  # of so many bytes more that are done


def work_of(checkpoint: Path) -> int:
    """Bytes that `findings` will tell of; 0 without a readable manifest."""
    try:
        files = store.manifest(checkpoint)
    except CheckpointError:
        return 0
    return sum(f["bytes"] for f in files.values())


def findings(checkpoint: Path, told: Told) -> list[str]:
    """All that is wrong with a checkpoint: files that are not as written; if all are, what does not fit together in them."""
    try:
        files = store.manifest(checkpoint)
    except CheckpointError as error:
        return [str(error)]
    wrong = []
    for name, file in files.items():
        if difference := store.difference(checkpoint / name, file["sha256"], file["bytes"]):
            wrong.append(f"{checkpoint / name}: {difference}")
        told(file["bytes"])
    return wrong or [f"{checkpoint}: {text}" for text in (*_progress(checkpoint), *_tensors(checkpoint))]


def progress_of(checkpoint: Path) -> dict:
    """Its counters and position. Raises CheckpointError if they cannot be read."""
    try:
        progress = json.loads((checkpoint / store.PROGRESS).read_text())
        missing = NEEDED - progress.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{store.PROGRESS} cannot be read: {error}") from error
    if missing:
        raise CheckpointError(f"{store.PROGRESS} has no {', '.join(sorted(missing))}")
    return progress


def _progress(checkpoint: Path) -> Iterator[str]:
    try:
        progress = progress_of(checkpoint)
    except CheckpointError as error:
        yield str(error)
        return
    step, tokens, ranks = progress["step"], progress["tokens"], progress["parts"][0]
    if step != store.step_of(checkpoint):
        yield f"{store.PROGRESS} is of step {step}"
    if (step > 0) != (tokens > 0):
        yield f"{tokens:,} tokens at step {step}"
    inside = "+" in checkpoint.name
    unfinished = len(shards.files(checkpoint, "unfinished"))
    if unfinished != inside * ranks:
        yield f"parts of an unfinished step: {unfinished}, and {inside * ranks} belong to it"


def _tensors(checkpoint: Path) -> Iterator[str]:
    model, optimizer = (shards.Tensors(checkpoint, kind) for kind in ("model", "optimizer"))
    yield from of_model(dict(model))
    yield from _of_optimizer(model.shapes(), optimizer, store.step_of(checkpoint))
    yield from _not_finite("the state of", shards.Tensors(checkpoint, "carry").items())


def of_model(weights: dict[str, Tensor]) -> Iterator[str]:
    """What is wrong with a model's weights: keys, shapes, numbers."""
    try:
        official.complete(weights)
    except CheckpointError as error:
        yield str(error)
    yield from _not_finite("weights", weights.items())


def _of_optimizer(shapes: Mapping[str, tuple], optimizer: shards.Tensors, step: int) -> Iterator[str]:
    has: dict[str, set[str]] = {}
    of_another_shape = []
    for entry, shape in optimizer.shapes().items():
        key, name = entry.split("/", 1)
        has.setdefault(name, set()).add(key)
        if shape != (() if key == "step" else shapes.get(name)):
            of_another_shape.append(entry)
    if step and not has:
        yield f"the optimizer has nothing, after {step} steps"
    if lacking := [name for name, keys in has.items() if keys != ENTRIES]:
        yield f"the optimizer's entries are not {', '.join(sorted(ENTRIES))}: {_some(lacking)}"
    if of_another_shape:
        yield f"the optimizer's entries are of another shape than the weights: {_some(of_another_shape)}"
    yield from _not_finite("the optimizer's", optimizer.items())
    if negative := [name for name, x in optimizer.items() if name.startswith("exp_avg_sq/") and (x < 0).any()]:
        yield f"the optimizer's squares are negative: {_some(negative)}"


def _not_finite(what: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    bad = [name for name, x in tensors if not x.isfinite().all()]
    if bad:
        yield f"{what} {_some(bad)}: not finite"


def _some(names: list[str]) -> str:
    more = len(names) - AT_MOST
    return ", ".join(names[:AT_MOST]) + (f" and {more} more" if more > 0 else "")
