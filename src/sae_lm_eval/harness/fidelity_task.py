"""The lm_eval task whose requests are answered with a document's sums, and whose metrics are made of these."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

import datasets
import lm_eval.evaluator_utils
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from sae_lm_eval.errors import UserError, explain_without_traceback, one_of
from sae_lm_eval.fidelity import metrics
from sae_lm_eval.fidelity.source import POSITIONS, TextSource
from sae_lm_eval.runtime import text_files
from sae_lm_eval.splicing.choices import whole

UNDEFINED = "N/A"  # as lm_eval writes it
HELD_OUT = 200  # documents, at most
COMPUTE = "effective_compute"
DOCUMENTS_AT_ONCE = 1024
MOST_LETTERS = 20_000_000  # of a document
OPTIONS = ("category", "positions", "documents", "mean_split")


class FidelityTask(ConfigurableTask):
    """Every document of a text, scored by the baseline, the variant and its ablations together.

    `metadata` of the task's YAML takes, and `--metadata '{"TASK": {...}}'` overrides:

    - `category`: the field of a document that names its category, `a.b` for a field inside a field.
    - `positions`: "all", or "non_special" without those whose input is a bos, eos or pad token.
    - `documents`: how many are scored at most.
    - `mean_split`: the split whose activations mean ablation averages. By default these are the last documents of the
      scored split: as many as a tenth of it and 200 at most, which are then not scored.

    Raises `UserError` for an option or a field that does not exist.
    """

    OUTPUT_TYPE = "sae_fidelity"  # pyright: ignore[reportAssignmentType]

    def __init__(self, config: dict[str, Any]) -> None:
        name, metadata = config["task"], dict(config.get("metadata") or {})
        own = metadata.pop(name, {})
        if not isinstance(own, dict):
            raise UserError(f"--metadata: '{name}' holds {own!r}, and an object of options is wanted.")
        metadata |= own
        self.options = {key: metadata[key] for key in OPTIONS if key in metadata}
        self.positions = one_of(self.options.get("positions", "all"), POSITIONS, f"positions of {name}:")
        settings = {key: value for key, value in config.items() if key != "class"}
        # `output_type` is none of lm_eval's; the metrics are not known before the variant's dictionaries are.
        super().__init__(
            config={
                **settings,
                "metadata": metadata,
                "output_type": "loglikelihood_rolling",
                "metric_list": [],
                "num_fewshot": 0,
            }
        )
        self.OUTPUT_TYPE = FidelityTask.OUTPUT_TYPE
        self._metrics: dict[str, metrics.Metric] = {}
        self._converted = False

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().download(dataset_kwargs, **kwargs)
        split = self.config.test_split or self.config.validation_split
        documents = self.dataset[split]
        mean_split = self.options.get("mean_split")
        if mean_split is not None:
            held_out = self.dataset[one_of(mean_split, self.dataset, f"mean_split of {self.config.task}:")]
            last = len(documents)
        else:
            last = len(documents) - min(HELD_OUT, len(documents) // 10)
            held_out = documents.select(list(range(last, len(documents))))  # an empty range is refused
        most = whole(self.options.get("documents", max(1, last)), f"documents of {self.config.task}", least=1)
        self.dataset[split] = documents.select(range(min(last, most)))
        self.held_out = held_out.select(range(min(HELD_OUT, len(held_out))))

    @functools.cached_property
    def source(self) -> TextSource:
        config = self.config
        where = config.dataset_path or (self.config.metadata or {}).get("file") or config.task
        split = config.test_split or config.validation_split
        name = " ".join(str(part) for part in (where, config.dataset_name) if part)
        return TextSource(
            name,
            tuple(map(self.text_of, self.held_out)),
            self.positions,
            split=split,
            held_out_split=self.options.get("mean_split", split),
        )

    def text_of(self, doc: dict[str, Any]) -> str:
        return str(self.doc_to_target(doc))

    def category_of(self, doc: dict[str, Any]) -> str | None:
        if (field := self.options.get("category")) is None:
            return None
        value: Any = doc
        for key in str(field).split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise UserError(f"A document of {self.config.task} has no field '{field}'. It has {', '.join(doc)}.")
            value = value[key]
        return str(value)

    def fewshot_context(self, *_args: Any, **_kwargs: Any) -> str:
        return ""

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> Instance:
        return Instance(
            request_type=FidelityTask.OUTPUT_TYPE,  # pyright: ignore[reportArgumentType]
            doc=doc,
            arguments=(self.text_of(doc), self.category_of(doc), self.source),
            idx=0,
            metadata=kwargs["metadata"],
        )

    def process_results(self, doc: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """For each metric the document's number, and its sums that the metric is made of."""
        (record,) = results
        entries = list(metrics.metrics_of(record))
        self._metrics = {name: metric for name, metric, _ in entries}
        out = {name: [record["document"], *metrics.row(record, metric, site)] for name, metric, site in entries}
        self._converted = COMPUTE in record
        return out | {COMPUTE: record[COMPUTE]} if self._converted else out

    def aggregation(self) -> dict[str, Any]:
        own = {name: Aggregation(metric) for name, metric in self._metrics.items()}
        return own | {COMPUTE: WholeTextValue()} if self._converted else own

    def higher_is_better(self) -> dict[str, bool]:
        own = {name: metric.higher_is_better for name, metric in self._metrics.items()}
        return own | {COMPUTE: True} if self._converted else own

    def dump_config(self) -> dict[str, Any]:
        return {**super().dump_config(), "output_type": FidelityTask.OUTPUT_TYPE}


