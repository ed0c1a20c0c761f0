"""The ledger: what the article and the paper say, what was measured for it here, and the verdict
that follows.

Every verdict is computed from results/, by the rules below; each statement's definition names the
measure.

- *Reproduced*: a claimed number lies in an interval at most ten points wide; or the whole interval
  is on the side of a claimed bound.
- *Exceeded*: the whole interval is above a claimed number. *Artefact*: what is claimed is found,
  and so it is of a control that needs no diffusion model: the mean alone, one Gaussian, a mixture
  of Gaussians; or of data in which it cannot be, such as draws from a Gaussian.
- *Not reproduced*: the interval contradicts the statement. *Undecided*: it leaves both open, or is
  too wide to tell, or what it is depends on a choice that the statement leaves open (a noise level,
  a floor, an envelope), or the control that would tell is missing.
- *Not comparable*: measured, but in other units or at another scale than the statement's. *Not
  tested here*: with the reason.

Δ LM loss has one test for our recipe and for its controls (one Gaussian, a mixture). *Lower than
SAEs*: the reduction's interval is above 0 over each of the SAEs (mixed with its input, mixed with
the Gaussian too, trained to denoise), by Δ summed over σ, which the noisiest dominates, and by the
mean of the reductions at each σ. *47 % better*: the reduction over the mixed SAE by that sum;
undecided where single σ, that mean or another SAE have an unlike verdict. Either is an artefact
where a control passes the same test.

Controls of the applications: for hidden units, dictionaries that no diffusion model made (plain
dimensions, neurons of the block, the SAE before TopK); for steering, one step of a mixture of
Gaussians.
"""

from mmlib_studies.claims.ledger import as_table, in_words, ledger
from mmlib_studies.claims.statements import CLAIMS, Claim
from mmlib_studies.notebooks import OPTIONAL as _OPTIONAL

OPTIONAL = tuple(_OPTIONAL.values())  # notebooks whose results a run may lack

__all__ = ["CLAIMS", "OPTIONAL", "Claim", "as_table", "in_words", "ledger"]
