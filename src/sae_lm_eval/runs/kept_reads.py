"""What was read of many small files, kept in the user's cache folder until a file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lm_eval.files.reading import at_home

PREFIX = "tasks_"
Keys = dict[str, Any]


class KeptReads:
    """What `read` makes of a file at a path, read once for as long as neither the file nor `key` changes.

    Raises as `read` does; a file that it refuses is not kept. Without a cache folder nothing is. What was kept under
    another key is removed.
    """

    def __init__(self, read: Callable[[str], Keys], key: str):
        cache = at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        self._place = cache / "sae_lm_eval" / f"{PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        self._read = read
        self._kept = _load(self._place)
        self._asked: dict[str, list[Any]] = {}  # by path: when it was modified, its bytes, what was read of it

    def __call__(self, path: str) -> Keys:
        entry = self._asked.get(path)
        if entry is None:
            stat = os.stat(path)
            entry = self._kept.get(path)
            if entry is None or entry[:2] != [stat.st_mtime_ns, stat.st_size]:
                entry = [stat.st_mtime_ns, stat.st_size, self._read(path)]
            self._asked[path] = entry
        return entry[2]

    def save(self) -> None:
        """Write what was asked, if it is not what was kept."""
        if self._asked == self._kept or not self._place.is_absolute():
            return
        content = json.dumps({path: held for path, held in self._asked.items() if _is_same_in_json(held)}).encode()
        digest = hashlib.sha256(content).hexdigest().encode()
        # Without a folder to write to, the files are read again the next time.
        with contextlib.suppress(OSError):
            self._place.parent.mkdir(parents=True, exist_ok=True)
            number, unfinished = tempfile.mkstemp(dir=self._place.parent)
            try:
                with open(number, "wb") as opened:
                    opened.write(digest + b"\n" + content)
                os.replace(unfinished, self._place)
            except BaseException:
                os.unlink(unfinished)
                raise
            for other in self._place.parent.glob(f"{PREFIX}*.json"):
                if other != self._place:
                    other.unlink(missing_ok=True)


def _load(place: Path) -> dict[str, list[Any]]:
    """What was saved; nothing where a byte of it has changed, or the folder is that of nobody."""
    if not place.is_absolute():
        return {}
    with contextlib.suppress(OSError, ValueError):
        digest, content = place.read_bytes().split(b"\n", 1)
        if hashlib.sha256(content).hexdigest().encode() == digest:
            return json.loads(content)
    return {}


def _is_same_in_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False
