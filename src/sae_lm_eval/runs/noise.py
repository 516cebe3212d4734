"""The baseline once more, laid out otherwise: how far its own numbers move where nothing was changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from sae_lm_eval.errors import UserError
from sae_lm_eval.runs.model_pool import LoadedSweep

SEQUENCES = 32  # of each task, at most, on which KL, flips and delta CE are taken
ROWS = 4  # in a batch of the other layout, where the batch size does not say otherwise


def again(baseline: Any, bos: bool) -> Any:
    """The untouched model of a run, to be answered by itself: nothing shared, and batches of another size.

    `bos` says whether the run asks with a BOS token.
    """
    return baseline.untouched(bos=bos, batch_size=other_rows(baseline))


def other_rows(lm: Any) -> int:
    """A batch size that is not the model's: one more row, or a few where it runs one or as many as fit."""
    rows = lm.batch_size
    return rows + 1 if isinstance(rows, int) and rows > 1 else ROWS


def floor_on_tasks(lm: Any, loaded: LoadedSweep) -> dict[str, Any]:
    """The noise floor of what `again` gave, on the tasks of a run."""
    tasks = loaded.tasks["tasks"].values()
    for task in tasks:
        if not task.instances:  # all else was evaluated before this process began
            loaded.build_requests(task)
    return measure_noise_floor(lm, sequences_of(lm, tasks), rows=lm.batch_size_per_gpu)


def sequences_of(lm: Any, tasks: Iterable[Any]) -> list[list[int]]:
    """Tokens of prompts with their answers, or of documents: of each task `SEQUENCES`, evenly taken."""
    sequences: list[list[int]] = []
    for task in tasks:
        instances = task.instances or []
        for instance in instances[:: max(1, -(-len(instances) // SEQUENCES))]:
            parts = instance.args[:2] if instance.request_type == "loglikelihood" else instance.args[:1]
            ids = lm.tok_encode("".join(map(str, parts)))[-lm.max_length :]
            if len(ids) > 1:
                sequences.append(ids)
    return sequences


def measure_noise_floor(lm: Any, sequences: Sequence[Sequence[int]], *, rows: int) -> dict[str, Any]:
    """How the predictions for the same tokens differ between two layouts: each sequence alone, and `rows` in a batch.

    The batches are padded and hold the sequences in the opposite order. Per predicted token: `kl`, the mean of
    KL(alone || batch) in nats; `flips`, the share where another token is the likeliest; `ce_delta`, the absolute value
    of the mean rise of -log p of the next token, in nats. Sums are in float64. Raises `UserError` where no sequence
    has two tokens.
    """
    long_enough = [list(ids) for ids in sequences if len(ids) > 1]
    if not long_enough:
        raise UserError("There is no noise floor: no prompt of these tasks has two tokens.")
    kl, flips, rise, tokens = 0.0, 0, 0.0, 0
    ordered = long_enough[::-1]
    for start in range(0, len(ordered), rows):
        batch = ordered[start : start + rows]
        width = max(map(len, batch))
        padded = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in batch], device=lm.device)
        together = _log_probabilities(lm, padded)
        for ids, of_batch in zip(batch, together, strict=True):
            row = torch.tensor([ids], device=lm.device)
            alone, other = _log_probabilities(lm, row)[0, :-1], of_batch[: len(ids) - 1]
            kl += float((alone.double().exp() * (alone.double() - other.double())).sum())
            flips += int((alone.argmax(-1) != other.argmax(-1)).sum())
            targets = row[0, 1:, None].to(alone.device)
            rise += float((alone.gather(-1, targets).double() - other.gather(-1, targets).double()).sum())
            tokens += len(ids) - 1
    return {
        "kl": kl / tokens,
        "flips": flips / tokens,
        "ce_delta": abs(rise) / tokens,
        "tokens": tokens,
        "sequences": len(ordered),
        "rows": [1, rows],
    }


def _log_probabilities(lm: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return log_softmax(lm._model_call(ids).float(), dim=-1)
