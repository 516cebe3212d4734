"""What checks annotations while tests run; an int serves where a float is annotated, as type checkers have it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
