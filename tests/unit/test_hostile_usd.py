"""USD layers, crates and packages made to harm: each is refused before Blender sees it, by name."""

import struct
import zipfile
from pathlib import Path

import pytest
from hostile import png, refused, usdz, write, write_links_that_lead_out

from data_pipeline.render.checks.crate import crate_tokens
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.precheck import check_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_links_that_lead_out(tmp_path)


def usda(name: str) -> str:
    return f'#usda 1.0\ndef Xform "a" (prepend references = @{name}@</b>)\n{{\n}}\n'


def lz4(text: bytes) -> bytes:
    """Return an LZ4 block of literals alone."""
    size, head = len(text), bytes([min(len(text), 15) << 4])
    rest = size - 15
    while size >= 15 and rest >= 0:
        head += bytes([min(rest, 255)])
        if rest < 255:
            break
        rest -= 255
    return head + text


def usdc(*tokens: str, unpacked: int | None = None) -> bytes:
    """Return as much of a crate file as holds its tokens."""
    text = "".join(token + "\0" for token in tokens).encode()
    packed = b"\0" + lz4(text)
    size = len(text) if unpacked is None else unpacked
    section = struct.pack("<QQQ", len(tokens), size, len(packed)) + packed
    toc = struct.pack("<Q", 1) + struct.pack("<16sqq", b"TOKENS", 88, len(section))
    head = b"PXR-USDC" + bytes([0, 8, 0, 0, 0, 0, 0, 0]) + struct.pack("<q", 88 + len(section))
    return head + bytes(64) + section + toc


@pytest.mark.parametrize("name", ["../secret.png", "/etc/x.usda", "http://host/x.usd", "link.png"])
def test_a_usd_layer_leads_nowhere_in_text_binary_and_packed(folder, name: str) -> None:
    assert refused(write(folder / "a.usda", usda(name))).reason == "unsupported"
    assert refused(write(folder / "b.usdc", usdc("Mesh", name))).reason == "unsupported"
    write(folder / "sub" / "layer.usda", usda(f"../{name}" if name[0] not in "/h" else name))
    nested = write(folder / "c.usda", usda("sub/layer.usda"))
    assert refused(nested).reason == "unsupported"
    if name != "link.png":
        assert refused(usdz(folder / "d.usdz", {"a.usda": usda(name)})).reason == "unsupported"


def test_layers_below_the_folder_may_refer_to_each_other(folder) -> None:
    write(folder / "wood.png", png(8, 8))
    write(folder / "sub" / "layer.usda", usda("../wood.png"))
    check_file(write(folder / "a.usda", usda("./sub/layer.usda")))
    packed = usdz(folder / "a.usdz", {"s/a.usda": usda("../t/w.png"), "t/w.png": png(8, 8)})
    check_file(packed)


def test_the_tokens_of_a_crate_are_unpacked_and_bounded() -> None:
    long = "x" * 700 + ".png"
    assert crate_tokens(usdc("a", long))[:2] == ["a", long]
    overlap = bytes([0x16]) + b"a" + struct.pack("<H", 1) + bytes([0x20]) + b"b\0"
    content = bytearray(usdc("a" * 11 + "b"))
    place = content.index(b"\0" + lz4(b"a" * 11 + b"b\0"))
    content[place + 1 : place + 1 + len(overlap)] = overlap
    content[88 + 16 : 88 + 24] = struct.pack("<Q", 1 + len(overlap))
    assert crate_tokens(bytes(content))[0] == "a" * 11 + "b"
    for damaged in (usdc("a", unpacked=1 << 40), usdc("abc", unpacked=1), usdc("a")[:90]):
        with pytest.raises(AssetFailure):
            crate_tokens(damaged)


@pytest.mark.parametrize(
    ("members", "compression", "reason", "message"),
    [
        ({"a.usda": bytes(3_000_000)}, zipfile.ZIP_DEFLATED, "too_large", "as bombs do"),
        ({"a.usda": usda("x")}, zipfile.ZIP_DEFLATED, "unreadable", "USDZ forbids"),
        ({f"{i}.txt": b"" for i in range(10_001)}, 0, "too_large", "10001 files"),
        ({"../../etc/cron.usda": b"x"}, 0, "unsupported", "leads elsewhere"),
        ({"/etc/cron.usda": b"x"}, 0, "unsupported", "leads elsewhere"),
        ({"inner.usdz": b"PK\x03\x04"}, 0, "unsupported", "another archive"),
        ({"t/w.png": png(60000, 60000)}, 0, "too_large", "60000 x 60000"),
        ({"a.usda": usda("gone.png")}, 0, "missing_texture", "gone.png"),
    ],
)
def test_archives_that_would_harm_are_refused(tmp_path, members, compression, reason, message):
    failure = refused(usdz(tmp_path / "a.usdz", members, compression))
    assert failure.reason == reason
    assert message in failure.message


def test_a_size_that_the_archives_directory_only_claims_is_refused(tmp_path) -> None:
    path = usdz(tmp_path / "a.usdz", {"a.usda": b"x" * 100})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 20 : place + 28] = struct.pack("<II", 2_000_000_000, 2_000_000_000)
    path.write_bytes(content)
    assert refused(path).reason == "too_large"


def test_archives_are_not_assets(tmp_path) -> None:
    assert refused(usdz(tmp_path / "a.zip", {"a.glb": b"x"})).reason == "unsupported"
    path = usdz(tmp_path / "a.glb", {"a.glb": b"x"})
    assert "a ZIP archive: unpack it" in refused(path).message


def test_a_directory_of_millions_of_members_is_not_read(tmp_path) -> None:
    path = usdz(tmp_path / "a.usdz", {"a.usda": b"x"})
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = struct.pack("<I", 900_000_000)
    path.write_bytes(content)
    assert "directory alone" in refused(path).message
    with_zip64 = content[:end] + b"PK\x06\x07" + bytes(16) + content[end:]
    with_zip64[end + 20 + 12 : end + 20 + 16] = struct.pack("<I", 50)
    assert refused(write(path, bytes(with_zip64))).reason == "too_large"
    assert refused(write(path, bytes(content[:end]))).reason == "unreadable"
