"""What is in the folder of a run, times aside."""

from __future__ import annotations

import json
import re
from pathlib import Path

# Keys of lm_eval's results that hold when and where it ran; `pretty_env_info` has the clock rate of the CPU.
TIMES = ("date", "start_time", "end_time", "total_evaluation_time_seconds", "git_hash", "pretty_env_info")
STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d+|\d{4}-\d\d-\d\d \d\d:\d\d")
# Files that hold nothing but times or depend on them, what libraries said, and the lock.
ASIDE = ("run.log", ".lock", ".pace.json", "digests.json")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file below `folder`, by its path, without times."""
    out = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name in ASIDE:
            continue
        name = STAMP.sub(b"TIME", path.relative_to(folder).as_posix().encode()).decode()
        content = path.read_bytes()
        if path.name.startswith("results_"):
            results = {key: value for key, value in json.loads(content).items() if key not in TIMES}
            content = json.dumps(results).encode()
        out[name] = STAMP.sub(b"TIME", content)
    return out
