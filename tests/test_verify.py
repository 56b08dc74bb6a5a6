"""python -m rwkv.verify: what is sound passes, every damage is found and named."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwkv import convert, verify
from rwkv.checkpoint import store
from rwkv.config import cli


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a run, its only checkpoint twice: of the last step, and of one before."""
    folder = tmp_path / "out" / tiny_run.name
    shutil.copytree(tiny_run, folder)
    shutil.copytree(tiny_run.parent / "data", tmp_path / "out" / "data")
    (last,) = store.points(folder / "checkpoints")
    older = last.with_name("step-00000010")
    shutil.copytree(last, older)
    tokens = next(r["tokens"] for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["step"] == 10)
    progress = json.loads((older / store.PROGRESS).read_text()) | {"step": 10, "tokens": tokens}
    rewrite(older, store.PROGRESS, json.dumps(progress))
    return folder


def rewrite(checkpoint, name, content):
    """Change a file so that its manifest says what it now is: not damage of the disk, but of what was written."""
    path = checkpoint / name
    path.write_text(content) if isinstance(content, str) else save_file(content, path)
    files = store.manifest(checkpoint)
    files[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    (checkpoint / store.MANIFEST).write_text(store._manifest(files))


def verified(path, capsys) -> tuple[int, str]:
    code = cli.guarded(verify.main, [str(path)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out + said.err


def test_a_sound_run(run, capsys):
    code, out = verified(run, capsys)
    assert code == 0 and "all is sound: 2 of 2" in out and out.count("  sound") == 2
    fingerprint = json.loads((run / "summary.json").read_text())["data"]
    assert f"data {fingerprint}: {run.parent / 'data'}" in out
    (point, _) = store.points(run / "checkpoints")
    assert verified(point, capsys)[0] == 0
    assert verified(run / "checkpoints", capsys) == (code, out)
    code, out = verified(run.parent, capsys)
    assert code == 2 and f"{run.parent}: a folder of runs, of which one is checked at a time: {run}" in out


def test_what_is_left_is_said(run, capsys):
    for point, left in zip(store.points(run / "checkpoints"), ["the newest that is sound is step-00000010: without the broken", "none is sound, so the run"], strict=True):
        (point / store.MANIFEST).write_text("")
        code, out = verified(run, capsys)
        assert code == 1 and "manifest.json: not as it was written, for it is no JSON" in out and left in out, out


def flip(point):
    file = point / "optimizer-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(point):
    file = point / "model-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


DAMAGE = {
    "optimizer-00000.safetensors: its content has changed": flip,
    "model-00000.safetensors: ": truncate,
    "carry-00000.safetensors: missing": lambda point: (point / "carry-00000.safetensors").unlink(),
    "manifest.json: missing": lambda point: (point / "manifest.json").unlink(),
    "manifest.json: its content": lambda point: (point / "manifest.json").write_text((point / "manifest.json").read_text().replace("1", "2")),
    "progress.json: missing": lambda point: (point / "progress.json").unlink(),
}


@pytest.mark.parametrize("named", DAMAGE)
def test_damage_is_found_and_named(named, run, capsys):
    point = run / "checkpoints" / "step-00000010"
    DAMAGE[named](point)
    code, out = verified(run, capsys)
    assert code == 1 and f"{point}/{named}" in out and out.count("BROKEN") == 1 and out.count("  sound") == 1, out
    code, out = verified(point, capsys)
    assert code == 1 and f"{point}/{named}" in out


def change(point, kind, **changes):
    name = f"{kind}-00000.safetensors"
    tensors = {n: x.clone() for n, x in load_file(point / name).items()} | changes
    rewrite(point, name, {n: x for n, x in tensors.items() if x is not None})


MEANT = {
    "weights emb.weight: not finite": lambda p: change(p, "model", **{"emb.weight": torch.full((257, 64), float("nan"))}),
    "missing: head.weight": lambda p: change(p, "model", **{"head.weight": None}),
    "entries are not exp_avg, exp_avg_sq, step: head.weight": lambda p: change(p, "optimizer", **{"exp_avg_sq/head.weight": None}),
    "another shape than the weights: exp_avg/head.weight": lambda p: change(p, "optimizer", **{"exp_avg/head.weight": torch.zeros(3)}),
    "squares are negative: exp_avg_sq/head.weight": lambda p: change(p, "optimizer", **{"exp_avg_sq/head.weight": torch.full((257, 64), -1.0)}),
    "the optimizer has nothing, after 10 steps": lambda p: rewrite(p, "optimizer-00000.safetensors", {}),
    "the state of wkv: not finite": lambda p: change(p, "carry", wkv=torch.full((2, 2), float("inf"))),
    "progress.json is of step 11": lambda p: counters(p, step=11),
    "at that step in": lambda p: counters(p, tokens=641),
    "progress.json has no position": lambda p: counters(p, position=None),
}


def counters(point, **changes):
    progress = json.loads((point / store.PROGRESS).read_text()) | changes
    rewrite(point, store.PROGRESS, json.dumps({k: v for k, v in progress.items() if v is not None or k == "val_loss"}))


@pytest.mark.parametrize("named", MEANT)
def test_what_does_not_fit_together_is_named(named, run, capsys):
    MEANT[named](run / "checkpoints" / "step-00000010")
    code, out = verified(run, capsys)
    assert code == 1 and named in out and out.count("BROKEN") == 1, out


def test_a_finished_run_without_its_end(run, capsys):
    shutil.rmtree(store.points(run / "checkpoints")[0])
    code, out = verified(run, capsys)
    assert code == 1 and "summary.json has step 20" in out


def test_data_that_is_gone_is_said_and_no_fault(run, capsys):
    shutil.rmtree(run.parent / "data")
    code, out = verified(run, capsys)
    assert code == 0 and "not prepared in" in out


def test_a_model_file(run, tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    assert convert.main([str(run), str(out)]) == 0
    code, said = verified(out, capsys)
    assert code == 0 and "RWKV-7 2 x 64" in said and "all is sound" in said
    weights = {n: x.clone() for n, x in load_file(out).items()}
    weights["head.weight"][3, 3] = float("inf")
    save_file(weights, out)
    code, said = verified(out, capsys)
    assert code == 1 and f"{out}: weights head.weight: not finite" in said
    out.write_bytes(out.read_bytes()[:500])
    code, said = verified(out, capsys)
    assert code == 1 and f"{out}: unreadable" in said


BAD = [(["nothing"], "no such file or folder"), ([], "required: RUN"), (["a", "b"], "unrecognized"), (["empty"], "no checkpoint in it")]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_usage(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert cli.guarded(verify.main, args) == 2 and message in capsys.readouterr().err
