"""What a sweep would run, how much memory it takes and how long, from names and configurations: nothing is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sae_lm_eval.catalog.hub_headers import headers_of
from sae_lm_eval.catalog.lookup import DictionaryFacts
from sae_lm_eval.errors import UserError
from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.runs.grouping import GB, divide, memory_for_dictionaries
from sae_lm_eval.runs.sweep import Sweep, VariantRequest
from sae_lm_eval.runtime.progress import duration
from sae_lm_eval.runtime.run_files import Pace, read_groups, read_pace
from sae_lm_eval.runtime.time_left import DOCUMENTS, PASSES_OF_VARIANT, REQUESTS, TEXTS
from sae_lm_eval.scoring.forked_pass import START, Point, earliest, fork_point, point_of
from sae_lm_eval.splicing.edit_spec import KINDS, edit_of
from sae_lm_eval.splicing.hook_names import Architecture, blocks_path
from sae_lm_eval.splicing.layer_choice import layers_of
from sae_lm_eval.splicing.model_edits import edited_bytes
from sae_lm_eval.splicing.splice import Variant

# Hooks at which the residual stream or a branch of its width passes.
AS_WIDE_AS_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_in")
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Planned:
    """A variant before anything is loaded.

    `point` is where its rows part from the baseline's, and `cost` what it adds, in forward passes; both None, and
    `sizes` the bytes of those dictionaries that names tell the shapes of, where `why` says what is not known.
    """

    request: VariantRequest
    sites: tuple[str, ...]
    point: Point | None
    cost: float | None
    sizes: Mapping[Hashable, int]
    whole: bool
    why: str | None = None


@dataclass(frozen=True)
class Plan:
    """`groups` names the variants of each forked pass; sizes in bytes; `pace` is what an earlier run measured."""

    model: str
    parameters: int
    model_bytes: int
    layers: int
    variants: tuple[Planned, ...]
    groups: tuple[tuple[str, ...], ...]
    budget: float
    kept_groups: bool
    finished: frozenset[str]
    pace: Pace | None

    def cost(self, group: Sequence[str]) -> float | None:
        """Of a group in forward passes, 1 + sum(1 - l / L) over the blocks l that are shared; None where not known."""
        costs = [variant.cost for variant in self.variants if variant.request.name in group]
        return None if any(cost is None for cost in costs) else 1 + sum(cost for cost in costs if cost is not None)

    @property
    def left(self) -> list[tuple[str, ...]]:
        """Groups that are not finished."""
        missing = [g for i, g in enumerate(self.groups) if not self.finished.issuperset((*g, *([BASELINE] * (not i))))]
        return list(missing)


def plan_sweep(sweep: Sweep, output_path: Path | None) -> Plan:
    """The plan of a sweep, with what an earlier run in `output_path` settled and measured.

    Raises `UserError` where there is no such model; what is wrong with a variant is said of it.
    """
    from sae_lm_eval.splicing.skeleton import skeleton

    model: Any = skeleton(sweep.model_args)
    device = sweep.settings.get("device")
    device = "cuda" if device is None else str(device)
    budget = memory_for_dictionaries(device) if sweep.memory is None else sweep.memory * GB
    planned = tuple(_planned(request, model) for request in sweep.variants)
    kept = read_groups(output_path) if output_path else None
    groups = kept.groups if kept else divide({variant.request.name: variant.sizes for variant in planned}, budget)
    names = [BASELINE, *(variant.request.name for variant in planned)]
    parameters = sum(p.numel() for p in model.parameters())
    return Plan(
        model=str(sweep.model_args["pretrained"]),
        parameters=parameters,
        model_bytes=parameters * _bytes_of(sweep.model_args.get("dtype"), model.config),
        layers=model.config.get_text_config().num_hidden_layers,
        variants=planned,
        groups=tuple(map(tuple, groups)),
        budget=budget,
        kept_groups=kept is not None,
        finished=frozenset(name for name in names if output_path and (output_path / name).exists()),
        pace=read_pace(output_path) if output_path else None,
    )


def cost_of(model: Any, variants: Sequence[Variant]) -> float:
    """Of one forked pass in plain ones: 1 + sum(1 - l / L), with l of L blocks shared with the baseline."""
    path = blocks_path(model)
    return 1 + sum(_cost(fork_point(variant, path), model) for variant in variants)


def _cost(point: Point, model: Any) -> float:
    if point.block is None:
        return 1.0
    shared = point.block + (point.side == "output")
    return 1 - shared / model.config.get_text_config().num_hidden_layers


def _planned(request: VariantRequest, model: Any) -> Planned:
    if "edit" in request.arguments:
        return _planned_edit(request, model)
    if "peft" in request.arguments:  # where its layers are is not known until it is loaded
        first = Point(0, "input")
        return Planned(request, (f"peft={request.arguments['peft']}",), first, _cost(first, model), {}, whole=False)
    try:
        dictionaries = [facts for spec in request.specs for facts in headers_of(spec)]
    except UserError as error:
        return Planned(request, (), None, None, {}, whole=False, why=str(error))
    bytes_each = BYTES.get(str(request.arguments.get("sae_dtype", "float32")), 4)
    sizes = {(facts.spec,): _parameters(facts, model.config.get_text_config()) for facts in dictionaries}
    given = {
        "sizes": {key: count * bytes_each for key, count in sizes.items() if count is not None},
        "whole": None not in sizes.values(),
    }
    if (layers := layers_of(request.arguments.get("splice_layers"))) is not None:
        if layers.best is not None:
            return Planned(request, (), None, None, **given, why="layers are chosen once the model is loaded")
        dictionaries = [facts for facts in dictionaries if facts.layer in layers]
    own = request.arguments.get("hook")
    hooks = [facts.hook_out for facts in dictionaries] if own is None else str(own).split("+")
    sites = tuple(str(hook).split(":")[-1] for hook in hooks if hook is not None)
    if len(sites) < len(dictionaries):
        return Planned(request, sites, None, None, **given, why="site not known until loaded")
    modules = [facts.module_out if own is None else None for facts in dictionaries]
    try:
        points = [_point(model, hook, module) for hook, module in zip(sites, modules, strict=True)]
    except (UserError, ValueError) as error:
        return Planned(request, sites, None, None, **given, why=str(error))
    first = earliest(points)
    return Planned(request, sites, first, _cost(first, model), **given)


def _planned_edit(request: VariantRequest, model: Any) -> Planned:
    """Of an edit of the model; a function of the user's own is not called on a model without weights."""
    edit = edit_of(request.arguments["edit"])
    assert edit is not None, "the variant has one"
    try:
        size = edited_bytes(model, edit) if edit.kind in KINDS else None
    except UserError as error:
        return Planned(request, (), None, None, {}, whole=False, why=str(error))
    first = Point(0, "input") if size is not None else START
    sizes: dict[Hashable, int] = {} if size is None else {request.name: size}
    return Planned(request, (edit.name,), first, _cost(first, model), sizes, whole=size is not None)


