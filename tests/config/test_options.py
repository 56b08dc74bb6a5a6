"""Every option of every group composes, converts and builds; conf/ and the dataclasses agree."""

import dataclasses

import pytest
import torch
import yaml

from rwkv.checkpoint.run import signature
from rwkv.config.compose import conf_dir, groups, load
from rwkv.config.derived import size_of
from rwkv.config.launch import LAUNCHERS, SWEEPERS
from rwkv.config.schema import TrainConfig
from rwkv.config.vocab import VOCAB_SIZES
from rwkv.model.rwkv import RWKV, count_parameters

HYDRA = {"hydra/launcher": LAUNCHERS, "hydra/sweeper": SWEEPERS}
OPTIONS = [(group, option) for group, g in groups().items() for option in g.options]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda x: x)
def test_option_composes_converts_and_builds(group, option):
    if option == "from_file":
        pytest.skip("its sizes are in a file: see tests/training/test_from_file.py")
    cfg = load([f"{group}={option}"])
    vocab = VOCAB_SIZES.get(cfg.tokenizer.kind, 1000)
    with torch.device("meta"):
        model = RWKV(size_of(cfg, vocab))
    assert count_parameters(model) > 0


# the model card's counts, with layer 0's unused v0 v1 v2, at the World vocabulary
COUNTS = {
    "0.1b": 191_084_544,
    "0.4b": 450_834_432,
    "1.5b": 1_527_668_736,
    "3b": 2_948_065_280,
    "7b": 7_199_932_416,
    "14b": 13_270_298_624,
}


@pytest.mark.parametrize("model", COUNTS)
def test_exact_parameter_counts(model):
    cfg = load([f"model={model}", "tokenizer=world"])
    with torch.device("meta"):
        assert count_parameters(RWKV(size_of(cfg, 65536))) == COUNTS[model]


def test_pile_is_the_neox_vocabulary_padded():
    cfg = load(["model=0.1b", "tokenizer=neox", "model.vocab_size=50304"])
    with torch.device("meta"):
        assert count_parameters(RWKV(size_of(cfg, 50277))) == 167_688_192


def test_the_users_sentence_composes():
    cfg = load(["model=7b", "data=pile", "strategy=ds3"])
    assert (cfg.model.n_layer, cfg.strategy.kind, cfg.data.kind) == (32, "ds3", "hub")


@pytest.mark.parametrize("group", [g for g in groups() if g not in ("experiment",)])
def test_each_file_sets_exactly_the_fields_of_its_dataclass(group):
    fields = {f.name: f.type for f in dataclasses.fields(TrainConfig)}
    for file in (conf_dir() / group).glob("[!_]*.yaml"):
        kind = HYDRA[group][file.stem] if group in HYDRA else fields[group]
        wanted = [f.name for f in dataclasses.fields(kind)]
        tree = yaml.safe_load(file.read_text())
        base = yaml.safe_load((file.parent / "_base.yaml").read_text()) if "_base" in tree.get("defaults", []) else {}
        assert sorted((base | tree).keys() - {"defaults"}) == sorted(wanted), file


def test_option_names_are_strings_in_yaml():
    for entry in yaml.safe_load((conf_dir() / "train.yaml").read_text())["defaults"]:
        if isinstance(entry, dict):
            assert all(v is None or isinstance(v, str) for v in entry.values()), entry


def test_every_setting_is_read_somewhere():
    """A key that no code mentions does nothing, whatever its comment says."""
    root = conf_dir().parent / "rwkv" if (conf_dir().parent / "rwkv").is_dir() else conf_dir().parent
    source = "".join(f.read_text() for f in root.rglob("*.py") if f.name not in ("schema.py", "launch.py", "run.py"))

    def walk(cls):
        for f in dataclasses.fields(cls):
            kinds = [k for k in (f.type, *getattr(f.type, "__args__", ())) if dataclasses.is_dataclass(k)]
            assert f".{f.name}" in source or f'"{f.name}"' in source, f"{cls.__name__}.{f.name} is not used"
            for kind in kinds:
                walk(kind)

    for kind in (TrainConfig, *LAUNCHERS.values(), SWEEPERS["grid"]):
        walk(kind)


def test_kernels_of_operations_add_up():
    file = conf_dir() / "experiment" / "zz_kernels.yaml"
    file.write_text("# @package _global_\nmodel: {kernel: {norm_mix: torch}}\n")
    try:
        given = ["experiment=zz_kernels", "model.kernel.relu_squared=torch", "model.kernel.wkv7=chunked"]
        assert load(given).model.kernel == {"norm_mix": "torch", "relu_squared": "torch", "wkv7": "chunked"}
        assert load([*given[:1], "model.kernel={relu_squared: torch}"]).model.kernel == {"norm_mix": "torch", "relu_squared": "torch"}
        assert load([*given[:1], "model.kernel=chunked"]).model.kernel == "chunked"
    finally:
        file.unlink()


def test_experiments_win_over_groups(tmp_path, monkeypatch):
    file = conf_dir() / "experiment" / "zz_test.yaml"
    file.write_text("# @package _global_\noptim:\n  lr: 0.5\n")
    try:
        assert load(["experiment=zz_test"]).optim.lr == 0.5
        assert load(["experiment=zz_test", "optim.lr=0.25"]).optim.lr == 0.25
    finally:
        file.unlink()


@pytest.mark.parametrize(("text", "value"), [("4k", 4096), ("1.5M", 1_500_000), ("3T", 3 * 10**12), ("2e6", 2_000_000), ("12", 12)])
def test_counts_with_suffixes(text, value):
    assert load([f"trainer.tokens={text}"]).trainer.tokens == value


def test_any_ctx_len():
    assert load(["ctx_len=4k"]).ctx_len.tokens == 4096
    assert load(["ctx_len=1000"]).ctx_len.tokens == 1000
    assert load(["ctx_len=96k"]).ctx_len.tokens == 96 * 1024
    assert load(["experiment=plays", "ctx_len=512"]).ctx_len.tokens == load(["experiment=plays", "ctx_len=500"]).ctx_len.tokens + 12


def test_the_shipped_expectation_is_that_of_the_shipped_settings():
    """Changed defaults need the main job run anew, and its losses and signature put into train.yaml."""
    cfg = load([])
    for name in (None, *groups()["experiment"].options):
        recipe = load([f"experiment={name}"] if name else [])
        assert recipe.expect is None or recipe.expect.signature == signature(recipe), name
    assert signature(load(["seed=2"])) != signature(cfg) == signature(load(["threads=1", "out=x", "model.kernel=chunked", "logger=wandb"]))
