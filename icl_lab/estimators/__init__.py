"""Algorithms on ONE prompt: pure functions of a prompt, safe under jit and vmap, that return the prediction (k,).

Where an algorithm fits a matrix W (k, d), the function with the suffix `_weights` returns it; the prediction is W x_q.
"""

from icl_lab.estimators.batch.gradient_descent import gd_plus_plus as gd_plus_plus
from icl_lab.estimators.batch.gradient_descent import gd_plus_plus_weights as gd_plus_plus_weights
from icl_lab.estimators.batch.gradient_descent import gradient_descent as gradient_descent
from icl_lab.estimators.batch.gradient_descent import gradient_descent_weights as gradient_descent_weights
from icl_lab.estimators.batch.gradient_descent import mean_gradient as mean_gradient
from icl_lab.estimators.batch.least_squares import ols as ols
from icl_lab.estimators.batch.least_squares import ols_weights as ols_weights
from icl_lab.estimators.batch.preconditioned import preconditioned_gradient_descent as preconditioned_gradient_descent
from icl_lab.estimators.batch.preconditioned import (
    preconditioned_gradient_descent_weights as preconditioned_gradient_descent_weights,
)
from icl_lab.estimators.batch.refinement import chebyshev_steps as chebyshev_steps
from icl_lab.estimators.batch.refinement import query_refinement as query_refinement
from icl_lab.estimators.batch.refinement import refined_query as refined_query
from icl_lab.estimators.batch.ridge import ridge as ridge
from icl_lab.estimators.batch.ridge import ridge_weights as ridge_weights
from icl_lab.estimators.names import ESTIMATORS as ESTIMATORS
from icl_lab.estimators.names import named as named
from icl_lab.estimators.online.discounted import discounted_gradient_step as discounted_gradient_step
from icl_lab.estimators.online.discounted import discounted_gradient_step_weights as discounted_gradient_step_weights
from icl_lab.estimators.online.discounted import discounted_ridge as discounted_ridge
from icl_lab.estimators.online.discounted import discounted_ridge_weights as discounted_ridge_weights
from icl_lab.estimators.online.discounted import weighted_gradient_step as weighted_gradient_step
from icl_lab.estimators.online.discounted import weighted_gradient_step_weights as weighted_gradient_step_weights
from icl_lab.estimators.online.gauss_seidel import gauss_seidel as gauss_seidel
from icl_lab.estimators.online.gauss_seidel import gauss_seidel_weights as gauss_seidel_weights
from icl_lab.estimators.online.kalman import kalman as kalman
from icl_lab.estimators.online.kalman import kalman_weights as kalman_weights
from icl_lab.estimators.online.minibatch import minibatch_sgd as minibatch_sgd
from icl_lab.estimators.online.minibatch import minibatch_sgd_weights as minibatch_sgd_weights
from icl_lab.estimators.online.momentum import momentum_sgd as momentum_sgd
from icl_lab.estimators.online.momentum import momentum_sgd_path as momentum_sgd_path
from icl_lab.estimators.online.momentum import momentum_sgd_weights as momentum_sgd_weights
from icl_lab.estimators.online.recursive import recursive_least_squares as recursive_least_squares
from icl_lab.estimators.online.recursive import recursive_least_squares_path as recursive_least_squares_path
from icl_lab.estimators.online.recursive import recursive_least_squares_weights as recursive_least_squares_weights
from icl_lab.estimators.online.sgd import implicit_online_sgd as implicit_online_sgd
from icl_lab.estimators.online.sgd import implicit_online_sgd_path as implicit_online_sgd_path
from icl_lab.estimators.online.sgd import implicit_online_sgd_weights as implicit_online_sgd_weights
from icl_lab.estimators.online.sgd import online_sgd as online_sgd
from icl_lab.estimators.online.sgd import online_sgd_path as online_sgd_path
from icl_lab.estimators.online.sgd import online_sgd_weights as online_sgd_weights
from icl_lab.estimators.sequences import dirichlet_posterior as dirichlet_posterior
from icl_lab.estimators.sequences import dirichlet_posterior_weights as dirichlet_posterior_weights
from icl_lab.estimators.sequences import last_value as last_value
from icl_lab.estimators.sequences import yule_walker as yule_walker
from icl_lab.estimators.sequences import yule_walker_weights as yule_walker_weights
from icl_lab.estimators.sequences import zero as zero
from icl_lab.estimators.smoother import EXPONENTS as EXPONENTS
from icl_lab.estimators.smoother import KERNELS as KERNELS
from icl_lab.estimators.smoother import kernel_scores as kernel_scores
from icl_lab.estimators.smoother import kernel_smoother as kernel_smoother
