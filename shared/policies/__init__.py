"""Policies: named, complete ways of deciding which tier answers.

A policy may decide before local inference (`before`), after it (`after`), or both; it may name any reachable tier and
say whether that tier must answer (`final`) or may decide again. It also chooses the exit rule, the pruning and the
ensemble's weights. The same objects decide live and in replay. To add one, put a file with a subclass of `Policy` that
has a `name` into the folder `TIERWISE_POLICY_DIR` (`registry.py`). These come with Tierwise:

    collaborative       Zhang et al. 2025 (arXiv 2412.12102): early exit, S-curve offloading, pruning, ensemble
    tabi                the same without early exit (theta = 0), as that paper reproduces Tabi (Wang et al. 2023)
    path-gates          at every exit fitted gates say: answer here, send to one of the deeper tiers, or go on
    network-aware       sends a text on where the gain in accuracy is worth what the link and the tier behind it take
    buffer-threshold    collaborative, with a threshold that moves with the queue, here or at the next tier
    mdi-exit            arXiv 2408.05247, its offloading rule between tiers: work goes where it is done sooner
    dimee               Bajpai & Hanawal 2025 (arXiv 2410.05338): pools of like texts, before any layer runs
    length-quantile     the same by length alone
    adaee, splitee, splitee-s, i-splitee     bandits over thresholds and split layers
    recserve            arXiv 2505.16502: each tier sends on a share of its texts, the least sure ones
    early-exit, deebert, pabee, jei-dnn      one tier, early exits by confidence, entropy, patience, fitted gates
    random              one of the reachable tiers, each as likely (the baseline of arXiv 2410.05338, section IV-B)
    oracle              the shallowest tier that is right; in replay only
    TIER-only           that tier answers every text: end-only, edge-only, cloud-only

Tags beside a formula: [S001] arXiv 2410.05338 says it, [C:repository] read in that public code, [R] our reconstruction.
"""

from shared.policies.base import STAY, Clues, Decision, Link, Policy, Sight, Visit, Where
from shared.policies.learner import Learner, Outcome, State, bind, first_state
from shared.policies.registry import POLICIES, build, load, name_of, named, names, own, reload, spec_of, travelling

__all__ = [
    "POLICIES",
    "STAY",
    "Clues",
    "Decision",
    "Learner",
    "Link",
    "Outcome",
    "Policy",
    "Sight",
    "State",
    "Visit",
    "Where",
    "bind",
    "build",
    "first_state",
    "load",
    "name_of",
    "named",
    "names",
    "own",
    "reload",
    "spec_of",
    "travelling",
]
