"""Any change of a tensor, a setting or a hook gives another value, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import WIDTH, random_model, random_sae
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from sae_lm_eval.runtime import checksum
from sae_lm_eval.runtime.checksum import ROW, checksums
from sae_lm_eval.runtime.content import contents


def checksum_of(tensor: torch.Tensor, name: str = "x") -> str:
    return checksums({"": {name: tensor}})[""]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# Smaller than a row, two rows and a bit, and bytes that are no whole words.
SHAPES = [(3, 5), (129, 257), (2, ROW)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8]


class TestChecksum:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_notices(self, shape, dtype):
        x = (drawn(*shape) * 50).to(dtype)
        changed = {"nothing": x.clone(), "signs": -x, "a transposition": x.clone().view(*reversed(shape))}
        changed["a permutation of rows"] = x.roll(1, 0)
        changed["a permutation of columns"] = x.roll(1, 1)
        for index in (0, x.numel() // 2, x.numel() - 1):
            changed[f"element {index}"] = x.clone()
            changed[f"element {index}"].view(-1)[index] += 1
        two = changed["two signs"] = x.clone()
        two.view(-1)[[1, -2]] = -two.view(-1)[[1, -2]]
        exchanged = changed["two elements"] = x.clone()
        exchanged.view(-1)[[1, -1]] = exchanged.view(-1)[[-1, 1]]
        digests = {what: checksum_of(tensor) for what, tensor in changed.items()}
        assert digests["nothing"] == checksum_of(x)
        assert len(set(digests.values())) == len(digests)

    def test_the_smallest_change_of_one_number_is_noticed_wherever_it_is(self):
        x = drawn(3 * ROW)
        seen = {checksum_of(x)}
        for index in range(0, len(x), 997):
            other = x.clone()
            other[index] = torch.nextafter(other[index], torch.tensor(torch.inf))
            seen.add(checksum_of(other))
        assert len(seen) == 1 + len(range(0, len(x), 997))

    def test_zeros_of_another_sign_and_other_nans_are_other_bits(self):
        assert checksum_of(torch.zeros(5)) != checksum_of(-torch.zeros(5))
        nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
        assert checksum_of(nans[:1]) != checksum_of(nans[1:])

    def test_two_tensors_of_one_shape_that_are_exchanged(self):
        x, y = drawn(40, 40), drawn(40, 40) + 1
        assert checksums({"": {"a": x, "b": y}}) != checksums({"": {"a": y, "b": x}})

    def test_what_holds_the_same_is_the_same(self):
        x = drawn(64, 96)
        for same in (x.T.contiguous().T, torch.stack([x, x], -1)[..., 1], nn.Parameter(x), x.to_sparse()):
            assert checksum_of(same) == checksum_of(x)
        octets = torch.arange(101, dtype=torch.uint8)
        assert checksum_of(octets[1:]) == checksum_of(octets[1:].clone())  # where words do not begin at a word

    def test_kinds_of_tensors(self):
        x = drawn(4, 4)
        assert checksum_of(x) != checksum_of(x.view(torch.int32))
        assert checksum_of(x[:0]) != checksum_of(x[:0].reshape(0, 9))
        assert checksum_of(torch.complex(x, x)) != checksum_of(torch.complex(x, -x))
        assert checksum_of(TwoTensor(x, x)) != checksum_of(TwoTensor(x, x + 1))
        assert checksum_of(x.to("meta")) != checksum_of(drawn(4, 5).to("meta"))

    def test_how_much_is_taken_at_a_time_changes_nothing(self, monkeypatch):
        x = drawn(5, ROW)
        expected = checksum_of(x)
        monkeypatch.setattr(checksum, "AT_ONCE_ON_CPU", 2 * ROW)
        assert checksum_of(x) == expected

    def test_as_other_devices_take_it(self):
        """Their form of the sums, and the formula in integers without bounds."""
        rows = drawn(3, 100).view(torch.int32)
        weights = checksum._weights(torch.device("cpu"))[:, :100]
        expected = [
            [sum(w * x for w, x in zip(table, row, strict=True)) for table in weights.tolist()] for row in rows.tolist()
        ]
        wrapped = [[(value + 2**63) % 2**64 - 2**63 for value in row] for row in expected]
        assert checksum._products(rows, weights).tolist() == wrapped
        assert (rows[:, None] * weights).sum(-1).tolist() == wrapped

    def test_it_is_the_same_from_release_to_release(self):
        assert checksum_of(torch.arange(40_000, dtype=torch.float32)) == "541098fabeb20cfd17ff391d708650d0"

    def test_one_transfer_for_everything(self, monkeypatch):
        transfers = []
        cpu = torch.Tensor.cpu
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.shape) or cpu(self))
        contents({"model": random_model("llama"), "sae": random_sae(WIDTH, "blocks.0.hook_resid_post")})
        assert len(transfers) == 1


def settings(module: nn.Module) -> str:
    return contents({"": module})[""].settings


class TestSettings:
    def test_a_configuration_value_of_a_dictionary(self):
        sae, other = (random_sae(WIDTH, "blocks.0.hook_resid_post", "topk") for _ in range(2))
        assert contents({"": sae}) == contents({"": other})
        other.activation_fn.k = 3
        assert settings(sae) != settings(other)
        other.activation_fn.k = sae.activation_fn.k
        other.cfg.k = 3
        assert settings(sae) != settings(other)

    def test_attributes_of_modules_inside(self):
        model = random_model("llama")
        before = settings(model)
        model.model.layers[1].self_attn.scaling *= 2
        assert settings(model) != before
        model.model.layers[1].self_attn.scaling /= 2
        assert settings(model) == before
        model.model.layers[0].mlp.act_fn = nn.ReLU()
        assert settings(model) != before

    def test_configurations(self):
        model = random_model("llama")
        before = settings(model)
        model.config.rms_norm_eps = 0.5
        after = settings(model)
        assert after != before
        model.generation_config.temperature = 0.3
        assert settings(model) != after
        model = random_model("llama")
        model.config._name_or_path = "elsewhere"
        assert settings(model) == before
        model.set_attn_implementation("sdpa")
        assert settings(model) != before

    def test_buffers_that_are_made_anew_are_told_apart(self):
        model = random_model("llama")
        before = contents({"": model})[""]
        model.model.rotary_emb.inv_freq.mul_(2)
        after = contents({"": model})[""]
        assert (before.weights, before.settings) == (after.weights, after.settings)
        assert before.computed != after.computed

    def test_rotary_tables_that_a_long_text_moves_count_as_they_were_made(self):
        model = random_model("llama")
        model.model.rotary_emb.rope_type = "dynamic"
        before = contents({"": model})[""]
        model.model.rotary_emb.inv_freq.mul_(2)
        model.model.rotary_emb.max_seq_len_cached = 999
        assert contents({"": model})[""] == before

    def test_running_a_model_changes_nothing(self):
        model = random_model("gemma3")
        before = contents({"": model})
        model(torch.tensor([[1, 5, 6]]), output_hidden_states=True)
        model.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=3)
        assert contents({"": model}) == before


FACTOR = 2.0


class Steering:
    def __init__(self, by: float):
        self.by = by

    def hook(self, _module, _args, output):
        return output * self.by


class TestHooks:
    @staticmethod
    def steered(vector: torch.Tensor):
        return lambda _module, _args, output: output + vector

    def test_a_hook_and_what_it_closes_over(self):
        model, vector = random_model("llama"), torch.ones(WIDTH)
        mlp = model.model.layers[1].mlp
        seen = [settings(model)]
        handle = mlp.register_forward_hook(self.steered(vector))
        seen.append(settings(model))
        assert settings(model) == seen[-1]
        vector[3] = 7
        seen.append(settings(model))
        handle.remove()
        assert settings(model) == seen[0]
        handle = mlp.register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
        seen.append(settings(model))
        handle.remove()
        handle = mlp.register_forward_pre_hook(lambda _module, args: (args[0] * 3,))
        seen.append(settings(model))
        handle.remove()
        model.model.layers[0].mlp.register_forward_pre_hook(lambda _module, args: (args[0] * 3,))
        seen.append(settings(model))
        assert len(set(seen)) == len(seen)

    def test_equal_hooks_of_equal_models_are_equal(self):
        first, other = random_model("llama"), random_model("llama")
        for model in (first, other):
            model.model.layers[1].mlp.register_forward_hook(self.steered(torch.ones(WIDTH)))
        assert settings(first) == settings(other)

    def test_methods_and_globals(self, monkeypatch):
        model, steering = random_model("llama"), Steering(2.0)
        model.model.norm.register_forward_hook(steering.hook)
        before = settings(model)
        steering.by = 3.0
        assert settings(model) != before
        steering.by = 2.0
        model.model.norm.register_forward_hook(lambda _module, _args, output: output * FACTOR)
        before = settings(model)
        monkeypatch.setitem(globals(), "FACTOR", 3.0)
        assert settings(model) != before

    def test_a_module_that_a_hook_calls(self):
        model, probe = random_model("llama"), nn.Linear(WIDTH, WIDTH)
        model.model.norm.register_forward_hook(lambda _module, _args, output: probe(output))
        before = settings(model)
        assert settings(model) == before
        with torch.no_grad():
            probe.weight[3, 3] += 1
        assert settings(model) != before

    def test_what_cannot_be_looked_into_is_never_the_same(self):
        model, numbers = random_model("llama"), iter(range(9))
        model.model.norm.register_forward_hook(lambda _module, _args, output: output * next(numbers))
        assert settings(model) != settings(model)

    def test_hooks_on_all_modules(self):
        model = random_model("llama")
        before = settings(model)
        handle = nn.modules.module.register_module_forward_hook(lambda _module, _args, output: output)
        try:
            assert settings(model) != before
        finally:
            handle.remove()


def test_another_process_finds_the_same():
    here = Path(__file__).parent
    code = (
        "from models import *; from sae_lm_eval.runtime.content import contents\n"
        "model = random_model('gemma2')\n"
        "model.lm_head.register_forward_hook(lambda m, a, o: o if 'a' in {'a', 'b'} else 2 * o)\n"
        "print(contents({'m': model, 's': random_sae(32, 'blocks.0.hook_resid_post', 'topk')}))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=here,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "HOME": "/tmp"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] != ""


class TestAdaptersOfPeft:
    def test_active_merged_and_scaled(self):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2)
        model = peft.get_peft_model(random_model("llama"), config)
        model.add_adapter("other", peft.LoraConfig(**{**config.to_dict(), "r": 2}))
        seen = [contents({"": model})[""]]
        model.set_adapter("other")
        seen.append(contents({"": model})[""])
        with model.disable_adapter():
            seen.append(contents({"": model})[""])
        assert contents({"": model})[""] == seen[1]
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        layer.scaling["other"] *= 2
        seen.append(contents({"": model})[""])
        assert len({replace(each, computed="") for each in seen}) == len(seen)
        weight = layer.lora_A["other"].weight
        version = weight._version
        weight.data.add_(1)
        assert weight._version == version  # so that counting changes would not do
        assert contents({"": model})[""].weights != seen[-1].weights
