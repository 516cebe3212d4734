"""The main job on the embedded world: the untouched model and a few variants, compared, reported, and talked to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEMO_FOLDER = Path("out/demo")
MIDDLE = "world#blocks.2.hook_resid_post"
# As in a sweep file, for `sae-lm-eval run`.
SWEEP = {
    "model_args": {"pretrained": "world"},
    "tasks": ["sae_world", "sae_fidelity_world"],
    "device": "cpu",
    "variants": [
        {"name": "k32", "sae": f"{MIDDLE}.k32"},
        {"name": "k4", "sae": f"{MIDDLE}.k4"},
        {"name": "transcoder", "sae": "world#blocks.2.mlp.skip_transcoder"},
        {"name": "all_mlps", "sae": "clt:world"},
        {"name": "zero", "sae": f"{MIDDLE}.k32", "splice": "zero"},
    ],
}

INTRODUCTION = (
    "What does a language model lose when sparse autoencoders take the place of its activations? A model of a million "
    "parameters, which knows a small invented world, answers 2,600 questions: untouched, and in five spliced forms. "
    "Nothing is downloaded. It takes minutes."
)


def demo(
    output_path: Annotated[Path, typer.Option("--output_path", help="Folder of results, report and page.")] = (
        DEMO_FOLDER
    ),
) -> None:
    """Splice dictionaries into the embedded model and show what it loses; no network, no GPU."""
    from rich.console import Console

    from sae_lm_eval.cli.run import run_and_report
    from sae_lm_eval.cli.tables import print_sentence
    from sae_lm_eval.runs.sweep import sweep_of
    from sae_lm_eval.runtime.run_folder import check_folder

    check_folder(output_path)
    print_sentence(Console(stderr=True), INTRODUCTION)
    run_and_report(sweep_of(SWEEP), output_path, tables=1)
    page = write_page(output_path)
    report = output_path / "report" / "report.html"
    for sentence in (f"To see the models answer side by side: {page}", f"To see every task and figure, open {report}"):
        print_sentence(Console(), sentence, soft_wrap=True)


def write_page(folder: Path) -> Path:
    """talk.html in `folder`: what the untouched model and two variants answer to a question of each category."""
    from sae_lm_eval.runtime.placed_files import place_files
    from sae_lm_eval.runtime.progress import quiet
    from sae_lm_eval.talk.chosen import Sampling
    from sae_lm_eval.talk.conversation import Conversation, Model
    from sae_lm_eval.talk.html_page import render
    from sae_lm_eval.talk.passages import of_exchange
    from sae_lm_eval.world import categories, text

    path = folder / "talk.html"
    with quiet(folder / "run.log"):
        model = Model({"pretrained": "world", "sae": f"{MIDDLE}.k4"}, [f"{MIDDLE}.k32"])
        prompts = [text.questions(category, 1)[0].prompt for category in categories.world_categories()]
        answers = [Conversation(model, Sampling(max_new_tokens=16)).answer(prompt) for prompt in prompts]
        page = render(model, [of_exchange(model, answer) for answer in answers])
    place_files({path.name: page.encode()}, folder, what="The page", otherwise="Give another --output_path.")
    return path
