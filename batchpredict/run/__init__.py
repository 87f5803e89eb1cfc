"""The work: read, score, write, publish."""
