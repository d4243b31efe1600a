import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import REASONS, ImageError, UnaryError
from unary.images import isolation
from unary.images.headers import read_attributes
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.images.reading import read_image
from unary.profiles import PROFILES

CANARY = "Canary^Secret"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("isolation") / "original.dcm"
    phantom = build_phantom(PhantomConfig(rows=256, cols=192, spacing_mm=0.15), rng=np.random.default_rng(5))
    write_phantom(phantom, path, image_id="i", patient_id="p")
    dataset = pydicom.dcmread(path)
    dataset.PatientName = CANARY
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def reader():
    with IsolatedReader(ReadingLimits(timeout_s=30, memory_mib=512, file_mib=64, megapixels=20)) as reader:
        yield reader


@pytest.fixture
def slow(original, monkeypatch):
    """A file at which a helper that starts from now on hangs."""
    stub = (
        "import sys, time; import unary.images.isolation_process as process; read = process.read_image\n"
        "process.read_image = lambda path: time.sleep(1000) if path.name == 'slow.dcm' else read(path)\n"
        "process.serve(sys.argv[2])"
    )
    monkeypatch.setattr(isolation, "_BOOT", stub)
    path = original.with_name("slow.dcm")
    path.write_bytes(original.read_bytes())
    return path


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def save(dataset, path):
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_raster(path, pixels):
    PIL.Image.fromarray(pixels).save(path)
    return path


def test_what_comes_back_is_what_was_read_here(original, reader, tmp_path):
    dataset = pydicom.dcmread(original)
    dataset.add_new("PixelPaddingValue", "US", 0)
    padded = save(dataset, tmp_path / "padded.dcm")
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -7
    scaled = save(dataset, tmp_path / "scaled.dcm")
    dataset.PhotometricInterpretation, dataset.PixelRepresentation, dataset.RescaleSlope = "MONOCHROME1", 1, 1
    dataset.PixelData = (dataset.pixel_array.astype(np.int16) - 2048).tobytes()
    dataset.add_new("PixelPaddingValue", "SS", -2048)
    signed = save(dataset, tmp_path / "signed.dcm")
    raster = write_raster(tmp_path / "r.png", np.arange(70, dtype=np.uint8).reshape(7, 10))
    binary = write_raster(tmp_path / "b.png", np.eye(9, 13, dtype=bool))
    for path in (original, padded, scaled, signed, raster, binary):
        here, there = read_image(path), reader.read(path)
        assert there.pixels.dtype == here.pixels.dtype
        assert np.array_equal(there.pixels, here.pixels)
        assert (there.padding is None) == (here.padding is None)
        assert here.padding is None or np.array_equal(there.padding, here.padding)
        for name in ("value_range", "path", "spacing_mm", "laterality", "view", "intent", "manufacturer", "model_name"):
            assert getattr(there, name) == getattr(here, name), name
        assert there.instance_uid == here.instance_uid
        assert there.pixels.flags.writeable


def test_the_helper_stays_and_knows_no_torch(original, reader):
    import torch  # noqa: F401

    reader.read(original)
    helper = reader._helper.pid
    reader.read(original)
    assert reader._helper.pid == helper
    assert "libtorch" in Path("/proc/self/maps").read_text()  # here, not there
    assert "libtorch" not in Path(f"/proc/{helper}/maps").read_text()


def test_a_relative_path_counts_from_where_the_caller_is_now(original, reader, monkeypatch):
    reader.read(original)
    monkeypatch.chdir(original.parent)
    assert reader.read("original.dcm").path == Path("original.dcm")


def build_bomb(original, path):
    """A deflated file of 2 MB that unpacks to 2 GB."""
    dataset = pydicom.dcmread(original)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(dataset, path)
    content = path.read_bytes()
    head = content[: 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength]
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(head + block * 2000)
    assert len(head + block * 2000) < 3_000_000
    return path


def build_nested(original, path):
    inner = b""
    for _ in range(3000):
        item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0\x00\x00\x00\x00"
        inner = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    content = original.read_bytes()
    start = content.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(content[:start] + inner + content[start:])
    return path


def change(original, path, **elements):
    dataset = pydicom.dcmread(original)
    for name, value in elements.items():
        setattr(dataset, name, value)
    return save(dataset, path)


def build_false_stream(original, path, *, syntax, rows):
    dataset = pydicom.dcmread(original)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.Rows = rows
    return save(dataset, path)


