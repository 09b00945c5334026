"""The ways in which an asset can fail. Standard library only: shared with the Blender workers."""

REASONS = {
    "unreadable": "the file is missing, truncated, or not what its name says",
    "unsupported": "a file format, or a required glTF extension, that Blender cannot import",
    "empty": "nothing in it has a surface",
    "too_large": "more bytes or faces than a worker is allowed",
    "missing_texture": "an image that its materials need is not there",
    "timeout": "not done within timeout_s",
    "oom": "more memory than rss_limit_mb, or than the machine had",
    "crash": "the worker died or met an unexpected error",
    "blank": "no view shows any of it, or all of one colour",
    "nonfinite": "a vertex or a result is NaN or infinite",
    "clipped": "it reaches over the border of a view",
}
"""Name of each failure class, and what it means."""

TRANSIENT = frozenset({"timeout", "oom", "crash"})
"""Failures that may lie with the machine: tried again, `max_attempts` times in all."""


class AssetFailure(Exception):  # noqa: N818 - an outcome of an asset, not an error of the program
    """An asset that cannot become a sample.

    Args:
        reason: one of `REASONS`.
        message: one line that says what is wrong with this asset.
    """

    def __init__(self, reason: str, message: str):
        if reason not in REASONS:
            raise ValueError(f"unknown failure reason {reason!r}")
        super().__init__(message)
        self.reason = reason
        self.message = " ".join(message.split())[:500]
