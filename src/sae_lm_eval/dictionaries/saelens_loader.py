"""Dictionaries of SAELens: its registered releases, hub repositories and folders in its format, its objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.dictionaries.corrections import Loaded, corrected
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.formats import SPARSIFY, format_of
from sae_lm_eval.dictionaries.hub_files import quietly, weights_folder
from sae_lm_eval.dictionaries.model_names import distinct
from sae_lm_eval.dictionaries.release_facts import fact_of
from sae_lm_eval.dictionaries.saelens_reads import Reads, recorded_reads, why_not
from sae_lm_eval.dictionaries.sequential import attends_over_positions
from sae_lm_eval.dictionaries.sparse_decoding import SparseDecoding
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.dictionaries.world_loader import world_dictionary
from sae_lm_eval.errors import UserError, did_you_mean, first_line

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NO_FACTOR = "expected_average_only_in"
# How SAELens names normalisations that it applies by itself; any other needs numbers that are not in the file.
APPLIED = ("none", "layer_norm", "constant_norm_rescale", "constant_scalar_rescale")


def load(spec: SaeSpec) -> Dictionary:
    """Raises `UserError` for an unknown release or id, a folder that holds no dictionary, unreadable files."""
    if Path(spec.source).expanduser().is_dir():
        return _load_folder(spec)
    if spec.source == world.NAME:
        return _from_folder(spec, world_dictionary(spec), None)
    # Here, since it takes SAELens a second to read its registry.
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    releases = get_pretrained_saes_directory()
    spec = _registered(spec, releases)
    if spec.source in releases:
        return _load_release(spec, releases[spec.source])
    if "/" not in spec.source:
        raise UserError(
            f"There is no SAELens release '{spec.source}'.{did_you_mean(spec.source, releases)} "
            f"'sae-lm-eval inspect --list PATTERN' searches them."
        )
    return _load_folder(spec)


def _registered(spec: SaeSpec, releases: dict[str, Any]) -> SaeSpec:
    """A hub repository that SAELens has registered under a release's name is that release: only it knows the format.

    Raises `UserError` where the id means different files in different releases of the repository.
    """
    of_repository = [release for release in releases.values() if release.repo_id == spec.source]
    by_path = [(r, id_, path) for r in of_repository for id_, path in r.saes_map.items() if str(path) == spec.id]
    by_id = [(r, spec.id, r.saes_map[spec.id]) for r in of_repository if spec.id in r.saes_map]
    found = by_path or by_id
    if not found:
        return spec
    if len({path for _, _, path in found}) > 1:
        choices = ", ".join(f"{release.release}#{id_}" for release, id_, _ in found)
        raise UserError(f"'{spec.id}' of '{spec.source}' means several dictionaries: name one of {choices}.")
    release, id_, _ = found[0]
    return replace(spec, source=release.release, id=id_)


def _load_release(spec: SaeSpec, release: Any) -> Dictionary:
    from sae_lens import SAE

    if spec.id not in release.saes_map:
        what = f"no dictionary '{spec.id}'" if spec.id else f"{len(release.saes_map)} dictionaries: name one with #id"
        near = did_you_mean(spec.id or "", release.saes_map)
        some = ", ".join(list(release.saes_map)[:4])
        raise UserError(f"The release '{spec.source}' has {what}.{near} It begins with {some}.")
    overrides = release.config_overrides or {}
    if spec.revision is None:
        with recorded_reads() as reads:
            sae, remarks = _read(spec, lambda: SAE.from_pretrained(spec.source, spec.id or ""), reads)
        config = None if release.conversion_func else reads.path(CONFIG)
        said = overrides if config is None else {**_configuration(config), **overrides}
        loaded = Loaded(sae, str(release.saes_map[spec.id]), _folded_factor(sae, release, spec.id), reads)
        remarks = (*remarks, *_read(spec, lambda: corrected(release.conversion_func, loaded))[0])
        commit = _commit(release.repo_id)
    elif release.conversion_func is None:
        sae, remarks, commit, said = _at_revision(spec, release)
    else:
        raise UserError(
            f"SAELens loads '{spec.source}' through a converter that knows no revision: leave out @{spec.revision}."
        )
    dictionary = _with_facts(from_sae(sae, name=str(spec), model_name=release.model, said=said), release)
    return replace(dictionary, revision=commit, remarks=(*remarks, *dictionary.remarks))


def _folded_factor(sae: Any, release: Any, id_: str | None) -> float:
    """What SAELens has folded into the weights of `sae`, 1 where it folded nothing."""
    factor = release.norm_scaling_factor.get(id_)
    return 1.0 if factor is None or sae.cfg.normalize_activations != "none" else factor


def _with_facts(dictionary: Dictionary, release: Any) -> Dictionary:
    """`dictionary` with what is known of its release and stands in none of its files."""
    if "model_from_pretrained_kwargs" in (release.config_overrides or {}):
        dictionary = replace(dictionary, processing_source="SAELens' registry")
    fact = fact_of(release.release)
    if fact is None:
        return dictionary
    if dictionary.prepend_bos is None:
        dictionary = replace(dictionary, prepend_bos=fact.prepend_bos)
    if dictionary.processing_source is None and fact.processing is not None:
        dictionary = replace(dictionary, processing=dict(fact.processing), processing_source=fact.source)
    return dictionary


def _at_revision(spec: SaeSpec, release: Any) -> tuple[Any, tuple[str, ...], str | None, dict[str, Any]]:
    """What `SAE.from_pretrained` would give, had it an argument for the revision: the registry's overrides included."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    folder, commit = weights_folder(SaeSpec(release.repo_id, str(release.saes_map[spec.id]), spec.revision), CONFIG)

    def with_overrides(path: Any, device: str, cfg_overrides: dict[str, Any] | None = None) -> Any:
        return sae_lens_disk_loader(path, device, {**(release.config_overrides or {}), **(cfg_overrides or {})})

    sae, remarks = _read(spec, lambda: SAE.load_from_disk(folder, converter=with_overrides))
    factor = release.norm_scaling_factor.get(spec.id)
    if sae.cfg.normalize_activations == NO_FACTOR and factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    return sae, remarks, commit, {**_configuration(folder / CONFIG), **(release.config_overrides or {})}


