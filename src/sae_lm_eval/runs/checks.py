"""What is wrong with a run, told from names and small files before the tasks or the model are loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictStr

from sae_lm_eval import world
from sae_lm_eval.catalog import lookup
from sae_lm_eval.dictionaries import python_loader
from sae_lm_eval.dictionaries.norm_factors import check_norm_factor
from sae_lm_eval.dictionaries.presence import check_presence, training_site
from sae_lm_eval.dictionaries.spec import PYTHON, SaeSpec
from sae_lm_eval.errors import UserError, did_you_mean, one_of
from sae_lm_eval.files.reading import Foreign, at_home, read_json
from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.runs.lm_eval_source import hflm_arguments
from sae_lm_eval.runs.settings import check_settings, tasks_of
from sae_lm_eval.runs.sweep import Sweep, VariantRequest
from sae_lm_eval.runs.task_index import check_tasks
from sae_lm_eval.runtime.devices import check_placement
from sae_lm_eval.runtime.run_files import read_groups
from sae_lm_eval.runtime.text_files import check_file
from sae_lm_eval.splicing.choices import DTYPE_NAMES, choices_of, refuse_misspelt, whole
from sae_lm_eval.splicing.edit_spec import asked_edit
from sae_lm_eval.splicing.splice_arguments import SpliceArguments

MODEL_DTYPES = ("auto", "float16", "half", "bfloat16", "float32", "float", "float64", "double")
TRUTHS = ("trust_remote_code", "add_bos_token", "parallelize", "use_fast_tokenizer", "truncation", "logits_cache")
# What --model_args name besides the model: what it is called, the file that it has on the hub, whether folders need it.
BESIDE = {
    "tokenizer": ("tokenizer", "tokenizer_config.json", False),
    "peft": ("adapter", "adapter_config.json", True),
    "delta": ("delta model", "config.json", True),
}
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


class ModelConfig(Foreign):
    """What is read of a model's config.json before transformers reads it whole."""

    model_type: StrictStr | None = None
    is_encoder_decoder: StrictBool = False
    text_config: dict[str, Any] | None = None


def check(sweep: Sweep, output_path: Path | None) -> None:
    """Raise `UserError` for what a run of `sweep` in `output_path` would stumble over later.

    Neither torch nor any model, dictionary or task is loaded, but for torch where a GPU is asked for. What a run in
    the folder has finished or begun with is not looked for again: its files may be gone.
    """
    if output_path is not None:
        check_folder(output_path)
    check_settings(sweep.settings)
    if sweep.model_args.get("parallelize"):
        check_placement(sweep.settings.get("device"), parallelize=True)
    if sweep.categories is not None:
        from sae_lm_eval.comparison.subsets import read_categories_file

        read_categories_file(sweep.categories)
    known = _settled(output_path)
    new = [asked for asked in sweep.variants if asked.name not in known]
    if known and not new:
        return
    check_tasks(tasks_of(sweep.settings), sweep.settings.get("include_path"))
    check_variants(sweep.model_args, new)


def check_variants(model_args: Mapping[str, Any], variants: Sequence[VariantRequest]) -> None:
    """Raise `UserError` for what loading a model and its variants would stumble over, as far as files tell."""
    for asked in variants:
        _check_arguments(asked)
    check_model_args(model_args)
    config = model_config(model_args)
    told: list[str] = []
    for asked in variants:
        try:
            _check_dictionaries(asked, config, str(model_args.get("pretrained")))
            if config:
                _check_sites(asked, model_args)
        except UserError as error:
            told.append(str(error))
    if told:
        raise UserError(" ".join(dict.fromkeys(told)))


def check_model_args(model_args: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument that the adapter does not have, or has no such value of."""
    refuse_misspelt(model_args, (*hflm_arguments(), *SpliceArguments.names(), "params", "tokens"))
    if isinstance(dtype := model_args.get("dtype"), str):
        one_of(dtype.removeprefix("torch."), MODEL_DTYPES, "dtype")
    if model_args.get("max_length") is not None:
        whole(model_args["max_length"], "max_length", least=1)
    for name in TRUTHS:
        value = model_args.get(name)
        if value is not None and not (isinstance(value, int) and value in (0, 1)):
            raise UserError(f"{name}={value} is neither True nor False.")
    for name, (what, file, is_needed) in BESIDE.items():
        value = model_args.get(name)
        if not isinstance(value, str) or world.is_meant_by(value):
            continue
        if not at_home(value).is_dir():
            _of_hub(value, file, None, what)
        elif is_needed and not (at_home(value) / file).is_file():
            raise UserError(f"There is no {what} in the folder '{value}': it has no {file}.")


def check_folder(folder: Path) -> None:
    """Raise `UserError` where results cannot be written to `folder`, which need not be there yet."""
    for place in (folder, *folder.parents, Path()):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"'{folder}' cannot be made: '{place}' is a file. Give another --output_path.")
            if not os.access(place, os.W_OK | os.X_OK):
                raise UserError(f"Nothing can be written to '{place}'. Give another --output_path.")
            return


def model_config(model_args: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the model that `--model_args` name, empty where only loading can tell it.

    Raises `UserError` where there is no such model, or it is none that dictionaries are spliced into.
    """
    pretrained = model_args.get("pretrained")
    if pretrained is None or not str(pretrained).strip():
        raise UserError("pretrained= is missing: name a model, as in pretrained=gpt2.")
    if not isinstance(pretrained, str | Path) or model_args.get("gguf_file") is not None:
        return {}
    if world.is_meant_by(pretrained):
        if str(model_args.get("revision") or "main") != "main":
            raise UserError(f"The embedded world has no revisions: leave out revision={model_args['revision']}.")
        pretrained = world.model_path()
    folder = at_home(pretrained)
    inner = model_args.get("subfolder") or ""
    if folder.is_dir():
        file = folder / inner / "config.json"
        if not file.is_file():
            raise UserError(f"There is no model in the folder '{pretrained}': it has no config.json.")
    else:
        file = _of_hub(str(pretrained), f"{inner}/config.json" if inner else "config.json", model_args.get("revision"))
    config = {} if file is None else read_json(file, ModelConfig, "a model's configuration").as_given()
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"{config.get('model_type')} is a sequence-to-sequence model; sae_hf splices into causal language models."
        )
    return config


