"""Training: gradient flow, optax optimisers, trajectories, verdicts, checkpoints."""

from icl_lab.training.descent import descend as descend
from icl_lab.training.descents import Descents as Descents
from icl_lab.training.descents import descend_all as descend_all
from icl_lab.training.ensemble import Ensemble as Ensemble
from icl_lab.training.ensemble import gradient_flows as gradient_flows
from icl_lab.training.gradient_flow import gradient_flow as gradient_flow
from icl_lab.training.stopping import Evidence as Evidence
from icl_lab.training.stopping import Verdict as Verdict
from icl_lab.training.trajectory import TrainingResult as TrainingResult
from icl_lab.training.trajectory import Trajectory as Trajectory
