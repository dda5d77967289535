"""How levels run: what categories share, executors, passes, memory."""
