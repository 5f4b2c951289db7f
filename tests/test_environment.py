"""The installed environment is one that works."""

from importlib import metadata


def test_exactly_one_distribution_provides_tensorflow_probability():
    # tensorflow-probability and tfp-nightly share the module and corrupt each other.
    providers = set(metadata.packages_distributions()["tensorflow_probability"])
    assert len(providers) == 1, f"{sorted(providers)} overwrite each other"


def test_the_distribution_never_asks_for_tensorflow_probability_itself():
    required = metadata.requires("elk-ssm")
    assert any(line.startswith("dynamax>=1.0.3") for line in required)
    assert not any(line.startswith("tensorflow-probability") for line in required)
