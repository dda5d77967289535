"""Verbs about speed: profiles of sweeps, and benchmarks that are compared."""
