"""The lines before the first step: what is trained, on what, how the gradient is taken, which kernels run."""

import math

import torch

from rwkv.config.schema import TrainConfig
from rwkv.kernels import registry
from rwkv.model.rwkv import GENERATIONS, count_parameters
from rwkv.training.display import Display
from rwkv.training.environment import device_name
from rwkv.training.session import Session


def introduce(session: Session, display: Display, seconds: float) -> None:
    """Print what is about to run."""
    cfg, size = session.cfg, session.size
    op = GENERATIONS[size.version].WKV
    shape = 1, cfg.ctx_len.tokens, size.n_head, size.head_size
    kernel = registry.chosen(op, cfg.model.kernel, torch.empty(shape, dtype=session.dtype, device=session.ranks.device))
    ranks = f" x {session.ranks.world} processes" if session.ranks.world > 1 else ""
    corpus, val = session.train_corpus, session.val_corpus
    held = f"; {len(val.tokens):,} tokens of {len(val)} held out" if val else "; nothing held out for validation"
    display.say(f"model  RWKV-{size.version[1:]} {size.n_layer} x {size.n_embd}, {count_parameters(session.model):,} parameters, {cfg.precision.weights}")
    if cfg.model.path:
        display.say(f"from   {cfg.model.path}{session.differences}")
    display.say(f"data   {len(corpus.tokens):,} tokens of {len(corpus)} documents{held}")
    display.say(f"steps  {rows_text(session)}")
    display.say(f"bptt   {gradient_text(session)}")
    display.say(f"device {device_name() if session.ranks.device.type == 'cpu' else torch.cuda.get_device_name()}{ranks}; {op} kernel: {kernel}")
    display.say(f"run    {session.folder.path}")
    unigram = corpus.unigram_entropy(size.vocab_size)
    display.say(f"losses in nats a token; knowing only each token's frequency gives {unigram:.3f}, knowing nothing {math.log(size.vocab_size):.3f}")
    display.say(f"ready after {seconds:.1f} s")


def rows_text(session: Session) -> str:
    layout, ctx, budget = session.cfg.layout, session.cfg.ctx_len.tokens, session.cfg.trainer.tokens
    times = f" x {layout.accumulate} batches" if layout.accumulate > 1 else ""
    if layout.kind == "stream":
        tokens = layout.rows * layout.chunks * ctx * layout.accumulate
        return f"{layout.rows} lanes x {layout.chunks} chunks of {ctx}{times} = {tokens:,} tokens a step, {math.ceil(budget / tokens):,} steps"
    if layout.kind == "official":
        tokens = layout.rows * layout.chunks * ctx * layout.accumulate
        samples = f"{layout.rows} samples x {layout.chunks} chunks of {ctx}{times} = {tokens:,} tokens a step"
        return f"{samples}, {math.ceil(budget / tokens):,} steps, in RWKV-LM's order"
    return f"{layout.rows} whole documents side by side{times} a step, in chunks of {ctx}, until {budget:,} tokens"


def gradient_text(session: Session) -> str:
    cfg = session.cfg
    if cfg.bptt.mode == "off":
        cut = getattr(session.data, "cut_documents", None)
        return "off: nothing is carried from chunk to chunk" + (f"; {cut} longer documents are cut into chunks" if cut else "")
    reach = "each document" if cfg.layout.kind == "document" else f"the {cfg.layout.chunks} chunks of a step"
    if cfg.layout.kind == "document" and cfg.layout.max_tokens and session.data.cut_documents:
        reach += f" ({session.data.cut_documents} documents longer than {cfg.layout.max_tokens} tokens are cut into several)"
    carried = "" if cfg.layout.kind != "stream" else "; between steps the state is carried, the gradient is not"
    if cfg.bptt.mode == "exact":
        return f"exact over {reach}{carried}"
    return f"truncated: in windows of {cfg.bptt.depth} chunks, through which the gradient goes back; the state goes through {'all' if carried else 'the row'}"


def gradient_name(cfg: TrainConfig) -> str:
    depth = f" to {cfg.bptt.depth} chunks" if cfg.bptt.mode == "truncated" else ""
    return f"{cfg.bptt.mode}{depth}, states {cfg.bptt.states}"
