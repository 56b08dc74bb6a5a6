"""python -m rwkv.preload: the table at its end, what is seen meanwhile, and stores that are written for RWKV-LM."""

import json

import numpy as np

from rwkv import preload
from rwkv.config import cli
from rwkv.data import export, progress
from tests.data.sourcing import write
from tests.data.test_binidx import rwkv_lm_reader


def run(*args: str) -> int:
    return cli.guarded(preload.main, list(args))


def test_the_table_at_the_end(tmp_path, capsys):
    lines = [json.dumps({"prompt": "ab", "completion": "x" * n}) for n in (1, 1, 5, 30, 200)]
    lines += ["{broken", '{"prompt": 5, "completion": "x"}', json.dumps({"prompt": "", "completion": "y" * 300})]
    file = write(tmp_path / "set.jsonl", "\n".join(lines))
    assert run("data=jsonl", f"data.path={file}", f"out={tmp_path / 'out'}", "data.max_tokens=250", "name=mine") == 0
    *table, store, hint = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in table] == [
        "mine",
        "documents 5",
        "tokens 252 (uint16), 50.4 a document, the longest 203",
        "trained 242 (96.0%; the first token of a document never is)",
        "lengths tokens documents",
        "4 - 7 2 ########################################",
        "8 - 15 1 ####################",
        "16 - 31 0",
        "32 - 63 1 ####################",
        "64 - 127 0",
        "128 - 255 1 ####################",
        "dropped 3",
        "1 not JSON: Expecting property name enclosed in double quotes at character N",
        "1 its prompt is a number, not text",
        "1 longer than max_tokens=250",
        "set.jsonl, line 6: not JSON: Expecting property name enclosed in double quotes at character 2",
        "set.jsonl, line 7: its prompt is a number, not text",
    ]
    folder = store.split()[-1]
    assert hint.endswith(f"--data_file {folder}/tokens --data_type binidx")
    assert sum(map(len, rwkv_lm_reader(f"{folder}/tokens"))) == 252


def test_progress_says_how_much_how_fast_and_how_long_still(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Shown("preparing x", 100_000_000) as shown:
        shown.skip(20_000_000)  # of a process before this one: it took no time now
        for seconds, done in ((5.0, 4_000_000), (10.0, 8_000_000), (15.0, 12_000_000), (20.0, 16_000_000)):
            now[0] = 100 + seconds
            shown.update(done, done // 2, done // 1000)
    assert capsys.readouterr().err.splitlines() == [
        "preparing x   28%  28 of 100 MB  8,000 documents  800/s  0.4 MB/s  ETA 1 min 30 s",
        "preparing x   36%  36 of 100 MB  16,000 documents  800/s  0.4 MB/s  ETA 1 min 20 s",
    ]


def test_a_store_for_rwkv_lm(tmp_path, capsys):
    """Beside it the mask, a byte a token; what is written is read as data=binidx."""
    file = write(tmp_path / "a.jsonl", '{"prompt": "ab", "completion": "c"}\n{"prompt": "d", "completion": "ef"}\n')
    assert run("data=jsonl", f"data.path={file}", f"out={tmp_path / 'out'}", "--binidx", str(tmp_path / "set")) == 0
    assert f"--data_file {tmp_path / 'set'} --data_type binidx --vocab_size 257" in capsys.readouterr().out
    assert [d.tolist() for d in rwkv_lm_reader(tmp_path / "set")] == [[98, 99, 100, 0], [101, 102, 103, 0]]
    assert (tmp_path / "set.trained").read_bytes() == bytes([0, 0, 1, 1, 0, 1, 1, 1])
    assert run("data=binidx", f"data.path={tmp_path / 'set'}", "--show", "1") == 0
    assert "[[ab]]c<end>" in capsys.readouterr().out
    assert run("data=jsonl", f"data.path={file}", f"out={tmp_path / 'out'}", "--binidx", str(tmp_path / "set")) == 2
    assert "set.bin: exists already" in capsys.readouterr().err


def test_a_store_of_large_ids_and_documents_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "BLOCK", 3)
    np.save(tmp_path / "ids.npy", np.array([70_000, 1, 2, 3, 0, 5, 0, 9, 66_000, 0], np.int64))
    args = (f"data.path={tmp_path / 'ids.npy'}", "data.min_tokens=3", "model.vocab_size=70001", f"out={tmp_path / 'out'}")
    assert run("data=tokens", *args, "--binidx", str(tmp_path / "set")) == 0
    documents = rwkv_lm_reader(tmp_path / "set")
    assert [d.tolist() for d in documents] == [[70_000, 1, 2, 3, 0], [9, 66_000, 0]] and documents[0].dtype == np.int32
    assert not (tmp_path / "set.trained").exists()


def test_each_source_of_a_mix_has_its_own(tmp_path, capsys):
    for name in "ab":
        write(tmp_path / f"{name}.txt", name * 3)
    mix = f"data.mix={{x: {{data: text, path: {tmp_path}/a.txt}}, y: {{data: text, path: {tmp_path}/b.txt, val_share: 0.0}}}}"
    assert run("data=mix", mix, f"out={tmp_path / 'out'}", "--binidx", str(tmp_path / "set")) == 0
    assert [rwkv_lm_reader(tmp_path / f"set-{name}")[0].tolist() for name in "xy"] == [[98] * 3 + [0], [99] * 3 + [0]]
    assert capsys.readouterr().out.splitlines()[0] == "x"


def test_nowhere_to_write(tmp_path, capsys):
    file = write(tmp_path / "a.txt", "abc")
    assert run("data=text", f"data.path={file}", f"out={tmp_path / 'out'}", "--binidx", str(tmp_path / "none/set")) == 2
    assert "no such folder to write set.bin and .idx into" in capsys.readouterr().err and not (tmp_path / "out").exists()
