"""An infctx trainer's configuration becomes an experiment that composes and reads its records; every key is taken over or named."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from rwkv.config.check import check
from rwkv.config.compose import conf_dir, load
from rwkv.config.schema import TrainConfig
from rwkv.data.records import parts
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import from_infctx

# every key of the trainer's four sections, as its code and its examples have them
KEYS = """
RWKV_JIT_ON RWKV_TORCH_COMPILE RWKV_NO_CUDA WANDB_MODE AWS_* seed_everything ckpt_path
trainer: accelerator devices num_nodes strategy precision target_batch_size microbatch_size accumulate_grad_batches logger callbacks max_epochs
min_epochs max_steps min_steps max_time gradient_clip_val num_sanity_val_steps use_distributed_sampler fast_dev_run limit_train_batches
val_check_interval check_val_every_n_epoch log_every_n_steps overfit_batches detect_anomaly profiler default_root_dir
trainer.callbacks.init_args: dirpath filename save_top_k monitor mode save_last every_n_train_steps every_n_epochs save_on_train_epoch_end
train_time_interval save_weights_only
trainer.logger.init_args: name project tags id resume entity offline
model: load_model ctx_len ctx_len_cutoffs ctx_len_warmup_steps lr_init lr_final lr_period lr_period_type lr_type warmup_steps beta1 beta2 adam_eps
weight_decay layerwise_lr dropout grad_cp bptt_learning bptt_learning_range bptt_truncated_learning bptt_full_segmented_loss position_loss_bias
position_loss_bias_in_validation token_loss_threshold token_dropout_rate n_embd n_layer vocab_size dim_att dim_ffn substep_cuda_cache_clear
substep_logging consolidated_logging torch_set_float32_matmul_precision
data: skip_datapath_setup datapack_config_path data_path data_path_storage_options source source_data_dir source_dataset_params
source_dataset_split dataset_offset dataset_length test_split test_split_shuffle tokenizer autoTokenizer world_add_endoftext_token min_token_size
max_token_size sort_by_length sort_asc custom_text_key multi_column_keys multi_column_prefix multi_column_suffix multi_column_train_mask
multi_column_separator conversation_format conversation_key conversation_end_of_conversation conversation_input_key_prefix_map
conversation_input_key_mask conversation_sender_suffix conversation_input_key_map conversation_sender_key conversation_sender_value_map
conversation_sender_mask disable_prompt_completion_mask data_prefix_skip_mask text_rechunk_size text_rechunk_auto text_rechunk_force
packing_enable packing_batchsize packing_chunksize packing_min_ctx_len packing_in_sequence reverse_train_dataset_before_save
processing_max_batch_size dataloader_shuffle_training dataloader_prefetch_factor dataloader_pin_memory dataloader_swap_train_test_split
datapack: data_path data_path_storage_options batchsize packing_batchsize mixing_mode mixed_batch_percentage
"""


def keys() -> list[str]:
    out, section = [], ""
    for word in KEYS.split():
        section, out = (word[:-1] + ".", out) if word.endswith(":") else (section, [*out, section + word])
    return out


def test_every_key_is_in_the_table():
    assert len(keys()) > 130
    assert not [key for key in keys() if key not in from_infctx.ROWS]
    assert all(row.here or row.about for row in from_infctx.ROWS.values())
    assert all(row.here for row in from_infctx.ROWS.values() if row.convert)


def test_the_table_is_up_to_date():
    assert (ROOT / "scripts/from_infctx.md").read_text() == from_infctx.table(), "run python scripts/from_infctx.py --table > scripts/from_infctx.md"


def test_settings_that_the_table_names_are_there():
    def known(path: list[str], kind=TrainConfig) -> bool:
        fields = {f.name: f.type for k in (kind, *getattr(kind, "__args__", ())) if dataclasses.is_dataclass(k) for f in dataclasses.fields(k)}
        return not path or (path[0] in fields and known(path[1:], fields[path[0]]))

    for row in from_infctx.ROWS.values():
        for name in row.here.split():
            setting, _, option = name.partition("=")
            if setting.isupper() or setting == "AWS_*" or setting.startswith("data.mix"):
                continue
            assert known(setting.split(".")), name
            assert not option or "." in setting or (conf_dir() / setting / f"{option}.yaml").is_file(), name


CONFIG = """
seed_everything: 42
trainer:
  accelerator: gpu
  devices: [0, 1]
  num_nodes: 1
  strategy: deepspeed_stage_2_offload
  precision: bf16
  target_batch_size: 32
  microbatch_size: 4
  max_epochs: 1
  max_steps: -1
  gradient_clip_val: null
  num_sanity_val_steps: 0
  logger:
    class_path: lightning.pytorch.loggers.WandbLogger
    init_args: {project: long, name: "a run, 4k", tags: [x], offline: true}
  callbacks:
    class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {dirpath: ckpt, save_top_k: 3, every_n_train_steps: 100, save_last: true, train_time_interval: "00:01:30:00"}
