"""Training classes of SAELens in the form in which they are used after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REMARK = "a {} in training, put into the form in which SAELens saves it for inference"


def inference_form(sae: Any) -> tuple[Any, tuple[str, ...]]:
    """`sae` itself, or what `sae.save_inference_model` would save of it if it is in training; and a remark on that.

    What is being trained may depend on its batch (BatchTopK, Matryoshka) or on chance; what is saved does not.
    """
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, TrainingSAE):
        return sae, ()
    weights = {name: weight.detach().clone() for name, weight in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(weights)
    inference_sae = SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    inference_sae.process_state_dict_for_loading(weights)
    inference_sae.load_state_dict(weights)
    return inference_sae.to(device=sae.device, dtype=sae.dtype), (REMARK.format(type(sae).__name__),)


def load_checkpoint(folder: Path) -> Any:
    """What SAELens saved while training. Raises as its own loader does."""
    from sae_lens import TrainingSAE

    return TrainingSAE.load_from_disk(folder)


def is_in_training(architecture: str | None) -> bool:
    """Whether SAELens has `architecture` for training alone."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    return architecture in SAE_TRAINING_CLASS_REGISTRY and architecture not in SAE_CLASS_REGISTRY
