"""The command as a user meets it."""

import json
import re

import numpy as np
import pytest
import typer
from scipy.optimize import brentq
from terminals import terminal
from typer.testing import CliRunner

from sae_lm_eval.cli.effective_compute import effective_compute_command
from sae_lm_eval.errors import UserError

app = typer.Typer()
app.command("effective-compute")(effective_compute_command)


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


LOSSES = ("--ce-baseline", 3.139, "--ce-spliced", 3.283)
SIZE = ("--params", "124e6", "--tokens", "1e10")


def test_numbers_in_effective_compute_out(call):
    result = call(*LOSSES, *SIZE)
    assert result.exit_code == 0, result.output
    for expected in (
        "0.529",
        "0.599",
        "0.474",
        "effective compute",
        "within the law",
        "besiroglu2024",
        "-0.28",
    ):
        assert expected in result.output


def test_loss_recovered_with_its_ablation(call):
    result = call("--loss-recovered", 0.993, "--ce-ablated", 12.4, "--ablation", "zero", "--ce-baseline", 3.139, *SIZE)
    assert result.exit_code == 0, result.output
    assert "zero-ablation CE 12.4, loss recovered 0.993" in result.output
    assert "delta CE 0.064827 nats/token" in result.output
    assert "spliced CE 3.20383" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss-recovered", 0.993, *SIZE), "cannot be read without its ablation CE"),
        (("--loss-recovered", 0.993, "--ce-ablated", 12.4, *SIZE), "needs the baseline CE"),
        (("--loss-recovered", 0.993, "--ce-ablated", 12.4, "--ce-baseline", 3, *SIZE), "is not named"),
        (
            ("--loss-recovered", 0.9, "--ce-ablated", 12, "--ce-baseline", 3, "--ablation", "one", *SIZE),
            "behind a loss recovered is 'one'; name it",
        ),
        (
            ("--loss-recovered", 0.9, "--ce-ablated", 2, "--ce-baseline", 3, "--ablation", "zero", *SIZE),
            "ablation CE 2 is not above the baseline CE 3",
        ),
        (
            ("--loss-recovered", 99.3, "--ce-ablated", 12, "--ce-baseline", 3, "--ablation", "zero", *SIZE),
            "give a fraction (0.993), not per cent",
        ),
        ((*LOSSES, "--loss-recovered", 0.9, *SIZE), "not several"),
        (("--ce-baseline", 3.139, *SIZE), "Give two losses"),
        ((*LOSSES, *SIZE, "--ablation", "zero"), "belong to --loss-recovered"),
        (("--documents", "d.csv", "--delta-se", 0.1, *SIZE), "--delta-se belongs to"),
        (("--documents", "d.csv", "--ce-baseline", 3, *SIZE), "holds the baseline CE"),
        (LOSSES, "needs parameters and training tokens"),
        ((*LOSSES, "--model", "gpt2"), "needs training tokens (gpt2-small: never published"),
        ((*LOSSES, "--model", "gtp2"), "Did you mean 'gpt2"),
        ((*LOSSES, *SIZE, "--law", "besirolgu"), "Did you mean 'besiroglu2024'"),
        ((*LOSSES, *SIZE, "--family", "absent.csv"), "'absent.csv' does not exist"),
    ],
)
def test_mistakes_are_told_in_one_sentence(call, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call(*arguments)


def test_all_laws_and_the_spread_between_them(call):
    result = call("--ce-baseline", 1.9698, "--ce-spliced", 2.1324, "--model", "pythia-2.8b", "--all-laws")
    for law in ("hoffmann2022", "muennighoff2023", "cerebras2023", "olmo_ladder_pile", "kaplan2020"):
        assert law in result.output
    assert "Between 5 laws: 0.131 to 0.186 (0.15 decades)" in result.output


def test_undefined_is_na_with_the_reason(call):
    result = call("--ce-baseline", 3, "--ce-spliced", 1.5, *SIZE)
    assert result.exit_code == 0
    assert "n/a" in result.output
    assert "at or below the law's floor E" in result.output


def test_families_checkpoints_and_runs_from_files(call, tmp_path):
    family = tmp_path / "family.csv"
    family.write_text("model,flops,loss\na,1e18,4.2\nb,1e19,3.6\nc,1e20,3.15\nd,1e21,2.8\n")
    run = tmp_path / "run.csv"
    run.write_text("step,loss\n1000,5.1\n4000,4.1\n16000,3.4\n64000,3.1\n")
    result = call(*LOSSES, "--family", family, "--checkpoints", run)
    assert result.exit_code == 0, result.output
    for definition in ("family fit", "family interpolation", "checkpoints isotonic"):
        assert definition in result.output
    runs = tmp_path / "runs.csv"
    rows = [(n, d, 1.8 + 480 * n**-0.35 + 2000 * d**-0.37) for n in (1e8, 3e8, 1e9) for d in (2e9, 2e10, 2e11)]
    runs.write_text("params,tokens,loss\n" + "\n".join(",".join(map(repr, row)) for row in rows))
    fitted = call(*LOSSES, *SIZE, "--law", runs, "--format", "json")
    assert json.loads(fitted.stdout)[0]["constants"] == "E=1.8, A=480, alpha=0.35, B=2000, beta=0.37"


@pytest.mark.parametrize("output_format", ["csv", "json", "markdown"])
def test_other_formats_carry_the_law_and_its_constants(call, output_format):
    result = call(*LOSSES, *SIZE, "--format", output_format)
    assert "E=1.8172, A=482.01" in result.stdout
    assert "arXiv:2404.10102" in result.stdout
    assert "nan" not in result.stdout.lower()


def test_undefined_is_null_in_json(call):
    rows = json.loads(call("--ce-baseline", 3, "--ce-spliced", 1.5, *SIZE, "--format", "json").stdout)
    assert rows[0]["fraction"] is None
    assert rows[0]["reason"]


def test_literature_is_reprinted_with_citations(call):
    result = call("--literature")
    assert result.exit_code == 0, result.output
    assert "arXiv:2404.16014" in result.output
    assert "Identifying Functionally Important Features" in result.output
    rows = json.loads(call("--literature", "--format", "json").stdout)
    assert len(rows) == 246
    undefined = [row for row in rows if row["effective_compute"] is None]
    assert sorted(bool(row["bound"]) for row in undefined) == [False] * 6 + [True] * 3


def test_the_estimate_to_quote_is_named(call):
    assert "To quote: effective compute" in call(*LOSSES, *SIZE).stdout


def test_nothing_is_to_be_quoted_where_nothing_is_defined(call):
    assert "To quote" not in call("--ce-baseline", 3, "--ce-spliced", 1.5, *SIZE).stdout


def test_literature_takes_no_losses(call):
    with pytest.raises(UserError, match="leave out losses, results and models"):
        call("--literature", "--model", "pythia-70m")


def test_tables_fit_a_terminal_of_80_columns(call, monkeypatch):
    for name, value in terminal(80).items():
        monkeypatch.setenv(name, value)
    result = call("--ce-baseline", 1.9698, "--ce-spliced", 2.1324, "--model", "pythia-2.8b", "--all-laws")
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("sae-lm-eval curve")) <= 80  # to be pasted whole
    assert any(line.split()[:5] == ["besiroglu2024", "0.137", "(0.128", "to", "0.147)"] for line in lines)
    literature = call("--literature").stdout.splitlines()
    assert max(map(len, literature)) <= 80
    assert any("36.2" in line and "3.154" in line and "0.915" in line for line in literature)


