"""Write tests/data/saebench_core.json: names, types and what is required in SAEBench's JSON Schema of its eval core.

    pip download --no-deps sae-bench==0.6.0 && unzip sae_bench-0.6.0-*.whl
    python scripts/saebench_fields.py sae_bench/evals/core/eval_output_schema_core.json

Its texts are left out: the package states no licence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "tests" / "data" / "saebench_core.json"
SOURCE = "names, types and required fields of eval_output_schema_core.json in sae_bench 0.6.0 (PyPI)"
TEXTS = ("title", "description", "default", "ui_default_display")


def fields(schema: Any) -> Any:
    """A schema without its texts; what is called like one among properties stays."""
    if isinstance(schema, list):
        return [fields(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in TEXTS}
    return {
        key: {name: fields(subschema) for name, subschema in value.items()}
        if key in ("properties", "$defs")
        else fields(value)
        for key, value in kept.items()
    }


if __name__ == "__main__":
    published = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    TARGET.write_text(json.dumps({"$comment": SOURCE, **fields(published)}, indent=1) + "\n", encoding="utf-8")
