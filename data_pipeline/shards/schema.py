"""What the members of a sample are: kind of file, type of number, shape. Read from one sample."""

import io
import json
from typing import Any

import cv2
import numpy as np


def describe_members(members: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return, by member name, its `encoding` and, for arrays, `dtype` and `shape`.

    The shape of images is `(v, h, w)` or `(v, h, w, c)` if meta.json lists the cameras, else that
    of the strip.
    """
    meta = json.loads(members["meta.json"]) if "meta.json" in members else {}
    num_views = len(meta.get("cameras", ())) if isinstance(meta, dict) else 0
    return {name: _describe(name, members[name], num_views) for name in sorted(members)}


def _describe(name: str, content: bytes, num_views: int) -> dict[str, Any]:
    suffix = name.rpartition(".")[2]
    if suffix == "png":
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise ValueError(f"{name} is no readable PNG")
        shape = list(image.shape)
        if num_views and shape[0] % num_views == 0:
            shape[:1] = [num_views, shape[0] // num_views]
        return {"encoding": "png", "dtype": str(image.dtype), "shape": shape}
    if suffix == "npz":
        with np.load(io.BytesIO(content)) as stored:
            arrays = {key: _of_array(stored[key]) for key in sorted(stored.files)}
        return {"encoding": "npz", "arrays": arrays}
    if suffix == "npy":
        return {"encoding": "npy", **_of_array(np.load(io.BytesIO(content)))}
    return {"encoding": "json" if suffix == "json" else "bytes"}


def _of_array(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape)}
