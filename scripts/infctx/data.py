"""The keys of the infctx trainer's data section and of its datapacks."""

from pathlib import Path
from typing import Any

from infctx.conversion import Conversion, Row, copied, taken

LOCAL = {"text": "text", "json": "jsonl", "csv": "csv", "parquet": "parquet", "arrow": "arrow"}
PLAIN = {"lead": ""}


def _source(c: Conversion, key: str, value: Any) -> None:
    source, folder, saved = c.get("data.source"), c.get("data.source_data_dir"), c.get("data.data_path")
    params = c.get("data.source_dataset_params", {})
    files = params.get("data_files", folder)
    if c.get("data.tokenizer") == "binidx":
        c.set(_data="binidx", data__path=source)
    elif source is None:
        c.set(_data="arrow", data__path=saved)
        c.note("data.data_path without a source is a data set on disk: its text columns are read; columns of token ids (input_ids) are not")
    elif source in LOCAL:
        c.set(_data=LOCAL[source])
        _paths(c, files)
        if source == "text":
            c.note("data.source=text: each file is a document and keeps its newlines; data=lines would make each line one, as there")
    elif source == "pandas":
        c.dropped["data.source"] = "pandas: its pickles can run code; write the frames as parquet, and set data=parquet"
    elif source[0] in "./~" or Path(source).exists():
        c.set(_data="files", data__path=source)
    else:
        c.set(_data="hub", data__name=source)
        if folder:
            c.dropped["data.source_data_dir"] = "a folder inside a data set of the hub: download it, then data=files data.path=FOLDER"
    if source and saved:
        c.set(data__cache=saved)


def _paths(c: Conversion, files: Any) -> None:
    if isinstance(files, dict):
        held_out = next((files[name] for name in ("test", "validation") if name in files), None)
        c.set(data__path=files.get(c.get("data.source_dataset_split", "train")), **({"data__val_path": held_out} if held_out else {}))
    elif isinstance(files, list):
        c.dropped["data.source_dataset_params"] = "data_files is a list: data.path is one file, folder or pattern"
    else:
        c.set(data__path=files)


def _params(c: Conversion, key: str, value: dict) -> None:
    ours = {"name": "data.config", "revision": "data.revision", "split": "data.split", "streaming": "data.streaming"}
    for name, setting in value.items():
        if name in ours:
            c.settings[ours[name]] = setting
        elif name not in ("data_files", "sample_by"):
            c.dropped[f"{key}.{name}"] = f"{setting}: none of load_dataset's further options is passed on; data.config names the part of a data set"
    _source(c, key, value)


def _storage(c: Conversion, key: str, value: dict) -> None:
    if c.get("data.source") is None:
        c.set(data__storage=value)
        c.note("data.storage holds the storage's keys: the environment (AWS_ACCESS_KEY_ID, ...) is a safer place")
    else:
        c.dropped[key] = "prepared data is on disk (data.cache); data.storage is for a data.path at an address"


def _part(c: Conversion, key: str, value: Any) -> None:
    value = float(value)
    here = "first" if key.endswith("offset") else "limit"
    if value >= 1:
        c.settings[f"data.{here}"] = int(value)
    else:
        c.dropped[key] = f"{value} is a share: data.{here} is a number of records; of the hub's data sets data.split='train[10%:60%]' is a share"


def _held_out(c: Conversion, key: str, value: Any) -> None:
    value = float(value)
    if value >= 1:
        c.dropped[key] = f"{value:g} is a number of rows: data.val_share is a share of the documents, data.val_path or data.val_split another source"
    else:
        c.set(data__val_share=max(0.0, value))


def _tokenizer(c: Conversion, key: str, value: Any) -> None:
    if value in ("world", "neox"):
        c.set(_tokenizer=value)
    elif value != "binidx":
        c.set(_tokenizer="hf", tokenizer__path=value)


def _tokens(c: Conversion, key: str, value: Any) -> None:
    c.settings["data.min_tokens" if "min" in key else "data.max_tokens"] = int(value) + 1


def _text_key(c: Conversion, key: str, value: Any) -> None:
    c.set(data__record__kind="text", data__record__text=[value])


def _unescaped(c: Conversion, text: Any) -> str:
    text = text or ""
    if "\\n" in text or "\\t" in text:
        c.note("a backslash and an n, as YAML reads '\\n' in single quotes, was taken for the line end that was meant")
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _columns(c: Conversion, key: str, value: Any) -> None:
    keys = c.get("data.multi_column_keys", ["instruction", "input", "output"])
    if c.get("data.custom_text_key") or c.get("data.conversation_format"):
        c.dropped[key] = "custom_text_key and conversation_format come first"
        return
    if not keys:
        c.dropped[key] = "no columns: data.record.kind=text or prompt reads those forms alone; auto takes columns only where a record has two of them"
        return

    def nth(name: str, i: int, default: Any) -> Any:
        values = c.get(f"data.multi_column_{name}", [])
        return values[i] if i < len(values) and values[i] is not None else default

    c.set(data__record__columns=[
        {"key": k, "prefix": _unescaped(c, nth("prefix", i, "")), **PLAIN, "suffix": _unescaped(c, nth("suffix", i, "")), "trained": nth("train_mask", i, True)}
        for i, k in enumerate(keys)
    ], data__record__separator=_unescaped(c, c.get("data.multi_column_separator", "")), data__record__markup="trained")  # fmt: skip


