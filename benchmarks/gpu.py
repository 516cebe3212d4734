"""Laws, time and memory on a GPU, in one process: see gpu.sh.

The model, its SAEs and the questions are those of speed.py, where the runs are defined. Each section prints its part of
a Markdown page as soon as it is measured; OUT/gpu.json has the numbers. A section that fails is told of, and the exit
code says so; the others are run.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import logging
import os
import pstats
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import lm_eval.tasks
import numpy as np
import pytest
import speed
import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function

from sae_lm_eval.dictionaries import sparse_decoding as sparse
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.scoring import executor, prefix_attention, scorer
from sae_lm_eval.scoring import prefix_cache as prefix
from sae_lm_eval.scoring.decoding import Writing
from sae_lm_eval.scoring.parting import parting
from sae_lm_eval.scoring.prefill import Prefill
from sae_lm_eval.scoring.row_cache import RowCache

ROOT = Path(__file__).parents[1]
# Of `hf`, which holds all logits of a batch three times where it scores, and those of the last tokens where it writes.
PLAIN_BATCH = {"mmlu": 8, "mmlu8": 8, "blimp": 64, "gsm8k_cot": 50, "gsm8k_cot8": 50}
ROWS = 32


class Bench:
    """The model and SAEs on the device, the tasks, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.device = arguments, arguments.device
        self.size = speed.SIZES[arguments.model]
        self.numbers: dict[str, Any] = {}
        started = time.perf_counter()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(speed.TOKENIZER)
        self.model = speed.random_model(self.size, arguments.dtype, self.device)
        layers = sorted({*self.size.sites(1), *self.size.sites(8)})
        self.saes = {layer: speed.random_sae(self.size, layer, self.device) for layer in layers}
        self.task_manager = lm_eval.tasks.TaskManager()
        names = {task for suite in PLAIN_BATCH for task in speed.SUITES[suite]["tasks"]}
        self.tasks = self.task_manager.load(sorted(names))["tasks"]
        parameters = sum(weights.numel() for weights in self.model.parameters())
        attention = self.model.config._attn_implementation
        say(f"Model: {parameters / 1e9:.2f} G parameters, {arguments.dtype}, attention {attention}, ready after")
        say(f"{time.perf_counter() - started:.0f} s.")

    def settings(self, suite: str) -> tuple[dict[str, Any], list[int], list[Any]]:
        settings = dict(speed.SUITES[suite])
        settings.pop("batch_size")
        layers, tasks = self.size.sites(settings.pop("variants")), [self.tasks[name] for name in settings.pop("tasks")]
        # All questions, but for the suites with many plain runs and the slow ones.
        few = len(layers) > 1 or suite in speed.GENERATED
        settings["limit"] = self.arguments.limit or settings["limit"] * (1 if few else 4)
        return settings, layers, tasks

    def run(self, suite: str, run: str, batch_size: int | None = None) -> dict[str, Any]:
        """`hf`, `hookN` or `forked`: see `speed.measured_run`."""
        settings, layers, tasks = self.settings(suite)
        written = suite in speed.GENERATED
        common = {
            "pretrained": self.model,
            "tokenizer": self.tokenizer,
            "device": self.device,
            "batch_size": batch_size or (ROWS if run == "forked" and not written else PLAIN_BATCH[suite]),
            "softmax_dtype": "float32",
        }
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        held, started = allocated(), time.perf_counter()
        if run == "forked":
            models = speed.forked_models(common, [self.saes[layer] for layer in layers])
        else:
            layer = None if run == "hf" else int(run.removeprefix("hook"))
            models = [speed.plain_model(common, layer, self.saes.get(layer))]
        try:
            measures = speed.measured_run(
                models, tasks, self.task_manager, settings, self.device, started, layers, self.size
            )
        finally:
            if run not in ("hf", "forked"):
                models[0].hook.remove()
        measures["own_memory"] = measures["memory"] - held
        return measures


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def seconds_of(function: Callable[[], Any], device: str, repeats: int = 10) -> float:
    """The median time of a call that keeps the device busy."""
    times = []
    for _ in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


# -- sections ---------------------------------------------------------------------------------------------------------


