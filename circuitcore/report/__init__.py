"""The report: one HTML page and its figures."""
