"""lm_eval's requests for texts: written for all variants together, or by transformers in batches of a journal."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from sae_lm_eval.errors import UserError, shortened
from sae_lm_eval.harness.few_shot_headers import RULE, header_lengths, needs_headers
from sae_lm_eval.harness.loading import ROWS_ON_GPU
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import Progress
from sae_lm_eval.runtime.time_left import TEXTS
from sae_lm_eval.scoring.drafts import Ending
from sae_lm_eval.scoring.generation import UnsharedError, sampling_of
from sae_lm_eval.scoring.shared_texts import UndefinedLogits
from sae_lm_eval.scoring.token_sampler import TokenSampler

# The KL is taken along every n-th of a task's texts, with the least n that leaves no more than a quarter of them, or
# than these where a quarter lies outside: 20 of 20, 11 of 21, 14 of 41, 17 of 50, 200 of 1,000. Reading all takes more
# than half as long as writing them.
COMPARED_SHARE, FEWEST_COMPARED, MOST_COMPARED = 1 / 4, 20, 200
LOOKED_BACK = 2  # tokens besides those of a stop sequence, which may be written in others; lm_eval's own number


@dataclass(frozen=True)
class TextSettings:
    """What the generation arguments of a request come to; `until` includes the text of the end of a text."""

    until: list[str]
    ending: Ending
    sampling: TokenSampler
    label: str

    @classmethod
    def from_arguments(cls, lm: Any, arguments: dict[str, Any]) -> TextSettings:
        """As lm_eval's `hf` reads them. Raises `UnsharedError` where only transformers can follow them."""
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(arguments, lm.max_gen_toks))
        until = handle_stop_sequences(kwargs.pop("until", None), lm.tok_decode(lm.eot_token_id, False))
        length = kwargs.pop("max_gen_toks")
        if "max_length" in kwargs:
            raise UnsharedError(f"max_length={kwargs['max_length']} counts the padding of a batch")
        if not kwargs.get("do_sample") and not kwargs.get("temperature"):
            kwargs.pop("temperature", None)
        sampling, ids = sampling_of(lm.loaded.model, kwargs)
        seed = [] if sampling.warped is None else [sampling.seed]
        label = json.dumps([arguments, length, *seed], sort_keys=True, default=str)
        return cls(until, Ending(length, ids, stop_check(lm.tokenizer, until)), sampling, label)

    def text(self, lm: Any, ids: list[int]) -> str:
        """What lm_eval makes of the tokens that were written."""
        think_end = lm.think_end_token
        if isinstance(think_end, int) and think_end in ids:
            ids = ids[len(ids) - ids[::-1].index(think_end) :]
        text = lm.tok_decode(ids)
        if isinstance(think_end, int):
            return postprocess_generated_text(text.lstrip(), self.until, None)
        return postprocess_generated_text(text, self.until, think_end)


