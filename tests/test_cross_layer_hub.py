"""A cross-layer transcoder for a real small model, from a hub and a folder, in both layouts, through whole runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import HUB, hub_environment_of, serving
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

WIDTH, LAYERS, LATENTS = 192, 6, 96
TASK, LIMIT = "sae_world_villages", 4
LAYOUTS = ("circuit-tracer", "gemma-scope-2")


def weights() -> list[dict[str, Tensor]]:
    """Of each layer, random: W_enc (d_in, latents), W_dec (latents, layers from this one on, d_out)."""
    rng = torch.Generator().manual_seed(0)
    tensors = []
    for layer in range(LAYERS):
        shapes = {"W_enc": (WIDTH, LATENTS), "W_dec": (LATENTS, LAYERS - layer, WIDTH), "b_dec": (WIDTH,)}
        w = {name: torch.randn(shape, generator=rng) / 8 for name, shape in shapes.items()}
        w |= {"b_enc": torch.full((LATENTS,), -0.5), "threshold": torch.full((LATENTS,), 0.1)}
        tensors.append(w)
    return tensors


def saved(folder: Path, layout: str) -> None:
    folder.mkdir(parents=True)
    for layer, w in enumerate(weights()):
        if layout == "circuit-tracer":
            parts = {"W_enc": w["W_enc"].T.contiguous(), **{n: w[n] for n in ("b_enc", "b_dec", "threshold")}}
            save_file({f"{n}_{layer}": tensor for n, tensor in parts.items()}, folder / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": w["W_dec"]}, folder / f"W_dec_{layer}.safetensors")
        else:
            full = torch.zeros(LATENTS, LAYERS, WIDTH)
            full[:, layer:] = w["W_dec"]
            parts = {"w_enc": w["W_enc"], "w_dec": full, **{n: w[n] for n in ("b_enc", "b_dec", "threshold")}}
            save_file(parts, folder / f"params_layer_{layer}.safetensors")
    if layout == "circuit-tracer":
        said = {"model_name": "stories3M", "model_kind": "cross_layer_transcoder", "feature_input_hook": "mlp.hook_in"}
        (folder / "config.yaml").write_text(yaml.safe_dump({**said, "feature_output_hook": "hook_mlp_out"}))
    else:
        hooks = ("post_attention_layernorm.output", "mlp.output")
        said = {
            f"hf_hook_point_{way}": f"model.layers.{{all}}.{hook}"
            for way, hook in zip(("in", "out"), hooks, strict=True)
        }
        (folder / "config.json").write_text(json.dumps(said))


def by_hand(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Log-probabilities of stories3M with each MLP replaced by the transcoder's formula, in plain torch."""
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    w, seen, ids = weights(), {}, torch.zeros(1, 0)

    def write(layer, _module, args, out):
        before = args[0] @ w[layer]["W_enc"] + w[layer]["b_enc"]
        seen[layer] = torch.where(before > w[layer]["threshold"], before, 0)
        new = sum(seen[i] @ w[i]["W_dec"][:, layer - i] for i in range(layer + 1)) + w[layer]["b_dec"]
        special = torch.isin(ids, torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id]))[..., None]
        return torch.where(special, out, new)

    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *a, layer=layer: write(layer, *a))
    logprobs = []
    for context, continuation in pairs:
        whole, behind = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
        ids = torch.tensor([whole[:-1]])
        with torch.no_grad():
            logits = model(ids).logits[0, behind - 1 :].log_softmax(-1)
        logprobs.append(float(logits.gather(-1, torch.tensor(whole[behind:])[:, None]).sum()))
    return logprobs


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    if not (HUB / "serve.py").is_file():
        pytest.skip(f"NOT TESTED ON REAL INPUT: there is no hub at {HUB}")
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(HUB / "root" / "models" / "stories3M", root / "models" / "stories3M")
    for layout in LAYOUTS:
        saved(root / "models" / "org" / f"clt-{layout}", layout)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_by_repository_and_by_folder(root, tmp_path, layout):
    folder = root / "models" / "org" / f"clt-{layout}"
    variants = [{"sae": f"clt:org/clt-{layout}", "name": "hub"}, {"sae": f"clt:{folder}", "name": "folder"}]
    sweep = {"model_args": {"pretrained": "stories3M"}, "variants": variants, "tasks": TASK, "limit": LIMIT}
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({**sweep, "device": "cpu", "output_path": str(tmp_path / "out")})
    )
    with serving(root) as address:
        command = [sys.executable, "-m", "sae_lm_eval", "run", str(tmp_path / "sweep.yaml")]
        environment = hub_environment_of(address, tmp_path / "home")
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answers = {}
    for name in ("hub", "folder"):
        (samples,) = (tmp_path / "out" / name).glob("*/samples_*.jsonl")
        read = [json.loads(line) for line in samples.read_text().splitlines()]
        pairs = [tuple(request.values()) for sample in read for request in sample["arguments"].values()]
        answers[name] = [float(answer[0]) for sample in read for answer in sample["filtered_resps"]]
    assert answers["hub"] == answers["folder"]
    assert answers["hub"] == pytest.approx(by_hand(root / "models" / "stories3M", pairs), abs=1e-4)
