"""What the files hold is what the published schemas say, and other versions are read or named."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import test_fidelity_compute
from runs import answers, write_run
from test_fidelity import adapter

from sae_lm_eval import schema
from sae_lm_eval.comparison.compare import COLUMNS, paired_comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble as build
from sae_lm_eval.report import writer
from sae_lm_eval.report.fidelity_tables import tidy
from sae_lm_eval.results import find as folders
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runtime.run_folder import remember

ROOT = Path(__file__).parents[1]


def validate(record: Any, name: str) -> None:
    held = schema.schema(name)
    jsonschema.Draft202012Validator.check_schema(held)
    jsonschema.Draft202012Validator(held).validate(record)


def records(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV as JSON has them: empty cells are null, and numbers that are whole are integers."""
    frame = pd.read_csv(path)
    return json.loads(frame.to_json(orient="records"))


def test_what_is_added_to_lm_evals_results(tmp_path):
    lm = adapter(params=70e6, tokens=300e9)
    test_fidelity_compute.TestInResults.evaluate(lm, tmp_path)
    ours = json.loads(json.dumps(lm.get_model_info()["sae_lm_eval"]))
    validate(ours, "results")
    assert ours["schema"] == schema.VERSION
    with pytest.raises(jsonschema.ValidationError, match="'schema' is a required property"):
        validate({key: value for key, value in ours.items() if key != "schema"}, "results")
    wrong = {**ours, "effective_compute": {"text": {"fraction": "0.4"}}}
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong, "results")


def test_what_a_run_was_asked_for(tmp_path):
    from dataclasses import asdict

    from sae_lm_eval.runs.sweep import sweep_of

    sweep = sweep_of({"model_args": "pretrained=world", "variants": ["world#blocks.2.hook_resid_post.k4"], "tasks": []})
    record = {
        "model_args": sweep.model_args,
        "variants": [asdict(variant) for variant in sweep.variants],
        "tasks": ["sae_world"],
    }
    remember(tmp_path, record)
    written = json.loads((tmp_path / "run.json").read_text())
    validate(written, "run")
    remember(tmp_path, record)  # the same again is no other run


def test_rows_of_drops_and_fidelity(tmp_path):
    rng = np.random.default_rng(0)
    provenance = {"splice": "reconstruction", "splices": [], "schema": schema.VERSION}
    for name, accuracy in (("baseline", 0.9), ("k4", 0.6)):
        right = answers({"one": rng.binomial(1, accuracy, 40).tolist(), "two": rng.binomial(1, accuracy, 9).tolist()})
        text = answers({"text": [1.0] * 5})
        scores = {"text": {"ce_baseline,none": 3.0, "ce_spliced,none": 3.1, "ce_delta,none": 0.1}}
        write_run(
            tmp_path / name, {**right, **text}, scores, config={"sae_lm_eval": provenance} if name == "k4" else None
        )
    for path in writer.write(build.build(build.compare_tasks(*folders.find_results(tmp_path))), tmp_path / "report"):
        if path.suffix == ".csv":
            rows = records(path)
            assert rows
            for row in rows:
                validate(row, path.stem)
    assert {row["metric"] for row in records(tmp_path / "report" / "fidelity.csv")} >= {"ce_delta", "l0"}


def test_the_schemas_name_every_column():
    assert [*COLUMNS, "schema"] == list(schema.schema("drops")["properties"])
    assert [*tidy({}).columns, "schema"] == list(schema.schema("fidelity")["properties"])


def test_an_older_version_is_read_and_what_it_lacks_is_said(tmp_path):
    from sae_lm_eval.scaling.of_results import convert

    scores = {"text": {"ce_baseline,none": 3.0, "ce_spliced,none": 3.1}}
    for version, marks in (("old", {}), ("new", {"schema": schema.VERSION})):
        ours = {"splice": "reconstruction", **marks}
        write_run(tmp_path / version, answers({"text": [1.0] * 5}), scores, model="own", config={"sae_lm_eval": ours})
        (conversion,) = convert(tmp_path / version, original={"params": 1e9, "tokens": 2e10})
        assert conversion.result.preferred.fraction is not None
        assert any("the size of the vocabulary" in note for note in conversion.notes) == (version == "old")


def test_a_newer_version_is_refused(tmp_path):
    folder = write_run(tmp_path / "a", answers({"one": [1.0]}), config={"sae_lm_eval": {"schema": 99}})
    with pytest.raises(UserError, match=r"written by a newer sae_lm_eval \(schema 99; this one reads up to 3\)"):
        read_results(folder)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(UserError, match="written by a newer sae_lm_eval"):
        remember(tmp_path, {"model_args": {}})
    with pytest.raises(UserError, match="which is no version"):
        schema.version_of({"schema": "two"}, "a.json")


def test_a_run_of_version_1_can_be_continued(tmp_path):
    record = {"model_args": {"pretrained": "world"}, "variants": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    remember(tmp_path, record)
    with pytest.raises(UserError, match="holds a run with other model_args"):
        remember(tmp_path, {**record, "model_args": {"pretrained": "gpt2"}})


def test_the_documentation_has_the_schemas_as_they_are():
    spec = importlib.util.spec_from_file_location("schema_tables", ROOT / "scripts" / "schema_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == module.page()


def test_comparisons_of_frames_have_no_other_columns(tmp_path):
    paths = [write_run(tmp_path / name, answers({"one": [1.0, 0, 1, 1]}), model=name) for name in "ab"]
    drops = paired_comparison(*(lambda baseline, *more: (baseline, more))(*map(read_results, paths)), draws=100).drops
    assert list(drops.columns) == COLUMNS
