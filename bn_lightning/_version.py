"""The version, read by the build and by the results that studies write."""

__version__ = "0.1.0"
