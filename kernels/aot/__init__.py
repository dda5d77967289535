"""Ahead-of-time compilation of every kernel, held to a budget of registers and instructions."""
