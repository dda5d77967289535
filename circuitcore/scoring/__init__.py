"""Scores of weights, and the levels that follow from them."""
