"""What is loaded before the first word of a command, and what is kept so that the next start is shorter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from sae_lm_eval.runs.kept_reads import KeptReads
from sae_lm_eval.runs.lm_eval_source import evaluator_settings, hflm_arguments

K4 = "world#blocks.2.hook_resid_post.k4"
SPLICED = f"pretrained=world,sae={K4}"
RUN = ["--model_args", "pretrained=world", "--sae", K4, "--tasks", "sae_world_homes"]
LOADED = """
import sys
from sae_lm_eval.cli.main import main
sys.argv = ["sae-lm-eval", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "datasets", "pandas", "scipy", "statsmodels", "matplotlib", "sae_lens", "accelerate"}
# What a command must not have loaded when it is done.
LIGHT: Mapping[str, tuple[Sequence[str], set[str]]] = {
    "help": (["--help"], HEAVY | {"numpy", "pydantic", "yaml", "lm_eval", "huggingface_hub", "jinja2"}),
    "the version": (["--version"], HEAVY | {"numpy", "pydantic", "yaml", "lm_eval", "huggingface_hub", "jinja2"}),
    "help on run": (["run", "--help"], HEAVY | {"numpy", "yaml", "lm_eval.utils", "huggingface_hub", "jinja2"}),
    "a mistake": (["run", *RUN[:-1], "sae_wrld_homes", "--output_path", "out"], HEAVY | {"lm_eval.tasks"}),
}
# Stops where torch or transformers are looked for, and says what was said till then.
STOPPED = """
import io, json, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            sys.__stdout__.write(json.dumps([name, told.getvalue()]))
            sys.__stdout__.flush()
            os._exit(0)

import os
from sae_lm_eval.cli.main import main
told = io.StringIO()
sys.stdout = sys.stderr = told
sys.meta_path.insert(0, Stop())
sys.argv = ["sae-lm-eval", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
sys.__stdout__.write(json.dumps([None, told.getvalue()]))
"""
SAYING = {
    "run": (["run", *RUN, "--output_path", "out"], "Loading torch, transformers and lm_eval."),
    "run --plan": (["run", *RUN, "--plan"], "Loading torch, transformers and lm_eval."),
    "talk": (["talk", "--model_args", SPLICED], "Loading torch, transformers and lm_eval."),
    "inspect": (["inspect", "--model_args", SPLICED], "Loading torch, transformers and lm_eval."),
    "where": (["where", *RUN, "--output_path", "out"], "Loading torch, transformers and lm_eval."),
    "curve": (
        ["curve", "--models", "world", "--task", "sae_fidelity_world", "--output_path", "c.csv"],
        "Loading torch, transformers and lm_eval.",
    ),
    "doctor": (["doctor"], "Python"),
    "demo": (["demo", "--output_path", "out"], "What does a language model lose"),
}
EXAMPLE = Path(__file__).parents[1] / "examples" / "mmlu_shaped_results.py"
OF_FILES = {
    "compare": ["compare", "baseline", "k4"],
    "report": ["report", "."],
    "table": ["table", "."],
    "effective-compute": ["effective-compute", "."],
}