def card(arguments: argparse.Namespace) -> dict[str, Any]:
    """The device, and the rate of a large matrix product on it."""
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    n, dtype = (8192 if arguments.device == "cuda" else 1024), getattr(torch, arguments.dtype)
    a, b = (torch.randn(n, n, device=arguments.device, dtype=dtype) for _ in range(2))
    rate = 2 * n**3 / seconds_of(lambda: a @ b, arguments.device)
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    say(f"# {name}", "", f"{versions}; a {n} x {n} x {n} product in {arguments.dtype}: {rate / 1e12:.0f} TFLOP/s.", "")
    return {"card": name, "rate": rate, "versions": versions}


def laws(bench: Bench) -> dict[str, Any]:
    """The laws of tests/test_device.py."""
    say("## Laws", "")
    outcome = Outcome()
    tests = str(ROOT / "tests" / "test_device.py")
    options = ["-q", "-p", "no:cacheprovider", "--device", bench.device, "--rootdir", str(ROOT), "--tb=short"]
    code = pytest.main([tests, *options], plugins=[outcome])
    say("", "| architecture | dtype | largest difference, nats | layout |", "|---|---|---:|---|")
    for (name, dtype), properties in sorted(outcome.properties.items()):
        say(f"| {name} | {dtype} | {properties['largest difference, nats']:.1e} | {properties['layout']} |")
    say("", f"pytest: {outcome.counts}, exit code {int(code)}.", "")
    if code:
        raise RuntimeError(f"some laws do not hold on {bench.device}")
    return {"counts": outcome.counts, "differences": {" ".join(k): v for k, v in outcome.properties.items()}}


class Outcome:
    """A pytest plugin that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.properties: dict[tuple[str, str], dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + (report.when in ("call", "setup"))
        if report.when == "call" and report.user_properties:
            name, dtype = report.nodeid.split("[")[1].rstrip("]").rsplit("-", 1)
            self.properties[name, dtype] = dict(report.user_properties)


def parallelize(bench: Bench) -> dict[str, Any]:
    """`parallelize=True` on one device gives what the model without it gives."""
    sae = "stories/sae-stories3M#blocks.2.hook_resid_post.topk32"
    answers = []
    for options in ({}, {"parallelize": True}):
        lm: Any = SaeHFLM(pretrained=speed.TOKENIZER, sae=sae, device=bench.device, batch_size=8, **options)
        result = lm_eval.simple_evaluate(
            model=lm, tasks=["blimp_causative"], limit=20, bootstrap_iters=0, task_manager=bench.task_manager
        )
        answers.append(speed.answers_of(result["samples"]))
    apart = float(np.abs(np.array(answers[0]) - np.array(answers[1])).max())
    say(f"`parallelize=True` on one device: {apart:.1e} nats apart from the run without it.", "")
    return {"apart": apart}


def suite(bench: Bench, name: str, rounds: int) -> dict[str, Any]:
    """Plain runs and the forked one, in turns."""
    _, layers, _ = bench.settings(name)
    written = name in speed.GENERATED
    plain = ["hf", *(f"hook{layer}" for layer in layers)]
    by_run: dict[str, list[dict[str, Any]]] = {run: [] for run in [*plain, "forked"]}
    for _ in range(rounds):
        for run, runs in by_run.items():
            runs.append(bench.run(name, run))
    last = {run: runs[-1] for run, runs in by_run.items()}
    median = {kind: {run: statistics.median(m[kind] for m in by_run[run]) for run in by_run} for kind in speed.KINDS}
    share = last["forked"]["operations"]
    say(
        f"## {name}: {len(last['hf']['answers'][0])} documents, baseline and {len(layers)} variants, {rounds} rounds",
        "",
        "| run | whole, s | requests alone, s | peak memory beside the weights, GB |",
        "|---|---:|---:|---:|",
    )
    for run, runs in by_run.items():
        cells = []
        for kind in speed.KINDS:
            times = sorted(m[kind] for m in runs)
            cells.append(f"{median[kind][run]:.2f} ({times[0]:.2f} to {times[-1]:.2f})")
        say(f"| {run} | {' | '.join(cells)} | {last[run]['own_memory'] / 1e9:.1f} |")
    say("", "| | whole | requests alone | floor |", "|---|---:|---:|---:|")
    for label, runs in ((f"{len(plain)} plain runs / forked", plain), ("`hf` alone / forked", ["hf"])):
        ratios = [sum(median[kind][run] for run in runs) / median[kind]["forked"] for kind in speed.KINDS]
        least = sum(median["scoring"][run] for run in runs) / (share * median["scoring"]["hf"])
        say(f"| {label} | {ratios[0]:.1f}x | {ratios[1]:.1f}x | {least:.1f}x |")
    say("", f"SAEs: {last['forked']['dictionaries'] / last['forked']['scoring']:.0%} of the forked requests' time.")
    kept = {run: {k: v for k, v in m.items() if k not in ("answers", "asked")} for run, m in last.items()}
    if written:
        say(*parted(plain, last), f"The KL along the baseline's texts, apart: {last['forked']['compared']:.2f} s.", "")
        return {"medians": median, "last": kept}
    plain_operations = operations_of_plain_run(bench, last["forked"]["asked"])
    apart, other = speed.differences(plain, last)
    nats, compared = sorted(each[0] for each in apart), len(plain) * len(last["hf"]["answers"][0])
    rate, forked, hf = bench.numbers["card"]["rate"], median["scoring"]["forked"], median["scoring"]["hf"]
    say(
        f"Loglikelihoods apart: median {statistics.median(nats):.1e}, 99% {nats[int(0.99 * len(nats))]:.1e}, largest "
        f"{nats[-1]:.1e} nats; documents with another accuracy: {other} of {compared}.",
        f"`hf`: {plain_operations / hf / 1e12:.0f} TFLOP/s, {plain_operations / hf / rate:.0%} of the card's rate; "
        f"forked: {share * plain_operations / forked / 1e12:.0f} TFLOP/s of the fewest operations, "
        f"{share * plain_operations / forked / rate:.0%}.",
        "",
    )
    return {"medians": median, "last": kept, "nats": nats, "other": other}


def parted(plain: list[str], last: dict[str, dict[str, Any]]) -> list[str]:
    """How many texts are the plain run's, and where the others part from it."""
    same, places = 0, []
    for run, answers in zip(plain, last["forked"]["answers"], strict=True):
        for (prompt, plainly), (forked_prompt, ids) in zip(last[run]["answers"][0], answers, strict=True):
            assert prompt == forked_prompt, "the plain run has read another prompt"
            place = parting(plainly, ids)
            same += place is None
            places += [] if place is None else [place]
    part = f"; the others part at token {statistics.median(places):.0f} (median)" if places else ""
    return [f"Texts that are the plain run's: {same} of {same + len(places)}{part}."]


