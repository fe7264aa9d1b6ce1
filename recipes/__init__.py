"""Packaged recipes (YAML). This file makes them package data."""
