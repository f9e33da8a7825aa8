"""Markov chains with a random transition matrix, as prompts of pairs of a state and the next one."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import check_positive
from icl_lab.tasks.prompt import Prompt, Task, as_default_float, as_float64, check_count, check_prompt_fits


class MarkovChain(Task):
    """A chain s_1, s_2, .. on S states, shown as N one-hot pairs (s_t, s_{t+1}); asked for is the state after s_{N+1}.

    The rows of the transition matrix P are independent Dirichlet(beta, .., beta), drawn once per prompt, and s_1 is uniform.
    As for every sequence, the target is the value that does follow, so that no predictor has a risk below the expected
    variance of the next state; its distribution given the prompt's own P is `prompt.query @ prompt.latent`.

    Args:
      states: S >= 2.
      context_length: N >= 1 observed pairs, so N + 1 observed states.
      concentration: beta > 0: rows are near a single state for small beta, near uniform for large beta, and uniformly
        distributed at 1.

    Attributes:
      dim, label_dim: S.

    Raises:
      InvalidValueError: fewer than two states, no pair, or a concentration that is not > 0.

    Examples:
      >>> import jax
      >>> from icl_lab import tasks
      >>> prompt = tasks.MarkovChain(states=3, context_length=5).sample(jax.random.key(0))
      >>> prompt.inputs.shape, prompt.latent.shape
      ((5, 3), (3, 3))

    Source: the Markov chains of Bondaschi et al. (arXiv 2502.10178), whose transitions have a Dirichlet prior.
    """

    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    concentration: Float[Array, ""]

    def __init__(self, states: int, context_length: int, concentration: float | Float[Array, ""] = 1.0):
        check_count(states, "states", 2, "The next of fewer states is no question.")
        self.dim = self.label_dim = states
        self.context_length = context_length
        self.concentration = as_float64(concentration)

    def __check_init__(self):
        check_count(self.context_length, "context_length", 1, "A prompt shows at least one pair of states.")
        check_positive(self.concentration, "concentration", "it is the parameter of a Dirichlet distribution")

    def with_context_length(self, length: int) -> MarkovChain:
        return MarkovChain(self.dim, length, self.concentration)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is P (S, S), whose row i is the distribution of the state after state i."""
        check_prompt_fits(self.context_length, self.dim)
        prior = jnp.broadcast_to(as_default_float(self.concentration), (self.dim,))
        transitions = jax.random.dirichlet(stream(key, "task"), prior, (self.dim,))
        first = jax.random.randint(stream(key, "start"), (), 0, self.dim)
        uniforms = jax.random.uniform(stream(key, "steps"), (self.context_length + 1,))
        # Without the last entry, which is 1 up to rounding only.
        cumulative = jnp.cumsum(transitions, axis=1)[:, :-1]

        def step(state: Array, uniform: Array):
            following = jnp.sum(uniform >= cumulative[state], dtype=state.dtype)
            return following, following

        _, later = jax.lax.scan(step, first, uniforms)
        chain = jnp.eye(self.dim)[jnp.append(first, later)]
        return Prompt(inputs=chain[:-2], labels=chain[1:-1], query=chain[-2], target=chain[-1], latent=transitions)
