"""How far a variant's predictions moved on text: sums over each document, for the baseline, the variant and ablations.

A text's documents are scored where lm_eval's rolling loglikelihood scores them, in one forked pass.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState

from sae_lm_eval.errors import UserError
from sae_lm_eval.fidelity import metrics
from sae_lm_eval.fidelity.ablations import ablations, leave_no_text, without_text
from sae_lm_eval.fidelity.as_released import as_released
from sae_lm_eval.fidelity.dictionary_stats import CategorySums, DictionaryStatistics, by_category, records
from sae_lm_eval.fidelity.source import TextDocument, TextRequest, TextSource
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.results.fidelity_names import NO_DICTIONARY, NO_LATENTS, OF_LATENTS, WITHOUT_DICTIONARY
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.processes import gathered
from sae_lm_eval.runtime.progress import counting
from sae_lm_eval.scaling import Original
from sae_lm_eval.scaling.conversion import compute_of
from sae_lm_eval.scoring.answers import TOKENS_AT_ONCE
from sae_lm_eval.scoring.request import Query, ScoreRequest, Scores
from sae_lm_eval.scoring.scorer import Layout, Scorer
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.splice import Splice, Variant

logger = logger_of(__name__)

MEASURES = ("kl", "kl_reverse", "agreement")


class MeasuredText(NamedTuple):
    """Of a task's text: a record for each document, what judges them, and effective compute where something is spliced.

    What judges them is where the means were taken from, why metrics are undefined, the categories, and the like.
    """

    records: list[dict[str, Any]]
    facts: dict[str, Any]
    effective_compute: dict[str, Any] | None = None


class Fidelity:
    """What `sae_fidelity` tasks measured of a model, by task, and how their requests are answered."""

    def __init__(self) -> None:
        self.by_task: dict[str, dict[str, Any]] = {}
        self.effective_compute: dict[str, dict[str, Any]] = {}
        # By what is scored and the modes of splices, so that they are tried once, not by task.
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def answer(
        self,
        model: SplicedModel,
        requests: Sequence[TextRequest],
        original: Original,
        journal: Journal | None = None,
        *,
        show: bool,
    ) -> list[dict[str, Any]]:
        """A document's record for each request; `journal` keeps those of a task."""
        documents: dict[str, dict[Any, TextDocument]] = defaultdict(dict)
        sources: dict[str, TextSource] = {}
        for task, doc_id, text, category, source in requests:
            # lm_eval repeats requests so that all processes have as many.
            documents[task][doc_id] = TextDocument(int(doc_id or 0), text, category)
            sources[task] = source
        records = {}
        for task, of_task in documents.items():
            measured = self._kept(model, task, sources[task], list(of_task.values()), original, journal, show)
            self.by_task[task] = measured.facts
            if measured.effective_compute is not None:
                self.effective_compute[task] = measured.effective_compute
            records |= {(task, doc_id): record for doc_id, record in zip(of_task, measured.records, strict=True)}
        return [records[request.task, request.doc_id] for request in requests]

    def _kept(
        self,
        model: SplicedModel,
        task: str,
        source: TextSource,
        documents: list[TextDocument],
        original: Original,
        journal: Journal | None,
        show: bool,
    ) -> MeasuredText:
        """By the journal, or measured now."""
        title = f"Scoring {task}" if show else None
        if journal is None or PartialState().num_processes > 1:  # what one had kept the others might not have
            return measure_documents(model, source, documents, original, self._layouts, title, task)
        models = model.identity()
        what = json.dumps([task, asdict(source), [asdict(each) for each in documents], asdict(original)])
        key = hashlib.sha256(what.encode()).digest()
        if (kept := journal.get(models, key)) is not None:
            return MeasuredText(*json.loads(kept))
        measured = measure_documents(model, source, documents, original, self._layouts, title, task)
        journal.put(models, {key: json.dumps(measured).encode()})
        return measured


def measure_documents(
    model: SplicedModel,
    source: TextSource,
    documents: list[TextDocument],
    original: Original,
    layouts: dict[tuple[str, ...], Layout],
    title: str | None = None,
    task: str = "",
) -> MeasuredText:
    """The sums of each document, and what judges them; a progress bar is called `title`.

    `layouts` are those found before, and are added to. The `task` says on which text a law is
    calibrated. Raises `UserError` where the model cannot be scored.
    """
    try:
        ablated, mean = ablations(model, source)
        pass_ = Pass(model, ablated, source, documents, layouts)
        with counting(len(documents), title, model.group.progress) as tell:
            pass_.run(tell)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"The sae_fidelity tasks cannot be run on this model: {error}.") from error
    out = pass_.records()
    # As one process has them, so that as many processes as you like draw the same documents.
    everywhere = sorted(gathered(out), key=lambda record: record["document"])
    facts = {
        "text": source.name,
        "split": source.split,
        "documents": len(everywhere),
        "tokens": sum(record["tokens"] for record in everywhere),
        "positions": source.positions,
        "left_out_of_the_dictionaries_statistics": sorted(pass_.left_out),
        "first_positions_counted": {s.site_out.hook: s.first_position for s in model.variant.splices},
        "mean": mean,
        "bootstrap": {"seed": metrics.SEED, "most_resamples": metrics.RESAMPLES},
        "undefined": undefined(everywhere) | without_latents(model.variant) | (without_dictionary(model.variant) or {}),
        "by_category": by_categories(everywhere),
    }
    if pass_.watch is not None:
        facts["as_released"] = as_released(model.variant, everywhere)
        for check in facts["as_released"]:
            tell = logger.warning if check["agrees"] is False else logger.info
            tell("%s: %s", check["dictionary"], check["verdict"])
    if model.variant.is_baseline:
        return MeasuredText(out, facts)
    compute = compute_of(everywhere, original, task)
    # Of the text, not of a document; it is handed to the task with each.
    return MeasuredText([{**record, "effective_compute": compute["fraction"]} for record in out], facts, compute)


