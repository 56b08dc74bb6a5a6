"""Preparation: the same bytes from any number of processes, in any circumstances; nothing is lost silently."""

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rwkv.data import join, scan, tokenise
from rwkv.data import prepare as preparation
from rwkv.data.records import Part
from rwkv.errors import DataError
from tests.conftest import ROOT
from tests.data.preparing import about, contents, prepare, store, texts, write_binidx, write_folder
from tests.data.units import Changing, Deadly, Faulty, Modules, Texts

# the same command as a user's, with tasks of one file each and no data too small for processes
SCRIPT = "import sys; from rwkv.data import join; join.TASK = 1, 1; join.SMALL = 0; from rwkv import preload; from rwkv.config import cli; sys.exit(cli.guarded(preload.main))"
NEVER_ENDING = SCRIPT.replace("join.SMALL = 0;", "join.SMALL = 0; import time; join._check_space = lambda *_: time.sleep(600);")


@pytest.fixture
def tiny_tasks(monkeypatch):
    """A task a unit, and processes for the smallest data."""
    monkeypatch.setattr(join, "TASK", (1, 1))
    monkeypatch.setattr(join, "SMALL", 0)


@pytest.fixture
def units_are(monkeypatch):
    return lambda *units: monkeypatch.setattr(preparation, "units", lambda data, validation=False: list(units))


def random_units(seed: int, count: int) -> list[Texts]:
    """Records of many lengths, some of them bad, some empty."""
    rng = random.Random(seed)

    def record():
        return rng.choice(["not JSON", "cut off at column 7"]) if rng.random() < 0.1 else bytes(rng.randrange(256) for _ in range(rng.randint(0, 60)))

    return [Texts(i, tuple(record() for _ in range(rng.randint(0, 12)))) for i in range(count)]


def good(units: list[Texts], first: int = 0, limit: int | None = None) -> list[bytes]:
    records = [record for unit in units for record in unit.records]
    return [record for record in records[first : None if limit is None else first + limit] if isinstance(record, bytes) and record]


@pytest.mark.parametrize("seed", range(3))
def test_the_number_of_processes_changes_no_byte(tmp_path, tiny_tasks, units_are, seed):
    units_are(*random_units(seed, 9))
    made = [contents(store(tmp_path / str(n), f"data.processes={n}")) for n in (1, 2, 3)]
    assert made[0] == made[1] == made[2]
    assert texts(prepare(tmp_path / "1")) == good(random_units(seed, 9))


def test_text_files_from_two_processes_as_from_one(tmp_path, tiny_tasks):
    folder = write_folder(tmp_path / "text", 12)
    one, two = (contents(store(tmp_path / str(n), "data=text", f"data.path={folder}", f"data.processes={n}")) for n in (1, 2))
    assert one == two
    assert texts(prepare(tmp_path / "1", "data=text", f"data.path={folder}")) == [f.read_bytes() for f in sorted(folder.iterdir())]


