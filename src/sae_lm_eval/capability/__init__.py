"""How much of the training a capability that was lost was worth: scores of a family on the tasks of a run."""
