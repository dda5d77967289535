"""Device kernels: one operation a file, its reference beside it."""
