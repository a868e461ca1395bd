"""The version of the package, and of the state that it keeps."""

__version__ = "0.2.0"
