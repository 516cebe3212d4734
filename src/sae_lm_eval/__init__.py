"""Evaluate language models with sparse autoencoders spliced in, through lm-evaluation-harness."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lm_eval.dictionaries.dictionary import Dictionary
    from sae_lm_eval.dictionaries.spec import SaeSpec
    from sae_lm_eval.errors import UserError
    from sae_lm_eval.harness.model import SaeHFLM
    from sae_lm_eval.report.findings import compare
    from sae_lm_eval.results.results import read_results
    from sae_lm_eval.runs.run import run
    from sae_lm_eval.scaling import effective_compute

__all__ = ["Dictionary", "SaeHFLM", "SaeSpec", "UserError", "compare", "effective_compute", "read_results", "run"]

_HOMES = {
    "Dictionary": "dictionaries.dictionary",
    "SaeHFLM": "harness.model",
    "SaeSpec": "dictionaries.spec",
    "UserError": "errors",
    "compare": "report.findings",
    "effective_compute": "scaling",
    "read_results": "results.results",
    "run": "runs.run",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sae-lm-eval")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
