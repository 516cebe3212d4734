"""Which registered dictionaries there are, and whether they can be spliced; no weights."""
