"""Devices by name, and whether this machine has them."""

from __future__ import annotations

import re

from sae_lm_eval.errors import UserError, did_you_mean

KINDS = ("cpu", "cuda", "mps", "npu", "hpu", "xpu", "auto")
ACCELERATORS = KINDS[1:-1]
LM_EVALS_DEFAULT = "cuda:0"


def check_device(device: object) -> None:
    """Raise `UserError` for a device that is none, or that torch does not find here; torch is imported for a GPU only.

    None is whatever there is.
    """
    if device is None:
        return
    name = str(device)
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", name)
    if match is None or match[1] not in KINDS:
        near = did_you_mean("cuda" if name.lower() == "gpu" else name.lower(), KINDS)
        raise UserError(f"'{name}' is no device.{near} Give cpu, cuda, cuda:1, mps, or none for what there is.")
    if match[1] in ACCELERATORS:
        _check_present(name, match[1], int(match[2] or 0))


def _check_present(name: str, kind: str, index: int) -> None:
    import torch

    module = getattr(torch, kind, None)
    if module is None or not module.is_available():
        raise UserError(
            f"There is no device '{name}' here: torch {torch.__version__} finds none. Leave it out, or give cpu."
        )
    count = module.device_count() if hasattr(module, "device_count") else 1
    if index >= count:
        has = f"{kind}:0" if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
        raise UserError(f"There is no device '{name}' here: torch finds {has}.")


def check_placement(device: object, parallelize: object) -> None:
    """Raise `UserError` where a model cannot be placed as lm_eval's `device` and `parallelize` ask; see `check_device`.

    lm_eval's command hands over cuda:0 where no device is named, on every machine.
    """
    import torch

    if torch.cuda.is_available() or str(device) != LM_EVALS_DEFAULT:
        check_device(device)
    if parallelize and not torch.accelerator.is_available():
        raise UserError(
            f"parallelize=True spreads a model over GPUs, and torch {torch.__version__} finds none here: leave it out."
        )


def default_device() -> str:
    """What is computed on where no device is named: the GPU, or the CPU where there is none."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def free_memory(device: str) -> int:
    """Bytes that nobody has on a GPU, or on this machine for any other device."""
    import psutil
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