def _chat(c: Conversion, key: str, value: Any) -> None:
    form = c.get("data.conversation_format")
    if form not in ("iopairs", "sender") or c.get("data.custom_text_key"):
        c.dropped[key] = "without conversation_format (iopairs or sender), or beside custom_text_key, it says nothing"
        return
    key = c.get("data.conversation_key")
    c.set(
        data__record__kind="chat", data__record__markup="trained", data__record__chat__key=[key] if key else None,
        data__record__chat__other={"prefix": "", **PLAIN, "suffix": "", "trained": True, "aliases": []}, data__record__chat__trim=False,
        data__record__chat__end=_unescaped(c, c.get("data.conversation_end_of_conversation", "")),
    )  # fmt: skip
    c.note("roles of conf/data/_base.yaml that the infctx configuration does not name (system, user, assistant, tool) keep their form")
    suffixes = c.get("data.conversation_sender_suffix", {})
    if form == "iopairs":
        prefixes, trained = c.get("data.conversation_input_key_prefix_map", {}), c.get("data.conversation_input_key_mask", {})
        c.set(data__record__chat__sender=None)
    else:
        said = c.get("data.conversation_input_key_map", {"content": ""})
        first, *more = said
        labels, trained = c.get("data.conversation_sender_value_map", {}), c.get("data.conversation_sender_mask", {})
        prefixes = {sender: said[first].replace("{sender}", label) for sender, label in labels.items()}
        c.set(data__record__chat__sender=[c.get("data.conversation_sender_key")], data__record__chat__content=[first])
        c.set(data__record__chat__also={name: _unescaped(c, said[name]).replace("{sender}", "{role}") for name in more})

    def role(name: str) -> dict:
        around = {"prefix": _unescaped(c, prefixes.get(name)), **PLAIN, "suffix": _unescaped(c, suffixes.get(name))}
        return around | {"trained": bool(trained.get(name, True)), "aliases": []}

    c.set(data__record__chat__roles={str(name): role(name) for name in dict.fromkeys([*prefixes, *trained, *suffixes])})


