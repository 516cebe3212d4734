"""`sae-lm-eval report`: from result files to pages, without torch; hostile names; undefined numbers."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from terminals import terminal
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble as build
from sae_lm_eval.report import drop_tables as drops
from sae_lm_eval.report import figures, latex, render, summary_table, sweep_settings, sweep_tables, writer
from sae_lm_eval.report import worst_documents as worst
from sae_lm_eval.report.fidelity_tables import MetricValue, fidelity_of, fidelity_tables, value_cell
from sae_lm_eval.report.formatting import MINUS, fixed_decimals, probability, significant, without_shared_start
from sae_lm_eval.results import find as folders
from sae_lm_eval.results.results import read_results

HOSTILE = r"<script>alert('a')</script> & 50% $x^2$ \input{b} #1 {c} ~d_e|f *g* [h](i) `j` é ф 中"
SPLICE = {
    "dictionary": "rel/ease#blocks.1.hook_resid_post",
    "hook_in": "blocks.1.hook_resid_post",
    "hook_out": "blocks.1.hook_resid_post",
    "mode": "reconstruction",
}
FIDELITY = {
    "ce_baseline": 3.0,
    "ce_spliced": 3.25,
    "ce_delta": 0.25,
    "ce_zero": 10.0,
    "loss_recovered_zero": 0.9643,
    "loss_recovered_mean": 0.9,
    "kl": 0.2,
    "l0": 32.0,
    "l0_stderr": 1.234,
    "effective_compute": 0.4,
}


def write_run(
    folder: Path,
    answers: Mapping[str, Sequence[int]],
    *,
    splice: str | None = "reconstruction",
    fidelity: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    pretrained: str = "gpt2",
    **record: Any,
) -> None:
    """What lm_eval writes into --output_path: `answers` are right (1) or wrong (0) by task and document."""
    inner = folder / "model"
    inner.mkdir(parents=True)
    results: dict[str, dict[str, Any]] = {}
    for index, (task, right) in enumerate(answers.items()):
        mean = sum(right) / len(right)
        results[task] = {"alias": task, "sample_len": len(right), "acc,none": mean, "acc_stderr,none": 0.1}
        samples = inner / f"samples_{task}_2026-01-01T00-00-00.000000.jsonl"
        samples.write_text("\n".join(json.dumps(_sample(index, document, acc)) for document, acc in enumerate(right)))
    for group, members in (groups or {}).items():
        tasks = [task for member in members for task in (groups or {}).get(member, [member])]
        value = [acc for task in tasks for acc in answers[task]]
        results[group] = {"alias": group, "sample_len": len(value), "acc,none": sum(value) / len(value)}
    if fidelity is not None:
        results["sae_fidelity"] = {
            "alias": "sae_fidelity",
            **{f"{name},none": value for name, value in fidelity.items()},
        }
    ours = {"splices": [SPLICE], "splice": splice, "packages": {"sae_lm_eval": "0.1.0", "lm_eval": "0.4.13"}, **record}
    arguments = {"pretrained": pretrained} | ({"sae": SPLICE["dictionary"], "splice": splice} if splice else {})
    config = {"model": "sae_hf" if splice else "hf", "model_args": arguments, "limit": 4.0, "batch_size": 8}
    raw = {
        "results": results,
        "group_subtasks": groups or {},
        "configs": {task: {"output_type": "multiple_choice"} for task in answers},
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: {"acc": True} for task in results},
        "n-samples": {task: {"original": 9, "effective": 9} for task in results if task not in (groups or {})},
        "config": config | ({"sae_lm_eval": ours} if splice else {}),
        "lm_eval_version": "0.4.13",
        "date": 1_767_225_600.0,
    }
    (inner / "results_2026-01-01T00-00-00.000000.json").write_text(json.dumps(raw))


def _sample(task: int, document: int, acc: int) -> dict[str, Any]:
    requests = {f"gen_args_{choice}": {"arg_0": "Q", "arg_1": f" {choice}"} for choice in range(4)}
    return {
        "doc_id": document,
        "doc": {"subject": "odd" if document % 2 else "even"},
        "target": "0",
        "arguments": requests,
        "filtered_resps": [[-1.0 if choice == (0 if acc else 1) else -2.0, False] for choice in range(4)],
        "filter": "none",
        "metrics": ["acc"],
        **{f"{part}_hash": f"{part}-{task}-{document}" for part in ("doc", "prompt", "target")},
        "acc": float(acc),
    }


QUESTIONS = {"birds": [1] * 18 + [0] * 2, "fish_x": [1] * 20, "plants": [1] * 15 + [0] * 5}
WORSE = {"birds": [1] * 10 + [0] * 10, "fish_x": [1] * 12 + [0] * 8, "plants": [1] * 14 + [0] * 6}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A baseline, and two variants of which one measured fidelity."""
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    write_run(tmp_path / "k4", WORSE, fidelity=FIDELITY)
    write_run(tmp_path / "k32", QUESTIONS)
    return tmp_path


def report_of(out: Path, **options: Any) -> build.Report:
    return build.build(build.compare_tasks(*folders.find_results(out), **options))


