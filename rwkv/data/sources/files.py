"""Files of any format: which unit reads which."""

from collections.abc import Callable
from typing import get_args

from rwkv.config.schema import Data, Format
from rwkv.data.sources.columnar import arrow_units, parquet_units, saved_dataset
from rwkv.data.sources.jsonl import jsonl_units
from rwkv.data.sources.storage import File, find
from rwkv.data.sources.tables import Csv
from rwkv.data.sources.text import Lines, TextFile, ranges
from rwkv.data.sources.unit import Unit, Unreadable
from rwkv.errors import DataError

ENDINGS: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".ipc", ".feather"),
}
READ: dict[str, Callable[[File, Data], list[Unit]]] = {
    "text": lambda file, data: [TextFile(file)],
    "lines": lambda file, data: [Lines(file, start, end) for start, end in ranges(file)],
    "jsonl": lambda file, data: jsonl_units(file),
    "csv": lambda file, data: [Csv(file)],
    "parquet": lambda file, data: parquet_units(file, data.record),
    "arrow": lambda file, data: arrow_units(file, data.record),
}
assert {"auto", *READ} == set(get_args(Format))


def file_units(data: Data, path: str, setting: str, split: str) -> list[Unit]:
    """Of a folder: with format=auto all files, by how their names end; with text and lines all files; else those of the format.

    Raises:
        DataError: there is nothing to read; it names `setting`, the key the path came from.
    """
    files = find(path, data.storage, setting)
    if split != "train" and all(file.name != "dataset_dict.json" for file in files):
        key = "data.val_split" if split == data.val_split else "data.split"
        raise DataError(f"{key}={split}: {setting}={path} has no splits, as a folder of datasets.save_to_disk has; {setting} itself can name other files")
    if data.format in ("auto", "arrow") and (saved := saved_dataset(files, split)) is not None:
        return [unit for file in saved for unit in arrow_units(file, data.record)]
    endings = () if data.format == "text" else ENDINGS.get(data.format, ())
    if len(files) > 1 and endings:
        found = [file for file in files if isinstance(file, Unreadable) or file.ending in endings]
        if not found:
            has = ", ".join(sorted({file.ending or "no ending" for file in files if isinstance(file, File)}))
            raise DataError(f"{setting}={path}: no file that ends in {', '.join(endings)} (there are {has}); a single file may end in anything")
        files = found
    return [unit for file in files for unit in _read(file, data)]


def _read(file: File | Unreadable, data: Data) -> list[Unit]:
    if isinstance(file, Unreadable):
        return [file]
    name = data.format if data.format != "auto" else next((name for name, endings in ENDINGS.items() if file.ending in endings), None)
    if name is None:
        why = f"its ending {file.ending or '(none)'} is of no known format: data.format=text reads any file as text"
        return [Unreadable(file.name, why, file.size)]
    return READ[name](file, data)
