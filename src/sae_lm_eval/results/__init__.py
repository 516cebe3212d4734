"""The results that lm_eval wrote, read from its folders."""
