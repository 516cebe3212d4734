"""The edge to files of somebody else's: read once, through a schema, into values with types."""
