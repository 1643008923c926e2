"""Files are written whole or not at all."""

import stat
import subprocess
import sys

import pytest
import torch

from fcompress.errors import FcompressError
from fcompress.formats.atomic import write_atomic


def test_new_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomic(tmp_path / "new", lambda file: file.write(b"abc"))
    assert (tmp_path / "new").read_bytes() == b"abc"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_replaces_and_keeps_permissions_and_links(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_atomic(str(link), lambda file: file.write(b"new"))
    assert link.is_symlink() and real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def half(file):
        file.write(b"ne")
        file.flush()
        assert target.read_bytes() == b"old"
        raise error

    with pytest.raises(type(error)):
        write_atomic(target, half)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_one_line(tmp_path):
    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(FcompressError, match=r"cannot write .*: No space left on device"):
        write_atomic(tmp_path / "file", full)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_folder(tmp_path):
    with pytest.raises(FcompressError, match="there is no folder"):
        write_atomic(tmp_path / "none" / "file", lambda file: None)
    with pytest.raises(FcompressError, match="it is a folder"):
        write_atomic(tmp_path, lambda file: None)


def test_device_is_written_directly():
    write_atomic("/dev/null", lambda file: file.write(b"abc"))
    with pytest.raises(FcompressError, match="cannot write /dev/full: No space left on device"):
        write_atomic("/dev/full", lambda file: torch.save(torch.ones(100_000), file))


def test_torch_save_that_meets_a_limit_of_the_system(tmp_path):
    script = (
        "import resource, torch\n"
        "from fcompress.formats.atomic import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write_atomic('file', lambda file: torch.save(torch.ones(100_000), file))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert "FcompressError: cannot write file: File too large" in ran.stderr
    assert list(tmp_path.iterdir()) == []
