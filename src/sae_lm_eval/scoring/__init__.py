"""Log-probabilities of the baseline and its variants, in one forked pass."""
