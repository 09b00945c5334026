"""The command `stats`."""

import json
import os
import tempfile
from pathlib import Path

from data_pipeline.contract import UserError
from data_pipeline.render.failures import REASONS
from data_pipeline.render.progress import span
from data_pipeline.staging import Staging
from data_pipeline.staging.digest import SAVE_AFTER_RECORDS
from data_pipeline.stats.page import write_page
from data_pipeline.stats.summary import Summary, summarise


def print_stats(staging_root: Path, style: str, html: Path | None = None) -> None:
    """Print the states of a staging folder's assets, and write a page with pictures.

    Args:
        staging_root: the folder.
        style: `text`, a table; `json`, one object.
        html: where the page goes; `stats.html` in the staging folder by default.

    Raises:
        UserError: there is no such folder or style, or the page cannot be written.
    """
    if style not in ("text", "json"):
        raise UserError(f"format={style} is not known: choose text or json")
    if not staging_root.is_dir():
        raise UserError(f"{staging_root} is no staging folder: render into it first")
    staging = Staging(staging_root)
    staging.render_record()  # refuses a folder that is none
    digest = staging.digest()
    summary = summarise(staging, digest)
    is_writable = os.access(staging_root, os.W_OK)
    if digest.num_unsaved > SAVE_AFTER_RECORDS and is_writable:
        with tempfile.TemporaryDirectory(dir=staging_root, prefix=".stats-") as scratch:
            digest.save(Path(scratch))
    page = html or (staging_root / "stats.html" if is_writable else None)
    if page is not None:
        write_page(page, staging, digest, summary)
    if style == "json":
        print(json.dumps(summary.to_json(), ensure_ascii=False))
    else:
        print(table(summary))
        print(f"pictures of the worst: {page or 'the folder is read-only: give html=FILE'}")


def table(summary: Summary) -> str:
    """Return the counts by state, with a few uids and what each reason means."""
    total, expected = len(summary.states), summary.expected
    lines = [f"{'total':16}{total:9}", f"{'done':16}{summary.num_done:9}"]
    for reason, count in summary.failed.most_common():
        uids = [uid for uid, state in summary.states.items() if state == reason][:3]
        more = ", ..." if count > 3 else ""
        lines.append(f"{reason:16}{count:9}   {REASONS.get(reason, '')}: {', '.join(uids)}{more}")
    if expected is not None and expected > total:
        lines.append(f"{'not yet tried':16}{expected - total:9}   of {expected} in the source")
    if summary.num_to_retry:
        lines.append(f"{'to be retried':16}{summary.num_to_retry:9}")
    if summary.rate:
        left = f", {span(summary.eta_s)} left" if summary.eta_s else ""
        lines.append(f"{'rate':16}{summary.rate:9.2f}   assets a second lately{left}")
    for name, unit in (("seconds", "s"), ("rss_mb", "MB")):
        if values := getattr(summary, name):
            spread = ", ".join(f"{key} {value:.1f}" for key, value in values.items())
            lines.append(f"{name:16}{'':9}   {spread} {unit}")
    if summary.num_damaged:
        lines.append(f"{'damaged lines':16}{summary.num_damaged:9}   of the ledger, left out")
    return "\n".join(lines)
