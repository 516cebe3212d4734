"""The trunk of a causal language model apart from its head, so that the head runs only where it is needed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.splicing.patching import instead


class Head:
    """What the model makes of its trunk's last hidden states.

    It is the model's own `forward` with the trunk's output put in its place, so that soft-capping and scaling of
    the logits happen as the model has them. `trunk` is the module to call with token ids.

    Raises `ValueError` where the model has no such module.
    """

    def __init__(self, model: Any):
        self.model = model
        ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
        outputs: dict[nn.Module, Any] = {}

        def keep(module: nn.Module, _args: tuple, output: Any) -> None:
            outputs.setdefault(module, output)

        candidates = [model.base_model, model.get_decoder()]
        with torch.no_grad(), attention_without_plans(), ExitStack() as scope:
            for module in dict.fromkeys(candidates):
                if module is not model:
                    scope.callback(module.register_forward_hook(keep).remove)
            model(input_ids=ids)
        trunks = [m for m in candidates if getattr(outputs.get(m), "last_hidden_state", None) is not None]
        if not trunks:
            raise ValueError(f"{type(model).__name__} has no trunk whose last hidden state could be taken")
        self.trunk: Any = trunks[0]
        self._output = type(outputs[self.trunk])

    def __call__(self, hidden: Float[Tensor, "positions width"]) -> Float[Tensor, "positions vocabulary"]:
        """Logits of hidden states."""
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        # `forward` of the trunk gives what it has computed already; the ids say no more than how many positions.
        output = self._output(last_hidden_state=hidden[None])

        def computed(*_args: Any, **_kwargs: Any) -> Any:
            return output

        with instead(self.trunk, "forward", computed):
            return self.model(input_ids=ids, use_cache=False).logits[0]
