"""Tests of how parameter trees are read."""
