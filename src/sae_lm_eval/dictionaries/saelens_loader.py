"""Dictionaries of SAELens: its registered releases, hub repositories and folders in its format, its objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.dictionaries import stated
from sae_lm_eval.dictionaries.config_file import read_configuration, with_metadata
from sae_lm_eval.dictionaries.corrections import LoadedFolder, corrected
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.formats import SPARSIFY, format_of, refusal
from sae_lm_eval.dictionaries.hub_files import pickle_refusal, quietly, weights_folder
from sae_lm_eval.dictionaries.inference_form import is_in_training, load_checkpoint
from sae_lm_eval.dictionaries.old_configs import WEIGHTS, refuse_what_is_dropped
from sae_lm_eval.dictionaries.presence import check_id, refuse_unknown
from sae_lm_eval.dictionaries.release_facts import fact_of
from sae_lm_eval.dictionaries.saelens_object import NO_FACTOR, from_sae
from sae_lm_eval.dictionaries.saelens_package import import_saelens, is_registered_repository, releases
from sae_lm_eval.dictionaries.saelens_reads import Reads, recorded_reads, why_not
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.dictionaries.untrained import rule_of
from sae_lm_eval.dictionaries.world_loader import world_dictionary
from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory

CONFIG = "cfg.json"
CLT_LAYER = "mntss_clt_layer_transcoder"  # SAELens' converter


def load_saelens(spec: SaeSpec) -> Dictionary:
    """Raises `UserError` for an unknown release or id, a folder that holds no dictionary, unreadable files."""
    import_saelens()
    if spec.folder is not None:
        return _load_folder(spec)
    if spec.source == world.NAME:
        return _from_folder(spec, world_dictionary(spec), None)
    if "/" in spec.source and not is_registered_repository(spec.source):
        return _load_folder(spec)
    spec = _registered(spec, releases())
    if spec.source in releases():
        return _load_release(spec, releases()[spec.source])
    if "/" not in spec.source:
        refuse_unknown(spec, releases())
    return _load_folder(spec)


def _registered(spec: SaeSpec, releases: dict[str, Any]) -> SaeSpec:
    """A hub repository that SAELens has registered under a release's name is that release: only it knows the format.

    Raises `UserError` where the id means different files in different releases of the repository.
    """
    of_repository = [release for release in releases.values() if release.repo_id == spec.source]
    by_path = [(r, id_, path) for r in of_repository for id_, path in r.saes_map.items() if str(path) == spec.id]
    by_id = [(r, spec.id, r.saes_map[spec.id]) for r in of_repository if spec.id in r.saes_map]
    matches = by_path or by_id
    if not matches:
        return spec
    if len({path for _, _, path in matches}) > 1:
        choices = ", ".join(f"{release.release}#{id_}" for release, id_, _ in matches)
        raise UserError(f"'{spec.id}' of '{spec.source}' means several dictionaries: name one of {choices}.")
    release, id_, _ = matches[0]
    return replace(spec, source=release.release, id=id_)


def _load_release(spec: SaeSpec, release: Any) -> Dictionary:
    from sae_lens import SAE

    check_id(spec, release.saes_map)
    _refuse_what_saelens_misreads(spec, release)
    overrides = release.config_overrides or {}
    if spec.revision is None:
        with recorded_reads() as reads:
            sae, remarks = _read(spec, lambda: SAE.from_pretrained(spec.source, spec.id or ""), reads)
        config = None if release.conversion_func else reads.path(CONFIG)
        if config is not None:
            _check_config(spec, config.parent)
        own_config = overrides if config is None else {**read_configuration(config), **overrides}
        loaded = LoadedFolder(sae, str(release.saes_map[spec.id]), _folded_factor(sae, release, spec.id), reads)
        remarks = (*remarks, *_read(spec, lambda: corrected(release.conversion_func, loaded))[0])
        commit = _commit(release.repo_id)
    elif release.conversion_func is None:
        sae, remarks, commit, own_config = _at_revision(spec, release)
    else:
        raise UserError(
            f"SAELens loads '{spec.source}' through a converter that knows no revision: leave out @{spec.revision}."
        )
    dictionary = _with_facts(from_sae(sae, name=str(spec), model_name=release.model, own_config=own_config), release)
    numbers = {**dictionary.stated, **_stated_of_release(release, spec.id or "", dictionary)}
    rule = rule_of(spec.source, spec.id) or rule_of(release.repo_id, str(release.saes_map[spec.id]))
    first = dictionary.first_position if rule is None else rule.first
    remarks = (*remarks, *dictionary.remarks)
    of_release = {"stated": numbers, "neuronpedia": release.neuronpedia_id.get(spec.id) or dictionary.neuronpedia}
    return replace(dictionary, revision=commit, remarks=remarks, first_position=first, **of_release)


def _refuse_what_saelens_misreads(spec: SaeSpec, release: Any) -> None:
    """Raises `UserError` for releases of which SAELens' converters make something else than was trained."""
    if release.conversion_func == CLT_LAYER:
        raise UserError(
            f"'{spec}' is one layer of a cross-layer transcoder, which writes to all later layers: SAELens sums its "
            f"decoders, for activations and not for reconstruction. Name clt:{release.repo_id} for all layers, or "
            f"clt:{release.repo_id}#layer_{release.saes_map[spec.id]} for what is written at this one."
        )
    if release.conversion_func == "sparsify":
        raise UserError(f"'{spec}' is in the format of sparsify: name it sparsify:{release.repo_id}#{spec.id}.")


