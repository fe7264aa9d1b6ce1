"""Limpet adapts a frozen CLIP to your own images by training something small beside it."""
