"""Whether a tokenizer has a chat template, told by its files before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.files.reading import at_home, is_folder, read_json

MISSING = "The tokenizer has no chat template: leave out --apply_chat_template."
TEMPLATES = ("chat_template.jinja", "additional_chat_templates")  # a file of one, a folder of several
CONFIG = "tokenizer_config.json"


def has_chat_template(model_args: Mapping[str, Any]) -> bool | None:
    """Whether the tokenizer that `--model_args` name has a chat template; None where only loading it can tell."""
    place: Any = model_args.get("tokenizer") or model_args.get("pretrained")
    if hasattr(place, "chat_template"):
        return bool(place.chat_template)
    own = ("gguf_file", "subfolder", "trust_remote_code")  # with which it is made otherwise
    if not isinstance(place, str | Path) or any(model_args.get(name) for name in own):
        return None
    folder = world.model_path() if world.is_meant_by(place) else at_home(place)
    if is_folder(folder):
        if any((folder / name).exists() for name in TEMPLATES):
            return True
        file = folder / CONFIG
        return _names_one(file) if file.is_file() else None
    revision = None if model_args.get("tokenizer") else model_args.get("revision")
    return _hub_template(str(place), None if revision is None else str(revision))


def _hub_template(name: str, revision: str | None) -> bool | None:
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        HTTPError,  # of its HTTP client, which is no OSError  # pyright: ignore[reportPrivateImportUsage]
    )

    try:
        cached = {file: try_to_load_from_cache(name, file, revision=revision) for file in (TEMPLATES[0], CONFIG)}
        if isinstance(cached[TEMPLATES[0]], str) or (
            isinstance(file := cached[CONFIG], str) and _names_one(Path(file))
        ):
            return True
        if constants.HF_HUB_OFFLINE:
            return None
        names = HfApi().list_repo_files(name, revision=revision)
        if any(name.split("/")[0] in TEMPLATES for name in names):
            return True
        if CONFIG not in names:
            return None
        file = Path(hf_hub_download(name, CONFIG, revision=revision))
    except (HTTPError, OSError, ValueError):
        return None  # what is wrong with it is told when it is loaded
    return _names_one(file)


def _names_one(file: Path) -> bool:
    return bool(read_json(file, dict[str, Any], "a tokenizer's configuration").get("chat_template"))
