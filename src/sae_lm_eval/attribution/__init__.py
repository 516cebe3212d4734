"""Where and how the errors of dictionaries make their effects known."""
