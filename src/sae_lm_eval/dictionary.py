"""Loaders, by name, that turn a spec into one kind of thing: a `Dictionary`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.spec import SaeSpec


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder or transcoder with what its release says of it.

    `reconstruct` maps activations (..., d_in) to (..., d_out); `encode` maps them to element activations
    (..., d_dictionary). Both take and give the module's own dtype. `elements`, where there is one, is the module that
    gives what `encode` does on the way of `reconstruct`. `None` in any other field means that the release does not
    say; it never stands for a guess.
    """

    name: str
    module: nn.Module
    reconstruct: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    architecture: str
    d_in: int
    d_out: int
    d_dictionary: int
    hook_in: str | None
    hook_out: str | None
    module_hook_in: str | None = None
    module_hook_out: str | None = None
    model_names: tuple[str, ...] = ()
    context_size: int | None = None
    prepend_bos: bool | None = None
    processing: Mapping[str, Any] = field(default_factory=dict)
    needs_norm_factor: bool = False
    sequential: bool = False
    elements: nn.Module | None = None
    revision: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes somewhere else than it reads."""
        return self.hook_out != self.hook_in

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and bytes of the weights, so that no two dictionaries pass for one."""
        weights = sorted(self.module.state_dict().items())
        state = tuple((name, weight.data_ptr(), weight._version) for name, weight in weights)
        if state not in self._hashed:
            self._hashed.clear()
            self._hashed[state] = self._hash(weights)
        return self._hashed[state]

    @cached_property
    def _hashed(self) -> dict[tuple, str]:
        """What the weights were when they were hashed last."""
        return {}

    @staticmethod
    def _hash(weights: Sequence[tuple[str, Tensor]]) -> str:
        digest = hashlib.sha256()
        for name, weight in weights:
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load(source: Any, *, dtype: torch.dtype = torch.float32, norm_factor: float | None = None) -> Dictionary:
    """The dictionary that `source` is or names: a spec as text or value, a SAELens SAE, a sparsify coder, a Dictionary.

    `norm_factor` is what activations were multiplied by in training, for releases that normalised them and do
    not say by how much.

    Raises `UserError` for whatever cannot be found, read or applied.
    """
    dictionary = find(source)
    if dictionary.needs_norm_factor:
        if norm_factor is None:
            raise UserError(
                f"{dictionary.name} was trained on normalised activations "
                f"(normalize_activations=expected_average_only_in) and its factor is not known: its output would "
                f"be silently wrong. Give norm_factor=sqrt(d_in)/(mean norm of the activations); "
                f"'sae-lm-eval inspect --text FILE' estimates it."
            )
        dictionary.module.fold_activation_norm_scaling_factor(norm_factor)  # pyright: ignore[reportCallIssue]
        dictionary = replace(
            dictionary,
            needs_norm_factor=False,
            remarks=(*dictionary.remarks, f"activations scaled by norm_factor={norm_factor}"),
        )
    elif norm_factor is not None:
        raise UserError(f"{dictionary.name} needs no norm_factor: leave it out.")
    dictionary.module.to(dtype=dtype).eval().requires_grad_(False)
    return dictionary


def find(source: Any) -> Dictionary:
    """The dictionary as it was released, in its own dtype; see `load`."""
    if isinstance(source, Dictionary):
        return source
    if isinstance(source, str):
        source = SaeSpec.parse(source)
    if isinstance(source, SaeSpec):
        return LOADERS[source.loader](source)
    for module_prefix, from_object in OBJECTS.items():
        if any(cls.__module__.startswith(module_prefix) for cls in type(source).__mro__):
            return from_object(source)
    raise UserError(
        f"A {type(source).__name__} is no dictionary. Give a spec, a SAELens SAE, a sparsify SparseCoder, "
        f"or a sae_lm_eval.Dictionary."
    )


def _load_saelens(spec: SaeSpec) -> Dictionary:
    from sae_lm_eval import saelens

    return saelens.load(spec)


def _from_saelens(sae: Any) -> Dictionary:
    from sae_lm_eval import saelens

    return saelens.from_sae(sae, name=f"<{type(sae).__name__}>")


def _load_sparsify(spec: SaeSpec) -> Dictionary:
    from sae_lm_eval import sparsify_coder

    return sparsify_coder.load(spec)


def _from_sparsify(coder: Any) -> Dictionary:
    from sae_lm_eval import sparsify_coder

    return sparsify_coder.from_coder(coder, name=f"<{type(coder).__name__}>", hookpoint=None)


LOADERS: dict[str, Callable[[SaeSpec], Dictionary]] = {"saelens": _load_saelens, "sparsify": _load_sparsify}
OBJECTS: dict[str, Callable[[Any], Dictionary]] = {"sae_lens.": _from_saelens, "sparsify.": _from_sparsify}


def weights_folder(spec: SaeSpec, wanted: str) -> tuple[Path, str | None]:
    """The local folder that holds `wanted`, and the hub commit it came from (None for a folder of the user's).

    Raises `UserError` where there is no such folder, repository, revision or id, naming the ids there are.
    """
    local = Path(spec.source).expanduser()
    if local.is_dir():
        if spec.revision is not None:
            raise UserError(f"'{spec.source}' is a local folder, which has no revision '{spec.revision}'.")
        folder = local / (spec.id or "")
        if not (folder / wanted).is_file():
            raise UserError(
                f"{_none_at(spec, wanted)}{_ids(p.parent.relative_to(local).as_posix() for p in local.rglob(wanted))}"
            )
        return folder, None
    if spec.source.count("/") != 1 or spec.source.startswith((".", "/", "~")):
        raise UserError(
            f"'{spec.source}' is neither a folder here nor a SAELens release nor a hub repository org/name."
        )
    return _hub_folder(spec, wanted)


def _hub_folder(spec: SaeSpec, wanted: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{spec.id}/" if spec.id else ""
    try:
        snapshot = Path(
            snapshot_download(
                spec.source,
                revision=spec.revision,
                allow_patterns=[f"{prefix}*.json", f"{prefix}*.safetensors"],
            )
        )
    except RevisionNotFoundError as error:
        raise UserError(f"The hub repository '{spec.source}' has no revision '{spec.revision}'.") from error
    except (RepositoryNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"There is no hub repository '{spec.source}' (or it is gated and you have no access), "
            f"no SAELens release and no folder of that name."
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The hub cannot be reached and '{spec.source}' is not in the local cache: {first_line(error)}"
        ) from error
    folder = snapshot / (spec.id or "")
    if not (folder / wanted).is_file():
        files = HfApi().list_repo_files(spec.source, revision=spec.revision)
        ids = (name.removesuffix(wanted).rstrip("/") for name in files if name.endswith(wanted))
        raise UserError(f"{_none_at(spec, wanted)}{_ids(ids)}")
    return folder, snapshot.name


def _none_at(spec: SaeSpec, wanted: str) -> str:
    return f"'{spec.source}' holds no dictionary {f'#{spec.id}' if spec.id else 'at its top'} (a folder with {wanted})."


def _ids(ids) -> str:
    ids = sorted(name for name in ids if name not in ("", "."))
    if not ids:
        return " It holds none at all."
    return f" It has #{', #'.join(ids[:8])}{f' and {len(ids) - 8} more' if len(ids) > 8 else ''}."


def quietly(function: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """What `function` returns, and what it warned of, once each, as remarks instead of on the screen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    said = (" ".join(str(w.message).split()) for w in caught if w.category is UserWarning)
    # How the model should be loaded is what activation maps are for.
    return result, tuple(dict.fromkeys(text for text in said if "model_from_pretrained_kwargs" not in text))
