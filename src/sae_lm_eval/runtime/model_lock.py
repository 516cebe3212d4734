"""One lock for each loaded model: hooks, caches and batches are the model's, whoever asks it."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def lock_of(model: Any) -> Any:
    """The lock of a model object, the same for all who hold the object; the thread that has it may take it again."""
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())
