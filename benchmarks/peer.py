"""The same model in PyTorch, written as one would: the peer of benchmarks.

Needs `pip install -e '.[oracle]'`. `tests/test_peer.py` checks that its
quantizer computes what gmvq_jax's does, and that its networks have the same
parameters.
"""

import torch
from torch import nn
from torch.nn import functional


class GMVQ(nn.Module):
  """Plain GM-VQ: every array of [N, C] is held."""

  def __init__(self, num_codes, dim, *, gamma, beta):
    super().__init__()
    self.codebook = nn.Parameter(torch.randn(num_codes, dim))
    self.gamma, self.beta = gamma, beta

  def forward(self, h, temperature, gumbel=None, eps=None):
    """Returns z, the loss and codes, from `h [N, 2 L]`."""
    z_hat, raw = h.chunk(2, dim=-1)
    weights, codebook = functional.softplus(raw), self.codebook
    logits = (weights * z_hat) @ codebook.T - 0.5 * weights @ (codebook**2).T
    log_probs = functional.log_softmax(logits, dim=-1)
    if gumbel is None:
      gumbel = -torch.empty_like(logits).exponential_().log()
    if eps is None:
      eps = torch.randn_like(z_hat)
    perturbed = log_probs + gumbel
    codes = perturbed.argmax(dim=-1)
    soft = functional.softmax(perturbed / temperature, dim=-1)
    one_hot = torch.zeros_like(soft).scatter_(-1, codes[:, None], 1.0)
    c_q = one_hot + soft - soft.detach()
    variance = (z_hat - codebook[codes]).square().mean(dim=-1)
    sigma = (variance + 1e-8).sqrt()
    z = c_q @ codebook + sigma[:, None] * eps
    q_c = log_probs.exp().mean(dim=0)
    kl = torch.log(q_c * len(q_c)).mul(q_c).sum()
    latent = z_hat.shape[-1] * variance.mean()
    return z, self.gamma * (latent + self.beta * kl), codes


class ConvNorm(nn.Module):
  """A convolution, batch norm, and perhaps pixel shuffle between them."""

  def __init__(self, inputs, outputs, kernel, stride=1, upsample=False):
    super().__init__()
    self.conv = nn.Conv2d(
        inputs,
        outputs * (4 if upsample else 1),
        kernel,
        stride,
        (kernel - 1) // 2,
        bias=False,
    )
    self.shuffle = nn.PixelShuffle(2) if upsample else nn.Identity()
    self.norm = nn.BatchNorm2d(outputs)

  def forward(self, x):
    """Returns features of `x [B, K, H, W]`."""
    return self.norm(self.shuffle(self.conv(x)))


class ResidualBlock(nn.Module):
  """x + [ReLU, conv 3x3, norm, ReLU, conv 1x1, norm]."""

  def __init__(self, width):
    super().__init__()
    self.first = ConvNorm(width, width, 3)
    self.second = ConvNorm(width, width, 1)

  def forward(self, x):
    """Returns features like `x [B, K, H, W]`."""
    h = self.first(functional.relu(x))
    return x + self.second(functional.relu(h))


class Autoencoder(nn.Module):
  """The networks of `gmvq_jax.nn.networks` at their defaults for CIFAR10."""

  def __init__(self, num_codes=1024, dim=64, *, gamma=0.01, beta=10.0):
    super().__init__()
    self.encoder = nn.Sequential(
        ConvNorm(3, dim // 2, 4, 2), nn.ReLU(),
        ConvNorm(dim // 2, dim, 4, 2), nn.ReLU(),
        ConvNorm(dim, dim, 3), nn.ReLU(),
        ResidualBlock(dim), ResidualBlock(dim),
    )  # fmt: skip
    self.heads = nn.ModuleList([ResidualBlock(dim), ResidualBlock(dim)])
    self.quantizer = GMVQ(num_codes, dim, gamma=gamma, beta=beta)
    self.decoder = nn.Sequential(
        ResidualBlock(dim), ResidualBlock(dim),
        ConvNorm(dim, dim, 3), nn.ReLU(),
        ConvNorm(dim, dim // 2, 3, upsample=True), nn.ReLU(),
        nn.Conv2d(dim // 2, 12, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip

  def forward(self, images, temperature):
    """Returns the loss of images `[B, 3, H, W]` in [0, 1]."""
    features = self.encoder(2 * images - 1)
    h = torch.cat([head(features) for head in self.heads], dim=1)
    rows = h.permute(0, 2, 3, 1)
    z, loss, _ = self.quantizer(rows.reshape(-1, h.shape[1]), temperature)
    z = z.reshape(*rows.shape[:-1], -1).permute(0, 3, 1, 2)
    decoded = self.decoder(z.contiguous()).sigmoid()
    per_value = rows[0, ..., 0].numel() / images[0].numel()
    return (decoded - images).square().mean() + per_value * loss
