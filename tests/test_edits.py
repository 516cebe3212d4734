"""Edits of the model itself: against the same in plain torch, in shared passes and in runs, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from models import ARCHITECTURES, random_ids, random_model, random_sae, word_tokenizer
from torch import nn
from torch.nn.utils import prune

from sae_lm_eval.errors import UserError
from sae_lm_eval.harness import inspection
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runs.plan import plan_sweep
from sae_lm_eval.runs.run import run
from sae_lm_eval.runs.sweep import sweep_of, variant_requests
from sae_lm_eval.scoring.forked_pass import forked
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.edit_spec import edit_of
from sae_lm_eval.splicing.model_edits import edited_variant, linear_layers
from sae_lm_eval.splicing.skeleton import skeleton
from sae_lm_eval.splicing.splice import Context
from sae_lm_eval.splicing.weight_edits import low_rank, noised, pruned, quantized
from sae_lm_eval.talk.conversation import Model

UP = "model.layers.1.mlp.up_proj"


def adapter(model=None, **kwargs) -> SaeHFLM:
    return SaeHFLM(pretrained=model or random_model("llama"), tokenizer=word_tokenizer(), **kwargs)


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(3, 9))
def test_quantised_by_row_is_what_torch_makes_of_it(bits):
    weight = matrix(6, 40)
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1) / most
    fake = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(6, dtype=torch.int32), 0, -most, most)
    torch.testing.assert_close(quantized(weight, bits), fake, atol=1e-6, rtol=0)


def test_quantised_in_groups_has_the_levels_of_each_group():
    weight = matrix(3, 100)
    weight[1] = 0
    new = quantized(weight, 3, 64)
    for part, quantised_part in ((weight[:, :64], new[:, :64]), (weight[:, 64:], new[:, 64:])):
        step = part.abs().amax(1, keepdim=True) / 3
        assert ((quantised_part - part).abs() <= step / 2 + 1e-6).all()
        assert all(len(row.unique()) <= 7 for row in quantised_part)
    assert torch.equal(new[1], weight[1])
    assert torch.equal(quantized(quantized(weight, 3, 64), 3, 64), new)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_pruned_is_what_torch_prunes(share):
    layer = nn.Linear(20, 30)
    weight = layer.weight.detach().clone()
    prune.l1_unstructured(layer, "weight", amount=share)
    assert torch.equal(pruned(weight, share), layer.weight)


def test_of_equal_weights_as_many_are_pruned_as_asked():
    new = pruned(torch.ones(8, 8), 0.25)
    assert int((new == 0).sum()) == 16


def test_low_rank_has_the_error_of_the_singular_values_that_are_left_out():
    weight = matrix(12, 20)
    new, singular = low_rank(weight, 5), torch.linalg.svdvals(weight)
    assert torch.linalg.matrix_rank(new) == 5
    torch.testing.assert_close((weight - new).norm(), singular[5:].norm(), atol=1e-4, rtol=1e-4)
    assert low_rank(weight, 12) is weight


def test_noise_has_its_size_and_its_seed():
    weight = 3 * matrix(200, 300)
    off = noised(weight, 0.1, 1, "a") - weight
    assert off.std() == pytest.approx(0.3, rel=0.02)
    assert torch.equal(noised(weight, 0.1, 1, "a"), noised(weight, 0.1, 1, "a"))
    for other in ((2, "a"), (1, "b")):
        assert not torch.equal(noised(weight, 0.1, *other), noised(weight, 0.1, 1, "a"))


# -- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_linear_layers_of_attention_and_mlps_are_all_that_blocks_have(name):
    model = random_model(name)
    mlp, attention, every = (set(linear_layers(model, which)) for which in ("mlp", "attention", "all"))
    assert mlp
    assert attention
    assert not mlp & attention
    assert mlp | attention == every
    assert not any("vision" in path or "head" in path for path in every)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("edit", ["quantize?bits=3", "prune?share=0.5", "lowrank?rank=4", "noise?std=0.3&seed=2"])
def test_an_edited_model_is_one_with_those_weights(name, edit):
    model, ids = random_model(name), random_ids()
    spec = edit_of(edit)
    variant = edited_variant(model, spec)
    with torch.no_grad():
        before = model(ids).logits
        with attached(model, variant):
            edited = model(ids).logits
        assert torch.equal(model(ids).logits, before)
        for path, module in linear_layers(model, spec.values["weights"]).items():
            across = not isinstance(module, nn.Linear)
            weight = module.weight.T if across else module.weight
            new = {
                "quantize": lambda w: quantized(w, 3),
                "prune": lambda w: pruned(w, 0.5),
                "lowrank": lambda w: low_rank(w, 4),
                "noise": lambda w, path=path: noised(w, 0.3, 2, path),
            }[spec.kind](weight.detach())
            module.weight.copy_(new.T if across else new)
        assert not torch.equal(edited, before)
        assert torch.equal(model(ids).logits, edited)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_skipped_layer_is_one_that_is_not_there(name):
    model, ids = random_model(name), random_ids()
    variant = edited_variant(model, edit_of("skip?layers=1"))
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    with torch.no_grad():
        with attached(model, variant):
            skipped = model(ids, use_cache=False).logits
        del blocks[1]
        model.config.num_hidden_layers = 2
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [model.config.layer_types[layer] for layer in (0, 2)]
        torch.testing.assert_close(model(ids, use_cache=False).logits, skipped, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("edit", ["prune?share=0", "lowrank?rank=1000", "lowrank?share=1", "noise?std=0"])
def test_what_changes_nothing_changes_no_bit(edit):
    model, ids = random_model("llama"), random_ids()
    lm = adapter(model, edit=edit)
    assert lm.spliced.variant.edit["modules"] == 0
    with torch.no_grad():
        assert torch.equal(lm._model_call(ids), model(ids).logits)


def stops(*_):
    raise RuntimeError("stop")


def test_an_edit_leaves_nothing_behind_whatever_is_raised():
    model = random_model("llama")
    tensors = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    forwards = {path: module.__dict__.get("forward") for path, module in model.named_modules()}
    edits = edited_variant(model, edit_of("prune?share=0.5"))
    skip = edited_variant(model, edit_of("skip?layers=0+2"))
    handle = model.get_submodule("lm_head").register_forward_hook(stops)
    for variant in (edits, skip):
        with pytest.raises(RuntimeError, match="stop"), attached(model, variant):
            model(random_ids())
    handle.remove()
    assert {path: module.__dict__.get("forward") for path, module in model.named_modules()} == forwards
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(id(p) == tensors[name][0] for name, p in model.named_parameters())
    assert all(torch.equal(p, tensors[name][1]) for name, p in model.named_parameters())


# -- shared passes ----------------------------------------------------------------------------------------

PAIRS = [("a b c", " d e"), ("a b c", " f"), ("g h", " a b c d"), ("a b c e f g", " h a")]
EDITS = ["quantize?bits=4&group=16", "prune?share=0.3&weights=attention", "skip?layers=1", "lowrank?rank=6"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_variants_in_one_pass_score_as_each_by_itself(name):
    from lm_eval.api.instance import Instance

    model = random_model(name)
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in PAIRS]
    baseline = adapter(model, sae=[], splice="none")
    variants = [adapter(model, edit=edit) for edit in EDITS]
    variants.insert(2, adapter(model, sae=random_sae(32, "blocks.1.hook_resid_post")))
    together = joined(baseline, variants)
    assert together[0].spliced.is_scored
    for lm in together[1:]:
        with lm.spliced.attached():
            expected = []
            for context, continuation in PAIRS:
                ids = torch.tensor([lm.tok_encode(context + continuation)])
                count = ids.shape[1] - len(lm.tok_encode(context))
                logits = lm.spliced.model(ids, use_cache=False).logits[0].log_softmax(-1)
                expected.append(float(logits[:-1].gather(-1, ids[0, 1:, None])[-count:].sum()))
        scores = [logprob for logprob, _ in lm.loglikelihood(instances, disable_tqdm=True)]
        assert scores == pytest.approx(expected, abs=1e-4)


class Halved(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) / 2


def halved(model):
    return {"model.layers.1.mlp": Halved(copy.deepcopy(model.get_submodule("model.layers.1.mlp")))}


def test_what_lies_in_a_replaced_module_of_one_variant_is_edited_and_spliced_for_the_others():
    model, ids = random_model("llama"), random_ids()
    wholly = adapter(model, edit=halved).spliced.variant
    within = adapter(model, edit="prune?share=0.5").spliced.variant
    spliced = adapter(model, sae=random_sae(48, "blocks.1.mlp.hook_post"))
    variants = [wholly, within, spliced.spliced.variant]
    alone = []
    for variant in variants:
        with torch.no_grad(), attached(model, variant):
            alone.append(model(ids).logits)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        with torch.no_grad(), forked(model, [variants[number] for number in order]) as fork:
            fork.begin(Context.of_call(ids, {}))
            hidden = model.model(input_ids=ids.repeat(fork.copies, 1), use_cache=False).last_hidden_state
            for number, states in zip(order, fork.in_order(hidden)[1:], strict=True):
                torch.testing.assert_close(model.lm_head(states), alone[number], atol=1e-4, rtol=1e-4)


class OfSomeTokens(nn.Module):
    """Runs a layer on two tokens of three, as experts run on those that are sent to them."""

    def __init__(self):
        super().__init__()
        self.expert = nn.Linear(32, 32)

    def forward(self, x):
        flat, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        sent = torch.arange(len(flat)) % 3 > 0
        out[sent] = self.expert(flat[sent])
        return out.view_as(x)


def test_a_layer_that_is_given_some_tokens_alone_is_refused():
    model, ids = random_model("llama"), random_ids()
    model.model.layers[1].mlp = OfSomeTokens()
    variant = adapter(model, edit=lambda _: {"model.layers.1.mlp.expert.weight": torch.zeros(32, 32)}).spliced.variant
    message = "it runs on some tokens alone, and which are whose cannot be told"
    with torch.no_grad(), attached(model, variant), pytest.raises(UserError, match=message):
        model(ids)
    with torch.no_grad(), forked(model, [variant]) as fork:
        fork.begin(Context.of_call(ids, {}))
        with pytest.raises(UserError, match=message):
            model.model(input_ids=ids.repeat(fork.copies, 1), use_cache=False)


def test_variants_in_one_batch_write_as_each_by_itself():
    from lm_eval.api.instance import Instance

    model = random_model("llama")
    instances = [
        Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 8}), 0) for prompt in ("a b c", "g h")
    ]
    variants = [adapter(model, edit=edit) for edit in EDITS[:3]]
    together = joined(adapter(model, sae=[], splice="none"), variants)
    for lm in together[1:]:
        written = lm.generate_until(instances, disable_tqdm=True)
        for (prompt, _), text in zip((request.args for request in instances), written, strict=True):
            ids = torch.tensor([lm.tok_encode(prompt)])
            with torch.no_grad(), lm.spliced.attached():
                for _ in range(8):
                    ids = torch.cat([ids, lm.spliced.model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
                    if int(ids[0, -1]) == 2:
                        break
            assert text == lm.tok_decode(ids[0, len(lm.tok_encode(prompt)) :].tolist())


def test_identities_tell_edits_apart():
    model = random_model("llama")
    edits = ("prune?share=0.3", "prune?share=0.4", "noise?std=0.1", "noise?std=0.1&seed=1", "skip?layers=1")
    identities = [adapter(model, edit=edit).spliced.identity() for edit in edits]
    assert len(set(identities)) == len(edits)
    assert adapter(model, edit=edits[0]).spliced.identity() == identities[0]


# -- functions of the user's own --------------------------------------------------------------------------


class Components(nn.Module):
    """A linear map as a sum of rank-one components, each by a mask: what parameter decompositions find."""

    def __init__(self, weight, mask):
        super().__init__()
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        self.register_buffer("read", v.T.contiguous())
        self.register_buffer("write", (u * s).T.contiguous())
        self.register_buffer("mask", mask)

    def forward(self, x):
        return ((x @ self.read) * self.mask) @ self.write


def decomposed(model, keep=32):
    weight = model.get_submodule(UP).weight.detach()
    return {UP: Components(weight, (torch.arange(min(weight.shape)) < keep).float())}


def test_components_under_masks_are_the_sum_of_those_that_are_left():
    model, ids = random_model("llama"), random_ids()
    lm = adapter(model, edit=lambda model: decomposed(model, 5))
    with torch.no_grad():
        logits = lm._model_call(ids)
        layer = model.get_submodule(UP)
        layer.weight.copy_(low_rank(layer.weight, 5))
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_parameters_by_name_and_the_same_ones():
    model, ids = random_model("llama"), random_ids()
    name = f"{UP}.weight"
    same = adapter(model, edit=lambda model: {name: model.get_parameter(name)})
    assert torch.equal(same._model_call(ids), model(ids).logits)
    half = adapter(model, edit=lambda model: {name: model.get_parameter(name) / 2, "model.embed_tokens.weight": EMBED})
    logits = half._model_call(ids)
    with torch.no_grad():
        model.get_parameter(name).div_(2)
        model.get_parameter("model.embed_tokens.weight").copy_(EMBED)
        assert torch.equal(logits, model(ids).logits)


EMBED = matrix(101, 32)


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(2) @ torch.zeros(32, 48)


def changes_the_model(model):
    with torch.no_grad():
        model.get_submodule(UP).weight.mul_(1.5)
    return {UP: nn.Linear(32, 48)}


BAD = [
    (lambda _model: 3, "gives a int: it must give a mapping"),
    (lambda _model: {}, "it must give a mapping"),
    (lambda _model: {"model.layers.1.mlp.up": nn.Linear(32, 48)}, "no module 'model.layers.1.mlp.up'. Did you mean"),
    (lambda _model: {f"{UP}.weights": EMBED}, f"no parameter '{UP}.weights'. Did you mean '{UP}.weight'"),
    (lambda _model: {f"{UP}.weight": EMBED}, r"is \(48, 32\), and \(101, 32\) is given"),
    (lambda _model: {f"{UP}.weight": torch.full((48, 32), torch.nan)}, "values that are not finite"),
    (lambda _model: {UP: nn.Linear(32, 47)}, r"gives \(2, 2, 48\), and its replacement \(2, 2, 47\)"),
    (lambda _model: {UP: nn.Linear(31, 48)}, f"what is given for '{UP}' fails: RuntimeError"),
    (lambda _model: {UP: InPlace()}, "changes what it is given in place"),
    (lambda _model: {UP: lambda x: x.new_full((*x.shape[:-1], 48), torch.nan)}, "makes values that are not finite"),
    (lambda _model: {UP: 3}, "gives a int for"),
    (changes_the_model, "changes the model's weights in place"),
    (lambda _model: 1 / 0, "fails: ZeroDivisionError"),
]


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_what_a_function_gives_is_looked_at_first(edit, message):
    with pytest.raises(UserError, match=message):
        adapter(edit=edit)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "lm_head.weight"])
def test_a_parameter_of_two_modules_is_not_edited_in_one_of_them(name):
    model = random_model("gpt2")
    with pytest.raises(UserError, match=f"'{name}' and '.*' are one parameter"):
        adapter(model, edit=lambda model: {name: model.get_parameter(name) * 2})


# -- what is asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("prun?share=0.1", r"edit 'prun' is unknown. Did you mean 'prune'\?"),
        ("prune", r"edit=prune needs share, as in edit=prune\?share=0.3"),
        ("prune?part=0.1", "has no argument 'part'"),
        ("prune?share=1.5", "share=1.5 must be a number from 0 to 1"),
        ("prune?share=nan", "must be a number from 0 to 1"),
        ("prune?share=0.1&share=0.2", "says share twice"),
        ("prune?share=0.1&weights=mpl", "'mpl' is unknown. Did you mean 'mlp'"),
        ("quantize?bits=16", "bits=16 must be a whole number from 2 to 8"),
        ("quantize?bits=4.5", "must be a whole number from 2 to 8"),
        ("lowrank", r"edit=lowrank needs rank or share, one of the two"),
        ("lowrank?rank=4&share=0.5", r"edit=lowrank needs rank or share, one of the two"),
        ("lowrank?rank=0", "must be a whole number of at least 1"),
        ("skip?layers=1+1", "layers=1\\+1 names layer 1 twice"),
        ("skip?layers=x", "layers=x names no layers: give numbers and ranges, as in layers=0-4\\+9"),
        ("skip?layers=3-1", "layers=3-1 names no layers"),
        ("skip?layers=7", "skips layer 7: layers of .* run from 0 to 2"),
        ("noise?std=inf", "must be a number of at least 0"),
        ("python", "names no function: edit=python:FILE.py:FUNCTION does"),
        ("python:./nowhere.py:f", r"no file '\./nowhere.py'"),
    ],
)
def test_a_wrong_edit_is_told_in_a_sentence(edit, message):
    with pytest.raises(UserError, match=message):
        adapter(edit=edit)


def test_edits_stand_in_the_place_of_dictionaries():
    with pytest.raises(UserError, match="takes the place of sae="):
        adapter(edit="prune?share=0.1", sae=random_sae(32, "blocks.1.hook_resid_post"))
    with pytest.raises(UserError, match="scale= is of dictionaries"):
        adapter(edit="prune?share=0.1", scale=0.5)
    with pytest.raises(UserError, match="give either sae, pattern or edit"):
        variant_requests([{"edit": "prune?share=0.1", "sae": "a#b"}])
    with pytest.raises(UserError, match="hook is of dictionaries"):
        variant_requests([{"edit": "prune?share=0.1", "hook": "blocks.0.hook_resid_post"}])
    with pytest.raises(UserError, match="inspect says where dictionaries go"):
        inspection.planned_variant({"pretrained": "world", "edit": "prune?share=0.1"})
    (variant,) = variant_requests([{"edit": "prune", "arguments": {"share": 0.1}}], ["zero"])
    assert (variant.name, variant.arguments) == ("prune_share=0.1", {"edit": "prune?share=0.1"})


def test_a_run_holds_edits_beside_dictionaries(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def halved(model, layer=0):\n"
        "    name = f'model.layers.{layer}.mlp.down_proj.weight'\n"
        "    return {name: model.get_parameter(name) / 2}\n"
    )
    variants = [
        {"edit": "prune?share=0.5"},
        {"edit": "prune?share=0", "name": "nothing"},
        {"edit": f"python:{file}:halved", "arguments": {"layer": 1}, "name": "halved"},
        {"sae": "world#blocks.2.hook_resid_post.k4", "name": "k4"},
    ]
    settings = {"model_args": {"pretrained": "world"}, "tasks": "sae_world_reasoning,sae_fidelity_world", "limit": 3}
    comparison = run(variants=variants, device="cpu", output_path=tmp_path / "out", **settings)
    drops = comparison.drops[comparison.drops["section"] == "overall"].set_index("variant")["drop"]
    assert drops["nothing"] == 0
    assert set(drops.index) == {"prune_share=0.5", "nothing", "halved", "k4"}
    record = _record(tmp_path / "out" / "nothing")
    assert record["splice"] == "edit"
    assert record["edit"] == {**record["edit"], "name": "prune?share=0", "share": 0.0, "weights": "mlp", "modules": 0}
    scores = json.loads(next((tmp_path / "out" / "nothing").glob("*/results_*.json")).read_text())["results"]
    text = scores["sae_fidelity_world"]
    assert (text["kl,none"], text["ce_delta,none"], text["top1_agreement,none"]) == (0, 0, 1)
    assert "loss_recovered_zero,none" not in text
    again = run(variants=variants, device="cpu", output_path=tmp_path / "out", **settings)
    assert again.drops.equals(comparison.drops)
    file.write_text(file.read_text().replace("/ 2", "/ 3"))
    with pytest.raises(UserError, match=r"the file of python:.*has changed since"):
        run(variants=variants, device="cpu", output_path=tmp_path / "out", **settings)


def _record(folder: Path) -> dict:
    return json.loads(next(folder.glob("*/results_*.json")).read_text())["config"]["sae_lm_eval"]


def test_the_plan_of_a_run_with_edits(tmp_path):
    edits = ("prune?share=0.5", "skip?layers=1", "skip?layers=9", "python:a.py:f")
    content = {"model_args": {"pretrained": "world"}, "variants": [{"edit": edit} for edit in edits], "tasks": "x"}
    by_sites = {variant.sites: variant for variant in plan_sweep(sweep_of(content), None).variants}
    mlp = sum(module.weight.numel() for module in linear_layers(skeleton({"pretrained": "world"}), "mlp").values())
    assert list(by_sites["prune?share=0.5",].sizes.values()) == [4 * mlp]
    assert list(by_sites["skip?layers=1",].sizes.values()) == [0]
    assert by_sites["python:a.py:f",].whole is False
    assert "skips layer 9" in by_sites[()].why


def test_a_conversation_with_an_edited_model():
    model = Model({"pretrained": "world", "edit": "prune?share=0.9"})
    assert [column.name for column in model.columns] == ["baseline", "prune?share=0.9"]
    with pytest.raises(UserError, match="has no splice"):
        model.set_splice("zero")
