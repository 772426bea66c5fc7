"""What all tests share: TensorFlow starts quietly, and warnings inside other packages are theirs."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure(config):
    for module in (r"keras\..*", r"tensorflow\..*", r"gast\..*", "google"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{module}")
