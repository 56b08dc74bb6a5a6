"""The page of a sweep, from runs whose records are made up: each run and reason is on it, and nothing is fetched from outside."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from rwkv.errors import CheckpointError
from rwkv.sweep.charts import overlay, scale
from rwkv.sweep.importance import importance
from rwkv.sweep.ledger import Job, Sweep
from rwkv.sweep.page import spans, write_sweep
from rwkv.sweep.results import number_of, of_sweep, rank


def record(folder: Path, final: float, steps: int = 40, validated: bool = True, **env):
    """A run's folder with curves that come down to a loss."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        loss = final + 4 * math.exp(-step / 8)
        val = {"val/loss": loss + 0.1} if validated and step % 10 == 0 else {}
        lines.append({"step": step, "tokens": 100 * step, "train/loss": loss, "tokens_per_sec": 900.0 + step, "grad_norm": 1.0, "time": step / 9} | val)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "tok')
    (folder / "env.json").write_text(json.dumps({"device": "a device", "commit": "c0ffee", "packages": {"torch": "2.13.0"}} | env))


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Six runs over two settings: three finished, one failed, one pruned, one not begun."""
    made = Sweep(tmp_path / "outputs/sweeps/lr-model-0")
    made.logs.mkdir(parents=True)
    made.about = {"path": str(made.path), "launcher": "local", "sweeper": "grid", "command": ["-m", "name=<b>"], "called": 0.0}
    for number, state in enumerate(["done", "done", "done", "failed", "pruned", "waiting"], 1):
        run = tmp_path / f"outputs/run-{number}"
        values = {"optim.lr": f"{number}e-3", "model": "tiny" if number % 2 else "0.1b"}
        made.jobs.append(Job(number, [], f"lr={number}e-3 model=<{number}>", str(run), 4000, state=state, code=2 if state == "failed" else None, values=values))
        if state != "waiting":
            record(run, 1 + number / 10, steps=40 if state == "done" else 20, device="another" if number == 3 else "a device")
        if state == "done":
            (run / "summary.json").write_text("{}")
            (run / "report.html").write_text("")
        if state == "pruned":
            (run / "pruned.json").write_text(json.dumps({"reason": "worse than the median"}))
    made.log(made.jobs[3]).write_text("step 20\nerror: step 21: loss nan: stopped\nsrun: error: n1: task 0: Exited with exit code 2\n")
    made.save()
    return made


def test_every_run_is_on_the_page_with_its_result_or_reason(sweep):
    page = write_sweep(sweep).read_text()
    assert "6 runs: " in page and "3 done" in page and "1 failed" in page and "best validation loss <b>" in page
    rows = dict(re.findall(r"<tr data-run=(\d) data-label=.*?>(.*?)</tr>", page))
    assert sorted(rows) == list("123456")
    final = 1.1 + 4 * math.exp(-5)
    assert f"{final + 0.1:.4f}" in rows["1"] and "lr=1e-3 model=&lt;1&gt;" in page and "<b>'" not in page
    order = re.findall(r"<tr data-run=(\d) data-label", page)
    assert order[:3] == ["1", "2", "3"] and order[-1] == "6", "the best first, those without a loss last"
    for reason in ("exit code 2: error: step 21: loss nan: stopped", "at step 20: worse than the median", "not begun"):
        assert page.count(reason) == 2, reason
    assert "Too few runs to say for optim.lr, model: 5 runs with a loss" in page
    assert "c0ffee" in page and "2.13.0" in page and "another <span class=note>#3</span>" in page and "a device <span class=note>#1-2, #4-5</span>" in page


def test_the_page_needs_nothing_from_outside_and_its_links_lead_to_the_runs(sweep, tmp_path):
    target = write_sweep(sweep)
    page = target.read_text()
    assert not re.search(r"src=|@import|url\(|<link|<iframe|fetch\(|XMLHttp", page)
    assert set(re.findall(r"https?://[^\"'<]*", page)) == {"http://www.w3.org/2000/svg"}, "names of SVG, which nobody asks for"
    links = re.findall(r"href='(.*?)'", page)
    assert len(links) == 4 and all((target.parent / link).is_file() and not link.startswith("/") for link in links)
    for metric in ("Validation loss", "Training loss", "Tokens a second", "Gradient norm"):
        assert metric in page
    assert page.count("<polyline") == 4 * 4 * 5 + 5, "each metric with each pair of axes, and the parallel coordinates, for the five runs with records"


def test_a_sweep_that_lies_elsewhere_now_finds_its_runs(sweep, tmp_path):
    shutil.move(tmp_path / "outputs", tmp_path / "kept")
    moved = Sweep.read(tmp_path / "kept/sweeps/lr-model-0")
    assert [j.folder.path for j in moved.jobs] == [tmp_path / f"kept/run-{n}" for n in range(1, 7)]
    assert rank(of_sweep(moved)) == "validation"


def test_written_anew_it_shows_what_is_new(sweep):
    write_sweep(sweep)
    record(sweep.jobs[5].folder.path, 0.5)
    sweep.jobs[5].state = "running"
    page = write_sweep(sweep).read_text()
    assert "1 running" in page and "at step 40, 100%" in page and re.findall(r"<tr data-run=(\d) data-label", page)[0] == "6"
    assert [f.name for f in sweep.path.iterdir() if "report" in f.name] == ["report.html"]


def test_without_validation_runs_are_ranked_by_their_training_loss(sweep):
    for job in sweep.jobs:
        if job.folder.metrics.is_file():
            job.folder.metrics.write_text("".join(x + "\n" for x in job.folder.metrics.read_text().splitlines() if "val/loss" not in x))
    page = write_sweep(sweep).read_text()
    assert "best training loss" in page and "Validation loss</figcaption>" not in page


def test_a_sweep_without_runs(tmp_path):
    with pytest.raises(CheckpointError, match="this sweep has no runs yet"):
        of_sweep(Sweep(tmp_path))


def test_a_run_far_off_does_not_hide_the_others(sweep):
    record(sweep.jobs[5].folder.path, 1e6, steps=1)
    results = of_sweep(sweep)
    rank(results)
    drawn = overlay(results, "train/loss", {r.number: "#000" for r in results}, "x")
    top = max(float(re.search(r'data-y="[^"]*,([^,]*),0"', svg)[1]) for svg in drawn.split("<svg")[1:] if "x0 y0" in svg)
    assert top < 10


def test_importance_tells_what_matters_from_what_does_not():
    lr = [10**-i for i in (1, 2, 3, 4)] * 6
    other = [0, 1] * 12
    losses = [abs(math.log10(x) + 2.6) + 0.01 * (i % 7) for i, x in enumerate(lr)]
    assert importance(lr, losses) > 0.9 and importance(other[:12] + other[11::-1], losses) < 0.2
    many = [float(f"{x * (1 + i / 1000):.6g}") for i, x in enumerate(lr)]
    assert importance(many, losses) > 0.9, "numbers that are all different are put into ranges"
    assert importance(lr[:7], losses[:7]) is None and importance([1] * 24, losses) is None
    assert importance(list(range(9)), [1.0] * 9) == 0 and importance([str(i) for i in range(9)], losses[:9]) is None


def test_importance_is_not_given_away_by_chance():
    """Kelley's correction: of settings without any influence the mean is near 0, where the plain ratio would be 3/11."""
    x, found = 1, []
    for _ in range(400):
        losses = []
        for _ in range(12):
            x = (x * 1103515245 + 12345) % 2**31
            losses.append(x)
        found.append(importance([0, 1, 2, 3] * 3, losses))
    assert 0 < sum(found) / len(found) < 0.15


def test_axes_of_words_few_numbers_and_many():
    place, marks = scale(["a", "c", "b"], 100, 0)
    assert [place(v) for v in "abc"] == [100, 50, 0] and [m for m, _ in marks] == ["a", "b", "c"]
    place, marks = scale(["0.1", "0", "0.01"], 100, 0)
    assert [place(v) for v in ("0", "0.01", "0.1")] == [100, 50, 0]
    values = [str(10.0**-i) for i in range(9)]
    place, marks = scale(values, 80, 0)
    assert place("0.0001") == pytest.approx(40) and len(marks) >= 4
    assert scale(["5", "5"], 80, 0)[0]("5") == 40


def test_numbers_as_typed_and_runs_in_short():
    assert [number_of(v) for v in ("3e-4", "4k", 7, "tiny", True, None, "nan")] == [3e-4, 4096, 7, None, None, None, None]
    assert spans([1, 2, 3, 7, 9, 10]) == "#1-3, #7, #9-10"
