"""A baseline against variants, document by document, with intervals and tests."""
