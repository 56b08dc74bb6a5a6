"""RWKV v4, v5 and v6 against fp64 forwards written here from the specification; what every generation must do."""

import math

import pytest
import torch

from rwkv.bptt.engine import Settings, gradient
from rwkv.checkpoint import official
from rwkv.config.compose import load
from rwkv.config.derived import size_of
from rwkv.model.loss import LossModel
from rwkv.model.rwkv import GENERATIONS, RWKV, count_parameters
from rwkv.model.size import LoraRank, Size
from rwkv.model.state import State
from rwkv.model.v6 import FinchRank, default_rank
from tests.bptt.test_engine import grads, make_batch, whole, worst
from tests.model.test_v7 import layer_norm

OLDER = ["v4", "v5.0", "v5.1", "v5", "v6"]
RANKS = {"v6": FinchRank(8, 16), "v7": LoraRank(8, 8, 8, 16)}
sig = torch.sigmoid


def size(version, n_layer=3):
    return Size(n_layer, 64, 50, RANKS.get(version), 64 if version == "v4" else 32, version)


def random_model(version, dtype=torch.float64, n_layer=3):
    model = RWKV(size(version, n_layer)).init_weights(0)
    gen = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen)
    return model.to(dtype)


def some_tokens(rows=2, length=40):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def time_mix_v4(q, z, prev, memory):
    mixed = {c: z * q[f"att.time_mix_{c}"] + prev * (1 - q[f"att.time_mix_{c}"]) for c in "kvr"}
    k, v, r = q["att.key.weight"] @ mixed["k"], q["att.value.weight"] @ mixed["v"], sig(q["att.receptance.weight"] @ mixed["r"])
    num, den = memory.get("sums", (torch.zeros_like(k), torch.zeros_like(k)))
    now, decay = torch.exp(q["att.time_first"] + k), torch.exp(-torch.exp(q["att.time_decay"]))
    y = (num + now * v) / (den + now)
    memory["sums"] = decay * num + torch.exp(k) * v, decay * den + torch.exp(k)
    return q["att.output.weight"] @ (r * y)