def _load_folder(spec: SaeSpec) -> Dictionary:
    return _from_folder(spec, *weights_folder(spec, CONFIG))


def _from_folder(spec: SaeSpec, folder: Path, commit: str | None) -> Dictionary:
    from sae_lens import SAE

    config = _configuration(folder / CONFIG)
    if format_of(path.name for path in folder.iterdir()) is SPARSIFY:
        raise UserError(f"'{spec}' is in the format of {SPARSIFY.name}: {SPARSIFY.advice}{spec}.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"The files of '{spec}' cannot be had: there is no {folder / WEIGHTS}.")
    sae, remarks = _read(spec, lambda: SAE.load_from_disk(folder))
    dictionary = from_sae(sae, name=str(spec), said=config)
    return replace(dictionary, revision=commit, remarks=(*remarks, *dictionary.remarks))


def _configuration(path: Path) -> dict[str, Any]:
    """What the file says, before SAELens fills its gaps. Raises `UserError` where it is not an object of JSON."""
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no configuration: a JSON object is expected.")
    return config


def _read(spec: SaeSpec, function: Callable[[], Any], reads: Reads | None = None) -> tuple[Any, tuple[str, ...]]:
    """What `function` loads, and its warnings, with every way in which files can be wrong told in a sentence."""
    import pickle

    from huggingface_hub.errors import EntryNotFoundError
    from safetensors import SafetensorError

    try:
        return quietly(function)
    except SafetensorError as error:
        raise UserError(f"The weights of '{spec}' are truncated or corrupt ({error}): download them again.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The weights of '{spec}' are a pickle that holds more than tensors, which could run code: refused. "
            f"Convert them to safetensors."
        ) from error
    except (EntryNotFoundError, OSError) as error:  # of which the hub's own are kinds
        if reads is not None and reads.failure is not None and reads.failure[2] is error:
            raise UserError(why_not(*reads.failure, spec)) from error
        raise UserError(f"The files of '{spec}' cannot be had: {first_line(error)}") from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"SAELens cannot load '{spec}': {type(error).__name__}: {reason}") from error


