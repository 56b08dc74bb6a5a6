"""From the units of a source to its store: tasks for processes, their parts, and the parts as one."""

import functools
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rwkv.config import schema
from rwkv.config.schema import Data
from rwkv.data import binidx, tokenizer, workers
from rwkv.data.progress import Shown
from rwkv.data.scan import joined, scan
from rwkv.data.sources import Unit
from rwkv.data.store import IndexWriter, Place, complete
from rwkv.data.tokenise import SHOWN, Task, dtype_of, finished, write_part
from rwkv.disk import sync
from rwkv.errors import DataError

TASK = 2**22, 2**26  # bytes that a process reads in one go, at least and at most: whole units, so one may be more
TASKS = 256  # wanted
SMALL = 2**25  # bytes in all for which no process is worth its start


def tokenise_and_join(units: list[Unit], data: Data, spec: schema.Tokenizer, tok: tokenizer.Tokenizer, parts: Path, folder: Path) -> None:
    """Tokenise what is not yet in the folder `parts`, then write the store into `folder`. The result does not depend on the number of processes.

    Raises:
        DataError: of all that went wrong the first in the order of the source; a process died; no document is left; the disk is full.
    """
    parts.mkdir(exist_ok=True)
    tasks = tasks_of(units)
    processes = data.processes or len(os.sched_getaffinity(0))
    if all(task.known for task in tasks) and sum(task.size for task in tasks) < SMALL:
        processes = 1
    tasks = windows(tasks, data, processes)
    abouts = tokenise(tasks, data, functools.partial(tokenizer.build, spec.kind, spec.path) if processes > 1 else lambda: tok, parts, processes)
    dropped = dict(sum((Counter(about["dropped"]) for about in abouts), Counter()).most_common())
    bad = [entry for about in abouts for entry in about["bad"]][:SHOWN]
    if not any(about["bytes"]["bin"] for about in abouts):
        why = [f"{n:,} {reason}" for reason, n in dropped.items()] + [f"the first of them: {where}: {reason}" for where, reason in bad[:1]]
        raise DataError(f"{data.path or data.name or data.kind}: no document left of it ({'; '.join(why) or 'no records in it'})")
    _check_space(parts, abouts)
    paths = [parts / f"{task.number:06d}" for task in tasks]
    index, place, digests, highest = _join(paths, abouts, folder, dtype_of(tok), processes)
    settings = {"tokenizer": tok.fingerprint, "data": data.kind, "path": data.path, "name": data.name}
    complete(folder, index, place, digests, highest, dropped, bad, settings)


