"""The ledger: what the article and the paper say, what was measured for it here, and the verdict
that follows.

Every verdict is computed from results/, by the rules below; each statement's definition names the
measure. A row also names the model that is judged, the protocol, and how many there were of what
was measured (n).

- *Holds*: a claimed number lies in an interval at most ten points wide; or the whole interval is
  above a claimed number, or on the side of a claimed bound.
- *Holds, but not owing to diffusion*: what is claimed is found, and so it is of a control that needs
  no diffusion model: the mean alone, one Gaussian, a mixture of Gaussians or an average of several;
  or of data in which it cannot be, such as draws from a Gaussian.
- *Does not hold*: the interval contradicts the statement. *Undecided*: it leaves both open, or is
  too wide to tell, or what it is depends on a choice that the statement leaves open (a noise level,
  a floor, an envelope), or the control that would tell is missing.
- *Not comparable*: measured, but in other units, at another scale or by another protocol than the
  statement's: so is a UNet smaller than the article's. *Not tested*: with the reason.

The article's statements are judged by the network that each row names. The paper's are judged by
the paper's MLP; ours stands beside it in the note.

A measure without an interval holds where it is more than twice what chance and what its control
give. Within a tenth of the control's it is owing to that; between, it is undecided.

*47 % better fidelity* is the reduction of Δ LM loss over the mixed SAE, summed over σ, which the
noisiest dominates. It is undecided where single σ, the mean of the reductions at each σ or another
SAE have an unlike verdict.

Controls of the applications: for hidden units, dictionaries that no diffusion model made (plain
dimensions, neurons of the block, the SAE before TopK); for steering, one step of a mixture of
Gaussians.
"""

from mmlib_studies.claims.ledger import as_table, in_words, ledger
from mmlib_studies.claims.statements import CLAIMS, Claim
from mmlib_studies.notebooks import OPTIONAL as _OPTIONAL

OPTIONAL = tuple(_OPTIONAL.values())  # notebooks whose results a run may lack

__all__ = ["CLAIMS", "OPTIONAL", "Claim", "as_table", "in_words", "ledger"]