model:
  load_model: model.pth
  ctx_len: 1024
  lr_init: 6e-4
  lr_final: 3e-4
  lr_period: -1
  warmup_steps: 20
  beta1: 0.9
  beta2: 0.95
  adam_eps: 1.0e-8
  weight_decay: 0.01
  grad_cp: true
  bptt_learning: true
  bptt_learning_range: -1
  bptt_truncated_learning: false
  dropout: 0.0
  token_dropout_rate: 0.1
data:
  data_path: prepared
  source: json
  source_data_dir: records/
  tokenizer: world
  min_token_size: 16
  max_token_size: -1
  test_split: 0.02
  multi_column_keys: [q, a]
  multi_column_prefix: ['Q:\\n', null]
  multi_column_train_mask: [false]
  multi_column_separator: "\\n\\n"
  data_prefix_skip_mask: 3
  packing_enable: true
  packing_chunksize: 4096
  packing_batchsize: 64
  sort_by_length: true
  no_such_key: 1
"""


@pytest.fixture
def converted(tmp_path):
    """(config text, the infctx files beside it) -> (typed settings, what the command said)."""
    name = "zz_from_infctx"
    file = conf_dir() / "experiment" / f"{name}.yaml"

    def run(text: str, **beside: str):
        (tmp_path / "config.yaml").write_text(text)
        for stem, content in beside.items():
            (tmp_path / f"{stem}.yaml").write_text(content)
        command = [sys.executable, str(ROOT / "scripts/from_infctx.py"), str(tmp_path / "config.yaml"), "--write", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return load([f"experiment={name}"]), done.stderr

    yield run
    file.unlink(missing_ok=True)


def test_a_configuration(converted):
    cfg, said = converted(CONFIG)
    check_all_but_what_is_to_come(cfg)
    assert (cfg.seed, cfg.name, cfg.out) == (42, "a-run-4k", "ckpt")
    assert (cfg.strategy.kind, cfg.strategy.accelerator, cfg.strategy.devices) == ("ds2_offload", "cuda", 2)
    assert (cfg.precision.weights, cfg.logger.kind, cfg.logger.project, cfg.logger.mode) == ("bf16", "wandb", "long", "offline")
    assert (cfg.checkpoint.keep, cfg.checkpoint.every, cfg.checkpoint.minutes) == (3, 100, 90)
    assert (cfg.model.path, cfg.ctx_len.tokens, cfg.arch.version) == ("model.pth", 1024, None)
    assert (cfg.optim.lr, cfg.optim.betas, cfg.optim.eps, cfg.optim.weight_decay, cfg.optim.clip) == (6e-4, (0.9, 0.95), 1e-8, 0.01, 0)
    assert (cfg.schedule.kind, cfg.schedule.final, cfg.schedule.warmup_steps) == ("cosine", 0.5, 20)
    assert (cfg.bptt.mode, cfg.bptt.recompute) == ("exact", True)
    assert (cfg.layout.kind, cfg.layout.rows, cfg.layout.at_once, cfg.layout.chunks) == ("document", 32, 4, 4)
    data = cfg.data
    assert (data.format, data.path, data.cache, data.min_tokens, data.max_tokens, data.val_share) == ("jsonl", "records/", "prepared", 17, None, 0.02)
    assert (data.record.markup, data.record.untrained_tokens) == ("trained", 3)
    pieces = parts({"q": "why", "a": "so"}, data.record)
    assert [(p.text, p.trained) for p in pieces] == [(b"Q:\n", True), (b"why", False), (b"\n\nso", True)]
    for key in ("max_epochs", "tags", "token_dropout_rate", "packing_batchsize", "sort_by_length", "no_such_key", "save_last"):
        assert sum(line.startswith("left out: ") and f"{key}: " in line for line in said.splitlines()) == 1, key
    for key in ("dropout: ", "lr_period", "num_sanity", "max_steps"):
        assert f".{key}" not in said, f"{key} has its neutral value"
    assert "a backslash and an n" in said


def check_all_but_what_is_to_come(cfg):
    check(dataclasses.replace(cfg, strategy=dataclasses.replace(cfg.strategy, kind="ddp")))


IOPAIRS = r"""
data:
  source: owner/chats
  tokenizer: world
  source_dataset_params: {name: big, language: en}
  conversation_format: iopairs
  conversation_key: null
  conversation_input_key_prefix_map: {input: "\n\nUser: ", output: "\n\nAssistant: "}
  conversation_input_key_mask: {input: false}
  conversation_end_of_conversation: "\n\nUser:"