class Aggregation:
    """A metric as lm_eval aggregates it: from a list with an item a document, in whatever order processes have them."""

    def __init__(self, metric: metrics.Metric) -> None:
        self.metric = metric

    def __call__(self, items: Sequence[Any]) -> float | str:
        return _or_undefined(self.metric.value(self._rows(items)))

    def stderr(self, items: Sequence[Any], resamples: int) -> float | str:
        return _or_undefined(self.metric.stderr(self._rows(items), resamples))

    @staticmethod
    def _rows(items: Sequence[Any]) -> np.ndarray:
        return metrics.array([sums for _, *sums in sorted(items, key=lambda item: item[0])])


class WholeTextValue:
    """A number of the whole text, which every document brings along; its interval is in the results' `config`."""

    def __call__(self, items: Sequence[float | None]) -> float | str:
        return _or_undefined(items[0])

    def stderr(self, items: Sequence[float | None], resamples: int) -> str:
        return UNDEFINED


def _or_undefined(value: float | None) -> float | str:
    return UNDEFINED if value is None else value


def documents_of_file(
    file: str | None = None, column: str = "text", category: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """The documents of a .txt, .jsonl or .parquet file, with their categories; for `custom_dataset` of a task.

    Raises `UserError` where the file is none of these, has rows without a category, or a document that is too long.
    """
    if file is None:
        raise UserError(
            'sae_fidelity_text needs a text of yours: --metadata \'{"sae_fidelity_text": {"file": "FILE", '
            '"column": "text", "category": "COLUMN"}}\', where only "file" has to be there.'
        )
    columns = {"text": text_files.read_documents(file, column)}
    if category is not None:
        columns[category] = text_files.read_documents(file, category)
    batches, digest = [], hashlib.sha256()
    rows = zip_longest(*columns.values())
    # Packed a batch at a time: as a list of Python's own strings a large file would take several times its size.
    while batch := list(islice(rows, DOCUMENTS_AT_ONCE)):
        if any(None in row for row in batch):
            raise UserError(f"'{file}' has rows where '{column}' or '{category}' is empty.")
        if (longest := max(len(text) for text, *_ in batch)) > MOST_LETTERS:
            raise UserError(
                f"'{file}' has a document of {longest / 1e6:,.0f} million characters, and a document is scored at "
                f"once: cut it into documents of at most {MOST_LETTERS / 1e6:,.0f} million, a line each of a .jsonl."
            )
        batches.append(pa.RecordBatch.from_pydict(dict(zip(columns, zip(*batch, strict=True), strict=True))))
        digest.update(batches[-1].serialize())
    # The library would make a fingerprint of its own from copies of the whole.
    table, fingerprint = InMemoryTable(pa.Table.from_batches(batches)), digest.hexdigest()[:16]
    return {"test": datasets.Dataset(table, fingerprint=fingerprint)}


def _let_metrics_bring_their_errors() -> None:
    """lm_eval resamples for a fixed list of its own aggregations; ours resample documents for all metrics at once."""
    theirs = lm_eval.evaluator_utils.stderr_for_metric

    def stderr_for_metric(metric: Any, bootstrap_iters: int) -> Any:
        if isinstance(metric, Aggregation | WholeTextValue):
            return functools.partial(metric.stderr, resamples=bootstrap_iters)
        return theirs(metric, bootstrap_iters)

    lm_eval.evaluator_utils.stderr_for_metric = stderr_for_metric


def _let_other_models_say_no() -> None:
    def sae_fidelity(self: LM, requests: list[Instance]) -> list[Any]:
        raise UserError(
            "The sae_fidelity tasks compare a model with itself behind a dictionary: run them with --model sae_hf "
            "and sae=... in --model_args."
        )

    LM.sae_fidelity = sae_fidelity  # pyright: ignore[reportAttributeAccessIssue]


_let_metrics_bring_their_errors()
_let_other_models_say_no()
explain_without_traceback("lm_eval", "lm-eval")
