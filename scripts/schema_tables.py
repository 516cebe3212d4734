"""Write the tables of docs/schema.md from the package's JSON Schemas.

python scripts/schema_tables.py
"""

from pathlib import Path

from sae_lm_eval import schema

PAGE = Path(__file__).parents[1] / "docs" / "schema.md"
INTRODUCTION = f"""# What the files hold

The package writes seven kinds of data. Each has a version, {schema.VERSION} at present, and a JSON Schema
(draft 2020-12) in `src/sae_lm_eval/schemas`, which comes with the package:

```python
from sae_lm_eval.schema import VERSION, schema

schema("results")  # or "run", "drops", "fidelity", "equivalents", "scores", "documents"
```

A record without a version has version 1. The package also reads older versions, and says what they lack where it
matters: version 1 lacks {schema.lacking(1)}. It refuses newer versions than its own. Fields are added, renamed or given
another meaning only with a new version. Readers should ignore fields that they do not know. An undefined value is null,
or an empty cell of a CSV.

The tables below are made from the schemas: `python scripts/schema_tables.py`.
"""


def page() -> str:
    parts = [INTRODUCTION]
    for name in schema.NAMES:
        held = schema.schema(name)
        parts.append(f"## {held['title']}\n\n{held['description']}\n\n{schema.schema_table(name)}\n")
        for what, definition in held.get("$defs", {}).items():
            parts.append(f"### {what}\n\n{definition['description']}\n\n{schema.schema_rows(definition)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
