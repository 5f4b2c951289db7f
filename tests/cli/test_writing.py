"""Files are written whole or not at all, and what cannot be is found first."""

import os
import stat

import numpy as np
import pytest

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.writing import check_output, replacing, write_npz


def message(function, *args):
    with pytest.raises(UsageError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestOutput:
    def test_whole_file_replaces_the_old_one(self, tmp_path):
        path = tmp_path / "a.npz"
        path.write_bytes(b"old")
        write_npz(path, {"x": np.arange(3)})
        np.testing.assert_array_equal(np.load(path)["x"], [0, 1, 2])
        assert os.listdir(tmp_path) == ["a.npz"]

    def test_permissions_follow_the_umask(self, tmp_path):
        write_npz(tmp_path / "a.npz", {"x": 1})
        (tmp_path / "plain").touch()
        modes = [
            stat.S_IMODE((tmp_path / x).stat().st_mode) for x in ("a.npz", "plain")
        ]
        assert modes[0] == modes[1]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_interruption_leaves_the_old_file(self, tmp_path, error):
        path = tmp_path / "a.npz"
        path.write_bytes(b"old")

        def stop_halfway():
            with replacing(path) as file:
                file.write(b"half")
                raise error

        with pytest.raises(error):
            stop_halfway()
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.npz"]

    def test_a_full_disk_is_a_usage_error(self, tmp_path):
        def fail():
            with replacing(tmp_path / "a.npz"):
                raise OSError(28, "No space left on device")

        assert "No space left" in message(fail)
        assert os.listdir(tmp_path) == []

    def test_a_link_keeps_pointing(self, tmp_path):
        (tmp_path / "there").mkdir()
        link = tmp_path / "a.npz"
        link.symlink_to(tmp_path / "there" / "b.npz")
        write_npz(link, {"x": 1})
        assert link.is_symlink()
        assert np.load(tmp_path / "there" / "b.npz")["x"] == 1

    def test_problems_are_found_before_the_work(self, tmp_path):
        check_output(tmp_path / "a.npz", ".npz")
        (tmp_path / "d.npz").mkdir()
        (tmp_path / "file").touch()
        assert "ending in .npz" in message(check_output, tmp_path / "a.npy", ".npz")
        assert "is a directory" in message(check_output, tmp_path / "d.npz", ".npz")
        missing = tmp_path / "missing" / "a.npz"
        assert "does not exist" in message(check_output, missing, ".npz")
        below_file = tmp_path / "file" / "a.npz"
        assert "does not exist" in message(check_output, below_file, ".npz")
        assert sorted(os.listdir(tmp_path)) == ["d.npz", "file"]

    @pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only for root")
    def test_read_only_files_and_directories_stay(self, tmp_path):
        kept = tmp_path / "a.npz"
        kept.touch(mode=0o400)
        assert "the file is read-only" in message(check_output, kept, ".npz")
        tmp_path.chmod(0o500)
        above = tmp_path / "b.npz"
        assert "is not writable" in message(check_output, above, ".npz")
        tmp_path.chmod(0o700)

    def test_what_the_system_refuses_is_found_before_the_work(
        self, tmp_path, monkeypatch
    ):
        """As a read-only or full file system does, for root too."""

        def refuse(*args, **kwargs):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("builtins.open", refuse)
        path = tmp_path / "a.npz"
        assert "not writable (Read-only file system)" in message(
            check_output, path, ".npz"
        )
