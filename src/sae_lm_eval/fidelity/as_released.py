"""Whether the dictionaries of a variant had on a text the numbers that their releases state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_lm_eval.dictionaries import stated
from sae_lm_eval.fidelity import metrics
from sae_lm_eval.splicing.splice import Splice, Variant

HINT = "wrong hook, map, norm or positions? 'sae-lm-eval inspect --text FILE' tries others"


def as_released(variant: Variant, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each splice the site, one sentence, and the numbers; see `dictionaries.stated.record`.

    `records` are the documents' sums of every process.
    """
    sites = [splice.site_out.hook for splice in variant.splices]
    sums = [[record["dictionaries"][site] for record in records] for site in sites]
    return [_of(splice, own) for splice, own in zip(variant.splices, sums, strict=True)]


def _of(splice: Splice, sums: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    names = [name for name, value in sums[0].items() if value is not None] if sums else []
    total = {name: sum(document_sums[name] for document_sums in sums) for name in names}
    means = {name: _mean(total, name, "positions") for name in ("l0", "norm_in", "norm_out")}
    means |= {"l0_later": _mean(total, "l0_later", "later")}
    fvu = metrics.DICTIONARY_METRICS["fvu"]
    rows = metrics.array([metrics.row({"dictionaries": {"": document_sums}}, fvu, "") for document_sums in sums])
    checks = stated.checks(splice.dictionary.stated, {**means, "fvu": fvu.value(rows) if len(rows) else None})
    return {
        "dictionary": splice.dictionary.name,
        "site": splice.site_out.hook,
        **stated.checks_record(checks, stated.verdict(checks, HINT)),
    }


def _mean(total: Mapping[str, float], name: str, count: str) -> float | None:
    return total[name] / total[count] if total.get(count) and name in total else None
