"""`score_linear`: scores of a Linear layer's weights."""
