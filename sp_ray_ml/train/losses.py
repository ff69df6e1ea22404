"""Settings of the losses that learn to rank. Imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from sp_ray_ml.config import Family, Settings

__all__ = ["BPR", "Loss", "LossField", "SampledSoftmax"]


class Loss(Settings):
    """Compares a user's targets with items that the user did not have."""

    source: Literal["uniform", "in_batch"] = "uniform"
    """Where negatives come from: all items that are known alike, or the targets of the batch."""


class SampledSoftmax(Loss):
    """Softmax over a sample of the items, for user u and target i:

        -log( exp(s_ui) / (exp(s_ui) + Σ_{j ∈ S \\ H_u} exp(s_uj - log q_j)) )

    S is a sample that the batch shares, H_u the user's edges that are in the graph (with `supervision: {kind: all}` all
    of them, so that no target stands against another), q_j the probability that j is in S (the logQ
    correction of Yi et al. 2019, "Sampling-bias-corrected neural modeling"; Bengio & Senécal 2008). With `negatives`
    at least the number of items, S is all items and the loss the exact softmax.
    """

    negatives: int = pydantic.Field(default=4096, ge=1)
    """Size of S for `uniform`."""


class BPR(Loss):
    """Bayesian personalized ranking (Rendle et al. 2009, arXiv:1205.2618): -mean log σ(s_ui - s_uj)."""

    negatives: int = pydantic.Field(default=8, ge=1)
    """Negatives j drawn for each target i."""


LossField = Annotated[
    Loss,
    Family(
        "loss",
        {"sampled_softmax": "sp_ray_ml.train.losses:SampledSoftmax", "bpr": "sp_ray_ml.train.losses:BPR"},
        default="sampled_softmax",
    ),
]
