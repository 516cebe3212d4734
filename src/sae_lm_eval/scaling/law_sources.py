"""A law from what a user names: one of the table, a file of constants, runs to fit, or the OLMo ladder on a text."""

from pathlib import Path

from sae_lm_eval.files.reading import Foreign
from sae_lm_eval.scaling.data_files import Loss, Positive, read_rows
from sae_lm_eval.scaling.fit import fit_parametric_law
from sae_lm_eval.scaling.ladder import LADDER, ladder_law
from sae_lm_eval.scaling.laws import Law, get_law, laws


class Run(Foreign):
    """A model that a law is fitted to, with others."""

    params: Positive
    tokens: Positive
    loss: Loss


def load_law(law: str | Path | Law) -> Law:
    """A law as it is, by name, from a JSON file of constants, fitted to a CSV of runs, or to the ladder's on a text.

    The CSV has columns params, tokens and loss (nats/token). The ladder's fits are called olmo_ladder_TEXT.
    """
    if not isinstance(law, str | Path):
        return law
    name = str(law)
    if name.startswith(f"{LADDER}_") and "." not in name and name not in laws():
        return ladder_law(name.removeprefix(f"{LADDER}_"))
    if not name.endswith(".csv"):
        return get_law(law)
    columns = ("params", "tokens", "loss")
    runs = read_rows(law, required=columns, kind=Run)
    params, tokens, loss = ([row[column] for row in runs] for column in columns)
    return fit_parametric_law(params, tokens, loss, name=Path(law).stem)
