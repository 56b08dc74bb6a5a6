"""A run that is stopped and taken up again equals the one that was not, bit for bit."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from rwkv.checkpoint import store
from tests.conftest import command, the_run, tiny, write_text
from tests.training import forked
from tests.training.runs import assert_equal_runs, losses, start, wait_for_step
from tests.training.stops_at import Stop, stops_at, what_was_read


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 30_000)


def settings(text, out):
    return tiny("trainer.tokens=6400", "data=text", f"data.path={text}", f"out={out}")


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = command("train", *settings(text, folder / "out"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder / "out")


@pytest.mark.slow
def test_ctrl_c_then_the_same_command(text, tmp_path, uninterrupted):
    args = settings(text, tmp_path / "out")
    folder = tmp_path / "out" / uninterrupted.name
    stops = 0
    for at, number in ((1, signal.SIGINT), (40, signal.SIGTERM)):
        process = start(args, tmp_path)
        wait_for_step(folder, at, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        stops += 1
        assert process.returncode == 128 + number, output
        assert "the same command goes on" in output
    assert stops >= 1
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 0 and "resumed from step-" in done.stdout, done.stderr
    assert_equal_runs(folder, uninterrupted)
    again = command("train", *args, cwd=tmp_path)
    assert again.returncode == 0 and "this run is finished" in again.stdout
    fingerprint = json.loads((folder / "summary.json").read_text())["data"]
    assert f"its data was {fingerprint} (the fingerprint); it was not read again" in again.stdout


def test_killed_after_the_last_checkpoint_and_its_records_lost(text, tmp_path, uninterrupted):
    """The end is done again, but not the checkpoint that it has already; a training loss that nobody recorded is left out."""
    folder = tmp_path / "out" / uninterrupted.name
    shutil.copytree(uninterrupted, folder)
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").unlink()
    before = store.points(folder / "checkpoints")[0].stat()
    for _ in range(2):
        done = command("train", *settings(text, tmp_path / "out"), cwd=tmp_path)
        assert done.returncode == 0 and "training loss" not in done.stdout, done.stderr
        assert store.points(folder / "checkpoints")[0].stat() == before
    assert "this run is finished: 6,400 tokens, validation" in done.stdout


def test_the_last_step_is_recorded_however_few_are(text, tmp_path):
    done = command("train", *tiny("data=text", f"data.path={text}", f"out={tmp_path / 'out'}", "trainer.log_every=1000"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(the_run(tmp_path / "out"))] == [20]


# what is read, and where it is stopped; two batches of two chunks or more are a step
PLACES = {
    "samples": (
        ["layout=fixed", "layout.rows=4", "layout.chunks=2", "trainer.tokens=3840"],
        [Stop(1), Stop(2, 1, signal.SIGUSR2), Stop(3), Stop(5, None, signal.SIGINT), Stop(7, 0), Stop(10)],  # 5 and 10: at an epoch's end
    ),
    "lanes": (["layout=stream", "layout.rows=2", "layout.chunks=2", "trainer.tokens=1500"], [Stop(1), Stop(4, 0), Stop(4, 1, signal.SIGINT), Stop(7)]),
    "one document": (["layout=document", "layout.rows=1", "trainer.tokens=6000"], [Stop(0, 0), Stop(1, 1, signal.SIGUSR2), Stop(2)]),
}


def tokens_and_settings(folder, args):
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(1, 257, 40 * 32 + 1).astype(np.uint16))
    return tiny("model.n_layer=1", "data=tokens", f"data.path={folder / 'tokens.npy'}", "data.val_share=0", "ctx_len=16", "layout.accumulate=2", *args)


@pytest.mark.parametrize("case", PLACES)
def test_stopped_at(case, tmp_path):
    """At a step's end, at an epoch's, between two batches of a step, inside a document: one after the other in one run."""
    args, stops = PLACES[case]
    args = tokens_and_settings(tmp_path, args)
    log = tmp_path / "log"
    for stop in [*stops, None]:
        code = forked.codes([forked.start(stops_at, [*args, f"out={tmp_path / 'out'}"], stop, tmp_path / "reads", log=log)])
        assert code == [128 + stop.number if stop else 0], log.read_text()
    assert forked.codes([forked.start(stops_at, [*args, f"out={tmp_path / 'whole'}"], None, tmp_path / "whole-reads", log=log)]) == [0]
    assert log.read_text().count("resumed from step-") == len(stops)
    assert len(re.findall(r"checkpoint step-\d+\+", log.read_text())) == sum(stop.batch is not None for stop in stops)
    assert_equal_runs(the_run(tmp_path / "out"), the_run(tmp_path / "whole"))
    assert what_was_read(tmp_path / "reads") == what_was_read(tmp_path / "whole-reads")


def killed_all_along(folder: Path, kills: int, seed: int) -> None:
    """Three epochs with so many SIGKILLs at random moments: each sample once an epoch, and the end is that of the run that was not killed."""
    args = [*tokens_and_settings(folder, PLACES["samples"][0]), "checkpoint.every=2"]
    pick, log, step = random.Random(seed), folder / "log", 0
    for _ in range(kills):
        stop = Stop(step + pick.randint(1, 2), pick.choice([0, 1, None]), signal.SIGKILL, pick.random() * 0.03)
        assert forked.codes([forked.start(stops_at, [*args, f"out={folder / 'out'}"], stop, folder / "out-reads", log=log)]) == [-signal.SIGKILL]
        points = store.points(the_run(folder / "out") / "checkpoints")
        assert not any(problem for point in points for problem in store.problems(point))
        step = store.step_of(points[0]) if points else 0
    for out in ("out", "whole"):
        assert forked.codes([forked.start(stops_at, [*args, f"out={folder / out}"], None, folder / f"{out}-reads", log=log)]) == [0], log.read_text()
    read = what_was_read(folder / "out-reads")
    assert read == what_was_read(folder / "whole-reads")
    samples = [place for key in sorted(read) for place in read[key][0]]
    assert len(samples) == 120 and [len({*samples[i : i + 40]}) for i in (0, 40, 80)] == [40] * 3
    assert_equal_runs(the_run(folder / "out"), the_run(folder / "whole"))


def test_killed_all_along(tmp_path):
    killed_all_along(tmp_path, 5, seed=1)


@pytest.mark.slow
def test_two_at_once_and_a_damaged_checkpoint(text, tmp_path, uninterrupted):
    args = [*settings(text, tmp_path / "out"), "checkpoint.every=10"]
    folder = tmp_path / "out" / uninterrupted.name
    first = start(args, tmp_path)
    wait_for_step(folder, 25, first)
    first.send_signal(signal.SIGSTOP)
    second = command("train", *args, cwd=tmp_path)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and "is being trained by process" in second.stderr
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=300)
    newest = store.points(folder / "checkpoints")[0]
    blob = bytearray((newest / "model-00000.safetensors").read_bytes())
    blob[-100] ^= 1
    (newest / "model-00000.safetensors").write_bytes(blob)
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is damaged and not used" in done.stdout and "model-00000.safetensors" in done.stdout
    assert_equal_runs(folder, uninterrupted)


def test_changed_data_is_refused(text, tmp_path, uninterrupted):
    copy = tmp_path / "text.txt"
    copy.write_text(text.read_text())
    args = settings(copy, tmp_path / "out")
    process = start(args, tmp_path)
    while not list((tmp_path / "out").glob("*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    copy.write_text("Now " + copy.read_text())
    done = command("train", *args, cwd=tmp_path)
    assert done.returncode == 2 and "the data has changed" in done.stderr
