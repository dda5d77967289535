"""Who is at work on a run, how far it is, and what was counted so far."""