class Page(html.parser.HTMLParser):
    """What a browser would find: tags, ids, everything loaded, the text of cells and of the alternatives."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes.append((tag, attributes))
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        sources = [attributes.get("src"), attributes.get("href") if tag != "a" else None, attributes.get("xlink:href")]
        self.loaded += [source for source in sources if source and not source.startswith("#")]


def test_command_writes_everything_without_torch(out: Path) -> None:
    program = (
        "import sys; from sae_lm_eval.cli.main import main; sys.argv = ['sae-lm-eval', 'report', sys.argv[1]]\n"
        "try: main()\n"
        "finally: print('LOADED', {'torch', 'lm_eval', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program, str(out)], capture_output=True, text=True)
    assert "LOADED set()" in result.stdout, result.stderr
    assert "k4 costs most: it loses 28.3 percentage points of accuracy" in " ".join(result.stdout.split())
    names = {str(path.relative_to(out / "report")) for path in (out / "report").rglob("*") if path.is_file()}
    pictures = {"drop-by-category", "heat-map", "drop-against-baseline"}
    files = {"report.html", "report.md", "appendix.tex", "appendix.bib", "drops.csv", "fidelity.csv"}
    assert names == files | {f"figures/{name}.{kind}" for name in pictures for kind in ("pdf", "svg", "png")}


def test_terminal_shows_drops_without_their_intervals(out: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(out)], env=terminal(80))
    assert result.exit_code == 0, result.output
    assert "baseline 90.0 100.0 75.0 88.3" in " ".join(result.output.split())
    assert "k4 40.0* 40.0* 5.0 28.3*" in " ".join(result.output.split())


def test_numbers_are_those_of_the_comparison(out: Path) -> None:
    report = report_of(out)
    text = render.html(report)
    overall = report.drops.query("variant == 'k4' and section == 'overall'").iloc[0]
    assert overall["drop"] == pytest.approx(100 * (53 - 36) / 60)
    assert f"({95}% interval {overall['low']:.1f} to {overall['high']:.1f}; from 88.3% to 60.0%, n = 60)" in text
    table = report.tables[0]
    assert [column.heading for column in table.columns][:5] == ["variant", "birds", "fish_x", "plants", "overall"]
    assert [row[0].text for row in table.rows] == ["baseline", "k4", "k32"]
    birds = report.drops.query("variant == 'k4' and name == 'birds'").iloc[0]
    cell = table.rows[1][1]
    assert cell.value == birds["drop"] == 40.0
    assert (cell.text, cell.detail) == ("40.0*", f"[{birds['low']:.1f}, {birds['high']:.1f}]")
    for part in ("n = 20 to 60 questions per row", "0 shots", "metric acc", "95% interval: Tango", "Holm"):
        assert part in table.caption
    assert "McNemar [@mcnemar1947]" in report.methods.replace("McNemar, exact", "McNemar")


def test_captions_cells_and_alternatives_are_complete(out: Path) -> None:
    page = Page(render.html(report_of(out)))
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("caption") == page.tags.count("table") > 3
    assert all("scope" in attributes for tag, attributes in page.attributes if tag == "th")
    drawings = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert len(drawings) == 3
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= set(page.ids)
    references = [
        attributes["href"]
        for tag, attributes in page.attributes
        if tag == "a" and (attributes["href"] or "").startswith("#")
    ]
    assert {reference[1:] for reference in references if reference} <= set(page.ids)


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    task = HOSTILE.replace("/", "_")
    for name in ("baseline", "<b>v_1", "$v$ 5%"):
        answers = {task: QUESTIONS["birds"] if name == "baseline" else WORSE["birds"], "y": [1, 0]}
        write_run(tmp_path / name, answers, splice=None if name == "baseline" else "zero", pretrained=HOSTILE)
    report = report_of(tmp_path)
    text = render.html(report)
    assert Page(text).tags.count("script") == 1, "the page's own"
    assert "<b>" not in text
    assert "&lt;b&gt;v_1" in text
    markdown = render.markdown_report(report)
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert not re.search(r"(?<!\\)<script>", re.sub(r"^    .*$", "", markdown, flags=re.MULTILINE))
    assert all(len(re.findall(r"(?<!\\)\|", line)) >= 3 for line in tables)
    tex = latex.appendix(report)
    assert r"\input{b}" not in tex
    assert r"\textbackslash{}input\{b\}" in tex
    assert r"\texttt{U+4E2D}" in tex


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="NOT TESTED WITH TEX: there is no pdflatex")
@pytest.mark.parametrize("within", ["itself", "a paper"])
def test_appendix_compiles(tmp_path: Path, within: str) -> None:
    for name in ("baseline", "v_1 & 50%"):
        answers = {HOSTILE.replace("/", "_"): QUESTIONS["birds"], "y^2#": WORSE["birds"]}
        write_run(tmp_path / name, answers, splice="none" if name == "baseline" else "zero", fidelity=FIDELITY)
    writer.write(report_of(tmp_path), tmp_path / "report")
    name = "appendix"
    if within == "a paper":
        name = "paper"
        (tmp_path / "report" / "paper.tex").write_text(
            r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{array,booktabs,longtable,graphicx}"
            r"\graphicspath{{figures/}}\begin{document}Before.\input{appendix}After, in table~\ref{tab:sae-overall}."
            r"\bibliographystyle{plain}\bibliography{appendix}\end{document}"
        )
    for command in (["pdflatex", "-halt-on-error"], ["bibtex"], ["pdflatex"], ["pdflatex"]):
        command += ["-interaction=nonstopmode"] if command[0] == "pdflatex" else []
        result = subprocess.run([*command, name], cwd=tmp_path / "report", capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-2000:]
    assert "undefined" not in result.stdout
    assert within == "a paper" or "Overfull" not in result.stdout, "a paper's lines may be shorter"
    assert (tmp_path / "report" / f"{name}.pdf").stat().st_size > 20_000


LONG_NAMES = ("blimp_determiner_noun_agreement_with_adj_irregular_1", "blimp_sentential_negation_npi_licensor_present")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="NOT TESTED WITH TEX: there is no pdflatex")
@pytest.mark.parametrize("groups", [None, {"a_group_of_blimp": LONG_NAMES, "another_one": ["odd"]}])
def test_no_line_of_the_appendix_is_too_long(tmp_path: Path, groups: Mapping[str, Sequence[str]] | None) -> None:
    for index, name in enumerate(("baseline", "a_dictionary_of_131k", "a_dictionary_of_131k,zero")):
        answers = {task: [1] * (20 - 3 * index) + [0] * (180 + 3 * index) for task in (*LONG_NAMES, "odd")}
        write_run(tmp_path / name, answers, splice=None if not index else "reconstruction", groups=groups)
    writer.write(report_of(tmp_path), tmp_path / "report")
    result = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "appendix"],
        cwd=tmp_path / "report",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert "Overfull" not in result.stdout


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="NOT TESTED WITH TEX: there is no pdflatex")
def test_a_group_with_all_its_columns_fits_a_line_of_print(tmp_path: Path) -> None:
    names = [f"a_task_{at:02}" for at in range(12)]
    kl = {"kl_at_answers": {name: {"kl": 2.273, "stderr": 0.016, "positions": 120} for name in names}}
    for index, run in enumerate(("baseline", "topk8", "topk8,random_error", "topk32", "topk32,random_error")):
        answers = {name: [1] * (160 - index * at) + [0] * (40 + index * at) for at, name in enumerate(names)}
        mode = "random_error" if run.endswith("error") else "reconstruction"
        record = {"control_of": [run.partition(",")[0]]} if mode == "random_error" else {}
        write_run(tmp_path / run, answers, splice=mode if index else None, groups={"blimp": names}, **kl, **record)
    report = report_of(tmp_path)
    groups = next(table for table in report.tables if table.name == "groups")
    assert {"spliced", "KL", "interval over tasks"} <= {column.heading for column in groups.columns}
    writer.write(report, tmp_path / "report")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "appendix"]
    result = subprocess.run(command, cwd=tmp_path / "report", capture_output=True, text=True)
    assert result.returncode == 0
    assert "Overfull" not in result.stdout


def test_print_has_a_letter_for_every_sign_of_the_reports_own() -> None:
    package = Path(build.__file__).parents[1]
    rooms = ("report", "comparison", "capability", "scaling", "results")
    sources = [file for room in rooms for kind in ("py", "txt") for file in (package / room).rglob(f"*.{kind}")]
    text = "".join(file.read_text() for file in sources if file.name != "question_page.py")  # which is not printed
    named = re.findall(r"\\N\{([A-Z -]+)\}", text)
    signs = {*map(unicodedata.lookup, named), *(letter for letter in text if not letter.isascii())}
    assert drops.AT_CHANCE in signs
    assert {sign for sign in signs if "U+" in latex.tex(sign)} == set()


def test_labels_of_a_figure_lose_what_all_long_names_begin_with(out: Path) -> None:
    (row, *_) = drops.section_of(drops.drop_rows(build.compare_tasks(*folders.find_results(out)).drops), "task")
    rows = [dataclasses.replace(row, name=name, alias=name) for name in (*LONG_NAMES, "blimp_transitive")]
    assert figures.labels_of(rows)["blimp_transitive"] == "transitive"
    assert figures.labels_of(rows)[LONG_NAMES[1]].startswith("sentential_")
    assert figures.labels_of(rows[2:]) == {"blimp_transitive": "blimp_transitive"}


def test_no_name_in_a_figure_turns_its_text_around(out: Path) -> None:
    rows = drops.drop_rows(build.compare_tasks(*folders.find_results(out)).drops)
    evil = [
        dataclasses.replace(row, **{name: f"\u202e{getattr(row, name)}" for name in ("variant", "alias", "parent")})
        for row in drops.section_of(rows, "task")
    ]
    drawn = [figures.drop_by_category(evil), figures.heat_map(evil), figures.drop_against_baseline(evil)]
    drawn.append(figures.coloured_grid(np.ones((1, 2)), ["\u202eleft"], ["\u202eabove", "b"], 1.0, "\u202escale"))
    for figure in drawn:
        assert figure is not None
        svg = figures.as_bytes(figure, "svg").decode()
        assert "&lt;U+202E&gt;" in svg
        assert "\u202e" not in svg


def test_controls_stand_last_in_the_legend(out: Path) -> None:
    rows = drops.drop_rows(build.compare_tasks(*folders.find_results(out)).drops)
    tasks = drops.section_of(rows, "task")
    figure = figures.drop_by_category(
        [row for row in tasks if row.variant == "k32"], [row for row in tasks if row.variant == "k4"]
    )
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["k32", "k4"]


def test_groups_of_all_variants_share_a_table(tmp_path: Path) -> None:
    groups = {"animals": ["birds", "fish_x"]}
    for name, answers in {"baseline": QUESTIONS, "k4": WORSE, "k32": QUESTIONS}.items():
        write_run(tmp_path / name, answers, splice=None if name == "baseline" else "reconstruction", groups=groups)
    (table,) = (table for table in report_of(tmp_path).tables if table.name.startswith("groups"))
    assert [(row[0].text, row[1].text) for row in table.rows] == [("k4", "animals"), ("k32", "animals")]
    assert "0 shots" in table.caption
    assert "shots" not in [column.heading for column in table.columns]


def test_a_law_is_described_where_it_was_used(tmp_path: Path) -> None:
    for name in ("baseline", "k4"):
        measured = {key: value for key, value in FIDELITY.items() if key != "effective_compute"}
        write_run(tmp_path / name, QUESTIONS, splice="none" if name == "baseline" else "zero", fidelity=measured)
    assert "Effective compute is" not in report_of(tmp_path).methods


def test_every_key_cited_is_in_the_bibliography(out: Path) -> None:
    report = report_of(out)
    cited = set(re.findall(r"\\cite\{([^}]*)\}", latex.appendix(report)))
    assert cited == set(re.findall(r"^@\w+\{([^,]*),", render.bibtex(report), flags=re.MULTILINE))
    assert r"0.4.13 \cite{lm-eval}" in latex.appendix(report)
    assert cited >= {"tango1998", "mcnemar1947", "holm1979", "lm-eval"}


def test_loss_recovered_needs_its_losses(out: Path) -> None:
    report = report_of(out)
    frame = report.fidelity.set_index("metric")
    assert frame.loc["loss_recovered_zero", "value"] == 0.9643
    assert pd.isna(frame.loc["loss_recovered_mean", "value"])
    assert frame.loc["loss_recovered_mean", "reason"] == "the results lack the mean-ablation CE"
    losses = next(table for table in report.tables if table.name == "fidelity-losses")
    assert [column.heading for column in losses.columns][2:] == [
        *("baseline CE", "spliced CE", "delta CE", "zero-ablation CE", "loss recovered (zero ablation)"),
    ]
    assert "loss recovered from the named ablation" in losses.caption
    assert "0.9000" not in render.html(report)
    activations = next(table for table in report.tables if table.name == "fidelity-activations")
    assert [cell.text for cell in activations.rows[0]] == ["k4", "sae_fidelity", "32.0 ± 1.2"]


def test_captions_speak_of_the_columns_that_are_there(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice="none")
    write_run(tmp_path / "k4", WORSE, fidelity={"ce_baseline": 3.0, "ce_spliced": 3.2, "kl": 0.1})
    captions = {table.name: table.caption for table in report_of(tmp_path).tables}
    assert captions["fidelity-losses"] == "On each text: mean cross-entropy in nats/token."
    assert captions["fidelity-outputs"].endswith(": KL from the baseline to the spliced model in nats/token.")


def test_effective_compute_as_the_run_recorded_it(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice="none")
    recorded = {"fraction": 0.31, "low": 0.25, "high": 0.4, "law": "besiroglu2024", "flags": ["beyond its range"]}
    write_run(tmp_path / "a", WORSE, fidelity=FIDELITY, effective_compute={"sae_fidelity": recorded})
    undefined = {"fraction": None, "reason": "the model's tokens are unknown"}
    write_run(tmp_path / "b", WORSE, fidelity=FIDELITY, effective_compute={"sae_fidelity": undefined})
    report = report_of(tmp_path)
    table = next(table for table in report.tables if table.name == "fidelity-compute")
    assert [[cell.text for cell in row][2:] for row in table.rows] == [
        ["0.310", "[0.250, 0.400]", "besiroglu2024", "beyond its range"],
        ["n/a", "n/a", "n/a", "the model's tokens are unknown"],
    ]
    assert "besiroglu2024" in report.works
    assert "l0-against-effective-compute" not in [picture.name for picture in report.pictures], "one point is no curve"


def test_what_else_a_variant_costs_has_its_error_and_its_interval(tmp_path: Path) -> None:
    compute = {"fraction": 0.35, "low": 0.3, "high": 0.4, "law": "chinchilla", "flags": []}
    record = {"effective_compute": {"sae_fidelity": compute}}
    write_run(tmp_path / "k32", {"birds": [1, 0]}, fidelity={**FIDELITY, "kl_stderr": 0.0123}, **record)
    write_run(tmp_path / "baseline", {"birds": [1, 1]}, splice=None)
    comparison = build.compare_tasks(*folders.find_results(tmp_path))
    shaped = build.shape(comparison)
    table = summary_table.summary_table(shaped.summary(), shaped.significance)
    row = dict(zip([column.heading for column in table.columns], table.rows[-1], strict=True))
    assert [row[name].detail for name in ("KL", "delta CE", "effective compute")] == ["± 0.012", "", "[0.300, 0.400]"]
    assert "in nats/token; " in table.caption
    assert "as a fraction of the training compute, by chinchilla; ±: standard error." in table.caption
    numbers = summary_table.summary_frame(shaped.summary()).iloc[-1]
    assert [numbers[f"effective compute {bound}"] for bound in ("low", "high")] == [0.3, 0.4]
    assert numbers["KL stderr"] == 0.0123


def test_laws_and_calibration_stand_beside_effective_compute(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice="none")
    recorded = {
        "fraction": 0.31,
        "low": 0.25,
        "high": 0.4,
        "law": "pythia_pile_test",
        "flags": [],
        "within_the_law": {"fraction": 0.14, "low": 0.13, "high": 0.15},
        "law_spread": [0.12, 0.19],
    }
    calibrated = {"fraction": 0.2, "low": 0.1, "high": 0.4}
    for name, calibration in (("a", calibrated), ("b", {"fraction": None, "reason": "not calibrated: too large"})):
        made_of = {"sae_fidelity": {**recorded, "calibrated": calibration}}
        write_run(tmp_path / name, WORSE, fidelity=FIDELITY, effective_compute=made_of)
    report = report_of(tmp_path)
    table = next(table for table in report.tables if table.name == "fidelity-compute")
    heads = [column.heading for column in table.columns]
    assert heads[5:8] == ["within the law", "between laws", "calibrated"]
    assert [[cell.text for cell in row[5:8]] for row in table.rows] == [
        ["0.140 [0.130, 0.150]", "0.120 to 0.190", "0.200 [0.100, 0.400]"],
        ["0.140 [0.130, 0.150]", "0.120 to 0.190", "not calibrated: too large"],
    ]
    calibration = "effective compute 0.310 (95% interval 0.250 to 0.400) (within the law 0.140 [0.130, 0.150]"
    assert any(
        calibration in line and "between laws 0.120 to 0.190; calibrated: 0.200" in line for line in report.headline
    )


def test_many_variants(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice="none")
    for l0 in (8, 16, 128, 32, 64, 256, 512):
        write_run(tmp_path / f"a-long-release-name-l0_{l0}", WORSE, fidelity=FIDELITY | {"l0": l0})
    report = report_of(tmp_path)
    variants = next(table for table in report.tables if table.name == "variants")
    names = [row[0].text for row in variants.rows]
    assert names == [f"l0_{l0}" for l0 in (8, 16, 32, 64, 128, 256, 512)]
    assert variants.rows[0][1].text == "a-long-release-name-l0_8"
    assert set(report.drops["variant"]) == {f"a-long-release-name-{name}" for name in names}
    drawn = [picture.name for picture in report.pictures]
    assert {"drop-by-category-1", "drop-by-category-2", "l0-against-effective-compute"} <= set(drawn)
    for picture in report.pictures:
        assert max(picture.figure.get_size_inches()) <= 8.5, picture.name


def test_fidelity_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", {}, splice="none", fidelity=FIDELITY)
    write_run(tmp_path / "k4", {}, fidelity=FIDELITY)
    report = report_of(tmp_path)
    assert report.pictures == ()
    assert report.headline[1] == (
        "k4: delta CE 0.250 nats/token (from 3.000 to 3.250), KL 0.200 nats/token, effective compute 0.400 "
        "on sae_fidelity."
    )
    assert "so there is nothing to draw" in render.html(report)


def test_groups_and_categories(out: Path, tmp_path: Path) -> None:
    report = report_of(out, categories={"animals": ["birds", "fish_x"], "all else": "plants"})
    assert [column.heading for column in report.tables[0].columns][1:4] == ["animals", "all else", "overall"]
    other = tmp_path / "grouped"
    groups = {"living": ["birds", "fish_x"], "green": ["plants"]}
    for name, answers in (("baseline", QUESTIONS), ("k4", WORSE)):
        write_run(other / name, answers, groups=groups, splice="none" if name == "baseline" else "zero")
    table = next(table for table in report_of(other).tables if table.name == "categories-1")
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [
        ["living", "birds"],
        ["living", "fish_x"],
        ["green", "plants"],
    ]


def test_groups_stand_for_many_tasks(tmp_path: Path) -> None:
    answers = {f"t{index}": QUESTIONS["birds"] for index in range(40)} | {"alone": WORSE["birds"]}
    names = [f"t{index}" for index in range(40)]
    groups = {"all": ["stem", "arts"], "stem": names[:25], "arts": names[25:]}
    for name in ("baseline", "k4"):
        write_run(tmp_path / name, answers, groups=groups, splice="none" if name == "baseline" else "zero")
    report = report_of(tmp_path)
    table = next(table for table in report.tables if table.name == "categories-1")
    shown = {cell.text for row in table.rows for cell in row}
    assert {"stem", "arts", "alone"} <= shown
    assert "t1" not in shown
    assert sorted(row[0].text for row in table.rows) == ["", "all", "all"]


def test_commands_ask_for_the_same(out: Path) -> None:
    commands = {source.name: source.command for source in report_of(out).sources}
    assert commands["k4"] == (
        "lm_eval --model sae_hf --model_args "
        "'pretrained=gpt2,sae=rel/ease#blocks.1.hook_resid_post,splice=reconstruction' "
        "--tasks birds,fish_x,plants,sae_fidelity --num_fewshot 0 --batch_size 8 --limit 4 --log_samples "
        "--output_path k4"
    )
    assert commands["baseline"].startswith("lm_eval --model hf --model_args pretrained=gpt2 --tasks birds,")


def test_which_is_the_baseline(out: Path, tmp_path: Path) -> None:
    (out / "baseline").rename(out / "plain")
    assert folders.find_results(out)[0].name == "plain"
    assert folders.find_results(out, "k4")[0].name == "k4"
    with pytest.raises(UserError, match=r"has no results named 'k33'[.] Did you mean 'k32'"):
        folders.find_results(out, "k33")
    write_run(out / "plain too", QUESTIONS, splice="none")
    with pytest.raises(
        UserError, match=r"several results of an untouched model.*--baseline NAME, one of k4, k32, plain"
    ):
        folders.find_results(out)
    shutil.rmtree(out / "plain")
    shutil.rmtree(out / "plain too")
    with pytest.raises(UserError, match="no results of an untouched model"):
        folders.find_results(out)
    shutil.rmtree(out / "k32")
    with pytest.raises(UserError, match="holds 1 folder with lm_eval results: a report needs a baseline and at least"):
        folders.find_results(out)
    with pytest.raises(UserError, match="There is no folder"):
        folders.find_results(tmp_path / "nowhere")


def test_writing_again_leaves_what_is_not_the_reports(out: Path) -> None:
    report, folder = report_of(out), out / "report"
    (folder / "figures").mkdir(parents=True)
    for mine in ("notes.txt", "figures/mine.pdf"):
        (folder / mine).write_text("mine")
    for stale in ("figures/drop-by-category-9.pdf", "figures/loss-against-layers.svg", "scores.csv"):
        (folder / stale).write_text("of an earlier report")
    paths = writer.write(report, folder)
    before = {path: path.read_bytes() for path in paths}
    assert {path: path.read_bytes() for path in writer.write(report_of(out), folder)} == before, "the same bytes"
    assert (folder / "notes.txt").read_text() == (folder / "figures/mine.pdf").read_text() == "mine"
    left = {path for path in folder.rglob("*") if path.is_file()} - set(paths)
    assert left == {folder / "notes.txt", folder / "figures/mine.pdf"}
    (out / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*Give another --output_path"):
        writer.write(report, out / "file" / "report")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fixed_decimals(-0.04), "0.0"),
        (fixed_decimals(-3.21), "\N{MINUS SIGN}3.2"),
        (fixed_decimals(float("nan")), "n/a"),
        (significant(0), "0.00"),
        (significant(0.012345), "0.0123"),
        (significant(1234567.0), "1.23e+06"),
        (significant(-0.00001), "\N{MINUS SIGN}1.00e\N{MINUS SIGN}05"),
        (significant("N/A"), "n/a"),
        (probability(0.0004), "<0.001"),
        (probability(0.0456), "0.046"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected


def test_long_names_lose_what_they_share() -> None:
    names = [f"gemma-scope-2b-width_16k-l0_{l0}" for l0 in (16, 128)]
    assert list(without_shared_start(names).values()) == ["l0_16", "l0_128"]
    assert list(without_shared_start([*names, "zero"]).values()) == [*names, "zero"]
    assert without_shared_start(["k4", "k32"]) == {"k4": "k4", "k32": "k32"}


# -- the documents that lose most -----------------------------------------------------------------------------


def worst_of(report: build.Report, category: str) -> Sequence[worst.WorstDocument]:
    return next(entry.documents for entry in report.worst if entry.category == category)


def margins_of(document: worst.WorstDocument) -> list[float]:
    line = next(line for line in document.lines if line.label == worst.MARGIN)
    return [float(said.text.replace(MINUS, "-")) for said in line.said]


def run_pair(out: Path, edit: Callable[[dict[str, Any], bool], dict[str, Any]], **options: Any) -> build.Report:
    """A baseline that is right and a variant that is not; `edit` is told whether a sample is the variant's."""
    for name, right in (("baseline", [1.0] * 12), ("k4", [1.0, 0.0] * 6)):
        samples = {
            "one": [edit(line, name != "baseline") for line in runs.answers({"one": right}, seed=len(name))["one"]]
        }
        runs.write_run(out / name, samples, **options)
    return report_of(out)


