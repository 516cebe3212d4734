"""The table of documents that a run writes beside lm_eval's results: what was asked and answered, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval import schema
from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.files.reading import shown
from sae_lm_eval.results.digests import check_digest
from sae_lm_eval.results.results import Results

KEY = ["task", "doc_id"]


def path_of(results: Results) -> Path:
    """Where the table of these results lies, if they have one."""
    return results.folder / f"documents_{results.file.stem.rpartition('_')[2]}.parquet"


def write_documents(results: Results, documents: pd.DataFrame) -> None:
    """Beside the results; columns are those of the schema `documents`, null where they are undefined."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = {name: documents[name] if name in documents else [None] * len(documents) for name in _types()}
    arrays = [pa.array(list(given[name]), kind, from_pandas=True) for name, kind in _types().items()]
    table = pa.table(arrays, schema=pa.schema(list(_types().items()), {schema.KEY: str(schema.VERSION)}))
    pq.write_table(table, path_of(results), compression="zstd")


def _types() -> dict[str, Any]:
    """Of the columns."""
    import pyarrow as pa

    latent = {"splice": pa.int32(), "latent": pa.int32(), "activation": pa.float64(), "as_active": pa.int32()}
    texts, floats, whole = pa.list_(pa.string()), pa.list_(pa.float64()), pa.int64()
    return {
        "task": pa.string(),
        "doc_id": whole,
        "doc_hash": pa.string(),
        "prompt": pa.string(),
        "answers": texts,
        "target": pa.string(),
        "right": pa.list_(whole),
        "logprobs": floats,
        "chosen": whole,
        "margin": pa.float64(),
        "tokens": whole,
        "tokens_cut": whole,
        "kl": pa.float64(),
        "positions": whole,
        "l0": pa.float64(),
        "latents": pa.list_(pa.struct(list(latent.items()))),
        "others": whole,
    }


def document_table(results: Results, columns: list[str] | None = None) -> pd.DataFrame | None:
    """The table, or some of its columns; None where the results have none, as those of lm_eval's own command.

    Raises `UserError` where it cannot be read, or is of a newer version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path_of(results)
    if not path.is_file():
        return None
    check_digest(path)
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{shown(path)}' cannot be read as a table of documents: {first_line(error)}") from error
    held = {key.decode(errors="replace"): value for key, value in (table.schema.metadata or {}).items()}
    schema.version_of({schema.KEY: _whole(held.get(schema.KEY))}, str(path))
    wanted = {name: kind for name, kind in _types().items() if columns is None or name in columns}
    for name, kind in wanted.items():
        try:
            table.column(name).cast(kind)
        except (KeyError, pa.ArrowException) as error:
            raise UserError(
                f"'{shown(path)}' has no column {name} of {kind}: it is no table of a run's documents."
            ) from error
    return table.select(list(wanted)).to_pandas()


def _whole(value: bytes | None) -> Any:
    try:
        return json.loads(value or b"1")
    except ValueError:
        return value
