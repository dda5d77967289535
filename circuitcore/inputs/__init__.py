"""All that comes from outside: models, weights, images and what they are called."""
