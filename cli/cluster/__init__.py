"""The verbs that spread a run over machines and watch it, and what watching shows."""
