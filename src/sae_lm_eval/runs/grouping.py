"""Which variants are evaluated in one forked pass: as many as there is memory for their dictionaries."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from sae_lm_eval.runtime.devices import free_memory

AT_ONCE = 8  # variants in one pass, so that their rows stay within memory
SHARE = 0.5  # of what is free, for dictionaries; activations and logits need the rest
GB = 10**9


def divide(sizes: Mapping[str, Mapping[Hashable, int]], budget: float, most: int = AT_ONCE) -> list[list[str]]:
    """The variants in their order, in groups of at most `most` whose dictionaries take at most `budget` bytes.

    `sizes` gives for each variant the bytes of its dictionaries; one that several variants of a group share counts
    once. A variant that is larger by itself is a group of its own.
    """
    groups: list[list[str]] = []
    held: dict[Hashable, int] = {}
    for name, dictionaries in sizes.items():
        together = {**held, **dictionaries}
        if not groups or len(groups[-1]) >= most or sum(together.values()) > budget:
            groups.append([])
            together = dict(dictionaries)
        groups[-1].append(name)
        held = together
    return groups


def memory_for_dictionaries(device: str) -> float:
    """Bytes: `SHARE` of what is free on the device, or on this machine where it is no GPU."""
    return SHARE * free_memory(device)
