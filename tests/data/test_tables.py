"""Parquet, Arrow, folders of `save_to_disk`, and the hub's data sets: shared out by rows, only the columns needed, in the tables' order."""

import csv
import json

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from rwkv.data.sources import columnar, hub, units
from rwkv.errors import DataError
from tests.data.sourcing import data_of, documents, texts, write

ROWS = [{"id": i, "text": f"text {i} " * (i % 5 + 1), "vector": [0.5] * 50} for i in range(500)]
WANT = [row["text"].encode() for row in ROWS]
TABLE = pa.Table.from_pylist(ROWS)
SET = datasets.Dataset.from_list(ROWS)


def ipc(path, table, stream, rows=50):
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def test_parquet_by_row_groups(tmp_path, monkeypatch):
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=60)
    assert texts("data=parquet", f"data.path={tmp_path}") == WANT
    monkeypatch.setattr(columnar, "RANGE", 1)
    data = data_of("data=parquet", f"data.path={tmp_path}")
    shares = units(data)
    assert len(shares) == 9 and len({unit.identity for unit in shares}) == 9 and all(unit.size for unit in shares)
    found = [f for unit in shares for f in unit.read()]
    assert [f.record["text"].encode() for f in found] == WANT
    assert [f.where for f in found] == [f"a.parquet, row {i}" for i in range(1, 501)]
    assert set(found[0].record) == {"text"}, "other columns were read"


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_by_batches(stream, tmp_path, monkeypatch):
    ipc(tmp_path / "a.arrow", TABLE, stream)
    assert texts("data=arrow", f"data.path={tmp_path}/a.arrow") == WANT
    monkeypatch.setattr(columnar, "RANGE", 1)
    shares = units(data_of("data=arrow", f"data.path={tmp_path}/a.arrow"))
    assert len(shares) == 10
    assert [f.record["text"].encode() for unit in shares for f in unit.read()] == WANT
    assert next(iter(shares[3].read())).where == "a.arrow, row 151"


def test_arrow_cut_short(tmp_path):
    ipc(tmp_path / "a.arrow", TABLE, stream=True)
    whole = (tmp_path / "a.arrow").read_bytes()
    write(tmp_path / "b.arrow", whole[: len(whole) // 2])
    (bad,) = texts("data=arrow", f"data.path={tmp_path}/b.arrow")
    assert bad.startswith("b.arrow: cannot be read")


def test_a_saved_data_set(tmp_path):
    SET.save_to_disk(tmp_path / "one", num_shards=3)
    assert texts("data=arrow", f"data.path={tmp_path}/one") == texts("data=files", f"data.path={tmp_path}/one") == WANT
    with pytest.raises(DataError, match=r"data\.split=test: data\.path=.*one has no splits"):
        texts("data=arrow", f"data.path={tmp_path}/one", "data.split=test")
    both = datasets.DatasetDict(train=SET, test=SET.select(range(7)))
    both.save_to_disk(tmp_path / "two")
    args = ("data=arrow", f"data.path={tmp_path}/two")
    assert texts(*args) == WANT
    assert texts(*args, "data.split=test") == texts(*args, "data.val_split=test", validation=True) == WANT[:7]
    with pytest.raises(DataError, match=r"data\.split=dev: the data set on disk has the splits train, test"):
        texts(*args, "data.split=dev")
    next((tmp_path / "one").glob("data-00001*")).unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00003\.arrow is missing"):
        texts("data=arrow", f"data.path={tmp_path}/one")


def test_tables_at_an_address(tmp_path):
    fs = fsspec.filesystem("memory")
    SET.save_to_disk(tmp_path / "set")
    pq.write_table(TABLE, tmp_path / "a.parquet")
    fs.put(str(tmp_path / "set"), "/tables/set", recursive=True)
    fs.put(str(tmp_path / "a.parquet"), "/tables/a.parquet")
    assert texts("data=arrow", "data.path=memory://tables/set") == WANT
    assert texts("data=parquet", "data.path=memory://tables/a.parquet") == WANT
    fs.store.clear()


def test_values_that_are_no_text(tmp_path):
    table = pa.table({"text": pa.array(["a", None, "c"]), "raw": pa.array([b"x", b"\xff", None])})
    pq.write_table(table, tmp_path / "a.parquet")
    args = ("data=parquet", f"data.path={tmp_path}/a.parquet")
    assert texts(*args) == [b"a", "a.parquet, row 2: its text is null, not text", b"c"]
    assert texts(*args, "data.record.text=raw")[0] == b"x"
    assert "half a character" in texts(*args, "data.record.text=raw")[1]
    (bad,) = texts(*args, "data.record={kind: text, text: body}")
    assert bad == "a.parquet: none of the columns that data.record.kind=text reads; it has 'text', 'raw'"


def test_text_that_is_not_utf8_spoils_its_own_row_only(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    ipc(tmp_path / "a.arrow", pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), stream=True)
    assert texts("data=arrow", f"data.path={tmp_path}/a.arrow") == [b"good", "a.arrow, row 2: not UTF-8", b"fine"]


def test_chats_in_a_table(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "text": "not this"}]), tmp_path / "a.parquet")
    ((asked, answered),) = documents("data=chat", f"data.path={tmp_path}")
    assert (asked.text, asked.trained, answered.text, answered.trained) == (b"User: hi\n\nAssistant:", False, b" yo\n\n", True)


