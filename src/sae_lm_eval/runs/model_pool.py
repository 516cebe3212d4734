"""The model of a run, loaded once in a process, and variants made of it."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.runs.asked_documents import check_fields, check_sampled
from sae_lm_eval.runs.folder_names import AGAIN, BASELINE
from sae_lm_eval.runs.object_names import object_texts
from sae_lm_eval.runs.sweep import Sweep, VariantRequest
from sae_lm_eval.runs.task_index import quick_index
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import Progress

CACHES = ("cache_requests", "rewrite_requests_cache", "delete_requests_cache")
PASSED = (
    *("num_fewshot", "batch_size", "max_batch_size", "device", "use_cache", "limit", "samples"),
    *("check_integrity", "write_out", "system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
    *("gen_kwargs", "verbosity", "confirm_run_unsafe_code", "metadata"),
)
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class UnknownModel(UserError):
    """There is no model as a sweep asks for it."""


class Look(NamedTuple):
    """Of a variant: bytes of its dictionaries, whether one was trained behind a BOS token, what it is made of."""

    sizes: dict[Hashable, int]
    wants_bos: bool
    record: dict[str, str]


class LoadedSweep:
    """The untouched model of a sweep, `baseline`, and lm_eval's tasks; `settings` is its `EvaluatorConfig`.

    `at` is told what is under way; the tasks are read first where there is something `to_run`, and `check` refuses
    what they are not.

    Raises `UserError` where there is no such task, and `UnknownModel` where there is no such model.
    """

    def __init__(
        self,
        sweep: Sweep,
        settings: Any,
        at: Callable[[str], object] = lambda _what: None,
        *,
        to_run: bool = True,
        check: Callable[[Mapping[str, Any]], object] = lambda _tasks: None,
    ):
        from sae_lm_eval.harness.model import SaeHFLM

        self.settings, self.model_args = settings, sweep.model_args
        self.variants: dict[str, VariantRequest] = {request.name: request for request in sweep.variants}
        self._dictionaries: dict[Hashable, Any] = {}
        if to_run:
            at("reading the tasks")
            try:
                with quick_index():
                    self.task_manager = settings.process_tasks(settings.metadata)
                self.tasks = self._load_tasks()
                check(self.tasks["tasks"])
                check_fields(sweep.categories, sweep.docs_by, settings, self.tasks)
            except (ValueError, OSError) as error:
                raise UserError(first_line(error)) from error
        at("loading the model")
        given = {name: getattr(settings, name) for name in ("batch_size", "max_batch_size", "device")}
        try:
            self.baseline = SaeHFLM(sae=[], splice="none", **given, **sweep.model_args)
        except UserError as error:
            raise UnknownModel(str(error)) from error

    def _load_tasks(self) -> dict[str, Any]:
        """What lm_eval loads: by name the `tasks`, none of which is a group, and the `groups`; drawn by its seeds."""
        import numpy as np
        import torch

        for seed, value in zip((random.seed, np.random.seed, torch.manual_seed), self.settings.seed, strict=False):
            if value is not None:
                seed(value)
        loaded = self.task_manager.load(self.settings.tasks)
        _check_samples(self.settings.samples or {}, loaded["tasks"], {*self.settings.tasks, *loaded["groups"]})
        _check_shots(self.settings.num_fewshot or 0, loaded["tasks"])
        return loaded

    @property
    def _asked_for(self) -> list[Any]:
        """Groups and tasks that are in no group."""
        inside = {name for children in self.tasks["group_map"].values() for name in children}
        everything = {**self.tasks["groups"], **self.tasks["tasks"]}
        return [entry for name, entry in everything.items() if name not in inside]

    def look(self, name: str) -> Look:
        """What is to be known of a variant before it is evaluated.

        Raises whatever a file of somebody else's makes a library raise.
        """
        from sae_lm_eval.runs.identity_record import variant_record
        from sae_lm_eval.splicing.model_edits import edited_bytes
        from sae_lm_eval.splicing.variants import build_variant

        wanted = self._wanted(self.variants[name])
        model, tokens = self.baseline.loaded.model, self.baseline.spliced.tokens
        if wanted.edit is not None:
            return Look({name: edited_bytes(model, wanted.edit)}, False, variant_record(wanted))
        adapter = None if wanted.adapter is None else self.baseline.loaded.adapter(wanted.adapter)
        build_variant(model, wanted.dictionaries, wanted.choices, tokens.special_ids, tokens.declared_special)
        sizes: dict[Hashable, int] = {} if adapter is None else {str(wanted.adapter): adapter.size}
        for key, dictionaries in self._dictionaries.items():
            tensors = {id(p): p for each in dictionaries for p in each.module.parameters()}  # layers share them
            sizes[key] = sum(p.numel() * p.element_size() for p in tensors.values())
        wants_bos = any(dictionary.prepend_bos for dictionary in wanted.dictionaries)
        return Look(sizes, wants_bos, variant_record(wanted, adapter))

    def variant(self, name: str) -> Any:
        """The model as that variant. Raises as `look` does."""
        return self.baseline.as_variant(self._wanted(self.variants[name]))

    def _wanted(self, request: VariantRequest) -> Any:
        """As the adapter takes it, a dictionary that several variants share loaded once."""
        from sae_lm_eval.dictionaries.loading import load_dictionaries
        from sae_lm_eval.splicing.arguments import dtype_of, requested_splices

        arguments = dict(request.arguments)
        dtype, factor = arguments.get("sae_dtype", "float32"), arguments.pop("norm_factor", None)
        dictionaries = []
        for source in request.sources:
            spec = source if isinstance(source, str) else id(source)
            key = (spec, dtype, factor, arguments.get("hook"))  # elsewhere it may be needed on another device
            if key not in self._dictionaries:
                self._dictionaries[key] = load_dictionaries(source, dtype=dtype_of(dtype), norm_factor=factor)
            dictionaries.extend(self._dictionaries[key])
        return requested_splices(**arguments, dictionaries=dictionaries)

    def forget(self) -> None:
        """Let go of dictionaries and adapters; the variants made of them must be out of use."""
        import torch

        self._dictionaries.clear()
        self.baseline.loaded.forget_adapters()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def joined(
        self, variants: Mapping[str, Any], journal: Journal, bos: bool, progress: Progress | None = None
    ) -> dict[str, Any]:
        """The baseline and `variants` by name, answered from the same forked passes."""
        from sae_lm_eval.harness.joined import joined

        models = joined(self.baseline, variants.values(), journal, bos=bos, progress=progress)
        return dict(zip((BASELINE, *variants), models, strict=True))

    def build_requests(self, task: Any) -> None:
        """What a task asks, as lm_eval asks it; the templates of chat models aside."""
        from lm_eval.evaluator_utils import get_sample_size

        task.build_all_requests(limit=get_sample_size(task, self.settings.limit), rank=0, world_size=1)

    def evaluate(self, name: str, lm: Any, **other: Any) -> dict[str, Any] | None:
        """lm_eval's results, with samples; None in any other process than the first. `other` wins over the settings."""
        import lm_eval

        s = self.settings
        arguments = self.variants[name].arguments if name in self.variants else {"splice": "none"}
        if arguments.keys() == {"peft"}:  # as lm_eval is asked for the model with its adapter alone
            arguments = {**arguments, "splice": "none"}
        own = {"batch_size": lm.batch_size_per_gpu} if name == AGAIN else {}
        given = {
            "tasks": s.tasks if s.check_integrity else self._asked_for,  # loaded once for all variants
            "model_args": object_texts({**self.model_args, **arguments}),
            "task_manager": self.task_manager,
            "log_samples": True,
            **{key: getattr(s, key) for key in PASSED},
            **{key: s.cache_requests.get(key, False) for key in CACHES},
            **dict(zip(SEEDS, s.seed, strict=True)),
            **own,
        }
        run_lm_eval: Any = lm_eval.simple_evaluate  # its decorator hides its parameters
        return run_lm_eval(model=lm, **{**given, **other})


def _check_shots(shots: int, tasks: Mapping[str, Any]) -> None:
    """Raise `UserError` where a task has fewer documents than examples are asked for."""
    for name, task in tasks.items():
        if not shots or task.config.num_fewshot == 0:  # which takes none, whatever is asked
            continue
        documents = task.fewshot_docs()
        if documents is None:
            continue
        # A list of a split decodes every document of it.
        count = len(documents) if isinstance(documents, Sized) else sum(1 for _ in documents)
        if count < shots:
            raise UserError(f"num_fewshot={shots}: {name} has {count:,} documents to take examples from.")


def _check_samples(samples: Mapping[str, Sequence[int]], tasks: Mapping[str, Any], requested: Collection[Any]) -> None:
    """Raise `UserError` where `samples` names none of the `tasks`, or a document that one does not have.

    `requested` has the names of groups and tags that the tasks were asked by.
    """
    check_sampled(samples, tasks, requested)
    for name, numbers in samples.items():
        count = len(tasks[name].eval_docs)
        if beyond := [number for number in numbers if not 0 <= number < count]:
            raise UserError(f"samples: {name} has no document {beyond[0]!r}: they run from 0 to {count - 1}.")
