"""`python -m sae_lm_eval`, which `accelerate launch -m sae_lm_eval run ...` starts in several processes."""

import sys

from sae_lm_eval.runtime.host_memory import TOLD, is_out_of_memory


def start() -> None:
    """Run the command, or tell in a sentence that there is not even memory to read it."""
    try:
        from sae_lm_eval.cli.main import main
    except (MemoryError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"sae-lm-eval: {TOLD}", file=sys.stderr)
        raise SystemExit(2) from None
    main()


if __name__ == "__main__":
    start()
