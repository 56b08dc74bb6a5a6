"""The lines before the first step: what is trained, on what, how the gradient is taken, which kernels run."""

import math

import torch
from torch import Tensor

from rwkv.config.schema import TrainConfig
from rwkv.kernels import registry
from rwkv.kernels.registry import Kernels
from rwkv.model.rwkv import GENERATIONS, count_parameters
from rwkv.training.display import Display
from rwkv.training.environment import device_name
from rwkv.training.session import Session
from rwkv.words import count


def introduce(session: Session, display: Display, seconds: float) -> None:
    """Print what is about to run."""
    cfg, size = session.cfg, session.size
    op = GENERATIONS[size.version].WKV
    shape = 1, cfg.ctx_len.tokens, size.n_head, size.head_size
    sample = torch.empty(shape, dtype=session.dtype, device=session.ranks.device)
    kernels = session.model.rwkv.kernels
    running = kernels_text(op, kernels, sample)
    ranks = f" x {session.ranks.world} processes" if session.ranks.world > 1 else ""
    vals = session.read.vals.values()
    held = f"; {sum(v.count for v in vals):,} tokens of {sum(map(len, vals)):,} held out" if vals else "; nothing held out for validation"
    display.say(f"model  RWKV-{size.version[1:]} {size.n_layer} x {size.n_embd}, {count_parameters(session.model):,} parameters, {cfg.precision.weights}")
    if cfg.model.path:
        display.say(f"from   {cfg.model.path}{session.differences}")
    for line in session.read.stores:
        display.say(f"store  {line}")
    sources = session.read.sources
    for source in sources if len(sources) > 1 else ():
        most = f", at most {source.epochs:g} times" if source.epochs else ""
        display.say(f"data   {source.name}: {source.corpus.count:,} tokens of {count(len(source.corpus), 'document')}, weight {source.weight:g}{most}")
    tokens, documents = sum(s.corpus.count for s in sources), sum(len(s.corpus) for s in sources)
    display.say(f"data   {tokens:,} tokens of {count(documents, 'document')}{held}")
    display.say(f"steps  {rows_text(session)}")
    display.say(f"bptt   {gradient_text(session)}")
    display.say(f"device {device_name() if session.ranks.device.type == 'cpu' else torch.cuda.get_device_name()}{ranks}; {running}")
    if slower := slower_kernels(op, kernels, sample):
        display.say(f"slow   {slower}")
    display.say(f"run    {session.folder.path}")
    display.say(f"losses in nats a token; knowing only each token's frequency gives {session.read.unigram_entropy:.3f}, knowing nothing {math.log(size.vocab_size):.3f}")
    display.say(f"ready after {seconds:.1f} s")


def kernels_text(op: str, kernels: Kernels, sample: Tensor) -> str:
    """Which backend runs the recurrence `op`, and each operation for which one is named. Raises KernelError if one of these cannot."""
    around = "".join(f", {x}: {registry.chosen(x, kernels[x], sample)}" for x in registry.ops_of(op)[1:] if kernels[x] != "auto")
    return f"{op} kernel: {registry.chosen(op, kernels[op], sample)}{around}"


def slower_kernels(op: str, kernels: Kernels, sample: Tensor) -> str:
    """Which operations of a model, whose recurrence is `op`, run unasked without the backend made for this device, and why; empty if none."""
    without: dict[str, list[str]] = {}
    for x in (x for x in registry.ops_of(op) if kernels[x] == "auto"):
        passed_over = registry.passed_over(x, sample)
        for reason in dict.fromkeys(passed_over.values()):
            named = " and ".join(name for name, of_it in passed_over.items() if of_it == reason)
            without.setdefault(f"without {named}: {reason}", []).append(x)
    return "; ".join(f"{', '.join(names)} {why}" for why, names in without.items())


def rows_text(session: Session) -> str:
    layout, ctx, budget = session.cfg.layout, session.cfg.ctx_len.tokens, session.cfg.trainer.tokens
    times = f" x {layout.accumulate} batches" if layout.accumulate > 1 else ""
    tokens = layout.rows * layout.chunks * ctx * layout.accumulate
    if layout.kind == "document":
        return f"{count(layout.rows, 'row')} of whole documents{times} a step, in chunks of {ctx}, short ones in one row, until {budget:,} tokens"
    what, order = {"stream": ("lane", ""), "fixed": ("sample", ""), "official": ("sample", ", in RWKV-LM's order")}[layout.kind]
    return f"{count(layout.rows, what)} x {count(layout.chunks, 'chunk')} of {ctx}{times} = {tokens:,} tokens a step, {count(math.ceil(budget / tokens), 'step')}{order}"


def gradient_text(session: Session) -> str:
    cfg = session.cfg
    cut = session.cut_documents
    if cfg.bptt.mode == "off":
        return "off: nothing is carried from chunk to chunk" + (f"; {cut:,} longer documents are cut into chunks" if cut else "")
    reach = "each document" if cfg.layout.kind == "document" else f"the {count(cfg.layout.chunks, 'chunk')} of a step"
    if cfg.layout.kind == "document" and cfg.layout.max_tokens:
        reach += f", of longer ones over {cfg.layout.max_tokens:,} tokens at a time, the state carried"
    if cut:
        reach += f" ({count(cut, 'document')} longer than a lane's share: cut)"
    carried = "" if cfg.layout.kind != "stream" else "; between steps the state is carried, the gradient is not"
    if cfg.bptt.mode == "exact":
        return f"exact over {reach}{carried}"
    return f"truncated: in windows of {cfg.bptt.depth} chunks, through which the gradient goes back; the state goes through {'all' if carried else 'the row'}"


def gradient_name(cfg: TrainConfig) -> str:
    depth = f" to {cfg.bptt.depth} chunks" if cfg.bptt.mode == "truncated" else ""
    return f"{cfg.bptt.mode}{depth}, states {cfg.bptt.states}"
