import numpy as np
import torch
from torch.testing import assert_close

from terrazzo.optim.stable_adamw import stable_adamw_step


def reference(p, m, v, g, t, lr, beta1, beta2, eps, decay):
    """Algorithm 2 of arXiv 2304.13013, line by line, one tensor."""
    beta1 = beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t)
    beta2 = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    rms = np.sqrt(np.mean(g**2 / np.maximum(v, eps**2)))
    lr = lr / max(1, rms)
    return p - lr * decay * p - lr * m / (np.sqrt(v) + eps), m, v, rms


def test_equals_the_paper_tensor_by_tensor():
    draw = np.random.default_rng(0)
    state = [(draw.normal(size=shape), np.zeros(shape), np.zeros(shape)) for shape in [(5, 3), (7,), ()]]
    params, means, squares = ([torch.tensor(row[i]) for row in state] for i in range(3))
    clipped = []
    for t in range(1, 12):
        scales = [1.0, 100.0 if t == 6 else 1.0, 0.01]
        grads = [draw.normal(size=row[0].shape) * scale for row, scale in zip(state, scales, strict=True)]
        done = [reference(*row, g, t, 1e-2, 0.9, 0.98, 1e-6, 0.3) for row, g in zip(state, grads, strict=True)]
        state = [row[:3] for row in done]
        clipped += [index for index, row in enumerate(done) if t == 6 and row[3] > 2]
        tensors = [torch.as_tensor(g) for g in grads]
        stable_adamw_step(
            params, tensors, means, squares, [t] * 3, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.3
        )
    assert clipped == [1], "the spike must clip its own tensor and no other"
    for index, (p, m, v) in enumerate(state):
        assert_close(params[index], torch.as_tensor(p), rtol=0, atol=1e-12)
        assert_close(means[index], torch.as_tensor(m), rtol=0, atol=1e-12)
        assert_close(squares[index], torch.as_tensor(v), rtol=1e-12, atol=0)


def test_a_spike_moves_the_weights_no_further_than_lr():
    """After a thousand small gradients a thousandfold one would move AdamW by 7 lr."""
    p, m, v = torch.zeros(64), torch.zeros(64), torch.zeros(64)
    for t in range(1, 101):
        g = torch.randn(64) * (1000.0 if t == 100 else 1.0)
        before = p.clone()
        stable_adamw_step([p], [g], [m], [v], [t], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    assert (p - before).square().mean().sqrt() < 1e-2