class Pass:
    """One pass over documents by the baseline, the model's variant where it splices, and ablations of its sites."""

    def __init__(
        self,
        model: SplicedModel,
        ablated: list[Variant],
        source: TextSource,
        documents: list[TextDocument],
        layouts: dict[tuple[str, ...], Layout],
    ) -> None:
        self.model, self.documents, self.layouts = model, documents, layouts
        self.spliced, self.ablated = [] if model.variant.is_baseline else [model.variant], ablated
        only_spliced = source.positions == "non_special"
        self.dropped = model.tokens.special_ids | model.variant.special_ids if only_spliced else frozenset[int]()
        self.first = model.variant.first_position if only_spliced else 0
        self.names = sorted({document.category for document in documents}, key=str)
        self.kinds = [self.names.index(document.category) for document in documents]
        self.numbers = [document.number for document in documents]
        self.sums: list[dict[str, Any]] = [{} for _ in documents]
        self.left_out: frozenset[int] = self.dropped
        self.watch: DictionaryStatistics | None = None
        if self.spliced:
            self.left_out |= model.variant.special_ids
            if model.variant.splices and not without_dictionary(model.variant):
                self.watch = DictionaryStatistics(model.variant, self.numbers, self.kinds, self.left_out)

    def run(self, tell: Callable[[int], object]) -> None:
        """Raises `ValueError` where the model cannot be scored."""
        alone = bool(self.ablated) and leave_no_text(self.model.model, self.ablated)
        apart = self._scorer(self.ablated) if alone else None
        scorer = self._scorer(self.spliced if alone else [*self.spliced, *self.ablated])
        start, queries, owners = 0, [], []
        for number, document in enumerate(self.documents):
            windows = self.model.rolling(document.text)
            self.sums[number] = self._nothing(document)
            queries += windows
            owners += [number] * len(windows)
            whole = sum(len(query.targets) for query in queries) >= TOKENS_AT_ONCE
            if whole or number == len(self.documents) - 1:
                if queries:
                    self._score(scorer, queries, owners)
                if queries and apart is not None:
                    self._score_ablated(apart, queries, owners)
                tell(number + 1 - start)
                start, queries, owners = number + 1, [], []

    def _scorer(self, variants: Sequence[Variant]) -> Scorer:
        """One whose layout is found already, where the model was scored in the same way before."""
        modes = tuple(splice.mode for variant in variants for splice in variant.splices)
        key = (self.model.identity(), *modes)
        scorer = self.model.scorer(variants, self.layouts.get(key))
        self.layouts[key] = scorer.layout
        return scorer

    def _nothing(self, document: TextDocument) -> dict[str, Any]:
        zeros = {"tokens": 0, "bytes": len(document.text.encode())}
        names = ["nll_baseline", "nats_baseline"]
        if self.spliced:
            names += ["nll_spliced", "nats_spliced", *MEASURES, *(["nll_zero"] if self.ablated else [])]
            if len(self.ablated) > 1:
                names.append("nll_mean")
        sums: dict[str, Any] = zeros | dict.fromkeys(names, 0.0)
        return sums | {"nll_mean": None} if len(self.ablated) == 1 else sums

    def _score(self, scorer: Scorer, queries: list[Query], owners: list[int]) -> None:
        if self.watch is not None:
            self.watch.documents = owners
        measures = MEASURES if self.spliced else ()
        compared = len(self.spliced)
        done = self._adding(self._add, queries, owners)
        request = ScoreRequest(queries, measures, greedy=False, compared=compared, watch=self.watch)
        scorer.score(request, done)

    def _score_ablated(self, scorer: Scorer, queries: list[Query], owners: list[int]) -> None:
        """By a scorer of the ablations alone, which leave of a text no more than what is asked."""
        ablated = self.ablated[0]
        ablated_queries = without_text(queries, scorer.model, ablated.special_ids, ablated.first_position)
        done = self._adding(self._add_ablated, queries, owners)
        scorer.score(ScoreRequest(ablated_queries, measures=(), greedy=False, compared=0), done)

    def _adding(
        self, add: Callable[[dict[str, Any], Query, Scores], None], queries: Sequence[Query], owners: Sequence[int]
    ) -> Callable[[Mapping[int, Scores]], None]:
        def done(scored: Mapping[int, Scores]) -> None:
            for number, scores in scored.items():
                add(self.sums[owners[number]], queries[number], scores)

        return done

    def _add(self, sums: dict[str, Any], query: Query, scores: Scores) -> None:
        nll, kept = self._nll(scores), self._kept(query)
        measures = {name: values[0].astype(np.float64) for name, values in scores.measures.items()}
        if self.spliced and self.model.variant.changes_nothing:
            # Nothing is edited: another row of the batch may differ in the last bit, which says nothing of a splice.
            nll[1] = nll[0]
            measures = {name: np.full(nll.shape[1], float(name == "agreement")) for name in measures}
        sums["tokens"] += int(kept.sum())
        for name, values in zip(("baseline", "spliced"), nll, strict=False):
            sums[f"nll_{name}"] += float(values[kept].sum())
            sums[f"nats_{name}"] += float(values.sum())
        for name, values in measures.items():
            sums[name] += float(values[kept].sum())
        self._add_losses(sums, nll[2:], kept)

    def _add_ablated(self, sums: dict[str, Any], query: Query, scores: Scores) -> None:
        self._add_losses(sums, self._nll(scores)[1:], self._kept(query))

    @staticmethod
    def _add_losses(sums: dict[str, Any], nll: np.ndarray, kept: np.ndarray) -> None:
        """Of the ablations, as many as there are."""
        for name, values in zip(("zero", "mean"), nll, strict=False):
            sums[f"nll_{name}"] += float(values[kept].sum())

    def _nll(self, scores: Scores) -> np.ndarray:
        """Of each model, (models, targets), float64. Raises `UserError` where it is not finite."""
        nll = -scores.logprob.astype(np.float64)
        if not np.isfinite(nll).all():
            raise UserError(f"Some log-probability of a document is not finite with '{self.model.name}'.")
        return nll

    def _kept(self, query: Query) -> np.ndarray:
        """Which of its targets count."""
        return query.spliced(self.dropped, self.first)[-len(query.targets) :]

    def records(self) -> list[dict[str, Any]]:
        """By document, once all processes are done."""
        document_records = [
            {"document": d.number, "category": d.category, **sums}
            for d, sums in zip(self.documents, self.sums, strict=True)
        ]
        if self.watch is None:
            return document_records
        for record in document_records:
            record["dictionaries"] = {}
        for splice, sums in zip(self.watch.variant.splices, self.watch.sums, strict=True):
            own = dict(zip(self.names, by_category(sums, self.kinds), strict=True))
            parts: dict[str | None, CategorySums] = {}
            for name, part in gathered(list(own.items())):
                parts[name] = part if name not in parts else parts[name].plus(part)
            whole = reduce(CategorySums.plus, parts.values())
            of_document = records(sums, self.numbers, self.kinds, whole, [parts[name] for name in self.names])
            for record, dictionary in zip(document_records, of_document, strict=True):
                record["dictionaries"][splice.site_out.hook] = dictionary
        return document_records


