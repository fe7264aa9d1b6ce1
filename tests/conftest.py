"""Options and fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "parity" / "golden"),
        help="folder of golden cases, NAME/NAME.json and NAME/NAME.safetensors",
    )


@pytest.fixture(scope="session")
def tiny():
    """The embedded backbone, loaded once; treat it as read-only."""
    from limpet.backbone import FrozenClip

    return FrozenClip.load("limpet-tiny")
