"""How much the tests draw: a quick run, which is the default, and a full one, by `--full`."""

import os

import hypothesis

# What continuous integration says must depend on no draw and no clock; everywhere else every run draws anew.
REPEATABLE = bool(os.environ.get("CI") or os.environ.get("TDCOMPRESS_CI"))
hypothesis.settings.register_profile("quick", max_examples=10, deadline=None, derandomize=REPEATABLE)
hypothesis.settings.register_profile("full", max_examples=100, deadline=None, derandomize=REPEATABLE)
hypothesis.settings.load_profile("quick")


def pytest_addoption(parser):
    """The option `--full`."""
    parser.addoption("--full", action="store_true", help="every example and every combination; `make test-full`")


def pytest_configure(config):
    """Draw as many examples as were asked for."""
    if config.option.full:
        hypothesis.settings.load_profile("full")


def pytest_collection_modifyitems(config, items):
    """Mark what starts a Dask cluster, and leave `full` to full runs, unless it is asked for by its name or by `-m`."""
    for item in items:
        if "dask" in getattr(item, "fixturenames", ()):
            item.add_marker("dask")
    if config.option.full or "full" in config.option.markexpr or any("::" in name for name in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]