def without_dictionary(variant: Variant) -> dict[str, str] | None:
    """Why there are no metrics of a dictionary, by metric, where the mode leaves none in the model; else None."""
    modes = {splice.mode for splice in variant.splices}
    if not modes or not modes <= set(WITHOUT_DICTIONARY):
        return None
    why = NO_DICTIONARY.format(" and ".join(sorted(modes)))
    return {name: why for name, _ in metrics_by_splice(variant, metrics.DICTIONARY_METRICS)}


def without_latents(variant: Variant) -> dict[str, str]:
    """Why there is nothing to count, by metric, where a dictionary has no latents."""
    counted = metrics_by_splice(variant, OF_LATENTS)
    return {name: NO_LATENTS for name, splice in counted if splice.dictionary.d_dictionary is None}


def metrics_by_splice(variant: Variant, names: Iterable[str]) -> Iterator[tuple[str, Splice]]:
    """Metrics of a dictionary as `metrics.metrics_of` calls them, each with the splice that it is of."""
    for splice in variant.splices:
        for name in names:
            yield name if len(variant.splices) == 1 else f"{name}/{splice.site_out.hook}", splice


def undefined(document_records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Why, for each metric that has no value."""
    values = metrics.metric_values(document_records)
    return {
        name: metric.undefined for name, metric, _ in metrics.metrics_of(document_records[0]) if values[name] is None
    }


def by_categories(document_records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The metrics of each category's documents; none where the text has no categories."""
    out = {}
    for name in sorted({record["category"] for record in document_records} - {None}):
        of_category = [record for record in document_records if record["category"] == name]
        tokens = sum(record["tokens"] for record in of_category)
        table = metrics.metric_values(of_category, within="category")
        out[name] = {"documents": len(of_category), "tokens": tokens, **table}
    return out
