"""`hook=` with a module of the model, of any class, whether TransformerLens has names for it or not."""

from __future__ import annotations

import pytest
import torch
import transformers
from models import COMMON, HEADS, IDS, LAYERS, VOCABULARY, WIDTH, random_sae
from test_scoring import assert_equal, queries
from torch import nn

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.scoring import scorer as scorer_module
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.scorer import Layout, Scorer
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.module_io import ModuleSide, hook_side
from sae_lm_eval.splicing.variants import Choices, build_variant

OLD = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, **IDS}
PLAIN = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
# Configurations by class, and where the blocks are; the first have no adapter in TransformerLens.
UNKNOWN = {
    "ministral": ({**COMMON, "head_dim": 8}, "model.layers"),
    "helium": ({**COMMON, "head_dim": 8}, "model.layers"),
    "persimmon": (PLAIN, "model.layers"),
    "biogpt": (PLAIN, "biogpt.layers"),
    "ctrl": ({**OLD, "dff": 48}, "transformer.h"),
}
KNOWN = {
    "opt": ({**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}, "model.decoder.layers"),
    "bloom": ({"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}, "transformer.h"),
    "gptj": ({**OLD, "rotary_dim": 4}, "transformer.h"),
    "mpt": (
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 64},
        "transformer.blocks",
    ),
    "olmo2": (COMMON, "model.layers"),
}


def small(kind: str, config: dict) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return model.requires_grad_(False)


def by_hand(sae, side: str):
    """A hook that knows what transformers' blocks may be given and may return."""

    def output(_module, _args, out):
        return (sae(out[0]), *out[1:]) if isinstance(out, tuple) else sae(out)

    def taken(_module, args, kwargs):
        if args:
            return (sae(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": sae(kwargs["hidden_states"])}

    return (output, {}) if side == "output" else (taken, {"with_kwargs": True})


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", [*UNKNOWN, *KNOWN])
def test_a_block_of_any_class_can_be_spliced(kind, side):
    config, blocks = (UNKNOWN | KNOWN)[kind]
    model, sae = small(kind, config), random_sae(WIDTH, f"{blocks}.1.{side}")
    variant = build_variant(model, [load_dictionary(sae)], Choices(), frozenset())
    block, ids = model.get_submodule(f"{blocks}.1"), torch.arange(3, 15)[None]
    hook, options = by_hand(sae, side)
    register = block.register_forward_hook if side == "output" else block.register_forward_pre_hook
    with torch.no_grad():
        untouched = model(input_ids=ids, use_cache=False).logits
        handle = register(hook, **options)
        expected = model(input_ids=ids, use_cache=False).logits
        handle.remove()
        with attached(model, variant):
            ours = model(input_ids=ids, use_cache=False).logits
    assert (expected - untouched).abs().max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ministral", "persimmon"])
def test_it_is_scored_like_any_other(kind):
    config, blocks = UNKNOWN[kind]
    model = small(kind, config)
    variant = build_variant(model, [load_dictionary(random_sae(WIDTH, f"{blocks}.1.output"))], Choices(), frozenset())
    assert_equal(Scorer(model, [variant], rows=2, limit=64), queries())


@pytest.mark.parametrize("rows", [1, HEADS, 2 * HEADS])
def test_as_many_rows_as_a_position_bias_has_heads(rows, monkeypatch):
    """MPT gives every block a bias of (heads, 1, positions)."""
    monkeypatch.setattr(scorer_module, "CAPACITY", 12)
    config, blocks = KNOWN["mpt"]
    model = small("mpt", config)
    variant = build_variant(model, [load_dictionary(random_sae(WIDTH, f"{blocks}.1.output"))], Choices(), frozenset())
    scorer = Scorer(model, [variant], rows=rows, limit=64)
    text = torch.randint(3, VOCABULARY, (9, 12), generator=torch.Generator().manual_seed(0)).tolist()
    scorer.layout = Layout(prefixes=False, rows=False, last_block=False)
    assert_equal(scorer, [Query(ids, ids[-2:]) for ids in text])


@pytest.mark.parametrize("kind", UNKNOWN)
def test_the_advice_names_a_module_that_there_is(kind):
    config, blocks = UNKNOWN[kind]
    model = small(kind, config)
    advice = f"as in hook={blocks}.0.output."
    with pytest.raises(UserError, match=r"for which TransformerLens has no hook names\. Give the site as") as error:
        build_variant(model, [load_dictionary(random_sae(WIDTH, "blocks.1.hook_resid_post"))], Choices(), frozenset())
    assert str(error.value).endswith(advice)
    build_variant(model, [load_dictionary(random_sae(WIDTH, "x"))], Choices(hooks=(f"{blocks}.0.output",)), frozenset())


@pytest.mark.parametrize("wrapper", ["", "base_model.model.", "_orig_mod."])
def test_paths_of_what_is_wrapped_around_the_model_are_understood(wrapper):
    model = small("ministral", UNKNOWN["ministral"][0])
    dictionary = load_dictionary(random_sae(WIDTH, f"{wrapper}model.layers.1.mlp.output"))
    (splice,) = build_variant(model, [dictionary], Choices(), frozenset()).splices
    assert str(splice.site_out.write) == "model.layers.1.mlp.output"


def test_a_module_that_there_is_not_is_named():
    model = small("persimmon", UNKNOWN["persimmon"][0])
    with pytest.raises(UserError, match=r"PersimmonForCausalLM has no hook 'model\.layers\.9\.output'\. Give a Trans"):
        build_variant(model, [load_dictionary(random_sae(WIDTH, "model.layers.9.output"))], Choices(), frozenset())


class Odd(nn.Module):
    """Hands its blocks their activation under a name of its own, and gets it back in a list."""

    class Block(nn.Module):
        def forward(self, *, mask=None, stream):
            return [stream * 2, mask]

    def __init__(self, *, streams: int = 1):
        super().__init__()
        self.config = transformers.LlamaConfig(**COMMON)
        self.embed, self.block, self.streams = nn.Embedding(VOCABULARY, WIDTH), self.Block(), streams

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x if self.streams == 1 else x[:, :, None].expand(-1, -1, self.streams, -1)
        return self.block(mask=None, stream=x)[0]

    def get_decoder(self):
        return self


@pytest.mark.parametrize("side", ["input", "output"])
def test_names_and_containers_of_a_models_own(side):
    model, sae, ids = Odd(), random_sae(WIDTH, f"block.{side}"), torch.arange(3, 9)[None]
    variant = build_variant(model, [load_dictionary(sae)], Choices(), frozenset())
    with torch.no_grad(), attached(model, variant):
        ours = model(input_ids=ids)
    x = model.embed(ids).detach()
    torch.testing.assert_close(ours, 2 * sae(x) if side == "input" else sae(2 * x))


def test_several_streams_at_a_position_are_refused():
    with pytest.raises(
        UserError, match=r"'block\.output' of Odd has not one vector at every position: .* \(1, 2, 3, 32\)"
    ):
        build_variant(Odd(streams=3), [load_dictionary(random_sae(WIDTH, "block.output"))], Choices(), frozenset())


def test_what_gives_no_activation_is_refused():
    class Answers(nn.Module):
        def forward(self, x):
            return {"x": x}

    model = nn.Sequential(Answers())
    handle = hook_side(model, ModuleSide("0", "output"), lambda x: x)
    with pytest.raises(UserError, match=r"^A Answers gives a dict, which holds no activation"):
        model(torch.zeros(1, 2, WIDTH))
    handle.remove()


def test_the_layers_of_an_unknown_class_are_not_made_up():
    with pytest.raises(UserError, match="for which TransformerLens has no hook names"):
        _ = Architecture(small("helium", UNKNOWN["helium"][0])).layers
