"""The fidelity task under the name that task files use: `class: !function sae_lm_eval.fidelity_task.FidelityTask`."""

from sae_lm_eval.harness.fidelity_task import FidelityTask, documents_of_file

__all__ = ["FidelityTask", "documents_of_file"]
