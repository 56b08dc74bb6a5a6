"""python -m rwkv.verify RUN: check every checkpoint of a run, or a checkpoint or model file: is all there, and as it was written?"""

import json
import sys
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser
from rwkv.errors import CheckpointError

DONE = "0 if all is sound, 1 if anything is broken, 2 if there is nothing to check"


def main(argv: list[str]) -> int:
    """Say what was found, of each checkpoint a line of a table, and what is wrong below. Returns the exit code."""
    parser = Parser(
        prog="python -m rwkv.verify",
        description="Check every checkpoint of a run: manifest, digests of all files, shapes, finite values, the optimizer's entries, "
        f"position, metrics, data. Exit code: {DONE}.",
    )
    parser.add_argument("what", metavar="RUN", type=Path, help="run folder, checkpoint folder, or model file")
    path = parser.parse_args(argv).what
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; a run's folder is in outputs/")

    from rwkv.checkpoint import store

    if path.name == "checkpoints" and path.is_dir():
        path = path.parent
    if (path / "checkpoints").is_dir():
        return run(path)
    if path.is_dir() and store.named(path.parent).count(path):
        return report([path], [])
    if runs := sorted(f.parent.name for f in path.glob("*/checkpoints")):
        raise CheckpointError(f"{path}: a folder of runs, of which one is checked at a time: {path / runs[0]}" + (f" ({', '.join(runs)})" if runs[1:] else ""))
    return model(path)


def run(path: Path) -> int:
    """All checkpoints of a run's folder, and how they agree with the rest of it."""
    from rwkv import disk
    from rwkv.checkpoint import store

    if holder := disk.holder(path / ".lock"):
        print(f"{path} is being trained by {holder}: checkpoints may come and go meanwhile")
    found = store.named(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path}: there is no checkpoint in it")
    leftovers = [p.name for p in (path / "checkpoints").iterdir() if p.name.startswith(".")]
    if leftovers and not holder:
        print(f"left by a process that was killed, removed when the run goes on: {', '.join(sorted(leftovers))}")
    return report(found, [path])


def report(checkpoints: list[Path], runs: list[Path]) -> int:
    """Check, with progress; then the table."""
    from rwkv.checkpoint import verify
    from rwkv.data.progress import Shown
    from rwkv.memory import human

    works = [verify.work_of(c) for c in checkpoints]
    wrong: dict[Path, list[str]] = {}
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        shown.update(done, done)

    with Shown("verifying", sum(works)) as shown:
        for checkpoint in checkpoints:
            found = verify.findings(checkpoint, told)
            if checkpoint.exists():  # one that training has removed meanwhile is none
                wrong[checkpoint] = found
    if not wrong:
        raise CheckpointError(f"{checkpoints[0].parent}: training has removed what was there; the same command looks at what is there now")
    for path in runs:
        of_run(path, wrong)
    print(f"\n{'checkpoint':24}{'size':>10}{'tokens':>16}{'validation':>12}  verdict")
    for checkpoint, work in zip(checkpoints, works, strict=True):
        if checkpoint in wrong:
            verdict = "BROKEN" if wrong[checkpoint] else "sound"
            print(f"{checkpoint.name:24}{human(work) if work else '?':>10}{_numbers(checkpoint)}  {verdict}")
    problems = [text for texts in wrong.values() for text in texts]
    print("\n" + "\n".join(problems) if problems else f"\nall is sound: {len(wrong)} of {len(wrong)}")
    if problems and runs:
        print(_what_now(wrong))
    return 1 if problems else 0


def _what_now(wrong: dict[Path, list[str]]) -> str:
    """What becomes of a run with broken checkpoints; `wrong`: newest first."""
    sound = next((c.name for c, texts in wrong.items() if not texts), None)
    if sound is None:
        return "none is sound, so the run cannot go on: put the files back from a copy, or delete the run's folder to train anew"
    return f"the newest that is sound is {sound}: without the broken ones, and summary.json if it is there, the run's command goes on from it"


def _numbers(checkpoint: Path) -> str:
    from rwkv.checkpoint import store, verify

    try:
        tokens = f"{verify.progress_of(checkpoint)['tokens']:,}"
    except CheckpointError:
        tokens = "?"
    loss = store.val_loss(checkpoint)
    return f"{tokens:>16}{'-' if loss is None else f'{loss:.3f}':>12}"


def of_run(path: Path, wrong: dict[Path, list[str]]) -> None:
    """Of sound checkpoints, what does not agree with the run's records, its end or its data is added to `wrong`."""
    from rwkv.checkpoint import verify
    from rwkv.checkpoint.run import RunFolder
    from rwkv.training import metrics

    folder = RunFolder(path)
    records = {r["step"]: r for r in metrics.read(folder.metrics) if "train/loss" in r}
    sound = {c: verify.progress_of(c) for c, texts in wrong.items() if not texts}
    for checkpoint, progress in sound.items():
        record = records.get(progress["step"], {})
        if record.get("tokens", progress["tokens"]) != progress["tokens"]:
            wrong[checkpoint].append(f"{checkpoint}: {progress['tokens']:,} tokens, and {record['tokens']:,} at that step in {folder.metrics}")
    if not records:
        print(f"{folder.metrics}: no records to compare with")
    data = sorted({p["fingerprint"] for p in sound.values()})
    if folder.finished:
        summary = json.loads(folder.summary.read_text())
        last = max(wrong, key=lambda c: c.name)
        if last in sound and (sound[last]["step"], sound[last]["fingerprint"]) != (summary["step"], summary["data"]):
            text = f"step {sound[last]['step']} of data {sound[last]['fingerprint']}, and {folder.summary} has step {summary['step']} of {summary['data']}"
            wrong[last].append(f"{last}: {text}")
    elif len(data) > 1:
        print(f"the data has changed during the run: {', '.join(data)}")
    print("\n".join(of_data(folder, data)))


def of_data(folder, fingerprints: list[str]):
    """Whether prepared data of these fingerprints is where the run has it, in words."""
    import hashlib
    import itertools

    import yaml

    from rwkv.data import store
    from rwkv.errors import DataError

    data = yaml.safe_load(folder.config.read_text())["data"] if folder.config.is_file() else {}
    cache = Path(data.get("cache") or folder.path.parent / "data")
    stores = {}
    for about in cache.glob(f"*/{store.ABOUT}"):
        try:
            stores[store.open_store(about.parent)[1].fingerprint] = about.parent
        except DataError as error:
            yield str(error)
    both = {hashlib.sha256(f"{a} {b}".encode()).hexdigest()[:16]: stores[a] for a, b in itertools.permutations(stores, 2)}
    for fingerprint in fingerprints:
        for part in fingerprint.split("+"):
            place = (both | stores).get(part.split("-")[0])
            yield f"data {part}: {place}" if place else f"data {part}: not prepared in {cache}; training does it again, if its source is there"


def model(path: Path) -> int:
    """A model file: read, its keys, shapes and numbers."""
    from rwkv.checkpoint import official, verify

    try:
        weights = official.load(path)
        problems = list(verify.of_model(weights))
    except CheckpointError as error:
        problems = [str(error)]
    if problems:
        print("\n".join(text if str(path) in text else f"{path}: {text}" for text in problems))
        return 1
    print(f"{path}: {official.describe(weights)}; all is sound")
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
