"""What a run takes of the machine: device, memory, scratch files, chunks, profiler ranges."""