def operations_of_plain_run(bench: Bench, questions: list[list[list[str]]]) -> float:
    """Operations of the weights in a plain run of the same questions: lm_eval runs each distinct input once."""
    size = bench.size
    heads, keys = size.heads * size.d_head, 2 * size.width * size.key_heads * size.d_head
    block = keys + 2 * size.width * heads + 3 * size.width * size.hidden
    inputs = {
        tuple(bench.tokenizer(context + continuation)["input_ids"][:-1])
        for choices in questions
        for context, continuation in choices
    }
    return 2.0 * sum(map(len, inputs)) * (size.layers * block + size.width * size.vocabulary)


def rows(bench: Bench) -> dict[str, Any]:
    """How many rows of 256 tokens to run at once."""
    say("## Rows at once", "", "| rows | 1 variant, s | GB | 8 variants, s | GB |", "|---:|---:|---:|---:|---:|")
    out = {}
    for count in (16, 32, 64, 128, 256, 512) if bench.device == "cuda" else (16, 512):
        cells = []
        for name in ("mmlu", "mmlu8"):
            measures = bench.run(name, "forked", count)
            cells += [f"{measures['scoring']:.2f}", f"{measures['own_memory'] / 1e9:.1f}"]
            out[f"{name} {count}"] = {key: measures[key] for key in ("seconds", "scoring", "own_memory")}
        say(f"| {count} | {' | '.join(cells)} |")
    say("")
    return out


def last_block(bench: Bench) -> dict[str, Any]:
    """With the last block where something is asked only, and everywhere."""
    say(
        "## The last block only where something is asked",
        "",
        "| questions | so, s | everywhere, s |",
        "|---|---:|---:|",
    )
    layouts = {so: tuple(layout for layout in scorer.LAYOUTS if layout.last_block == so) for so in (True, False)}
    out = {name: taking_turns(bench, name, scorer, "LAYOUTS", layouts) for name in ("mmlu", "blimp")}
    say("")
    return out


