"""The `limpet` command."""


def main() -> None:
    """Entry point."""
    raise SystemExit(2)
