"""A network's first convolution, straight from the bytes of its images."""
