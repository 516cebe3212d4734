"""Numbers from and for other projects: SAEBench, delphi, the Hugging Face Hub, and a page of many runs."""
