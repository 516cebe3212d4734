"""Dictionaries of SAELens: its registered releases, hub repositories and folders in its format, its objects."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_lm_eval import world
from sae_lm_eval.dictionaries import sparsify_loader, stated
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.hub_files import quietly, weights_folder
from sae_lm_eval.dictionaries.inference_form import inference_form, is_in_training, load_checkpoint
from sae_lm_eval.dictionaries.old_configs import WEIGHTS, refuse_what_is_dropped
from sae_lm_eval.dictionaries.sparse_decoding import SparseDecoding
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.dictionaries.untrained import first_of_slice, rule_by_metadata, rule_of, tokens_left_out
from sae_lm_eval.dictionaries.world_loader import world_dictionary
from sae_lm_eval.errors import UserError, did_you_mean, first_line

CONFIG = "cfg.json"
NO_FACTOR = "expected_average_only_in"
CLT_LAYER = "mntss_clt_layer_transcoder"  # SAELens' converter
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
    _refuse_what_saelens_misreads(spec, release)
    if spec.revision is None:
        sae, remarks = _read(spec, lambda: SAE.from_pretrained(spec.source, spec.id or ""))
        commit = _commit(release.repo_id)
        if release.conversion_func is None and commit is not None:
            _check_config(spec, _snapshot(release.repo_id) / str(release.saes_map[spec.id]))
    elif release.conversion_func is None:
        sae, remarks, commit = _at_revision(spec, release)
    else:
        raise UserError(
            f"SAELens loads '{spec.source}' through a converter that knows no revision: leave out @{spec.revision}."
        )
    dictionary = from_sae(sae, name=str(spec), model_name=release.model)
    said = {**dictionary.stated, **_stated_of_release(release, spec.id or "", dictionary)}
    rule = rule_of(spec.source, spec.id) or rule_of(release.repo_id, str(release.saes_map[spec.id]))
    first = dictionary.first_position if rule is None else rule.first
    told = (*remarks, *dictionary.remarks)
    return replace(dictionary, revision=commit, remarks=told, stated=said, first_position=first)


def _refuse_what_saelens_misreads(spec: SaeSpec, release: Any) -> None:
    """Raises `UserError` for releases of which SAELens' converters make something else than was trained."""
    if release.conversion_func == CLT_LAYER:
        raise UserError(
            f"'{spec}' is one layer of a cross-layer transcoder, which writes to all later layers: SAELens sums its "
            f"decoders, for activations and not for reconstruction. It cannot be spliced by itself."
        )
    if release.conversion_func == "sparsify":
        raise UserError(f"'{spec}' is in the format of sparsify: name it sparsify:{release.repo_id}#{spec.id}.")


def _stated_of_release(release: Any, id_: str, dictionary: Dictionary) -> dict[str, float]:
    registered = {
        "l0": release.expected_l0.get(id_),
        "norm_scaling_factor": release.norm_scaling_factor.get(id_),
        "variance_explained": release.expected_var_explained.get(id_),  # 1 where the release says nothing
    }
    said = stated.of_config(registered, dictionary.d_in, dictionary.d_out)
    return {**said, **stated.of_names(id_, str(release.saes_map[id_]))}


def _at_revision(spec: SaeSpec, release: Any) -> tuple[Any, tuple[str, ...], str | None]:
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
    return sae, remarks, commit


def _load_folder(spec: SaeSpec) -> Dictionary:
    return _from_folder(spec, *weights_folder(spec, CONFIG))


def _from_folder(spec: SaeSpec, folder: Path, commit: str | None) -> Dictionary:
    from sae_lens import SAE

    config = _check_config(spec, folder)
    read = load_checkpoint if is_in_training(config.get("architecture")) else SAE.load_from_disk
    sae, remarks = _read(spec, lambda: read(folder))
    dictionary = from_sae(sae, name=str(spec))
    whole = {**config, **(config.get("metadata") or {})}
    said = {
        **dictionary.stated,
        **stated.of_config(whole, dictionary.d_in, dictionary.d_out),
        **stated.of_names(spec.id, folder.name),
    }
    rule = rule_of(spec.source, spec.id)
    first = dictionary.first_position if rule is None else rule.first
    told = (*remarks, *dictionary.remarks)
    return replace(dictionary, revision=commit, remarks=told, stated=said, first_position=first)


def _check_config(spec: SaeSpec, folder: Path) -> dict[str, Any]:
    """cfg.json of `folder`. Raises `UserError` where it is none of SAELens', or SAELens would drop a part of it."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG} is no JSON ({error}).") from error
    own, theirs = (folder / WEIGHTS).is_file(), (folder / sparsify_loader.WEIGHTS).is_file()
    if "num_latents" in config or (theirs and not own) or ("expansion_factor" in config and "d_sae" not in config):
        raise UserError(f"'{spec}' is in the format of sparsify: name it sparsify:{spec}.")
    refuse_what_is_dropped(f"'{spec}'", config, folder / WEIGHTS)
    return config


def _read(spec: SaeSpec, function) -> Any:
    """What `function` loads, with every way in which files can be wrong told in a sentence."""
    import pickle

    from huggingface_hub.errors import HfHubHTTPError
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
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"The files of '{spec}' cannot be had: {first_line(error)}") from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"SAELens cannot load '{spec}': {type(error).__name__}: {reason}") from error


def _commit(repo: str) -> str | None:
    """The commit of `repo` in the local cache, None where the release lies elsewhere."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(repo).name
    except LocalEntryNotFoundError:
        return None


