"""The strongest maintained methods of others, run on our splits, standardization and network: one file each."""

from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.mixture import Mixture
from experiments.peer_methods.registry import EXTRA, PEERS, Peer, PeerNotInstalledError

__all__ = ["EXTRA", "PEERS", "Budget", "Mixture", "Peer", "PeerNotInstalledError", "Prediction"]
