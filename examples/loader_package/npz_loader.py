"""Sparse autoencoders in .npz files, for sae-lm-eval."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sae_lm_eval import Dictionary, SaeSpec, UserError

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Relu(nn.Module):
    """Latents relu(x W_enc + b_enc), output latents W_dec + b_dec."""

    W_enc: nn.Parameter  # (d_in, d_dictionary)
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, array in weights.items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array)))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_enc + self.b_enc)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) @ self.W_dec + self.b_dec


def load_npz(spec: SaeSpec) -> Dictionary:
    """Raises `UserError` where there is no such file, or an array is missing."""
    if not Path(spec.source).is_file():
        raise UserError(f"'{spec}' is no file. Name an .npz with the arrays {', '.join(WEIGHTS)}.")
    with np.load(spec.source) as file:
        if missing := [name for name in WEIGHTS if name not in file]:
            raise UserError(f"'{spec}' has no array {missing[0]}.")
        module = Relu({name: file[name] for name in WEIGHTS})
    d_in, d_dictionary = module.W_enc.shape
    return Dictionary(
        name=str(spec),
        module=module,
        reconstruct=module,
        encode=module.encode,
        architecture="standard",
        d_in=d_in,
        d_out=d_in,
        d_dictionary=d_dictionary,
        hook_in=None,  # the file does not say: the user gives hook=
        hook_out=None,
    )
