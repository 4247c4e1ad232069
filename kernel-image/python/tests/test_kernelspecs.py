from __future__ import annotations

import json
import sys

from cellbox_kernel import kernelspecs


def test_python_starts_our_kernel_with_this_interpreter(tmp_path):
    kernelspecs.write_kernelspecs(tmp_path)
    spec = json.loads((tmp_path / "python3" / "kernel.json").read_text())
    assert spec["argv"] == [sys.executable, "-m", "cellbox_kernel.kernel", "-f", "{connection_file}"]


def test_the_report_names_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernelspecs, "_program", lambda name: None)
    kernelspecs.main([str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    assert report["python3"] == {"available": True, "missing": None}
    assert report["bash"] == {"available": False, "missing": "The program bash was not found. Install bash."}
    assert not (tmp_path / "bash").exists()


def test_a_kernelspec_of_ours_whose_tools_are_gone_is_removed_and_others_are_kept(tmp_path, monkeypatch):
    foreign = tmp_path / "bash" / "kernel.json"
    kernelspecs.write_kernelspecs(tmp_path)
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text('{"argv": ["somebody-elses"]}')
    monkeypatch.setattr(kernelspecs, "_program", lambda name: None)
    kernelspecs.write_kernelspecs(tmp_path)
    assert foreign.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in ("bash", "javascript", "python3")) == [
        "bash",
        "python3",
    ]
