"""The training loop: from the settings to a finished run folder.

The training step itself is `optimizer_step`; the gradient it takes is `rwkv.bptt.engine`.
"""

import dataclasses
import json
import shlex
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from rich.console import Console

from rwkv.checkpoint import store
from rwkv.checkpoint.run import RunFolder
from rwkv.config.check import check
from rwkv.config.compose import tree_of
from rwkv.config.schema import TrainConfig
from rwkv.disk import Lines
from rwkv.errors import CheckpointError, TrainingError, UserError
from rwkv.training import environment
from rwkv.training.display import Display
from rwkv.training.finish import finish
from rwkv.training.guard import end
from rwkv.training.intro import introduce
from rwkv.training.metrics import MetricsLog, start_wandb
from rwkv.training.planning.compare import COMPARED_AFTER, bytes_between, compare
from rwkv.training.ranks import Ranks
from rwkv.training.selfcheck import certificates
from rwkv.training.session import Session
from rwkv.training.signals import Stop, in_batch_job
from rwkv.training.step import Step
from rwkv.training.watch import Watch
from rwkv.words import duration

RATE_WINDOW = 20  # optimizer steps over which tokens a second are averaged


def train(cfg: TrainConfig, overrides: list[str]) -> int:
    """Train, or go on training, the run that the settings describe. Returns the process's exit code.

    Raises:
        UserError: data, settings or checkpoints do not allow it; nothing was trained.
    """
    started = time.monotonic()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    folder = RunFolder.of(cfg)
    ranks = Ranks(cfg.strategy)
    with Watch(ranks, cfg.strategy.timeout, lambda which: say_lost(which, folder, overrides)):
        return train_on(ranks, cfg, overrides, folder, started)


