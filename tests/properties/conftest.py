"""The same examples on every run, few enough for the quick tests."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "properties",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("properties")
