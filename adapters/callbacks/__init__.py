"""Limpet: callbacks."""
