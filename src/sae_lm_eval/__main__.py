"""`python -m sae_lm_eval`, which `accelerate launch -m sae_lm_eval run ...` starts in several processes."""

from sae_lm_eval.cli.main import main

if __name__ == "__main__":
    main()
