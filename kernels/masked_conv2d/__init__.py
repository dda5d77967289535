"""`masked_conv2d`: a convolution under many masks."""