def _layout(c: Conversion, key: str, value: Any) -> None:
    ctx, size = int(c.get("model.ctx_len", 2048)), int(c.get("data.text_rechunk_size", 4096))
    auto = c.get("data.text_rechunk_auto", True) and c.get("data.source") == "text"
    if size > 0 and (auto or c.get("data.text_rechunk_force", False)):
        c.set(_layout="fixed", layout__chunks=max(1, size // ctx))
        c.note(f"rechunked to {size} tokens: samples of layout.chunks x ctx_len; layout=document would learn from whole documents")
    else:
        least = int(c.get("data.packing_min_ctx_len", -1))
        least = least if least > 0 else int(c.get("data.packing_chunksize", 4096))
        c.set(_layout="document", **({"layout__chunks": max(1, least // ctx)} if c.get("data.packing_enable", False) else {}))


SORTED = "the order is shuffled each epoch, a function of the seed; layout=document brings rows of like length together"
PREPARED = "data is prepared once, by whichever process comes first, and found again by fingerprint"
COLUMNS = "a list of {key, prefix, lead, suffix, trained}; what surrounds them is trained there (data.record.markup=trained)"
SENDERS = "by speaker: {prefix, lead, suffix, trained, aliases}"

DATA = [
    Row("data.skip_datapath_setup", "", PREPARED),
    Row("data.datapack_config_path", "data=mix", "the datapack is converted with it; a relative path is tried from the configuration's folder too"),
    Row("data.data_path", "data.cache", "where prepared data is kept; without a source data=arrow data.path", _source),
    Row("data.data_path_storage_options", "data.storage", "for a data.path at an address", _storage),
    Row(
        "data.source",
        "data",
        "text, json (jsonl), csv, parquet, arrow; a path (files); a binidx prefix (binidx); else a name on the hub (hub, data.name)",
        _source,
    ),
    Row("data.source_data_dir", "data.path", "", _source),
    Row("data.source_dataset_params", "data.config data.revision data.path", "name, revision, data_files", _params, taken({})),
    Row("data.source_dataset_split", "data.split", "", copied("data.split")),
    Row("data.dataset_offset", "data.first", "a number of records; applied once", _part, taken(-1)),
    Row("data.dataset_length", "data.limit", "a number of records; applied once", _part, taken(-1)),
    Row("data.test_split", "data.val_share", "a share; a number of rows is not taken over", _held_out),
    Row("data.test_split_shuffle", "", "which documents are held out depends on their numbers alone, evenly spread"),
    Row("data.tokenizer", "tokenizer", "world, neox; another: hf with tokenizer.path", _tokenizer),
    Row("data.autoTokenizer", "", "tokenizer=hf reads a tokenizer.json as it is"),
    Row("data.world_add_endoftext_token", "", "id 0 ends a document, and no text makes it: <|endoftext|> in a text stays text"),
    Row("data.min_token_size", "data.min_tokens", "+1: the end token counts here", _tokens, taken(-1)),
    Row("data.max_token_size", "data.max_tokens", "+1: the end token counts here", _tokens, taken(-1)),
    Row("data.sort_by_length", "", SORTED, None, taken(False)),
    Row("data.sort_asc", "", SORTED),
    Row("data.reverse_train_dataset_before_save", "", SORTED, None, taken(False)),
    Row("data.custom_text_key", "data.record.text", "with data.record.kind=text", _text_key),
    Row("data.multi_column_keys", "data.record.columns", COLUMNS, _columns),
    *(Row(f"data.multi_column_{name}", "data.record.columns", COLUMNS, _columns) for name in ("prefix", "suffix", "train_mask")),
    Row("data.multi_column_separator", "data.record.separator", "", _columns),
    Row("data.conversation_format", "data.record.kind=chat", "iopairs: data.record.chat.sender=null; sender: its key", _chat),
    Row("data.conversation_key", "data.record.chat.key", "null: the record itself is the list, which works here", _chat),
    Row("data.conversation_end_of_conversation", "data.record.chat.end", "", _chat),
    Row("data.conversation_input_key_prefix_map", "data.record.chat.roles", SENDERS, _chat),
    Row("data.conversation_input_key_mask", "data.record.chat.roles", SENDERS, _chat),
    Row("data.conversation_sender_suffix", "data.record.chat.roles", SENDERS + "; it may be left out here", _chat),
    Row("data.conversation_input_key_map", "data.record.chat.content data.record.chat.also", "the first key, and the others with what precedes each", _chat),
    Row("data.conversation_sender_key", "data.record.chat.sender", "", _chat),
    Row("data.conversation_sender_value_map", "data.record.chat.roles", "part of the prefix of each speaker", _chat),
    Row("data.conversation_sender_mask", "data.record.chat.roles", SENDERS, _chat),
    Row("data.disable_prompt_completion_mask", "data.record.train_prompt", "", copied("data.record.train_prompt", bool)),
    Row("data.data_prefix_skip_mask", "data.record.untrained_tokens", "of each document", copied("data.record.untrained_tokens", int)),
    Row("data.text_rechunk_size", "layout=fixed layout.chunks", "size / ctx_len, where text is rechunked; documents are told apart in a sample", _layout),
    Row("data.text_rechunk_auto", "layout", "true and source=text: fixed; else document", _layout),
    Row("data.text_rechunk_force", "layout", "true: fixed", _layout),
    Row("data.packing_enable", "layout=document", "short documents share a row, each with a state of its own", _layout),
    Row("data.packing_batchsize", "", "read and never used there; layout.window is how many batches are planned together"),
    Row("data.packing_chunksize", "layout.chunks", "/ ctx_len, with packing_enable", _layout),
    Row("data.packing_min_ctx_len", "layout.chunks", "/ ctx_len, with packing_enable", _layout),
    Row("data.packing_in_sequence", "", SORTED, None, taken(False)),
    Row("data.processing_max_batch_size", "", PREPARED + "; data.processes says by how many processes"),
    Row("data.dataloader_shuffle_training", "", "always shuffled, anew each epoch"),
    Row("data.dataloader_prefetch_factor", "", "tokens are read from memory-mapped files, fast enough without workers"),
    Row("data.dataloader_pin_memory", "", "chosen by device"),
    Row("data.dataloader_swap_train_test_split", "", "data.path and data.val_path can be swapped", None, taken(False)),
]

DATAPACK = [
    Row("datapack.data_path", "data.cache", "where prepared data is kept", copied("data.cache")),
    Row("datapack.data_path_storage_options", "", "prepared data is on disk"),
    Row("datapack.batchsize", "", "unused there"),
    Row("datapack.packing_batchsize", "", "read and never used there"),
    Row(
        "datapack.mixing_mode",
        "data=mix",
        "always by weights in tokens: in each stretch of steps each source has its share; batch is an error there",
        None,
        taken("concat", "shuffle"),
    ),
    Row("datapack.mixed_batch_percentage", "", "unused there"),
    Row("default.*", "data.mix.NAME.*", "any data key; a source's own wins", None),
    Row("dataset[].*", "data.mix.NAME.*", "any data key", None),
    Row("dataset[].name", "data.mix.NAME", "else source1, source2, ...", None),
    Row("dataset[].dataset_weight", "data.mix.NAME.weight", "has an effect here: the source's share of the tokens is weight / sum of the weights", None),
]
