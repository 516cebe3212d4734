"""What results call the metrics of a dictionary, and why a variant may have none. Neither torch nor lm_eval."""

# By dictionary, over the positions where it was spliced in.
DICTIONARY_METRICS = ("l0", "fvu", "explained_variance", "cosine", "norm_ratio", "fraction_fired")
# Modes of a splice that put something in the place of the activations that is made without the dictionary.
WITHOUT_DICTIONARY = ("zero", "mean")
NO_DICTIONARY = "the mode is {}, so no dictionary is in the model"
# What is counted of latents.
OF_LATENTS = ("l0", "fraction_fired")
NO_LATENTS = "what is spliced in has no latents"
