"""The exact loss as a function of structured heads with separate key and query, as arXiv 2501.16265 trains them."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.claims.settings.flow_paths import Reparametrised
from icl_lab.core.typing import Array
from icl_lab.models.weights import SeparateWeights
from icl_lab.objectives.objective import Objective


class Heads(eqx.Module):
    """H structured heads of rank R: head h adds v_h b^T K_h^T Q_h x_q / N.

    `SeparateWeights` would train two factors of the value as well; here it is one number.
    """

    values: Float[Array, "H"]
    keys: Float[Array, "H R d"]
    queries: Float[Array, "H R d"]

    def product(self) -> Float[Array, "d d"]:
        """W = sum_h v_h K_h^T Q_h."""
        return np.einsum("h,hri,hrj->ij", self.values, self.keys, self.queries)


def embed(heads: Heads) -> SeparateWeights:
    """The layer's weights: the value in the label slot, zeros in the label's column of key and query."""
    count, rank, dim = heads.keys.shape
    label = jnp.zeros((count, dim + 1, 1)).at[:, -1, :].set(1.0)

    def padded(matrix):
        return jnp.concatenate([jnp.asarray(matrix), jnp.zeros((count, rank, 1))], axis=2)

    return SeparateWeights(
        w_p=label,
        w_v=jnp.swapaxes(label, 1, 2) * heads.values[:, None, None],
        w_k=padded(heads.keys),
        w_q=padded(heads.queries),
    )


def heads_loss(objective: Objective) -> Reparametrised:
    """An exact loss as a function of `Heads`."""
    return Reparametrised(objective, embed)