def heads(q, r, w, k, v, u, memory):
    """Per head y = r (S + u k v), S = w S + k v with rows as keys, then the norm of each head."""
    N, y = 32, []
    for h in range(len(r) // N):
        i = slice(h * N, (h + 1) * N)
        S, kv = memory.get(h, torch.zeros(N, N, dtype=r.dtype)), torch.outer(k[i], v[i])
        out = r[i] @ (S + u[i].unsqueeze(1) * kv) / 8
        memory[h] = w[i].unsqueeze(1) * S + kv
        y.append((out - out.mean()) / (out.var(unbiased=False) + 1e-5).sqrt())
    return torch.cat(y) * q["att.ln_x.weight"] + q["att.ln_x.bias"]


def time_mix_v5(q, z, prev, memory):
    gated = "att.gate.weight" in q
    mixed = {c: z * q[f"att.time_mix_{c}"] + prev * (1 - q[f"att.time_mix_{c}"]) for c in ("kvrg" if gated else "kvr")}
    r, k, v = (q[f"att.{n}.weight"] @ mixed[c] for n, c in (("receptance", "r"), ("key", "k"), ("value", "v")))
    spread = lambda p: p.reshape(2, -1).expand(2, 32).reshape(-1)  # noqa: E731
    u = spread(q["att.time_faaaa"] if gated else torch.exp(q["att.time_first"]))
    y = heads(q, r, torch.exp(-torch.exp(spread(q["att.time_decay"]))), k, v, u, memory)
    if gated:
        g = q["att.gate.weight"] @ mixed["g"]
        y = y * g * sig(g)
    return q["att.output.weight"] @ y


def time_mix_v6(q, z, prev, memory):
    d = prev - z
    low = torch.tanh((z + d * q["att.time_maa_x"]) @ q["att.time_maa_w1"]).view(5, -1)
    mixed = {c: z + d * (q[f"att.time_maa_{c}"] + low[i] @ q["att.time_maa_w2"][i]) for i, c in enumerate("wkvrg")}
    r, k, v, g = (q[f"att.{n}.weight"] @ mixed[c] for n, c in (("receptance", "r"), ("key", "k"), ("value", "v"), ("gate", "g")))
    w = torch.exp(-torch.exp(q["att.time_decay"] + torch.tanh(mixed["w"] @ q["att.time_decay_w1"]) @ q["att.time_decay_w2"]))
    return q["att.output.weight"] @ (heads(q, r, w, k, v, q["att.time_faaaa"].reshape(-1), memory) * g * sig(g))


def channel_mix(q, z, prev):
    if "ffn.time_maa_k" in q:
        x_k, x_r = (z + (prev - z) * q[f"ffn.time_maa_{c}"] for c in "kr")
    else:
        x_k, x_r = (z * q[f"ffn.time_mix_{c}"] + prev * (1 - q[f"ffn.time_mix_{c}"]) for c in "kr")
    return sig(q["ffn.receptance.weight"] @ x_r) * (q["ffn.value.weight"] @ torch.relu(q["ffn.key.weight"] @ x_k).square())


TIME_MIX = {"v4": time_mix_v4, "v5.0": time_mix_v5, "v5.1": time_mix_v5, "v5": time_mix_v5, "v6": time_mix_v6}


def forward_by_definition(p, version, tokens):
    """Logits of one row, token by token."""
    blocks = [{k.split(f"blocks.{l}.")[1]: v.squeeze() for k, v in p.items() if k.startswith(f"blocks.{l}.")} for l in range(3)]
    zero = torch.zeros(64, dtype=torch.float64)
    prev, memory, out = [[zero, zero] for _ in blocks], [{} for _ in blocks], []
    for token in tokens:
        x = layer_norm(p["emb.weight"][token], p, "blocks.0.ln0")
        for l, q in enumerate(blocks):
            z = layer_norm(x, q, "ln1")
            x, prev[l][0] = x + TIME_MIX[version](q, z, prev[l][0], memory[l]), z
            z = layer_norm(x, q, "ln2")
            x, prev[l][1] = x + channel_mix(q, z, prev[l][1]), z
        out.append(p["head.weight"] @ layer_norm(x, p, "ln_out"))
    return torch.stack(out)


@torch.no_grad()
@pytest.mark.parametrize("version", OLDER)
def test_forward_equals_the_definition(version):
    model, tokens = random_model(version), some_tokens()
    hidden, _ = model(tokens)
    for row in range(2):
        want = forward_by_definition(dict(model.named_parameters()), version, tokens[row])
        torch.testing.assert_close(model.logits(hidden)[row], want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("version", OLDER)
@pytest.mark.parametrize("pieces", [[1] * 40, [7, 1, 32]])
def test_whole_chunks_and_single_tokens_agree(version, pieces):
    model, tokens = random_model(version), some_tokens()
    whole_, end = model(tokens)
    state, parts, at = None, [], 0
    for n in pieces:
        hidden, state = model(tokens[:, at : at + n], state)
        parts.append(hidden)
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), whole_, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.shift, end.shift, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("version", OLDER)
def test_reset_equals_documents_run_alone(version):
    model, tokens = random_model(version), some_tokens(rows=1)
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[0, [0, 13, 14, 33]] = True
    noise = State.zeros(model.size, 1, torch.float64).map(torch.randn_like)
    packed, _ = model(tokens, noise, reset)
    parts = [model(tokens[:, a:b])[0] for a, b in ((0, 13), (13, 14), (14, 33), (33, 40))]
    torch.testing.assert_close(packed, torch.cat(parts, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("version", OLDER)
@pytest.mark.parametrize("states", ["device", "sqrt"])
@pytest.mark.parametrize("recompute", [False, True])
def test_exact_bptt_equals_one_backward(version, states, recompute):
    model, batch = LossModel(random_model(version)), make_batch(length=70)
    state = State.zeros(model.rwkv.size, 2, torch.float64).map(torch.randn_like)
    loss, want, _, d_state = whole(model, batch, state)
    model.zero_grad()
    got = gradient(model, batch, state, Settings(16, None, states, recompute=recompute), batch.predicted, want_state_grad=True)
    assert worst(grads(model), want) < 1e-11 and abs(got.loss - loss) < 1e-12
    for a, b in zip(got.d_state.tensors(), d_state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


# spec of the released sizes: generation, model=, vocabulary, parameters (v7's are in tests/config)
COUNTS = [
    ("v4", "0.1b", 50277, 169_342_464), ("v4", "0.4b", 50277, 430_397_440), ("v4", "1.5b", 50277, 1_515_106_304),
    ("v4", "3b", 50277, 2_984_627_200), ("v4", "7b", 50277, 7_392_649_216), ("v4", "14b-v4", 50277, 14_148_597_760),
    ("v4", "0.1b", 65536, 192_780_288), ("v4", "7b", 65536, 7_517_650_944),
    ("v5", "0.1b", 65536, 192_807_936), ("v5", "0.4b", 65536, 461_721_600), ("v5", "1.5b", 65536, 1_577_754_624),
    ("v5", "3b", 65536, 3_062_999_040), ("v5", "7b", 65536, 7_518_044_160),
    ("v6", "0.1b", 65536, 196_955_136), ("v6", "0.4b", 65536, 472_780_800), ("v6", "1.5b", 65536, 1_599_873_024),
    ("v6", "3b", 65536, 3_099_863_040), ("v6", "7b", 65536, 7_635_746_816), ("v6", "14b", 65536, 14_069_088_256),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "model", "vocab", "count"), COUNTS)
def test_exact_parameter_counts(arch, model, vocab, count):
    cfg = load([f"arch={arch}", f"model={model}", f"model.vocab_size={vocab}", "tokenizer=world"])
    with torch.device("meta"):
        assert count_parameters(RWKV(size_of(cfg, vocab))) == count


@torch.no_grad()
@pytest.mark.parametrize(("version", "vocab", "want"), [("v4", 50277, 10.950), ("v5", 65536, 11.212), ("v6", 65536, 11.212)])
def test_official_initial_loss(version, vocab, want):
    rank = default_rank(256) if version == "v6" else None
    model = RWKV(Size(2, 256, vocab, rank, 64, version)).init_weights(3)
    hidden, _ = model(torch.randint(0, vocab, (1, 64), generator=torch.Generator().manual_seed(0)))
    logits = model.logits(hidden)
    assert abs((logits.logsumexp(-1) - logits.mean(-1)).mean().item() - want) < 0.01


def test_initialisation_tables():
    """Spot values for channel 70 of 128 in layer 1 of 3, computed here by hand."""
    i, C, r01, r10 = 70, 128, 0.5, 2 / 3
    d, lin, zig = i / C, i / (C - 1), (i + 1) % 3 - 1
    curve = lin ** (0.7 + 1.3 * r01)
    want = {
        "v4": {"att.time_decay": -5 + 8 * curve, "att.time_first": math.log(0.3) + 0.5 * zig, "att.time_mix_k": d**r10,
               "att.time_mix_v": d**r10 + 0.3 * r01, "att.time_mix_r": d ** (0.5 * r10), "ffn.time_mix_k": d**r10, "ffn.time_mix_r": d**r10},
        "v5": {"att.time_decay": -6 + 5 * curve, "att.time_faaaa": r01 * (1 - lin) + 0.1 * zig, "att.time_mix_k": d**r10,
               "att.time_mix_v": d**r10 + 0.3 * r01, "att.time_mix_r": d ** (0.5 * r10), "att.time_mix_g": d ** (0.5 * r10),
               "ffn.time_mix_k": d**r10, "att.ln_x.weight": (2 / 3) ** 0.7},
        "v6": {"att.time_decay": -6 + 5 * curve, "att.time_faaaa": r01 * (1 - lin) + 0.1 * zig, "att.time_maa_x": 1 - d**r10,
               "att.time_maa_w": 1 - d**r10, "att.time_maa_k": 1 - d**r10, "att.time_maa_v": 1 - (d**r10 + 0.3 * r01),
               "att.time_maa_r": 1 - d ** (0.5 * r10), "att.time_maa_g": 1 - d ** (0.5 * r10), "ffn.time_maa_k": 1 - d ** (r10**3),
               "ffn.time_maa_r": 1 - d ** (r10**3), "att.ln_x.weight": (2 / 3) ** 0.7},
    }  # fmt: skip
    gains = {
        "v4": {"att.value": 1.0, "ffn.key": 2.0, "att.key": 0, "att.receptance": 0, "att.output": 0, "ffn.value": 0, "ffn.receptance": 0},
        "v5": {"att.receptance": 1.0, "att.value": 1.0, "att.key": 0.1, "att.gate": 0.1, "ffn.key": 1.0, "att.output": 0, "ffn.value": 0},
        "v6": {"att.receptance": 1.0, "att.value": 1.0, "att.key": 0.1, "att.gate": 0.1, "ffn.key": 1.0, "att.output": 0, "ffn.receptance": 0},
    }  # fmt: skip
    for version, values in want.items():
        rank = default_rank(C) if version == "v6" else None
        model = RWKV(Size(3, C, 300, rank, 64, version)).init_weights(0)
        block = dict(model.blocks[1].named_parameters())
        for name, value in values.items():
            assert block[name].flatten()[i].item() == pytest.approx(value, rel=1e-5), (version, name)
        for name, gain in gains[version].items():
            singular = torch.linalg.svdvals(block[f"{name}.weight"].detach())
            assert singular.allclose(torch.tensor(float(gain)), rtol=1e-4, atol=1e-6), (version, name)
        assert model.emb.weight.abs().max() <= (6e-4 if version == "v4" else 1e-4)
        for name in ("att.time_maa_w1", "att.time_decay_w1") if version == "v6" else ():
            assert not block[name].any()
        for name in ("att.time_maa_w2", "att.time_decay_w2") if version == "v6" else ():
            assert 0.009 < block[name].abs().max() <= 0.01


def test_optimizer_groups():
    """The table of the spec, captured there from the official trainers."""
    matrices = {
        "v4": ["att.key", "att.value", "att.receptance", "att.output", "ffn.key", "ffn.receptance", "ffn.value"],
        "v5": ["att.key", "att.value", "att.receptance", "att.output", "att.gate", "ffn.key", "ffn.receptance", "ffn.value"],
    }
    matrices["v6"] = matrices["v5"]
    for version, names in matrices.items():
        groups = RWKV(size(version)).optimizer_groups()
        for factor, key in ((2.0, "time_decay"), (3.0, "time_first")):
            found = {n for n, (scale, _) in groups.items() if scale == factor}
            assert found == {n for n in groups if n.endswith(f"att.{key}")}
        decayed = {n for n, (_, decays) in groups.items() if decays}
        assert decayed == {"emb.weight", "head.weight"} | {f"blocks.{i}.{m}.weight" for i in range(3) for m in names}


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_official_file_comes_back_bit_for_bit(version, dtype, tmp_path):
    model = random_model(version, torch.float32)
    official.save(dict(model.named_parameters()), tmp_path / "model.pth", dtype)
    weights = official.load(tmp_path / "model.pth")
    again = official.build(weights, dtype)
    assert again.size == model.size
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a.to(dtype), b), name


@pytest.mark.parametrize("version", GENERATIONS)
def test_one_layer_works(version):
    model = random_model(version, n_layer=1)
    assert model(some_tokens())[0].isfinite().all()


@pytest.mark.parametrize("version", GENERATIONS)
def test_a_model_can_be_compiled(version):
    """By torch.compile, which breaks its graph at the kernels of the CPU; the gradient is the same."""
    model = LossModel(random_model(version, torch.float32, n_layer=2))
    tokens, state = some_tokens(), State.zeros(size(version, 2), 2, torch.float32)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        loss, end = run(tokens, state, None, tokens, torch.ones(2, 40))
        (loss + end.wkv.sum()).backward()
        found.append([loss.detach(), end.wkv.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 4
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * want.abs().max().item())
