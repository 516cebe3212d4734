"""The embedded world: a small trained model, its text and its dictionaries, without a network."""

import json
from pathlib import Path

from sae_lm_eval.errors import UserError, did_you_mean

NAME = "world"  # as `pretrained=` and as the source of a spec
FILES = Path(__file__).parent / "files"
CROSS_LAYER = FILES / "cross_layer_transcoder"  # in circuit-tracer's layout


def is_meant_by(pretrained: object) -> bool:
    """Whether `pretrained=` names the world; a local folder of that name with a model in it comes first."""
    return pretrained == NAME and not Path(NAME, "config.json").is_file()


def model_path(checkpoint: str | None = None) -> Path:
    """Folder of the main model or of a kept checkpoint, for AutoModelForCausalLM and AutoTokenizer."""
    if checkpoint is None:
        return FILES / "model"
    return _named("checkpoint", checkpoint, checkpoint_ids(), FILES / "checkpoints")


def dictionary_path(id: str) -> Path:
    """Folder of a dictionary, for SAE.load_from_disk of SAELens."""
    return _named("dictionary", id, dictionary_ids(), FILES / "dictionaries")


def checkpoint_ids() -> list[str]:
    return _folders(FILES / "checkpoints")


def dictionary_ids() -> list[str]:
    return _folders(FILES / "dictionaries")


def world_facts() -> dict:
    """What was measured when the world was made: entropies, family, checkpoints, dictionaries, drops."""
    return json.loads((FILES / "world.json").read_text())


def vocabulary_size() -> int:
    """How many tokens the model chooses among."""
    return json.loads((FILES / "model" / "config.json").read_text())["vocab_size"]


def _folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir())


def _named(kind: str, name: str, names: list[str], parent: Path) -> Path:
    if name in names:
        return parent / name
    if not name:
        raise UserError(f"The world has more than one {kind}: name one of {', '.join(names)}.")
    which = did_you_mean(name, names) or f" It has {', '.join(names)}."
    raise UserError(f"The world has no {kind} {name!r}.{which}")
