import importlib.metadata
import json
import sys
import types

import numpy as np
import pytest
from test_cli import write_plugin

from harness import doctor
from harness.doctor import examine
from harness.store import Store, as_keys


@pytest.fixture
def findings(tmp_path):
    """Run the doctor in an empty place: findings by name."""

    def run(**more):
        folders = {
            "data": tmp_path / "data",
            "output_dir": tmp_path / "runs",
            "cache_dir": tmp_path / "cache",
        }
        return {f.name: f for f in examine(**{**folders, **more})}

    return run


def test_a_sound_machine_has_no_failure_and_nothing_is_left_behind(findings, tmp_path):
    found = findings()
    assert [f.name for f in found.values() if f.verdict == "FAIL"] == []
    assert "torch 2" in found["libraries"].detail
    assert found["suite demo"].detail.startswith("12 of 12 tasks are ready")
    assert found["suite mbeir-local"].remedy == f"harness data fetch mbeir-local --data {tmp_path / 'data'}"
    assert "decord" in found["clips"].detail
    assert "hub" not in found
    assert list(tmp_path.iterdir()) == []


def test_another_version_of_a_library_is_a_failure_with_the_command_that_mends_it(findings, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "4.44.0" if name == "transformers" else real(name)
    )
    finding = findings()["libraries"]
    assert (finding.verdict, finding.detail) == ("FAIL", "transformers 4.44.0 is not <6,>=5.17")
    assert finding.remedy == "pip install 'transformers<6,>=5.17'"


def test_an_absent_optional_library_is_a_warning(findings, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = findings()["libraries of [qwen]"]
    assert (finding.verdict, finding.detail) == ("warn", "peft is not installed")
    assert finding.remedy == "pip install 'umr-harness[qwen]'"


def test_a_gpu_that_torch_cannot_use_is_told_from_a_machine_without_one(findings, monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 535.54\n")
    monkeypatch.setattr(doctor, "DRIVER", driver)
    torch = types.SimpleNamespace(
        __version__="2.13",
        version=types.SimpleNamespace(cuda=None),
        cuda=types.SimpleNamespace(is_available=lambda: False),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    finding = doctor._torch()
    assert finding.verdict == "warn"
    assert "built for the CPU, but there is a driver: NVRM version: 535.54" in finding.detail
    torch.version.cuda = "13.0"
    finding = doctor._torch()
    assert finding.verdict == "FAIL"
    assert "CUDA 13.0, which the driver cannot run" in finding.detail
    driver.unlink()
    assert doctor._torch().verdict == "not applicable"


def test_a_torch_that_cannot_be_imported_is_a_failure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = doctor._torch()
    assert (finding.verdict, finding.remedy) == ("FAIL", "pip install --force-reinstall torch")


def test_a_decoder_that_gives_one_frame_again_and_again_is_found(findings, monkeypatch):
    real = doctor.frames
    monkeypatch.setattr(doctor, "frames", lambda clip: [real(clip)[0]] * 4)
    finding = findings()["clips"]
    assert (finding.verdict, finding.remedy) == ("FAIL", "pip install 'umr-harness[video]' --force-reinstall")


def test_a_full_disk_and_a_folder_that_is_a_file_are_failures(findings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    finding = findings(output_dir=tmp_path / "file" / "runs")["output folder"]
    assert finding.verdict == "FAIL"
    assert "--output-dir" in finding.remedy
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1 << 20))
    assert findings()["cache folder"].verdict == "FAIL"


def test_a_damaged_shard_is_named_and_left_alone(findings, tmp_path):
    store = Store(tmp_path / "cache", {"model": "m"})
    for name in (b"a", b"b"):
        store.add(as_keys([name * 16]), np.eye(1, 4, dtype=np.float16))
    assert findings()["cache"].detail == "2 shards, 2 rows"
    shard = sorted(store.folder.glob("*.npy"))[0]
    shard.write_bytes(shard.read_bytes()[:-3])
    finding = findings()["cache"]
    assert finding.verdict == "warn"
    assert finding.detail.startswith("1 of 2 shards are damaged")
    assert finding.remedy == f"harness cache verify --repair --cache-dir {tmp_path / 'cache'}"
    assert shard.exists()


def test_a_broken_plugin_is_a_failure_and_its_line_is_shown(cli, tmp_path, monkeypatch):
    write_plugin(tmp_path / "site", "torn-plugin", "raise RuntimeError('no such luck')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    code, out, _ = cli("doctor", "--json")
    (finding,) = [f for f in json.loads(out) if f["name"].startswith("plugin torn-plugin")]
    assert code == 1
    assert finding["detail"] == "RuntimeError: no such luck"
    assert "pip uninstall torn-plugin" in finding["remedy"]


def test_the_command_prints_a_line_for_each_finding_and_its_remedy_below(cli):
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if "suite mbeir-local" in line)
    assert lines[at + 1].strip() == "→ harness data fetch mbeir-local --data data"


def test_the_hub_is_asked_only_with_the_flag(findings, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert findings(hub=True)["hub"].remedy == "unset HF_HUB_OFFLINE"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert findings(hub=True)["hub"].verdict == "FAIL"
