"""A comparison as a data set for the Hugging Face Hub: documents by variant, tables, a card, and the hashes of all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.hub_upload import CARD, HASHES, MARK
from sae_lm_eval.exchange.new_files import refuse_tokens
from sae_lm_eval.files.reading import shown
from sae_lm_eval.report import render, writer
from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.formatting import listing
from sae_lm_eval.report.provenance import dictionary_of, mode_of, requested_model
from sae_lm_eval.results.documents import document_table, path_of
from sae_lm_eval.results.results import Results

DOCUMENTS = "documents.parquet"
SPLIT = "test"  # the only one of each table
OF_DOCUMENT = ("doc_hash", "chosen", "logprobs", "kl", "positions", "tokens", "tokens_cut", "l0")
TEXTS = ("prompt", "answers", "target")
LONGEST_FACT = 300  # letters


def dataset_files(comparison: Comparison, report: Report, *, command: str, texts: bool = False) -> dict[str, bytes]:
    """The files of the data set by name; `texts` are the benchmarks' prompts, answers and targets.

    Raises `UserError` where one of them holds what looks like a token.
    """
    report = report if texts else replace(report, worst=())
    report_files = writer.files(report)
    documents = document_rows(comparison, texts=texts)
    frames = {
        DOCUMENTS: documents,
        "drops.parquet": report.drops,
        "fidelity.parquet": report.fidelity,
        "equivalents.parquet": report.equivalents,
    }
    # Of one format: `datasets` reads all tables of a repository as it reads the first.
    files = {name: _parquet(frame) for name, frame in frames.items() if frame is not None and len(frame)}
    tables = list(files)
    files["report.html"] = report_files["report.html"]
    files |= {
        name: content for name, content in report_files.items() if name.startswith("figures/") and name.endswith(".png")
    }
    files[CARD] = _card(report, tables, command=command, rows=len(documents), texts=texts).encode()
    files[HASHES] = json.dumps(_hashes(comparison, files, command), indent=1).encode()
    refuse_tokens(files)
    return files


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def document_rows(comparison: Comparison, *, texts: bool) -> pd.DataFrame:
    """A row for each document and variant, with both scores and what the run wrote down of the variant's answers."""
    documents = comparison.documents()
    if documents.empty:
        return documents
    parts = []
    for run in comparison.variants:
        own = documents.loc[documents["variant"] == run.name].drop(columns="set")
        own = own.assign(model=requested_model(run), dictionary=dictionary_of(run), mode=mode_of(run))
        wanted = ["task", "doc_id", *OF_DOCUMENT, *(TEXTS if texts else ())]
        held = document_table(run, wanted)
        if held is not None and held.duplicated(["task", "doc_id"]).any():
            raise UserError(f"'{shown(path_of(run), 200)}' has a document twice: it is no table of a run's documents.")
        parts.append(own if held is None else own.merge(held, on=["task", "doc_id"], how="left"))
    first = ["model", "variant", "dictionary", "mode", "task", "doc_id"]
    rows = pd.concat(parts, ignore_index=True)
    return rows.reindex(columns=[*first, *(name for name in rows if name not in first)])


def _card(report: Report, tables: Sequence[str], *, command: str, rows: int, texts: bool) -> str:
    """The data set's card: its header, what is in it, and the report's short tables."""
    configs = [
        {"config_name": Path(name).stem, "data_files": [{"split": SPLIT, "path": name}], "default": name == tables[0]}
        for name in tables
    ]
    header = {
        "pretty_name": report.title,
        "tags": ["sparse-autoencoder", "interpretability", "lm-evaluation-harness", "sae-lm-eval"],
        "configs": configs,
    }
    short = tuple(table for table in report.tables if table.extent == "short")
    sources = tuple(replace(source, facts=tuple(filter(_is_short, source.facts))) for source in report.sources)
    body = render.markdown_report(replace(report, tables=short, worst=(), sources=sources))
    title, _, rest = body.partition("\n")
    terms = "with the benchmarks' texts, under the benchmarks' licences" if texts else "without the benchmarks' texts"
    contents = [
        f"- `{DOCUMENTS}`: {rows:,} rows, one for each document and variant, {terms}." if DOCUMENTS in tables else "",
        f"- {listing(f'`{name}`' for name in tables if name != DOCUMENTS)}: the numbers of the report, unrounded."
        if tables != [DOCUMENTS]
        else "",
        "- `report.html`: the report as a page.",
        f"- `{HASHES}`: SHA-256 of every file here and of the result files that they were made from.",
    ]
    listed = "\n".join(filter(None, contents))
    origin = f"Written with sae-lm-eval {version('sae-lm-eval')}:\n\n    {render.one_line(command)}"
    head = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n<!-- {MARK} -->\n{title}\n\n{listed}\n\n{origin}\n{rest}"


def _is_short(fact: tuple[str, str]) -> bool:
    """Whether a card has room for it; the page has them all."""
    return len(fact[1]) <= LONGEST_FACT


def _hashes(comparison: Comparison, files: Mapping[str, bytes], command: str) -> dict[str, Any]:
    return {
        "command": command,
        "sae_lm_eval": version("sae-lm-eval"),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "sources": {
            f"{run.name}/{path.name}": _digest(path)
            for run in (comparison.baseline, *comparison.variants)
            for path in _sources(run)
        },
    }


def _sources(run: Results) -> list[Path]:
    stamp = run.file.stem.rpartition("_")[2]
    samples = sorted(run.folder.glob(f"samples_*_{stamp}.jsonl"))
    return [path for path in (run.file, path_of(run), *samples) if path.is_file()]


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
