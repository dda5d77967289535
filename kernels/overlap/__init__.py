"""`overlap_counts`: what pairs of masks share."""
