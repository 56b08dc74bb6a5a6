"""Everything a run is made of, built from its settings, and its checkpoints."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rwkv.bptt.engine import Settings
from rwkv.checkpoint import official, shards, store
from rwkv.checkpoint.run import RunFolder
from rwkv.config.derived import peak_lr, size_of
from rwkv.config.schema import TrainConfig
from rwkv.data import layout, tokenizer
from rwkv.data.corpus import Corpus
from rwkv.data.read import read
from rwkv.errors import CheckpointError, DataError
from rwkv.model.rwkv import initial_weights
from rwkv.model.state import DTYPES, State
from rwkv.training import strategies
from rwkv.training.guard import Guard
from rwkv.training.planning.fit import check_fit
from rwkv.training.planning.work import Work, parameters
from rwkv.training.ranks import Ranks
from rwkv.training.saving import Saver
from rwkv.training.schedule import learning_rate
from rwkv.training.step import VAL_ROWS, Step
from rwkv.training.strategies import MASTER


class Session:
    """The run of one process: data, model, optimizer, and how far it has come.

    Attributes:
        step, tokens: optimizer steps done, and tokens read in them.
        carry: the state of this rank's rows, from step to step.
        val_loss: of the weights as they are; None if they were not validated.
        differences: of `model.path` from the model, in words, where `model.partial` allows them.
        work, planned: what the settings ask of the machine, and the memory it was planned to take.
        seconds: spent training, over all processes that had a part in it.
    """

    def __init__(self, cfg: TrainConfig, ranks: Ranks, folder: RunFolder | None):
        self.cfg, self.ranks, self.folder = cfg, ranks, folder
        torch.manual_seed(cfg.seed)
        self.tokenizer = tokenizer.build(cfg.tokenizer.kind, cfg.tokenizer.path)
        self.differences = ""
        self.given = official.load(Path(cfg.model.path)) if cfg.model.path else None
        self.size = size_of(cfg, self.tokenizer.vocab_size, official.size_of(self.given) if self.given else None)
        self.work = Work.of(cfg, self.size)
        self.planned = check_fit(cfg, self.work, ranks)
        strategies.check(cfg, parameters(self.size).total, ranks.device.type)
        self.read = read(cfg, self.tokenizer, self.size.vocab_size)
        self.fingerprint = self.read.fingerprint
        self.data, self.cut_documents = layout.build(cfg.layout, self.read.sources, cfg.ctx_len.tokens, cfg.seed, cfg.bptt.mode == "off")
        self.dtype = DTYPES[cfg.precision.weights]
        self.strategy = strategies.build(cfg, self.size, ranks)
        self.model = self.strategy.model
        self.settings = settings_of(cfg, folder.path if folder else None, ranks, self.strategy)
        self._fill()
        self.step, self.tokens, self.seconds, self.wandb_id = 0, 0, 0.0, ""
        self.val_loss: float | None = None
        self.guard = Guard(cfg.trainer)
        if folder:
            self.saver = Saver(ranks, folder.checkpoints, store.Keep(cfg.checkpoint.keep, cfg.checkpoint.keep_every, cfg.checkpoint.best))
        self.carry = self.zero_state(len(range(ranks.rank, cfg.layout.rows, ranks.world)))
        self.unfinished: tuple[dict, dict[str, Tensor]] | None = None
        self.since = time.monotonic()

    def _fill(self) -> None:
        """Weights as initialised, or of the file given, or both."""
        given = {}
        if self.given:
            given, self.differences = official.fitting(self.size, self.given, self.cfg.model.partial)
            self.given = None
        if len(given) < len(self.strategy.shapes):
            self.strategy.fill((n, given.get(n, w)) for n, w in initial_weights(self.size, self.cfg.seed))
        else:
            self.strategy.fill(given.items())

    def zero_state(self, rows: int) -> State:
        return State.zeros(self.size, rows, self.dtype, self.ranks.device)

    def next_step(self) -> Step:
        """The optimizer step to do next, from where a checkpoint left it."""
        position, batches = self.data.state_dict(), []
        while len(batches) < self.cfg.layout.accumulate and (batch := self.data.next()):
            batches.append(batch)
        if not batches:
            raise DataError(
                f"the data has ended after {self.tokens:,} tokens: no source may be read again (epochs in data.mix); set trainer.tokens={self.tokens}"
            )
        step = Step(self.strategy, batches, position, self.carry, self.settings, self.ranks, self.cfg.layout.at_once)
        if self.unfinished:
            saved, grads = self.unfinished
            step.load_state_dict(saved)
            self.strategy.put_gradients(grads)
            self.unfinished = None
        return step

    def advance(self, step: Step) -> None:
        """Behind a finished step: its tokens are read. The state of a row that is not finite starts anew."""
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in step.carry.tensors()]).all(0)
        self.step, self.tokens, self.carry, self.val_loss = self.step + 1, self.tokens + step.tokens, step.carry.clear(~finite), None

    def learning_rate(self) -> float:
        s = self.cfg.schedule
        return learning_rate(s.kind, peak_lr(self.cfg, self.size), s.final, s.warmup_steps, self.step, self.tokens, self.tokens_per_step, self.cfg.trainer.tokens)

    @property
    def tokens_per_step(self) -> float:
        return self.data.tokens_per_step * self.cfg.layout.accumulate

    def validate(self) -> dict[str, float]:
        """Mean loss a predicted token over the first `val_tokens` of the validation text, as metrics; of a mix, of each source's
        too. Empty without such text."""
        found = {name: self._validate(val, self.cfg.trainer.val_tokens // len(self.read.vals)) for name, val in self.read.vals.items()}
        if not found:
            return {}
        total, predicted = (sum(x) for x in zip(*found.values(), strict=True))
        each = {f"val/loss/{name}": loss / n for name, (loss, n) in found.items()} if len(self.read.sources) > 1 else {}
        self.val_loss = total / predicted
        return {"val/loss": self.val_loss, **each}

    @torch.no_grad()
    def _validate(self, corpus: Corpus, tokens: int) -> tuple[float, int]:
        """(summed loss, predicted tokens)"""
        rows, ctx = min(VAL_ROWS, len(corpus)), self.cfg.ctx_len.tokens
        lanes = layout.validation(corpus, rows, ctx)
        idle = self.ranks.rank >= rows
        reader = 0 if idle else self.ranks.rank  # an idle one reads along with the first, where all must
        state = self.zero_state(len(range(reader, rows, self.ranks.world)))
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        predicted, read = 0, 0
        while read < tokens and (batch := lanes.next()):
            predicted, read = predicted + batch.predicted, read + batch.count
            if not idle or self.strategy.together:
                chunk = batch.rank(reader, self.ranks.world).chunk(0, ctx, 1.0, self.ranks.device)
                loss, state = self.model(chunk.tokens, state, chunk.reset, chunk.targets, chunk.weight)
                total += 0 if idle else loss
        return self.ranks.sum(total).item(), predicted

    def clock(self) -> float:
        """Seconds of training so far, this process's included."""
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def save(self, step: Step | None = None, wait: bool = False) -> Path | None:
        """Begin a checkpoint, none being written: between steps, or inside of `step`. Every rank calls it, and writes its share.

        wait: until it is complete, as with checkpoint.background=false; else it is written beside training.

        Returns:
            The checkpoint, if it is complete.

        Raises:
            CheckpointError: it could not be written. On every rank.
        """
        position = step.position if step else self.data.state_dict()
        if not self.strategy.stops_inside:
            step = None  # it will be done again from its start
        wait = wait or not self.cfg.checkpoint.background
        keep = _on_host if wait else self.saver.copy
        tensors = self._weights(keep)
        state = step.carry if step else self.carry
        tensors["carry"] = {"shift": state.shift, "wkv": state.wkv, "rng": torch.get_rng_state()}
        if step:
            tensors["unfinished"] = self._part(step)
        for kind in tensors.keys() - {"model", "optimizer"}:
            tensors[kind] = {n: _on_host(n, x) if wait else _on_host(n, x.clone()) for n, x in tensors[kind].items()}
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.clock(),
            "fingerprint": self.fingerprint,
            "position": position,
            "wandb_id": self.wandb_id,
            "parts": self._parts(),
            "val_loss": None if step else self.val_loss,
            "guard": self.guard.state_dict(),
        }
        texts = {store.PROGRESS: json.dumps(progress, indent=1)} if self.ranks.first else {}
        self.saver.start(self.step, step.work if step else 0, tensors, texts)
        return self.saver.finish() if wait else None

    def _weights(self, keep: Callable[[str, Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
        """This rank's share of master weights and Adam's entries, by kind, what is kept of each."""
        owner, model, optimizer = shards.deal(self.strategy.shapes, self.ranks.world), {}, {}
        for name in self.strategy.shapes:
            for key, x in self.strategy.whole(name, owner[name] == self.ranks.rank).items():
                entry = f"{key}/{name}"
                (model if key == MASTER else optimizer)[name if key == MASTER else entry] = keep(entry, x)
        return {"model": model, "optimizer": optimizer}

    def _part(self, step: Step) -> dict[str, Tensor]:
        """This rank's share of an unfinished step as flat tensors."""
        grads = {f"grads/{n}": x for n, x in self.strategy.gradients().items()}
        return {**_flatten(step.state_dict()), **grads}

    def _parts(self) -> list:
        """An unfinished step is taken up where this is the same."""
        return [self.ranks.world, self.cfg.layout.at_once, type(self.strategy).__name__]

    def load(self, checkpoint: Path) -> None:
        """Take up a verified checkpoint. Raises CheckpointError if it is of other data or another model."""
        progress = json.loads((checkpoint / store.PROGRESS).read_text())
        same_data = progress["fingerprint"] == self.fingerprint
        if not same_data and self.cfg.checkpoint.new_data == "refuse":
            raise CheckpointError(
                f"{checkpoint}: the data has changed since it was written (fingerprint {progress['fingerprint']}, now {self.fingerprint}); "
                "put the data back, set checkpoint.new_data=accept to go on with the new from its start, or set seed=2 for a new run"
            )
        self.restore(checkpoint)
        carry = [load_file(file) for file in shards.files(checkpoint, "carry")]
        torch.set_rng_state(carry[0]["rng"])
        mine = slice(self.ranks.rank, None, self.ranks.world)
        if same_data:
            shift, wkv = (_interleave([part[name] for part in carry])[mine] for name in ("shift", "wkv"))
            self.carry = State(shift, wkv).to(self.ranks.device)
            self.data.load_state_dict(progress["position"])
        self.step, self.tokens, self.seconds = progress["step"], progress["tokens"], progress["seconds"]
        self.wandb_id = progress["wandb_id"]
        if "guard" in progress:  # a checkpoint of before there was one has none
            self.guard.load_state_dict(progress["guard"])
        parts = shards.files(checkpoint, "unfinished")
        # cut into other parts, the step is done again from its start
        if same_data and parts and progress["parts"] == self._parts():
            flat = load_file(parts[self.ranks.rank])
            grads = {n.removeprefix("grads/"): x for n, x in flat.items() if n.startswith("grads/")}
            self.unfinished = _unflatten({n: x for n, x in flat.items() if not n.startswith("grads/")}), grads
        self.since = time.monotonic()

    def restore(self, checkpoint: Path) -> None:
        """Weights and moments of a verified checkpoint, no more. Raises CheckpointError if it is of another model."""
        model, optimizer = shards.Tensors(checkpoint, "model"), shards.Tensors(checkpoint, "optimizer")
        if different := sorted(dict(model.shapes().items() ^ self.strategy.shapes.items())):
            raise CheckpointError(
                f"{checkpoint}: its tensors are not those of the model that the settings describe: {different[0]}, {len(different)} in all; "
                "if the file of model.path has changed, put it back, or set seed=2 for a new run"
            )
        keys: dict[str, list[str]] = {name: [] for name in model}
        for entry in optimizer:
            key, name = entry.split("/", 1)
            keys[name].append(key)
        for name in self.strategy.shapes:
            self.strategy.put(name, {MASTER: model[name], **{key: optimizer[f"{key}/{name}"] for key in keys[name]}})


def settings_of(cfg: TrainConfig, folder: Path | None, ranks: Ranks | None = None, strategy: strategies.Strategy | None = None) -> Settings:
    """How the gradient is taken; `folder` is where states on disk go, None for the system's temporary folder."""
    window = {"exact": None, "truncated": cfg.bptt.depth, "off": 1}[cfg.bptt.mode]
    sharing = ranks.world // cfg.strategy.nodes if ranks else 1
    least = ranks.least if strategy and strategy.together else int
    layerwise = cfg.bptt.recompute is True and (strategy is None or strategy.layerwise)
    return Settings(cfg.ctx_len.tokens, window, cfg.bptt.states, folder, layerwise, sharing=sharing, least=least)


def _interleave(parts: list[Tensor]) -> Tensor:
    """Rows of rank 0, 1, ... back in their global order: rank r holds every world-th row from r on."""
    out = torch.empty(sum(len(p) for p in parts), *parts[0].shape[1:], dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        out[rank :: len(parts)] = part
    return out


def _on_host(_: str, x: Tensor) -> Tensor:
    """In one piece; x itself where it is so already."""
    return x.detach().cpu().contiguous()


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
