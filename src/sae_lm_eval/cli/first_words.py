"""What a command checks and says before it loads what takes seconds to load."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from sae_lm_eval.errors import UserError


def say_loading() -> None:
    """Say on stderr that libraries are loaded, unless they are already."""
    if "torch" not in sys.modules:
        typer.echo("Loading torch, transformers and lm_eval.", err=True)


def check_splices(arguments: Mapping[str, Any], saes: Sequence[Any] = ()) -> None:
    """Raise `UserError` for what loading the model, spliced as `arguments` say and with each `saes`, would refuse."""
    from sae_lm_eval.runs.asked import VariantRequest
    from sae_lm_eval.runs.checks import check_model_args, check_variants
    from sae_lm_eval.splicing.splice_arguments import SpliceArguments

    own = SpliceArguments.among(arguments)
    check_model_args(arguments)
    if not own.get("sae") and own.get("edit") is None and not saes:
        raise UserError("sae= is missing: name a dictionary, as in sae=gpt2-small-res-jb#blocks.8.hook_resid_pre.")
    variants = [own] if own.get("sae") is not None or "edit" in own or not saes else []
    variants += [{**own, "sae": sae} for sae in saes]
    of_model = {name: value for name, value in arguments.items() if name not in own}
    check_variants(of_model, [VariantRequest(str(variant.get("sae", "edit")), variant) for variant in variants])