"""


def test_iopairs_whose_root_is_the_list(converted):
    """Both crash there: the root, and suffixes left out."""
    cfg, said = converted(IOPAIRS)
    assert (cfg.data.kind, cfg.data.name, cfg.data.config) == ("hub", "owner/chats", "big") and "language" in said
    pieces = parts([{"input": "hi", "output": "yo", "other": "x"}], cfg.data.record)
    want = [(b"\n\nUser: ", True), (b"hi", False), (b"\n\nAssistant: yox\n\nUser:", True)]
    assert [(p.text, p.trained) for p in pieces] == want


SENDER = r"""
data:
  source: parquet
  source_dataset_params: {data_files: {train: a.parquet, test: b.parquet}}
  conversation_format: sender
  conversation_key: log
  conversation_sender_key: who
  conversation_input_key_map: {message: "\n\n{sender}: ", context: " ctx "}
  conversation_sender_value_map: {user: User, bot: Assistant}
  conversation_sender_mask: {user: false}
  conversation_sender_suffix: {bot: "."}
"""


def test_senders(converted):
    cfg, _ = converted(SENDER)
    assert (cfg.data.path, cfg.data.val_path) == ("a.parquet", "b.parquet")
    log = [{"who": "user", "message": "a", "context": "c"}, {"who": "bot", "message": "b"}, {"who": "else", "message": "z"}]
    pieces = parts({"log": log}, cfg.data.record)
    want = [(b"\n\nUser: ", True), (b"a", False), (b" ctx ", True), (b"c", False), (b"\n\nAssistant: b.z", True)]
    assert [(p.text, p.trained) for p in pieces] == want


PACK = """
datapack: {data_path: prepared, mixing_mode: shuffle, batchsize: 64}
default: {tokenizer: world, test_split: 0.01, text_rechunk_force: true, text_rechunk_size: 2048}
dataset:
  - {name: enwiki, source: owner/enwiki, dataset_weight: 3}
  - {name: med.text, source: csv, source_data_dir: med.csv, custom_text_key: body, dataset_length: 100}
