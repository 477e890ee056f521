"""How many inputs: a fixed few in `make test`, always the same; ten thousand new ones in `make fuzz`."""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=40, derandomize=True, database=None, **COMMON)
settings.register_profile("many", max_examples=1200, print_blob=True, **COMMON)
settings.load_profile("few")
