"""Pages that hold everything within themselves: no script, no font, no address of another host."""

import os
import shlex
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def write_page(template: str, path: Path, **content: Any) -> None:
    """Render a template with the house style and write it, complete or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["shell"] = shlex.quote
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    write_text(path, environment.get_template(template).render(style=style, **content))


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # shards write side by side
    partial.write_bytes(content)
    os.replace(partial, path)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: `0.4 s`, `38 s`, `2 min 05 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
