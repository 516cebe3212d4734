"""Training of the world's dictionaries with SAELens' SAETrainer, and their figures on held-out text."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from sae_lens import SAE, LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from world_training import CONTEXT, HELD_OUT_SEED, encode, pad

from sae_lm_eval.world import text

TRAINING_SEED = 5
BATCH = 1024


@dataclass(frozen=True)
class Plan:
    """One dictionary: `k` latents per token for an SAE, a sparsity coefficient for a transcoder."""

    id: str
    architecture: str
    hook_name: str
    hook_name_out: str | None = None
    k: int | None = None
    sparsity: float | None = None
    d_sae: int = 512
    samples: int = 1_000_000
    learning_rate: float = 2e-3


def metadata(plan: Plan) -> SAEMetadata:
    out = {"hook_name_out": plan.hook_name_out} if plan.hook_name_out else {}
    return SAEMetadata(
        model_name="world",
        model_class_name="AutoModelForCausalLM",
        hook_name=plan.hook_name,
        **out,
        context_size=CONTEXT,
        prepend_bos=True,
        exclude_special_tokens=True,
        dataset="documents of sae_lm_eval.world.text",
    )


def hooked_module(model: LlamaForCausalLM, hook: str) -> tuple[torch.nn.Module, str]:
    """The module whose input or output the TransformerLens hook name stands for, and which of the two."""
    _, layer, point = hook.split(".", 2)
    block = model.model.layers[int(layer)]
    return {
        "hook_resid_post": (block, "output"),
        "hook_resid_mid": (block.post_attention_layernorm, "input"),
        "mlp.hook_in": (block.mlp, "input"),
        "hook_mlp_out": (block.mlp, "output"),
    }[point]


@torch.no_grad()
def activations(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, hooks: list[str], seed: int, positions: int
) -> dict[str, torch.Tensor]:
    """Activations at the words of documents after <s>, itself left out: hook -> (positions, width)."""
    by_hook: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    caught: dict[str, torch.Tensor] = {}
    stream = text.documents(Random(seed))
    with ExitStack() as scope:
        for hook in hooks:
            module, side = hooked_module(model, hook)

            def catch(module, args, output, hook=hook, side=side):
                caught[hook] = args[0] if side == "input" else output

            scope.callback(module.register_forward_hook(catch).remove)
        count = 0
        while count < positions:
            rows = [[tokenizer.bos_token_id, *ids] for ids in encode(tokenizer, [d.text for d in islice(stream, 128)])]
            ids = pad(rows, tokenizer.pad_token_id)
            words = (ids != tokenizer.pad_token_id) & (ids != tokenizer.bos_token_id)
            model.model(ids)
            for hook in hooks:
                by_hook[hook].append(caught[hook][words])
            count += int(words.sum())
    return {hook: torch.cat(parts)[:positions] for hook, parts in by_hook.items()}


def shuffled(data: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(data), generator=generator).split(BATCH):
            if len(rows) == BATCH:
                yield data[rows]


def trainer_config(plan: Plan) -> SAETrainerConfig:
    steps = plan.samples // BATCH
    return SAETrainerConfig(
        total_training_samples=plan.samples,
        train_batch_size_samples=BATCH,
        lr=plan.learning_rate,
        lr_end=plan.learning_rate / 100,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 3,
        adam_beta1=0.9,
        dead_feature_window=100,
        n_batches_for_norm_estimate=50,
        logger=LoggingConfig(log_to_wandb=False),
    )


def train_sae(plan: Plan, data: dict[str, torch.Tensor], folder: Path) -> None:
    torch.manual_seed(TRAINING_SEED)
    source = data[plan.hook_name]
    config = TopKTrainingSAEConfig(
        d_in=source.shape[1],
        d_sae=plan.d_sae,
        k=plan.k,
        normalize_activations="expected_average_only_in",
        metadata=metadata(plan),
    )
    sae = TopKTrainingSAE(config)
    SAETrainer(trainer_config(plan), sae, shuffled(source, TRAINING_SEED)).fit()
    sae.save_inference_model(folder)


class TranscoderInTraining(torch.nn.Module):
    """What SAETrainer needs to train an inference transcoder; SAELens has no training class for them.

    A sample is the input and the output of the MLP side by side. Loss: squared error over the variance of
    the output, plus sparsity * sum_i f_i |W_dec_i| / sqrt(variance).
    """

    def __init__(self, transcoder: Transcoder, sparsity: float, target: torch.Tensor):
        super().__init__()
        self.transcoder = transcoder
        self.cfg = transcoder.cfg
        self.device = transcoder.device
        self.sparsity = sparsity
        self.register_buffer("variance", target.var(0).sum())
        with torch.no_grad():
            transcoder.b_dec.copy_(target.mean(0))
            transcoder.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(transcoder.W_dec), dim=1) * 0.1)
            transcoder.W_enc.copy_(torch.nn.functional.normalize(torch.randn_like(transcoder.W_enc), dim=0) * 0.3)

    def get_coefficients(self) -> dict[str, TrainCoefficientConfig]:
        return {"sparsity": TrainCoefficientConfig(value=self.sparsity, warm_up_steps=200)}

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        source, target = step_input.sae_in.split([self.cfg.d_in, self.cfg.d_out], dim=1)
        output, latents = self.transcoder.forward_with_activations(source)
        error = (output - target).pow(2).sum(1).mean() / self.variance
        size = (latents * self.transcoder.W_dec.norm(dim=1)).sum(1).mean() / self.variance.sqrt()
        loss = error + step_input.coefficients["sparsity"] * size
        losses = {"mse_loss": error, "sparsity": size}
        return TrainStepOutput(target, output, latents, latents, loss, losses)


def train_transcoder(plan: Plan, data: dict[str, torch.Tensor], folder: Path) -> None:
    torch.manual_seed(TRAINING_SEED)
    source, target = data[plan.hook_name], data[plan.hook_name_out]
    kinds = {
        "transcoder": (Transcoder, TranscoderConfig),
        "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
    }
    build, configure = kinds[plan.architecture]
    transcoder = build(
        configure(
            d_in=source.shape[1],
            d_out=target.shape[1],
            d_sae=plan.d_sae,
            apply_b_dec_to_input=False,
            metadata=metadata(plan),
        )
    )
    wrapped = TranscoderInTraining(transcoder, plan.sparsity, target)
    SAETrainer(trainer_config(plan), wrapped, shuffled(torch.cat([source, target], 1), TRAINING_SEED)).fit()
    transcoder.save_model(folder)


def halve(folder: Path) -> None:
    """Weights in float16; the config keeps dtype float32, which SAELens loads them to."""
    weights = folder / "sae_weights.safetensors"
    save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)
    config = json.loads((folder / "cfg.json").read_text())
    for name in ("l0", "num_dead_features"):  # means over the training, not the figures of the card
        config["metadata"].pop(name, None)
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")


def train(plan: Plan, data: dict[str, torch.Tensor], folder: Path) -> None:
    (train_sae if plan.architecture == "topk" else train_transcoder)(plan, data, folder)
    halve(folder)


@torch.no_grad()
def figures(folder: Path, data: dict[str, torch.Tensor]) -> dict:
    """A row of the card: explained variance 1 - E|y - y^|^2 / (E|y|^2 - |E y|^2), L0 = E count(f != 0)."""
    dictionary = SAE.load_from_disk(folder)
    meta = dictionary.cfg.metadata
    source, target = data[meta.hook_name], data[meta.hook_name_out or meta.hook_name]
    error = (target.double() - dictionary(source).double()).pow(2).sum(1).mean()
    variance = target.double().pow(2).sum(1).mean() - target.double().mean(0).pow(2).sum()
    latents = dictionary.encode(source) != 0
    return {
        "id": folder.name,
        "architecture": dictionary.cfg.architecture(),
        "hook_name": meta.hook_name,
        "hook_name_out": meta.hook_name_out,
        "d_sae": dictionary.cfg.d_sae,
        "l0": latents.sum(1).double().mean().item(),
        "explained_variance": (1 - error / variance).item(),
        "dead_latents": int((latents.sum(0) == 0).sum()),
    }


def held_out(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, hooks: list[str]) -> dict[str, torch.Tensor]:
    return activations(model, tokenizer, hooks, HELD_OUT_SEED, 50_000)
