"""A plan on the screen, within 80 columns."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rwkv.memory import human
from rwkv.training.planning.fit import Verdict, advice
from rwkv.training.planning.memory import CATEGORIES, Need
from rwkv.training.planning.plan import Plan
from rwkv.words import count, duration

WIDTH = 80


def show(plan: Plan) -> None:
    """Print it."""
    console = Console(highlight=False, width=WIDTH)
    w, size, cuda = plan.work, plan.work.size, plan.machine.device == "cuda"
    say = lambda text: console.print(text, markup=False)  # noqa: E731
    say(f"model    RWKV-{size.version[1:]} {size.n_layer} x {size.n_embd}, {plan.params.total:,} parameters, {w.weights}")
    free = " free" if plan.machine.here else ""
    on_gpu = f", {human(plan.machine.memory)} each{free}" if cuda else ""
    host = "as much host memory as is needed" if plan.machine.host is None else f"{human(plan.machine.host)} of host memory{free}"
    say(f"machine  {plan.machine.name}{on_gpu}, {host}")
    say(f"run      {plan.run}")
    v = plan.chosen
    memory = {f"memory of a rank, strategy={v.kind}, {v.world} process" + ("es" if v.world > 1 else ""): _memory(v.need)} if v.need else {}
    for title, table in {**memory, "work": _work(plan), "which strategies fit": _strategies(plan)}.items():
        console.print(title, style="bold")
        console.print(table)
    say(_conclusion(plan))


def _table(**options) -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, **options)


def _memory(need: Need) -> Table:
    table = _table()
    table.add_column("")
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
    w, flops, rate = plan.work, plan.flops, plan.rate
    rows = [
        ("tokens", f"{w.tokens:,} in {count(w.steps, 'step')} of {w.tokens_per_step:,}"),
        ("FLOPs a token", f"{flops.model:.3g}" + (f"; with what is computed again {flops.executed:.3g}" if flops.executed > flops.model else "")),
        ("FLOPs in all", f"{flops.executed * w.tokens:.3g}"),
        ("tokens a second", f"{rate.tokens:,.{0 if rate.tokens >= 100 else 1}f} ({rate.source})" if rate else "not known of this GPU; set plan.rate="),
        ("time", "not known" if plan.seconds is None else duration(plan.seconds) if plan.seconds >= 1 else "less than 1 s"),
        ("between ranks", f"{human(plan.traffic)} a step and rank" if plan.traffic and plan.chosen.world > 1 else "nothing"),
        ("a checkpoint", f"{human(plan.checkpoint)} on the disk; the newest {plan.cfg.checkpoint.keep} stay"),
        *([("strategy.swap", f"{human(plan.swap)} on the disk of each node")] if plan.swap else []),
    ]
    table = _table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def _strategies(plan: Plan) -> Table:
    cuda = plan.machine.device == "cuda"
    table = _table()
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
    if chosen.need is None or chosen.lack:
        remedies = f" It would with {', or '.join(plan.remedies)}." if plan.remedies else ""
        return f"It cannot run{' here' if chosen.lack else ''}: {chosen.why_not}.{remedies}{dealt}"
    what = advice(plan.cfg, plan.machine, chosen, plan.remedies)
    others = " Other machines are described as plan.gpu=h100 plan.gpus=8." if plan.machine.here else ""
    return f"It does not fit: {chosen.why_not}{room}. {what[0].upper()}{what[1:]}.{dealt}{others}"
