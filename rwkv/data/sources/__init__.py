"""Where documents come from: the units of a source, each read by one process, in a fixed order."""

from rwkv.config.schema import Data
from rwkv.data.sources.unit import Batched, Found, Unit
from rwkv.errors import DataError

__all__ = ["Batched", "Found", "Unit", "units"]


def units(data: Data, validation: bool = False) -> list[Unit]:
    """The units of a `data=` option, or of its `val_path` or `val_split`: the same however many processes read them.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    if data.kind == "sample":
        from rwkv.data.sources.sample import sample_units

        return sample_units()
    if data.kind == "files":
        from rwkv.data.sources.files import file_units

        setting = "data.val_path" if validation and data.val_path else "data.path"
        path = data.val_path if validation and data.val_path else data.path
        split = data.val_split if validation and data.val_split else data.split
        return file_units(data, path, setting, split)
    if data.kind == "hub":
        from rwkv.data.sources.hub import hub_units

        return hub_units(data, data.val_split if validation and data.val_split else data.split)
    raise DataError(f"data.kind={data.kind}: its tokens are read in place, it has no records")
