"""A model's configuration, read before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictStr

from sae_lm_eval import world
from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.reading import Foreign, at_home, is_folder, read_json

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")  # of the residual stream, which every matrix of a block reads or writes


class ModelConfig(Foreign):
    """What is read of a model's config.json before transformers reads it whole."""

    model_type: StrictStr | None = None
    is_encoder_decoder: StrictBool = False
    text_config: dict[str, Any] | None = None


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
    if is_folder(folder):
        file = folder / inner / "config.json"
        if not file.is_file():
            raise UserError(f"There is no model in the folder '{pretrained}': it has no config.json.")
    else:
        file = hub_file(str(pretrained), f"{inner}/config.json" if inner else "config.json", model_args.get("revision"))
    config = {} if file is None else read_json(file, ModelConfig, "a model's configuration").as_given()
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"{config.get('model_type')} is a sequence-to-sequence model; sae_hf splices into causal language models."
        )
    return config


def hub_file(name: str, file: str, revision: Any, what: str = "model") -> Path | None:
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
