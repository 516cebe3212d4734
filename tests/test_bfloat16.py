"""bfloat16 is as far from float32 as docs/bfloat16.md says, on every architecture."""

from __future__ import annotations

import bfloat16
import pytest
import torch
from models import ARCHITECTURES

FACTOR = 1.5  # between kernels of one machine and another


def test_every_architecture_is_stated():
    assert {architecture for architecture, _ in bfloat16.stated(torch.float32)} == set(ARCHITECTURES)
    assert len(bfloat16.stated(torch.float32)) == len(ARCHITECTURES) * len(bfloat16.MODELS)
    assert len(bfloat16.stated(torch.bfloat16)) == len(ARCHITECTURES) * (len(bfloat16.MODELS) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32 dictionary", "bfloat16 dictionary"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_as_far_from_float32_as_stated(architecture, dtype):
    for (name, variant), row in bfloat16.stated(dtype).items():
        if name != architecture:
            continue
        median, rare, likeliest, l0, l0_in_half, differ, engine = row
        now = bfloat16.measured(architecture, variant, dtype)
        assert 0 < now[0] <= FACTOR * median
        assert now[1] <= 2 * rare
        assert now[2] <= FACTOR * likeliest + 0.01
        if l0 is not None:
            assert now[3] == pytest.approx(l0, abs=0.01)
            assert now[4] == pytest.approx(l0_in_half, rel=0.005)
            assert now[5] <= FACTOR * differ
            assert now[6] <= engine + 0.1 * median