def _point(model: Any, hook: str, module: str | None) -> Point:
    from sae_lm_eval.splicing.site import resolve_site, writable_port

    architecture = Architecture(model)
    return point_of(writable_port(architecture, resolve_site(architecture, hook, module)), blocks_path(model))


def _parameters(facts: DictionaryFacts, config: Any) -> int | None:
    """Of encoder, decoder and their biases, None where the width of one of them is not known."""
    if facts.shapes is not None:
        return sum(prod(shape) for shape in facts.shapes.values())
    d_in, d_out = (_width_at(hook, config) for hook in (facts.hook_in, facts.hook_out))
    if facts.width is None or d_in is None or d_out is None:
        return None
    return (d_in + d_out) * facts.width + facts.width + d_out


def _width_at(hook: str | None, config: Any) -> int | None:
    name = (hook or "").split(".")[-1]
    if name in AS_WIDE_AS_STREAM:
        return config.hidden_size
    if name == "hook_z":
        heads = config.num_attention_heads
        return heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return None


def _bytes_of(dtype: Any, config: Any) -> int:
    name = str(dtype or "auto").removeprefix("torch.")
    stated = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return BYTES.get(stated if name == "auto" else name, 4)


def plan_sentences(plan: Plan) -> list[str]:
    """What the plan's table does not say: the model, memory, cost and time."""
    largest = max((_bytes(plan, group) for group in plan.groups), default=0)
    unknown = sum(not variant.whole for variant in plan.variants)
    memory = f"{_gb(plan.budget)} for dictionaries, of which the largest group takes {_gb(largest)}"
    if unknown:
        memory += f" besides those of {unknown} variants, whose size is not known until they are loaded"
    costs = [plan.cost(group) for group in plan.groups]
    apart = 1 + len(plan.variants)
    cost = "not known: see the variants"
    if None not in costs:
        cost = f"{sum(c for c in costs if c is not None):.2f} forward passes over the tasks, instead of {apart}"
    return [
        f"Model: {plan.model}, {plan.parameters:,} parameters, {_gb(plan.model_bytes)}, {plan.layers} blocks.",
        f"Memory: {memory}.",
        f"Groups: {len(plan.groups)}, {'as the run in the folder has them' if plan.kept_groups else 'by what is known'}"
        f"; {len(plan.finished)} of {apart} models are finished.",
        f"Cost: {cost}.",
    ]


