"""`peft=` of a variant: which adapter is asked for, and what its configuration says. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import at_home, is_folder

FILE = "adapter_config.json"
# Beginnings of a LoRA that take a part out of the model's own weights.
FROM_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterSpec:
    """A folder or a repository of the hub, `org/name` or `org/name@revision`."""

    place: str
    revision: str | None = None

    @classmethod
    def parse(cls, given: Any) -> AdapterSpec:
        """Raises `UserError` where `given` names no adapter."""
        text = str(given).strip()
        if isinstance(given, bool | int | float | list | tuple | Mapping) or not text:
            raise UserError(f"peft={given!r} names no adapter: give its folder or its repository on the hub.")
        if is_folder(at_home(text)):
            return cls(str(at_home(text)))
        place, _, revision = text.partition("@")
        return cls(place, revision or None)

    def __str__(self) -> str:
        return self.place if self.revision is None else f"{self.place}@{self.revision}"

    @property
    def is_folder(self) -> bool:
        return is_folder(at_home(self.place))

    @property
    def files(self) -> tuple[tuple[str | int, ...], ...]:
        """Of a folder each file with what tells its versions apart; of a repository nothing."""
        entries = [(file.name, file.stat()) for file in at_home(self.place).iterdir()] if self.is_folder else []
        return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in entries))

    @property
    def options(self) -> dict[str, str]:
        """What the loaders of PEFT are told besides the place."""
        return {} if self.revision is None else {"revision": self.revision}

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `UserError` for an adapter that changes the model's own weights when it is put on, by its config."""
        begun = str(config.get("init_lora_weights") or "").lower()
        if begun.startswith(FROM_WEIGHTS):
            raise UserError(
                f"peft={self} was begun by {begun}, which takes a part out of the model's own weights: save it as a "
                "plain LoRA, by path_initial_model_for_weight_conversion of PEFT's save_pretrained."
            )
