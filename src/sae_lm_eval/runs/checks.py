"""What is wrong with a run, told from names and small files before the tasks or the model are loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.catalog import lookup
from sae_lm_eval.catalog.hub_headers import with_headers
from sae_lm_eval.dictionaries import python_loader
from sae_lm_eval.dictionaries.norm_factors import check_norm_factor
from sae_lm_eval.dictionaries.presence import check_presence, training_site
from sae_lm_eval.dictionaries.saelens_package import is_registered_repository, registry_sections
from sae_lm_eval.dictionaries.spec import PYTHON, SaeSpec
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import at_home, is_folder
from sae_lm_eval.harness import chat_template
from sae_lm_eval.harness.context_length import check_length, stated
from sae_lm_eval.runs.adapter_checks import check_adapter
from sae_lm_eval.runs.asked_documents import check_named_tasks
from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.runs.lm_eval_source import hflm_arguments
from sae_lm_eval.runs.model_files import LAYERS, WIDTHS, hub_file, model_config
from sae_lm_eval.runs.settings import check_settings, tasks_of
from sae_lm_eval.runs.sweep import Sweep, VariantRequest
from sae_lm_eval.runs.task_index import check_tasks
from sae_lm_eval.runtime.devices import check_placement
from sae_lm_eval.runtime.run_files import is_of_several_models, read_groups
from sae_lm_eval.runtime.run_folder import check_folder
from sae_lm_eval.runtime.text_files import check_readable
from sae_lm_eval.splicing.choices import DTYPE_NAMES, choices_of, finite_number, refuse_misspelt, whole
from sae_lm_eval.splicing.edit_spec import Edit, asked_edit, check_layers, edit_of
from sae_lm_eval.splicing.splice_arguments import SpliceArguments

MODEL_DTYPES = ("auto", "float16", "half", "bfloat16", "float32", "float", "float64", "double")
TRUTHS = (
    *("trust_remote_code", "add_bos_token", "parallelize", "use_fast_tokenizer", "truncation", "logits_cache"),
    "enable_thinking",
)
# What --model_args name besides the model: what it is called, the file that it has on the hub, whether folders need it.
BESIDE = {
    "tokenizer": ("tokenizer", "tokenizer_config.json", False),
    "peft": ("adapter", "adapter_config.json", True),
    "delta": ("delta model", "config.json", True),
}


def check(sweep: Sweep, output_path: Path | None) -> None:
    """Raise `UserError` for what a run of `sweep` in `output_path` would stumble over later.

    Neither torch nor any model, dictionary or task is loaded, but for torch where a GPU is asked for. What a run in
    the folder has finished or begun with is not looked for again: its files may be gone.
    """
    if output_path is not None:
        check_folder(output_path)
        if is_of_several_models(output_path):
            raise UserError(f"'{output_path}' holds the runs of several models. Give another --output_path for one.")
    check_settings(sweep.settings)
    if sweep.model_args.get("parallelize"):
        check_placement(sweep.settings.get("device"), parallelize=True)
    settled = _settled(output_path)
    new = [request for request in sweep.variants if request.name not in settled]
    if settled and not new:
        return
    tasks, folders = tasks_of(sweep.settings), sweep.settings.get("include_path")
    check_tasks(tasks, folders)
    check_named_tasks(sweep.categories, sweep.settings.get("samples"), tasks, folders)
    check_variants(sweep.model_args, new)
    if sweep.settings.get("apply_chat_template") and chat_template.has_chat_template(sweep.model_args) is False:
        raise UserError(chat_template.MISSING)


def check_variants(model_args: Mapping[str, Any], variants: Sequence[VariantRequest]) -> None:
    """Raise `UserError` for what loading a model and its variants would stumble over, as far as files tell."""
    for request in variants:
        _check_arguments(request)
    check_model_args(model_args)
    config = model_config(model_args)
    check_length(model_args, config)
    messages: list[str] = []
    for request in variants:
        try:
            check_adapter(request.arguments.get("peft"), model_args)
            _check_dictionaries(request, config, str(model_args.get("pretrained")))
            if config:
                _check_sites(request, model_args)
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError(" ".join(dict.fromkeys(messages)))


def check_model_args(model_args: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument that the adapter does not have, or has no such value of."""
    refuse_misspelt(model_args, (*hflm_arguments(), *SpliceArguments.names(), "params", "tokens"))
    if isinstance(dtype := model_args.get("dtype"), str):
        one_of(dtype.removeprefix("torch."), MODEL_DTYPES, "dtype")
    if model_args.get("max_length") is not None:
        whole(model_args["max_length"], "max_length", least=1)
    for name in ("softmax_dtype", "mixed_precision_dtype"):
        if isinstance(dtype := model_args.get(name), str):
            one_of(dtype.removeprefix("torch."), MODEL_DTYPES[1:], name)
    if model_args.get("prefix_token_id") is not None:
        whole(model_args["prefix_token_id"], "prefix_token_id", least=0)
    if not isinstance(given := model_args.get("chat_template_args") or {}, Mapping):
        raise UserError(
            f"chat_template_args={given!r} is no mapping: a sweep file gives one, as {{enable_thinking: false}}."
        )
    one_of(model_args.get("backend", "default"), ("default", "causal"), "backend")
    params, tokens = (model_args.get(name) for name in ("params", "tokens"))
    if params is not None or tokens is not None:
        from sae_lm_eval.scaling.which_original import original_of

        params = None if params is None else finite_number(params, "params")
        original_of("", params=params, tokens=None if tokens is None else finite_number(tokens, "tokens"))
    for name in TRUTHS:
        value = model_args.get(name)
        if value is not None and not (isinstance(value, int) and value in (0, 1)):
            raise UserError(f"{name}={value} is neither True nor False.")
    for name, (what, file, is_needed) in BESIDE.items():
        value = model_args.get(name)
        if not isinstance(value, str) or (world.is_meant_by(value) and not is_needed):
            continue
        if not is_folder(at_home(value)):
            hub_file(value, file, None, what)
        elif is_needed and not (at_home(value) / file).is_file():
            raise UserError(f"There is no {what} in the folder '{value}': it has no {file}.")


