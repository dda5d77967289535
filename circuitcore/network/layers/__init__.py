"""The layers that networks are made of: how each is read, runs and is compacted, in one table."""
