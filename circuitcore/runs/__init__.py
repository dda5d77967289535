"""Runs on disk: the folder, the circuit files, tables, export."""
