"""`score_conv`: scores of a convolution's weights."""
