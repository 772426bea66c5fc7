"""What all tests share: quiet TensorFlow, other packages' warnings left to them, and a cache folder for each test."""

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure(config):
    for module in (r"keras\..*", r"tensorflow\..*", r"gast\..*", "google"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{module}")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    "Not the user's, and not the one of another test."
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
