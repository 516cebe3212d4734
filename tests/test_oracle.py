"""Spliced Hugging Face models against TransformerLens' reimplementation with the same dictionary at the same hook."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import ARCHITECTURES, LAYER_NORM, WIDTH, random_ids, random_model, random_sae
from oracle import PROCESSING, hooked_transformer
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, build_variant

LAYER = 1
SAE_HOOKS = (
    "hook_embed",
    f"blocks.{LAYER}.hook_resid_pre",
    f"blocks.{LAYER}.attn.hook_z",
    f"blocks.{LAYER}.hook_attn_out",
    f"blocks.{LAYER}.hook_resid_mid",
    f"blocks.{LAYER}.hook_mlp_in",
    f"blocks.{LAYER}.hook_mlp_out",
    f"blocks.{LAYER}.hook_resid_post",
)
TRANSCODER_INPUTS = ("hook_resid_mid", "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in")
PARALLEL = ("gpt_neox",)
TOLERANCE = 1e-4  # nats


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(architecture: str):
    return random_model(architecture)


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "processed"])
def oracle(model, request: pytest.FixtureRequest) -> tuple[HookedTransformer, dict[str, bool]]:
    """TransformerLens' model, and the loading options that a release trained on it would state."""
    hooked = hooked_transformer(model, processed=request.param)
    hooked.set_use_hook_mlp_in(True)
    return hooked, dict.fromkeys(PROCESSING, True) if request.param else {}


def log_probabilities(model, ids: Tensor, dictionaries: list, **choices) -> Tensor:
    variant = build_variant(model, [load_dictionary(d) for d in dictionaries], Choices(**choices), frozenset({0, 1, 2}))
    with torch.no_grad(), attached(model, variant):
        return model(input_ids=ids).logits.log_softmax(-1)


def through(function: Callable[[Tensor], Tensor]):
    """A TransformerLens hook that applies `function`, on heads laid side by side where there are heads."""

    def hook(x: Tensor, hook) -> Tensor:
        flat = x.flatten(2) if hook.name.endswith("hook_z") else x
        return function(flat).reshape(x.shape)

    return hook


@torch.no_grad()
def oracle_log_probabilities(hooked: HookedTransformer, ids: Tensor, hooks: list) -> Tensor:
    return hooked.run_with_hooks(ids, prepend_bos=False, fwd_hooks=hooks).log_softmax(-1)


def width_at(model, hook: str) -> int:
    config = model.config.get_text_config()
    if not hook.endswith("hook_z"):
        return WIDTH
    return config.num_attention_heads * (getattr(config, "head_dim", None) or WIDTH // config.num_attention_heads)


@pytest.mark.parametrize("hook", SAE_HOOKS)
def test_sae(architecture, model, oracle, hook):
    hooked, processing = oracle
    sae = random_sae(width_at(model, hook), hook, model_from_pretrained_kwargs=processing)
    ids = random_ids()
    if architecture in PARALLEL and hook.endswith("hook_resid_mid"):
        with pytest.raises(UserError, match=r"has no hook 'blocks\.1\.hook_resid_mid'"):
            log_probabilities(model, ids, [sae])
        return
    ours = log_probabilities(model, ids, [sae], splice_tokens="all")
    theirs = oracle_log_probabilities(hooked, ids, [(hook, through(sae))])
    untouched = oracle_log_probabilities(hooked, ids, [])
    assert (theirs - untouched).abs().max() > 0.05, "the edit must matter for the comparison to mean anything"
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", TRANSCODER_INPUTS)
@pytest.mark.parametrize("skip", ["transcoder", "skip_transcoder"])
def test_transcoder(architecture, model, oracle, kind, skip):
    hooked, processing = oracle
    hook_in, hook_out = f"blocks.{LAYER}.{kind}", f"blocks.{LAYER}.hook_mlp_out"
    transcoder = random_sae(WIDTH, hook_in, skip, hook_out=hook_out, model_from_pretrained_kwargs=processing)
    if architecture in PARALLEL and kind == "hook_resid_mid":
        with pytest.raises(UserError, match=r"has no hook 'blocks\.1\.hook_resid_mid'"):
            log_probabilities(model, random_ids(), [transcoder])
        return
    read: dict[str, Tensor] = {}
    mlp = hooked.blocks[LAYER].mlp
    handle = mlp.register_forward_pre_hook(lambda _module, args: read.update({"mlp.hook_in": args[0]}))
    hooks = [(hook_out, lambda _y, hook: transcoder(read[kind]))]
    if kind != "mlp.hook_in":
        hooks.insert(0, (hook_in, lambda x, hook: read.update({kind: x})))
    ids = random_ids()
    try:
        theirs = oracle_log_probabilities(hooked, ids, hooks)
    finally:
        handle.remove()
    ours = log_probabilities(model, ids, [transcoder], splice_tokens="all")
    untouched = oracle_log_probabilities(hooked, ids, [])
    assert (theirs - untouched).abs().max() > 0.05
    assert (ours - theirs).abs().max() < TOLERANCE


def test_two_at_once_and_special_tokens_kept(model, oracle):
    hooked, processing = oracle
    hooks = ["blocks.0.hook_resid_post", f"blocks.{LAYER}.hook_mlp_out"]
    saes = [random_sae(WIDTH, h, model_from_pretrained_kwargs=processing, seed=i) for i, h in enumerate(hooks)]
    ids = random_ids()
    special = torch.isin(ids, torch.tensor([0, 1, 2]))[..., None]
    assert 0 < special.sum() < special.numel()
    edits = [
        (hook, lambda x, hook, sae=sae: torch.where(special, x, sae(x))) for hook, sae in zip(hooks, saes, strict=True)
    ]
    theirs = oracle_log_probabilities(hooked, ids, edits)
    for order in (saes, saes[::-1]):
        assert (log_probabilities(model, ids, order) - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", LAYER_NORM)
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"])
def test_the_map_matters(name, hook):
    """With the raw map in the place of the right one, the same comparison fails by far."""
    model = random_model(name)
    hooked = hooked_transformer(model, processed=True)
    sae = random_sae(WIDTH, hook, model_from_pretrained_kwargs=dict.fromkeys(PROCESSING, True))
    ids = random_ids()
    theirs = oracle_log_probabilities(hooked, ids, [(hook, through(sae))])
    wrong = log_probabilities(model, ids, [sae], splice_tokens="all", hook_maps=("raw",))
    assert (wrong - theirs).abs().max() > 100 * TOLERANCE


def test_value_bias_of_grouped_heads():
    """Folding value biases alone, as for a model without norm bias whose values have one."""
    model = random_model("qwen2")
    hooked = hooked_transformer(model, processed=True)
    hook = "blocks.1.attn.hook_z"
    sae = random_sae(WIDTH, hook, model_from_pretrained_kwargs={"fold_value_biases": True})
    ids = random_ids()
    theirs = oracle_log_probabilities(hooked, ids, [(hook, through(sae))])
    ours = log_probabilities(model, ids, [sae], splice_tokens="all")
    assert (ours - theirs).abs().max() < TOLERANCE
