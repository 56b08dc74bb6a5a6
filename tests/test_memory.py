"""How much memory is free."""

from rwkv import memory


def test_cached_files_are_free(tmp_path, monkeypatch):
    """Memory-mapped data counts as used by the control group, and makes room when memory is asked for."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\nfile 700000\ninactive_file 600000\nactive_file 100000\n")
    assert memory.free_host_bytes() == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_host_bytes() > 10**6
