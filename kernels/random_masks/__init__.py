"""Random masks of given sizes, drawn by a hash."""
