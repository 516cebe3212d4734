"""The figure of docs/decompositions.md: dictionaries on ladders of edits of the model.

    sae-lm-eval run --model_args pretrained=world --tasks sae_world,sae_fidelity_world --limit 40 --output_path OUT \\
        --sae world#blocks.2.hook_resid_post.k4 --sae world#blocks.2.hook_resid_post.k32 \\
        --control prune --control lowrank
    python benchmarks/ruler_figure.py OUT docs/figures/ruler.png
"""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from sae_lm_eval.capability.ruler import ladders_of
from sae_lm_eval.report.figures import COLOURS, INK, STYLE, WIDTH, legend, logarithmic
from sae_lm_eval.results.find import find_results
from sae_lm_eval.results.results import Results

KINDS = {"prune": "share of the MLP weights pruned", "lowrank": "share of their rank left"}


def kl(results: Results) -> tuple[float, float]:
    """On the first text, with its standard error."""
    task = results.fidelity_tasks[0]
    return results.score(task, "kl,none"), results.score(task, "kl_stderr,none")


def main(folder: Path, picture: Path) -> None:
    _, variants = find_results(folder)
    ladders = {ladder.kind: ladder for ladder in ladders_of(variants)}
    dictionaries = [variant for variant in variants if variant.provenance.get("splice") == "reconstruction"]
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, 2.4))
        axes = figure.subplots(1, len(KINDS), sharey=True)
        for axis, (kind, label) in zip(axes, KINDS.items(), strict=True):
            rungs = {share: kl(results[0]) for share, results in ladders[kind].rungs.items()}
            values, errors = zip(*rungs.values(), strict=True)
            axis.errorbar(list(rungs), values, errors, color=INK, marker="o", label="edits")
            for index, results in enumerate(dictionaries):
                value, error = kl(results)
                name = f"dictionary {results.name.rpartition('.')[2]}"
                axis.axhline(value, color=COLOURS[index], label=name)
                axis.axhspan(value - error, value + error, color=COLOURS[index], alpha=0.15, linewidth=0)
            axis.set_yscale("log")
            logarithmic(axis.yaxis, values)
            axis.set_xlabel(label)
        axes[1].invert_xaxis()
        axes[0].set_ylabel("KL (nats/token)")
        legend(figure, axes[0])
        figure.savefig(picture, dpi=200)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
