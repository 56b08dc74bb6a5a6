"""RWKV-7 against an fp64 forward written here from the specification, its initialisation, and its optimizer groups."""

import math

import pytest
import torch

from rwkv.model.loss import LossModel
from rwkv.model.rwkv import RWKV
from rwkv.model.size import LoraRank, Size
from rwkv.model.state import State

SIZE = Size(3, 64, 71, LoraRank(8, 8, 8, 16), head_size=32)


def random_model(size=SIZE, dtype=torch.float64):
    model = RWKV(size).init_weights(0)
    gen = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen)
    return model.to(dtype)


def layer_norm(x, p, name, eps=1e-5):
    x = x - x.mean()
    return x / (x.pow(2).mean() + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def forward_by_definition(p, size, tokens):
    """Logits of one row, token by token, vectors and matrices only."""
    sig = torch.sigmoid
    L, C, H, N = size.n_layer, size.n_embd, size.n_head, size.head_size
    att_prev, ffn_prev = [torch.zeros(C, dtype=torch.float64)] * L, [torch.zeros(C, dtype=torch.float64)] * L
    S = [[torch.zeros(N, N, dtype=torch.float64) for _ in range(H)] for _ in range(L)]
    out = []
    for token in tokens:
        x = layer_norm(p["emb.weight"][token], p, "blocks.0.ln0")
        for l in range(L):
            q = {k.split(f"blocks.{l}.")[1]: v.squeeze() for k, v in p.items() if k.startswith(f"blocks.{l}.")}
            z = layer_norm(x, q, "ln1")
            mixed = {c: z + (att_prev[l] - z) * q[f"att.x_{c}"] for c in "rwkvag"}
            att_prev[l] = z
            r, k, v = (q[f"att.{n}.weight"] @ mixed[c] for n, c in (("receptance", "r"), ("key", "k"), ("value", "v")))
            w = torch.exp(-math.exp(-0.5) * sig(q["att.w0"] + torch.tanh(mixed["w"] @ q["att.w1"]) @ q["att.w2"]))
            if l == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sig(q["att.v0"] + mixed["v"] @ q["att.v1"] @ q["att.v2"])
            a = sig(q["att.a0"] + mixed["a"] @ q["att.a1"] @ q["att.a2"])
            g = sig(mixed["g"] @ q["att.g1"]) @ q["att.g2"]
            kk = k * q["att.k_k"]
            k = k * (1 + (a - 1) * q["att.k_a"])
            y = torch.empty(C, dtype=torch.float64)
            for h in range(H):
                i = slice(h * N, (h + 1) * N)
                kk_h = kk[i] / kk[i].norm().clamp_min(1e-12)
                S[l][h] = S[l][h] * w[i] - torch.outer(S[l][h] @ kk_h, kk_h * a[i]) + torch.outer(v[i], k[i])
                y_h = S[l][h] @ r[i]
                y_h = (y_h - y_h.mean()) / (y_h.var(unbiased=False) + 64e-5).sqrt()
                y[i] = y_h * q["att.ln_x.weight"][i] + q["att.ln_x.bias"][i] + (r[i] * k[i] * q["att.r_k"][h]).sum() * v[i]
            x = x + q["att.output.weight"] @ (y * g)
            z = layer_norm(x, q, "ln2")
            x = x + q["ffn.value.weight"] @ torch.relu(q["ffn.key.weight"] @ (z + (ffn_prev[l] - z) * q["ffn.x_k"])).square()
            ffn_prev[l] = z
        out.append(p["head.weight"] @ layer_norm(x, p, "ln_out"))
    return torch.stack(out)


@torch.no_grad()
def test_forward_equals_the_definition():
    model = random_model()
    tokens = torch.randint(0, SIZE.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    hidden, _ = model(tokens)
    for row in range(2):
        want = forward_by_definition(dict(model.named_parameters()), SIZE, tokens[row])
        torch.testing.assert_close(model.logits(hidden)[row], want, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 40, [16, 16, 8], [7, 1, 32]])
def test_whole_chunks_and_single_tokens_agree(pieces):
    model = random_model()
    tokens = torch.randint(0, SIZE.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    whole, end = model(tokens)
    state, parts, at = None, [], 0
    for n in pieces:
        hidden, state = model(tokens[:, at : at + n], state)
        parts.append(hidden)
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
    for a, b in zip(state.tensors(), end.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_reset_equals_documents_run_alone():
    model = random_model()
    tokens = torch.randint(0, SIZE.vocab_size, (1, 40), generator=torch.Generator().manual_seed(1))
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[0, [0, 13, 14, 33]] = True
    noise = State.zeros(SIZE, 1, torch.float64).map(torch.randn_like)
    packed, end = model(tokens, noise, reset)
    parts = [model(tokens[:, a:b]) for a, b in ((0, 13), (13, 14), (14, 33), (33, 40))]
    torch.testing.assert_close(packed, torch.cat([h for h, _ in parts], 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(end.wkv, parts[-1][1].wkv, rtol=1e-10, atol=1e-10)


def test_gradients_reach_every_parameter_and_the_state():
    model = random_model()
    tokens = torch.randint(0, SIZE.vocab_size, (2, 21), generator=torch.Generator().manual_seed(1))
    state = State.zeros(SIZE, 2, torch.float64).leaf()
    loss, _ = LossModel(model)(tokens[:, :-1], state, None, tokens[:, 1:], torch.full((2, 20), 1 / 40, dtype=torch.float64))
    loss.backward()
    unused = {f"blocks.0.att.v{i}" for i in range(3)}
    assert {n for n, p in model.named_parameters() if p.grad is None} == unused
    assert all(x.grad.abs().sum() > 0 for x in state.tensors())


@torch.no_grad()
@pytest.mark.parametrize("vocab", [65536, 50304])
def test_official_initial_loss(vocab):
    """At the official initialisation every block adds 0, and the loss, averaged over all targets, is ln V + 0.1213."""
    size = Size(2, 256, vocab, LoraRank.default(256))
    model = RWKV(size).init_weights(3)
    hidden, _ = model(torch.randint(0, vocab, (1, 64), generator=torch.Generator().manual_seed(0)))
    logits = model.logits(hidden)
    loss = (logits.logsumexp(-1) - logits.mean(-1)).mean().item()
    assert abs(loss - (math.log(vocab) + 0.1213)) < 0.01


def test_initialisation_table():
    """Spot values of every row of the table, computed here by hand for layer 1 of 3."""
    size = Size(3, 128, 300, LoraRank.default(128))
    model = RWKV(size).init_weights(0)
    att, ffn = model.blocks[1].att, model.blocks[1].ffn
    r01, r10, C, N = 0.5, 2 / 3, 128, 64
    i = 70
    d, lin, z = i / C, i / (C - 1), (i % N - 31.5) / 31.5
    zz, lc = z * abs(z), lin - 0.5
    want = {
        "x_r": 1 - d ** (0.2 * r10), "x_g": 1 - d ** (0.2 * r10), "x_w": 1 - d ** (0.9 * r10), "x_a": 1 - d ** (0.9 * r10),
        "x_k": 1 - d ** (0.7 * r10), "x_v": 1 - d ** (0.7 * r10),
        "w0": -6 + 6 * lin ** (1 + r01**0.3) + 0.5 + 2.5 * zz, "a0": -0.19 + 0.3 * zz + 0.4 * lc, "v0": 0.73 - 0.4 * lc,
        "k_k": 0.71 - 0.1 * lc, "k_a": 1.02,
    }  # fmt: skip
    for name, value in want.items():
        assert getattr(att, name)[0, 0, i].item() == pytest.approx(value, rel=1e-5), name
    assert (att.r_k == -0.04).all()
    assert ffn.x_k[0, 0, i].item() == pytest.approx(1 - d ** (r10**4), rel=1e-5)
    assert att.ln_x.weight[i].item() == pytest.approx((2 / 3) ** 0.7)
    gains = {att.receptance: 1.0, att.key: 0.1, att.value: 1.0, ffn.key: 1.0, model.head: 0.5 * (300 / 128) ** 0.5}
    for linear, gain in gains.items():
        assert torch.linalg.svdvals(linear.weight.detach()).allclose(torch.tensor(gain), rtol=1e-4)
    for second in (att.w2, att.a2, att.v2, att.g2):
        assert torch.linalg.svdvals(second.detach()).allclose(torch.tensor(0.1), rtol=1e-4)
    for zero in (att.output.weight, ffn.value.weight, att.w1, att.a1, att.v1, att.g1):
        assert not zero.any()
    assert model.emb.weight.abs().max() <= 1e-4


def test_one_layer_works():
    model = RWKV(Size(1, 64, 50, LoraRank.default(64))).init_weights(0)
    assert all(p.isfinite().all() for p in model.parameters())


def test_initialisation_depends_on_the_seed_alone():
    torch.manual_seed(5)
    a = RWKV(SIZE).init_weights(7)
    torch.manual_seed(6)
    b = RWKV(SIZE).init_weights(7)
    c = RWKV(SIZE).init_weights(8)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.emb.weight, c.emb.weight)


@pytest.mark.parametrize(
    ("width", "ranks"),
    [(256, (32, 32, 32, 64)), (384, (64, 64, 32, 96)), (768, (64, 64, 32, 128)), (1024, (64, 64, 64, 160)),
     (2048, (128, 128, 64, 224)), (2560, (128, 128, 96, 256)), (4096, (160, 160, 96, 320))],
)  # fmt: skip
def test_lora_rank_rule(width, ranks):
    assert LoraRank.default(width) == LoraRank(*ranks)


def test_optimizer_groups():
    groups = RWKV(SIZE).optimizer_groups()
    twice = {n for n, (scale, _) in groups.items() if scale == 2}
    decayed = {n for n, (_, decays) in groups.items() if decays}
    assert twice == {f"blocks.{i}.att.w0" for i in range(3)}
    matrices = ["att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value"]
    assert decayed == {"emb.weight", "head.weight"} | {f"blocks.{i}.{m}.weight" for i in range(3) for m in matrices}
