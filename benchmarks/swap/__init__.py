"""Adam swapped for ``mbf_adam``, and for its rivals, with nothing else changed."""