def taking_turns(bench: Bench, name: str, owner: Any, setting: str, values: dict[bool, Any]) -> dict[bool, list[float]]:
    """Times of forked requests under each value of a setting, and a row of a table with their medians."""
    times: dict[bool, list[float]] = {key: [] for key in values}
    had = getattr(owner, setting)
    for _ in range(2 if bench.device == "cuda" else 1):
        for key, value in values.items():
            setattr(owner, setting, value)
            try:
                times[key].append(bench.run(name, "forked")["scoring"])
            finally:
                setattr(owner, setting, had)
    say(f"| {name} | {' | '.join(f'{statistics.median(each):.2f}' for each in times.values())} |")
    return times


def first_runs(bench: Bench) -> dict[str, Any]:
    """Where the host is in the first forked runs of a process, and in the second of each."""
    out = {}
    for name, numbers in {"gsm8k_cot": ("first", "second"), "mmlu8": ("first",)}.items():
        for number in numbers:
            calls = cProfile.Profile()
            measures = calls.runcall(bench.run, name, "forked")
            text = io.StringIO()
            stats = pstats.Stats(calls, stream=text)
            stats.sort_stats("cumulative").print_stats("sae_lm_eval|evaluator|torch.*forward|tokeniz", 60)
            stats.sort_stats("tottime").print_stats(25)
            (bench.arguments.out / f"calls-{name}-{number}.txt").write_text(text.getvalue())
            say(f"{number} {name}: whole {measures['seconds']:.2f} s, requests {measures['scoring']:.2f} s")
            out[f"{number} {name}"] = {key: measures[key] for key in ("seconds", "scoring", "compared", "dictionaries")}
    say("")
    return out


def sparse_runs(bench: Bench) -> dict[str, Any]:
    """Whole runs with and without the gather."""
    say("## Requests with and without the gather", "", "| questions | gather, s | product, s |", "|---|---:|---:|")
    pays = {True: sparse.PAYS_BELOW, False: {}}
    out = {name: taking_turns(bench, name, sparse, "PAYS_BELOW", pays) for name in ("mmlu", "mmlu8")}
    say("")
    return out


@contextlib.contextmanager
def regions() -> Iterator[list[str]]:
    """Inside the scope, parts of the engine are named in profiles."""
    parts = {
        "masks": (executor.Executor, "_additive_mask"),
        "copies of prefixes": (prefix._Shared, "_before"),
        "head": (executor.Head, "__call__"),
        "log-softmax and measures": (executor.Executor, "_scores"),
        "scores": (executor.Executor, "_score"),
        "targets": (executor.Batches, "_index"),
        "trunk": (executor.Executor, "_run_batch"),
        "prefill of prompts": (Prefill, "_rows"),
        "rows arranged": (RowCache, "arrange"),
        "decoding steps": (Writing, "_step"),
        "attention to prefixes": (prefix_attention, "_behind"),
    }
    with contextlib.ExitStack() as scope:
        for name, (owner, method) in parts.items():
            had = owner.__dict__[method]
            inner = had.__func__ if isinstance(had, staticmethod) else had

            def named(*args: Any, inner: Any = inner, name: str = name, **kwargs: Any) -> Any:
                with record_function(name):
                    return inner(*args, **kwargs)

            setattr(owner, method, staticmethod(named) if isinstance(had, staticmethod) else named)
            scope.callback(setattr, owner, method, had)
        yield list(parts)


def profiled(bench: Bench) -> dict[str, Any]:
    """Where the time of a forked run goes."""
    out = {}
    for name in ("mmlu8", "gsm8k_cot"):
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device == "cuda")
        with regions() as names, profile(activities=activities) as measured:
            measures = bench.run(name, "forked")
        events = measured.key_averages()
        on_device = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
        kernels = [event for event in on_device if event.key not in names and not event.is_user_annotation]
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        launches = sum(event.count for event in kernels)
        say(
            f"## Profile of {name}, forked: requests {measures['scoring']:.2f} s under the profiler, device busy "
            f"{busy:.2f} s, {launches} kernels and copies",
            "",
            "| part | calls | host, s | device, s |",
            "|---|---:|---:|---:|",
        )
        host = {event.key: event for event in events if event.device_type == torch.autograd.DeviceType.CPU}
        device_time = {event.key: event.device_time_total / 1e6 for event in on_device if event.key in names}
        for part in names:
            if part in host:
                event = host[part]
                seconds = device_time.get(part, event.device_time_total / 1e6)
                say(f"| {part} | {event.count} | {event.cpu_time_total / 1e6:.2f} | {seconds:.2f} |")
        for event in sorted(kernels, key=lambda e: -e.self_device_time_total)[:14]:
            say(f"| {event.key[:90]} | {event.count} | | {event.self_device_time_total / 1e6:.3f} |")
        for kind in ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaLaunchKernel", "cuLaunchKernelEx", "aten::item"):
            if kind in host:
                say(f"| {kind} | {host[kind].count} | {host[kind].cpu_time_total / 1e6:.2f} | |")
        say("")
        out[name] = {"busy": busy, "launches": launches, "scoring": measures["scoring"]}
    return out


