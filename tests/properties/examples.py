"""How the property tests choose examples: the same on every run, few enough for the quick tests."""

from hypothesis import HealthCheck, settings

few_examples = settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
