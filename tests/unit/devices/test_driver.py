"""One load of the driver is told from the next by the folder the kernel makes for it."""

from __future__ import annotations

from pathlib import Path

from greentrain.devices.nvidia.driver import read_load


def test_a_load_has_a_name_as_long_as_it_lasts_and_another_one_has_another(tmp_path: Path) -> None:
    module = tmp_path / "nvidia"
    assert read_load(module) == ""
    module.mkdir()
    first = read_load(module)
    assert first
    (module / "parameters").mkdir()
    (module / "version").write_text("550.54.15\n")
    assert read_load(module) == first
    # While the old folder is there its number is not free, as sysfs never makes it free.
    module.rename(tmp_path / "unloaded")
    assert read_load(module) == ""
    module.mkdir()
    assert read_load(module) not in ("", first)


def test_where_it_cannot_be_looked_at_no_driver_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read_load(tmp_path / "file" / "nvidia") == ""
    assert read_load(tmp_path / ("x" * 300)) == ""


def test_a_folder_of_the_kernels_keeps_its_number_between_looks() -> None:
    module = Path("/sys/module")
    if module.is_dir():
        assert {read_load(module) for _ in range(3)} == {str(module.stat().st_ino)}