def _snapshot(repo: str) -> Path:
    """The files of `repo` in the local cache."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, local_files_only=True))


def from_sae(sae: Any, *, name: str, model_name: str | None = None) -> Dictionary:
    """`sae` (a `sae_lens.SAE` of any architecture) as a `Dictionary`.

    Calling the SAE itself keeps the skip connection of skip transcoders and the predictions of temporal SAEs,
    which `decode(encode(x))` would lose.

    Raises `UserError` where the SAE normalises its input by numbers that it does not hold.
    """
    sae, remarks = inference_form(sae)
    config = sae.cfg
    metadata = config.metadata.to_dict()
    _refuse_what_cannot_be_spliced(name, config.normalize_activations, metadata.get("hook_head_index"))
    if sae.hook_z_reshaping_mode:
        # On the Hugging Face side z is already flat over heads.
        sae.turn_off_forward_pass_hook_z_reshaping()

    def reconstruct(x: Any) -> Any:
        with SparseDecoding(sae.W_dec), without_error_term(sae):
            return sae(x)

    def formula(x: Any) -> Any:
        skip = getattr(sae, "W_skip", None)
        out = sae.decode(sae.encode(x))
        return out if skip is None else out + x @ skip.mT

    hook_in = metadata.get("hook_name")
    hook_out = metadata.get("hook_name_out") or hook_in
    names = [name for name in (metadata.get("model_name"), model_name) if name]
    conflict = len({_short(name) for name in names}) > 1
    if conflict:
        remarks = (*remarks, f"its metadata says its model is {names[0]}, the release {names[1]}")
    d_in, d_out = config.d_in, getattr(config, "d_out", config.d_in)
    rule = rule_by_metadata(metadata)
    return Dictionary(
        name=name,
        module=sae,
        reconstruct=reconstruct,
        encode=sae.encode,
        architecture=config.architecture(),
        d_in=d_in,
        d_out=d_out,
        d_dictionary=config.d_sae,
        hook_in=hook_in,
        hook_out=hook_out,
        module_hook_in=metadata.get("hf_hook_name"),
        module_hook_out=metadata.get("hf_hook_name_out")
        or (None if hook_out != hook_in else metadata.get("hf_hook_name")),
        model_names=tuple(names if conflict else names[:1]),
        context_size=metadata.get("context_size"),
        prepend_bos=metadata.get("prepend_bos"),
        processing=metadata.get("model_from_pretrained_kwargs") or {},
        needs_norm_factor=config.normalize_activations == NO_FACTOR,
        sequential=config.architecture() == "temporal",
        elements=sae.hook_sae_acts_post,
        formula=None if config.architecture() == "temporal" else formula,
        stated=stated.of_config({"k": getattr(config, "k", None), **metadata}, d_in, d_out),
        remarks=remarks,
        first_position=first_of_slice(metadata) if rule is None else rule.first,
        untrained_tokens=tokens_left_out(metadata),
    )


def _refuse_what_cannot_be_spliced(name: str, normalisation: str, head: int | None) -> None:
    if normalisation not in (*APPLIED, NO_FACTOR):
        raise UserError(
            f"{name} was trained with normalize_activations={normalisation}, which has to be folded "
            f"into its weights before use: sae.fold_activation_whitening(...) and save it again."
        )
    if head is not None:
        raise UserError(f"{name} was trained on head {head} alone; dictionaries are spliced at all heads of a layer.")


@contextmanager
def without_error_term(sae: Any) -> Iterator[None]:
    """Inside the scope, `sae` gives its reconstruction alone, even where it was told to add its error."""
    if not sae.use_error_term:
        yield
        return
    sae.use_error_term = False
    try:
        yield
    finally:
        with warnings.catch_warnings():  # SAELens warns of every use
            warnings.simplefilter("ignore", DeprecationWarning)
            sae.use_error_term = True


@torch.no_grad()
def fold_factors(transcoder: Any, factor_in: float, factor_out: float) -> None:
    """Fold into the weights what activations were multiplied by in training where it reads and where it writes.

    SAELens folds one factor into both, and a transcoder's two sites have norms of their own.
    """
    transcoder.W_enc.mul_(factor_in)
    transcoder.W_dec.div_(factor_out)
    transcoder.b_dec.div_(factor_out)
    if (skip := getattr(transcoder, "W_skip", None)) is not None:
        skip.mul_(factor_in / factor_out)
    transcoder.cfg.normalize_activations = "none"


def _short(model_name: str) -> str:
    return model_name.split("/")[-1].lower()
