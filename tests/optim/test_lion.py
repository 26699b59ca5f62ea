import numpy as np
import torch
from torch.testing import assert_close

from terrazzo.optim.lion import lion_step


def reference(p, m, g, lr, beta1, beta2, decay):
    """Algorithm 2 of arXiv 2302.06675, line by line."""
    c = beta1 * m + (1 - beta1) * g
    p = p - lr * (np.sign(c) + decay * p)
    return p, beta2 * m + (1 - beta2) * g


def test_equals_the_paper():
    draw = np.random.default_rng(0)
    p, m = draw.normal(size=(5, 3)), np.zeros((5, 3))
    params, momenta = [torch.from_numpy(p.copy())], [torch.from_numpy(m.copy())]
    for _ in range(20):
        g = draw.normal(size=(5, 3))
        p, m = reference(p, m, g, 1e-2, 0.95, 0.98, 0.3)
        lion_step(params, [torch.from_numpy(g)], momenta, lr=1e-2, betas=(0.95, 0.98), weight_decay=0.3)
    assert_close(params[0], torch.from_numpy(p), rtol=0, atol=1e-7)
    assert_close(momenta[0], torch.from_numpy(m), rtol=0, atol=1e-7)
