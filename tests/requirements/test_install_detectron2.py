"""The Detectron2 installer: repacking, hash check, and messages. No network, no pip install."""

import importlib.util
import re
import sys
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from wheel.wheelfile import WheelFile

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "requirements" / "install_detectron2.py"
OLD_INFO = "sal_detectron2-0.7.2.dist-info"
NEW_INFO = "detectron2-0.7.2.dist-info"
METADATA = """\
Metadata-Version: 2.1
Name: sal-detectron2
Version: 0.7.2
Summary: a fork
License-File: LICENSE
Requires-Dist: Pillow>=7.1
Requires-Dist: numpy<2
Requires-Dist: omegaconf<2.4,>=2.1
Provides-Extra: all
Requires-Dist: scipy>1.5.1; extra == "all"
Provides-Extra: dev
Requires-Dist: black==23.3.0; extra == "dev"

A long description. Name: not a header
"""
MEMBERS = {
    "detectron2/__init__.py": b'__version__ = "0.7.2"\n',
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": b"\x7fELF",
    "detectron2/_CN.py": b"# not a compiled module\n",
    "detectron2/model_zoo/configs/Base, with comma.yaml": b"MODEL: {}\n",
    "tools/__init__.py": b"",
    "tools/train_net.py": b"",
    f"{OLD_INFO}/LICENSE": b"Apache\n",
    f"{OLD_INFO}/METADATA": METADATA.encode(),
    f"{OLD_INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux\n",
    f"{OLD_INFO}/top_level.txt": b"detectron2\ntools\n",
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with WheelFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def repacked(script: ModuleType, tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return script.repack_wheel(write_wheel(tmp_path, MEMBERS), tmp_path / "new")


def read_members(wheel: Path) -> dict[str, bytes]:
    with WheelFile(wheel) as archive:  # which compares each member with its hash in RECORD
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def test_repack_keeps_python_files_and_drops_compiled_and_stray_ones(repacked: Path):
    assert repacked.name == "detectron2-0.7.2-py3-none-any.whl"
    members = read_members(repacked)
    assert sorted(members) == sorted(
        [
            "detectron2/__init__.py",
            "detectron2/_CN.py",
            "detectron2/model_zoo/configs/Base, with comma.yaml",
            *(f"{NEW_INFO}/{n}" for n in ("LICENSE", "METADATA", "WHEEL", "top_level.txt")),
            f"{NEW_INFO}/RECORD",
        ]
    )
    for name in ("detectron2/__init__.py", "detectron2/_CN.py"):
        assert members[name] == MEMBERS[name]
    assert members[f"{NEW_INFO}/LICENSE"] == b"Apache\n"
    assert members[f"{NEW_INFO}/top_level.txt"] == b"detectron2\n"


def test_repacked_wheel_says_that_it_is_pure_python(repacked: Path):
    wheel = Parser().parsestr(read_members(repacked)[f"{NEW_INFO}/WHEEL"].decode())
    assert wheel["Wheel-Version"] == "1.0"
    assert wheel["Root-Is-Purelib"] == "true"
    assert wheel.get_all("Tag") == ["py3-none-any"]


def test_repacked_metadata_names_detectron2_and_its_real_requirements(repacked: Path):
    parsed = Parser().parsestr(read_members(repacked)[f"{NEW_INFO}/METADATA"].decode())
    assert parsed.get_all("Name") == ["detectron2"]
    assert parsed["Version"] == "0.7.2"
    assert parsed.get_all("Provides-Extra") is None
    assert sorted(parsed.get_all("Requires-Dist")) == [
        "Pillow>=7.1",
        "fvcore<0.1.6,>=0.1.5",
        "iopath<0.1.10,>=0.1.7",
        "numpy",
        "omegaconf<2.4,>=2.1",
        "setuptools<81",
    ]
    assert parsed.get_payload() == "A long description. Name: not a header\n"


def test_installed_copy_is_readable_by_the_standard_library(repacked: Path, tmp_path: Path):
    site = tmp_path / "site"
    with zipfile.ZipFile(repacked) as archive:
        archive.extractall(site)
    (dist,) = metadata.distributions(name="detectron2", path=[str(site)])
    assert dist.version == "0.7.2"
    assert sorted(map(str, dist.files)) == sorted(read_members(repacked))


def test_repacking_twice_gives_the_same_bytes(script: ModuleType, repacked: Path, tmp_path: Path):
    again = script.repack_wheel(write_wheel(tmp_path, MEMBERS), tmp_path)
    assert again.read_bytes() == repacked.read_bytes()
    with zipfile.ZipFile(again) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2024, 4, 17, 0, 0, 0)}


def test_right_hash_passes_and_wrong_hash_names_both(script: ModuleType, tmp_path: Path):
    file = tmp_path / "a.whl"
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    script.check_sha256(file, digest)
    with pytest.raises(script.InstallError) as caught:
        script.check_sha256(file, "0" * 64)
    message = str(caught.value)
    assert "a.whl" in message
    assert "0" * 64 in message
    assert digest in message
    assert "Nothing was installed" in message


