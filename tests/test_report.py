"""python -m rwkv.report: which page it writes, and what it refuses."""

import json
import re

import pytest
import yaml

from rwkv.errors import UserError
from rwkv.report import main
from tests.sweep.test_page import record, sweep  # noqa: F401


def test_the_newest_sweep_or_the_one_that_is_named(sweep, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for args in ([], ["lr-model-0"], ["outputs/sweeps/lr-model-0"], [str(sweep.path)]):
        (sweep.path / "report.html").unlink(missing_ok=True)
        assert main(args) == 0
        told = capsys.readouterr().out
        assert (tmp_path / told.split()[1]).samefile(sweep.path / "report.html")


def run(folder, final, **settings):
    record(folder, final)
    tree = {"name": folder.name, "out": "x", "trainer": {"tokens": 4000}, "optim": settings, "seed": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return str(folder)


def test_folders_of_runs_are_compared_by_what_differs_in_their_settings(tmp_path, capsys):
    a, b = run(tmp_path / "a", 1.0, lr=1e-3, clip=1.0), run(tmp_path / "b", 2.0, lr=2e-3, clip=1.0)
    (tmp_path / "b/summary.json").write_text("{}")
    assert main([a, b]) == 0
    page = (tmp_path / "comparison.html").read_text()
    head = re.search(r"<thead>(.*?)</thead>", page)[1]
    assert "optim.lr" in head and not {"optim.clip", "seed", "name", "out"} & set(re.findall(r">([\w.]+)<", head))
    assert "1 stopped" in page and "1 done" in page
    assert main([a, b, "--to", str(tmp_path / "c.html")]) == 0 and (tmp_path / "c.html").is_file()


def test_what_is_refused(sweep, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    one = run(tmp_path / "a", 1.0, lr=1e-3)
    empty = json.loads(sweep.file.read_text()) | {"jobs": []}
    (tmp_path / "outputs/sweeps/none-1").mkdir()
    (tmp_path / "outputs/sweeps/none-1/sweep.json").write_text(json.dumps(empty))
    (tmp_path / "outputs/sweeps/torn-1").mkdir()
    cases = {
        ("lr-modl-0",): r"lr-modl-0: no sweep of that name in outputs/sweeps.*did you mean lr-model-0\?",
        ("--out", "elsewhere"): r"elsewhere: no sweep there; python -m rwkv\.train -m makes one",
        ("none-1",): r"none-1: this sweep has no runs yet",
        (one, "sub"): r"sub: neither a run's folder \(it has no config\.yaml\) nor a sweep's",
        (one, "outputs/sweeps/lr-model-0"): r"lr-model-0: is a sweep; give one sweep, or folders of runs",
        ("lr-model-0", "none-1"): r"none-1: one sweep at a time",
        ("--to", "x.html"): r"--to: the page of a sweep is in the sweep's folder",
        (one, "--to", "nowhere/x.html"): r"nowhere/x\.html: cannot be written: No such file",
    }
    for args, message in cases.items():
        with pytest.raises(UserError, match=message):
            main(list(args))
    (tmp_path / "outputs/sweeps/torn-1/sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"torn-1/sweep\.json: unreadable"):
        main(["torn-1"])