def train_on(ranks: Ranks, cfg: TrainConfig, overrides: list[str], folder: RunFolder, started: float) -> int:
    """The same, on ranks that are there: strategy.devices=auto may be as many as do not go with other settings."""
    found = dataclasses.replace(cfg.strategy, devices=ranks.world // cfg.strategy.nodes)
    ranks.together(lambda: check(dataclasses.replace(cfg, strategy=found)))
    ranks.first_alone(lambda: folder.acquire(patient=in_batch_job()))  # of a node thought dead, the process may live on
    if folder.finished:
        if ranks.first:
            print(finished_message(folder))
        return 0
    try:
        session = ranks.together(lambda: Session(cfg, ranks, folder))
    except (UserError, SystemExit):
        if ranks.first:
            folder.discard()
        raise
    ranks.first_alone(folder.make)
    with Stop() as stop, Display(folder.log, cfg.trainer.tokens, ranks.first) as display:
        return run(session, overrides, stop, display, started)


def run(session: Session, overrides: list[str], stop: Stop, display: Display, started: float) -> int:
    """Train the session's run from where its newest checkpoint left it. Returns the process's exit code."""
    cfg, ranks, folder = session.cfg, session.ranks, session.folder
    resume(session, display)
    ranks.first_alone(lambda: write_settings(folder, cfg, overrides))
    ranks.together(lambda: introduce(session, display, time.monotonic() - started))
    if cfg.trainer.self_check:
        self_check(session, display)
    session.since = time.monotonic()
    log = ranks.first_alone(lambda: MetricsLog(folder.metrics, session.step, start_wandb(cfg, folder.path, session.wandb_id)))
    try:
        stopped = fit(session, stop, display, log)
        if stopped:
            display.say(f"stopped at step {session.step}; the same command goes on from there")
        else:
            attempt(session.saver.finish, display)
            finish(session, display, log)
    except Exception:
        if ranks.world == 1:  # of several, others may never come to an agreement
            attempt(session.saver.finish, display)
        raise
    finally:
        if log:
            log.close()
    return max(ranks.gather(stop.exit_code)) if stopped else 0  # no rank ends before all is written: a cluster would kill the others


def fit(session: Session, stop: Stop, display: Display, log: MetricsLog | None) -> bool:
    """Optimizer steps until the token budget is reached. Returns whether a signal ended it before."""
    cfg = session.cfg
    breaks, done = Breaks(session, stop, display), 0
    loss, recent = None, [(session.tokens, time.monotonic())]
    while session.tokens < cfg.trainer.tokens:
        step = session.next_step()
        while True:
            step.advance()
            if step.done:
                break
            display.progress(session.step, session.tokens, loss, rate_of(recent), inside(step))
            if breaks.inside(step):
                return True
        sent = session.ranks.summed
        record = optimizer_step(session, step, display)
        if communicated := bytes_between(session, step, session.ranks.summed - sent):
            record["comm_bytes"] = communicated
        loss = record.get("train/loss", loss)
        recent = [*recent[-RATE_WINDOW:], (session.tokens, time.monotonic())]
        done += 1
        if done == COMPARED_AFTER:
            record |= compare(session, display, recent)
        rate, last = rate_of(recent), session.tokens >= cfg.trainer.tokens
        if cfg.trainer.val_every and session.step % cfg.trainer.val_every == 0 and not last:
            record |= session.validate()
            recent = [(session.tokens, time.monotonic())]  # validation is not counted as training time
        if log and (session.step % cfg.trainer.log_every == 0 or last or {"val/loss", "bad"} & record.keys()):
            log.write({**record, "tokens_per_sec": rate, "time": session.clock()})
        display.progress(session.step, session.tokens, loss, rate)
        if not last and breaks.between():
            return True
    return False


class Breaks:
    """When to save: on a signal, which ends training, every so many steps or minutes. All ranks come to the same answer."""

    ASK_EVERY = 16  # chunks between agreements of several ranks inside a step

    def __init__(self, session: Session, stop: Stop, display: Display):
        self.session, self.stop, self.display = session, stop, display
        self.saved_at = time.monotonic()

    def inside(self, step: Step) -> bool:
        """Between two chunks of an unfinished step. Returns whether training ends here."""
        if self.session.ranks.world > 1 and step.work % self.ASK_EVERY:
            return False
        return self._take(self._overdue(), step)

    def between(self) -> bool:
        """Between two steps. Returns whether training ends here."""
        cfg, step = self.session.cfg.checkpoint, self.session.step
        at_step = any(every and step % every == 0 for every in (cfg.every, cfg.keep_every))
        return self._take(at_step or self._overdue() or self._among_best(), None)

    def _among_best(self) -> bool:
        session = self.session
        if not (session.cfg.checkpoint.best and session.ranks.first and session.val_loss is not None):
            return False
        kept = store.best(store.points(session.folder.checkpoints), session.cfg.checkpoint.best)
        return len(kept) < session.cfg.checkpoint.best or session.val_loss < store.val_loss(kept[-1])

    def _overdue(self) -> bool:
        minutes = self.session.cfg.checkpoint.minutes
        return bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes

    def _take(self, due: bool, step: Step | None) -> bool:
        ranks, saver = self.session.ranks, self.session.saver
        ending, due, ready = ranks.count(self.stop.requested, due, saver.ready)
        if ready == ranks.world:
            attempt(saver.advance, self.display)
        if not (ending or due):
            return False
        attempt(saver.finish, self.display)
        if ending:
            tell(ranks.together(lambda: self.session.save(step, wait=True)), self.display)
        else:
            attempt(lambda: self.session.save(step), self.display)
        self.saved_at = time.monotonic()
        return bool(ending)


def attempt(saving: Callable[[], Path | None], display: Display) -> None:
    """A part of a save without which training goes on."""
    try:
        tell(saving(), display)
    except CheckpointError as error:
        display.say(f"warning: {error}; training goes on")


def tell(written: Path | None, display: Display) -> None:
    if written:
        display.say(f"checkpoint {written.name}")


def optimizer_step(session: Session, step: Step, display: Display) -> dict[str, float | int | str | dict]:
    """Turn the gradients of a finished `step` into an update, unless they are bad; returns its record of metrics."""
    strategy = session.strategy
    unsound = torch.stack([~x.isfinite().all() for x in step.carry.tensors()]).sum().double().view(1)
    norm = strategy.clip(session.cfg.optim.clip)  # before the losses are waited for: launched while the last chunk runs
    *losses, unsound = session.ranks.sum(torch.cat([step.loss, unsound])).tolist()
    loss = sum(losses)
    wrong = session.guard.judge(loss, norm, unsound == 0)
    if session.ranks.any(wrong is not None):
        return pass_over(session, step, display, wrong or "bad on another rank")
    lr = session.learning_rate()
    strategy.step(lr)
    session.guard.accept(norm)
    session.advance(step)
    record = {"step": session.step, "tokens": session.tokens, "train/loss": loss, "lr": lr, "grad_norm": norm, "fill": step.tokens / step.slots}
    return record | of_sources(session, step, losses)


def pass_over(session: Session, step: Step, display: Display, wrong: str) -> dict[str, float | int | str | dict]:
    """Go on behind a bad step, the weights as they were or, rewound, as they are in the newest checkpoint. The step is counted.

    Raises:
        TrainingError: `trainer.on_nan` says so, there were too many in a row, or there is nothing to rewind to.
    """
    guard, action = session.guard, session.cfg.trainer.on_nan
    record = {"step": session.step + 1, "tokens": session.tokens + step.tokens, "bad": wrong, "action": action, "position": step.position}
    ends = guard.refuse()
    attempt(session.saver.finish, display)
    point = newest(session, display) if action == "rewind" and not ends else None
    if ends or (action == "rewind" and point is None):
        session.ranks.first_alone(lambda: end(session.folder, guard, record))
    session.strategy.drop()
    session.advance(step)
    if point:
        session.ranks.together(lambda: session.restore(point))
        record["to"] = point.name
    where = f"the weights go back to {point.name}" if point else "it is left out"
    display.say(f"step {session.step} is bad: {wrong}; {where}, training goes on behind it ({guard.row} in a row, {guard.trainer.max_bad} end it)")
    return record


def of_sources(session: Session, step: Step, losses: list[float]) -> dict[str, float]:
    """The mean loss of each source of a mix that had tokens in the step."""
    shares = zip(session.read.sources, losses, step.predicted_of, strict=True)
    return {f"train/loss/{s.name}": loss * step.denominator / n for s, loss, n in shares if n} if len(losses) > 1 else {}


def inside(step: Step) -> str:
    """Where in a step of many chunks; nothing for a short one."""
    return f"chunk {step.work} of {step.total} (both passes)" if step.total > 32 else ""


def rate_of(recent: list[tuple[int, float]]) -> float:
    """Tokens a second between the first and the last of (tokens, time)."""
    (tokens0, time0), (tokens1, time1) = recent[0], recent[-1]
    return (tokens1 - tokens0) / (time1 - time0) if time1 > time0 else 0.0


def resume(session: Session, display: Display) -> None:
    """Take up the newest sound checkpoint of the run, if it has one."""
    session.ranks.first_alone(lambda: store.clean(session.folder.checkpoints))
    checkpoint = newest(session, display)
    if checkpoint is None:
        session.wandb_id = session.ranks.fabric.broadcast(uuid.uuid4().hex[:12])
        return
    session.ranks.together(lambda: session.load(checkpoint))
    display.say(f"resumed from {checkpoint.name}: {session.tokens:,} tokens, {duration(session.seconds)} of training so far")


def newest(session: Session, display: Display) -> Path | None:
    """The newest sound checkpoint of the run, if it has any."""
    ranks = session.ranks
    share = slice(ranks.rank, None, ranks.world)
    find = lambda checkpoint: sum(ranks.gather(list(store.problems(checkpoint, share))), [])
    return ranks.together(lambda: store.newest_good(session.folder.checkpoints, display.say, find))


def self_check(session: Session, display: Display) -> None:
    """Certify the gradient under the run's own settings. Raises TrainingError if it is not exact."""
    ctx = session.cfg.ctx_len.tokens
    for c in certificates(session.cfg, session.size, session.settings, [5 * ctx // 2], session.ranks.device, session.dtype):
        display.say(f"self-check: gradient of {c.length} tokens in {c.chunks} chunks is off by {c.total:.1e} (bound {c.bound:.0e})")
        if not c.passed:
            raise TrainingError(
                f"self-check: the gradient is not exact under bptt.mode={session.cfg.bptt.mode} and these kernels: off by {c.total:.1e}, "
                f"bound {c.bound:.0e}; python -m rwkv.certify shows each group. trainer.self_check=false trains all the same"
            )


def write_settings(folder: RunFolder, cfg: TrainConfig, overrides: list[str]) -> None:
    """config.yaml, overrides.yaml and env.json: how this run came about."""
    folder.config.write_text(yaml.safe_dump(tree_of(cfg), sort_keys=False))
    folder.overrides.write_text(yaml.safe_dump(list(overrides)))
    folder.env.write_text(json.dumps(environment.describe(), indent=1))


def say_lost(which: str, folder: RunFolder, overrides: list[str]) -> None:
    """On the screen and in the log, of a lost rank: which, and how to go on."""
    newest = next(iter(store.points(folder.checkpoints)), None)
    begins = f"goes on from {newest.name}" if newest else "begins anew, for there is no checkpoint yet"
    text = f"error: {which}\nerror: the other ranks end; the same command {begins}: {shlex.join(['python', '-m', 'rwkv.train', *overrides])}"
    Console(stderr=True).show_cursor()  # hidden behind a live bar
    print(f"\n{text}", file=sys.stderr, flush=True)
    if folder.log.is_file():
        Lines(folder.log).write(text)


def finished_message(folder: RunFolder) -> str:
    summary = json.loads(folder.summary.read_text())
    losses = {"loss": summary["train_loss"], "validation": summary["val_loss"]}
    reached = "".join(f", {name} {loss:.3f}" for name, loss in losses.items() if loss is not None)
    return (
        f"this run is finished: {summary['tokens']:,} tokens{reached}\n"
        f"  {folder.report}\n"
        f"its data was {summary['data']} (the fingerprint); it was not read again to see whether it still is\n"
        f"another run: change a setting of what is learnt (seed=2), or out=; the same again: delete {folder.path}"
    )
