"""Everything a run is made of, built from its settings, and its checkpoints."""

import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkv.bptt.chunks import runner
from rwkv.bptt.engine import Settings
from rwkv.checkpoint import official, store
from rwkv.checkpoint.run import RunFolder
from rwkv.config.derived import peak_lr, size_of
from rwkv.config.schema import TrainConfig
from rwkv.data import corpus as corpora
from rwkv.data import sources, tokenizer
from rwkv.data.layout import Documents, Stream
from rwkv.data.official_order import Official
from rwkv.errors import CheckpointError, DataError
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import RWKV
from rwkv.model.state import State
from rwkv.training.fit import check_fit
from rwkv.training.optimizer import Optimizer
from rwkv.training.ranks import Ranks
from rwkv.training.schedule import learning_rate
from rwkv.training.step import Step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
VAL_ROWS = 8


class Session:
    """The run of one process: data, model, optimizer, and how far it has come.

    Attributes:
        step, tokens: optimizer steps done, and tokens read in them.
        carry: the state of this rank's rows, from step to step.
        differences: of `model.path` from the model, in words, where `model.partial` allows them.
        seconds: spent training, over all processes that had a part in it.
    """

    def __init__(self, cfg: TrainConfig, ranks: Ranks, folder: RunFolder | None):
        self.cfg, self.ranks, self.folder = cfg, ranks, folder
        torch.manual_seed(cfg.seed)
        self.tokenizer = tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path)
        self.differences = ""
        self.given = official.load(Path(cfg.model.path)) if cfg.model.path else None
        self.size = size_of(cfg, self.tokenizer.vocab_size, official.size_of(self.given) if self.given else None)
        self.train_corpus, self.val_corpus, self.fingerprint = read_data(cfg, self.tokenizer, self.size.vocab_size)
        self.data = make_layout(cfg, self.train_corpus)
        self.settings = settings_of(cfg, folder.path if folder else None, ranks.world // cfg.strategy.nodes)
        self.dtype = DTYPES[cfg.precision.weights]
        check_fit(cfg, self.size, ranks.device)
        self.model = self._make_model()
        self.runner = runner(self.model, cfg.bptt.graphs)
        self.optimizer = Optimizer(
            self.model.rwkv,
            self.model.rwkv.optimizer_groups(),
            betas=cfg.optim.betas,
            eps=cfg.optim.eps,
            weight_decay=cfg.optim.weight_decay,
            layerwise_lr=cfg.optim.layerwise_lr,
        )
        self.step, self.tokens, self.seconds, self.wandb_id = 0, 0, 0.0, ""
        self.carry = self.zero_state(len(range(ranks.rank, cfg.layout.rows, ranks.world)))
        self.unfinished: tuple[dict, dict[str, Tensor]] | None = None
        self.since = time.monotonic()

    def _make_model(self) -> LossModel:
        with torch.device("meta"):
            rwkv = RWKV(self.size, self.cfg.model.kernel)
        rwkv = rwkv.to_empty(device="cpu").init_weights(self.cfg.seed)
        if self.given:
            self.differences = official.fill(rwkv, self.given, self.cfg.model.partial)
            self.given = None
        return LossModel(rwkv.to(self.ranks.device, self.dtype), self.cfg.optim.l2wrap)

    def zero_state(self, rows: int) -> State:
        return State.zeros(self.size, rows, self.dtype, self.ranks.device)

    def next_step(self) -> Step:
        """The optimizer step to do next, from where a checkpoint left it."""
        step = Step(self.runner, self.data, self.step, self.cfg.layout.accumulate, self.carry, self.settings, self.ranks)
        if self.unfinished:
            saved, grads = self.unfinished
            step.load_state_dict(saved)
            for name, grad in grads.items():
                self.optimizer.masters[name].grad = grad.to(self.ranks.device)
            self.unfinished = None
        return step

    def learning_rate(self) -> float:
        s = self.cfg.schedule
        return learning_rate(s.kind, peak_lr(self.cfg, self.size), s.final, s.warmup_steps, self.step, self.tokens, self.tokens_per_step, self.cfg.trainer.tokens)

    @property
    def tokens_per_step(self) -> float:
        return self.data.tokens_per_step * self.cfg.layout.accumulate

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss a predicted token over the first `val_tokens` of the validation text; None without such text."""
        if self.val_corpus is None:
            return None
        rows = min(VAL_ROWS, len(self.val_corpus.tokens) - 1)
        ctx = self.cfg.ctx_len.tokens
        stream = Stream(self.val_corpus, rows, ctx, seed=0, shuffle=False)
        steps = min(stream.steps_per_epoch, math.ceil(self.cfg.trainer.val_tokens / (rows * ctx)))
        mine = len(range(self.ranks.rank, rows, self.ranks.world))
        state, total = self.zero_state(mine), torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        predicted = 0
        for i in range(steps):
            batch = stream.batch(i)
            predicted += batch.predicted
            if mine:
                chunk = batch.rows(self.ranks.rank, self.ranks.world).chunk(0, batch.length, 1.0, self.ranks.device)
                loss, state = self.model(chunk.tokens, state, chunk.reset, chunk.targets, chunk.weight)
                total += loss
        return self.ranks.sum(total).item() / predicted

    def clock(self) -> float:
        """Seconds of training so far, this process's included."""
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def save(self, step: Step | None = None) -> Path | None:
        """Write a checkpoint: between steps, or inside of `step`. Every rank calls it; the first one writes.

        Raises:
            CheckpointError: it could not be written.
        """
        rows = self.ranks.gather((step.carry if step else self.carry).to("cpu").tensors())
        parts = self.ranks.gather(self._part(step)) if step else []
        if not self.ranks.first:
            return None
        shift, wkv = (_interleave([r[i] for r in rows]) for i in (0, 1))
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.clock(),
            "fingerprint": self.fingerprint,
            "wandb_id": self.wandb_id,
            "world": self.ranks.world,
        }
        optimizer = {f"{key}/{name}": x for name, entries in self.optimizer.state_dict().items() for key, x in entries.items()}
        tensors = {
            "model.safetensors": self.optimizer.masters,
            "optimizer.safetensors": optimizer,
            "carry.safetensors": {"shift": shift, "wkv": wkv, "rng": torch.get_rng_state()},
            **{f"unfinished-{rank}.safetensors": part for rank, part in enumerate(parts)},
        }
        writers = {name: _tensor_writer(content) for name, content in tensors.items()}
        writers["progress.json"] = lambda path: path.write_text(json.dumps(progress, indent=1))
        return store.save(self.folder.checkpoints, self.step, step.work if step else 0, writers, self.cfg.checkpoint.keep)

    def _part(self, step: Step) -> dict[str, Tensor]:
        """This rank's share of an unfinished step as flat tensors."""
        grads = {f"grads/{n}": m.grad.cpu() for n, m in self.optimizer.masters.items() if m.grad is not None}
        return {**_flatten(step.state_dict()), **grads}

    def load(self, checkpoint: Path) -> None:
        """Take up a verified checkpoint. Raises CheckpointError if it is of other data or another model."""
        progress = json.loads((checkpoint / "progress.json").read_text())
        if progress["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{checkpoint}: the data has changed since it was written (fingerprint {progress['fingerprint']}, now {self.fingerprint}); "
                "put the data back, or give the new run a name or seed of its own and delete this one"
            )
        weights = load_file(checkpoint / "model.safetensors")
        if {n: w.shape for n, w in weights.items()} != {n: m.shape for n, m in self.optimizer.masters.items()}:
            raise CheckpointError(f"{checkpoint}: its tensors are not those of the model that the settings describe")
        with torch.no_grad():
            for name, weight in weights.items():
                self.optimizer.masters[name].copy_(weight)
                self.optimizer.params[name].copy_(weight)
        moments: dict[str, dict[str, Tensor]] = {}
        for key, x in load_file(checkpoint / "optimizer.safetensors").items():
            entry, name = key.split("/", 1)
            moments.setdefault(name, {})[entry] = x
        self.optimizer.load_state_dict(moments)
        carry = load_file(checkpoint / "carry.safetensors")
        torch.set_rng_state(carry["rng"])
        mine = slice(self.ranks.rank, None, self.ranks.world)
        self.carry = State(carry["shift"][mine], carry["wkv"][mine]).to(self.ranks.device)
        self.step, self.tokens, self.seconds = progress["step"], progress["tokens"], progress["seconds"]
        self.wandb_id = progress["wandb_id"]
        part = checkpoint / f"unfinished-{self.ranks.rank}.safetensors"
        if part.exists() and progress["world"] == self.ranks.world:  # else the step is done again from its start
            flat = load_file(part)
            grads = {n.removeprefix("grads/"): x for n, x in flat.items() if n.startswith("grads/")}
            self.unfinished = _unflatten({n: x for n, x in flat.items() if not n.startswith("grads/")}), grads
        self.since = time.monotonic()


