"""Meshes of devices: what is known of a layout, and where state is placed."""
