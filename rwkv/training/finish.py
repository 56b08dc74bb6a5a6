"""The end of a run: last validation, what was expected, a sample of what it writes, the report."""

import json
import statistics

from rwkv.checkpoint import store
from rwkv.checkpoint.run import signature
from rwkv.model.sampling import generate
from rwkv.training import report
from rwkv.training.display import Display
from rwkv.training.metrics import MetricsLog, final_loss, read
from rwkv.training.session import Session
from rwkv.words import count, duration


def finish(session: Session, display: Display, log: MetricsLog | None) -> None:
    """Validate, save, sample, write summary.json and report.html, and say where they are. Every rank calls it."""
    cfg, folder = session.cfg, session.folder
    seconds = session.clock()
    validated = session.validate()
    final = folder.checkpoints / store.name_of(session.step, 0)
    if session.ranks.any(session.ranks.first and any(store.problems(final))):  # a run killed below has it already
        session.ranks.together(session.save)
    text = sample(session)
    session.ranks.together(session.saver.finish)
    if not session.ranks.first:
        return
    log.write({"step": session.step, "tokens": session.tokens, "time": session.clock(), **validated})
    records = read(folder.metrics)
    train_loss = final_loss(records)  # None of a metrics.jsonl that was deleted
    fills = [r["fill"] for r in records if "fill" in r]
    rates = [r["tokens_per_sec"] for r in records if r.get("tokens_per_sec")]
    summary = {
        "step": session.step,
        "tokens": session.tokens,
        "seconds": round(seconds, 1),
        "tokens_per_sec": round(statistics.median(rates), 1) if rates else None,
        "train_loss": train_loss,
        "val_loss": validated.get("val/loss"),
        "fill": round(statistics.fmean(fills), 4) if fills else None,
        "unigram": session.read.unigram_entropy,
        "data": session.fingerprint,
        "plan": next((beside_plan(r) for r in records if "plan/memory" in r), None),
    }
    display.say()
    display.say(f"{count(session.step, 'step')}, {session.tokens:,} tokens in {duration(seconds)}: {summary['tokens_per_sec'] or 0:,.0f} tokens/s")
    if len(session.read.sources) > 1:
        summary["sources"] = {source.name: mixed for source, mixed in zip(session.read.sources, session.data.feed.shares(), strict=True)}
        for name, mixed in summary["sources"].items():
            display.say(f"{name + ':':16}documents of {mixed['tokens']:,} tokens begun, {mixed['epochs']:.3g} times through it")
    if summary["fill"] and summary["fill"] < 0.995:
        display.say(f"rows filled to {summary['fill']:.1%}: the rest waited for longer documents beside them")
    summary["verdict"] = verdict(session, display, train_loss, validated.get("val/loss"))
    if text:
        (folder.samples / f"step-{session.step:08d}.txt").write_text(text)
        display.say(f"\n--- a sample ---\n{text}\n---")
    report.write_report(folder, cfg, summary, records, text)
    temp = folder.summary.with_suffix(".tmp")
    temp.write_text(json.dumps(summary, indent=1))
    temp.replace(folder.summary)  # last: from here on the run is finished
    display.say(f"report {folder.report}")
    display.say(f"run    {folder.path}")


def beside_plan(record: dict) -> dict:
    """Of the record that has the plan and what was measured, those."""
    return {k: v for k, v in record.items() if k.startswith("plan/") or k in ("peak_memory", "step_seconds", "measured_tokens_per_sec", "comm_bytes")}


def verdict(session: Session, display: Display, train_loss: float | None, val_loss: float | None) -> str | None:
    """Say the final losses there are, beside the expected ones where the recipe, unchanged and on its own data, has them."""
    expect = session.cfg.expect
    applies = expect is not None and expect.signature == signature(session.cfg) and expect.data == session.fingerprint
    wanted = (expect.train_loss, expect.val_loss) if applies else (None, None)
    rows = zip(("training", "validation"), (train_loss, val_loss), wanted, strict=True)
    missed = []
    for name, got, wanted in rows:
        if got is None:
            continue
        beside = ""
        if wanted is not None:
            off = got - wanted
            beside = f"   expected {wanted:.3f} +- {expect.tolerance:.2f}" + ("" if abs(off) <= expect.tolerance else f": off by {off:+.3f}")
            if abs(off) > expect.tolerance:
                missed.append(name)
        display.say(f"{name + ' loss':16}{got:.3f}{beside}")
    display.say(f"{'unigram':16}{session.read.unigram_entropy:.3f}   (a model that knows only how frequent each token is)")
    if not applies:
        return None
    return "as expected" if not missed else f"{' and '.join(missed)} loss not as expected"


def sample(session: Session) -> str:
    """What the model writes after the prompt, on the first rank; those that hold parts of its weights help."""
    s = session.cfg.sample
    if s.tokens == 0 or not (session.ranks.first or session.strategy.together):
        return ""
    prompt = [int(i) for i in session.tokenizer.encode(s.prompt.encode())]
    options = {"tokens": s.tokens, "temperature": s.temperature, "top_p": s.top_p, "seed": session.cfg.seed}
    ids = generate(session.model.rwkv, prompt, state=session.zero_state(1), **options)
    return session.tokenizer.decode([*prompt, *ids]).decode("utf-8", "replace")
