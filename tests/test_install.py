"""A wheel built from a clean copy trains from any folder, as a checkout does."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT, tiny, write_text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "outputs/")):
            (tmp / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp / "src" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp, tmp / "src"], check=True, timeout=300)
    return next(tmp.glob("*.whl"))


def test_it_holds_every_module_and_option(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(f.relative_to(ROOT)) for f in (ROOT / "rwkv").rglob("*") if f.suffix in (".py", ".cpp", ".cu")}
    wanted |= {f"rwkv/{f.relative_to(ROOT)}" for f in (ROOT / "conf").rglob("*.yaml")}
    assert wanted <= names, sorted(wanted - names)
    assert not any(n.startswith(("tests/", "conf/")) for n in names)


def test_it_trains_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True, timeout=300)
    work = tmp_path / "work"
    work.mkdir()
    write_text(work / "t.txt")

    def run(*args):
        env = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run([sys.executable, "-m", "rwkv.train", *args], cwd=work, env=env, capture_output=True, text=True, timeout=300)

    done = run(*tiny("data=text", "data.path=t.txt"))
    assert done.returncode == 0, done.stderr
    assert list((work / "outputs").glob("v7-tiny-text-*/report.html"))
    shown = run("--help").stdout
    assert str(site) in shown, shown