def time_sentence(plan: Plan, of_baseline: Mapping[str, float] | None = None) -> str:
    """How long what is left takes, by what a run in the folder measured, or by `pace.seconds_of_baseline`."""
    costs = [plan.cost(group) for group in plan.left]
    cost = sum(c for c in costs if c is not None)
    if None in costs:
        return "Time: not estimated, since the cost of a variant is not known."
    if not costs:
        return "Time: nothing is left to run."
    if of_baseline is not None:
        baseline = int(BASELINE not in plan.finished)
        variants = sum(variant.request.name not in plan.finished for variant in plan.variants)
        times = {REQUESTS: cost, TEXTS: baseline + variants, DOCUMENTS: baseline + PASSES_OF_VARIANT * variants}
        seconds = sum(of_kind * times[kind] for kind, of_kind in of_baseline.items())
        return f"Time: about {duration(seconds)} for what is left, by a part of it that was run just now."
    if plan.pace is None:
        return "Time: not estimated, since nothing has been measured yet."
    seconds = cost * plan.pace.tokens / plan.pace.token_passes_per_second
    rate = f"{plan.pace.token_passes_per_second:,.0f} tokens a second and forward pass"
    return f"Time: about {duration(seconds)} for what is left, at {rate}, as the run in the folder measured."


def _bytes(plan: Plan, group: Sequence[str]) -> int:
    sizes: dict[Hashable, int] = {}
    for variant in plan.variants:
        if variant.request.name in group:
            sizes |= variant.sizes
    return sum(sizes.values())


def _gb(number: float) -> str:
    return f"{number / GB:,.2f} GB" if number >= GB / 100 else f"{number / 1e6:,.2f} MB"


HEADS = ("variant", "dictionaries", "sites", "from block", "size", "group", "state")


def _parting(point: Point | None) -> str:
    if point is None:
        return "?"
    return "start" if point.block is None else f"{point.block} {point.side}"


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The plan's table: a row for each variant, by `HEADS`."""
    group_of = {name: number for number, group in enumerate(plan.groups, start=1) for name in group}
    return [
        (
            variant.request.name,
            " + ".join(variant.request.specs),
            " + ".join(variant.sites) or "not known until loaded",
            _parting(variant.point),
            _gb(sum(variant.sizes.values())) if variant.whole else "unknown until loaded",
            str(group_of.get(variant.request.name, "")),
            "finished" if variant.request.name in plan.finished else (variant.why or "to run"),
        )
        for variant in plan.variants
    ]
