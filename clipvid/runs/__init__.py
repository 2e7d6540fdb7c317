"""Config files, run record, preemption and progress of a run."""
