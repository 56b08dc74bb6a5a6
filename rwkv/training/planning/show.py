"""A plan on the screen, within 80 columns."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rwkv.memory import human
from rwkv.training.planning.fit import Verdict
from rwkv.training.planning.memory import CATEGORIES
from rwkv.training.planning.plan import Plan
from rwkv.words import count, duration

WIDTH = 80


def show(plan: Plan) -> None:
    """Print it."""
    console = Console(highlight=False, width=WIDTH)
    w, size, cuda = plan.work, plan.work.size, plan.machine.device == "cuda"
    say = lambda text: console.print(text, markup=False)  # noqa: E731
    say(f"model    RWKV-{size.version[1:]} {size.n_layer} x {size.n_embd}, {plan.params.total:,} parameters, {w.weights}")
    say(f"machine  {plan.machine.name}" + (f", {human(plan.machine.memory)} each" if cuda else "") + _host(plan.machine.host))
    say(f"run      {plan.run}")
    console.print(_memory(plan))
    console.print(_work(plan))
    console.print(_strategies(plan))
    say(_conclusion(plan))


def _table(title: str, **options) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", width=WIDTH, box=SIMPLE_HEAD, pad_edge=False, **options)


def _host(free: int | None) -> str:
    return f", {human(free)} of host memory" if free is not None else ""


def _memory(plan: Plan) -> Table:
    need, v = plan.chosen.need, plan.chosen
    table = _table(f"memory of a rank, strategy={v.kind}, {v.world} " + ("process" if v.world == 1 else "processes"))
    table.add_column("")
    if need is None:
        table.add_row(v.why_not)
        return table
    places = {"GPU": need.device, "host": need.host} if need.device else {"host": need.host}
    for place in places:
        table.add_column(place, justify="right")
    for name in CATEGORIES:
        cells = [human(sizes[name]) if name in sizes else "" for sizes in places.values()]
        if any(cells):
            table.add_row(name, *cells)
    table.add_section()
    table.add_row("in all", *(human(sum(sizes.values())) for sizes in places.values()), style="bold")
    return table


def _work(plan: Plan) -> Table:
    w = plan.work
    rows = [
        ("tokens", f"{w.tokens:,} in {count(w.steps, 'step')} of {w.tokens_per_step:,}"),
        ("FLOPs a token", f"{plan.flops.model:.3g}; with what is computed again {plan.flops.executed:.3g}"),
        ("FLOPs in all", f"{plan.flops.executed * w.tokens:.3g}"),
        ("tokens a second", f"{plan.rate.tokens:,.0f} ({plan.rate.source})" if plan.rate else "not known: say plan.rate= or plan.mfu="),
        ("time", duration(plan.seconds) if plan.seconds else "not known"),
        ("between ranks", f"{human(plan.traffic)} a step and rank" if plan.traffic else "nothing"),
        ("a checkpoint", f"{human(plan.checkpoint)} on the disk; the newest {plan.cfg.checkpoint.keep} stay"),
        *([("strategy.swap", f"{human(plan.swap)} on the disk of each node")] if plan.swap else []),
    ]
    table = _table("work", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def _strategies(plan: Plan) -> Table:
    cuda = plan.machine.device == "cuda"
    table = _table("which strategies fit")
    table.add_column("strategy", no_wrap=True)
    table.add_column("processes", justify="right")
    for place in ("a GPU", "host") if cuda else ("host",):
        table.add_column(place, justify="right", no_wrap=True)
    table.add_column("fits")
    for v in plan.all:
        table.add_row(v.kind, str(v.world), *_places(v, plan), "yes" if v.fits else f"no: {v.lack or v.why_not}", style="bold" if v.kind == plan.chosen.kind else "")
    return table


def _places(v: Verdict, plan: Plan) -> list[str]:
    cuda = plan.machine.device == "cuda"
    if v.need is None:
        return ["", ""] if cuda else [""]
    host = human(v.need.of_node(min(plan.machine.each, v.world)))
    return [human(v.need.of_device), host] if cuda else [host]


def _conclusion(plan: Plan) -> str:
    chosen = plan.chosen
    largest = [f"{name}={n}" for name, n in (("layout.rows", plan.rows), ("ctx_len", plan.ctx_len)) if n]
    room = f"; about the largest that would: {', or '.join(largest)}" if largest else ""
    rows, world = plan.work.rows, chosen.world
    dealt = f" layout.rows={rows} cannot be dealt equally to {world} processes: planned with {-(-rows // world) * world}." if rows % world else ""
    if chosen.fits:
        return f"It fits{room}.{dealt}"
    remedies = f" It fits with {', or '.join(plan.remedies)}." if plan.remedies else ""
    if chosen.need is None or chosen.lack:
        return f"It cannot run{' here' if chosen.lack else ''}: {chosen.why_not}.{remedies}{dealt}"
    return f"It does not fit: {chosen.why_not}{room}.{remedies}{dealt}"
