"""The torch side of `cargo bench -- nn`: reads the name of a case per line, runs it forward and backward once, and
prints the processor seconds (all threads) and the seconds on the clock that it took."""

import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def attention(b, h, n, d):
    q, k, v = leaf(b, n, h, d), leaf(b, n, h, d), leaf(b, n, h, d)
    heads_first = lambda t: t.transpose(1, 2)
    run = lambda: F.scaled_dot_product_attention(*map(heads_first, (q, k, v))).transpose(1, 2).reshape(b, n, h * d)
    return run, [q, k, v]


def joint_attention(b, h, n, m, d):
    parts = [[leaf(b, length, h, d) for length in (n, m)] for _ in range(3)]

    def run():
        q, k, v = (torch.cat(part, 1).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n + m, h * d)
        return torch.cat([out[:, :n], out[:, n:]], 1)

    return run, sum(parts, [])


def modulate(b, n, d):
    x, scale, shift = leaf(b, n, d), torch.randn(b, d), torch.randn(b, d)
    return lambda: F.layer_norm(x, (d,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None], [x]


def gated(b, n, d):
    x, gate, y = leaf(b, n, d), torch.randn(b, d), leaf(b, n, d)
    return lambda: x + gate[:, None] * y, [x, y]


def rms(b, n, h, d):
    x, weight = leaf(b, n, h, d), torch.randn(d)
    # As diffusers' RMSNorm.
    return lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight, [x]


def gelu(b, n, d):
    x = leaf(b, n, d)
    return lambda: F.gelu(x, approximate="tanh"), [x]


def lora(b, n, inner, out, rank):
    x, w, bias = leaf(b, n, inner), torch.randn(out, inner), torch.randn(out)
    a, up = leaf(rank, inner), leaf(out, rank)
    return lambda: F.linear(x, w, bias) + F.linear(F.linear(x, a), up) * 0.5, [x, a, up]


KINDS = dict(attention=attention, joint_attention=joint_attention, modulate=modulate, gated=gated, rms=rms, gelu=gelu, lora=lora)
cases = {}
print("ready", flush=True)
for line in sys.stdin:
    name, *sizes = line.split()
    if line not in cases:
        run, leaves = KINDS[name](*map(int, sizes))
        cases[line] = run, leaves, torch.randn_like(run())
    run, leaves, seed = cases[line]
    cpu, wall = time.process_time(), time.perf_counter()
    torch.autograd.grad(run(), leaves, seed)
    print(time.process_time() - cpu, time.perf_counter() - wall, flush=True)
