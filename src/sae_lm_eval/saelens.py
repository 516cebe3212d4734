"""Dictionaries of SAELens: its registered releases, hub repositories and folders in its format, its objects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lm_eval.dictionary import Dictionary, quietly, weights_folder
from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.spec import SaeSpec

CONFIG = "cfg.json"
NO_FACTOR = "expected_average_only_in"
# How SAELens names normalisations that it applies by itself; any other needs numbers that are not in the file.
APPLIED = ("none", "layer_norm", "constant_norm_rescale", "constant_scalar_rescale")


def load(spec: SaeSpec) -> Dictionary:
    """Raises `UserError` for an unknown release or id, a folder that holds no dictionary, unreadable files."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    releases = get_pretrained_saes_directory()
    if Path(spec.source).expanduser().is_dir():
        return _load_folder(spec)
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
    """A hub repository that SAELens has registered under a release's name is that release: only it knows the format."""
    for name, release in releases.items():
        if release.repo_id == spec.source and spec.revision is None:
            for id_, path in release.saes_map.items():
                if spec.id in (id_, str(path)):
                    return replace(spec, source=name, id=id_)
    return spec


def _load_release(spec: SaeSpec, release: Any) -> Dictionary:
    from sae_lens import SAE

    if spec.id not in release.saes_map:
        what = f"no dictionary '{spec.id}'" if spec.id else f"{len(release.saes_map)} dictionaries: name one with #id"
        near = did_you_mean(spec.id or "", release.saes_map)
        some = ", ".join(list(release.saes_map)[:4])
        raise UserError(f"The release '{spec.source}' has {what}.{near} It begins with {some}.")
    if spec.revision is not None:
        if release.conversion_func is not None:
            raise UserError(
                f"SAELens loads '{spec.source}' through a converter that knows no revision: leave out @{spec.revision}."
            )
        return _load_folder(SaeSpec(release.repo_id, str(release.saes_map[spec.id]), spec.revision))
    sae, remarks = _read(spec, lambda: SAE.from_pretrained(spec.source, spec.id or ""))
    dictionary = from_sae(sae, name=str(spec), model_name=release.model)
    return replace(dictionary, revision=_commit(release.repo_id), remarks=(*remarks, *dictionary.remarks))


def _load_folder(spec: SaeSpec) -> Dictionary:
    from sae_lens import SAE

    folder, commit = weights_folder(spec, CONFIG)
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG} is no JSON ({error}).") from error
    if "num_latents" in config or ("expansion_factor" in config and "architecture" not in config):
        raise UserError(f"'{spec}' is in the format of sparsify: name it sparsify:{spec}.")
    sae, remarks = _read(spec, lambda: SAE.load_from_disk(folder))
    dictionary = from_sae(sae, name=str(spec))
    return replace(dictionary, revision=commit, remarks=(*remarks, *dictionary.remarks))


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
        raise UserError(f"The files of '{spec}' cannot be had: {str(error).strip().splitlines()[0]}") from error
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


def from_sae(sae: Any, *, name: str, model_name: str | None = None) -> Dictionary:
    """`sae` (a `sae_lens.SAE` of any architecture) as a `Dictionary`.

    Calling the SAE itself keeps the skip connection of skip transcoders and the predictions of temporal SAEs,
    which `decode(encode(x))` would lose.

    Raises `UserError` where the SAE normalises its input by numbers that it does not hold.
    """
    config = sae.cfg
    metadata = config.metadata.to_dict()
    if config.normalize_activations not in (*APPLIED, NO_FACTOR):
        raise UserError(
            f"{name} was trained with normalize_activations={config.normalize_activations}, which has to be folded "
            f"into its weights before use: sae.fold_activation_whitening(...) and save it again."
        )
    if sae.hook_z_reshaping_mode:
        # On the Hugging Face side z is already flat over heads.
        sae.turn_off_forward_pass_hook_z_reshaping()
    hook_in = metadata.get("hook_name")
    hook_out = metadata.get("hook_name_out") or hook_in
    stated = metadata.get("model_name")
    remarks = []
    if model_name is not None and stated is not None and _short(model_name) != _short(stated):
        remarks.append(f"the release says its model is {model_name}, the dictionary's own metadata {stated}")
    return Dictionary(
        name=name,
        module=sae,
        reconstruct=sae,
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
        model_name=stated or model_name,
        context_size=metadata.get("context_size"),
        prepend_bos=metadata.get("prepend_bos"),
        processing=metadata.get("model_from_pretrained_kwargs") or {},
        needs_norm_factor=config.normalize_activations == NO_FACTOR,
        sequential=config.architecture() == "temporal",
        remarks=tuple(remarks),
    )


def _short(model_name: str) -> str:
    return model_name.split("/")[-1].lower()