def _commit(repo: str) -> str | None:
    """The commit of `repo` in the local cache, None where the release lies elsewhere."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True)).name
    except LocalEntryNotFoundError:
        return None


def from_sae(
    sae: Any, *, name: str, model_name: str | None = None, said: Mapping[str, Any] | None = None
) -> Dictionary:
    """`sae` (a `sae_lens.SAE` of any architecture) as a `Dictionary`.

    `said` is what its own configuration says, before SAELens filled its gaps; None where `sae` was given as an object.

    Calling the SAE itself keeps the skip connection of skip transcoders and the predictions of temporal SAEs,
    which `decode(encode(x))` would lose.

    Raises `UserError` where the SAE normalises its input by numbers that it does not hold.
    """
    config = sae.cfg
    metadata = config.metadata.to_dict()
    _refuse_what_cannot_be_applied(config, metadata, name)
    if sae.hook_z_reshaping_mode:
        # On the Hugging Face side z is already flat over heads.
        sae.turn_off_forward_pass_hook_z_reshaping()

    def reconstruct(x: Any) -> Any:
        with SparseDecoding(sae.W_dec):
            return sae(x)

    hook_in = metadata.get("hook_name")
    hook_out = metadata.get("hook_name_out") or hook_in
    names = [name for name in (metadata.get("model_name"), model_name) if name]
    conflict = len(distinct(names)) > 1
    remarks = [f"its metadata says its model is {names[0]}, the release {names[1]}"] if conflict else []
    processing, processing_source = _processing(metadata, said)
    return Dictionary(
        name=name,
        module=sae,
        reconstruct=reconstruct,
        encode=sae.encode,
        architecture=config.architecture(),
        d_in=config.d_in,
        d_out=getattr(config, "d_out", config.d_in),
        d_dictionary=config.d_sae,
        hook_in=hook_in,
        hook_out=hook_out,
        module_hook_in=metadata.get("hf_hook_name"),
        module_hook_out=metadata.get("hf_hook_name_out")
        or (None if hook_out != hook_in else metadata.get("hf_hook_name")),
        model_names=tuple(names if conflict else names[:1]),
        context_size=metadata.get("context_size"),
        prepend_bos=_prepend_bos(metadata, said),
        processing=processing,
        processing_source=processing_source,
        needs_norm_factor=config.normalize_activations == NO_FACTOR,
        sequential=attends_over_positions(sae),
        elements=sae.hook_sae_acts_post,
        remarks=tuple(remarks),
    )


def _refuse_what_cannot_be_applied(config: Any, metadata: Mapping[str, Any], name: str) -> None:
    if config.normalize_activations not in (*APPLIED, NO_FACTOR):
        raise UserError(
            f"{name} was trained with normalize_activations={config.normalize_activations}, which has to be folded "
            f"into its weights before use: sae.fold_activation_whitening(...) and save it again."
        )
    if metadata.get("hook_head_index") is not None:
        raise UserError(
            f"{name} was trained on head {metadata['hook_head_index']} alone; "
            f"dictionaries are spliced at all heads of a layer."
        )


def _prepend_bos(metadata: Mapping[str, Any], said: Mapping[str, Any] | None) -> bool | None:
    """What the file or the author of the SAE says; SAELens puts True where nothing is said."""
    if said is not None:
        return {**said, **(said.get("metadata") or {})}.get("prepend_bos")
    stated = metadata.get("prepend_bos")
    # An object that SAELens made of foreign or old files, which say by which version it was trained, or do not.
    return None if stated and metadata.get("sae_lens_training_version") is None else stated


def _processing(metadata: Mapping[str, Any], said: Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    """How TransformerLens loaded the model the SAE was trained on, and who says so: None where nobody does."""
    stated = metadata.get("model_from_pretrained_kwargs")
    by_file = {**(said or {}), **((said or {}).get("metadata") or {})}
    if stated is not None:
        if said is None or "model_from_pretrained_kwargs" in by_file:
            return dict(stated), "its metadata"
        return dict(stated), "SAELens' converter"
    if metadata.get("model_class_name") == "AutoModelForCausalLM":
        return {}, "its metadata: trained on the Hugging Face model itself"
    return {}, None