def test_another_wheel_is_refused(script: ModuleType, tmp_path: Path):
    metadata_of_another = METADATA.replace("sal-", "other-").encode()
    wheel = write_wheel(tmp_path, {**MEMBERS, f"{OLD_INFO}/METADATA": metadata_of_another})
    with pytest.raises(script.InstallError, match=r"other-detectron2==.*sal-detectron2==0\.7\.2"):
        script.repack_wheel(wheel, tmp_path)


def test_damaged_wheel_is_refused(script: ModuleType, tmp_path: Path):
    file = tmp_path / "broken.whl"
    file.write_bytes(b"not a zip file")
    with pytest.raises(script.InstallError, match=r"broken\.whl"):
        script.repack_wheel(file, tmp_path)


def run_main(script: ModuleType, capsys: pytest.CaptureFixture, *argv: str) -> tuple[int, str]:
    status = script.main(argv)
    return status, capsys.readouterr().err


@pytest.fixture
def no_pip(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script in a Python without Detectron2, where any call of pip install is an error."""

    def fake_run(command, **_kwargs):
        assert command[-1] == "--version", f"unexpected command {command}"
        return ""

    monkeypatch.setattr(script, "run", fake_run)
    monkeypatch.setattr(script, "installed_kind", lambda: ("none", "no detectron2"))
    return script


def test_wrong_wheel_file_ends_in_one_message_and_status_1(no_pip, capsys, tmp_path: Path):
    wheel = write_wheel(tmp_path, MEMBERS)
    status, err = run_main(no_pip, capsys, "--wheel-file", str(wheel))
    assert status == 1
    assert err.startswith("install_detectron2.py: error: ")
    assert no_pip.SOURCE_SHA256 in err
    assert "Traceback" not in err


def test_missing_wheel_file_is_named(no_pip, capsys, tmp_path: Path):
    status, err = run_main(no_pip, capsys, "--wheel-file", str(tmp_path / "none.whl"))
    assert status == 1
    assert "none.whl" in err


@pytest.mark.parametrize("missing", ["git", "c++"])
def test_upstream_names_the_missing_program(no_pip, capsys, monkeypatch, missing: str):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(no_pip.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        no_pip.shutil, "which", lambda name: None if name == missing else f"/bin/{name}"
    )
    status, err = run_main(no_pip, capsys, "--source", "upstream")
    assert status == 1
    assert f"'{missing}'" in err
    assert "--source wheel" in err


def test_upstream_without_torch_says_how_to_get_it(no_pip, capsys, monkeypatch):
    monkeypatch.setattr(no_pip.importlib.util, "find_spec", lambda name: None)
    status, err = run_main(no_pip, capsys, "--source", "upstream")
    assert status == 1
    assert "torch is not installed" in err
    assert "pip install" in err


def test_foreign_detectron2_is_left_alone(no_pip, capsys, monkeypatch):
    monkeypatch.setattr(no_pip, "installed_kind", lambda: ("foreign", "detectron2 0.6, unknown"))
    status, err = run_main(no_pip, capsys)
    assert status == 1
    assert "detectron2 0.6" in err
    assert "--force" in err


@pytest.mark.parametrize("source", ["wheel", "upstream"])
def test_right_detectron2_is_not_installed_again(no_pip, capsys, monkeypatch, source: str):
    monkeypatch.setattr(no_pip, "installed_kind", lambda: (source, "detectron2 0.7.2"))
    monkeypatch.setattr(no_pip, "check_import", lambda: "imported")
    assert no_pip.main(["--source", source]) == 0
    assert "already installed" in capsys.readouterr().out


def test_failing_command_shows_its_error_lines_and_the_remedy(script: ModuleType):
    code = "import sys; print('noise'); print('ERROR: the cause', file=sys.stderr); sys.exit(3)"
    with pytest.raises(script.InstallError) as caught:
        script.run([sys.executable, "-c", code], failed="It failed.", remedy="Do this.")
    assert str(caught.value).splitlines() == ["It failed.", "  ERROR: the cause", "Do this."]


def test_missing_program_is_one_message(script: ModuleType):
    with pytest.raises(script.InstallError, match=r"(?s)It failed.*no-such-program.*Do this"):
        script.run(["no-such-program"], failed="It failed.", remedy="Do this.")


def test_constraints_pin_each_direct_requirement_exactly():
    """Every name in setup.py's lists has an exact pin; Detectron2 has its own installer."""
    pins = {}
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition(";")[0].strip().partition("==")
            assert version, f"not an exact pin: {line}"
            pins.setdefault(name.lower(), []).append(version)
    source = (ROOT / "setup.py").read_text()
    lists = re.findall(
        r"^(?:INSTALL|DEV)_REQUIRES = \[\n(.*?)^\]", source, re.DOTALL | re.MULTILINE
    )
    assert len(lists) == 2
    names = re.findall(r'^\s+"([A-Za-z0-9_-]+)', "".join(lists), re.MULTILINE)
    assert len(names) > 15
    unpinned = {name.lower() for name in names} - set(pins) - {"detectron2"}
    assert not unpinned
