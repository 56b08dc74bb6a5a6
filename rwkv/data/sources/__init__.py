"""Where documents come from: the units of a source, each read by one process, in a fixed order."""

from rwkv.config.schema import Data
from rwkv.data.sources.files import file_units
from rwkv.data.sources.sample import sample_units
from rwkv.data.sources.unit import Found, Unit
from rwkv.errors import DataError

__all__ = ["Found", "Unit", "units"]


def units(data: Data, validation: bool = False) -> list[Unit]:
    """The units of a `data=` option, or of its `val_path` or `val_split`: the same however many processes read them.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    if data.kind == "sample":
        return sample_units()
    if data.kind == "files":
        return file_units(data, data.val_path if validation else data.path)
    raise DataError(
        f"data.kind={data.kind} ({data.name}): reading from the Hugging Face hub is not built yet; "
        "today: data=sample, data=text data.path=FILE_OR_FOLDER, data=tokens data.path=FILE.npy"
    )