@pytest.mark.parametrize("seed", range(12))
def test_first_and_limit_count_the_records_of_the_source_once(tmp_path, tiny_tasks, units_are, seed):
    """Not once a process, and not twice, as in the infctx trainer."""
    units, rng = random_units(seed, 7), random.Random(seed)
    units_are(*units)
    total = sum(len(unit.records) for unit in units)
    first, limit = rng.randint(0, total // 2), rng.choice([None, rng.randint(1, total), rng.randint(total // 3, 2 * total)])
    if not (wanted := good(units, first, limit)):
        return
    made = prepare(tmp_path, f"data.first={first}", f"data.limit={limit or 'null'}", f"data.processes={1 + seed // 10}")
    assert texts(made) == wanted


def test_with_a_limit_no_more_units_are_read_than_needed(tmp_path, tiny_tasks, units_are):
    units_are(Texts(0, (b"one", b"two")), Texts(1, (b"three", b"four")), Texts(2, (b"five",)), Faulty(3, ()))
    assert texts(prepare(tmp_path, "data.limit=3", "data.processes=1")) == [b"one", b"two", b"three"]


def test_windows_past_the_end_leave_nothing(tmp_path, units_are):
    units_are(Texts(0, (b"one", b"two")))
    with pytest.raises(DataError, match="no document left"):
        prepare(tmp_path, "data.first=2")


def test_tasks_are_whole_units_and_do_not_depend_on_processes():
    units = [Texts(i, (), size) for i, size in enumerate([3, 3, 3, 2**22, 2**23, 1, None, 1, None, 0])]
    assert [[unit.number for unit in task.units] for task in join.tasks_of(units)] == [[0, 1, 2], [3], [4], [5], [6], [7], [8, 9]]
    big = [Texts(i, (), 2**26) for i in range(2048)]
    assert len(join.tasks_of(big)) == 2048 and len(join.tasks_of([Texts(i, (), 2**20) for i in range(2**15)])) == 2**15 // 64


def test_newlines_survive_and_the_end_token_ends_documents_only(tmp_path, units_are):
    """The infctx trainer parts text at newlines and joins the lines with id 0."""
    units_are(Texts(0, (b"a\n\nb\r\n", b"\n", b"c\0d")))
    made = prepare(tmp_path)
    assert texts(made) == [b"a\n\nb\r\n", b"\n", b"c\0d"]
    for i in range(3):
        assert np.flatnonzero(made.train.document(i) == 0).tolist() == [len(made.train.document(i)) - 1]


MASKED = {
    "pc": [Part(b"ask", False), Part(b"answer", True)],
    "cp": [Part(b"answer", True), Part(b"ask", False)],
    "all": [Part(b"all", True)],
    "none": [Part(b"no", False), Part(b"", False)],
    "first": [Part(b"f", True), Part(b"irst", False)],
    "end": [Part(b"end", False), Part(b"", True)],
}


def test_masks_are_of_tokens_and_the_end_is_as_the_last_part(tmp_path, units_are, monkeypatch):
    """In the infctx trainer the first token of a completion is not trained, and what follows its last one is."""
    monkeypatch.setattr(tokenise, "parts", lambda record, spec: MASKED[record["form"]])
    monkeypatch.setattr(tokenise, "TOGETHER", 5)  # the mask begins after documents that need none
    units_are(*(Texts(i, tuple({"form": form} for form in forms.split())) for i, forms in enumerate(("all all", "all pc none", "cp first end all"))))
    made = prepare(tmp_path)
    corpus = made.train
    masks = ["".join(str(int(x)) for x in corpus.trained[s : s + n]) for s, n in zip(corpus.starts, corpus.sizes, strict=True)]
    assert masks == ["1111", "1111", "1111", "000" + "1111111", "111111" + "0000", "0001", "1111"]
    dropped = about(store(tmp_path))
    assert dropped["dropped"] == {"nothing trained": 2} and dropped["trained"] == 4 * 3 + 7 + 5 + 1


def test_parts_with_and_without_a_mask_are_joined(tmp_path, tiny_tasks, units_are, monkeypatch):
    monkeypatch.setattr(tokenise, "parts", lambda record, spec: MASKED[record["form"]])
    monkeypatch.setattr(scan, "STEP", 4)
    monkeypatch.setattr(scan, "BLOCK", 12)
    units_are(*(Texts(i, tuple({"form": form} for form in forms.split())) for i, forms in enumerate(("all all", "", "pc", "all"))))
    corpus = prepare(tmp_path, "data.processes=1").train
    assert corpus.trained.tolist() == [True] * 8 + [False] * 3 + [True] * 7 + [True] * 4 and len(corpus.trained) == len(corpus.tokens)


def test_without_untrained_tokens_there_is_no_mask(tmp_path, units_are):
    units_are(Texts(0, (b"text",)))
    assert prepare(tmp_path).train.trained is None and not (store(tmp_path) / "tokens.trained").exists()


def test_every_record_is_kept_or_counted(tmp_path, tiny_tasks, units_are):
    units = [Texts(0, (b"", b"a", b"ok", b"x" * 50)), Texts(1, tuple(f"bad at column {i}" for i in range(30))), Texts(2, ("other", b"fine"))]
    units_are(*units)
    folder = store(tmp_path, "data.min_tokens=3", "data.max_tokens=20", "data.processes=1")
    told = about(folder)
    assert told["dropped"] == {"bad at column N": 30, "shorter than min_tokens=3": 2, "longer than max_tokens=20": 1, "other": 1}
    assert told["bad"] == [[f"unit 1, line {i + 1}", f"bad at column {i}"] for i in range(20)] and told["documents"] == 2


def test_records_that_are_not_text_do_not_crash(tmp_path, units_are):
    """They end the infctx trainer with a TypeError inside of a worker."""
    units_are(Texts(0, ({"text": 5}, {"text": None}, {"other": "x"}, {"text": "fine"})))
    assert texts(prepare(tmp_path)) == [b"fine"] and sum(about(store(tmp_path))["dropped"].values()) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_stop_names_the_first_bad_record_of_the_source(tmp_path, tiny_tasks, units_are, processes):
    units_are(Texts(0, (b"x",) * 2000), Texts(1, (*[b"x"] * 2000, "is cut off")), Texts(2, ("is a number",)), Texts(3, ()))
    with pytest.raises(DataError, match="unit 1, line 2001: is cut off .*on_error=drop"):
        prepare(tmp_path, "data.on_error=stop", f"data.processes={processes}")


@pytest.mark.parametrize("processes", [1, 2])
def test_of_broken_units_the_first_is_named(tmp_path, tiny_tasks, units_are, processes):
    units_are(Texts(0, (b"x",)), Faulty(1, ()), Faulty(2, ()), Faulty(3, ()))
    with pytest.raises(DataError, match="unit 1 is broken"):
        prepare(tmp_path, f"data.processes={processes}")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bug_is_shown_where_it_is(tmp_path, tiny_tasks, units_are, processes):
    units_are(Texts(0, (b"x",)), Faulty(1, (), error=KeyError))
    with pytest.raises(RuntimeError, match=r"(?s)units.py.*KeyError: 'unit 1 is broken'.*while unit 1 was prepared"):
        prepare(tmp_path, f"data.processes={processes}")


def test_a_killed_process_is_named_by_its_unit(tmp_path, tiny_tasks, units_are):
    units_are(*(Texts(i, (b"x",)) for i in range(6)), Deadly(6, (b"y",)), Texts(7, (b"x",)))
    with pytest.raises(DataError, match=r"unit 6 was killed \(SIGKILL\); perhaps memory ran out.*the same command goes on"):
        prepare(tmp_path, "data.processes=2")
    (parts,) = (tmp_path / "out/data").glob("*.parts")
    assert len(list(parts.glob("*.json"))) >= 3  # of the six before, the other process may be in one


def test_processes_have_no_torch(tmp_path, tiny_tasks, units_are):
    assert "torch" in sys.modules
    units_are(*(Modules(i, ()) for i in range(4)))
    told = [text.decode() for text in texts(prepare(tmp_path, "data.processes=2"))]
    assert all(text.endswith("has []") for text in told) and not any(f"process {os.getpid()} " in text for text in told)


def test_small_data_starts_no_process(tmp_path, units_are):
    units_are(*(Modules(i, ()) for i in range(4)))
    assert all(f"process {os.getpid()} ".encode() in text for text in texts(prepare(tmp_path, "data.processes=4")))


def test_settings_that_matter_make_another_store(tmp_path):
    folder = write_folder(tmp_path / "text", 5)
    base = ("data=text", f"data.path={folder}")
    same = [store(tmp_path, *base), store(tmp_path, *base, "data.processes=1", "data.val_share=0.1")]
    other = [store(tmp_path, *base, x) for x in ("data.min_tokens=5", "data.limit=4", "tokenizer=world", "data.on_error=stop")]
    assert same[0] == same[1] and len({same[0], *other}) == 5 and all(f.name.startswith("text-") for f in other)
    (folder / "00002.txt").write_text("changed")
    assert store(tmp_path, *base) != same[0]
    assert store(tmp_path, *base, f"data.cache={tmp_path / 'elsewhere'}").parent == tmp_path / "elsewhere"


def test_the_fingerprint_is_of_the_content(tmp_path):
    a, b = write_folder(tmp_path / "a", 5), write_folder(tmp_path / "b", 5)
    first = prepare(tmp_path, "data=text", f"data.path={a}").fingerprint
    assert prepare(tmp_path, "data=text", f"data.path={b}").fingerprint == first
    (b / "00004.txt").write_text((b / "00004.txt").read_text()[:-1] + "?")
    assert prepare(tmp_path, "data=text", f"data.path={b}").fingerprint != first
    (a / "00003.txt").rename(a / "00009.txt")  # the same text in another order
    assert prepare(tmp_path, "data=text", f"data.path={a}").fingerprint != first


def test_validation_from_a_share_or_from_a_path(tmp_path):
    train, val = write_folder(tmp_path / "train", 20), write_folder(tmp_path / "val", 6, seed=1)
    base = ("data=text", f"data.path={train}", "data.limit=10")
    share = prepare(tmp_path, *base, "data.val_share=0.2")
    assert (len(share.train), len(share.val)) == (8, 2)
    path = prepare(tmp_path, *base, f"data.val_path={val}")
    assert (len(path.train), len(path.val)) == (10, 6) and path.fingerprint != share.fingerprint
    write_binidx(tmp_path / "v", [np.array([1, 2, 0])] * 3)
    write_binidx(tmp_path / "t", [np.array([3, 2, 0])] * 4)
    sample = prepare(tmp_path, "data=sample", "data.limit=1", f"data.val_path={val}", "tokenizer=world")
    assert (len(sample.train), len(sample.val)) == (1, 6)
    binidx = prepare(tmp_path, "data=tokens", "data.kind=binidx", f"data.path={tmp_path / 't'}", f"data.val_path={tmp_path / 'v'}")
    assert (len(binidx.train), len(binidx.val)) == (4, 3) and binidx.val.document(0).tolist() == [1, 2, 0]


def test_data_that_changes_meanwhile_is_refused(tmp_path, units_are):
    (tmp_path / "version").write_text("1")
    units_are(Changing(0, (b"text",), file=tmp_path / "version"))
    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(tmp_path)


def test_a_damaged_store_is_named(tmp_path):
    folder = write_folder(tmp_path / "text", 5)
    made = store(tmp_path, "data=text", f"data.path={folder}")
    with (made / "tokens.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="tokens.bin is too short.*delete the folder"):
        prepare(tmp_path, "data=text", f"data.path={folder}")


def test_a_full_disk(tmp_path, tiny_tasks, units_are, monkeypatch):
    units_are(Texts(0, (b"one",)), Texts(1, (b"two",)))
    put, calls = tokenise._Part._put, itertools.count()

    def no_space(self, kind, content):
        if next(calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, kind, content)

    monkeypatch.setattr(tokenise._Part, "_put", no_space)
    with pytest.raises(DataError, match="the disk is full.*What is prepared is kept.*data.cache=FOLDER"):
        prepare(tmp_path, "data.processes=1")
    (parts,) = (tmp_path / "out/data").glob("*.parts")
    assert sorted(f.name for f in parts.iterdir()) == ["000000.bin", "000000.json", "000000.sizes"]  # and nothing half-written
    monkeypatch.setattr(tokenise._Part, "_put", put)
    usage = join.shutil.disk_usage
    monkeypatch.setattr(join.shutil, "disk_usage", lambda path: usage(path)._replace(free=10))
    with pytest.raises(DataError, match="0.00 GB free, 0.00 GB needed"):
        prepare(tmp_path, "data.processes=1")
    monkeypatch.undo()
    units_are(Texts(0, (b"one",)), Texts(1, (b"two",)))
    assert texts(prepare(tmp_path)) == [b"one", b"two"]


def test_a_cache_that_cannot_be_written(tmp_path, units_are):
    units_are(Texts(0, (b"one",)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory; data.cache=FOLDER names another"):
        prepare(tmp_path, f"data.cache={tmp_path / 'file' / 'x'}")


def test_what_is_prepared_is_not_read_again(tmp_path, tiny_tasks, units_are):
    units_are(Texts(0, (b"one",)), Texts(1, (b"two",)), Faulty(2, ()))
    with pytest.raises(DataError, match="unit 2 is broken"):
        prepare(tmp_path, "data.processes=1")
    units_are(Faulty(0, ()), Faulty(1, ()), Texts(2, (b"three",)))  # who reads these fails
    assert texts(prepare(tmp_path, "data.processes=1")) == [b"one", b"two", b"three"]


def _start(folder: Path, text: Path, *more: str, script: str = SCRIPT) -> subprocess.Popen:
    arguments = ["data=text", f"data.path={text}", f"out={folder}", "data.processes=2", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored, as nohup does
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_ends_the_same(tmp_path):
    text, rng = write_folder(tmp_path / "text", 1500, size=400), random.Random(0)
    began = time.monotonic()
    whole = _start(tmp_path / "whole", text)
    assert whole.wait(300) == 0, whole.stderr.read()
    took, kept = time.monotonic() - began, []
    for attempt in range(25):
        run = _start(tmp_path / "killed", text)
        try:
            assert run.wait(took * (0.35 + 0.05 * attempt + 0.3 * rng.random())) == 0, run.stderr.read()
            break
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
        kept += [len(list((tmp_path / "killed/data").glob("*.parts/*.json")))]
        if attempt == 2 and kept[-1]:  # what a power cut may leave: a part of other content
            next((tmp_path / "killed/data").glob("*.parts/*.bin")).write_bytes(b"\1\0")
    assert run.returncode == 0 and kept
    time.sleep(1)  # the processes of the killed ones end by themselves, perhaps with a part that nobody wants any more:
    assert _start(tmp_path / "killed", text).wait(300) == 0  # whoever opens the store removes it
    ours, theirs = (next(f for f in (tmp_path / name / "data").glob("text-*") if not f.suffix) for name in ("killed", "whole"))
    assert contents(ours) == contents(theirs)
    assert not list((tmp_path / "killed/data").glob("*.parts")) and not list((tmp_path / "killed/data").glob("*.writing"))


def test_ctrl_c_keeps_the_parts_and_says_so(tmp_path):
    text = write_folder(tmp_path / "text", 3000, size=400)
    run = _start(tmp_path / "out", text, script=NEVER_ENDING)  # else it may end before the signal comes
    while not (done := list((tmp_path / "out").glob("data/*.parts/*.json"))):
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    try:
        out, err = run.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGABRT)  # so that it says where it is
        out, err = run.communicate()
    assert run.returncode == 130 and "parts of text are prepared and kept; the same command goes on from them" in err and "Traceback" not in err, err
    assert len(done) > 0 and all(file.exists() for file in done)
    again = _start(tmp_path / "out", text)
    assert again.wait(300) == 0, again.stderr.read()


def test_several_processes_prepare_the_same_at_once(tmp_path):
    text = write_folder(tmp_path / "text", 1500, size=400)
    runs = [_start(tmp_path / "out", text) for _ in range(3)]
    told = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], told
    assert sum("waiting for process" in err for _, err in told) == 2
    assert told[0][0] == told[1][0] == told[2][0] and "documents 1,500" in told[0][0]
    assert sorted(f.name.split("-")[0] for f in (tmp_path / "out/data").iterdir()) == [".text", "text"]


def test_the_first_tokens_can_be_left_untrained(tmp_path, units_are):
    units_are(Texts(0, (b"abcdef", b"xyz", b"m")))
    made = prepare(tmp_path, "data.record.untrained_tokens=3")
    assert made.train.trained[:7].tolist() == [False] * 3 + [True] * 4
    assert len(made.train) == 2  # of the last one no token is trained
