"""Property tests draw the same examples on every machine and take as long as they take."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "exact", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)
settings.load_profile("exact")
