"""Bugs of the infctx trainer's data pipeline: those that no other test has.

The others, each with the test that fails where it is made here:

- newlines of text become <|endoftext|>, blank and one-token lines are lost: test_records.py::test_newlines_survive_and_short_lines_too,
  test_prepare.py::test_newlines_survive_and_the_end_token_ends_documents_only
- <|endoftext|> within a text becomes the end token: test_huggingface.py::test_neox_of_the_package, test_world.py::test_the_vocabulary_is_the_files
- values that are no strings end a worker: test_prepare.py::test_records_that_are_not_text_do_not_crash,
  test_records.py::test_columns_that_hold_nothing, test_malformed.py::test_malformed, test_tables.py::test_values_that_are_no_text
- binidx with a document for each token: test_binidx.py::test_foreign_files_are_read_in_place, ::test_bounds_group_sequences_into_documents
- numpy arrays are not read: test_binidx.py::test_npy_arrays_are_read_in_place
- segments of a prompt are tokenised one by one: test_records.py::test_what_a_prompt_holds_is_one_part
- prefixes shift, masks too short or not there crash: test_records.py::test_columns_carry_their_own_settings
- prefixes and suffixes are trained, or not, together: test_records.py::test_what_surrounds_columns
- a record that is itself the list of turns is a KeyError: test_records.py::test_the_record_itself_is_the_list
- a suffix of a speaker left out crashes: test_records.py::test_each_key_of_a_turn_a_speaker
- masks are of inputs, one too early: test_prepare.py::test_masks_are_of_tokens_and_the_end_is_as_the_last_part,
  test_layouts.py::test_masked_tokens_are_no_targets
- offset and length are applied twice, once a process: test_prepare.py::test_first_and_limit_count_the_records_of_the_source_once
- packs depend on the number of processes: test_prepare.py::test_the_number_of_processes_changes_no_byte
- the state goes from one document of a pack to the next: test_layouts.py::test_a_target_is_predicted_from_the_whole_of_its_document_and_nothing_else,
  tests/bptt/test_packs.py::test_a_pack_equals_its_documents_alone
- documents longer than a pack are left whole whatever their length: test_layouts.py::test_a_capped_document_goes_on_in_its_row_with_its_state
- at least one row is held out, wanted or not: test_corpus.py::test_of_few_documents_the_tails_are_held_out
- another split is tokenised and not used: test_tables.py::test_hub_rows (only what is asked for is read)
- no streaming: test_hub.py::test_a_stream_is_read_without_a_copy_of_it
- a whole column in memory: test_corpus.py::test_a_view_of_many_documents_costs_little, test_sources.py::test_a_big_json_array_is_read_in_little_memory,
  test_layouts.py::test_a_row_longer_than_memory_is_never_held
- every rank prepares, and saves, the same data: test_prepare.py::test_several_processes_prepare_the_same_at_once
- file order is training order: test_layouts.py::test_shuffled_each_epoch_and_by_the_seed
- ranks have different numbers of chunks and crash or wait: tests/training/test_ranks.py::test_gradients_equal_one_process
- weights of a mix have no effect, batches of several sources are an error: test_layouts.py::test_a_mix_keeps_its_weights_all_along
- no losses of each source: tests/training/test_data.py::test_a_mix_has_its_shares_and_each_source_its_losses
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from rwkv import train
from rwkv.config import cli
from rwkv.data.layout import Source, build
from tests.conftest import the_run, tiny
from tests.data.corpora import corpus, predictable, ragged, targets
from tests.data.preparing import prepare, write_binidx
from tests.data.test_layouts import CTX, epoch, layout, settings

LAYOUTS = {
    "stream": dict(rows=3, chunks=2),
    "document": dict(rows=2, chunks=2, window=2),
    "fixed": dict(rows=2, chunks=2),
    "official": dict(rows=1),
}


def test_binidx_needs_no_module_that_python_has_dropped(tmp_path):
    """Its binidx.py imports lib2to3, which Python 3.13 no longer has."""
    write_binidx(tmp_path / "set", [np.array([5, 6, 0])])
    code = "import sys; sys.modules['lib2to3'] = None; from rwkv.data import binidx; print(binidx.read(sys.argv[1]).tokens.tolist())"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[5, 6, 0]\n", done.stderr


def test_a_sample_shorter_than_the_rest_is_left_out_once():
    """Rechunking there drops the remainder of every map batch of every worker; documents shorter than a chunk vanish with it."""
    docs = corpus(ragged(200, most=7))
    made = layout("fixed", docs=docs, rows=1, chunks=8)
    samples = (docs.count - 1) // 64
    seen = sorted(t for _ in range(samples) for t in targets(made.next()))
    assert seen == [t for t in predictable(docs) if t <= samples * 64] and docs.count - samples * 64 <= 64


@pytest.mark.parametrize("kind", ["stream", "document", "fixed"])
def test_only_a_document_that_ends_has_an_end_label(kind, tmp_path):
    """There a row of exactly ctx_len tokens is padded by one, and its last position learns the padding, <|endoftext|>;
    the separator of a pack learns the next document's first token."""
    following, letters = {}, iter(range(33, 127))  # no byte is there twice, so that each tells what must follow it
    for i, size in enumerate((CTX - 1, CTX, CTX + 1, 2 * CTX - 1, 2 * CTX, 3 * CTX - 1)):
        text = bytes(next(letters) for _ in range(size))
        (tmp_path / f"{i}.txt").write_bytes(text)
        following |= {a + 1: b + 1 for a, b in zip(text, text[1:], strict=False)} | {text[-1] + 1: 0}
    docs = prepare(tmp_path, "data=text", f"data.path={tmp_path}/*.txt").train
    made = build(settings(kind, **LAYOUTS[kind]), [Source("docs", docs)], CTX, 1, False)[0]
    ends, trained = 0, 0
    while trained < 3 * len(following):
        batch = made.next()
        for i in range(batch.chunks(CTX)):
            chunk = batch.chunk(i, CTX, 1.0, "cpu")
            for token, target in zip(chunk.tokens[chunk.weight > 0].tolist(), chunk.targets[chunk.weight > 0].tolist(), strict=True):
                assert target == following[token]  # a KeyError where an end token, or padding, predicts
                ends, trained = ends + (target == 0), trained + 1
    assert ends >= 2 * len(docs)  # the true ones are there


