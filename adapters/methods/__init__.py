"""Limpet: methods."""
