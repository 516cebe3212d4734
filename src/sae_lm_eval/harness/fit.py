"""How well dictionaries fit a text, and whether they are as their releases say: else, what would make them so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae_lm_eval.dictionaries import stated
from sae_lm_eval.errors import UserError
from sae_lm_eval.fidelity import metrics
from sae_lm_eval.splicing.activation_map import build_map
from sae_lm_eval.splicing.activations import passing
from sae_lm_eval.splicing.choices import MAPS
from sae_lm_eval.splicing.cross_layer_sums import LayerSums
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.module_io import ModuleSide
from sae_lm_eval.splicing.site import Site, resolve_site
from sae_lm_eval.splicing.special_tokens import spliced_positions
from sae_lm_eval.splicing.splice import Splice

# Where a dictionary may belong that is said to belong elsewhere in a layer, or one layer off.
NEAR = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


@dataclass(frozen=True)
class Fit:
    """How well one way of splicing a dictionary fits: a fraction of variance, and means over `tokens` positions.

    `map` is the activation map or, of another alternative, what is done instead. `explained_variance` and `fvu` are as
    in `fidelity.metrics`, None where what passes is the same at every position. `l0_later` is the L0 behind the first
    positions of each window; the norms are those of what the dictionary reads and stands for, in its own space.
    `released` says of the way that is chosen whether the numbers are those of the release.
    """

    map: str
    explained_variance: float | None
    fvu: float | None
    l0: float | None
    tokens: int
    l0_later: float | None = None
    norm_in: float | None = None
    norm_out: float | None = None
    released: str | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """By the names of `dictionaries.stated`."""
        return {name: getattr(self, name) for name in ("l0", "l0_later", "norm_in", "norm_out", "fvu")}

    def checks(self, said: Mapping[str, float]) -> list[stated.Check]:
        return stated.checks(said, self.numbers)


def fits_of(model: Any, splice: Splice, texts: Sequence[Sequence[int]], special_ids: frozenset[int]) -> list[Fit]:
    """The fit of every map that the splice's site allows, the chosen one first and judged by what its release says.

    Raises `UserError` for a text at no position of which the dictionary is spliced in, and where nothing passes it.
    """
    architecture, said = Architecture(model), splice.dictionary.stated
    fits = _measured(model, with_maps(architecture, splice), texts, special_ids)
    if not fits:
        raise UserError(not_met(splice, texts, special_ids))
    chosen, *others = (
        fits  # all maps have the splice's own sites: they are measured at the same positions or not at all
    )
    checks = chosen.checks(said)
    if not checks or all(check.agrees for check in checks):
        return [replace(chosen, released=stated.verdict(checks)), *others]
    near = _measured(model, elsewhere(architecture, splice, chosen), texts, special_ids)
    candidates = [fit for fit in (*others, *near) if all(check.agrees for check in fit.checks(said))]
    best = min(candidates, key=lambda fit: sum(abs(math.log(check.ratio)) for check in fit.checks(said)), default=None)
    fitting = None
    if best is not None:
        what = f"hook_map={best.map}" if best in others else best.map
        fitting = f"{what} fits ({', '.join(map(str, best.checks(said)))})"
    return [replace(chosen, released=stated.verdict(checks, fitting)), *others]


def not_met(splice: Splice, texts: Sequence[Sequence[int]], special_ids: frozenset[int]) -> str:
    """Why a dictionary met nothing in a text: it is spliced in at no position, or nothing passed its site."""
    name, first = splice.dictionary.name, splice.first_position
    if any(len(_places(ids, special_ids, first)) for ids in texts):
        return f"Nothing that {name} reads passes its site while the model reads this text. Give another hook."
    beginning = f" and of the first {first} positions" if first else ""
    return f"{name} is spliced in nowhere in this text, which consists of special tokens{beginning}. Give another text."


def _places(ids: Sequence[int], special_ids: frozenset[int], first: int) -> Tensor:
    """The positions of a window at which a dictionary is spliced in."""
    return spliced_positions(torch.tensor(list(ids)), torch.arange(len(ids)), special_ids, first).nonzero()[:, 0]


def with_maps(architecture: Architecture, splice: Splice) -> dict[str, Splice]:
    """The splice itself, then with every other map that makes sense at its sites, by the map's name."""
    candidates = {splice.map_out.name: splice}
    for name in MAPS:
        try:
            maps = [build_map(architecture, site, name) for site in (splice.site_in, splice.site_out)]
        except UserError:
            continue  # a map that makes no sense at this site
        candidates.setdefault(name, replace(splice, map_in=maps[0], map_out=maps[1]))
    return candidates