def _settled(output_path: Path | None) -> set[str]:
    if output_path is None:
        return set()
    kept = read_groups(output_path)
    begun = set() if kept is None else {name for group in kept.groups for name in group}
    return begun | {path.parent.parent.name for path in output_path.glob("*/*/results_*.json")} - {BASELINE}


def _check_arguments(request: VariantRequest) -> None:
    arguments = SpliceArguments(**request.arguments)
    if (edit := asked_edit(arguments)) is not None:
        if edit.kind == PYTHON:
            python_loader.check_python_source(edit.source)
        return
    choices = choices_of(arguments)
    one_of(arguments.sae_dtype, DTYPE_NAMES, "sae_dtype")
    whole(arguments.mean_tokens, "mean_tokens", least=1)
    check_norm_factor(arguments.norm_factor)
    for name, named in (("hook", choices.hooks), ("hook_map", choices.hook_maps)):
        if named is not None and request.sources and len(named) != len(request.sources):
            count = f"{len(named)} and there are {len(request.sources)} dictionaries"
            raise UserError(f"{request.name}: {name} names {count}: give one each, joined by '+'.")
    if choices.splice == "mean" and arguments.mean_text is None:
        raise UserError(f"{request.name}: splice=mean needs mean_text=FILE, the text whose activations are averaged.")
    for file in filter(None, (arguments.mean_text, arguments.layers_text)):
        check_readable(file)


def _check_sites(request: VariantRequest, model_args: Mapping[str, Any]) -> None:
    """Raise `UserError` where two dictionaries write at one site, or `hook=` names none of the model's."""
    own = request.arguments.get("hook")
    if own is None:
        written = [_written_at(source) for source in request.sources if isinstance(source, str)]
    else:
        written = [each.rsplit(":", 1)[-1] for each in str(own).split("+")]
    if not all(written):
        raise UserError(f"{request.name}: hook= names no site: give one, as in hook=blocks.0.hook_resid_post.")
    if twice := next((site for site in written if written.count(site) > 1), None):
        raise UserError(f"{request.name}: two dictionaries write at '{twice}': one site takes one dictionary.")
    if own is not None:
        from sae_lm_eval.splicing.hook_names import Architecture
        from sae_lm_eval.splicing.site import resolve_site, writable_port
        from sae_lm_eval.splicing.skeleton import skeleton

        architecture = Architecture(skeleton(model_args))
        for hook in written:
            writable_port(architecture, resolve_site(architecture, hook))


def _written_at(spec: str) -> str:
    """The site as far as it is known without SAELens, or else the spec itself."""
    parsed = SaeSpec.parse(spec)
    near = parsed.folder is not None or parsed.source == world.NAME
    return (lookup.facts_of(spec).hook_out if near else None) or spec


def _check_latents(spec: SaeSpec, request: VariantRequest) -> None:
    """Raise `UserError` where an edit names a latent beyond those that a dictionary has, as far as small files tell."""
    edits = choices_of(SpliceArguments(**request.arguments)).edits
    if not edits:
        return
    facts = lookup.facts_of(str(spec))
    of_saelens = spec.source in registry_sections() or is_registered_repository(spec.source)
    if facts.width is None and not of_saelens:  # whose files SAELens alone knows
        with suppress(UserError):  # told when it is loaded
            facts = with_headers(facts)
    if facts.width is not None:
        edits.of_layer(facts.layer).check_width(str(spec), facts.width)


def _check_rank(edit: Edit, width: int | None, model: str) -> None:
    if width is not None and edit.kind == "lowrank" and edit.values.get("rank", 0) >= width:
        raise UserError(f"edit={edit} changes nothing: no matrix of {model} has a rank of more than {width:,}.")


def _check_dictionaries(request: VariantRequest, config: Mapping[str, Any], model: str) -> None:
    layers = stated(config, LAYERS)
    edit = edit_of(request.arguments.get("edit"))
    if edit is not None and layers is not None:
        check_layers(edit, layers, model)
        _check_rank(edit, stated(config, WIDTHS), model)
    hook_layers = [
        int(layer) for layer in re.findall(r"(?:blocks|layers|h)\.(\d+)\.", str(request.arguments.get("hook")))
    ]
    for spec in (SaeSpec.parse(source) for source in request.sources if isinstance(source, str)):
        check_presence(spec)
        _check_latents(spec, request)
        trained_on, trained_layer = training_site(spec)
        for layer in hook_layers or [trained_layer]:
            if layers is not None and layer is not None and layer >= layers:
                where = "hook= is at" if hook_layers else f"{spec} was trained on {trained_on or 'a model'} at"
                raise UserError(f"{where} layer {layer}, and the layers of {model} run from 0 to {layers - 1}.")
