"""The table of documents that a run writes: its numbers are lm_eval's and the model's own; drops by length; latents."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from runs import answers, write_run

from sae_lm_eval import SaeHFLM, UserError, read_results, run, schema
from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.comparison.prompt_lengths import SECTION
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.fidelity.latents_at_answers import latents_at_answers
from sae_lm_eval.report import assemble, writer
from sae_lm_eval.report.unusual_latents import unusual_latents
from sae_lm_eval.results.documents import document_table, path_of, write_documents
from sae_lm_eval.splicing.module_io import record_activations

K4 = "world#blocks.2.hook_resid_post.k4"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the world on a task of choices and one that reads a text."""
    out = tmp_path_factory.mktemp("documents") / "out"
    request = {"model_args": "pretrained=world", "variants": K4, "tasks": ["sae_world_homes", "sae_world_text"]}
    run(**request, output_path=out, limit=12, controls="zero")
    return out


@pytest.fixture(scope="module")
def documents(finished):
    return {path.name: document_table(read_results(path)) for path in finished.iterdir() if path.is_dir()}


def of_k4(held):
    return held["world_blocks.2.hook_resid_post.k4"]


def test_every_model_has_one_and_it_follows_its_schema(finished, documents):
    assert len(documents) == 3
    held, kinds = schema.schema("documents"), jsonschema.Draft202012Validator
    for folder in (path for path in finished.iterdir() if path.is_dir()):
        table = pq.read_table(path_of(read_results(folder)))
        assert table.column_names == list(held["properties"])
        assert table.schema.metadata[b"schema"] == str(schema.VERSION).encode()
        for row in table.to_pylist():
            kinds(held).validate(row)


def test_its_numbers_are_those_of_the_samples(finished, documents):
    folder = finished / "world_blocks.2.hook_resid_post.k4"
    own, results = of_k4(documents), read_results(folder)
    homes = own[own["task"] == "sae_world_homes"].set_index("doc_id")
    for sample in results.whole_samples("sae_world_homes"):
        row = homes.loc[sample["doc_id"]]
        assert row["prompt"] == sample["arguments"]["gen_args_0"]["arg_0"]
        assert list(row["answers"]) == [arguments["arg_1"] for arguments in sample["arguments"].values()]
        assert list(row["logprobs"]) == [float(answer[0]) for answer in sample["filtered_resps"]]
        assert (row["chosen"] in row["right"]) == bool(sample["acc"])
    compared = paired_comparison(finished / "baseline", [folder]).documents()
    compared = compared[compared["task"] == "sae_world_homes"].set_index("doc_id")
    assert homes["margin"].to_numpy() == pytest.approx(compared["margin_variant"].to_numpy())
    kl = results.provenance["kl_at_answers"]["sae_world_homes"]
    assert np.average(homes["kl"], weights=homes["positions"]) == pytest.approx(kl["kl"])
    text = own[own["task"] == "sae_world_text"]
    assert text["logprobs"].isna().all() or len(text) == 0


def test_latents_are_those_of_the_dictionary_at_the_answer(documents):
    lm = SaeHFLM(pretrained="world", sae=K4, device="cpu")
    own = of_k4(documents)
    row = own[own["latents"].notna()].iloc[0]
    context, answer = lm.spliced.tokens.pairs([(row["prompt"], row["answers"][row["right"][0]])])[0]
    splice = lm.spliced.variant.splices[0]
    ids = torch.tensor([[*context, *answer][:-1]])
    with torch.no_grad():
        x = record_activations(lm.model, [splice.site_in.read], ids)[splice.site_in.read]
        latents = load_dictionary(K4).encode(splice.map_in.there(x.reshape(ids.shape[1], -1)[-len(answer) :]))
    assert row["l0"] == (latents != 0).sum(-1).double().mean()
    for latent in row["latents"]:
        assert latent["activation"] == pytest.approx(latents[:, latent["latent"]].max().item(), rel=1e-4)
    counts = [latent["as_active"] for latent in row["latents"]]
    assert counts == sorted(counts)
    assert max(counts) <= row["others"] == own["l0"].notna().sum() - 1