def elsewhere(architecture: Architecture, splice: Splice, fit: Fit) -> dict[str, Splice]:
    """The splice at sites nearby, and on activations of the norm that many releases train on, by what is done."""
    splices: dict[str, Splice] = {}
    dictionary, layer = splice.dictionary, splice.site_out.layer
    if layer is not None and not dictionary.is_transcoder:
        hooks = [f"blocks.{layer}.{name}" for name in NEAR]
        hooks += [f"blocks.{other}.hook_resid_post" for other in (layer - 2, layer + 1)]
        for hook in hooks:
            site = _site(architecture, hook)
            if site is not None and site.read != splice.site_out.read:
                splices[f"hook={hook}"] = replace(splice, site_in=site, site_out=site)
    if fit.norm_in:
        (d_in, d_out), encode = dictionary.widths, dictionary.encode
        factor = d_in**0.5 / fit.norm_in
        out = factor if not dictionary.is_transcoder or not fit.norm_out else d_out**0.5 / fit.norm_out
        scaled = replace(
            dictionary,
            reconstruct=lambda x: dictionary.reconstruct(x * factor) / out,
            encode=None if encode is None else lambda x: encode(x * factor),
        )
        splices[f"a factor of {factor:.4g} on its activations"] = replace(splice, dictionary=scaled)
    return splices


def _site(architecture: Architecture, hook: str) -> Site | None:
    try:
        return resolve_site(architecture, hook)
    except UserError:
        return None  # a block that has no such hook, or no such block


@dataclass
class _Sums:
    count: int = 0
    later: int = 0
    missed: float = 0.0
    active: float = 0.0
    active_later: float = 0.0
    norm_in: float = 0.0
    norm_out: float = 0.0
    square: float = 0.0
    total: Tensor | float = 0.0


def _measured(
    model: Any, splices: Mapping[str, Splice], texts: Sequence[Sequence[int]], special_ids: frozenset[int]
) -> list[Fit]:
    """In one pass of each window."""
    if not splices:
        return []
    sites = [site for each in splices.values() for site in (*each.earlier, each.site_in, each.site_out)]
    ports: list[ModuleSide] = list(dict.fromkeys(site.read for site in sites))
    sums = {name: _Sums() for name in splices}
    first = next(iter(splices.values())).first_position  # one splice's, in several guises
    every = passing(model, ports, texts, special_ids, dict.fromkeys(ports, first))
    for ids, seen in zip(texts, every, strict=True):
        places = _places(ids, special_ids, first)
        for name, splice in splices.items():
            x, y = seen.get(splice.site_in.read), seen.get(splice.site_out.read)
            if x is not None and y is not None and x.shape[-1] == splice.dictionary.d_in and len(places):
                _add(sums[name], splice, seen, places >= stated.EARLY)
    return [_fit(name, each) for name, each in sums.items() if each.count]


@torch.no_grad()
def _add(sums: _Sums, splice: Splice, seen: Mapping[ModuleSide, Tensor], later: Tensor) -> None:
    """What passes in one window, (positions, width) by module."""
    dictionary, x, y = splice.dictionary, seen[splice.site_in.read], seen[splice.site_out.read]
    if dictionary.cross_layer is None:
        z = splice.reconstruct(x[None], y[None])[0]
    else:
        written = LayerSums([splice], seen).output(dictionary.cross_layer, splice, x)
        z = splice.map_out.back(written, y.to(dictionary.device, dictionary.dtype))
    read = splice.dictionary_input(x)
    active = torch.full((len(y),), math.nan)
    if dictionary.encode is not None:
        active = (dictionary.encode(read[None])[0] != 0).sum(-1).cpu()
    sums.count += len(y)
    sums.later += int(later.sum())
    sums.missed += float((z - y.to(z)).double().pow(2).sum())
    sums.active += float(active.sum())
    sums.active_later += float(active[later].sum())
    sums.norm_in += float(read.double().norm(dim=-1).sum())
    sums.norm_out += float(splice.map_out.there(y).double().norm(dim=-1).sum())
    sums.square += float(y.double().pow(2).sum())
    sums.total = sums.total + y.double().sum(0).cpu()


def _fit(name: str, sums: _Sums) -> Fit:
    n = sums.count
    deviation = sums.square - float(torch.as_tensor(sums.total).pow(2).sum()) / n
    error = metrics.array([[sums.missed, deviation]])
    return Fit(
        name,
        explained_variance=metrics.DICTIONARY_METRICS["explained_variance"].value(error),
        fvu=metrics.DICTIONARY_METRICS["fvu"].value(error),
        l0=None if math.isnan(sums.active) else sums.active / n,
        tokens=n,
        l0_later=sums.active_later / sums.later if sums.later and not math.isnan(sums.active) else None,
        norm_in=sums.norm_in / n,
        norm_out=sums.norm_out / n,
    )
