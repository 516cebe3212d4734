"""Every place where lm_eval itself is changed for the process, beside the start-up hook and the fidelity task's errors.

What each of them relies on is guarded by a test.
"""

from __future__ import annotations

import functools
from typing import Any

import lm_eval.utils
import torch.utils.collect_env
from lm_eval.api.model import CachingLM
from lm_eval.api.task import Task

CACHED = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def compile_templates_once() -> None:
    """lm_eval compiles a template anew for every document that it fills in, which takes longer than filling it in."""
    environment: Any = lm_eval.utils.env
    environment.from_string = functools.lru_cache(maxsize=1024)(environment.from_string)


def look_at_the_machine_once() -> None:
    """lm_eval asks torch about the machine after every evaluation, which starts pip and nvidia-smi each time."""
    torch.utils.collect_env.get_pretty_env_info = functools.cache(torch.utils.collect_env.get_pretty_env_info)


def ask_for_the_table_each_time() -> None:
    """`--use_cache` keeps answers by their prompts: at each call an adapter of ours says whose table they are in."""
    theirs = CachingLM.__getattr__

    def __getattr__(self: CachingLM, attr: str) -> Any:
        attribute = theirs(self, attr)
        if attr not in CACHED or not hasattr(type(self.lm), "in_its_table"):
            return attribute

        @functools.wraps(attribute)
        def in_table(*args: Any, **kwargs: Any) -> Any:
            lm: Any = self.lm
            with lm.in_its_table(self.dbdict):
                return attribute(*args, **kwargs)

        return in_table

    CachingLM.__getattr__ = __getattr__


def say_who_asks() -> None:
    """A request of lm_eval's knows its document and the name of its task; ours knows the task, as `asked_by`."""
    theirs = Task.build_all_requests

    @functools.wraps(theirs)
    def build_all_requests(self: Any, *args: Any, **kwargs: Any) -> None:
        theirs(self, *args, **kwargs)
        for request in self.instances:
            request.asked_by = self

    Task.build_all_requests = build_all_requests


def apply() -> None:
    """Once for the process."""
    compile_templates_once()
    look_at_the_machine_once()
    ask_for_the_table_each_time()
    say_who_asks()


apply()
