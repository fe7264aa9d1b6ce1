"""Limpet: tasks."""
