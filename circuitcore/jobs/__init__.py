"""Whole runs: one process, worker processes, a cluster."""
