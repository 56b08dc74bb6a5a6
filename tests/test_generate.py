"""What is written while it is sampled."""

from rwkv import generate, init
from rwkv.data.tokenizer import Bytes
from rwkv.model import sampling


def test_a_character_of_several_tokens_is_written_whole(tmp_path, monkeypatch, capsys):
    assert init.main([str(tmp_path / "m.pth"), "model=tiny"]) == 0
    written = []
    monkeypatch.setattr("builtins.print", lambda *args, **_: written.extend(args))
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: iter([*Bytes().encode("é天🎉!".encode()), 0, *Bytes().encode(b"\xf0\x9f")]))
    assert generate.main([str(tmp_path / "m.pth"), "--prompt", "Text"]) == 0
    assert [x for x in written if x] == ["Text", "é", "天", "🎉", "!", "\ufffd"]
