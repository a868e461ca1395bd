"""The version of the package, and of the state that it keeps."""

__version__ = "0.1.0"
