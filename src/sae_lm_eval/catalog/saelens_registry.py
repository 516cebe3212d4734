"""SAELens' registry without a network: what each dictionary reads and writes, and whether it can be spliced.

What SAELens will say of a dictionary is taken from its own code where that needs no file of the hub, and read off
names as its converters do where it does; `Entry.inferred` tells the two apart. Whether the site exists and can be
written is tried on a small random model of the base model's class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lm_eval.catalog.converters import CONVERTERS, NO_FACTOR, UNKNOWN
from sae_lm_eval.catalog.site_probe import SiteProbe, small_architecture, try_sites
from sae_lm_eval.dictionaries.model_names import distinct_models, official_name
from sae_lm_eval.dictionaries.release_facts import fact_of
from sae_lm_eval.dictionaries.saelens_package import check_pattern, releases

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup as Release

SUPPORTED, REFUSED = "supported", "refused"


class BaseModel(NamedTuple):
    """Base models whose name, without its organisation and in lower case, matches the glob `pattern`."""

    pattern: str
    family: str
    model_type: str  # of the hub's config.json, from which transformers chooses the class
    layers: int


MODELS = (
    BaseModel("gpt2", "GPT-2", "gpt2", 12),
    BaseModel("pythia-70m*", "Pythia", "gpt_neox", 6),
    BaseModel("gemma-2b*", "Gemma-1", "gemma", 18),
    BaseModel("gemma-2-2b*", "Gemma-2", "gemma2", 26),
    BaseModel("gemma-2-9b*", "Gemma-2", "gemma2", 42),
    BaseModel("gemma-2-27b*", "Gemma-2", "gemma2", 46),
    # The two small sizes of Gemma-3 are text models; the others read images too.
    BaseModel("gemma-3-270m*", "Gemma-3", "gemma3_text", 18),
    BaseModel("gemma-3-1b*", "Gemma-3", "gemma3_text", 26),
    BaseModel("gemma-3-4b*", "Gemma-3", "gemma3", 34),
    BaseModel("gemma-3-12b*", "Gemma-3", "gemma3", 48),
    BaseModel("gemma-3-27b*", "Gemma-3", "gemma3", 62),
    BaseModel("meta-llama-3-8b*", "Llama-3.x", "llama", 32),
    BaseModel("llama-3.1-8b*", "Llama-3.x", "llama", 32),
    BaseModel("llama-3.3-70b*", "Llama-3.x", "llama", 80),
    BaseModel("deepseek-r1-distill-llama-8b", "Llama-3.x", "llama", 32),
    BaseModel("mistral-7b*", "Mistral", "mistral", 32),
    BaseModel("qwen2.5-7b*", "Qwen2.5", "qwen2", 28),
    BaseModel("qwen3-0.6b*", "Qwen3", "qwen3", 28),
    BaseModel("qwen3-1.7b*", "Qwen3", "qwen3", 28),
    BaseModel("qwen3-4b*", "Qwen3", "qwen3", 36),
    BaseModel("qwen3-8b*", "Qwen3", "qwen3", 36),
    BaseModel("qwen3-14b*", "Qwen3", "qwen3", 40),
    BaseModel("qwen3-30b-a3b*", "Qwen3", "qwen3_moe", 48),
    BaseModel("qwen3.5-2b*", "Qwen3.5", "qwen3_5", 24),
    BaseModel("qwen3.5-9b*", "Qwen3.5", "qwen3_5", 32),
    BaseModel("qwen3.5-27b*", "Qwen3.5", "qwen3_5", 64),
    BaseModel("qwen3.5-35b-a3b*", "Qwen3.5", "qwen3_5_moe", 40),
    BaseModel("gpt-oss-20b", "gpt-oss", "gpt_oss", 24),
)


def base_model(name: str) -> BaseModel | None:
    """What `name` is, or None where the table knows neither it nor what it is an alias of."""
    short = name.rsplit("/", 1)[-1].lower()
    return _row(short) or _row(official_name(name))


@cache
def _row(short: str) -> BaseModel | None:
    return next((row for row in MODELS if fnmatchcase(short, row.pattern)), None)


@dataclass(frozen=True)
class Entry:
    """One registered dictionary. None in a field means that nothing short of the hub's files says it."""

    release: str
    id: str
    converter: str
    model: str
    base: BaseModel | None
    architecture: str | None
    hook_in: str | None
    hook_out: str | None
    module_in: str | None
    module_out: str | None
    processing: Mapping[str, Any] = field(hash=False)
    d_dictionary: int | None
    l0: float | None
    inferred: str | None
    remarks: tuple[str, ...]
    needs_norm_factor: bool
    decided_by: str | None
    refused: str | None = None

    @property
    def spec(self) -> str:
        return f"{self.release}#{self.id}"

    @property
    def hook(self) -> str:
        """`IN` or, for a transcoder, `IN -> OUT`."""
        return " -> ".join(dict.fromkeys(hook for hook in (self.hook_in, self.hook_out) if hook)) or "not known"

    @property
    def model_class(self) -> str | None:
        """What `AutoModelForCausalLM` makes of the base model."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

        return None if self.base is None else CLASSES[self.base.model_type]

    @cached_property
    def trial(self) -> SiteProbe:
        """Whether the site that is known or expected can be spliced."""
        if self.hook_in is None or self.hook_out is None or self.base is None:
            return SiteProbe(None, None)
        layer = re.match(r"blocks\.(\d+)\.", self.hook_out)
        if layer and int(layer[1]) >= self.base.layers:
            return SiteProbe(None, f"{self.model} has no layer {layer[1]}: layers run from 0 to {self.base.layers - 1}")
        small_layers = small_architecture(self.base.model_type).layers
        hooks = (_in_small(self.hook_in, small_layers), _in_small(self.hook_out, small_layers))
        modules = (_in_small(self.module_in, small_layers), _in_small(self.module_out, small_layers))
        return try_sites(self.base.model_type, hooks, modules, tuple(sorted(self.processing.items())))

    @property
    def verdict(self) -> str:
        """supported, refused, or what decides: a file of the hub, or a base model that is not in the table."""
        if self.refused:
            return REFUSED
        if self.decided_by:
            return f"its {self.decided_by} decides"
        if self.base is None:
            return "its model decides"
        return REFUSED if self.trial.fault or self.needs_norm_factor else SUPPORTED

    @property
    def why(self) -> str:
        """What else is to be said of the verdict, "" where nothing is."""
        factor = "its release gives no norm_factor, which norm_factor= has to state" if self.needs_norm_factor else None
        parts = [self.refused, self.trial.fault, factor, self.inferred, *self.remarks]
        return "; ".join(part for part in parts if part)


def _in_small(name: str | None, layers: int) -> Any:
    """`name` with its layer replaced by the one at the same place of the pattern in a model of `layers` layers."""
    return name and re.sub(r"(?<=blocks\.|layers\.)\d+", lambda layer: str(int(layer[0]) % layers), name)


def _entry(release: Release, id_: str) -> Entry:
    name = release.conversion_func or "sae_lens"
    converter = CONVERTERS.get(name, UNKNOWN)
    remarks = [converter.remark] if converter.remark else []
    try:
        config = converter.read(release, id_)
    except (ValueError, KeyError) as error:
        # A release of a later SAELens may be named in a way that these rules do not know.
        converter, config = UNKNOWN, {}
        remarks.append(f"its names do not say where it was trained ({error})")
    config |= release.config_overrides or {}
    model = config.get("model_name") or release.model
    if len(distinct_models([release.model, model])) > 1:
        remarks.append(f"the release says its model is {release.model}, the dictionary's own metadata {model}")
    hook_in = config.get("hook_name")
    hook_out = config.get("hook_name_out") or hook_in
    fact = fact_of(release.release)
    processing = config.get("model_from_pretrained_kwargs")
    if processing is None and fact is not None:
        processing = fact.processing
        if any((processing or {}).values()):
            remarks.append(f"TransformerLens loaded its model with default processing, by {fact.source}")
    module_in = config.get("hf_hook_name")
    return Entry(
        release=release.release,
        id=id_,
        converter=name,
        model=model,
        base=base_model(model),
        architecture=config.get("architecture"),
        hook_in=hook_in,
        hook_out=hook_out,
        module_in=module_in,
        module_out=config.get("hf_hook_name_out") or (module_in if hook_out == hook_in else None),
        processing=processing or {},
        d_dictionary=config.get("d_sae") or _width(f"{release.repo_id}/{release.saes_map[id_]}"),
        l0=release.expected_l0[id_] or None,
        inferred=converter.inferred,
        remarks=tuple(remarks),
        needs_norm_factor=config.get("normalize_activations") == NO_FACTOR and id_ not in release.norm_scaling_factor,
        decided_by=converter.decided_by or (None if hook_in else "metadata"),
        refused=converter.refused,
    )


def _width(path: str) -> int | None:
    """The number of latents as paths tell it, a power of two: `width_16k` is 16,384, `width-2pow12` 4,096."""
    if match := re.search(r"width-2pow(\d+)", path):
        return 2 ** int(match[1])
    if match := re.search(r"width_(\d+)([km])(?![a-z0-9])", path):
        return 2 ** round(math.log2(int(match[1]) * {"k": 1_000, "m": 1_000_000}[match[2]]))
    return None


@cache
def entries() -> tuple[Entry, ...]:
    """Every dictionary of SAELens' registry, in its order."""
    return tuple(_entry(release, id_) for release in releases().values() for id_ in release.saes_map)


