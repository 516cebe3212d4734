"""What a command sees of a terminal, for those that are run without one."""


def terminal(columns: int) -> dict[str, str]:
    """The environment of a terminal of so many columns, which shows text alone."""
    return {"TTY_COMPATIBLE": "1", "TERM": "dumb", "COLUMNS": str(columns), "LINES": "25"}