def test_queries_in_one_batch_keep_their_own_latents():
    lm = SaeHFLM(pretrained="world", sae=K4, device="cpu").spliced
    pairs = lm.tokens.pairs([("The ropes beside the lady", " glow"), ("The ropes beside the teeth", " glow shakes")])
    queries = [lm.query(*pair) for pair in pairs]
    together = latents_at_answers(lm, queries)
    for number, query in enumerate(queries):
        (alone,) = latents_at_answers(lm, [query]).values()
        assert together[number, 0].positions == len(query.targets)
        assert together[number, 0].largest == pytest.approx(alone.largest, rel=1e-4)


def test_controls_and_the_baseline_have_no_latents(documents):
    for name, held in documents.items():
        assert held["latents"].notna().any() == (name == "world_blocks.2.hook_resid_post.k4")


# -- folders whose lengths a test chooses --------------------------------------------------------------


def written(folder, right, lengths, context=None, cut=0, latents=None, **splice):
    splices = [] if context is None else [{"dictionary": folder.name, "context_size": context, **splice}]
    config = {"sae_lm_eval": {"splices": splices, "splice": "reconstruction" if splices else "none"}}
    results = read_results(write_run(folder, answers({"one": right}), config=config, model=folder.name))
    table = pd.DataFrame({"task": "one", "doc_id": range(len(right)), "doc_hash": "h", "prompt": "", "tokens": lengths})
    table = table.assign(answers=[[]] * len(right), tokens_cut=[cut if length > 100 else 0 for length in lengths])
    if latents is not None:
        table = table.assign(latents=[latents, *[None] * (len(right) - 1)], others=9)
    write_documents(results, table)
    return folder


@pytest.fixture
def pair(tmp_path):
    lengths = [50] * 20 + [90] * 20
    right = [1.0] * 40
    return [
        written(tmp_path / "baseline", right, lengths),
        written(tmp_path / "k4", [1.0] * 19 + [0.0] * 11 + [1.0] * 10, lengths, context=64),
    ]


def test_drops_within_and_beyond_the_trained_context(pair):
    drops = paired_comparison(*pair, draws=100).drops.query("section == @SECTION").set_index("name")
    assert list(drops.index) == ["within 64 tokens", "beyond 64 tokens"]
    assert drops["n"].tolist() == [20, 20]
    assert drops["drop"].tolist() == pytest.approx([5, 50])


def test_rows_by_length_change_no_other_number(pair):
    with_lengths = paired_comparison(*pair, draws=100).drops
    for folder in pair:
        path_of(read_results(folder)).unlink()
    without = paired_comparison(*pair, draws=100).drops
    assert SECTION not in set(without["section"])
    pd.testing.assert_frame_equal(with_lengths[with_lengths["section"] != SECTION].reset_index(drop=True), without)


def test_each_variant_has_the_rows_of_its_own_context(tmp_path, pair):
    other = written(tmp_path / "k8", [1.0] * 40, [50] * 20 + [90] * 20, context=80)
    long = written(tmp_path / "k16", [1.0] * 40, [50] * 20 + [90] * 20, context=1024)
    drops = paired_comparison(pair[0], [pair[1], other, long], draws=100).drops.query("section == @SECTION")
    names = {variant: sorted(rows["name"]) for variant, rows in drops.groupby("variant")}
    assert names == {
        "k4": ["beyond 64 tokens", "within 64 tokens"],
        "k8": ["beyond 80 tokens", "within 80 tokens"],
    }