def named(release: str, id_: str | None) -> Entry | None:
    """The dictionary of that release, None where SAELens has registered no such one."""
    registered = None if "/" in release else releases().get(release)  # the name of a repository needs no parsing
    return None if registered is None or id_ not in registered.saes_map else _entry(registered, id_)


def find_entries(pattern: str) -> list[Entry]:
    """The dictionaries whose `release#id` matches the glob `pattern`, or holds it where it is no glob.

    Raises `UserError` where nothing matches.
    """
    wanted = check_pattern(pattern)
    return [
        _entry(release, id_)
        for release in releases().values()
        for id_ in release.saes_map
        if fnmatchcase(f"{release.release}#{id_}".lower(), wanted)
    ]


def search(pattern: str) -> list[dict[str, Any]]:
    """What `find_entries` finds, as a row each.

    Keys: spec, model, hook, map, l0, width (number of latents; both None where not known), verdict, why.
    """
    return [
        {
            "spec": entry.spec,
            "model": entry.model,
            "hook": entry.hook,
            "map": " -> ".join(dict.fromkeys(entry.trial.maps or ())) or None,
            "l0": entry.l0,
            "width": entry.d_dictionary,
            "verdict": entry.verdict,
            "why": entry.why,
        }
        for entry in find_entries(pattern)
    ]
