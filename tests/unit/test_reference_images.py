"""Pictures from anywhere become what the denoiser was trained on."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.contract import UserError
from modules.pipelines.reference_images import fit_reference, images_digest, read_references

WHITE, RED = torch.ones(3), torch.tensor([1.0, -1.0, -1.0])


def load(path, image, side_px=24, **options):
    image.save(path, **options)
    [read] = read_references(path)
    return fit_reference(read, side_px)


def test_a_photo_is_kept_whole_and_padded_with_white_to_a_square(tmp_path):
    fitted = load(tmp_path / "a.png", Image.new("RGB", (40, 20), "red"))
    assert fitted.shape == (3, 24, 24)
    torch.testing.assert_close(fitted[:, 12, 0], RED)
    torch.testing.assert_close(fitted[:, 12, 23], RED)
    torch.testing.assert_close(fitted[:, 0, 12], WHITE)
    assert (fitted[0, :, 12] == 1.0).all()
    assert int((fitted[1, :, 12] < 0.0).sum()) == 12  # half of the side


def test_a_cut_out_is_centred_and_framed_as_the_training_views_are(tmp_path):
    image = Image.new("RGBA", (100, 60), (0, 0, 255, 0))  # what is transparent has no colour
    image.paste((255, 0, 0, 255), (70, 5, 90, 45))  # 20 x 40 in a corner
    fitted = load(tmp_path / "a.png", image, 44)
    shown = (fitted[1] < 0.0).nonzero()
    assert shown.amin(0).tolist() == [2, 12]  # 40 of 44 rows, 20 of 44 columns
    assert shown.amax(0).tolist() == [41, 31]
    torch.testing.assert_close(fitted[:, 22, 22], RED)
    torch.testing.assert_close(fitted[:, 22, 3], WHITE)


def test_faint_haze_does_not_frame_a_cut_out_but_alone_it_is_shown(tmp_path):
    image = Image.new("RGBA", (100, 60), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (70, 5, 90, 45))
    clean = load(tmp_path / "a.png", image, 44)
    hazy = Image.new("RGBA", (100, 60), (0, 0, 0, 3))  # as tools that cut out leave it
    hazy.paste((255, 0, 0, 255), (70, 5, 90, 45))
    torch.testing.assert_close(load(tmp_path / "b.png", hazy, 44), clean, rtol=0.0, atol=0.03)
    faint = Image.new("RGBA", (100, 60), (0, 0, 0, 0))
    faint.paste((0, 0, 0, 100), (70, 5, 90, 45))
    assert load(tmp_path / "c.png", faint, 44)[0, 22, 22] < 0.3


def test_what_is_half_transparent_shows_half_of_white(tmp_path):
    fitted = load(tmp_path / "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 128)), 22)
    assert fitted[:, 11, 11].tolist() == pytest.approx([0.0] * 3, abs=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA"])
def test_images_of_every_mode_of_8_bits_are_read(mode, tmp_path):
    picture = Image.fromarray(np.full((10, 10, 3), 0, np.uint8)).convert(mode)
    fitted = load(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"), picture)
    assert fitted[:, 12, 12].tolist() == pytest.approx([-1.0] * 3, abs=0.05)


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    image, turned = Image.new("RGB", (20, 20), "red"), Image.Exif()
    image.paste("blue", (0, 0, 20, 10))  # above
    turned[0x0112] = 6  # to be turned clockwise by 90 degrees: above becomes right
    fitted = load(tmp_path / "a.jpg", image, exif=turned, quality=95)
    assert fitted[2, 12, 20] > 0.5
    assert fitted[0, 12, 3] > 0.5


def test_all_images_of_a_folder_are_taken_in_the_order_of_their_names(tmp_path):
    for name, colour in (("b.JPG", "red"), ("a.png", "blue"), ("c.webp", "lime")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name, lossless=True)
    (tmp_path / "notes.txt").write_text("no image")
    fitted = [fit_reference(each, 8) for each in read_references(tmp_path)]
    assert [int(each[:, 4, 4].argmax()) for each in fitted] == [2, 0, 1]
    before = images_digest(tmp_path)
    (tmp_path / "notes.txt").unlink()
    assert images_digest(tmp_path) == before
    Image.new("RGB", (8, 8), "black").save(tmp_path / "a.png")
    assert images_digest(tmp_path) != before


def test_what_cannot_be_a_reference_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file; give an image or a folder"):
        read_references(tmp_path / "none.png")
    with pytest.raises(UserError, match="holds no image: give a folder with"):
        read_references(tmp_path)
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match="is no readable image"):
        read_references(path)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)
    with pytest.raises(UserError, match=r"more than 8 bits a channel \(mode I;16\)"):
        read_references(path)
    Image.new("RGBA", (4, 4)).save(path)
    with pytest.raises(UserError, match="is wholly transparent"):
        read_references(path)
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is no readable image"):
        read_references(path)