def ended(script: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.parametrize("case", LIGHT)
def test_what_is_not_loaded(case, tmp_path):
    arguments, heavy = LIGHT[case]
    assert heavy.intersection(ended(LOADED, arguments, tmp_path).stderr.split()) == set()


@pytest.mark.parametrize("case", SAYING)
def test_a_word_comes_before_torch(case, tmp_path):
    arguments, first = SAYING[case]
    loading, output = json.loads(ended(STOPPED, arguments, tmp_path).stdout)
    assert loading in ("torch", "transformers")
    assert first in output


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    subprocess.run([sys.executable, str(EXAMPLE), str(folder), "--share", "0.02"], check=True)
    return folder


@pytest.mark.parametrize("case", OF_FILES)
def test_a_command_on_files_needs_no_torch(case, results):
    names = sorted(path.name for path in results.iterdir() if path.is_dir() and path.name != "report")
    arguments = [names[1] if part == "k4" else part for part in OF_FILES[case]]
    loading, output = json.loads(ended(STOPPED, arguments, results).stdout)
    assert loading is None
    assert "Traceback" not in output
    assert output.strip()


def test_names_in_lm_evals_source_are_those_of_its_classes():
    import inspect

    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.models.huggingface import HFLM

    assert evaluator_settings() == tuple(field.name for field in fields(EvaluatorConfig))
    taken = inspect.signature(HFLM.__init__).parameters
    assert hflm_arguments() == tuple(name for name in taken if name not in ("self", "kwargs"))


class TestKeptReads:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "a.yaml").write_text("one")

    def reads_twice(
        self, folder: Path, key: str = "key", value: object = None
    ) -> tuple[list[dict[str, object]], list[str]]:
        """What is told of a file asked twice, and the files that were read for it."""
        read = []

        def reading(path):
            read.append(path)
            return {"task": Path(path).read_text() if value is None else value}

        reads = KeptReads(reading, key)
        keys = [reads(str(folder / "a.yaml")) for _ in range(2)]
        reads.save()
        return keys, read

    def test_a_file_is_read_once(self, tmp_path):
        assert self.reads_twice(tmp_path) == ([{"task": "one"}] * 2, [str(tmp_path / "a.yaml")])
        assert self.reads_twice(tmp_path) == ([{"task": "one"}] * 2, [])

    def test_a_file_that_changed_is_read_again(self, tmp_path):
        self.reads_twice(tmp_path)
        (tmp_path / "a.yaml").write_text("three")
        assert self.reads_twice(tmp_path) == ([{"task": "three"}] * 2, [str(tmp_path / "a.yaml")])

    def test_another_key_has_nothing_of_this_one(self, tmp_path):
        self.reads_twice(tmp_path)
        assert len(self.reads_twice(tmp_path, "other")[1]) == 1

    def test_no_changed_byte_is_trusted(self, tmp_path):
        self.reads_twice(tmp_path)
        (kept,) = (tmp_path / "cache" / "sae_lm_eval").iterdir()
        whole = kept.read_bytes()
        for at in range(len(whole)):
            kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert self.reads_twice(tmp_path) == ([{"task": "one"}] * 2, [str(tmp_path / "a.yaml")])
        kept.write_bytes(b"")
        assert self.reads_twice(tmp_path)[0] == [{"task": "one"}] * 2

    def test_what_json_would_change_is_not_kept(self, tmp_path):
        for _ in range(2):
            assert self.reads_twice(tmp_path, value={1: "a"}) == ([{"task": {1: "a"}}] * 2, [str(tmp_path / "a.yaml")])

    def test_a_folder_that_cannot_be_made_costs_only_time(self, tmp_path):
        (tmp_path / "cache").write_text("a file")
        for _ in range(2):
            assert len(self.reads_twice(tmp_path)[1]) == 1

    @pytest.mark.parametrize("place", ["~nobody-at-all/x", "", "relative"])
    def test_without_a_folder_of_the_user_nothing_is_kept(self, place, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        if not place:  # a user without a home, and none in passwd
            monkeypatch.delenv("HOME")
            monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
        for _ in range(2):
            assert self.reads_twice(tmp_path) == ([{"task": "one"}] * 2, [str(tmp_path / "a.yaml")])
        assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]

    def test_what_cannot_be_put_in_its_place_is_not_left(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
        assert self.reads_twice(tmp_path)[0] == [{"task": "one"}] * 2
        assert list((tmp_path / "cache" / "sae_lm_eval").iterdir()) == []

    def test_one_key_is_kept_at_a_time_and_the_files_of_others_stay(self, tmp_path):
        (tmp_path / "cache" / "sae_lm_eval").mkdir(parents=True)
        (tmp_path / "cache" / "sae_lm_eval" / "other.json").write_text("{}")
        for key in ("a", "b", "c"):
            self.reads_twice(tmp_path, key)
        assert len(list((tmp_path / "cache" / "sae_lm_eval").glob("tasks_*.json"))) == 1
        assert (tmp_path / "cache" / "sae_lm_eval" / "other.json").exists()
        assert self.reads_twice(tmp_path, "c")[1] == []

    def test_a_file_that_is_refused_is_refused_again(self, tmp_path):
        for _ in range(2):
            with pytest.raises(ValueError, match="none"):
                KeptReads(lambda _path: (_ for _ in ()).throw(ValueError("none")), "key")(str(tmp_path / "a.yaml"))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory is not kept elsewhere")
@pytest.mark.parametrize("megabytes", [30, 60])
def test_too_little_memory_to_read_the_command_is_a_sentence(megabytes, tmp_path):
    import resource

    said = subprocess.run(
        [sys.executable, "-m", "sae_lm_eval", "run", *RUN, "--output_path", "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6,) * 2),
    )
    assert said.returncode == 2
    assert said.stderr.startswith("sae-lm-eval: The memory of this machine does not suffice.")


def test_an_import_that_fails_otherwise_is_not_taken_for_it(monkeypatch):
    from sae_lm_eval.__main__ import start

    monkeypatch.setitem(sys.modules, "sae_lm_eval.cli.main", None)
    with pytest.raises(ImportError, match=r"sae_lm_eval\.cli\.main"):
        start()


def test_an_import_without_memory_is_a_sentence(monkeypatch, capsys):
    from sae_lm_eval.__main__ import start

    class Full:
        def find_spec(self, name, path=None, target=None):
            if name == "sae_lm_eval.cli.main":
                raise MemoryError

    monkeypatch.delitem(sys.modules, "sae_lm_eval.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Full(), *sys.meta_path])
    with pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("sae-lm-eval: The memory of this machine does not suffice.")
