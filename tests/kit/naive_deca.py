"""DECA (4)–(9) written down once more, all nodes in one loop, a formula a line: what the fast code
is held against.
"""

import math

import torch

B = {
    "reference": (0.2, 0.333),
    "literal": (0.9, 0.999),
    "scaled": (0.9, 0.999),
    "trivial": (0.9, 0.999),
}


def rate(t, o):
    if t < o["warmup"]:
        return o["lr"] * (t + 1) / (o["warmup"] + 1)
    gone = min(1, (t - o["warmup"]) / (o["decay_until"] - o["warmup"]))
    return (
        o["lr"]
        * {"no": 1, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}[o["decay"]]
    )


def played(weights, blocks, start, gradient, rounds, o):
    """Node -> parameters [d] after the rounds.

    Args:
        weights: w_ij as weights[i][j].
        blocks: slices of x, in the order of the visits of a cycle.
        gradient: (i, θ, slice, t) -> g.
        o: the algorithm's options, and b: (b₁, b₂) where they aren't the signal's.
    """
    x = {i: start.clone() for i in weights}
    zero = {i: torch.zeros_like(start) for i in weights}
    for t in range(rounds):
        visit, r = divmod(t, o["steps"])
        k = blocks[visit % len(blocks)]
        if r == 0:
            theta = {i: x[i][k].clone() for i in x}
            m, v, left = ({i: zero[i][k].clone() for i in x} for _ in range(3))
            before, since = {i: theta[i].clone() for i in x}, 0.0
        gamma, half, carried, root = rate(t, o), {}, {}, {}
        since += gamma
        for i in x:
            g = gradient(i, theta[i], k, t)
            g = g * min(1.0, o["clip_norm"] / float(g.norm()))
            carried[i] = m[i], v[i]
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            root[i] = (v[i] / (1 - 0.999 ** (r + 1))).sqrt() + 1e-8
            half[i] = (
                theta[i] * (1 - gamma * o["weight_decay"])
                - gamma * m[i] / (1 - 0.9 ** (r + 1)) / root[i]
            )
        theta = half
        if (r + 1) % o["mix_every"] and r + 1 < o["steps"]:
            pass
        else:
            if o["wire"] == "bf16-delta":
                change = {i: left[i] + half[i] - before[i] for i in x}
                sent = {i: change[i].to(torch.bfloat16).to(start.dtype) for i in x}
                left = {i: change[i] - sent[i] for i in x}
                theta = {i: before[i] + sum(w * sent[j] for j, w in weights[i].items()) for i in x}
            else:
                theta = {i: sum(w * half[j] for j, w in weights[i].items()) for i in x}
            for i in x if o["bma"] != "none" else ():
                delta = before[i] - theta[i]
                h = {
                    "reference": delta / max(float(delta.norm()), 1e-6),
                    "literal": -delta,
                    "scaled": delta / since * root[i] if since else None,
                    "trivial": delta / max(float(delta.norm()), 1.0),
                }[o["bma"]]
                if h is not None:
                    b1, b2 = B[o["bma"]]
                    m_, v_ = carried[i] if o["bma"] == "trivial" else (m[i], v[i])
                    m[i], v[i] = b1 * m_ + (1 - b1) * h, b2 * v_ + (1 - b2) * h**2
            before, since = {i: theta[i].clone() for i in x}, 0.0
        for i in x:
            x[i][k] = theta[i]
    return x
