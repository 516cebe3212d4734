"""Training of the world's cross-layer transcoder, and its figures on held-out text."""

from pathlib import Path

import torch
import world_dictionaries as dictionaries
import yaml
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lm_eval.dictionaries.cross_layer import CrossLayerLatents, CrossLayerOutput
from sae_lm_eval.dictionaries.loading import load_dictionaries

READS, WRITES = "hook_resid_mid", "hook_mlp_out"
LATENTS, SPARSITY, SAMPLES, LEARNING_RATE = 256, 0.02, 3_000_000, 2e-3
POSITIONS = 200_000


def hooks(layers: int) -> list[str]:
    return [f"blocks.{layer}.{hook}" for layer in range(layers) for hook in (READS, WRITES)]


def initial(sources: torch.Tensor, targets: torch.Tensor) -> list[CrossLayerOutput]:
    """Of `sources` (layers, positions, width): unit encoders, decoders of which the layer's own is not 0."""
    layers, _, width = sources.shape
    latents: list[CrossLayerLatents] = []
    layer_outputs = []
    for layer in range(layers):
        scale = sources[layer].pow(2).mean().sqrt()
        encoder = torch.nn.functional.normalize(torch.randn(width, LATENTS), dim=0) / scale
        decoder = torch.zeros(LATENTS, layers - layer, width)
        decoder[:, 0] = torch.nn.functional.normalize(torch.randn(LATENTS, width), dim=1) * 0.1
        latents.append(CrossLayerLatents(layer, encoder, torch.zeros(LATENTS), decoder))
        layer_outputs.append(CrossLayerOutput(tuple(latents), targets[layer].mean(0)))
    return layer_outputs


def outputs(
    layers: list[CrossLayerOutput], x: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[CrossLayerLatents]]:
    """What is written at each layer when latents read `x` (layers, positions, width), and the latents."""
    sources = list(layers[-1].sources)
    latents = [source(x[source.layer]) for source in sources]
    sums = [layer.b_dec.expand_as(x[0]) for layer in layers]
    for source, active in zip(sources, latents, strict=True):
        for column in range(source.decoder.shape[1]):
            sums[source.layer + column] = sums[source.layer + column] + active @ source.decoder[:, column]
    return sums, latents, sources


def loss_of(layers: list[CrossLayerOutput], x: torch.Tensor, y: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Summed over layers: squared error over the variance of the MLP's output, and SPARSITY times the sum of latents
    times the norms of all that they write, in units of the output's standard deviation.
    """
    sums, latents, sources = outputs(layers, x)
    errors = sum(
        (out - target).pow(2).sum(1).mean() / variance for out, target, variance in zip(sums, y, variances, strict=True)
    )
    scales = variances.sqrt()
    sizes = sum(
        (active * (source.decoder.norm(dim=-1) / scales[source.layer :]).norm(dim=1)).sum(1).mean()
        for active, source in zip(latents, sources, strict=True)
    )
    return errors + SPARSITY * sizes


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    torch.manual_seed(dictionaries.TRAINING_SEED)
    count = model.config.num_hidden_layers
    data = dictionaries.activations(model, tokenizer, hooks(count), dictionaries.TRAINING_SEED, POSITIONS)
    x, y = (torch.stack([data[f"blocks.{layer}.{hook}"] for layer in range(count)]) for hook in (READS, WRITES))
    layers = initial(x, y)
    parameters = [p.requires_grad_() for p in torch.nn.ModuleList(layers).parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    steps = SAMPLES // dictionaries.BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    variances = y.var(1).sum(1)
    rows = dictionaries.shuffled(torch.arange(POSITIONS), dictionaries.TRAINING_SEED)
    for _, places in zip(range(steps), rows, strict=False):
        optimizer.zero_grad()
        loss_of(layers, x[:, places], y[:, places], variances).backward()
        optimizer.step()
        schedule.step()
    save(layers, folder)


@torch.no_grad()
def save(layers: list[CrossLayerOutput], folder: Path) -> None:
    """In circuit-tracer's layout, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer, source in zip(layers, layers[-1].sources, strict=True):
        n = source.layer
        encoder = {f"W_enc_{n}": source.W_enc.T, f"b_enc_{n}": source.b_enc, f"b_dec_{n}": layer.b_dec}
        for name, tensors in ((f"W_enc_{n}", encoder), (f"W_dec_{n}", {f"W_dec_{n}": source.decoder})):
            halved = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
            save_file(halved, folder / f"{name}.safetensors")
    config = {
        "model_name": "world",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": READS,
        "feature_output_hook": WRITES,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


@torch.no_grad()
def figures(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[dict]:
    """A row of the card for each layer; see `world_dictionaries.figures`."""
    count = model.config.num_hidden_layers
    data = dictionaries.held_out(model, tokenizer, hooks(count))
    layers = [dictionary.cross_layer for dictionary in load_dictionaries(f"clt:{folder}")]
    x = torch.stack([data[f"blocks.{layer}.{READS}"] for layer in range(count)])
    sums, latents, _ = outputs(layers, x)
    rows = []
    for layer in range(count):
        target = data[f"blocks.{layer}.{WRITES}"].double()
        error = (target - sums[layer].double()).pow(2).sum(1).mean()
        variance = target.pow(2).sum(1).mean() - target.mean(0).pow(2).sum()
        active = latents[layer] != 0
        row = {"id": f"clt:world#layer_{layer}", "architecture": "cross_layer_transcoder"}
        row |= {"hook_name": f"blocks.{layer}.{READS}", "hook_name_out": f"blocks.{layer}.{WRITES}", "d_sae": LATENTS}
        row |= {"l0": active.sum(1).double().mean().item(), "explained_variance": (1 - error / variance).item()}
        rows.append({**row, "dead_latents": int((active.sum(0) == 0).sum())})
    return rows
