"""The recipes of CONTRIBUTING.md do what they say; docs/architecture.md draws the order that the linter enforces."""

from __future__ import annotations

import re
import runpy
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import answers, write_run

from sae_lm_eval.dictionaries import loading, spec
from sae_lm_eval.errors import UserError
from sae_lm_eval.fidelity import metrics
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.report import assemble, writer
from sae_lm_eval.results.results import read_results

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sae_lm_eval"
DECISIONS = [f"docs/decisions/{path.name}" for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def recipe(name: str, **given: Any) -> dict[str, Any]:
    """The names that a recipe's code defines, where `given` are known to it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- run: {name} -->\n\s*```python\n(.*?)\n\s*```", text, flags=re.DOTALL)
    names: dict[str, Any] = dict(given)
    exec("\n".join(line.removeprefix("   ") for line in code.split("\n")), names)
    return names


def test_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_npz = runpy.run_path(str(ROOT / "examples" / "loader_package" / "npz_loader.py"))["load_npz"]
    monkeypatch.setattr(spec, "LOADERS", (*spec.LOADERS, "npz"))
    monkeypatch.setitem(loading.LOADERS, "npz", load_npz)
    rng = np.random.default_rng(0)
    untouched = SaeHFLM(pretrained="world", device="cpu", sae=[], splice="none")
    width = untouched.model.config.hidden_size
    shapes = {"W_enc": (width, 16), "b_enc": (16,), "W_dec": (16, width), "b_dec": (width,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "my_sae.npz", **arrays)
    arguments = {"pretrained": "world", "device": "cpu", "hook": "blocks.2.hook_resid_post"}
    lm = SaeHFLM(**arguments, sae=f"npz:{tmp_path / 'my_sae.npz'}")
    ids = torch.tensor([untouched.tok_encode("the")])
    x = torch.from_numpy(rng.standard_normal((5, width)).astype(np.float32))
    reconstruction = loading.load_dictionary(f"npz:{tmp_path / 'my_sae.npz'}").reconstruct(x).detach().numpy()
    by_hand = np.maximum(x.numpy() @ arrays["W_enc"] + arrays["b_enc"], 0) @ arrays["W_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(reconstruction, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.equal(lm._model_call(ids), untouched._model_call(ids))
    with pytest.raises(UserError, match=r"is no file. Name an \.npz with the arrays W_enc"):
        SaeHFLM(**arguments, sae="npz:nowhere.npz")


def test_each_loader_that_a_spec_may_name_is_there() -> None:
    assert list(spec.LOADERS) == list(loading.LOADERS)


def test_a_site() -> None:
    lm = SaeHFLM(pretrained="world", device="cpu", sae=[], splice="none")
    site = recipe("site", model=lm.model)["site"]
    entered = []
    module = lm.model.get_submodule(site.read.path)
    module.register_forward_pre_hook(lambda _, args, kwargs: entered.append((args, kwargs)), with_kwargs=True)
    ids = torch.tensor([lm.tok_encode("the pet of")])
    untouched = lm._model_call(ids)
    assert entered
    assert site.read.side == "input"
    spliced = SaeHFLM(
        pretrained="world",
        device="cpu",
        sae="world#blocks.2.hook_resid_post.k32",
        hook="blocks.1.attn.hook_in",
        splice="zero",
        splice_tokens="all",
    )
    assert not torch.equal(spliced._model_call(ids), untouched)


def test_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    recipe("metric")
    records = [{"agreement": 6.0, "tokens": 8.0}, {"agreement": 3.0, "tokens": 4.0}]
    values = metrics.metric_values(records)
    assert values["disagreement"] == pytest.approx(0.25)
    assert values["top1_agreement"] == pytest.approx(0.75)
    assert values["disagreement_stderr"] == pytest.approx(values["top1_agreement_stderr"])


def test_a_table(tmp_path: Path) -> None:
    names = [write_run(tmp_path / name, answers({"one": [1, 0, 1, 1, 0]}), model=name) for name in ("base", "other")]
    baseline, variant = map(read_results, names)
    variant.raw["results"]["sae_fidelity_x"] = {"norm_ratio,none": 0.875}
    table = recipe("table")["norms_table"]([variant])
    assert [[cell.text for cell in row] for row in table.rows] == [[variant.name, "0.875"]]
    report = assemble.build(assemble.compare_tasks(baseline, [read_results(names[1])]))
    writer.write(replace(report, tables=(*report.tables, table)), tmp_path / "report")
    for name in ("report.html", "report.md", "appendix.tex"):
        assert "Norm of the reconstruction" in (tmp_path / "report" / name).read_text(encoding="utf-8"), name


def test_the_drawn_order_is_the_linters() -> None:
    drawn = re.search(r"<!-- layers -->\n```\n(.*?)\n```", ARCHITECTURE, flags=re.DOTALL)
    assert drawn is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [
        contract["layers"] for contract in project["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"
    ]
    assert drawn[1].split("\n") == [line.replace("sae_lm_eval.", "") for line in layers]


def test_each_package_is_described() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE, flags=re.MULTILINE))


def test_each_file_to_begin_with_is_there() -> None:
    for package, files in re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", ARCHITECTURE, flags=re.MULTILINE):
        for name in re.findall(r"`(\S+\.py)`", files):
            assert (PACKAGE / package / name).is_file(), f"{package}/{name}"


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = re.search(
        r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert heading is not None
    assert project["version"] == str(citation["version"]) == heading[1]
    assert project["license"] == citation["license"]


def test_the_workflow_tries_each_python_that_is_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3" in line]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"
    assert jobs["harness-main"]["continue-on-error"] is True


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", *DECISIONS])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