def sparse_decoding(bench: Bench) -> dict[str, Any]:
    """A gather of the active latents' rows against the dense product, and the choice between them."""
    say(
        "## Decoding 4,096 positions",
        "",
        "| dtype | width | latents | L0 | dense, ms | gather, ms | counting, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    )
    out, small = [], bench.device != "cuda"
    for dtype in (torch.float32, torch.bfloat16):
        for latents in (4096,) if small else (16_384, 65_536, 131_072):
            decoder = torch.randn(latents, bench.size.width, device=bench.device, dtype=dtype)
            for active in (32, 64, 128, 256):
                chosen = torch.rand(4096, latents, device=bench.device).topk(active, dim=-1).indices
                acts = torch.zeros(4096, latents, device=bench.device, dtype=dtype)
                acts.scatter_(-1, chosen, torch.rand(4096, active, device=bench.device, dtype=dtype))
                del chosen
                repeats = 2 if small else 5
                dense = seconds_of(lambda: acts @ decoder, bench.device, repeats)  # noqa: B023
                gather = seconds_of(lambda: sparse.gather(acts, decoder), bench.device, repeats)  # noqa: B023
                count = seconds_of(lambda: int(acts.count_nonzero()), bench.device, repeats)  # noqa: B023
                cells = " | ".join(f"{1e3 * each:.2f}" for each in (dense, gather, count))
                say(f"| {str(dtype)[6:]} | {bench.size.width} | {latents} | {active} | {cells} |")
                out.append([str(dtype), latents, active, dense, gather, count])
    say("")
    return {"rows": out}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=speed.SIZES, default="gemma")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, help="documents of a task; by default 200 of MMLU's and 1,000 of BLiMP's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sections", nargs="+", help="only these")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    transformers.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm_eval.sae_lm_eval").setLevel(logging.WARNING)  # what is not shared, and why
    numbers = {"card": card(arguments)}
    bench = Bench(arguments)
    bench.numbers = numbers
    sections: dict[str, Callable[[], Any]] = {
        "first_runs": lambda: first_runs(bench),
        "warm": lambda: [bench.run("mmlu", run) and None for run in ("hf", "forked")],
        "mmlu": lambda: suite(bench, "mmlu", arguments.rounds),
        "mmlu8": lambda: suite(bench, "mmlu8", 1),
        "texts": lambda: suite(bench, "gsm8k_cot", arguments.rounds),
        "texts8": lambda: suite(bench, "gsm8k_cot8", 1),
        "rows": lambda: rows(bench),
        "sparse": lambda: sparse_decoding(bench),
        "sparse_runs": lambda: sparse_runs(bench),
        "parallelize": lambda: parallelize(bench),
        "laws": lambda: laws(bench),
        "profile": lambda: profiled(bench),
        "blimp": lambda: suite(bench, "blimp", 1),
        "last_block": lambda: last_block(bench),
    }
    failed = []
    for name, section in sections.items():
        if arguments.sections and name not in arguments.sections:
            continue
        begun = time.perf_counter()
        try:
            numbers[name] = section()
        except Exception:  # told of, and the exit code says so: a GPU's time is too dear to lose the other sections
            failed.append(name)
            traceback.print_exc(file=sys.stdout)
        say(f"<!-- {name}: {time.perf_counter() - begun:.0f} s, {time.perf_counter() - started:.0f} s in all -->", "")
        (arguments.out / "gpu.json").write_text(json.dumps(numbers, default=str))
    if failed:
        say(f"FAILED: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
