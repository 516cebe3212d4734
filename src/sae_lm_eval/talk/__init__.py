"""The baseline and its variants side by side: what they write, and where in a text a splice hurts."""
