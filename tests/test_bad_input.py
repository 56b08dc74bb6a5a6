"""What a user may get wrong: one clear message, exit code 2, no traceback, nothing trained."""

import errno
import os
import re

import numpy as np
import pytest
import torch

from rwkv import convert, export, generate, init, train, verify
from rwkv.config import cli
from rwkv.config.compose import conf_dir
from tests.conftest import command, tiny, write_text
from tests.data.test_huggingface import byte_level

TRAIN = {
    "unknown group": (["modle=7b"], r"modle.*did you mean model"),
    "unknown option": (["model=7bb"], r"model=7bb: there is no such option \(did you mean 7b\?\); model has .*14b"),
    "unknown key": (["model.n_layr=3"], r"did you mean model\.n_layer"),
    "unknown key behind +": (["+model.n_layers=3"], r"unknown setting model\.n_layers \(did you mean model\.n_layer"),
    "unknown top-level key behind +": (["+sed=3"], r"unknown setting sed \(did you mean seed"),
    "unknown key behind ++": (["++trainer.token=3"], r"did you mean trainer\.tokens"),
    "key below a value": (["seed.x=3"], r"unknown setting seed\.x"),
    "text for a number": (["seed=abc"], r"seed='abc'.*valid integer"),
    "fraction for a count": (["layout.rows=1.5"], r"layout\.rows=1\.5.*integer"),
    "zero rows": (["layout.rows=0"], r"layout\.rows=0.*greater than or equal to 1"),
    "negative rate": (["optim.lr=-1"], r"optim\.lr=-1.*greater than 0"),
    "rate not a number": (["optim.lr=nan"], r"optim\.lr=nan"),
    "number for a flag": (["bptt.recompute=3"], r"bptt\.recompute=3.*boolean"),
    "bad choice": (["precision.weights=fp23"], r"precision\.weights='fp23'.*'fp32', 'bf16' or 'fp64'"),
    "bad count": (["trainer.tokens=12q"], r"trainer\.tokens='12q'"),
    "bad ctx_len": (["ctx_len=4kk"], r"ctx_len=4kk: there is no such option"),
    "share of one": (["data.val_share=1.0"], r"data\.val_share=1\.0.*less than 1"),
    "short list": (["optim.betas=[0.9]"], r"optim\.betas"),
    "depth that no step has": (["bptt=truncated", "bptt.depth=4"], r"bptt\.depth=4.*set layout\.chunks=4 or more"),
    "a million layers": (["model.n_layer=1000000"], r"this run does not fit: it needs about .* TB"),
    "set twice": (["model=7b", "model=3b"], r"model is set twice"),
    "no equals sign": (["tiny"], r"tiny: cannot be read: settings are written key=value"),
    "unreadable value": (["name={"], r"name=\{: cannot be read"),
    "sweep without -m": (["optim.lr=1e-3,3e-3"], r"several values; add -m to train with each of them"),
    "-m without a sweep": (["-m", "seed=2"], r"-m: nothing to sweep"),
    "a bad combination": (["-m", "seed=1,2", "optim.lr=1e-3,-1"], r"combination 2 of 4 \(seed=1 optim\.lr=-1\) and 1 more: optim\.lr=-1"),
    "--wait without a cluster": (["--wait"], r"--wait .* goes with hydra/launcher=slurm"),
    "Hydra's own settings": (["hydra.run.dir=x"], r"of hydra, hydra/launcher= and hydra/sweeper= are chosen here"),
    "deleted key": (["~optim.lr"], r"~optim\.lr: a setting cannot be deleted; set it to another value"),
    "deleted group": (["~optim"], r"~optim: a setting cannot be deleted"),
    "unknown flag": (["--fast"], r"--fast: unknown flag"),
    "unknown experiment": (["experiment=nope"], r"experiment=nope: there is no such option"),
    "text without a path": (["data=text"], r"data\.kind=files needs data\.path"),
    "missing file": (["data=text", "data.path=nowhere.txt"], r"nowhere\.txt: no such file"),
    "empty file": (["data=text", "data.path={tmp}/empty.txt"], r"empty\.txt: no document left of it \(1 empty"),
    "binary file": (["data=text", "data.path={tmp}/binary.bin"], r"binary\.bin: no document left of it \(1 not text"),
    "empty folder": (["data=text", "data.path={tmp}/folder"], r"folder: no file in it"),
    "short file": (["data=text", "data.path={tmp}/short.txt"], r"need 1,024 tokens, the training text has 9"),
    "too short for the rows": (["data=text", "data.path={tmp}/small.txt", "layout.rows=64"], r"at most layout\.rows="),
    "not an npy file": (["data=tokens", "data.path={tmp}/short.txt"], r"not a readable \.npy"),
    "tokens of floats": (["data=tokens", "data.path={tmp}/floats.npy"], r"wanted token ids"),
    "token outside the vocabulary": (["data=tokens", "data.path={tmp}/big.npy"], r"big\.npy: token 0 has the id 60000, outside of the vocabulary of 257"),
    "archive of arrays": (["data=tokens", "data.path={tmp}/several.npz"], r"several\.npz: an archive of several arrays.*np\.save"),
    "broken archive": (["data=tokens", "data.path={tmp}/broken.npz"], r"broken\.npz: not a readable \.npy"),
    "empty npy file": (["data=tokens", "data.path={tmp}/empty.npy"], r"empty\.npy: not a readable \.npy"),
    "nothing but ends": (["data=tokens", "data.path={tmp}/zeros.npy"], r"no document left \(5,000 shorter than min_tokens=2\)"),
    "unknown tokenizer": (["tokenizer=wrold"], r"did you mean world"),
    "tokenizer without a file": (["tokenizer=hf"], r"needs tokenizer\.path"),
    "tokenizer file missing": (["tokenizer=hf", "tokenizer.path=no.json"], r"no\.json: cannot be read"),
    "tokenizer file of another kind": (["tokenizer=hf", "tokenizer.path={tmp}/short.txt"], r"not a tokenizer\.json"),
    "vocabulary too small": (["tokenizer=world", "model.vocab_size=300"], r"model\.vocab_size=300 is smaller than the 65536"),
    "vocabulary of a file too small": (
        ["tokenizer=hf", "tokenizer.path={tmp}/hf.json", "model.vocab_size=100"],
        r"model\.vocab_size=100 is smaller than the \d+ tokens of tokenizer=hf",
    ),
    "heads do not divide": (["model.n_embd=100"], r"n_embd=100 is not a multiple of model\.head_size=64"),
    "unknown kernel": (["model.kernel=warp"], r"kernel=warp: wkv7 has no such backend; it has"),
    "unknown kernel of an operation": (["model.kernel={norm_mix: warp}"], r"kernel=warp: norm_mix has no such backend; it has triton, torch"),
    "kernel of another model's operation": (["model.kernel.wkv6=cpu"], r"model\.kernel\.wkv6=cpu: the model has no such operation; it has wkv7, norm_mix"),
    "two kernels": (["model.kernel=chunked", "model.kernel.norm_mix=torch"], r"model\.kernel=chunked and model\.kernel\.norm_mix=torch: the one replaces"),
    "two kernels, the other way round": (["model.kernel.norm_mix=torch", "model.kernel=chunked"], r"model\.kernel=chunked and model\.kernel\.norm_mix=torch: the one"),
    "no kernel": (["model.kernel=null"], r"model\.kernel=None: takes a backend of the recurrence, or one of each operation named"),
    "kernels of nothing": (["model.kernel={}"], r"model\.kernel=\{\}: takes a backend of the recurrence"),
    "no such device": (["strategy.accelerator=cuda"], r"finds no CUDA device"),
    "Lightning's name of a precision": (["precision=32-true"], r"precision=32-true: that is precision=fp32 here"),
    "fp16": (["precision=16-mixed"], r"precision=16-mixed: there is no fp16 here.*; set precision=bf16"),
    "infctx's name of a strategy": (["strategy=deepspeed_stage_2_offload"], r"that is strategy=ds2_offload here"),
    "fp64 with DeepSpeed": (["strategy=ds2", "precision=fp64"], r"strategy=ds2: DeepSpeed has no fp64; set strategy=fsdp, or precision=fp32"),
    "a residual stream wider than its weights": (["precision=fp64", "precision.residual=fp32"], r"precision\.residual=fp32 is for bf16 weights"),
    "swap without swapping": (["strategy=ds3", "strategy.swap=disk"], r"strategy\.swap=disk is for strategy=ds3_nvme alone"),
    "rows do not divide": (["strategy=ddp", "strategy.devices=3"], r"layout\.rows=8 .* to 3 processes \(strategy\.devices=3, .*: set layout\.rows=6 or another"),
    "model too large": (["model=14b"], r"does not fit: it needs about .*are free on this machine; .*"),
    "model too large for one process": (["model=14b", "strategy=ds3"], r"strategy=ds3 shares this out over GPUs; here it runs on the CPU"),
    "out is a file": (["out={tmp}/short.txt"], r"run folder .*cannot be written"),
    "threads beyond reason": (["threads=1T"], r"threads='1T'.*less than or equal to 4096"),
    "cut documents of samples": (["layout=fixed", "layout.max_tokens=1k"], r"layout\.max_tokens=1024 is for whole documents"),
    "off with several chunks": (["bptt=off", "layout.chunks=4"], r"set layout\.chunks=1"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "empty.txt").write_text(" \n")
    (tmp / "binary.bin").write_bytes(b"\x00\x01\x02" * 1000)
    (tmp / "folder").mkdir()
    (tmp / "short.txt").write_text("too short")
    write_text(tmp / "small.txt", 3000)
    np.savez(tmp / "several.npz", a=np.ones(9), b=np.ones(9))
    (tmp / "broken.npz").write_bytes((tmp / "several.npz").read_bytes()[:100])
    (tmp / "empty.npy").touch()
    np.save(tmp / "zeros.npy", np.zeros(5000, dtype=np.uint16))
    byte_level(tmp / "hf.json", "<end>")
    np.save(tmp / "floats.npy", np.zeros(1000))
    np.save(tmp / "big.npy", np.full(1000, 60000, dtype=np.uint16))
    return tmp


def refused(capsys, main, argv):
    code = cli.guarded(main, argv)
    err = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in err and err.startswith("error: ")
    return err


@pytest.mark.parametrize("case", TRAIN)
def test_train_refuses(case, files, capsys, tmp_path):
    if case == "no such device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    argv, message = TRAIN[case]
    argv = [a.replace("{tmp}", str(files)) for a in argv]
    if not any(a.startswith("out=") for a in argv):
        argv.append(f"out={tmp_path / 'out'}")
    err = refused(capsys, train.main, argv)
    assert re.search(message, err), err
    left = [f.name for f in tmp_path.glob("out/*/*")]
    assert "metrics.jsonl" not in left if case == "unknown kernel" else not [f for f in tmp_path.glob("out/*") if f.name != "data"], left  # seen late


@pytest.mark.parametrize(("every", "kept"), [(0, "there is no checkpoint"), (1, "the newest checkpoint is step-00000001, perhaps")])
def test_a_loss_that_is_not_finite(every, kept, capsys, tmp_path):
    """No checkpoint is praised: there may be none, or it may hold the weights that lead here."""
    path = write_text(tmp_path / "text.txt")
    err = refused(capsys, train.main, tiny("data=text", f"data.path={path}", f"out={tmp_path / 'out'}", "optim.lr=1e38", f"checkpoint.every={every}"))
    assert re.search(rf"stopped before the weights changed; {kept}", err) and "A lower optim.lr" in err, err


def test_a_typo_inside_an_experiment_names_the_file(capsys):
    file = conf_dir() / "experiment" / "zz_typo.yaml"
    file.write_text("# @package _global_\nmodel:\n  n_layr: 2\noptim:\n  lr: fast\n")
    try:
        err = refused(capsys, train.main, ["experiment=zz_typo"])
    finally:
        file.unlink()
    assert re.search(r"model\.n_layr: unknown setting \(did you mean model\.n_layer\?\) \(in conf/experiment/zz_typo\.yaml\)", err), err
    assert re.search(r"optim\.lr='fast'.*zz_typo", err), err


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_unwritable_out(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refused(capsys, train.main, [f"out={tmp_path / 'out'}"])


class Payload:
    """A pickle that would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def hostile(form, folder):
    """A model in this form whose loading would run the payload, which writes folder / "owned"."""
    weights = {"emb.weight": Payload(folder / "owned")}
    if form == "folder":
        (folder / "hf").mkdir()
        (folder / "hf/config.json").write_text('{"model_type": "rwkv7"}')
        torch.save(weights, folder / "hf/pytorch_model.bin")
        return folder / "hf"
    path = folder / ("evil.safetensors" if form == "safetensors" else "evil.pth")
    torch.save(weights, path, _use_new_zipfile_serialization=form != "old pth")
    return path


LOADS = {
    "generate": (generate.main, ["{model}"]),
    "convert": (convert.main, ["{model}", "{tmp}/out.safetensors"]),
    "export": (export.main, ["{model}", "{tmp}/out.pth"]),
    "verify": (verify.main, ["{model}"]),  # finds a broken file, which is its answer: code 1, on the screen
    "train": (train.main, ["model=from_file", "model.path={model}", "out={tmp}/out"]),
}


@pytest.mark.parametrize("form", ["pth", "old pth", "safetensors", "folder"])
@pytest.mark.parametrize("command", LOADS)
def test_hostile_pickle_is_refused(command, form, capsys, tmp_path):
    """Wherever a model is read: refused by name, and nothing of it has run."""
    model = hostile(form, tmp_path)
    main, argv = LOADS[command]
    code = cli.guarded(main, [a.format(model=model, tmp=tmp_path) for a in argv])
    said = "".join(capsys.readouterr())
    assert code == (1 if command == "verify" else 2) and model.name in said and "Traceback" not in said
    assert form not in ("pth", "old pth") or "could run code" in said
    assert not (tmp_path / "owned").exists()


def test_the_payload_runs_where_pickles_are_trusted(tmp_path):
    """So that its absence in the test above says something."""
    torch.load(hostile("pth", tmp_path), weights_only=False)
    assert (tmp_path / "owned").exists()


def test_hostile_tokens_are_refused(capsys, tmp_path):
    np.save(tmp_path / "evil.npy", np.array([Payload(tmp_path / "owned")], dtype=object), allow_pickle=True)
    err = refused(capsys, train.main, ["data=tokens", f"data.path={tmp_path / 'evil.npy'}", f"out={tmp_path / 'out'}"])
    assert "evil.npy" in err and not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing.pth"], "no such file"),
        (["{tmp}/short.txt"], "not a readable .pth"),
        (["{tmp}/other.pth"], "not an RWKV model"),
        (["{tmp}/folder"], "neither a checkpoint nor a run folder"),
        (["--out", "{tmp}/folder"], "no run with a checkpoint"),
        (["--tokens", "-3"], "from 1 to"),
        (["--top-p", "2"], "from 1e-09 to 1"),
        (["--temprature", "2"], "see python -m rwkv.generate --help"),
    ],
)
def test_generate_refuses(argv, message, files, capsys):
    torch.save({"weight": torch.zeros(3)}, files / "other.pth")
    assert message in refused(capsys, generate.main, [a.replace("{tmp}", str(files)) for a in argv])


def test_init_and_export_refuse_to_overwrite(files, capsys):
    assert "exists already" in refused(capsys, init.main, [str(files / "short.txt")])
    assert "exists already" in refused(capsys, export.main, ["x.pth", str(files / "short.txt")])
    assert "usage" in refused(capsys, init.main, ["model=tiny"])
    assert "required: out" in refused(capsys, export.main, ["x.pth"])


def test_a_full_disk_is_no_traceback(capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "outputs/report.html")

    assert "No space left on device (outputs/report.html): make room" in refused(capsys, full, [])


def test_as_a_user_sees_it(tmp_path):
    done = command("train", "model.n_layr=3", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean model.n_layer" in done.stderr
