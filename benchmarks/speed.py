"""Time and memory of the forked evaluation beside plain runs of the same requests.

    python benchmarks/speed.py OUT [--rounds 5] [--suites mmlu mmlu8 blimp gsm8k_cot gsm8k_cot8] [--threads 2]
    python benchmarks/speed.py OUT --model gemma --dtype bfloat16 --device cuda --batch_size 32

Each run is a process of its own; the runs of a suite take turns, and medians over the rounds are compared. The model
is a random Llama (8 blocks, width 512, vocabulary 32,000) with random top-k SAEs (32 of 4,096 elements), or a random
model of the size of Gemma-2-2B with 64 of 16,384; the questions are real. OUT keeps the model and what was measured.

The plain runs are lm_eval's `hf`, and `hf` with one forward hook in which the SAE's own forward is called.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

TOKENIZER = "stories3M"
MMLU = ["mmlu_abstract_algebra", "mmlu_anatomy", "mmlu_astronomy", "mmlu_business_ethics"]
BLIMP = ["blimp_adjunct_island", "blimp_anaphor_gender_agreement", "blimp_causative", "blimp_wh_island"]
COT = {"tasks": ["gsm8k_cot"], "limit": 50, "batch_size": 10, "gen_kwargs": "max_gen_toks=64"}
SUITES: dict[str, dict[str, Any]] = {
    "mmlu": {"tasks": MMLU, "num_fewshot": 5, "limit": 50, "variants": 1, "batch_size": 8},
    "mmlu8": {"tasks": MMLU, "num_fewshot": 5, "limit": 50, "variants": 8, "batch_size": 8},
    "blimp": {"tasks": BLIMP, "num_fewshot": 0, "limit": 250, "variants": 1, "batch_size": 32},
    "gsm8k_cot": {**COT, "variants": 1},
    "gsm8k_cot8": {**COT, "variants": 8},
    # Its shots are drawn anew for each question, so that hardly any beginning is shared.
    "gsm8k": {**COT, "tasks": ["gsm8k"], "variants": 1},
}
GENERATED = ("gsm8k_cot", "gsm8k_cot8", "gsm8k")


@dataclass(frozen=True)
class Size:
    """Of a model and its SAEs."""

    architecture: str
    layers: int
    width: int
    hidden: int
    heads: int
    key_heads: int
    d_head: int
    vocabulary: int
    elements: int
    active: int

    def sites(self, variants: int) -> list[int]:
        """The blocks behind which SAEs are: one in the middle, or several evenly spread."""
        return [self.layers // 2] if variants == 1 else [i * self.layers // variants for i in range(variants)]

    def blocks(self, layers: list[int]) -> list[int]:
        """That the baseline, and each variant with an SAE behind one of `layers`, run from its fork on."""
        return [self.layers, *(self.layers - 1 - layer for layer in layers)]

    # Multiplications of a token with the weights of a part.

    @property
    def keys(self) -> int:
        """Of a block, for keys and values."""
        return 2 * self.width * self.key_heads * self.d_head

    @property
    def rest(self) -> int:
        """Of a block besides."""
        return 2 * self.width * self.heads * self.d_head + 3 * self.width * self.hidden

    @property
    def head(self) -> int:
        return self.width * self.vocabulary

    @property
    def dictionary(self) -> int:
        """The encoder and the active elements of the decoder."""
        return self.width * (self.elements + self.active)


SIZES = {
    "llama": Size("Llama", 8, 512, 1376, 8, 8, 64, 32_000, 4096, 32),
    "gemma": Size("Gemma2", 26, 2304, 9216, 8, 4, 256, 256_000, 16_384, 64),
}


def random_model(size: Size, dtype: str, device: str = "cpu") -> Any:
    """A model of that size, whose weights are as transformers initialises them."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{size.architecture}Config")(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        head_dim=size.d_head,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.device(device):
        model = getattr(transformers, f"{size.architecture}ForCausalLM")(config)
    return model.to(getattr(torch, dtype)).eval()


def random_sae(size: Size, layer: int, device: str = "cpu") -> Any:
    """A top-k SAE for the output of a block."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=size.width, d_sae=size.elements, k=size.active, device=device))
    with torch.no_grad():
        # As a trained one has them: elements of unit norm, read along the directions in which they are written.
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    return sae


def make(size: Size, out: Path, dtype: str) -> None:
    """The model with a tokenizer, and SAEs for its blocks, as files."""
    import transformers

    random_model(size, dtype).save_pretrained(out / "model")
    transformers.AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(out / "model")
    for layer in sorted({*size.sites(1), *size.sites(8)}):
        random_sae(size, layer).save_model(str(out / f"sae{layer}"))


def evaluate(suite: str, run: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run: `hf`, `hookN` or `forked`."""
    import sae_lens  # noqa: F401  (its import takes seconds, which are no part of an evaluation)
    from lm_eval.tasks import TaskManager

    settings = dict(SUITES[suite])
    size = SIZES[arguments.model]
    layers, batch_size = size.sites(settings.pop("variants")), settings.pop("batch_size")
    if run == "forked" and suite in GENERATED:
        batch_size = settings["limit"]  # the rows of a batch are more by themselves, as prompts' beginnings are shared
    common = loading(arguments, arguments.batch_size or batch_size)
    started = time.perf_counter()
    task_manager = TaskManager()
    if run == "forked":
        models = forked_models(common, [str(arguments.out / f"sae{layer}") for layer in layers])
    else:
        models = [plain_run(run, common, arguments.out)]
    tasks = [*task_manager.load(settings.pop("tasks"))["tasks"].values()]  # once for all models, as `run` has it
    return measured_run(models, tasks, task_manager, settings, arguments.device, started, layers, size)


def measured_run(
    models: list[Any],
    tasks: list[Any],
    task_manager: Any,
    settings: dict[str, Any],
    device: str,
    started: float,
    layers: list[int],
    size: Size,
) -> dict[str, Any]:
    """Evaluate models one after the other: a plain one, or a baseline with its variants."""
    import lm_eval
    import torch

    forked = len(models) > 1
    scoring, compared, dictionaries = [0.0], [0.0], Stopwatch(device)
    for lm in models:
        lm.loglikelihood = timed(lm.loglikelihood, scoring)
        lm.generate_until = timed(lm.generate_until, scoring)
    queries: list[Any] = []
    written: list[Text] = []
    watched = (
        measured_parts(queries, written, dictionaries, compared)
        if forked
        else written_plainly(models[0].model, written)
    )
    options = {"tasks": tasks, "task_manager": task_manager, "bootstrap_iters": 0, "log_samples": True, **settings}
    with watched:
        samples = [lm_eval.simple_evaluate(model=lm, **options) for lm in models]
    seconds = time.perf_counter() - started
    if "gen_kwargs" in settings and not written:
        raise RuntimeError("texts were generated by transformers, for each variant by itself")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "scoring": scoring[0] - compared[0],
        "compared": compared[0],
        "dictionaries": dictionaries.seconds(),
        "memory": torch.cuda.max_memory_allocated() if device == "cuda" else resident,
        "answers": texts_by_model(written) if written else [answers_of(result["samples"]) for result in samples],
        "asked": asked_of(samples[0]["samples"]) if forked and queries else None,
        "operations": (
            None
            if not forked
            else operations_of_texts(written, layers, size)
            if written
            else fewest(queries, layers, size)
        ),
    }


