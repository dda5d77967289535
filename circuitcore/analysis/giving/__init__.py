"""Circuits given away: files that plain torch or another runtime loads, each tried and told of."""
