"""The commands: arguments and printing."""