def _stated_of_release(release: Any, id_: str, dictionary: Dictionary) -> dict[str, float]:
    registered = {
        "l0": release.expected_l0.get(id_),
        "norm_scaling_factor": release.norm_scaling_factor.get(id_),
        "variance_explained": release.expected_var_explained.get(id_),  # 1 where the release says nothing
    }
    numbers = stated.of_config(registered, *dictionary.widths)
    return {**numbers, **stated.of_names(id_, str(release.saes_map[id_]))}


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

    _check_config(spec, folder)
    sae, remarks = _read(spec, lambda: SAE.load_from_disk(folder, converter=with_overrides))
    factor = release.norm_scaling_factor.get(spec.id)
    if sae.cfg.normalize_activations == NO_FACTOR and factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    return sae, remarks, commit, {**read_configuration(folder / CONFIG), **(release.config_overrides or {})}


def _load_folder(spec: SaeSpec) -> Dictionary:
    return _from_folder(spec, *weights_folder(spec, CONFIG))


def _from_folder(spec: SaeSpec, folder: Path, commit: str | None) -> Dictionary:
    from sae_lens import SAE

    config = _check_config(spec, folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"The files of '{spec}' cannot be had: there is no {folder / WEIGHTS}.")
    read = load_checkpoint if is_in_training(config.get("architecture")) else SAE.load_from_disk
    sae, remarks = _read(spec, lambda: read(folder))
    dictionary = from_sae(sae, name=str(spec), own_config=config)
    whole = with_metadata(config)
    numbers = {
        **dictionary.stated,
        **stated.of_config(whole, *dictionary.widths),
        **stated.of_names(spec.id, folder.name),
    }
    rule = rule_of(spec.source, spec.id)
    first = dictionary.first_position if rule is None else rule.first
    remarks = (*remarks, *dictionary.remarks)
    return replace(dictionary, revision=commit, remarks=remarks, stated=numbers, first_position=first)


def _check_config(spec: SaeSpec, folder: Path) -> dict[str, Any]:
    """cfg.json of `folder`. Raises `UserError` where it is none of SAELens', or SAELens would drop a part of it."""
    config = read_configuration(folder / CONFIG)
    if format_of(path.name for path in folder.iterdir()) is SPARSIFY:
        raise UserError(refusal(spec, SPARSIFY))
    refuse_what_is_dropped(f"'{spec}'", config, folder / WEIGHTS)
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
        raise pickle_refusal(spec) from error
    except (EntryNotFoundError, OSError) as error:  # of which the hub's own are kinds
        if reads is not None and reads.failure is not None and reads.failure[2] is error:
            raise UserError(why_not(*reads.failure, spec)) from error
        raise UserError(f"The files of '{spec}' cannot be had: {first_line(error)}") from error
    except Exception as error:  # whatever a file of somebody else's makes SAELens raise
        raise_if_out_of_memory(error)
        if isinstance(error, UserError):
            raise
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