def _of_hub(name: str, file: str, revision: Any, what: str = "model") -> Path | None:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    near = did_you_mean(name, [world.NAME]) if what == "model" else ""
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise UserError(f"There is no folder '{name}' with a {what}.")
    revision = None if revision is None else str(revision)
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str) or constants.HF_HUB_OFFLINE:
            return Path(cached) if isinstance(cached, str) else None
        return Path(hf_hub_download(name, file, revision=revision))
    except GatedRepoError as error:
        raise UserError(f"The {what} '{name}' is gated: ask for access on its page, and log in.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"The {what} '{name}' has no revision '{revision}'.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"There is no {what} '{name}' to load: no folder here is called so, and no repository of the hub that you "
            f"have access to.{near}"
        ) from error
    except OSError:
        return None  # whether the hub can be reached is told when the model is loaded


def _settled(output_path: Path | None) -> set[str]:
    if output_path is None:
        return set()
    kept = read_groups(output_path)
    begun = set() if kept is None else {name for group in kept.groups for name in group}
    return begun | {path.parent.parent.name for path in output_path.glob("*/*/results_*.json")} - {BASELINE}


def _check_arguments(asked: VariantRequest) -> None:
    given = SpliceArguments(**asked.arguments)
    if (edit := asked_edit(given)) is not None:
        if edit.kind == PYTHON:
            python_loader.check_python_source(edit.source)
        return
    choices = choices_of(given)
    one_of(given.sae_dtype, DTYPE_NAMES, "sae_dtype")
    whole(given.mean_tokens, "mean_tokens", least=1)
    check_norm_factor(given.norm_factor)
    for name, named in (("hook", choices.hooks), ("hook_map", choices.hook_maps)):
        if named is not None and asked.sources and len(named) != len(asked.sources):
            count = f"{len(named)} and there are {len(asked.sources)} dictionaries"
            raise UserError(f"{asked.name}: {name} names {count}: give one each, joined by '+'.")
    if choices.splice == "mean" and given.mean_text is None:
        raise UserError(f"{asked.name}: splice=mean needs mean_text=FILE, the text whose activations are averaged.")
    if given.mean_text is not None:
        check_file(given.mean_text)


def _check_sites(asked: VariantRequest, model_args: Mapping[str, Any]) -> None:
    """Raise `UserError` where two dictionaries write at one site, or `hook=` names none of the model's."""
    own = asked.arguments.get("hook")
    if own is None:
        written = [_written_at(source) for source in asked.sources if isinstance(source, str)]
    else:
        written = [each.rsplit(":", 1)[-1] for each in str(own).split("+")]
    if not all(written):
        raise UserError(f"{asked.name}: hook= names no site: give one, as in hook=blocks.0.hook_resid_post.")
    if twice := next((site for site in written if written.count(site) > 1), None):
        raise UserError(f"{asked.name}: two dictionaries write at '{twice}': one site takes one dictionary.")
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
    return (lookup.known(spec).hook_out if near else None) or spec


def _check_latents(spec: SaeSpec, asked: VariantRequest) -> None:
    """Raise `UserError` where an edit names a latent beyond those that a folder's or a registered dictionary has."""
    edits = choices_of(SpliceArguments(**asked.arguments)).edits
    if edits and (width := lookup.known(str(spec)).width) is not None:
        edits.check_width(str(spec), width)


def _check_dictionaries(asked: VariantRequest, config: Mapping[str, Any], model: str) -> None:
    text = config.get("text_config") or config
    layers = next((text[name] for name in LAYERS if isinstance(text.get(name), int)), None)
    named = [int(layer) for layer in re.findall(r"(?:blocks|layers|h)\.(\d+)\.", str(asked.arguments.get("hook")))]
    for spec in (SaeSpec.parse(source) for source in asked.sources if isinstance(source, str)):
        check_presence(spec)
        _check_latents(spec, asked)
        trained_on, layer = training_site(spec)
        for one in named or [layer]:
            if layers is not None and one is not None and one >= layers:
                where = "hook= is at" if named else f"{spec} was trained on {trained_on or 'a model'} at"
                raise UserError(f"{where} layer {one}, and the layers of {model} run from 0 to {layers - 1}.")
