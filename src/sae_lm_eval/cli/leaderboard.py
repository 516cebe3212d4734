"""`sae-lm-eval leaderboard`: many runs as one page to look things up in; no model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def leaderboard_command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, or folders with such folders in them.")
    ],
    output_path: Annotated[Path, typer.Option("--output_path", help="The page to write.")] = Path("leaderboard.html"),
) -> None:
    """Put the variants of many runs on one page, with sorting, filters and provenance."""
    from sae_lm_eval.errors import UserError
    from sae_lm_eval.exchange.new_files import LEADERBOARD_MARK, check_place, write_marked
    from sae_lm_eval.exchange.run_folders import run_folders

    if output_path.is_dir():
        where = output_path / "leaderboard.html"
        raise UserError(f"'{output_path}' is a folder. Name the page in it: --output_path {where}")
    run_folders(folders)
    check_place(output_path.parent, [output_path.name], LEADERBOARD_MARK)

    from sae_lm_eval.exchange.leaderboard import read_leaderboard
    from sae_lm_eval.exchange.leaderboard_page import leaderboard_html

    board = read_leaderboard(folders, lambda said: typer.echo(said, err=True))
    page = {output_path.name: leaderboard_html(board).encode()}
    write_marked(output_path.parent, page, LEADERBOARD_MARK, "The page")
    for note in board.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"Written: {output_path}, with {len(board.rows)} variant{'s' if len(board.rows) != 1 else ''}.")
