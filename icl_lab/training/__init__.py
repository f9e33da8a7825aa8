"""Training: gradient flow, optax optimisers, results, verdicts, checkpoints."""

from icl_lab.training.descent import descend as descend
from icl_lab.training.descent import descents as descents
from icl_lab.training.flow import gradient_flow as gradient_flow
from icl_lab.training.flow import gradient_flow_each as gradient_flow_each
from icl_lab.training.flow import gradient_flows as gradient_flows
from icl_lab.training.result import Ensemble as Ensemble
from icl_lab.training.result import TrainingResult as TrainingResult
from icl_lab.training.result import Trajectory as Trajectory
from icl_lab.training.stopping import Evidence as Evidence
from icl_lab.training.stopping import Verdict as Verdict