def test_a_real_set_is_the_same_in_every_format(tmp_path):
    plays = [text for text in texts("data=sample") if isinstance(text, bytes)]
    rows = [{"n": i, "text": play.decode()} for i, play in enumerate(plays)]
    table = pa.Table.from_pylist(rows)
    lines = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()
    for i, play in enumerate(plays):
        write(tmp_path / f"text/{i:03d}.txt", play)
    write(tmp_path / "a.jsonl", lines)
    write(tmp_path / "b.jsonl.zst", zstandard.compress(lines))
    write(tmp_path / "c.json", json.dumps(rows, indent=1))
    with (tmp_path / "d.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["n", "text"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=5)
    ipc(tmp_path / "f.arrow", table, stream=True, rows=5)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "g")
    for name in ("text", "a.jsonl", "b.jsonl.zst", "c.json", "d.csv", "e.parquet", "f.arrow", "g"):
        assert texts("data=files", f"data.path={tmp_path / name}") == plays, name


# the hub: a folder in the form of a data set's repository stands for one


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for function in (hub._builder, hub._downloaded, hub._streamed):
        function.cache_clear()
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(4):
        pq.write_table(TABLE.slice(i * 125, 125), folder / f"train-{i:05d}-of-00004.parquet")
    pq.write_table(TABLE.slice(0, 7), folder / "validation-00000-of-00001.parquet")
    return folder


def test_hub_rows(repository, monkeypatch):
    args = ("data=hub", f"data.name={repository}")
    assert texts(*args) == WANT
    assert texts(*args, "data.val_split=validation", validation=True) == WANT[:7]
    assert texts(*args, "data.split='train[10:20]'") == WANT[10:20]
    monkeypatch.setattr(hub, "RANGE", 5000)
    shares = units(data_of(*args))
    assert len(shares) > 10 and len({unit.identity for unit in shares}) == len(shares)
    found = [f for unit in shares for f in unit.read()]
    assert [f.record for f in found] == [{"text": row["text"]} for row in ROWS]
    assert found[321].where.endswith("set train, row 322")


def test_hub_streaming(repository):
    args = ("data=hub", f"data.name={repository}", "data.streaming=true")
    shares = units(data_of(*args))
    assert len(shares) == 4 and shares[0].size is None
    assert texts(*args) == WANT


def test_hub_splits_and_columns_that_are_not_there(repository):
    with pytest.raises(DataError, match=r"(?s)data\.split=dev.*dev"):
        texts("data=hub", f"data.name={repository}", "data.split=dev")
    with pytest.raises(DataError, match=r"(?s)data\.split=dev.*dev"):
        texts("data=hub", f"data.name={repository}", "data.split=dev", "data.streaming=true")
    (bad,) = texts("data=hub", f"data.name={repository}", "data.record={kind: text, text: body}")
    assert "none of the columns" in bad and "'vector'" in bad
    with pytest.raises(DataError, match=r"data\.config=other"):
        texts("data=hub", f"data.name={repository}", "data.config=other")


def test_a_split_for_validation_that_is_not_there_is_told_before_anything_is_read(repository):
    for streaming in ("true", "false"):
        with pytest.raises(DataError, match=r"data\.split=dev"):
            units(data_of("data=hub", f"data.name={repository}", "data.val_split=dev", f"data.streaming={streaming}"))


def test_hub_data_with_errors_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set" / "train.jsonl", json.dumps({"text": "a"}) + "\n{bad\n")
    with pytest.raises(DataError, match=r"data\.name=.*set: cannot be read"):
        texts("data=hub", f"data.name={tmp_path}/set")
