"""MDI-Exit measured: a mesh of live nodes, the same decisions in simulated time, and what both say of the paper."""
