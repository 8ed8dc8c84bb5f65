"""Committed tuning records, one folder of JSON-lines files per target."""