"""


@pytest.mark.parametrize("alone", [True, False])
def test_datapacks(alone, converted):
    trainer = "model: {ctx_len: 512}\ndata: {datapack_config_path: pack.yaml, data_path: x, skip_datapath_setup: true}\n"
    cfg, said = converted(PACK) if alone else converted(trainer, pack=PACK)
    check(cfg)
    assert cfg.data.kind == "mix" and cfg.data.cache == "prepared" and cfg.tokenizer.kind == "world"
    enwiki, med = cfg.data.mix["enwiki"], cfg.data.mix["med-text"]
    assert (enwiki.weight, enwiki.data.kind, enwiki.data.name, enwiki.data.val_share) == (3, "hub", "owner/enwiki", 0.01)
    assert (med.weight, med.data.format, med.data.path, med.data.limit, med.data.record.text) == (1, "csv", "med.csv", 100, ("body",))
    assert (cfg.layout.kind, cfg.layout.chunks) == ("fixed", 1 if alone else 4)
    assert "left out: datapack.batchsize" in said


SINGLE = {
    "seed_everything: true": (None, "left out: seed_everything: a random seed"),
    "trainer: {accumulate_grad_batches: 8, microbatch_size: 2, devices: 4}": (lambda c: (c.layout.rows, c.layout.accumulate) == (8, 8), ""),
    "trainer: {accumulate_grad_batches: 8, devices: auto}": (None, "left out: trainer.accumulate_grad_batches: the rows of a step depend"),
    "trainer: {gradient_clip_val: 0.5}": (lambda c: c.optim.clip == 0.5, ""),
    "trainer: {strategy: colossalai}": (None, "left out: trainer.strategy: colossalai"),
    "trainer: {precision: 16-mixed}": (None, "left out: trainer.precision: 16-mixed"),
    "trainer: {logger: false, val_check_interval: 50, fast_dev_run: true}": (lambda c: c.trainer.val_every == 50, "a switch of Lightning's own"),
    "trainer: {callbacks: [{class_path: LearningRateMonitor}, {class_path: ModelCheckpoint, init_args: {save_top_k: 5}}]}": (
        lambda c: c.checkpoint.keep == 5, "LearningRateMonitor"),
    "model: {lr_init: 1e-4}": (lambda c: c.optim.lr == 1e-4 and c.schedule.kind == "constant", ""),
    "model: {lr_init: 1e-4, lr_final: 2e-4}": (lambda c: c.optim.lr == 1e-4, "schedules here do not rise"),
    "model: {lr_init: 1e-4, lr_type: linear}": (None, "left out: model.lr_type: linear"),
    "model: {bptt_truncated_learning: true}": (lambda c: (c.bptt.mode, c.bptt.depth) == ("truncated", 1), ""),
    "model: {bptt_learning_range: 2}": (None, "left out: model.bptt_learning_range: every chunk is learnt from"),
    "data: {source: text, source_data_dir: books}": (lambda c: (c.data.format, c.data.path, c.layout.kind) == ("text", "books", "fixed"), "keeps its newlines"),
    "data: {source: text, source_data_dir: books, text_rechunk_size: -1}": (lambda c: c.layout.kind == "document", ""),
    "data: {source: tokens, tokenizer: binidx}": (lambda c: (c.data.kind, c.data.path, c.tokenizer.kind) == ("binidx", "tokens", "bytes"), ""),
    "data: {source: ../x.jsonl, tokenizer: own.json}": (lambda c: (c.data.path, c.tokenizer.kind, c.tokenizer.path) == ("../x.jsonl", "hf", "own.json"), ""),
    "data: {data_path: 's3://b/x', data_path_storage_options: {key: K}}": (
        lambda c: (c.data.format, c.data.path, c.data.storage) == ("arrow", "s3://b/x", {"key": "K"}), "a safer place"),
    "data: {source: pandas}": (None, "its pickles can run code"),
    "data: {source: a/b, dataset_length: 0.5, test_split: 10}": (None, "0.5 is a share"),
    "data: {source: a/b, multi_column_keys: []}": (None, "left out: data.multi_column_keys: no columns"),
}  # fmt: skip


@pytest.mark.parametrize("text", SINGLE)
def test_single_keys(text, converted):
    holds, message = SINGLE[text]
    cfg, said = converted(text)
    assert holds is None or holds(cfg), cfg
    assert message in said, said


NONE = {"a: 1": "no configuration of the infctx trainer", "data: {datapack_config_path: no.yaml}": "no such file"}


@pytest.mark.parametrize(("content", "message"), NONE.items())
def test_what_is_none(content, message, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    done = subprocess.run([sys.executable, str(ROOT / "scripts/from_infctx.py"), str(tmp_path / "c.yaml")], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_the_experiment_is_yaml_that_can_be_edited(tmp_path):
    (tmp_path / "c.yaml").write_text(IOPAIRS)
    text = from_infctx.experiment(from_infctx.read(tmp_path / "c.yaml"), "c.yaml")
    assert 'prefix: "\\n\\nUser: "' in text and yaml.safe_load(text)["data"]["record"]["chat"]["end"] == "\n\nUser:"
