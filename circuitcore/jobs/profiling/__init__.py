"""Where a sweep's time goes: traces are recorded, read, and attributed to stages and layers."""