def stop_check(tokenizer: Any, until: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """Whether one of the stop sequences stands at the end of tokens."""
    longest = max((len(tokenizer.encode(term, add_special_tokens=False)) for term in until), default=0)

    def stopped(ids: Sequence[int]) -> bool:
        text = tokenizer.decode(ids[-longest - LOOKED_BACK :])
        return any(term in text for term in until)

    return stopped


def written(
    lm: Any, requests: Sequence[Instance], lengths: Sequence[int], plainly: Callable[[list[Instance]], list[str]]
) -> list[str]:
    """A text of `lm` for each request, whose prompts have `lengths` in tokens.

    Those that can be are written together with the texts of the other models of its group, the rest `plainly`.
    """
    group = lm.spliced.group
    kinds, left = _kinds(lm, requests)
    out: dict[int, str] = {}
    together = [number for _, numbers in kinds for number in numbers]
    place = {number: i for i, number in enumerate(together)}
    progress = group.progress or Progress()
    progress.begin([lengths[i] for i in together], [requests[i].task_name for i in together], TEXTS)
    hidden = group.progress is not None or lm.rank != 0
    with tqdm(total=len(together), disable=hidden, desc="Running generate_until requests") as bar:

        def answered(number: int, text: str) -> None:
            out[number] = text
            lm.cache_hook.add_partial("generate_until", requests[number].args, text)
            bar.update()
            progress.answered(place[number])

        for settings, numbers in kinds:
            _write(lm, settings, requests, numbers, answered, lambda i: progress.recalled(place[i]), progress.wrote)
    rest = [requests[i] for i in left]
    if rest and lm.spliced.variant.looks_at_header:
        raise UserError(
            f"{RULE} is for texts that are written for all variants together, and transformers writes those of "
            f"{rest[0].task_name}."
        )
    if rest and group.journal is not None:
        size = lm.batch_size if isinstance(lm.batch_size, int) else ROWS_ON_GPU
        journal, model = group.journal, lm.spliced.identity()
        texts = in_batches(rest, [lengths[i] for i in left], size, plainly, journal, model, lm.device.type, progress)
    else:
        texts = plainly(rest) if rest else []
    out.update(zip(left, texts, strict=True))
    return [out[number] for number in range(len(requests))]


def _kinds(lm: Any, requests: Sequence[Instance]) -> tuple[list[tuple[TextSettings, list[int]]], list[int]]:
    """The numbers of requests of equal settings that are written together, and of those that are not."""
    by_arguments: dict[str, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        by_arguments[json.dumps(request.args[1:], sort_keys=True, default=str)].append(number)
    shared = lm.spliced.group.texts()
    if shared is None or shared.place(lm.spliced.identity()) is None:
        return [], list(range(len(requests)))
    kinds, left = [], []
    for numbers in by_arguments.values():
        _, arguments = tuple[Any, ...](requests[numbers[0]].args)
        try:
            kinds.append((TextSettings.from_arguments(lm, arguments), numbers))
        except UnsharedError as error:
            words = f"Texts are generated for each variant by itself: {error}."
            lm.loaded.say_once(words, words)
            left += numbers
    return kinds, left


def _write(
    lm: Any,
    settings: TextSettings,
    requests: Sequence[Instance],
    numbers: Sequence[int],
    answered: Callable[[int, str], None],
    recalled: Callable[[int], None],
    wrote: Callable[[int], None],
) -> None:
    """Answer requests of one kind by their numbers; `wrote` is told how many tokens all models have written."""
    room = lm.max_length - settings.ending.length
    prompts = []
    for number in numbers:
        ids, _ = lm.tok_batch_encode([requests[number].args[0]], left_truncate_len=room, truncation=lm.truncation)
        prompts.append(ids[0].tolist() or [lm.prefix_token_id])
    shared = lm.spliced.group.texts()
    headers = _headers(lm, [requests[number] for number in numbers], prompts)
    labels = [
        f"{requests[number].task_name} {settings.label}{f' behind {header}' if header else ''}"
        for number, header in zip(numbers, headers, strict=True)
    ]
    own: dict[int, list[int]] = {}

    def done(i: int, ids: list[int]) -> None:
        own[i] = ids
        answered(numbers[i], settings.text(lm, ids))

    try:
        with lm.loaded.autocast():
            shared.write(
                prompts,
                settings.ending,
                settings.sampling,
                labels,
                shared.place(lm.spliced.identity()),
                done,
                lambda i: recalled(numbers[i]),
                wrote,
                headers,
            )
    except UndefinedLogits as error:
        prompt = shortened(requests[numbers[error.number]].args[0])
        raise UserError(f"The logits are nan while '{lm.spliced.name}' generates from {prompt}.") from error
    baseline = lm.spliced.group.members[0]
    if not lm.spliced.group.baseline_first or baseline is lm.spliced:
        return
    if (place := shared.place(baseline.identity())) is not None:
        texts = [
            (requests[numbers[i]], prompts[i], ids, own[i], headers[i])
            for i, ids in enumerate(shared.kept(prompts, labels, place))
            if ids is not None
        ]
        _compare(lm, texts)


def _headers(lm: Any, requests: Sequence[Instance], prompts: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens of each prompt, which may be cut on the left, are those of its few-shot header."""
    if not needs_headers(lm.spliced):
        return [0] * len(requests)
    texts = [str(request.args[0]) for request in requests]
    whole = [lm.tok_encode(text) for text in texts]
    lengths = header_lengths(lm.spliced, requests, [[text] for text in texts], whole)
    return [max(0, n - len(ids) + len(cut)) for n, ids, cut in zip(lengths, whole, prompts, strict=True)]


def _compare(lm: Any, texts: Sequence[tuple[Instance, list[int], list[int], list[int], int]]) -> None:
    """Note where texts part from the baseline's, and the variant's KL along a sample of the baseline's.

    Of each text: the request, the tokens of its prompt, what the baseline wrote, what the variant did, and how many
    tokens of the prompt are the header's.
    """
    lm.parted_texts.note([request for request, *_ in texts], [(baseline, ids) for *_, baseline, ids, _ in texts])
    if not lm.spliced.is_scored:
        return
    by_task: dict[str | None, list[tuple[Instance, list[int], list[int], int]]] = defaultdict(list)
    for request, prompt, baseline, _, header in texts:
        by_task[request.task_name].append((request, prompt, baseline, header))
    sample = [text for of_task in by_task.values() for text in of_task[:: _every(len(of_task))]]
    if sample:
        requests = [request for request, *_ in sample]
        queries = [lm.spliced.query(*of_text) for _, *of_text in sample]
        answers = lm.spliced.score(queries, [request.task_name for request in requests], counted=False)
        lm.divergence.note(requests, answers.divergences)


def _every(texts: int) -> int:
    """Each how many-th of a task's texts is compared."""
    wanted = min(max(math.ceil(texts * COMPARED_SHARE), FEWEST_COMPARED), MOST_COMPARED)
    return math.ceil(texts / wanted)


def in_batches(
    requests: Sequence[Instance],
    lengths: Sequence[int],
    size: int,
    generate: Callable[[list[Instance]], list[str]],
    journal: Journal,
    model: str,
    device: str,
    progress: Progress,
) -> list[str]:
    """A text for each request, by `generate` or from `journal`, where `model` keeps what it has written.

    A batch is of one task and of equal settings, `size` requests of about equal `lengths` in tokens; it does not depend
    on which of them are known. `device` is the kind that draws.
    """
    kinds = [json.dumps([request.task_name, *request.args[1:]], sort_keys=True, default=str) for request in requests]
    prompts = [str(request.args[0]) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: (kinds[i], -lengths[i], prompts[i]))
    out = [""] * len(requests)
    progress.begin(lengths, [request.task_name for request in requests], TEXTS)
    for kind, group in itertools.groupby(order, key=kinds.__getitem__):
        same = list(group)
        for number in range(0, len(same), size):
            batch = same[number : number + size]
            # Texts may be drawn at random, so the same question asked twice is two questions.
            question = json.dumps([number, kind, [prompts[i] for i in batch]]).encode()
            key = hashlib.blake2b(question, digest_size=16).digest()
            if (stored := journal.get(model, key)) is not None:
                texts = json.loads(stored)
                for i in batch:
                    progress.recalled(i)
            else:
                with drawing(key, device):
                    texts = generate([requests[i] for i in batch])
                journal.put(model, {key: json.dumps(texts).encode()})
            for i, text in zip(batch, texts, strict=True):
                out[i] = text
                progress.answered(i)
    return out


@contextmanager
def drawing(key: bytes, device: str) -> Iterator[None]:
    """Inside the scope, what torch draws depends on its seed and on `key`, and on nothing that was drawn before."""
    seed = hashlib.blake2b(key + torch.initial_seed().to_bytes(8), digest_size=8).digest()
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(int.from_bytes(seed))
        yield
