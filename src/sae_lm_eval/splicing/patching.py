"""Another method of a module, for a scope."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def instead(module: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Inside the scope, a method of a module is another one."""
    had = module.__dict__.get(name)
    setattr(module, name, method)
    try:
        yield
    finally:
        if had is None:
            delattr(module, name)
        else:
            setattr(module, name, had)