def settings_of(cfg: TrainConfig, folder: Path | None, sharing: int = 1) -> Settings:
    """How the gradient is taken; `folder` is where states on disk go, None for the system's temporary folder; `sharing`
    processes are on this host."""
    window = {"exact": None, "truncated": cfg.bptt.depth, "off": 1}[cfg.bptt.mode]
    return Settings(cfg.ctx_len.tokens, window, cfg.bptt.states, folder, cfg.bptt.recompute, sharing=sharing)


def read_data(cfg: TrainConfig, tok: tokenizer.Tokenizer, vocab_size: int):
    """(training corpus, validation corpus or None, fingerprint of both and of the tokenizer)."""
    if cfg.data.kind == "tokens":
        whole = corpora.load_tokens(cfg.data.path, vocab_size)
    else:
        whole = corpora.tokenise(sources.read(cfg.data.kind, cfg.data.path, cfg.data.name), tok)
    train, val = corpora.split(whole, cfg.data.val_share)
    if not train.predictable:
        raise DataError(f"data={cfg.data.kind}: nothing to predict: each of the {len(train):,} documents is one token alone; use other data")
    ctx = cfg.ctx_len.tokens
    if len(train.tokens) <= ctx:
        raise DataError(f"the training text has {len(train.tokens)} tokens, fewer than one chunk (ctx_len={ctx}); use more text or a smaller ctx_len")
    return train, val, f"{whole.fingerprint}-{tok.fingerprint}"