def cut(original, path, *, at):
    content = original.read_bytes()
    path.write_bytes(content[:at])
    return path


def shift(original, path):
    """Bytes that got in among the pixels, as text-mode transfers put them there."""
    content = original.read_bytes()
    path.write_bytes(content[:-5000] + b"\r\n" + content[-5000:])
    return path


HOSTILE = {
    "bomb": (build_bomb, "UNSUPPORTED_SYNTAX"),
    "nested": (build_nested, "NOT_READABLE"),
    "large": (lambda o, p: change(o, p, Rows=65535, Columns=65535), "TOO_LARGE"),
    "many": (lambda o, p: change(o, p, Rows=65535, Columns=65535, NumberOfFrames=99999), "TOO_LARGE"),
    "wide": (lambda o, p: change(o, p, Rows=5000, Columns=5000), "TOO_LARGE"),
    "no rows": (lambda o, p: change(o, p, Rows=0), "BAD_HEADER"),
    "frames": (lambda o, p: change(o, p, NumberOfFrames=3), "MULTIFRAME"),
    "colour": (lambda o, p: change(o, p, SamplesPerPixel=3, PhotometricInterpretation="RGB"), "COLOUR"),
    "report": (lambda o, p: change(o, p, Modality="SR"), "NOT_AN_IMAGE"),
    "cut in the pixels": (lambda o, p: cut(o, p, at=50_000), "CORRUPT_PIXELS"),
    "cut in the header": (lambda o, p: cut(o, p, at=800), "NOT_AN_IMAGE"),
    "cut by a byte": (lambda o, p: cut(o, p, at=-1), "CORRUPT_PIXELS"),
    "too few rows": (lambda o, p: change(o, p, Rows=255), "CORRUPT_PIXELS"),
    "half the rows": (lambda o, p: change(o, p, Rows=128), "CORRUPT_PIXELS"),
    "too many rows": (lambda o, p: change(o, p, Rows=257), "CORRUPT_PIXELS"),
    "shifted": (shift, "CORRUPT_PIXELS"),
    "high bit": (lambda o, p: change(o, p, HighBit=15), "CORRUPT_PIXELS"),
    "64 bits": (lambda o, p: change(o, p, BitsAllocated=64, Columns=48), "CORRUPT_PIXELS"),
    "JPEG 2000": (lambda o, p: build_false_stream(o, p, syntax=JPEG2000Lossless, rows=128), "CORRUPT_PIXELS"),
    "JPEG-LS": (lambda o, p: build_false_stream(o, p, syntax=JPEGLSLossless, rows=300), "CORRUPT_PIXELS"),
    "slope": (lambda o, p: change(o, p, RescaleSlope="1e308"), "CORRUPT_PIXELS"),
    "empty": (lambda o, p: cut(o, p, at=0), "NOT_READABLE"),
    "blank": (lambda o, p: change(o, p, PixelData=b"\1\0" * (256 * 192)), "BLANK"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_a_reason_and_no_name(original, reader, name, tmp_path, caplog, capfd):
    build, reason = HOSTILE[name]
    path = build(original, tmp_path / "hostile.dcm")
    caplog.clear()
    start = time.monotonic()
    with pytest.raises(ImageError) as caught:
        reader.read(path)
    assert caught.value.reason == reason
    assert caught.value.reason in REASONS
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10
    said = str(caught.value) + repr(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert "Canary" not in said
    assert "1.2.826" not in said  # of no identifier of the study
    assert reader.read(original).shape == (256, 192)


def test_a_file_larger_than_allowed_is_not_opened(reader, tmp_path):
    with (tmp_path / "huge.dcm").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ImageError, match="65 MiB; 64 are allowed") as caught:
        reader.read(tmp_path / "huge.dcm")
    assert caught.value.reason == "TOO_LARGE"


def test_memory_has_a_limit(tmp_path):
    path = write_raster(tmp_path / "m.png", np.arange(8000, dtype=np.uint8)[:, None] + np.zeros(8000, np.uint8))
    with IsolatedReader(ReadingLimits(memory_mib=50)) as reader:
        with pytest.raises(ImageError) as caught:
            reader.read(path)
        assert caught.value.reason == "MEMORY_LIMIT"
        small = write_raster(tmp_path / "s.png", np.arange(70, dtype=np.uint8).reshape(7, 10))
        assert reader.read(small).shape == (7, 10)
    with IsolatedReader(ReadingLimits(memory_mib=1000)) as reader:
        assert reader.read(path).shape == (8000, 8000)


def test_a_hang_ends_in_time(slow, original):
    with IsolatedReader(ReadingLimits(timeout_s=0.5)) as reader:
        helper = reader._helper
        with pytest.raises(ImageError, match=r"longer than 0\.5 s") as caught:
            reader.read(slow)
        assert caught.value.reason == "TIMEOUT"
        assert helper is None
        assert reader._helper is None
        assert reader.read(original).shape == (256, 192)


def test_a_pipe_or_a_folder_is_not_even_opened(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    for path in (tmp_path / "pipe.dcm", tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError, match="not a file") as caught:
            reader.read(path)
        assert caught.value.reason == "NOT_READABLE"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_error_of_that_file_alone(slow, original, number):
    with IsolatedReader() as reader:
        reader.read(original)
        helper = reader._helper.pid
        timer = threading.Timer(0.3, os.kill, (helper, number))
        timer.start()
        with pytest.raises(ImageError, match=number.name) as caught:
            reader.read(slow)
        timer.join()
        assert caught.value.reason == "CRASH"
        assert not Path(f"/proc/{helper}").exists()
        assert reader.read(original).shape == (256, 192)


def test_notes_come_through_and_what_a_library_raises_is_named_without_its_text(original, monkeypatch, tmp_path):
    stub = (
        "import dataclasses, sys; import unary.images.isolation_process as process; read = process.read_image\n"
        "class Odd(Exception): pass\n"
        "def read_oddly(path):\n"
        "    if path.name == 'odd.dcm': raise Odd('Canary')\n"
        "    return dataclasses.replace(read(path), notes=('turned round',))\n"
        "process.read_image = read_oddly\n"
        "process.serve(sys.argv[2])"
    )
    monkeypatch.setattr(isolation, "_BOOT", stub)
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(original.read_bytes())
    with IsolatedReader() as reader:
        with pytest.raises(ImageError, match=r"odd.dcm: an unexpected Odd \(") as caught:
            reader.read(odd)
        assert caught.value.reason == "UNEXPECTED"
        assert "Canary" not in str(caught.value)
        assert reader.read(original).notes == ("turned round",)


def test_a_helper_starts_beside_other_work_and_ends_with_its_reader(original):
    with IsolatedReader() as reader:
        begun = time.monotonic()
        reader.start()
        reader.start()
        assert time.monotonic() - begun < 0.2
        helper = reader._helper.pid
        assert reader.read(original).shape == read_image(original).shape
        assert reader._helper.pid == helper
    unused = IsolatedReader()
    unused.start()
    helper = unused._helper.pid
    unused.close()
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)


def test_a_helper_killed_while_idle_says_nothing_about_the_next_file(original):
    with IsolatedReader() as reader:
        for _ in range(3):
            assert reader.read(original).shape == (256, 192)
            os.kill(reader._helper.pid, signal.SIGKILL)


def test_an_interrupt_ends_the_helper_and_goes_through(slow, original):
    with IsolatedReader() as reader:
        reader.read(original)
        helper = reader._helper.pid
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            reader.read(slow)
        timer.join()
        assert not Path(f"/proc/{helper}").exists()
        assert reader.read(original).shape == (256, 192)


def test_leaving_the_block_leaves_no_process_behind(original):
    with IsolatedReader() as reader:
        reader.read(original)
        helper = reader._helper.pid
    assert not Path(f"/proc/{helper}").exists()
    reader.close()  # a second time does nothing


def test_a_helper_does_not_outlive_a_killed_parent(original):
    program = (
        "import os, sys\nfrom unary.images.isolation import IsolatedReader\nreader = IsolatedReader()\n"
        "reader.read(sys.argv[1])\nprint(reader._helper.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, original], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    helper, start = int(done.stdout), time.monotonic()
    while is_running(helper) and time.monotonic() - start < 10:
        time.sleep(0.05)
    assert not is_running(helper)


def test_closing_from_another_thread_ends_a_reading(slow, original):
    with IsolatedReader() as reader:
        reader.read(original)
        timer = threading.Timer(0.3, reader.close)
        timer.start()
        start = time.monotonic()
        with pytest.raises(ImageError, match="SIGKILL"):
            reader.read(slow)
        timer.join()
        assert time.monotonic() - start < 10
        with pytest.raises(UnaryError, match="has been ended"):  # else a thread that reads on leaves a process behind
            reader.read(original)
        assert reader._helper is None


def test_threads_share_a_reader(original, reader, tmp_path):
    other = write_raster(tmp_path / "r.png", np.arange(70, dtype=np.uint8).reshape(7, 10))
    shapes = []
    threads = [threading.Thread(target=lambda p=p: shapes.append(reader.read(p).shape)) for p in [original, other] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shapes) == [(7, 10)] * 5 + [(256, 192)] * 5


def test_strange_names_are_read_and_told_on_one_line(original, reader, tmp_path, monkeypatch):
    content = original.read_bytes()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for name in ("../up.dcm", "a\nb.dcm", "-rf.dcm", "\x1b[31m.dcm", "ü é.dcm", os.fsdecode(b"\xff.dcm"), "$(touch x)"):
        path = tmp_path / "below" / name
        path.write_bytes(content)
        assert reader.read(name).shape == (256, 192)
        path.write_bytes(content[:-9])
        with pytest.raises(ImageError) as caught:
            reader.read(name)
        assert str(caught.value).isprintable()
    assert {path.name for path in tmp_path.iterdir()} == {"below", "up.dcm"}
    for name in ("x" * 5000, "nul\0.dcm", "y/" * 3000):
        with pytest.raises(ImageError) as caught:
            reader.read(name)
        assert caught.value.reason == "NOT_READABLE"
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_show_path_shortens_and_escapes():
    assert show_path(Path("a/b.dcm")) == "a/b.dcm"
    assert show_path(Path("a\tb\n.dcm")) == "a\\tb\\n.dcm"
    assert len(show_path(Path("z" * 9999))) < 300


@pytest.mark.parametrize("name", ["timeout_s", "memory_mib", "file_mib", "megapixels"])
def test_limits_are_positive(name):
    for value in (0, -1, float("inf")):
        with pytest.raises(ValueError, match=name):
            ReadingLimits(**{name: value})


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_attributes_are_the_same_from_the_helper(original, reader, profile, tmp_path):
    odd = change(
        original,
        tmp_path / "odd.dcm",
        QualityControlImage="YES",
        BreastImplantPresent="YES",
        SeriesDescription="a c-view",
        EstimatedRadiographicMagnificationFactor="1.5",
        LossyImageCompression="01",
    )
    raster = write_raster(tmp_path / "r.png", np.arange(70, dtype=np.uint8).reshape(7, 10))
    for path in (original, odd, raster):
        assert reader.read_attributes(path, profile.headers) == read_attributes(path, profile.headers)
    found = set(reader.read_attributes(odd, profile.headers).flags)
    assert found == {"QC_IMAGE", "IMPLANT", "MAGNIFICATION", "SYNTHETIC_2D"} & {f.reason for f in profile.headers.flags}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_what_a_damaged_header_holds_in_place_of_codes_is_not_passed_on(original, reader, tmp_path):
    path = change(original, tmp_path / "c.dcm", Modality="MG", PresentationIntentType="Canary^Secret")
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = "Canary^Secret"
    dataset.save_as(path)
    assert "Canary" not in repr(reader.read_attributes(path, PROFILES["general"].headers))


@pytest.mark.parametrize("wrong", [{}, {"frames": "many"}, {"shape": [1]}, {"flags": 7}, {"spacing_mm": ["a", "b"]}])
def test_answers_that_break_the_rules_are_no_answer(original, monkeypatch, wrong):
    stub = (
        "import json, struct, sys; import unary.images.isolation_process as process\n"
        f"content = json.dumps({{'attributes': {{'shape': [3, 4]}} | {wrong}}}).encode()\n"
        "process._answer = lambda *asked: [struct.pack('>I', len(content)) + content]\n"
        "process.serve(sys.argv[2])"
    )
    monkeypatch.setattr(isolation, "_BOOT", stub)
    headers = PROFILES["general"].headers
    with IsolatedReader() as reader:
        with pytest.raises(ImageError, match="no proper answer"):
            reader.read(original)
        if not wrong:
            assert reader.read_attributes(original, headers).shape == (3, 4)
            return
        with pytest.raises(ImageError, match="no proper answer"):
            reader.read_attributes(original, headers)
