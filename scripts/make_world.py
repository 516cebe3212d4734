"""Make the embedded world anew: text, models, dictionaries, measurements, card. One seeded command.

    python scripts/make_world.py [--build FOLDER]

Every stage leaves its result under the build folder and is skipped when that is there, so a broken run goes
on where it stopped; delete the folder to begin again.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
import world_card
import world_cross_layer as cross_layer
import world_dictionaries as dictionaries
import world_measure as measure
import world_training as training
from transformers import LlamaForCausalLM

from sae_lm_eval.world import CROSS_LAYER, FILES

MAIN = training.Run("main", 128, 4, 4, 6_500_000, 2.5e-3, checkpoints=12)
FAMILY = (
    training.Run("w24", 24, 2, 1, 400_000, 8e-3),
    training.Run("w32", 32, 2, 1, 600_000, 7e-3),
    training.Run("w48", 48, 3, 2, 900_000, 6e-3),
    training.Run("w64", 64, 3, 2, 1_200_000, 5e-3),
    training.Run("w96", 96, 4, 3, 1_600_000, 3.5e-3),
)
SITES = (1, 2, 3)
LATENTS_A_WORD = (4, 8, 32)
DICTIONARIES = (
    *(
        dictionaries.Plan(f"blocks.{layer}.hook_resid_post.k{k}", "topk", f"blocks.{layer}.hook_resid_post", k=k)
        for layer in SITES
        for k in LATENTS_A_WORD
    ),
    dictionaries.Plan(
        "blocks.2.mlp.transcoder",
        "transcoder",
        "blocks.2.mlp.hook_in",
        "blocks.2.hook_mlp_out",
        sparsity=0.02,
    ),
    dictionaries.Plan(
        "blocks.2.mlp.skip_transcoder",
        "skip_transcoder",
        "blocks.2.mlp.hook_in",
        "blocks.2.hook_mlp_out",
        sparsity=0.02,
    ),
)
HOOKS = sorted({hook for plan in DICTIONARIES for hook in (plan.hook_name, plan.hook_name_out) if hook})
TRAINING_POSITIONS = 400_000


def once(file: Path, make: Callable[[], dict]) -> dict:
    """The JSON result in `file`, made first if it is not there."""
    if not file.exists():
        started = time.time()
        result = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**result, "stage_seconds": round(time.time() - started, 1)}, indent=1))
    return json.loads(file.read_text())


def train_model(run: training.Run, build: Path) -> dict:
    tokenizer = training.make_tokenizer()
    return once(build / run.name / "run.json", lambda: training.train(run, tokenizer, build / run.name))


def load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_dictionaries(build: Path) -> list[dict]:
    wanted = [plan for plan in DICTIONARIES if not (build / "dictionaries" / f"{plan.id}.json").exists()]
    if wanted:
        tokenizer, model = training.make_tokenizer(), load(build / "main" / "final")
        data = dictionaries.activations(model, tokenizer, HOOKS, dictionaries.TRAINING_SEED, TRAINING_POSITIONS)
        held_out = dictionaries.held_out(model, tokenizer, HOOKS)
        for plan in wanted:
            folder = build / "dictionaries" / plan.id

            def make(plan=plan, folder=folder) -> dict:
                dictionaries.train(plan, data, folder)
                row = dictionaries.figures(folder, held_out)
                print(json.dumps(row), flush=True)
                return row

            once(build / "dictionaries" / f"{plan.id}.json", make)
    return [json.loads((build / "dictionaries" / f"{plan.id}.json").read_text()) for plan in DICTIONARIES]


def train_cross_layer(build: Path) -> list[dict]:
    """The rows of the cross-layer transcoder, one for each layer."""
    folder = build / "cross_layer_transcoder"

    def make() -> dict:
        tokenizer, model = training.make_tokenizer(), load(build / "main" / "final")
        cross_layer.train(model, tokenizer, folder)
        return {"rows": cross_layer.figures(folder, model, tokenizer)}

    return once(build / "cross_layer_transcoder.json", make)["rows"]


def ship(build: Path, kept: list[str]) -> None:
    shutil.rmtree(FILES, ignore_errors=True)
    shutil.copytree(build / "main" / "final", FILES / "model")
    for name in kept:
        shutil.copytree(build / "main" / name, FILES / "checkpoints" / name)
    for plan in DICTIONARIES:
        shutil.copytree(build / "dictionaries" / plan.id, FILES / "dictionaries" / plan.id)
    shutil.copytree(build / "cross_layer_transcoder", CROSS_LAYER)
    for path in FILES.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/world"), help="folder of the intermediate results")
    build = parser.parse_args().build
    torch.set_num_threads(1)
    runs = [train_model(MAIN, build)]
    trained, of_layers = train_dictionaries(build), train_cross_layer(build)
    runs += [train_model(run, build) for run in FAMILY]
    measured = once(build / "measured.json", lambda: measure.measure(build, runs[0]["checkpoint_table"], trained))
    ship(build, measured["kept_checkpoints"])
    world_card.write(FILES, runs, trained, of_layers, measured)


if __name__ == "__main__":
    main()
