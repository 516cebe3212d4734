"""Loggers below lm_eval's own, whose verbosity the user sets."""

from __future__ import annotations

import logging

from sae_lm_eval.files.escaping import printable


class _Printable(logging.Filter):
    """What a file of somebody else's puts into a message moves no cursor and changes no colour or direction."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def logger_of(module: str) -> logging.Logger:
    """The logger of a module of the package, by its `__name__`."""
    logger = logging.getLogger(f"lm_eval.{module}")
    logger.addFilter(_PRINTABLE)
    return logger


_PRINTABLE = _Printable()
