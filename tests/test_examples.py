"""What lies in examples/ runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from terminals import terminal
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.report import assemble, writer
from sae_lm_eval.results.find import find_results

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "out"
    command = [sys.executable, str(EXAMPLES / "mmlu_shaped_results.py"), str(folder), "--share", "0.1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"Written, and made up: {folder}\n"
    return folder


def test_made_up_results_have_the_shape_of_mmlu(synthetic):
    baseline, variants = find_results(synthetic)
    assert len(baseline.tasks) == 57
    assert list(baseline.groups) == ["mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]
    assert len(variants) == 3
    assert all("synthetic" in str(run.model_args["pretrained"]) for run in (baseline, *variants))


def test_their_table_has_the_four_groups_and_says_what_was_put_in(synthetic, tmp_path):
    done = CliRunner().invoke(app, ["table", str(synthetic), "--by", "group", "--format", "csv"])
    (tmp_path / "table.csv").write_text(done.stdout)
    table = pd.read_csv(tmp_path / "table.csv").set_index("variant")
    columns = ["stem", "other", "social sciences", "humanities"]
    assert [name for name in table if name in columns] == columns
    assert (table.loc["synthetic_16k", columns] > table.loc["synthetic_131k", columns]).all()
    baseline = table.loc["baseline", "overall"]
    assert 65 < baseline < 80
    assert baseline - table.loc["zero", "overall"] == pytest.approx(25, abs=5), "chance"


def test_their_table_fits_a_narrow_terminal(synthetic):
    command = [sys.executable, "-m", "sae_lm_eval", "table", str(synthetic), "--by", "group"]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **terminal(80)}
    ).stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "humanities" in said
    assert "The intervals have no room here" in " ".join(said.split())
    wide = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **terminal(160)}
    ).stdout
    assert "no room" not in wide
    assert re.search(r"synthetic_16k +[\d.]+\* \[[\d.]+, [\d.]+\]", wide)


def test_the_same_seed_makes_the_same(synthetic, tmp_path):
    command = [sys.executable, str(EXAMPLES / "mmlu_shaped_results.py"), str(tmp_path), "--share", "0.1"]
    subprocess.run(command, capture_output=True, check=True)
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        assert file.read_bytes() == (synthetic / file.relative_to(tmp_path)).read_bytes(), file


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no TeX")
def test_their_appendix_has_its_tables_in_order_and_nothing_that_sticks_out(synthetic, tmp_path):
    report = assemble.build(assemble.compare_tasks(*find_results(synthetic)))
    writer.write(report, tmp_path)
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "appendix"]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert "Overfull" not in (tmp_path / "appendix.log").read_text(errors="replace")
    labels = [line for line in (tmp_path / "appendix.aux").read_text().splitlines() if "newlabel{tab:sae-" in line]
    order = [line.split("tab:sae-")[1].split("}")[0] for line in labels]
    assert order == [table.name for table in report.tables]


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_the_cells_of_a_notebook_run_in_their_order(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = json.loads(notebook.read_text(encoding="utf-8"))
    assert held["nbformat"] == 4
    scope: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == [], "a notebook is kept without what it showed"
        exec(compile("".join(cell["source"]), notebook.name, "exec"), scope)
    assert cells


@pytest.fixture(scope="module")
def with_loader(tmp_path_factory):
    """The environment of a Python that has the package of examples/ beside what is installed here."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    shutil.copytree(EXAMPLES / "loader_package", source / "package")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source / "package")], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (128, 16), "b_enc": (16,), "W_dec": (16, 128), "b_dec": (128,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "my_sae.npz", **arrays)
    return tmp_path / "my_sae.npz"


def inspected(environment, spec: str) -> subprocess.CompletedProcess:
    model_args = f"pretrained=world,sae={spec},hook=blocks.2.hook_resid_post"
    command = [sys.executable, "-m", "sae_lm_eval", "inspect", "--model_args", model_args]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_specs_of_a_package_work_once_it_is_installed(with_loader, npz):
    done = inspected(with_loader, f"npz:{npz}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "model.layers.2.output" in said
    assert "loaded by sae-lm-eval-npz 0.1.0" in said


def test_what_a_package_refuses_is_told_in_its_words(with_loader, npz):
    with np.load(npz) as whole:
        np.savez(npz, **{name: whole[name] for name in ("W_enc", "b_enc")})
    assert inspected(with_loader, f"npz:{npz}").stderr.strip() == f"sae-lm-eval: 'npz:{npz}' has no array W_dec."


def test_without_the_package_the_loader_is_unknown():
    said = inspected(os.environ, "npz:my_sae.npz").stderr
    assert said.startswith("sae-lm-eval: Loader 'npz' is unknown. Choose from saelens, sparsify, dictionary_learning,")
