"""lm_eval's own settings of a run, and which of them an answer depends on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.runs.sweep import Sweep

# What cannot change an answer, so that a run may be continued with another.
FREE = frozenset(
    {"batch_size", "max_batch_size", "device", "verbosity", "output_path", "hf_hub_log_args", "show_config"}
)


def lm_eval_config(sweep: Sweep) -> Any:
    """lm_eval's reading of its settings. Raises `UserError` for what it refuses."""
    from argparse import Namespace

    from lm_eval.config.evaluate_config import EvaluatorConfig

    if not sweep.settings.get("tasks"):
        raise UserError("--tasks is missing: name tasks of lm_eval's, as in --tasks blimp,lambada_openai.")
    if (limit := sweep.settings.get("limit")) is not None:
        check_limit(limit)
    given = {**sweep.settings, "model": "sae_hf", "model_args": dict(sweep.model_args)}
    try:
        return EvaluatorConfig.from_cli(Namespace(**given))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(f"lm_eval does not take these settings: {first_line(error)}") from error


def check_limit(limit: Any) -> None:
    """Raise `UserError` for a limit that leaves no document, which lm_eval takes for none at all."""
    try:
        enough = not isinstance(limit, bool) and 0 < float(limit) < float("inf")
    except (TypeError, ValueError):
        enough = False
    if not enough:
        raise UserError(
            f"limit: {limit!r} leaves no document to ask: give the number of documents, a share of them below 1, or "
            f"nothing for all."
        )


def fixed(settings: Any) -> dict[str, Any]:
    """Those that a run cannot be continued without."""
    return {name: value for name, value in asdict(settings).items() if name not in FREE and name != "model_args"}
