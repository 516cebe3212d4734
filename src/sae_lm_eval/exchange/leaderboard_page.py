"""A leaderboard as one page that needs nothing else: its style and script are in it, and it asks for no other file."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_lm_eval.exchange.leaderboard import Leaderboard
from sae_lm_eval.exchange.new_files import LEADERBOARD_MARK
from sae_lm_eval.files.escaping import terminal
from sae_lm_eval.report.formatting import abridged
from sae_lm_eval.report.render import LOADER, breakable, script_digest

TITLE = "What dictionaries cost"


def leaderboard_html(board: Leaderboard) -> str:
    """The page. Everything that results hold is escaped, and its control characters are named."""
    loader = ChoiceLoader([PackageLoader("sae_lm_eval", "exchange/templates"), LOADER])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": terminal, "breakable": breakable, "abridged": abridged}

    def joined(kind: str) -> str:
        return "".join(loader.get_source(environment, f"{name}.{kind}")[0] for name in ("report", "leaderboard"))

    script = joined("js")
    models = _distinct(row.model for row in board.rows)
    return environment.get_template("leaderboard.html").render(
        board=board,
        title=TITLE,
        mark=LEADERBOARD_MARK,
        models=models,
        runs=_distinct(row.run for row in board.rows),
        filters=(
            ("model", "Model", models),
            ("mode", "Mode", _distinct(row.mode for row in board.rows)),
            ("asked", "Questions", _distinct(row.questions for row in board.rows)),
        ),
        script=Markup(script),
        style=Markup(joined("css")),
        digest=script_digest(script),
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
