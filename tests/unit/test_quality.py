"""Every detector of quality is tripped by a fault of its own, and by nothing in a sound view."""

import math

import numpy as np
import pytest

from data_pipeline.contract import QaLimits, view_layout
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.quality import judge, summarise, view_figures

RESOLUTION_PX = 128


def ball_view() -> dict:
    """Return a coloured ball of radius 0.4, seen from az000: images of all that `measure` needs."""
    camera = view_layout("ortho6")[0]
    origins, directions = camera.rays(RESOLUTION_PX)
    along = (origins * directions).sum(-1)
    inside = 0.4**2 - (origins**2).sum(-1) + along**2
    hit = inside > 0
    distance = -along - np.sqrt(np.where(hit, inside, 0.0))
    position = np.where(hit[..., None], origins + distance[..., None] * directions, 0.0)
    rgb = np.where(hit[..., None], (position + 0.5) * 255.0, 0.0).astype(np.uint8)
    return {
        "camera": camera,
        "resolution_px": RESOLUTION_PX,
        "corner": (0, 0),
        "rgb": rgb,
        "alpha": hit.astype(np.uint8) * 255,
        "hit": hit,
        "position": position,
        "normal": position / 0.4,
    }


def measure(view: dict) -> dict:
    images = {key: value for key, value in view.items() if key not in ("position", "normal")}
    hit = view["hit"]
    return view_figures(**images, points=view["position"][hit], normals=view["normal"][hit])


def flags(view: dict, missing: tuple[str, ...] = ()) -> list[str]:
    figures = measure(view) | {"depth_error": 0.0}
    return judge(summarise([figures], missing), QaLimits())


def test_a_sound_ball_trips_nothing():
    assert flags(ball_view()) == []


def test_a_window_measures_what_the_whole_image_measures():
    view = ball_view()
    whole = measure(view)
    window = slice(10, 120)
    cut = {key: value[window, window] for key, value in view.items() if np.ndim(value) >= 2}
    assert measure(view | cut | {"corner": (10, 10)}) == whole


def blank(view: dict) -> None:
    view["hit"][:] = False


def at_the_border(view: dict) -> None:
    view["alpha"][40, 0] = 255


def outside_the_cube(view: dict) -> None:
    view["position"][64, 64, 1] = -0.6


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(blank, "blank"), (at_the_border, "clipped"), (outside_the_cube, "clipped")],
)
def test_a_worthless_view_fails_the_asset(fault, reason):
    view = ball_view()
    fault(view)
    with pytest.raises(AssetFailure) as caught:
        flags(view)
    assert caught.value.reason == reason


def test_a_missing_texture_fails_the_asset_by_name():
    with pytest.raises(AssetFailure, match=r"wood\.png") as caught:
        flags(ball_view(), ("wood.png",))
    assert caught.value.reason == "missing_texture"


def test_a_nan_fails_the_asset():
    view = ball_view()
    view["position"][64, 64, 0] = math.nan
    with pytest.raises(AssetFailure) as caught:
        flags(view)
    assert caught.value.reason == "nonfinite"


def one_colour(view: dict) -> None:
    view["rgb"][:] = 77


def pink(view: dict) -> None:
    view["rgb"][:, :64] = (255, 0, 255)


def normals_away(view: dict) -> None:
    view["normal"][60:] *= -1.0


def shifted_positions(view: dict) -> None:
    view["position"][..., 0] += np.where(view["hit"], 0.1 * 1.1 / RESOLUTION_PX, 0.0)


def tilted_normals(view: dict) -> None:
    """40 degrees about Z: none opposed to the surface, and hardly any turned away."""
    angle = math.radians(40.0)
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    view["normal"] = view["normal"] @ turn.T


@pytest.mark.parametrize(
    ("fault", "flag"),
    [
        (one_colour, "single_colour"),
        (pink, "pink"),
        (normals_away, "normals_away"),
        (normals_away, "normal_flips"),
        (shifted_positions, "reprojection"),
        (tilted_normals, "normal_angle"),
    ],
)
def test_a_doubtful_view_is_flagged(fault, flag):
    view = ball_view()
    fault(view)
    assert flag in flags(view)
