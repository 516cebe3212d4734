"""Where a dictionary reads and writes in a Hugging Face model, and the hooks that let it."""
