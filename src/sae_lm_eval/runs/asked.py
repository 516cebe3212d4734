"""A variant of a run, as it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lm_eval.dictionaries.spec_patterns import specs_of
from sae_lm_eval.runs.object_names import is_object, object_name, object_texts


@dataclass(frozen=True)
class VariantRequest:
    """A variant to evaluate.

    `name` is that of its folder, `arguments` are the adapter's besides the model's, and `control_of` names the
    variants that it is a control of. Of the arguments `sae` is a text, or a tuple with objects in it; an edit of the
    model has `edit` in its place.
    """

    name: str
    arguments: Mapping[str, Any]
    control_of: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Any, ...]:
        """Its dictionaries: specs as text, and objects."""
        sae = self.arguments.get("sae", ())  # an edit of the model has none
        return tuple(str(spec) for spec in specs_of(sae)) if isinstance(sae, str) else sae

    @property
    def specs(self) -> tuple[str, ...]:
        """What its dictionaries are called."""
        return tuple(object_name(source) if is_object(source) else str(source) for source in self.sources)

    @property
    def record(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": object_texts(self.arguments), "control_of": self.control_of}
