"""What a run will cost, said before it: multiply-adds, memory, seconds on a device."""
