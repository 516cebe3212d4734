"""The trunk of a causal language model apart from its head, so that the head runs only where it is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.scoring.patching import instead


class Head:
    """What the model makes of its trunk's last hidden states.

    It is the model's own `forward` with the trunk's output put in its place, so that soft-capping and scaling of
    the logits happen as the model has them. `trunk` is the module to call with token ids.

    Raises `ValueError` where the model has no such module.
    """

    def __init__(self, model: Any):
        self.model = model
        ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
        seen: dict[nn.Module, Any] = {}
        candidates = [model.base_model, model.get_decoder()]
        handles = [
            module.register_forward_hook(lambda module, _args, output: seen.setdefault(module, output))
            for module in dict.fromkeys(candidates)
            if module is not model
        ]
        try:
            with torch.no_grad():
                model(input_ids=ids)
        finally:
            for handle in handles:
                handle.remove()
        found = [module for module in candidates if getattr(seen.get(module), "last_hidden_state", None) is not None]
        if not found:
            raise ValueError(f"{type(model).__name__} has no trunk whose last hidden state could be taken")
        self.trunk: Any = found[0]
        self._output = type(seen[self.trunk])

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocabulary) of hidden states (n, width)."""
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with instead(self.trunk, "forward", lambda *_args, **_kwargs: self._output(last_hidden_state=hidden[None])):
            return self.model(input_ids=ids, use_cache=False).logits[0]
