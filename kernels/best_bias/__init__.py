"""`best_bias`: the bias that makes circuit substitution accuracy greatest."""
