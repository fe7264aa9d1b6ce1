"""Limpet: assets."""