def test_worst_documents_are_those_that_lose_most_margin(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("baseline", "k4", "k32"):
        runs.write_run(
            tmp_path / name, runs.answers({"one": rng.binomial(1, 0.7, 40).tolist()}, seed=len(name)), model=name
        )
    comparison = build.compare_tasks(*folders.find_results(tmp_path))
    report, frame = build.build(comparison), comparison.documents()
    shown = worst_of(report, "one")
    for variant in ("k4", "k32"):
        own = frame[frame["variant"] == variant].set_index("doc_id")
        loss: Any = own["margin_baseline"] - own["margin_variant"]
        expected = set(loss.nlargest(3).index)
        assert {int(model.title.split()[-1]) for model in shown if variant in model.losers} == expected
        for document in shown:
            doc_id, at = int(document.title.split()[-1]), document.models.index(variant)
            got = [margins_of(document)[0], margins_of(document)[at]]
            assert got == pytest.approx(
                [own.loc[doc_id, f"margin_{model}"] for model in ("baseline", "variant")], abs=0.0051
            )
            assert [line.right for line in document.lines].index(True) == doc_id % runs.CHOICES
    chosen = [said for line in shown[0].lines for said in line.said if said.chosen]
    assert len(chosen) == 3, "one answer of each model"


def test_a_category_of_some_documents_shows_no_others(out: Path) -> None:
    report = report_of(out, categories={"parity": {"field": "subject"}})
    for category, remainder in (("even", 0), ("odd", 1)):
        ids = [int(document.title.split()[-1]) for document in worst_of(report, category)]
        assert ids
        assert {doc_id % 2 for doc_id in ids} == {remainder}


def test_nothing_lost_is_not_shown(tmp_path: Path) -> None:
    for name in ("baseline", "same"):
        write_run(tmp_path / name, QUESTIONS, splice="none")
    assert report_of(tmp_path).worst == ()


def test_examples_are_left_out_where_all_prompts_begin_with_them(tmp_path: Path) -> None:
    def with_examples(line: dict[str, Any], _: bool) -> dict[str, Any]:
        prompt = f"Exam.\n\nQ: two?\nA: 2\n\nQ: three?\nA: 3\n\nQ: {line['doc_id']}?\n\n{'so ' * 900}\nA:"
        return line | {"arguments": {k: arguments | {"arg_0": prompt} for k, arguments in line["arguments"].items()}}

    report = run_pair(tmp_path, with_examples, shots=2)
    document = worst_of(report, "one")[0]
    assert document.prompt[:2] == ("", "The 37 letters before the question are left out.")
    assert document.prompt[2].startswith(f"Q: {document.title.split()[-1]}?")
    assert re.fullmatch(r"[\d,]+ letters are left out[.]", document.prompt[3])
    assert document.prompt[4].endswith("so \nA:")
    assert "[The 37 letters before the question are left out.]\n    Q: " in render.markdown_report(report)


@pytest.mark.parametrize(
    ("prompts", "shots", "expected"),
    [
        (["D\n\nA\n\nB one", "D\n\nA\n\nB two"], 1, "B one"),
        (["x\n\ny\n\nB one", "z\n\ny\n\nB two"], 2, "B one"),  # other examples each: as many delimiters as examples
        (["x\n\nB\n\none", "z\n\nB\n\ntwo"], 1, "B\n\none"),  # a question with a delimiter in it stays whole
        (["B one"], 3, "B one"),
    ],
)
def test_where_the_question_begins(prompts: list[str], shots: int, expected: str) -> None:
    at = worst.question_start(prompts[0], worst.header(prompts, "\n\n"), shots, "\n\n")
    assert prompts[0][at:] == expected


def test_choices_with_contexts_of_their_own(tmp_path: Path) -> None:
    def with_contexts(line: dict[str, Any], _: bool) -> dict[str, Any]:
        names = ("Ann", "Anton", "Berta", "Carl")
        requests = {
            f"gen_args_{i}": {"arg_0": f"Help came, so {name}", "arg_1": " left."} for i, name in enumerate(names)
        }
        return line | {"arguments": requests}

    document = worst_of(run_pair(tmp_path, with_contexts), "one")[0]
    assert document.prompt == ("Help came, so ",)
    assert [line.label for line in document.lines][:2] == ["Ann left.", "Anton left."]


def test_written_answers_are_shown_as_texts(tmp_path: Path) -> None:
    def with_text(line: dict[str, Any], variant: bool) -> dict[str, Any]:
        text = HOSTILE if variant else "So it is 4.\nReally."
        return line | {
            "arguments": {"gen_args_0": {"arg_0": "2 + 2?\u202e\x1b[2J\ud800", "arg_1": {"until": ["\n\n"]}}},
            "resps": [[text]],
            "filtered_resps": ["4"],
            "target": "four",
        }

    report = run_pair(tmp_path, with_text)
    document = worst_of(report, "one")[0]
    assert document.prompt == ("2 + 2?<U+202E><U+001B>[2J\\ud800",)
    assert document.target == "four"
    assert [(line.label, [said.text for said in line.said]) for line in document.lines] == [
        ("answer", ["So it is 4.\nReally.", HOSTILE]),
        ("extracted", ["4", "4"]),
    ]
    assert {int(document.title.split()[-1]) % 2 for document in worst_of(report, "one")} == {1}, "the lost ones"
    files = writer.files(report)
    page = Page(files["report.html"].decode())
    assert page.tags.count("script") == 1
    lines = [line for line in files["report.md"].decode().splitlines() if not line.startswith("    ")]
    assert not re.search(r"(?<!\\)<script>", "\n".join(lines))


# -- sweeps ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_frontier_by_brute_force(points: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)

    front = sweep_settings.frontier([(float(x), float(y)) for x, y in points])
    assert sorted(front) == [at for at, point in enumerate(points) if not beaten(point)]
    assert [points[at] for at in front] == sorted(points[at] for at in front)


def spliced(layer: int, width: int = 16, mode: str = "reconstruction", name: str = "d") -> dict[str, Any]:
    hook = f"blocks.{layer}.hook_resid_post"
    splice = {"dictionary": f"{name}#{layer}/{width}", "hook_in": hook, "hook_out": hook}
    return SPLICE | splice | {"d_dictionary": width, "mode": mode}


def cells(report: build.Report, name: str) -> list[dict[str, str]]:
    table = next(table for table in report.tables if table.name == name)
    headings = [column.heading for column in table.columns]
    return [dict(zip(headings, (cell.text for cell in row), strict=True)) for row in table.rows]


def test_frontier_of_l0_against_drop_and_compute(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    variants = {"a": (1, 16, 8.0, WORSE, 0.2), "b": (2, 64, 16.0, WORSE, 0.1), "c": (2, 16, 64.0, QUESTIONS, 0.9)}
    for name, (layer, width, l0, answers, compute) in variants.items():
        fidelity = FIDELITY | {"l0": l0, "effective_compute": compute}
        write_run(tmp_path / name, answers, fidelity=fidelity, splices=[spliced(layer, width, name=name)])
    report = report_of(tmp_path)
    rows = {row["variant"]: row for row in cells(report, "sweep")}
    assert {name: row["frontier"] for name, row in rows.items()} == {
        "a": "drop and compute",
        "b": "",
        "c": "drop and compute",
    }
    assert [(row["layer"], row["width"], row["L0"]) for row in rows.values()] == [
        ("1", "16", "8.00"),
        ("2", "64", "16.0"),
        ("2", "16", "64.0"),
    ]
    drawn = {picture.name: picture for picture in report.pictures}
    for name in ("l0-against-drop", "l0-against-effective-compute"):
        axis = drawn[name].figure.axes[0]
        step = next(line for line in axis.lines if line.get_drawstyle() == "steps-post")
        assert np.asarray(step.get_xdata()).tolist() == [8.0, 64.0]
        legend = [text.get_text() for text in drawn[name].figure.legends[0].get_texts()]
        assert legend == ["layer 1", "layer 2", "width 16", "width 64", "frontier"]


def test_no_frontier_of_drops_where_there_is_nothing_to_lose(tmp_path: Path) -> None:
    at_chance = {"birds": [1] * 5 + [0] * 15}
    write_run(tmp_path / "baseline", at_chance, splice=None)
    for name, l0, right in (("a", 8.0, 6), ("b", 16.0, 3), ("c", 32.0, 5)):
        answers = {"birds": [1] * right + [0] * (20 - right)}
        fidelity = FIDELITY | {"l0": l0, "effective_compute": l0 / 100}
        write_run(tmp_path / name, answers, fidelity=fidelity, splices=[spliced(1, name=f"r#{name}")])
    report = report_of(tmp_path)
    assert {row.get("frontier", "") for row in cells(report, "sweep")} == {""}
    assert "l0-against-drop" not in [picture.name for picture in report.pictures]


def test_without_l0_the_notes_say_why_nothing_is_drawn(out: Path) -> None:
    report = report_of(out)
    assert any("the results of 1 of the 2 variants with one dictionary hold no L0" in note for note in report.notes)
    assert not [picture for picture in report.pictures if picture.name.startswith("l0-")]


def test_without_a_task_of_fidelity_nothing_is_said_of_l0(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for name in ("a", "b"):
        write_run(tmp_path / name, WORSE, splices=[spliced(1, name=name)])
    assert not [note for note in report_of(tmp_path).notes if "L0" in note]


def test_controls_of_a_run_go_by_what_they_do(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for name in ("k4", "k32"):
        write_run(tmp_path / name, WORSE, splices=[spliced(1, name=name)])
        splices = [spliced(1, mode="random_error", name=name)]
        write_run(tmp_path / f"{name},random_error", WORSE, splice="random_error", splices=splices, control_of=[name])
    both = {"splices": [spliced(1, mode="zero")], "control_of": ["k4", "k32"]}
    write_run(tmp_path / "k4,zero", WORSE, splice="zero", **both)
    write_run(tmp_path / "mine,all", WORSE, splice="mean", splices=[spliced(2, mode="mean")])
    report = report_of(tmp_path)
    shown = {row["results"]: row["variant"] for row in cells(report, "variants")}
    assert shown == {
        "k4": "k4",
        "k32": "k32",
        "k4,random_error": "random_error of k4",
        "k32,random_error": "random_error of k32",
        "k4,zero": "zero",
        "mine,all": "mine,all",
    }
    write_run(tmp_path / "k7,zero", WORSE, splice="zero", splices=[spliced(3, mode="zero")], control_of=["k7"])
    shown = {row["results"]: row["variant"] for row in cells(report_of(tmp_path), "variants")}
    assert shown["k4,zero"] == "zero at blocks.1.hook_resid_post"
    assert shown["k7,zero"] == "zero at blocks.3.hook_resid_post"


def test_controls_of_one_kind_stand_together(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for name, mode in (("a", "random_error"), ("a", "zero"), ("b", "random_error")):
        if not (tmp_path / name).exists():
            write_run(tmp_path / name, WORSE)
        write_run(tmp_path / f"{name},{mode}", WORSE, splice=mode, control_of=[name])
    assert [row["variant"] for row in cells(report_of(tmp_path), "summary")] == [
        *("baseline", "a", "b"),
        *("random_error of a", "random_error of b", "zero"),
    ]


def write_many_tasks(out: Path) -> None:
    """40 tasks: the reconstruction loses most in the last ones, its control everything in the first ones."""
    names = [f"task_{at:02}" for at in range(40)]
    write_run(out / "baseline", {name: [1] * 30 for name in names}, splice=None)
    lost = {name: [0] * at + [1] * (30 - at) for at, name in enumerate(names[:30])}
    write_run(out / "k4", lost | {name: [0] * 29 + [1] for name in names[30:]})
    zeros = {name: [0] * 30 if at < 10 else [1] * 30 for at, name in enumerate(names)}
    write_run(out / "k4,zero", zeros, splice="zero", control_of=["k4"])


def test_no_control_chooses_or_orders_what_is_shown(tmp_path: Path) -> None:
    write_many_tasks(tmp_path)
    shown = [row["task"] for row in cells(report_of(tmp_path), "categories-1")]
    assert shown == [f"task_{at:02}" for at in range(4, 40)]
    comparison = build.compare_tasks(*folders.find_results(tmp_path))
    report = build.build(comparison, sort="drop")
    assert [row["task"] for row in cells(report, "categories-1")][:2] == ["task_29", "task_30"]
    assert cells(report, "categories-1")[-1]["task"] == "task_04"


def test_of_many_tasks_the_headline_counts_those_that_lose(tmp_path: Path) -> None:
    write_many_tasks(tmp_path)
    said = " ".join(report_of(tmp_path).headline)
    match = re.search(r"In k4, (\d+) of 40 tasks lose significantly, most of all task_29 \(96.7, .* to .*\)\.", said)
    assert match, said
    assert match[1] == "29"
    shutil.rmtree(tmp_path / "k4")
    write_run(tmp_path / "k4", {f"task_{at:02}": [1] * 29 + [0] for at in range(40)})
    assert "In k4, none of 40 tasks loses significantly." in report_of(tmp_path).headline


def test_tasks_with_nothing_to_lose_are_no_part_of_what_the_headline_counts(tmp_path: Path) -> None:
    names = [f"task_{at:02}" for at in range(40)]
    guessed = {"guessed": [1] * 8 + [0] * 22}
    write_run(tmp_path / "baseline", {name: [1] * 30 for name in names} | guessed, splice=None)
    write_run(tmp_path / "k4", {name: [1] * 16 + [0] * 14 for name in names} | {"guessed": [0] * 30})
    said = report_of(tmp_path).headline
    assert any(
        sentence.startswith("In k4, 40 of 40 tasks lose significantly, most of all task_00") for sentence in said
    )
    reason = "the baseline is not clearly above chance"
    assert f"Not counted: 1 of 41 tasks, with nothing to lose ({reason})." in said


def test_rows_that_only_a_control_has_are_ordered_by_their_own_drops(out: Path) -> None:
    rows = build.shape(build.compare_tasks(*folders.find_results(out))).rows
    lengths = {"within 128 tokens": 1.0, "beyond 128 tokens": 9.0}
    own = [
        dataclasses.replace(rows[0], variant="zero", section="length", name=name, drop=drop)
        for name, drop in lengths.items()
    ]
    ordered = drops.by_drop([*rows, *own], ["zero"])
    assert [row.name for row in ordered if row.section == "length"] == ["beyond 128 tokens", "within 128 tokens"]


def test_the_interval_over_tasks_stands_beside_that_of_a_group(tmp_path: Path) -> None:
    names = [f"task_{at:02}" for at in range(15)]
    groups = {"many": names[:12], "few": names[12:]}
    write_run(tmp_path / "baseline", {name: [1] * 20 for name in names}, splice=None, groups=groups)
    lost = {name: [0] * (at % 5) + [1] * (20 - at % 5) for at, name in enumerate(names)}
    write_run(tmp_path / "k4", lost, groups=groups)
    report = report_of(tmp_path)
    drops = report.drops.set_index(["section", "name"])
    low, high = (float(drops.loc[("group", "many"), f"tasks_{end}"]) for end in ("low", "high"))
    shown = {row["group"]: row["interval over tasks"] for row in cells(report, "groups")}
    assert shown == {"many": f"[{low:.1f}, {high:.1f}]", "few": "n/a"}
    caption = next(table.caption for table in report.tables if table.name == "groups")
    assert "n/a for fewer than ten tasks, or where all lose alike." in caption
    assert "Interval over tasks, of the same level:" in caption


def test_how_p_is_adjusted_is_told_with_the_first_table_and_in_the_methods(out: Path) -> None:
    report = report_of(out)
    family = build.compare_tasks(*folders.find_results(out)).family
    assert [table.name for table in report.tables if family in table.caption] == ["summary"]
    assert family in report.methods


def test_an_error_of_rounding_is_no_error(out: Path) -> None:
    shutil.rmtree(out / "k4")
    lost = {"loss_recovered_zero": 2.8e-9, "loss_recovered_zero_stderr": 2.0e-9}
    lost |= {"loss_recovered_mean": 0.9, "loss_recovered_mean_stderr": 2.0e-9, "ce_mean": 7.0, "ce_delta": 0.0}
    write_run(out / "k4", WORSE, fidelity=FIDELITY | lost)
    (row,) = cells(report_of(out), "fidelity-losses")
    assert row["loss recovered (zero ablation)"] == row["delta CE"] == "0"
    assert row["loss recovered (mean ablation)"] == "0.9000"


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (3.2e-7, 2e-9, f"3.200e{MINUS}07"),
        (-3.2e-7, 2e-9, f"{MINUS}3.200e{MINUS}07"),
        (2.8e-9, 2e-9, "0"),
        (0.0, 2e-9, "0"),
        (0.9, 2e-9, "0.9000"),
        (3.2e-7, 0.0, f"3.200e{MINUS}07"),
    ],
)
def test_a_number_many_errors_from_zero_is_not_shown_as_zero(value: float, stderr: float, text: str) -> None:
    assert value_cell(MetricValue("k4", "text", "kl", value, stderr, "nats/token")).text == text


def test_many_controls_are_one_series_and_clip_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    write_run(tmp_path / "k4", WORSE)
    for at in range(9):
        name = f"a_control_with_a_name_of_some_length_{at}"
        write_run(tmp_path / name, WORSE, splice="zero", splices=[spliced(at, mode="zero")])
    report = report_of(tmp_path)
    picture = next(drawn for drawn in report.pictures if drawn.name == "drop-by-category")
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["k4", "9 controls"]
    assert "Grey strokes: the 9 controls" in picture.caption
    for picture in report.pictures:
        figures.as_bytes(picture.figure, "png")
        for legend in picture.figure.legends:
            boxes = [axis.get_window_extent() for axis in picture.figure.axes]
            assert not any(legend.get_window_extent().overlaps(box) for box in boxes), picture.name
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]


def test_a_legend_of_many_lines_has_room(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for at in range(6):
        write_run(tmp_path / f"one_of_many_{'x' * 40}_dictionaries_{at}", WORSE)
    for picture in report_of(tmp_path).pictures:
        figures.as_bytes(picture.figure, "png")
        for legend in picture.figure.legends:
            boxes = [axis.get_window_extent() for axis in picture.figure.axes]
            assert not any(legend.get_window_extent().overlaps(box) for box in boxes), picture.name
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]


def test_layers_spliced_at_once(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for count in (1, 2, 3):
        write_run(tmp_path / f"n{count}", WORSE, splices=[spliced(layer) for layer in range(count)])
    report = report_of(tmp_path)
    figure = next(picture.figure for picture in report.pictures if picture.name == "loss-against-layers")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "3"]
    (line,) = [curve for curve in figure.axes[0].get_lines() if len(curve.get_xdata()) == 3]  # each has all before it
    assert list(line.get_xdata()) == [1, 2, 3]
    assert [row["layer"] for row in cells(report, "sweep")] == ["0", "0+1", "0+1+2"]
    shutil.rmtree(tmp_path / "n2")
    shutil.rmtree(tmp_path / "n3")
    assert "loss-against-layers" not in [picture.name for picture in report_of(tmp_path).pictures]


def write_reconstructions(out: Path, l0_of: Mapping[tuple[int, int, str], float]) -> None:
    """A variant for each (layer, width, name) with its L0, all of one release; higher layers lose more."""
    write_run(out / "baseline", QUESTIONS, splice=None)
    for (layer, width, name), l0 in l0_of.items():
        answers = QUESTIONS | {"birds": [1] * (18 - layer) + [0] * (2 + layer)}
        dictionary = {"dictionary": f"release#{layer}/{width}/{name}"}
        splices = [spliced(layer, width) | dictionary]
        write_run(out / f"l{layer}w{width}{name}", answers, fidelity=FIDELITY | {"l0": l0}, splices=splices)


def test_variants_that_differ_in_l0_alone_are_a_curve(tmp_path: Path) -> None:
    l0_of = {(1, 16, "trainer_1"): 32.0, (1, 16, "trainer_0"): 8.0}
    write_reconstructions(tmp_path, {**l0_of, (1, 64, "trainer_0"): 9.0, (2, 16, "trainer_0"): 10.0})
    assert curves_over_l0(tmp_path) == [[8.0, 32.0]]


def curves_over_l0(out: Path) -> list[list[float]]:
    """The L0s of each line that joins variants, and the caption speaks of lines where there are some."""
    picture = next(picture for picture in report_of(out).pictures if picture.name == "l0-against-drop")
    plain = [line for line in picture.figure.axes[0].get_lines() if line.get_linestyle() == "-"]
    curves = [np.asarray(line.get_xdata()).tolist() for line in plain if len(line.get_xdata()) > 1]
    stated = "A line joins variants of one release, site and width that differ only in L0." in picture.caption
    assert stated == bool(curves)
    return curves


@pytest.mark.parametrize(
    ("names", "l0s", "joined"),
    [
        (("l0_small", "l0_medium", "l0_big"), (8.0, 16.0, 32.0), [[8.0, 16.0, 32.0]]),
        (("average_l0_8", "average_l0_16"), (8.0, 16.0), [[8.0, 16.0]]),
        (("k4", "k32"), (4.0, 32.0), [[4.0, 32.0]]),
        (
            ("l0_small", "l0_big", "l0_small_affine", "l0_big_affine"),
            (8.0, 16.0, 9.0, 17.0),
            [[8.0, 16.0], [9.0, 17.0]],
        ),
        (("l0_medium_seed_1", "l0_medium_seed_2"), (8.0, 16.0), []),
        (("TopK/trainer_0", "Standard/trainer_0", "TopK_checkpoints/trainer_0_step_97"), (8.0, 16.0, 32.0), []),
        (("trainer_0", "trainer_1"), (8.0, 8.0), []),
    ],
)
def test_names_that_differ_in_more_than_l0_are_not_joined(
    names: Sequence[str], l0s: Sequence[float], joined: list[list[float]], tmp_path: Path
) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for at, (name, l0) in enumerate(zip(names, l0s, strict=True)):
        splices = [spliced(1) | {"dictionary": f"release#layer_1_width_16k_{name}"}]
        write_run(tmp_path / f"v{at}", WORSE, fidelity=FIDELITY | {"l0": l0}, splices=splices)
    assert curves_over_l0(tmp_path) == joined


@pytest.mark.parametrize("key", ["map_in", "map_out", "revision", "architecture"])
def test_variants_that_are_spliced_in_another_way_are_not_joined(key: str, tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for name, value, l0 in (("k4", "v1", 4.0), ("k8", "v1", 8.0), ("k16", "v2", 16.0)):
        splices = [spliced(1) | {"dictionary": f"release#{name}", key: value}]
        write_run(tmp_path / name, WORSE, fidelity=FIDELITY | {"l0": l0}, splices=splices)
    assert curves_over_l0(tmp_path) == [[4.0, 8.0]]


def test_a_width_at_several_layers_is_a_curve(tmp_path: Path) -> None:
    layers = {(layer, width, "a"): 8.0 for layer in (10, 2, 6) for width in (16, 64)}
    write_reconstructions(tmp_path, layers | {(2, 128, "a"): 8.0, (6, 128, "a"): 8.0, (6, 128, "b"): 9.0})
    picture = next(drawn for drawn in report_of(tmp_path).pictures if drawn.name == "loss-against-layer")
    curves = {str(drawn.get_label()): drawn.lines[0] for drawn in picture.figure.axes[0].containers}
    assert {name: np.asarray(line.get_xdata()).tolist() for name, line in curves.items()} == {
        "width 16": [2, 6, 10],
        "width 64": [2, 6, 10],
        "width 128": [2, 6, 6],
    }
    assert [line.get_linestyle() for line in curves.values()] == ["-", "-", "None"]
    assert "Where a width has several variants at a layer, none are joined." in picture.caption
    for kind in figures.DATELESS:
        figures.as_bytes(picture.figure, kind)


def test_two_layers_are_no_curve(tmp_path: Path) -> None:
    write_reconstructions(tmp_path, {(1, 16, "a"): 8.0, (2, 16, "a"): 8.0, (3, 64, "a"): 8.0})
    assert "loss-against-layer" not in [picture.name for picture in report_of(tmp_path).pictures]


def test_variants_that_add_nothing_to_one_another_are_one_series(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for layer in range(8):
        write_run(tmp_path / f"k{layer}", WORSE, splices=[spliced(layer)])
    write_run(tmp_path / "elsewhere", WORSE, splices=[spliced(layer) for layer in (9, 10, 11)])
    report = report_of(tmp_path)
    picture = next(drawn for drawn in report.pictures if drawn.name == "loss-against-layers")
    containers = picture.figure.axes[0].containers
    assert [len(container.lines[0].get_xdata()) for container in containers] == [9]
    assert containers[0].lines[0].get_linestyle() == "None"


def test_damage_beside_that_of_a_random_error(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    answers = {"one": {"kl": 0.4, "stderr": 0.01, "positions": 30}, "two": {"kl": 0.8, "stderr": 0.01, "positions": 10}}
    few = {task: losses | {"kl": losses["kl"] / 5} for task, losses in answers.items()}
    random = {"ce_delta": 0.02, "ce_delta_stderr": 0.02, "kl": 0.05, "kl_stderr": 0.001}
    for layer in (1, 2):
        write_run(
            tmp_path / f"sae{layer}",
            WORSE,
            splices=[spliced(layer)],
            kl_at_answers=answers,
            fidelity=FIDELITY | {"ce_delta_stderr": 0.01},
        )
    write_run(
        tmp_path / "random",
        QUESTIONS,
        splice="random_error",
        splices=[spliced(1, mode="random_error")],
        kl_at_answers=few,
        fidelity=FIDELITY | random,
    )
    report = report_of(tmp_path)
    rows = cells(report, "random-error")
    assert [(row["variant"], row["damage"], row["ratio"]) for row in rows] == [
        ("sae1", "delta CE on sae_fidelity", "n/a"),
        ("sae1", "KL on sae_fidelity", "4.00"),
        ("sae1", "KL at answers", "5.00"),
    ]
    assert [row["notes"] for row in rows] == ["the 95% interval of the random error's contains 0", "", ""]
    assert "gurnee2024" in report.works


@pytest.mark.parametrize(
    ("ours", "random", "expected"),
    [
        ((2.0, 0.1), (0.5, 0.1), (4.0, "")),
        ((2.0, None), (0.5, None), (4.0, "")),
        ((-0.1, 0.01), (0.5, 0.1), (None, "that of the SAE's error is not above 0")),
        ((2.0, 0.1), (0.0, 0.1), (None, "that of the random error is not above 0")),
        ((0.1, 0.06), (0.5, 0.1), (None, "the 95% interval of the SAE's error's contains 0")),
        ((2.0, 0.1), (None, None), (None, "not measured with the random error")),
    ],
)
def test_a_ratio_of_what_is_not_above_zero_is_undefined(ours: Any, random: Any, expected: Any) -> None:
    def measured(estimate: tuple[float | None, float | None]) -> MetricValue:
        return MetricValue("v", "t", "kl", *estimate, "nats/token")

    assert sweep_tables.ratio_to_random(measured(ours), measured(random), 0.95) == expected


def test_dose_and_response(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice=None)
    for scale in (1.0, 0.25, 0.5):
        fidelity = FIDELITY | {"ce_delta": scale, "kl": scale**2}
        write_run(tmp_path / f"s{scale}", WORSE, splices=[spliced(1)], scale=scale, fidelity=fidelity)
    write_run(tmp_path / "other", WORSE, splices=[spliced(2)], fidelity=FIDELITY)
    report = report_of(tmp_path)
    figure = next(picture.figure for picture in report.pictures if picture.name == "drop-against-scale")
    panels = {axis.get_ylabel(): axis.lines[0] for axis in figure.axes if axis.get_visible() and axis.lines}
    assert list(panels) == ["drop (pp)", "delta CE (nats/token)", "KL (nats/token)"]
    assert np.asarray(panels["KL (nats/token)"].get_xdata()).tolist() == [0.25, 0.5, 1.0]
    assert np.asarray(panels["KL (nats/token)"].get_ydata()).tolist() == [0.0625, 0.25, 1.0]
    assert {row["scale"] for row in cells(report, "sweep")} == {"0.25", "0.5", "1"}


def test_the_page_keeps_to_the_primary_metric(tmp_path: Path) -> None:
    def both(line: dict[str, Any], _: bool) -> dict[str, Any]:
        return line | {"metrics": ["acc", "acc_norm"], "acc_norm": 1.0 - line["acc"]}

    report = run_pair(tmp_path, both)
    tasks = report.drops.query("section == 'task'").set_index("metric")
    assert tasks["drop"].to_dict() == {"acc": 50.0, "acc_norm": -50.0}
    assert tasks["primary"].to_dict() == {"acc": True, "acc_norm": False}
    assert tasks.loc["acc", "p_adjusted"] == tasks.loc["acc", "p"], "acc_norm adds no test to those of acc"
    assert [row["drop"] for row in cells(report, "tasks-1")] == ["50.0*"]
    assert "drops.csv has the others" in report.methods


def test_tables_name_a_text_without_the_groups_name(out: Path) -> None:
    metrics = next(iter(fidelity_of([read_results(out / "k4")]).values()))
    tables = fidelity_tables({("k4", "sae_fidelity_world"): metrics})
    assert {table.rows[0][1].text for table in tables} == {"world"}


# -- what no dictionary made, and what several did --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_no_dictionary_is_in_the_model_where_zeros_or_means_are(tmp_path: Path, mode: str) -> None:
    write_run(tmp_path / "baseline", QUESTIONS, splice="none")
    write_run(tmp_path / "k4", WORSE, fidelity=FIDELITY)
    write_run(tmp_path / mode, WORSE, splice=mode, fidelity=FIDELITY | {"explained_variance": 0.9})
    report = report_of(tmp_path)
    frame = report.fidelity.set_index(["variant", "metric"])
    for metric in ("l0", "explained_variance"):
        assert pd.isna(frame.loc[(mode, metric), "value"])
        assert frame.loc[(mode, metric), "reason"] == f"the mode is {mode}, so no dictionary is in the model"
    assert frame.loc[("k4", "l0"), "value"] == 32.0
    assert frame.loc[(mode, "ce_spliced"), "value"] == FIDELITY["ce_spliced"]


def test_several_dictionaries_show_theirs_by_site(tmp_path: Path) -> None:
    sites = {f"blocks.{block}.hook_resid_post": 10.0 * block for block in (1, 2, 3)}
    several = {name: value for name, value in FIDELITY.items() if not name.startswith("l0")}
    several |= {f"l0/{site}": value for site, value in sites.items()}
    write_run(tmp_path / "baseline", QUESTIONS, splice="none")
    write_run(tmp_path / "k4", WORSE, fidelity=FIDELITY)
    write_run(tmp_path / "k8", WORSE, fidelity=FIDELITY | {"l0": 8.0})
    write_run(tmp_path / "three", WORSE, fidelity=several, splices=[{**SPLICE, "hook_out": site} for site in sites])
    report = report_of(tmp_path)
    activations = next(table for table in report.tables if table.name == "fidelity-activations")
    assert [column.heading for column in activations.columns][:4] == ["variant", "text", "site", "L0"]
    texts = [[cell.text for cell in row] for row in activations.rows if row[0].text == "three"]
    assert [row[2:4] for row in texts] == [[site, f"{value:.2f}"] for site, value in sites.items()]
    frame = report.fidelity.set_index(["variant", "metric"])
    assert [frame.loc[("three", f"l0/{site}"), "value"] for site in sites] == list(sites.values())
    assert frame.loc[("three", "l0"), "reason"] == "there are several dictionaries: each has its own, by its site"
    sweep = next(table for table in report.tables if table.name == "sweep")
    at = [column.heading for column in sweep.columns].index("L0")
    assert {row[0].text: row[at].text for row in sweep.rows}["three"] == "10.0+20.0+30.0"


def test_points_stand_at_their_baseline(out: Path) -> None:
    """As drawn, in pixels: no variant is moved aside along the axis of the baseline's accuracy."""
    rows = [row for row in drops.drop_rows(report_of(out).drops) if row.section == "task"]
    (axis,) = figures.drop_against_baseline(rows).axes
    containers = axis.containers
    assert len(containers) == 2
    for container, variant in zip(containers, drops.drop_variants(rows), strict=True):
        line, own = container[0], [row for row in rows if row.variant == variant]
        drawn = line.get_transform().transform(line.get_xydata())
        expected = axis.transData.transform([(100 * row.baseline, row.drop) for row in own])
        np.testing.assert_allclose(drawn, expected, atol=1e-6)
