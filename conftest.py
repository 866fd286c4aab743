"""How much the tests draw: a quick run, which is the default, and a full one, by `--full`."""

import gc
import os

import hypothesis

# To look for cycles among all that PyTorch and its tools have loaded takes a twentieth of the time, where it is done as
# often as Python does by itself.
gc.set_threshold(50_000, 20, 20)

# What continuous integration says must depend on no draw and no clock; everywhere else every run draws anew.
REPEATABLE = bool(os.environ.get("CI") or os.environ.get("TDCOMPRESS_CI"))
hypothesis.settings.register_profile("quick", max_examples=10, deadline=None, derandomize=REPEATABLE)
hypothesis.settings.register_profile("full", max_examples=100, deadline=None, derandomize=REPEATABLE)
hypothesis.settings.load_profile("quick")


def pytest_addoption(parser):
    """The options `--full` and `--rest`."""
    parser.addoption("--full", action="store_true", help="every example and every combination; `make test-full`")
    parser.addoption("--rest", action="store_true", help="of --full, only what is more than the quick tests")


def pytest_configure(config):
    """Draw as many examples as were asked for."""
    if config.option.full or config.option.rest:
        hypothesis.settings.load_profile("full")


def pytest_sessionfinish():
    """Look once for cycles that end badly, where pytest would look five times and Python once more, for seconds."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Mark what starts a Dask cluster, and leave `full` to full runs, unless it is asked for by its name or by `-m`.

    What is more than the quick tests is what is marked `full`, and what draws more examples.
    """
    for item in items:
        if "dask" in getattr(item, "fixturenames", ()):
            item.add_marker("dask")
    if config.option.rest:
        _keep(config, items, lambda item: _only_full(item) or hypothesis.is_hypothesis_test(getattr(item, "obj", None)))
    elif not config.option.full and "full" not in config.option.markexpr and all("::" not in a for a in config.args):
        _keep(config, items, lambda item: not _only_full(item))


def _only_full(item):
    return item.get_closest_marker("full") is not None


def _keep(config, items, wanted):
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]