def test_the_undefined_comes_last(call, tmp_path):
    run = tmp_path / "run.csv"
    run.write_text("step,loss\n1000,5.1\n4000,4.1\n16000,3.4\n64000,3.1\n")
    output = call(*LOSSES, "--checkpoints", run).stdout
    assert output.index("checkpoints isotonic") < output.index("within the law")


def test_every_figure_of_the_law_by_hand(call):
    """From L = E + A N^-alpha + B D^-beta with the constants of besiroglu2024, by search instead of by formula."""
    e, a, alpha, b, beta = 1.8172, 482.01, 0.3478, 2085.43, 0.3658
    n, d, rise = 124e6, 1e10, 3.283 - 3.139

    def loss(params, tokens):
        return e + a * params**-alpha + b * tokens**-beta

    target = loss(n, d) + rise
    shares = beta / (alpha + beta), alpha / (alpha + beta)  # of constant over-training

    def searched(predicted):
        return brentq(lambda log: predicted(np.exp(log)) - target, -20, 0)

    compute = np.exp(searched(lambda f: loss(n * f ** shares[0], d * f ** shares[1])))
    fractions = {
        "effective compute": compute,
        "effective parameters": np.exp(searched(lambda f: loss(n * f, d))),
        "effective tokens": np.exp(searched(lambda f: loss(n, d * f))),
    }

    def frontier(log_compute):
        sizes = np.linspace(10, 26, 200_001)
        return loss(np.exp(sizes), np.exp(log_compute) / 6 / np.exp(sizes)).min()

    optimal = np.exp(brentq(lambda log: frontier(log) - target, 30, 60, xtol=1e-6))
    rows = json.loads(call(*LOSSES, *SIZE, "--format", "json").stdout)
    by_quantity = {row["quantity"]: row for row in rows if row["definition"] == "within the law"}
    for quantity, fraction in fractions.items():
        assert by_quantity[quantity]["fraction"] == pytest.approx(fraction, rel=1e-3), quantity
        assert by_quantity[quantity]["log10"] == pytest.approx(np.log10(fraction), abs=1e-3)
    assert by_quantity["effective compute"]["equivalent"] == pytest.approx(optimal, rel=2e-3)
    assert by_quantity["effective parameters"]["equivalent"] == pytest.approx(
        fractions["effective parameters"] * n, rel=1e-3
    )
    assert by_quantity["effective tokens"]["equivalent"] == pytest.approx(fractions["effective tokens"] * d, rel=1e-3)
    same = by_quantity["effective compute"]
    assert same["same_training_params"] == pytest.approx(n * compute ** shares[0], rel=1e-3)
    assert same["same_training_tokens"] == pytest.approx(d * compute ** shares[1], rel=1e-3)
    inverse = json.loads(call("--fraction", compute, *SIZE, "--format", "json").stdout)
    (row,) = (row for row in inverse if (row["quantity"], row["law"]) == ("effective compute", "besiroglu2024"))
    assert row["delta_ce"] == pytest.approx(rise, rel=2e-3)


