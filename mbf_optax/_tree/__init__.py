"""Parameter trees: paths of their leaves, dtypes, and checks of what users pass in."""