def test_how_many_are_packed_together_matters():
    """packing_batchsize is read there and never used: 4 and 20160 give the same packs."""
    docs = corpus(ragged(400))
    packs = {w: [targets(b) for b in epoch(layout("document", docs=docs, rows=2, window=w), 2000)] for w in (1, 64)}
    assert packs[1] != packs[64]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_epoch_has_all_the_data_and_no_stop_repeats_or_skips_any(kind):
    """There every epoch after the first is skipped entirely, or, where that is not armed, resuming begins at row 0 again."""
    docs = corpus(ragged(25))
    made = layout(kind, docs=docs, **LAYOUTS[kind])
    batches, states, epochs = [], [], 0.0
    while epochs < 3:
        states.append(json.dumps(made.state_dict()))
        batches.append(targets(made.next()))
        epochs = made.feed.shares()[0]["epochs"]
    times = np.bincount(sum(batches, []), minlength=docs.count)[predictable(docs)]
    if kind in ("document", "fixed"):
        assert (times == 3).all() or kind == "fixed" and (times[:-16] == 3).all()  # of which the end may be left out
    else:
        assert times.max() <= 4 and (times >= 2).mean() > 0.9
    for at in range(0, len(states), 1 + len(states) // 15):
        again = layout(kind, docs=docs, **LAYOUTS[kind])
        again.load_state_dict(json.loads(states[at]))
        assert [targets(again.next()) for _ in batches[at:]] == batches[at:]


def test_each_token_of_the_validation_counts_the_same(tmp_path):
    """There the validation loss is the mean of the rows' means: a row of ten tokens counts as much as one of a thousand."""
    for name, text in {"train/a": "the quick brown fox " * 200, "long/a": "the quick brown fox " * 40, "short/a": "ZYX?"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "both").mkdir()
    for name in ("long", "short"):
        (tmp_path / "both" / name).write_bytes((tmp_path / name / "a").read_bytes())
    loss = {}
    for val in ("long", "short", "both"):
        out = tmp_path / "out" / val
        paths = f"data.path={tmp_path}/train", f"data.val_path={tmp_path}/{val}", f"out={out}"
        args = tiny("data=text", *paths, "trainer.val_tokens=10000", "trainer.tokens=640")
        assert cli.guarded(train.main, args) == 0
        loss[val] = json.loads((the_run(out) / "summary.json").read_text())["val_loss"]
    weighted = (800 * loss["long"] + 4 * loss["short"]) / 804
    assert loss["both"] == pytest.approx(weighted, rel=1e-6) and loss["short"] > 1.2 * loss["long"]
