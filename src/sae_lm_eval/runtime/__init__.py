"""What touches the machine: journal, run folder, processes, progress, text files."""
