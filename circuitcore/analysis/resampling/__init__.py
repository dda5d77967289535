"""How sure a circuit is: the same category's circuits from scoring images drawn again.

Scoring images are drawn anew from a pool of training images, weights ranked anew, and as many
pruned as the circuit prunes.  Activations and gradients of the pool are computed once: a resample
costs one exact selection at one level.  Held are a byte a weight for the counts and one for the
mask; the resampled masks, bit-packed, go to scratch for their overlaps.

A weight is *core* where at least 95 % of the resamples keep it, *never* kept where at most 5 % do,
*contingent* between.  The mean overlap of the resampled circuits is the *ceiling* of every overlap
between categories.  *Certified* weights are kept by a majority of draws whichever images of the
pool are replaced (Certified Circuits, arXiv 2602.22968): see `statistics.least_count`.
"""
