"""What the papers prove, as closed forms in plain numpy: optima, risks, bounds, time courses. One module a paper.

Nothing here knows a model, an objective or a training loop, so that a formula shares no code with what it is compared with.
"""

from icl_lab.theory import exact_loss as exact_loss
from icl_lab.theory import lsa as lsa
from icl_lab.theory import mahankali2023 as mahankali2023
from icl_lab.theory import vonoswald2022 as vonoswald2022
from icl_lab.theory import zhang2023 as zhang2023
from icl_lab.theory.optimum import Optimum as Optimum