def loading(arguments: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    return {
        "pretrained": str(arguments.out / "model"),
        "batch_size": batch_size,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "softmax_dtype": "float32",  # lm_eval's is the model's own, which rounds a loglikelihood to 1/16 in bfloat16
    }


class Text(NamedTuple):
    """What a model wrote behind a prompt, as tokens: most of a random model's have no text in a small tokenizer."""

    prompt: list[int]
    model: int
    ids: list[int]


class Stopwatch:
    """Time that calls take, on the device."""

    def __init__(self, device: str):
        self.device, self.laps = device, []

    def around(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = self._now()
            out = function(*args, **kwargs)
            self.laps.append((started, self._now()))
            return out

        return call

    def _now(self) -> Any:
        import torch

        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        if self.device != "cuda":
            return sum(end - begin for begin, end in self.laps)
        return sum(begin.elapsed_time(end) for begin, end in self.laps) / 1000


@contextlib.contextmanager
def written_plainly(model: Any, written: list[Text]) -> Iterator[None]:
    """Inside the scope, what transformers writes is noted."""
    generate = model.generate

    def generate_noted(input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        out = generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        for row, mask, text in zip(input_ids, attention_mask, out, strict=True):
            written.append(Text(row[mask.bool()].tolist(), 0, text[len(row) :].tolist()))
        return out

    model.generate = generate_noted
    try:
        yield
    finally:
        del model.generate


@contextlib.contextmanager
def measured_parts(
    queries: list[Any], written: list[Text], dictionaries: Stopwatch, compared: list[float]
) -> Iterator[None]:
    """Inside the scope, what is asked of the engine and written is noted, and the time in dictionaries is taken, as is
    that of comparing texts with the baseline's, which no plain run does.

    By the engine's own methods: a hook on a model is something that its answers depend on.
    """
    from sae_lm_eval.harness import generation
    from sae_lm_eval.scoring.decoding import Decoder
    from sae_lm_eval.scoring.shared_answers import SharedAnswers
    from sae_lm_eval.splicing.splice import Splice

    answers, reconstruct, generate = SharedAnswers.answers, Splice.reconstruct, Decoder.generate
    compare_texts = generation._compare

    def generate_noted(self: Any, prompts: Any, ending: Any, done: Any, **kwargs: Any) -> None:
        def noted(number: int, model: int, ids: list[int]) -> None:
            written.append(Text(list(prompts[number]), model, ids))
            done(number, model, ids)

        generate(self, prompts, ending, noted, **kwargs)

    def compare_apart(*args: Any) -> None:
        laps = len(dictionaries.laps)
        timed(compare_texts, compared)(*args)
        del dictionaries.laps[laps:]

    Decoder.generate, generation._compare = generate_noted, compare_apart
    SharedAnswers.answers = lambda self, requests, *callbacks: (
        queries.extend(requests),
        answers(self, requests, *callbacks),
    )[1]
    Splice.reconstruct = dictionaries.around(reconstruct)
    try:
        yield
    finally:
        SharedAnswers.answers, Splice.reconstruct, Decoder.generate = answers, reconstruct, generate
        generation._compare = compare_texts


def forked_models(common: dict[str, Any], saes: list[Any]) -> list[Any]:
    from sae_lm_eval.harness.joined import joined
    from sae_lm_eval.harness.model import SaeHFLM
    from sae_lm_eval.splicing.arguments import requested_splices

    baseline: Any = SaeHFLM(sae=[], splice="none", **common)
    # As the plain hook has it, which does not know what a special token is.
    everywhere = {"splice_tokens": "all"}
    variants = [baseline.as_variant(requested_splices(sae, **everywhere)) for sae in saes]
    return joined(baseline, variants)


def plain_run(run: str, common: dict[str, Any], out: Path) -> Any:
    """The plain model of a run: `hf`, or `hookN` with the SAE that `out` has for block N."""
    from sae_lens import SAE

    if run == "hf":
        return plain_model(common, None, None)
    layer = int(run.removeprefix("hook"))
    return plain_model(common, layer, SAE.load_from_disk(str(out / f"sae{layer}"), device=common["device"]))


def plain_model(common: dict[str, Any], layer: int | None, sae: Any) -> Any:
    """lm_eval's `hf`, with a hook behind a block that calls an SAE where one is given; `lm.hook` removes it."""
    import torch
    from lm_eval.models.huggingface import HFLM

    lm: Any = HFLM(**common)
    if layer is not None:
        lm.sae = sae

        def spliced(x: torch.Tensor) -> torch.Tensor:
            return sae(x).to(x.dtype)

        lm.hook = lm.model.model.layers[layer].register_forward_hook(
            lambda _m, _a, x: spliced(x) if isinstance(x, torch.Tensor) else (spliced(x[0]), *x[1:])
        )
    return lm


def timed(function: Any, seconds: list[float]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[0] += time.perf_counter() - started

    return call


def in_order(samples: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [s for task in sorted(samples) for s in sorted(samples[task], key=lambda s: s["doc_id"])]


def answers_of(samples: dict[str, list[dict[str, Any]]]) -> list[list[float]]:
    """For each document the loglikelihoods of its choices, and its accuracy."""
    return [[logprob for ((logprob, _),) in s["resps"]] + [s["acc"]] for s in in_order(samples)]


def texts_by_model(written: list[Text]) -> list[list[list[list[int]]]]:
    """For each model its prompts and texts, in the order of the prompts."""
    return [sorted([text.prompt, text.ids] for text in written if text.model == model) for model in models_of(written)]


def models_of(written: list[Text]) -> list[int]:
    return sorted({text.model for text in written})


def asked_of(samples: dict[str, list[dict[str, Any]]]) -> list[list[list[str]]]:
    """For each document context and continuation of its choices."""
    return [[list(arguments) for arguments in s["arguments"]] for s in in_order(samples)]


def decided_both_ways(question: list[str], run: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The plain run's answer to one question, as it is and with the closest tie of the top-k decided the other way.

    The closest tie: at one token the least gap between the last activation that is kept and the first that is not.
    """
    import torch
    from lm_eval.api.instance import Instance

    active = SIZES[arguments.model].active
    lm = plain_run(run, loading(arguments, 1), arguments.out)
    instance = Instance("loglikelihood", doc={}, arguments=(question[0], question[1]), idx=0)
    answers = {"one way": lm.loglikelihood([instance], disable_tqdm=True)[0][0]}

    def other_way(activations: torch.Tensor) -> torch.Tensor:
        values, elements = activations.topk(active + 1)
        gaps = values[..., -2] - values[..., -1]
        answers["gap"] = gaps.min().item()
        here = (gaps == gaps.min())[..., None]
        kept_else = torch.tensor([*range(active - 1), active], device=values.device)
        order = torch.where(here, kept_else, torch.arange(active, device=values.device))
        kept = values.gather(-1, order).relu()
        return torch.zeros_like(activations).scatter(-1, elements.gather(-1, order), kept)

    lm.sae.activation_fn.forward = other_way
    answers["other way"] = lm.loglikelihood([instance], disable_tqdm=True)[0][0]
    return answers


def fewest(queries: list[Any], layers: list[int], size: Size) -> float:
    """Multiplications of the weights that the answers cannot do without, as a share of those of one plain run.

    Each distinct beginning once through the blocks, from its fork on for each variant, with the encoder and the
    active elements of the decoder; of the last block keys and values, and the rest where a distinct beginning is
    asked, as the head. Attention scores are not counted.
    """
    from sae_lm_eval.scoring.packing import pack

    inputs = {tuple(query.ids): query for query in queries}
    (row,) = pack(list(inputs), capacity=2**40, limit=2**40, prefixes=False, trees=True).rows
    slots = {
        slot
        for path, query in zip(row.paths.values(), inputs.values(), strict=True)
        for slot in path[-len(query.targets) :]
    }
    keys, rest, blocks = size.keys, size.rest, size.blocks(layers)
    everywhere = sum(max(0, n - 1) * (keys + rest) + min(1, n) * keys for n in blocks)
    where_asked = sum(min(1, n) * rest + size.head for n in blocks)
    read = sum(len(slots) if layer == size.layers - 1 else len(row.ids) for layer in layers)
    fewest = len(row.ids) * everywhere + len(slots) * where_asked + read * size.dictionary
    return fewest / (sum(map(len, inputs)) * (size.layers * (keys + rest) + size.head))


def operations_of_texts(written: list[Text], layers: list[int], size: Size) -> float:
    """As `fewest`, of texts: each distinct token of the prompts once, from its fork on for each variant; each token
    that a model writes once, as the head; each token that a variant reads once in its dictionary.
    """
    from sae_lm_eval.scoring.packing import pack

    prompts = {tuple(text.prompt) for text in written}
    (row,) = pack(list(prompts), capacity=2**40, limit=2**40, prefixes=False, trees=True).rows
    block = size.keys + size.rest
    written_token = size.layers * block + size.head
    fewest = len(row.ids) * (sum(size.blocks(layers)) * block + len(layers) * size.dictionary)
    fewest += sum(len(text.ids) * (written_token + bool(text.model) * size.dictionary) for text in written)
    baseline = sum(len(text.ids) for text in written if text.model == 0)
    return fewest / (sum(map(len, prompts)) * size.layers * block + baseline * written_token)


def gap(question: list[Any], run: str, arguments: argparse.Namespace) -> float:
    """How far apart the two likeliest tokens are behind a prompt, in nats, as a plain run has them."""
    import torch

    lm = plain_run(run, loading(arguments, 1), arguments.out)
    with torch.no_grad():
        logits = lm.model(torch.tensor([question], device=lm.device)).logits[0, -1]
    likeliest = logits.float().log_softmax(-1).topk(2).values
    return float(likeliest[0] - likeliest[1])


def measured(suite: str, run: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TQDM_DISABLE": "1"}
    command = [sys.executable, *sys.argv, "--one", suite, run]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return json.loads((arguments.out / "one.json").read_text())


def compare(suite: str, arguments: argparse.Namespace) -> str:
    layers = SIZES[arguments.model].sites(SUITES[suite]["variants"])
    plain = ["hf", *(f"hook{layer}" for layer in layers)]
    by_run: dict[str, list[dict[str, Any]]] = {run: [] for run in [*plain, "forked"]}
    for _ in range(arguments.rounds):
        for run, measures in by_run.items():
            measures.append(measured(suite, run, arguments))
            print(suite, run, *(f"{measures[-1][kind]:.1f} s" for kind in KINDS), file=sys.stderr)
    median = {kind: {run: statistics.median(m[kind] for m in by_run[run]) for run in by_run} for kind in KINDS}
    last = {run: measures[-1] for run, measures in by_run.items()}
    floor = last["forked"]["operations"] * median["scoring"]["hf"]
    lines = [
        f"## {suite}: baseline and {len(layers)} variant{'s' if len(layers) > 1 else ''}",
        "",
        f"Medians of {arguments.rounds}; from the first to the last.",
        "",
        "| run | whole, s | requests alone, s | peak memory, MB |",
        "|---|---:|---:|---:|",
    ]
    for run, measures in by_run.items():
        cells = []
        for kind in KINDS:
            times = sorted(m[kind] for m in measures)
            cells.append(f"{median[kind][run]:.1f} ({times[0]:.1f} to {times[-1]:.1f})")
        lines.append(f"| {run} | {' | '.join(cells)} | {last[run]['memory'] / 1e6:.0f} |")
    lines += ["", "| | whole | requests alone | floor |", "|---|---:|---:|---:|"]
    for label, runs in ((f"{len(plain)} plain runs / forked", plain), ("`hf` alone / forked", ["hf"])):
        ratios = [sum(median[kind][run] for run in runs) / median[kind]["forked"] for kind in KINDS]
        least = sum(median["scoring"][run] for run in runs) / floor
        lines.append(f"| {label} | {ratios[0]:.1f}x | {ratios[1]:.1f}x | {least:.1f}x |")
    kept = last["forked"]
    share = f"{kept['dictionaries'] / kept['scoring']:.0%} of the requests' time is in the SAEs."
    memory = f"Peak memory is {kept['memory'] / last['hf']['memory']:.2f} of the `hf` run's"
    compared = compared_texts if suite in GENERATED else compared_answers
    lines += ["", *compared(suite, plain, last, layers, arguments), f"{memory}; {share}"]
    if kept["compared"]:
        lines.append(f"Not in `requests alone`: the KL along the baseline's texts, {kept['compared']:.1f} s.")
    return "\n".join([*lines, ""])


def compared_answers(
    suite: str, plain: list[str], last: dict[str, dict[str, Any]], layers: list[int], arguments: argparse.Namespace
) -> list[str]:
    apart, other = differences(plain, last)
    lines = [
        f"Largest difference of a loglikelihood: {max(apart)[0]:.1e} nats; documents with another accuracy: {other}."
    ]
    if arguments.dtype == "float32":
        beyond = sorted((d for d in apart if d[0] > TOLERANCE), reverse=True)
        lines.append(f"Differences over {TOLERANCE:.0e}: {len(beyond)} of {len(apart)}.")
        lines += [tie(suite, difference, last, layers, arguments) for difference in beyond]
        lines += [""] * bool(beyond)
    return lines


def compared_texts(
    suite: str, plain: list[str], last: dict[str, dict[str, Any]], _layers: list[int], arguments: argparse.Namespace
) -> list[str]:
    from sae_lm_eval.scoring.parting import parting

    lines = []
    for run, answers in zip(plain, last["forked"]["answers"], strict=True):
        for number, ((prompt, plainly), (same, forked)) in enumerate(
            zip(last[run]["answers"][0], answers, strict=True)
        ):
            assert prompt == same, "the plain run has read another prompt"
            # A plain text goes on until the last of its batch has ended.
            parted = parting(plainly, forked)
            if parted is not None:
                (arguments.out / "question.json").write_text(json.dumps([*prompt, *plainly[:parted]]))
                nats = measured(suite, f"gap-{run}", arguments)
                lines.append(
                    f"- {run}, prompt {number}: at token {parted}, where the two likeliest are {nats:.1e} nats apart."
                )
    total = sum(len(answers) for answers in last["forked"]["answers"])
    return [f"Texts that are not the plain run's: {len(lines)} of {total}.", *lines, *[""] * bool(lines)]


KINDS = ("seconds", "scoring")
TOLERANCE = 1e-4  # nats
Difference = tuple[float, str, int, int]  # nats, plain run, document, choice


def differences(plain: list[str], last: dict[str, dict[str, Any]]) -> tuple[list[Difference], int]:
    """How far each loglikelihood is from the plain run's, and how many documents have another accuracy."""
    apart, other = [], 0
    for run, answers in zip(plain, last["forked"]["answers"], strict=True):
        for document, (plainly, forked) in enumerate(zip(last[run]["answers"][0], answers, strict=True)):
            pairs = enumerate(zip(plainly[:-1], forked[:-1], strict=True))
            apart += [(abs(a - b), run, document, choice) for choice, (a, b) in pairs]
            other += plainly[-1] != forked[-1]
    return apart, other


def tie(
    suite: str,
    difference: Difference,
    last: dict[str, dict[str, Any]],
    layers: list[int],
    arguments: argparse.Namespace,
) -> str:
    """Whether a difference is a tie of the top-k: whether the plain run gives both answers, one for each decision."""
    apart, run, document, choice = difference
    line = f"- {run}, document {document}, choice {choice}: {apart:.1e} nats"
    if run == "hf":
        return f"{line}."
    (arguments.out / "question.json").write_text(json.dumps(last["forked"]["asked"][document][choice]))
    ways = measured(suite, f"ways-{run}", arguments)
    forked = last["forked"]["answers"][1 + layers.index(int(run.removeprefix("hook")))]
    answers = [last[run]["answers"][0][document][choice], forked[document][choice]]
    nearest = [min(("one way", "other way"), key=lambda way: abs(ways[way] - answer)) for answer in answers]
    far = max(abs(ways[way] - answer) for way, answer in zip(nearest, answers, strict=True))
    active = SIZES[arguments.model].active
    return (
        f"{line}. At one token the activations {active} and {active + 1} are {ways['gap']:.1e} apart. The question "
        f"asked alone, that tie decided either way: plain run {nearest[0]}, forked run {nearest[1]}, to {far:.1e} nats."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--suites", nargs="+", choices=SUITES, default=["mmlu", "mmlu8", "blimp", "gsm8k_cot", "gsm8k_cot8"]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=SIZES, default="llama")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, help="of all runs, where the suites' own are too small for a GPU")
    parser.add_argument("--one", nargs=2, metavar=("SUITE", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve() / f"{arguments.model}-{arguments.dtype}"
    if arguments.one:
        suite, run = arguments.one
        if run.startswith("ways-"):
            question = json.loads((arguments.out / "question.json").read_text())
            result: Any = decided_both_ways(question, run.removeprefix("ways-"), arguments)
        elif run.startswith("gap-"):
            question = json.loads((arguments.out / "question.json").read_text())
            result = gap(question, run.removeprefix("gap-"), arguments)
        else:
            result = evaluate(suite, run, arguments)
        (arguments.out / "one.json").write_text(json.dumps(result))
        return
    if not (arguments.out / "model").exists():
        make(SIZES[arguments.model], arguments.out, arguments.dtype)
    for suite in arguments.suites:
        print(compare(suite, arguments), flush=True)


if __name__ == "__main__":
    main()
