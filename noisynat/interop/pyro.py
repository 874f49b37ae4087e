"""A network as a Pyro model and guide, and its exact posterior by NUTS.

Pyro (Bingham et al. 2019) comes with the extra ``noisynat[pyro]``; importing this module does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from noisynat import border, linalg
from noisynat.interop.log_joint import check_supported, functions, prior_variances
from noisynat.interop.nuts import require_pyro, sample_nuts
from noisynat.interop.nuts_posterior import Diagnostics, NUTSPosterior, UnconvergedError
from noisynat.likelihoods import GaussianLikelihood

if TYPE_CHECKING:
    from noisynat.network import VariationalNetwork
    from noisynat.posteriors.base import Posterior

__all__ = ["Diagnostics", "NUTSPosterior", "PyroNetwork", "UnconvergedError", "sample_nuts"]


class PyroNetwork:
    """A :class:`~noisynat.VariationalNetwork` as a Pyro model and a guide that is its posterior q, exactly.

    The model's sample sites are, per layer, ``"<layer>.weight"`` of shape (out, in + 1), its last column the bias;
    ``"precision"`` (precisions,) where the noise has a gamma prior; and ``"y"`` (N, K). The outputs are the
    deterministic site ``"f"`` (N, K). The guide has the sites of weights and precision; a posterior over several
    layers together is drawn as one auxiliary site, ``"weights"``.

    ``pyro.infer.Trace_ELBO().loss(p.model, p.guide, x, y)`` estimates minus :meth:`noisynat.VariationalNetwork.elbo`,
    with the KL of the weights scaled by the network's ``kl_weight`` in both. Data of other than ``num_data`` rows count
    as a minibatch and are scaled. The network is read as it is when a site is drawn; nothing here trains it: neither
    model nor guide has Pyro parameters. Random numbers are Pyro's, from the global generators.

    Args:
        network: without replicas, with a Gaussian likelihood.

    Raises:
        ImportError: if Pyro is not installed.
        ValueError: if the network has replicas or another likelihood, or a posterior by groups, as of normalizations
            and grouped convolutions.

    Example:
        >>> import torch, noisynat
        >>> from pyro.infer import Predictive
        >>> from noisynat.interop.pyro import PyroNetwork
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(noise=0.1), num_data=100)
        >>> p = PyroNetwork(bnn)
        >>> draws = Predictive(p.model, guide=p.guide, num_samples=10)(torch.zeros(3, 2))
        >>> draws["y"].shape, draws["f"].shape, draws["0.weight"].shape
        (torch.Size([10, 3, 1]), torch.Size([10, 3, 1]), torch.Size([10, 1, 8, 3]))
    """

    def __init__(self, network: VariationalNetwork) -> None:
        require_pyro()
        check_supported(network)
        grouped = [posterior.name for posterior in network.posteriors if len(posterior._packed_shape) > 2]
        if grouped:
            raise ValueError(
                f"the guide knows no posteriors by groups of outputs, as those of {', '.join(grouped)}; use "
                "posterior='dense' or 'dense_per_layer'"
            )
        self.network = network

    @property
    def weight_sites(self) -> list[str]:
        """Names of the weights' sites, in the network's order."""
        return [f"{layer.name}.weight" for layer in self.network.layers]

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """p(w) p(precision) p(y | x, w, precision).

        Args:
            x: inputs (N, in).
            y: targets (N, K) to condition on.

        Returns:
            y as given or drawn, (N, K).
        """
        pyro = require_pyro()
        dist, network = pyro.distributions, self.network
        x = border.checked_inputs(x, network.layers[0].mean)
        weights = []
        with pyro.poutine.scale(scale=network.kl_weight):
            for site, layer, eta in zip(self.weight_sites, network.layers, prior_variances(network), strict=True):
                std = eta.sqrt().to(layer.mean.dtype)
                weights.append(pyro.sample(site, dist.Normal(0 * std, std).expand(layer.mean.shape).to_event(2)))
        precision, f = self._precision(prior=True), self._functions(weights, x)
        scale = 1.0
        if y is not None:
            scale = network.num_data / len(x)
            network.likelihood.check_targets(f[(0,) * (f.dim() - 2)], border.checked_targets(y))
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=scale):
            f = pyro.deterministic("f", f, event_dim=1)
            drawn: Tensor = pyro.sample("y", dist.Normal(f, precision.rsqrt()).to_event(1), obs=y)
        return drawn

    def guide(self, x: Tensor | None = None, y: Tensor | None = None) -> None:
        """q(w) q(precision); what it is does not depend on the arguments, which are the model's."""
        pyro = require_pyro()
        dist, network = pyro.distributions, self.network
        with pyro.poutine.scale(scale=network.kl_weight):
            for posterior in network.posteriors:
                sites = [f"{layer.name}.weight" for layer in posterior.layers]
                shape, like = posterior._packed_shape, posterior.layers[0].mean
                noise = dist.Normal(like.new_zeros(()), like.new_ones(())).expand(shape).to_event(2)
                q = dist.TransformedDistribution(noise, [_PosteriorTransform(posterior)])
                if len(sites) == 1:
                    pyro.sample(sites[0], q)
                    continue
                joint = pyro.sample("weights", q, infer={"is_auxiliary": True})
                for site, weight in zip(sites, posterior.unpack(joint), strict=True):
                    pyro.sample(site, dist.Delta(weight, event_dim=2))
        self._precision(prior=False)

    def _precision(self, *, prior: bool) -> Tensor:
        """The noise precision (precisions,) or (*sample, 1, precisions): a site if it has a prior."""
        pyro, likelihood = require_pyro(), self.network.likelihood
        assert isinstance(likelihood, GaussianLikelihood)
        dtype = self.network.layers[0].mean.dtype
        if likelihood.kind != "gamma":
            return likelihood.precision.to(dtype)
        rate = likelihood.posterior_rate
        shape = likelihood.shape
        if prior:
            shape, rate = torch.full_like(shape, likelihood.a0), torch.full_like(rate, likelihood.b0)
        gamma = pyro.distributions.Gamma(shape.to(dtype).expand(rate.shape), rate.to(dtype))
        drawn: Tensor = pyro.sample("precision", gamma.to_event(1))
        return drawn.unsqueeze(-2) if drawn.dim() == 2 else drawn  # Predictive(parallel=True) gives (S, precisions)

    def _functions(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """f (*sample, N, K) of weights (out, columns), (*sample, 1, out, columns) or, of Predictive, (S, out, columns).

        The 1 is the place of the plate over the data.
        """
        if weights[0].dim() == 2:
            return functions(self.network, [weight.unsqueeze(0) for weight in weights], x)[0]
        sample = weights[0].shape[:-3] or weights[0].shape[:1]
        flat = [weight.reshape(-1, *weight.shape[-2:]) for weight in weights]
        return functions(self.network, flat, x).unflatten(0, sample)


class _PosteriorTransform(Transform):
    """W = M + L E: a posterior's draw from standard normal numbers E, both packed (rows, columns)."""

    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.independent(constraints.real, 2)
    bijective = True

    def __init__(self, posterior: Posterior) -> None:
        super().__init__(cache_size=1)  # the density of a draw needs no inverse
        self._posterior = posterior
        self._mean = posterior.pack([layer.mean.detach() for layer in posterior.layers])
        self._root, self._scale = posterior._root, posterior._scale

    def _call(self, e: Tensor) -> Tensor:
        return self._mean + self._scale * self._root.sqrt_solve(e)

    def _inverse(self, weight: Tensor) -> Tensor:
        """E = L^T (L L^T)^-1 (W - M), by way of the dense matrices: for small networks."""
        rows, columns = self._posterior._packed_shape
        eye = torch.eye(rows * columns, dtype=torch.float64, device=weight.device).unflatten(-1, (rows, columns))
        root = self._scale * self._root.sqrt_solve(eye.to(weight.dtype)).flatten(-2).mT.double()  # L
        factor, _ = linalg.cholesky(root @ root.mT)
        deviation = (weight - self._mean).double().flatten(-2).unsqueeze(-1)
        e = root.mT @ linalg.cholesky_solve(deviation, factor)
        return e.squeeze(-1).unflatten(-1, (rows, columns)).to(weight.dtype)

    def log_abs_det_jacobian(self, e: Tensor, weight: Tensor) -> Tensor:
        """log |L|, the same for every draw: (*sample,)."""
        half = self._posterior._log_determinant().detach() / 2
        return half.to(e.dtype).expand(e.shape[:-2])
