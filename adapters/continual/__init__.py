"""Limpet: continual."""
