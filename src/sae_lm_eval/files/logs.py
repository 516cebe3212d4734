"""Loggers below lm_eval's own, whose verbosity the user sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sae_lm_eval.files.escaping import printable


class _Printable(logging.Filter):
    """What a file of somebody else's puts into a message moves no cursor and changes no colour or direction."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


@contextmanager
def without(name: str, words: str) -> Iterator[None]:
    """Inside the scope the logger of that name leaves out messages that hold `words`."""
    logger, leave_out = logging.getLogger(name), lambda record: words not in record.getMessage()
    logger.addFilter(leave_out)
    try:
        yield
    finally:
        logger.removeFilter(leave_out)


def logger_of(module: str) -> logging.Logger:
    """The logger of a module of the package, by its `__name__`."""
    logger = logging.getLogger(f"lm_eval.{module}")
    logger.addFilter(_PRINTABLE)
    return logger


_PRINTABLE = _Printable()
