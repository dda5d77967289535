"""The command line of circuitcore: parse, call, print."""
