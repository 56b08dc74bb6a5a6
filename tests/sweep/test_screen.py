"""What is shown of a sweep, from what its runs have written."""

import io
import json

from rich.console import Console

from rwkv.sweep.ledger import Job, Sweep, last_lines
from rwkv.sweep.progress import Progress, Tail
from rwkv.sweep.screen import Screen, seconds_left, table


def line(step, **more):
    return json.dumps({"step": step, "tokens": 10 * step, "train/loss": 5 - step, "tokens_per_sec": 5.0} | more) + "\n"


def test_a_tail_follows_a_file_that_grows_tears_and_is_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read().step == 0
    path.write_text(line(1) + line(2, **{"val/loss": 4.5}) + line(3)[:20])
    p = tail.read()
    assert (p.step, p.tokens, p.loss, p.val, p.eta(30)) == (2, 20, 3, 4.5, 2.0)
    with path.open("a") as file:
        file.write(line(3)[20:] + line(4, **{"val/loss": 4.0}))
    assert (tail.read().step, tail.read().validations) == (4, [(20, 4.5), (40, 4.0)])
    (tmp_path / "new").write_text(line(1))  # a resume writes the lines up to its checkpoint anew
    (tmp_path / "new").replace(path)
    assert (tail.read().step, tail.read().validations) == (1, [])


def jobs():
    states = ["done", "running", "failed", "waiting", "waiting"]
    return [Job(i, [], f"lr={i}", "x", budget=100, state=s, seconds=20.0 if s == "done" else 0.0) for i, s in enumerate(states, 1)]


def test_the_live_table_shows_every_job_and_the_time_left(tmp_path):
    progress = {1: Progress(10, 100, 1.5, 5.0, [(100, 1.6)]), 2: Progress(5, 50, 2.5, 5.0)}
    assert seconds_left(jobs(), progress, 1) == 10 + 2 * 20
    console = Console(file=io.StringIO(), force_terminal=True, width=110, height=30, _environ={})
    with Screen(Sweep(tmp_path / "lr-0"), 30, console) as screen:
        screen.show(jobs(), progress, 1, force=True)
    text = console.file.getvalue()
    for what in ("lr=1", "running", "failed", "1.500", "1.600", "2.500", "10 s", "1 of 5 done", "about 50 s left"):
        assert what in text, (what, text)


def test_on_a_low_terminal_the_rows_that_matter_stay(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=110, height=8, _environ={})
    with Screen(Sweep(tmp_path / "lr-0"), 30, console) as screen:
        screen.show(jobs(), {}, 1, force=True)
    text = console.file.getvalue()
    assert "lr=2" in text and "lr=3" in text and "lr=5" not in text and "and 3 more" in text


def test_on_a_narrow_terminal_labels_are_cut_and_numbers_are_not():
    out = io.StringIO()
    done = Job(7, [], "lr=0.003 " * 20, "x", budget=100, state="running")
    Console(file=out, width=90, _environ={}).print(table("t", [done], {7: Progress(1234, 50, 1.234, 5678.0, [(50, 2.345)])}, 5, ""))
    assert all(what in out.getvalue() for what in ("lr=0.003 lr", "…", "running", "1,234", "1.234", "2.345", "5,678")), out.getvalue()
    assert len(out.getvalue().splitlines()) == 3


def test_the_end_of_a_long_log(tmp_path):
    (tmp_path / "log").write_text("".join(f"{i}\n" for i in range(100_000)))
    assert last_lines(tmp_path / "log", 2) == ["99998", "99999"]
    assert last_lines(tmp_path / "none") == ["(there is no log)"]
