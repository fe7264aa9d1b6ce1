"""Benchmarks of the field, one short file each."""