def tasks_of(units: list[Unit]) -> list[Task]:
    """Units together up to some size; one of unknown size by itself."""
    sizes = [unit.size for unit in units]
    whole = sum(size or 0 for size in sizes)
    most = min(max(whole // TASKS, TASK[0]), TASK[1])
    groups: list[list[Unit]] = []
    size = most
    for unit, own in zip(units, sizes, strict=True):
        own = most if own is None else own
        if size + own > most:
            groups.append([])
            size = 0
        groups[-1].append(unit)
        size += own
    return [Task(i, tuple(group)) for i, group in enumerate(groups)]


def windows(tasks: list[Task], data: Data, processes: int) -> list[Task]:
    """The tasks with the records that they have from `data.first` on, of `data.limit` in all; without tasks that have none.

    Where they are several, the records of each are counted first, so that each knows how many stand before it.
    """
    if data.first == 0 and data.limit is None:
        return tasks
    stop = None if data.limit is None else data.first + data.limit
    counts = _count(tasks[:-1], data.first if stop is None else stop, processes)
    before, kept = 0, []
    for i, task in enumerate(tasks):
        if stop is not None and before >= stop:
            break
        kept.append(replace(task, first=max(0, data.first - before), stop=None if stop is None else stop - before))
        before += counts[i] if i < len(counts) else 0
    return kept


def _count(tasks: list[Task], enough: int, processes: int) -> list[int]:
    """Records of each task, until they are enough together."""
    found: dict[int, int] = {}
    counts: list[int] = []
    for i, count in _in_order_of_failure(workers.run([replace(task, stop=enough) for task in tasks], processes, _counter, (), lambda: None)):
        found[i] = count
        while len(counts) in found:
            counts.append(found[len(counts)])
        if sum(counts) >= enough:
            break
    return counts


def _counter() -> Callable[[Task], int]:
    return lambda task: sum(1 for _ in task.records())


def tokenise(tasks: list[Task], data: Data, make_tokenizer: Callable[[], tokenizer.Tokenizer], parts: Path, processes: int) -> list[dict]:
    """What `write_part` returns for each task, those of processes before this one included."""
    abouts = {task.number: about for task in tasks if (about := finished(task, parts))}
    todo = [task for task in tasks if task.number not in abouts]
    done = multiprocessing.get_context("spawn").Array("q", 2)  # bytes of text, documents
    total = sum(task.size for task in tasks)
    with Shown(f"preparing {data.path or data.name or data.kind}", total if all(task.known for task in tasks) else 0) as shown:
        shown.skip(sum(task.size for task in tasks if task.number in abouts))
        whole = 0

        def show() -> None:
            text, documents = done
            shown.update(max(whole, text), text, documents)

        arguments = (parts, data, make_tokenizer, done, show if processes == 1 else None)
        for i, about in _in_order_of_failure(workers.run(todo, processes, _writer, arguments, show)):
            abouts[todo[i].number] = about
            whole += todo[i].size
    return [abouts[task.number] for task in tasks]


def _writer(parts: Path, data: Data, make_tokenizer: Callable[[], tokenizer.Tokenizer], done, show: Callable[[], None] | None) -> Callable[[Task], dict]:
    if show is None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # of the library tokenizers: there is a process for each core already
    tok = make_tokenizer()

    def tick(text: int, documents: int) -> None:
        with done.get_lock():
            done[0] += text
            done[1] += documents
        if show:
            show()

    return lambda task: write_part(task, parts, data, tok, tick)


def _in_order_of_failure(results: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The results; of failures the one of the first task is raised, whichever came first."""
    failures: dict[int, Exception] = {}
    done: set[int] = set()
    for i, result in results:
        done.add(i)
        if isinstance(result, workers.Failed):
            failures[i] = result.error
        elif not failures:
            yield i, result
        if failures and done.issuperset(range(min(failures))):
            raise failures[min(failures)]


def _check_space(parts: Path, abouts: list[dict]) -> None:
    """Raises DataError if the parts have no room beside themselves as one."""
    documents = sum(about["bytes"]["sizes"] for about in abouts) // 4
    needed = sum(sum(about["bytes"].values()) for about in abouts) + 32 * documents
    if shutil.disk_usage(parts).free < needed:
        raise full(parts.parent, needed)


def full(folder: Path, needed: int = 0) -> DataError:
    free = shutil.disk_usage(folder).free
    return DataError(
        f"{folder}: the disk is full: {free / 1e9:,.2f} GB free{f', {needed / 1e9:,.2f} GB needed' if needed else ''}. What is prepared is kept: "
        "make room and give the same command again, or set data.cache=FOLDER on another disk"
    )


def _join(paths: list[Path], abouts: list[dict], folder: Path, dtype: np.dtype, threads: int) -> tuple[IndexWriter, Place, list[bytes], int]:
    """Also the digests of the tokens and of their mask, and the highest token."""
    index, begin = IndexWriter(folder), 0
    for path in paths:
        sizes = np.fromfile(f"{path}.sizes", "<i4").astype(np.int64)
        ends = begin + np.cumsum(sizes)
        index.add(ends - sizes, sizes)
        begin += int(sizes.sum())
    index.close()
    with (folder / "tokens.idx").open("wb") as file:
        binidx.write_index(file, np.memmap(folder / "sizes.i32", "<i4", mode="r"), dtype)
    counts = [about["bytes"]["bin"] for about in abouts]
    out, syncs = folder / "tokens.bin", []
    with joined([(n, Path(f"{path}.bin")) for n, path in zip(counts, paths, strict=True)], out) as tokens, ThreadPoolExecutor(1) as disk:
        digest, highest = scan(tokens, dtype.str, sum(counts), threads, lambda _: syncs.append(disk.submit(sync, out)))  # the disk works meanwhile
        for done in syncs:
            done.result()
    digests = [digest]
    masks = [Path(f"{path}.trained") if "trained" in about["bytes"] else None for path, about in zip(paths, abouts, strict=True)]
    if any(masks):
        with joined([(n // dtype.itemsize, mask) for n, mask in zip(counts, masks, strict=True)], folder / "tokens.trained") as trained:
            digests.append(scan(trained, "u1", begin, threads)[0])
    return index, Place("tokens.bin", dtype.str, 0, begin, "tokens.trained" if any(masks) else None), digests, highest