def test_the_figures_of_a_family_by_hand(call, tmp_path):
    """Points on L = 1.7 + 160 C^-0.1, where the fit and the curve between two points are known."""
    compute = 10.0 ** np.arange(16, 23)

    def loss(flops):
        return 1.7 + 160 * flops**-0.1

    path = tmp_path / "family.csv"
    lines = [f"m{i},{c!r},{loss(c)!r}" for i, c in enumerate(compute.tolist())]
    path.write_text("\n".join(["model,flops,loss", *lines]))
    baseline, spliced = loss(1e20), loss(1e19)
    given = ("--ce-baseline", baseline, "--ce-spliced", spliced, "--family", path, "--format", "json")
    by_definition = {row["definition"]: row for row in json.loads(call(*given).stdout)}
    assert by_definition["family fit"]["fraction"] == pytest.approx(0.1, rel=1e-3)
    assert by_definition["family fit"]["equivalent"] == pytest.approx(1e19, rel=2e-3)
    assert by_definition["family interpolation"]["fraction"] == pytest.approx(0.1, rel=1e-6)
    assert by_definition["family interpolation"]["equivalent"] == pytest.approx(1e19, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("a,1e18,4.2,c4,gpt2", "b,1e19,3.6,pile,gpt2"), "losses on different texts (c4; pile) are not one curve"),
        (("a,1e18,4.2,c4,gpt2", "b,1e19,3.6,c4,llama"), "losses per token of different tokenizers (gpt2; llama)"),
        (("a,1e18,4.2,c4,gpt2", "a,1e18,4.2,c4,gpt2", "b,1e19,3.6,c4,gpt2"), "family.csv has a twice"),
        (("a,1e18,4.2,c4,gpt2",), "a curve needs two rows or more that differ in FLOPs"),
        (("a,1e18,3.2,c4,gpt2", "b,1e19,3.6,c4,gpt2"), "do not fall with compute"),
        (("a,1e18,-1,c4,gpt2", "b,1e19,3.6,c4,gpt2"), "loss"),
    ],
)
def test_what_is_no_family_is_told_in_a_sentence(call, tmp_path, rows, message):
    path = tmp_path / "family.csv"
    path.write_text("\n".join(["model,flops,loss,text,tokenizer", *rows]))
    with pytest.raises(UserError) as error:
        call(*LOSSES, "--family", path)
    assert message in str(error.value)


def test_a_family_that_rises_on_the_way_and_one_on_another_text_are_told(call, tmp_path, recwarn):
    path = tmp_path / "family.csv"
    rows = ("a,1e18,4.2,c4", "b,1e19,3.0,c4", "c,1e20,3.3,c4", "d,1e21,2.8,c4")
    path.write_text("\n".join(["model,flops,loss,text", *rows]))
    said = call(*LOSSES, "--family", path, "--text", "wikitext").output
    assert "the losses rise with compute at 1 of 3 steps, which are pooled" in said
    assert "the losses are on wikitext, and the family's on c4" in said
    assert "inf" not in said.replace("information", "")
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    assert "the family's on c4" not in call(*LOSSES, "--family", path, "--text", "c4").output
