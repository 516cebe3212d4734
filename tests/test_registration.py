"""`pip install` is all it takes: lm_eval then knows sae_hf and the tasks, and is otherwise left as it was.

The package is built as a wheel, and installed editable, from a copy of the checkout with one more task in it,
each into a fresh virtual environment. That environment borrows the third-party packages of the running one
(a directory on sys.path, whose own .pth files are not read); what is tested there is what was installed there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import lm_eval
import pytest

ROOT = Path(__file__).parents[1]
PTH = "hatch_autorun_sae_lm_eval.pth"
HOOK = "[type(finder).__name__ for finder in sys.meta_path].count('SaeLmEvalHook')"
WARNING = "sae_lm_eval is not fully registered with lm_eval"
SAE_ARGS = "pretrained=stories3M,sae=stories/sae-stories3M#blocks.2.hook_resid_post.topk32"
BLIMP = ["--tasks", "blimp_adjunct_island", "--limit", "20", "--device", "cpu"]
PROBE = """
task: sae_probe
dataset_path: json
output_type: loglikelihood
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: acc
"""


# -- what the tests install, and where ---------------------------------------------------------------------------


class Venv:
    """A virtual environment, and commands run in it, away from the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The Python of this environment with these arguments."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment.pop("SAE_LM_EVAL_AUTOLOAD", None)
        return subprocess.run(
            [self.python, *command], cwd=self.folder, env={**environment, **(env or {})}, capture_output=True, text=True
        )

    def ask(self, code: str, *, flags: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
        """What this code prints; it may print no warning."""
        done = self.run(*flags, "-c", textwrap.dedent(code), env=env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.strip()

    def lm_eval(self, *arguments: str, env: dict[str, str], script: str = "lm_eval") -> subprocess.CompletedProcess:
        """The command that lm_eval installs, run by the Python of this environment."""
        return self.run(Path(sysconfig.get_path("scripts")) / script, *arguments, env=env)

    def install(self, *what: str | Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--no-build-isolation", *what], check=True, cwd=self.folder)


def fresh_venv(folder: Path) -> Venv:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    venv = Venv(folder)
    borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (venv.site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return venv


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, with one more task."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("src", "tasks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tasks" / "probe").mkdir()
    (tree / "tasks" / "probe" / "sae_probe.yaml").write_text(PROBE)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, tree]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    venv = fresh_venv(tmp_path_factory.mktemp("from_wheel"))
    venv.install(wheel)
    return venv


@pytest.fixture(scope="module")
def editable(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    venv = fresh_venv(tmp_path_factory.mktemp("editable"))
    venv.install("-e", tree)
    return venv


@pytest.fixture(scope="module")
def few_tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which lm_eval is itself, but of its 14,000 task files only BLiMP's have to be read."""
    package = Path(lm_eval.__path__[0])
    folder = tmp_path_factory.mktemp("few_tasks")
    (folder / "lm_eval" / "tasks").mkdir(parents=True)
    for item in [*package.iterdir(), *package.glob("tasks/*.py")]:
        if item.name != "tasks":
            (folder / "lm_eval" / item.relative_to(package)).symlink_to(item)
    shutil.copytree(package / "tasks" / "blimp", folder / "lm_eval" / "tasks" / "blimp")
    return {"PYTHONPATH": str(folder)}


# -- the wheel ---------------------------------------------------------------------------------------------------


def test_wheel_holds_package_tasks_and_start_up_line(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        line = files.read(PTH).decode("ascii")  # site reads it in whatever encoding the locale has
        record = next(files.read(name).decode() for name in names if name.endswith("RECORD"))
    assert {"sae_lm_eval/__init__.py", "sae_lm_eval/py.typed", "sae_lm_eval/tasks/probe/sae_probe.yaml"} <= {*names}
    assert line.startswith("import ")  # any other line would be taken for a directory
    assert len(line.splitlines()) == 1
    assert f"{PTH},sha256" in record  # so that `pip uninstall` removes it


def test_a_fresh_environment_inherits_no_hook(tmp_path: Path) -> None:
    assert fresh_venv(tmp_path).ask(f"import sys; print({HOOK})") == "0"


def test_installed_is_what_is_imported(from_wheel: Venv, editable: Venv, tree: Path) -> None:
    where = f"import sys, sae_lm_eval; print(sae_lm_eval.__file__, {HOOK})"
    assert from_wheel.ask(where) == f"{from_wheel.site / 'sae_lm_eval' / '__init__.py'} 1"
    assert editable.ask(where) == f"{tree / 'src' / 'sae_lm_eval' / '__init__.py'} 1"


# -- the start-up hook -------------------------------------------------------------------------------------------


def test_hook_imports_nothing_and_prints_nothing(from_wheel: Venv) -> None:
    code = f"""
        import site, sys  # imported, but kept by -S from reading .pth files
        before = set(sys.modules)
        exec(open({str(from_wheel.site / PTH)!r}).read())
        print({HOOK}, *sorted(set(sys.modules) - before))
    """
    assert from_wheel.ask(code, flags=("-S",)) == "1"
    assert from_wheel.ask("pass") == ""


def test_hook_waits_for_lm_eval_and_registers_lazily(from_wheel: Venv, few_tasks: dict[str, str]) -> None:
    answer = from_wheel.ask(
        """
        import sys
        assert not [name for name in sys.modules if name.startswith(("lm_eval", "sae_lm_eval", "torch", "logging"))]
        import lm_eval.api.registry
        assert "sae_hf" not in lm_eval.api.registry.model_registry
        import lm_eval.models, lm_eval.tasks
        assert "torch" not in sys.modules
        ours = {name for name in sys.modules if name.startswith("sae_lm_eval")}
        assert ours == {"sae_lm_eval", "sae_lm_eval._autoload"}, ours
        print(dict(lm_eval.api.registry.model_registry.items())["sae_hf"])
        """,
        env=few_tasks,
    )
    assert answer == "sae_lm_eval.harness.model:SaeHFLM"


def test_hook_can_be_switched_off(from_wheel: Venv) -> None:
    code = f"import sys; before = {HOOK}; from lm_eval.models import *; "
    code += "from lm_eval.api.registry import model_registry; print(before, 'sae_hf' in model_registry)"
    assert from_wheel.ask(code) == "1 True"
    assert from_wheel.ask(code, flags=("-I",)) == "1 True"
    assert from_wheel.ask(code, env={"SAE_LM_EVAL_AUTOLOAD": "0"}) == "0 False"


def test_hook_steps_aside_where_lm_eval_loads_plugins(from_wheel: Venv) -> None:
    code = """
        from lm_eval.api import registry
        registry.load_plugins = print
        import lm_eval.models
        print("sae_hf" in registry.model_registry)
    """
    assert from_wheel.ask(code) == "False"


def test_entry_point_names_the_class(from_wheel: Venv) -> None:
    answer = from_wheel.ask(
        """
        from importlib.metadata import entry_points
        from lm_eval.api.registry import get_model
        (point,) = entry_points(group="lm_eval.models", name="sae_hf")
        print(point.value, point.load() is get_model("sae_hf"))
        """
    )
    assert answer == "sae_lm_eval.harness.model:SaeHFLM True"


# -- an lm_eval of another make ----------------------------------------------------------------------------------

STAND_IN = {
    "lm_eval/__init__.py": "",
    "lm_eval/api/__init__.py": "",
    "lm_eval/api/registry.py": """
class Registry(dict):
    def register(self, name, target):
        assert name not in self
        self[name] = target
model_registry = Registry()
""",
    "lm_eval/models/__init__.py": "",
    "lm_eval/models/other.py": "",
    "lm_eval/tasks/__init__.py": "",
    "lm_eval/tasks/manager.py": """
class TaskManager:
    def __init__(self, include_path=None, include_defaults=True):
        self.paths = include_path
""",
}
IMPORT_ALL = "import lm_eval.models, lm_eval.models.other, lm_eval.tasks.manager as manager, lm_eval.api.registry"


def stand_in(folder: Path, changed: dict[str, str] | None = None) -> dict[str, str]:
    """The environment in which a few lines take lm_eval's place."""
    for name, text in {**STAND_IN, **(changed or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"lm_eval/tasks/manager.py": ""}, "KeyError: 'TaskManager'"),
        (
            {"lm_eval/tasks/manager.py": "class TaskManager:\n    def __init__(self, folders=()): ..."},
            "TypeError: its TaskManager takes no include_defaults and no include_path",
        ),
        ({"lm_eval/api/registry.py": ""}, "AttributeError: module 'lm_eval.api.registry' has no attribute"),
    ],
)
def test_another_lm_eval_is_imported_all_the_same(
    from_wheel: Venv, tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    code = f"{IMPORT_ALL}; hasattr(manager, 'TaskManager') and manager.TaskManager(); print('imported')"
    done = from_wheel.run("-c", code, env=stand_in(tmp_path, changed))
    assert done.stdout == "imported\n", done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"{WARNING}: {reason}")


def test_an_error_of_lm_evals_own_passes_through(from_wheel: Venv, tmp_path: Path) -> None:
    env = stand_in(tmp_path, {"lm_eval/models/__init__.py": "raise OSError('of its own')"})
    done = from_wheel.run("-c", "import lm_eval.models", env=env)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: of its own\n")
    assert WARNING not in done.stderr


def test_a_second_copy_of_the_hook_adds_nothing(from_wheel: Venv, tmp_path: Path) -> None:
    code = f"""
        import sys
        exec(open({str(from_wheel.site / PTH)!r}).read())
        {IMPORT_ALL}
        print({HOOK}, len(manager.TaskManager().paths))
    """
    assert from_wheel.ask(code, env=stand_in(tmp_path)) == "1 1"


def test_looking_for_a_module_or_reloading_it_loses_nothing(from_wheel: Venv, tmp_path: Path) -> None:
    code = f"""
        import importlib.util
        for name in ("lm_eval.models", "lm_eval.tasks.manager"):
            assert importlib.util.find_spec(name).loader.get_source(name) is not None
        {IMPORT_ALL}
        importlib.reload(lm_eval.models)
        importlib.reload(manager)
        print(lm_eval.api.registry.model_registry["sae_hf"], len(manager.TaskManager().paths))
    """
    assert from_wheel.ask(code, env=stand_in(tmp_path)) == "sae_lm_eval.harness.model:SaeHFLM 1"


def test_modules_look_as_if_imported_without_the_hook(from_wheel: Venv, tmp_path: Path) -> None:
    code = f"""
        {IMPORT_ALL}
        for module in (lm_eval.models, manager, lm_eval.models.other):
            print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__, vars(module.__loader__))
    """
    with_hook = from_wheel.ask(code, env=stand_in(tmp_path))
    assert with_hook == from_wheel.ask(code, env={**stand_in(tmp_path), "SAE_LM_EVAL_AUTOLOAD": "0"})


def test_lm_eval_may_come_from_a_zip_file(from_wheel: Venv, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lm_eval.zip", "w") as files:
        for name, text in STAND_IN.items():
            files.writestr(name, text)
    code = f"{IMPORT_ALL}; print(*lm_eval.api.registry.model_registry, len(manager.TaskManager().paths))"
    assert from_wheel.ask(code, env={"PYTHONPATH": str(tmp_path / "lm_eval.zip")}) == "sae_hf 1"


# -- tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["from_wheel", "editable"])
def test_tasks_are_found(
    kind: str, tree: Path, tmp_path: Path, few_tasks: dict[str, str], request: pytest.FixtureRequest
) -> None:
    venv: Venv = request.getfixturevalue(kind)
    (tmp_path / "mine.yaml").write_text(PROBE)
    code = f"""
        import json
        from pathlib import Path
        from lm_eval.tasks import TaskManager
        mine = {str(tmp_path)!r}
        def where(*args, **kwargs):
            manager = TaskManager(*args, **kwargs)
            entry = manager.task_index.get("sae_probe")
            return [manager.include_path, entry and str(entry.yaml_path)]
        import logging
        logging.disable()  # lm_eval tells of each task that replaces another
        print(json.dumps({{
            "names": TaskManager().all_tasks,
            "plain": where(),
            "str": where(include_path=mine),
            "list": where(include_path=[mine]),
            "positional": where(None, mine),
            "path": where(include_path=Path(mine))[1],
            "no_defaults": where(include_defaults=False),
            "no_defaults_mine": where(include_path=mine, include_defaults=False),
        }}))
    """
    answer = json.loads(venv.ask(code, env=few_tasks))
    ours = venv.site / "sae_lm_eval" / "tasks" if kind == "from_wheel" else tree / "tasks"
    theirs = str(tmp_path / "mine.yaml")
    texts = [path.read_text() for path in (tree / "tasks").rglob("*.yaml")]
    named = {name for text in texts for name in re.findall(r"^(?:task|group): (\w+)$", text, re.MULTILINE)}
    assert "sae_probe" in named
    assert named | {"blimp_adjunct_island"} <= set(answer["names"])
    assert answer["plain"] == [None, str(ours / "probe" / "sae_probe.yaml")]
    assert answer["str"] == answer["positional"] == [str(tmp_path), theirs]
    assert answer["list"] == [[str(tmp_path)], theirs]
    assert answer["path"] == theirs
    assert answer["no_defaults"] == [None, None]
    assert answer["no_defaults_mine"] == [str(tmp_path), theirs]


# -- the real commands -------------------------------------------------------------------------------------------


def accuracy(output: Path) -> float:
    (file,) = output.rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "sae_hf"
    return results["results"]["blimp_adjunct_island"]["acc,none"]


@pytest.mark.slow
def test_lm_eval_commands_and_simple_evaluate_know_sae_hf(
    from_wheel: Venv, hub_environment: dict[str, str], few_tasks: dict[str, str], tmp_path: Path
) -> None:
    """The first with all that lm_eval installs, the others with fewer tasks to read."""
    shared = ["--model", "sae_hf", "--model_args", SAE_ARGS, *BLIMP, "--output_path"]
    done = from_wheel.lm_eval(*shared, str(tmp_path / "first"), env=hub_environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\|blimp_adjunct_island\|.*\|acc +\|", done.stdout), done.stdout

    env = {**hub_environment, **few_tasks}
    done = from_wheel.lm_eval("run", *shared, str(tmp_path / "run"), env=env, script="lm-eval")
    assert done.returncode == 0, done.stderr

    done = from_wheel.run(
        "-c",
        "import lm_eval, sae_lm_eval; "
        f"r = lm_eval.simple_evaluate(model='sae_hf', model_args={SAE_ARGS!r}, tasks=['blimp_adjunct_island'], "
        "limit=20, device='cpu'); print(sae_lm_eval.__file__, r['results']['blimp_adjunct_island']['acc,none'])",
        env=env,
    )
    assert done.returncode == 0, done.stderr
    file, from_python = done.stdout.split()[-2:]
    assert Path(file).is_relative_to(from_wheel.site)
    assert accuracy(tmp_path / "first") == accuracy(tmp_path / "run") == float(from_python)


# -- a broken sae_lm_eval ----------------------------------------------------------------------------------------


@pytest.fixture
def broken(from_wheel: Venv, tmp_path: Path) -> Venv:
    """An installation for a test to break."""
    return Venv(shutil.copytree(from_wheel.folder, tmp_path / "broken", symlinks=True))


def test_broken_package_leaves_lm_eval_alone(
    broken: Venv, hub_environment: dict[str, str], few_tasks: dict[str, str]
) -> None:
    (broken.site / "sae_lm_eval" / "__init__.py").write_text("def broken(:\n")
    env = {**hub_environment, **few_tasks}
    message = "sae_lm_eval is not registered with lm_eval: SyntaxError('invalid syntax'"

    done = broken.lm_eval("--model", "hf", "--model_args", "pretrained=stories3M", *BLIMP, env=env)
    assert done.returncode == 0, done.stderr
    assert "|blimp_adjunct_island|" in done.stdout
    assert done.stderr.count(message) == done.stderr.count("sae_lm_eval is not") == 1

    done = broken.lm_eval("ls", "tasks", env=env)
    assert done.returncode == 0, done.stderr
    assert "blimp_adjunct_island" in done.stdout

    done = broken.lm_eval("--model", "sae_hf", "--model_args", SAE_ARGS, *BLIMP, env=env)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Attempted to load model 'sae_hf'" in done.stderr


def test_missing_tasks_folder_leaves_lm_eval_alone(broken: Venv, few_tasks: dict[str, str]) -> None:
    folder = broken.site / "sae_lm_eval" / "tasks"
    shutil.rmtree(folder)
    code = (
        "from lm_eval.tasks import TaskManager; from lm_eval.models import *; import lm_eval.api.registry as registry; "
    )
    code += "print('blimp' in TaskManager().all_groups, 'sae_hf' in registry.model_registry)"
    done = broken.run("-c", code, env=few_tasks)
    assert done.stdout == "True True\n", done.stderr
    assert done.stderr.startswith(f"{WARNING}: FileNotFoundError: there is no tasks folder at {folder}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda package: (package / "harness" / "model.py").write_text("import no_such_thing"),
            "No module named 'no_such_thing'",
        ),
        (lambda package: (package / "_autoload.py").unlink(), "No module named 'sae_lm_eval._autoload'"),
        (shutil.rmtree, "No module named 'sae_lm_eval'"),
    ],
    ids=["adapter", "autoload", "gone"],
)
def test_asking_for_a_broken_sae_hf_says_what_is_wrong(
    broken: Venv, break_it: Callable[[Path], None], says: str
) -> None:
    break_it(broken.site / "sae_lm_eval")
    code = "from lm_eval.api.registry import get_model; print(get_model('dummy').__name__); get_model('sae_hf')"
    done = broken.run("-c", code)
    assert done.stdout == "DummyLM\n"
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert says in done.stderr
