"""Contact sheets: pictures in their order, as one PNG and as a page that needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files

SHOWN = 240  # pictures on a sheet; of more, as many are taken at equal steps
_CELL, _TEXT, _ACROSS = 112, 30, 10
STYLE = """:root{color-scheme:light dark;--paper:#fff;--ink:#1d2429;--soft:#5b6871;--line:#d9e0e4;--card:#f0f3f5;--bad:#b00020}
@media (prefers-color-scheme:dark){:root{--paper:#14191d;--ink:#e6ecef;--soft:#9fadb6;--line:#303a41;--card:#1c2328;--bad:#ef8e78}}
body{font-family:system-ui,sans-serif;margin:2rem;max-width:76rem;color:var(--ink);background:var(--paper)}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line)}td:first-child,th:first-child{text-align:left}
.sheet{display:flex;flex-wrap:wrap;gap:.5rem}figure{margin:0;width:7rem;font-size:.72rem;overflow-wrap:anywhere}
figure img{width:7rem;height:7rem;object-fit:contain;background:var(--card)}figcaption b{font-size:.85rem}.bad b{color:var(--bad)}
p.note{color:var(--soft)}"""


@dataclass(frozen=True)
class Picture:
    """One picture on a sheet: its place in the order, its path, two short lines, and whether it is a mistake."""

    rank: int
    path: str
    title: str
    below: str = ""
    mistake: bool = False


def some(pictures: Sequence[Picture], most: int = SHOWN) -> list[Picture]:
    """At most `most` of them at equal steps, the first and the last included."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[round(i * (len(pictures) - 1) / (most - 1))] for i in range(most)]


def png(pictures: Sequence[Picture], find: Callable[[str], Any], target: Path, heading: str) -> None:
    """Write a sheet, left to right and top to bottom.

    Args:
        pictures: in their order.
        find: a path's PIL image, or None where it cannot be had.
        target: the PNG file.
        heading: a line above the pictures.
    """
    from PIL import Image, ImageDraw

    chosen = some(pictures)
    across = min(_ACROSS, max(len(chosen), 4))
    down = -(-len(chosen) // across)
    sheet = Image.new("RGB", (across * _CELL + 8, down * (_CELL + _TEXT) + 32), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 10), _plain(heading), fill=(30, 30, 30))
    for n, picture in enumerate(chosen):
        x, y = 8 + n % across * _CELL, 32 + n // across * (_CELL + _TEXT)
        image = _small(find, picture.path, _CELL - 8)
        if image is not None:
            sheet.paste(image, (x + (_CELL - 8 - image.width) // 2, y + (_CELL - 8 - image.height) // 2))
        else:
            draw.rectangle((x, y, x + _CELL - 9, y + _CELL - 9), outline=(180, 180, 180))
        colour = (176, 0, 32) if picture.mistake else (30, 30, 30)
        draw.text((x, y + _CELL - 7), _plain(f"{picture.rank}. {picture.title}")[:18], fill=colour)
        draw.text((x, y + _CELL + 5), _plain(picture.below)[:18], fill=(110, 110, 110))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    files.write_bytes(target, buffer.getvalue())


def page(title: str, sections: Sequence[tuple[str, str, Sequence[Picture]]], find: Callable[[str], Any], head: str = "") -> str:
    """A page with a sheet for each section.

    Args:
        title: of the page.
        sections: (heading, sentence below it, pictures in their order).
        find: a path's PIL image, or None.
        head: HTML that stands above the sections.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", head]
    for heading, sentence, pictures in sections:
        chosen = some(pictures)
        left = f" Of {len(pictures)} images {len(chosen)} are shown, at equal steps." if len(chosen) < len(pictures) else ""
        parts.append(f"<h2>{html.escape(heading)}</h2><p class=note>{html.escape(sentence + left)}</p><div class=sheet>")
        parts += [_figure(picture, find) for picture in chosen]
        parts.append("</div>")
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _figure(picture: Picture, find: Callable[[str], Any]) -> str:
    image = _small(find, picture.path, 160)
    shown = ""
    if image is not None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    kind = ' class="bad"' if picture.mistake else ""
    words = f"<b>{picture.rank}. {html.escape(picture.title)}</b><br>{html.escape(picture.below)}"
    name = html.escape(Path(picture.path).name or picture.path)
    return f'<figure{kind} title="{html.escape(picture.path)}">{shown}<figcaption>{words}<br>{name}</figcaption></figure>'


def _small(find: Callable[[str], Any], path: str, size: int) -> Any:
    try:
        image = find(path)
        if image is None:
            return None
        image = image.convert("RGB")
        image.thumbnail((size, size))
    except (OSError, ValueError, SyntaxError, MemoryError):
        return None
    return image


def _plain(text: str) -> str:
    """Text that the small built-in font can draw."""
    return text.encode("ascii", "replace").decode()
