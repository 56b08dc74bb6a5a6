"""How CUDA kernels are compiled, without a CUDA device."""

from rwkv.kernels import cuda


def test_a_cuda_kernel_is_compiled_once(tmp_path, monkeypatch):
    """Into the cache folder, or each time where that cannot be written; for another text or architecture anew."""

    class Nvrtc:
        def nvrtcVersion(self, major, minor):  # noqa: N802 - NVRTC's name
            pass

    compiled = []
    monkeypatch.setattr(cuda, "_nvrtc", Nvrtc)
    monkeypatch.setattr(cuda, "_compile", lambda nvrtc, name, text, options: compiled.append(options[0]) or text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "part.cuh").write_bytes(b"part\n")
    source = tmp_path / "kernel.cu"
    source.write_bytes(b'#include "part.cuh"\nrest\n')
    assert [cuda._compiled(source, "sm_90") for _ in range(2)] == [b"part\n\nrest\n"] * 2 and len(compiled) == 1
    cuda._compiled(source, "sm_80")
    (tmp_path / "part.cuh").write_bytes(b"other\n")
    assert cuda._compiled(source, "sm_80") == b"other\n\nrest\n" and len(compiled) == 3
    assert all(file.suffix == ".cubin" for file in (tmp_path / "cache/rwkv").iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [cuda._compiled(source, "sm_80") for _ in range(2)] == [b"other\n\nrest\n"] * 2 and len(compiled) == 5