def test_cut_prompts_are_beyond_no_context_that_the_model_does_not_read(tmp_path):
    lengths = [50] * 10 + [140] * 10
    baseline = written(tmp_path / "baseline", [1.0] * 20, lengths, cut=40)
    variant = written(tmp_path / "k4", [1.0] * 10 + [0.0] * 10, lengths, context=100, cut=40)
    drops = paired_comparison(baseline, [variant], draws=100).drops.query("section == @SECTION").set_index("name")
    assert list(drops.index) == ["whole prompts", "cut prompts"]
    assert drops["drop"].tolist() == pytest.approx([0, 100])


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"{}"])
def test_a_damaged_table_is_told_and_the_rest_is_compared(pair, content):
    path_of(read_results(pair[0])).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a table of documents"):
        document_table(read_results(pair[0]))
    comparison = paired_comparison(*pair, draws=100)
    assert "Drops by the length of the prompt are left out." in " ".join(comparison.notes)
    assert comparison.drops.query("section == 'overall'")["drop"].item() == pytest.approx(27.5)
    assert assemble.build(comparison).worst


def test_a_table_of_something_else_and_of_a_newer_version(pair):
    path = path_of(read_results(pair[0]))
    pd.DataFrame({"task": ["one"], "doc_id": ["first"]}).to_parquet(path)
    with pytest.raises(UserError, match="has no column doc_id of int64: it is no table of a run's documents"):
        document_table(read_results(pair[0]))
    table = pq.read_table(path_of(read_results(pair[1])))
    for version, reason in (("99", "was written by a newer sae_lm_eval"), ("x", "which is no version")):
        pq.write_table(table.replace_schema_metadata({"schema": version}), path)
        with pytest.raises(UserError, match=reason):
            document_table(read_results(pair[0]))


@pytest.mark.parametrize(
    ("page", "linked"),
    [
        ("gpt2-small/8-res-jb", True),
        (None, False),
        ("../x", False),
        ("a/b?c=<script>", False),
        (["a/b"], False),
        ("javascript:alert(1)/b", False),
    ],
)
def test_latents_stand_by_the_worst_documents_with_their_pages(tmp_path, page, linked):
    latents = [{"splice": 0, "latent": 57, "activation": 3.25, "as_active": 1}]
    right = [1.0] * 20
    folders = [written(tmp_path / "baseline", right, [9] * 20)]
    extra = {"latents": latents, "context": 64, "neuronpedia": page}
    folders.append(written(tmp_path / "k4", [0.0, *right[1:]], [9] * 20, **extra))
    report = assemble.build(paired_comparison(folders[0], [folders[1]], draws=100))
    (document,) = report.worst[0].documents
    (unusual,) = document.unusual
    assert unusual.variant == "k4"
    assert unusual.sentence == "Latents that are as active in the fewest of 9 other documents."
    (latent,) = unusual.latents
    assert (latent.name, latent.detail) == ("57", "3.25, 1")
    assert latent.link == (f"https://www.neuronpedia.org/{page}/57" if linked else None)
    writer.write(report, tmp_path / "report")
    page_text, markdown = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert ('<a href="https://www.neuronpedia.org/gpt2-small/8-res-jb/57">57</a> (3.25, 1).' in page_text) is linked
    assert ("[57](https://www.neuronpedia.org/gpt2-small/8-res-jb/57) (3.25, 1)." in markdown) is linked
    assert "<script>" not in page_text.split("<body>")[1].replace("<script>", "", 1)


def test_latents_of_a_splice_that_the_results_do_not_have(tmp_path):
    latents = [{"splice": 7, "latent": 1, "activation": 1.0, "as_active": 0}, {"splice": 0, "latent": None}]
    folder = written(tmp_path / "k4", [1.0] * 3, [9] * 3, context=64, latents=latents)
    ((_, unusual),) = unusual_latents({"k4": read_results(folder)}, {("one", 0)}).items()
    assert unusual.latents[0].link is None


def test_the_release_says_where_its_latents_are_shown():
    lm = SaeHFLM(pretrained="world", sae=K4, device="cpu")
    assert lm.get_model_info()["sae_lm_eval"]["splices"][0]["neuronpedia"] is None
    json.dumps(lm.get_model_info()["sae_lm_eval"]["splices"])
