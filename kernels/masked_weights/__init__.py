"""Weights of several levels of a nested sweep, masked in one launch."""
