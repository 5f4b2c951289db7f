"""Profiles of hypothesis: `HYPOTHESIS_PROFILE=long` draws anew and more."""

import os

from hypothesis import HealthCheck, settings

# A case may compile for seconds, which no deadline or health check expects.
_PLAIN = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile(
    "ci", derandomize=True, max_examples=40, database=None, **_PLAIN
)
settings.register_profile("long", max_examples=1_000, print_blob=True, **_PLAIN)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
