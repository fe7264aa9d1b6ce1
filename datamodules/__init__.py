"""Data modules: where images and names come from. Knows no CLIP."""
