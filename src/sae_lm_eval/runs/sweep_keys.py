"""The keys of a sweep file."""

from __future__ import annotations

from sae_lm_eval.runs.lm_eval_source import evaluator_settings

OURS = (
    *("model_args", "variants", "controls", "mean_text", "mean_tokens", "categories", "docs_by", "memory", "ray"),
    "output_path",
)
NOT_FOR_RUN = (
    "config",
    "model",
    "wandb_args",
    "wandb_config_args",
    "trackio_args",
    "log_samples",
    "show_config",
    "predict_only",
)


def lm_eval_settings() -> list[str]:
    """The names of lm_eval's settings that a run takes."""
    return [name for name in evaluator_settings() if name not in (*NOT_FOR_RUN, *OURS)]
