"""What conversations begin with where there is no data: a row for each, with its number and its kind of task.

They are written into the run while it is planned, so that manifest, shards, leases, proof and redo work as they do for
any rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.data.files.formats import ROW_GROUP

NUMBER: Final = "number"
KIND: Final = "kind"
FILE: Final = "00000.parquet"
ORIGIN: Final = "drawn by this run"
"""In the place of a file's name."""
AT_ONCE: Final = 100 * ROW_GROUP
"""Rows that are drawn and written at once."""


def write(file: Path, rows: int, weights: Mapping[str, float], seed: int) -> None:
    """Draw the kind of each row by the weights. More rows of the same seed and weights begin with the same ones."""
    names, shares = list(weights), np.cumsum(list(weights.values()))
    chance = np.random.Generator(np.random.Philox(seed % (1 << 64)))
    fields: list[pa.Field[Any]] = [pa.field(NUMBER, pa.int64()), pa.field(KIND, pa.string())]
    schema = pa.schema(fields)
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, AT_ONCE):
            count = min(AT_ONCE, rows - start)
            drawn = np.searchsorted(shares, chance.random(count) * shares[-1], side="right")
            kinds = pa.DictionaryArray.from_arrays(pa.array(drawn, pa.int32()), pa.array(names)).cast(pa.string())
            numbers = pa.array(np.arange(start, start + count), pa.int64())
            writer.write_table(pa.table([numbers, kinds], schema=schema), row_group_size=ROW_GROUP)
