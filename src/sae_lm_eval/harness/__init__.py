"""lm_eval's plugin: the model `sae_hf` and the task `sae_fidelity`."""