def make_layout(cfg: TrainConfig, corpus: corpora.Corpus) -> Stream | Documents | Official:
    ctx, rows = cfg.ctx_len.tokens, cfg.layout.rows
    if cfg.layout.kind == "official":
        return Official(corpus, rows, ctx * cfg.layout.chunks)
    if cfg.layout.kind == "stream":
        if len(corpus.tokens) // rows <= ctx:
            most = max(1, len(corpus.tokens) // (ctx + 1))
            raise DataError(
                f"layout.rows={rows} of at least one chunk each (ctx_len={ctx}) need {rows * (ctx + 1)} tokens, "
                f"the training text has {len(corpus.tokens)}; at most layout.rows={most} here"
            )
        return Stream(corpus, rows, ctx * cfg.layout.chunks, cfg.seed, fresh=cfg.bptt.mode == "off")
    return Documents(corpus, rows, cfg.seed, ctx if cfg.bptt.mode == "off" else cfg.layout.max_tokens)


def _interleave(parts: list[Tensor]) -> Tensor:
    """Rows of rank 0, 1, ... back in their global order: rank r holds every world-th row from r on."""
    out = torch.empty(sum(len(p) for p in parts), *parts[0].shape[1:], dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        out[rank :: len(parts)] = part
    return out


def _tensor_writer(tensors: dict[str, Tensor]):
    return lambda path: save_file({n: x.detach().cpu().contiguous() for n, x in tensors.items()}, path)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Tensor]:
    """Nested dicts and lists of tensors and ints as flat tensors; None is left out."""
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flatten(value, f"{name}/")
        elif isinstance(value, list):
            flat |= {f"{name}/{i}": x for i, x in enumerate(value)}
        elif value is not None:
            flat[name] = value if isinstance(value, Tensor) else torch.tensor(value)
    return flat


def _unflatten(flat: dict[str, Tensor]) -> dict:
    """The tree that `Step.load_state_dict` takes."""
    tree: dict = {"bptt": {"grad": None}}
    for name in sorted(flat):
        parts = name.split("/")
        node = tree["bptt"] if parts[0] == "bptt" else tree
        key = parts[1] if parts[0] == "bptt" else parts[0]
        if parts[-1].isdigit():
            node[key] = [*(node.get(key) or []), flat[name]]
        else:
            node[key] = flat[name] if key == "loss" else int(flat[name])
    return tree
