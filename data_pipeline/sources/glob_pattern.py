"""Glob patterns over relative paths, `**` included; Python 3.11 has none that spans folders."""

import re

from data_pipeline.contract import UserError


def compile_glob(pattern: str) -> re.Pattern[str]:
    """Return what matches the relative paths (with `/`) that a pattern names.

    `*` and `?` stay within one name, `[a-c]` and `[!a-c]` are sets of characters, `**` spans any
    number of folders. A pattern without a slash is matched against the file's name at any depth.

    Raises:
        UserError: the pattern is empty, absolute, leaves the folder, or has an open bracket.
    """
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise UserError(f"source.glob={pattern!r} must be a pattern below source.root")
    pattern = pattern.removeprefix("./")
    text = pattern if "/" in pattern else f"**/{pattern}"
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", text)
    translated = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]", "": ""}
    out = []
    for part in parts:
        if part in translated:
            out.append(translated[part])
        elif part.startswith("[") and part.endswith("]"):
            inside = part[1:-1].replace("\\", r"\\")
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        elif "[" in part:
            raise UserError(f"source.glob={pattern!r} has an open bracket: close it")
        else:
            out.append(re.escape(part))
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise UserError(f"source.glob={pattern!r} is no pattern: {error}") from error
