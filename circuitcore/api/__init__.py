"""What a researcher writes, and what the command line stands on: verbs, runs, circuits, tables."""
