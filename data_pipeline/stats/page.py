"""The page of `stats`: one self-contained HTML file with pictures of the worst assets."""

import base64
import contextlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from data_pipeline.contract import UserError
from data_pipeline.render.failures import REASONS
from data_pipeline.render.progress import span
from data_pipeline.render.rejected import strip_jpeg
from data_pipeline.staging import Digest, Staging
from data_pipeline.stats.summary import Summary, worst, worst_failures

TEMPLATE = "page.html.j2"


def write_page(path: Path, staging: Staging, digest: Digest, summary: Summary) -> None:
    """Write the page, all at once.

    Raises:
        UserError: the file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        title=staging.root.resolve().name,
        summary=summary,
        span=span,
        reasons=REASONS,
        failures={
            reason: [_failure(staging, record) for record in worst_failures(digest, reason)]
            for reason, _ in summary.failed.most_common()
        },
        slowest=[_finished(staging, *row) for row in worst(digest, "seconds")],
        largest=[_finished(staging, *row) for row in worst(digest, "rss_mb")],
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give html=FILE") from None


def _failure(staging: Staging, record: dict[str, Any]) -> dict[str, Any]:
    picture = staging.rejected_picture(record["uid"])
    return record | {"picture": _embedded(picture.read_bytes()) if picture.is_file() else None}


def _finished(staging: Staging, uid: str, figure: float) -> dict[str, Any]:
    jpeg = None
    with contextlib.suppress(UserError):  # gone since, or damaged: `verify` says so
        jpeg = strip_jpeg(staging.read(uid)["rgb.png"])
    return {"uid": uid, "figure": figure, "picture": _embedded(jpeg) if jpeg else None}


def _embedded(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
