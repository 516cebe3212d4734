"""How far a variant moves from the baseline on running text: losses, divergences, ablations, L0."""
