"""The ledger: an index of all jobs and their metrics in a database, made from the run folders alone.

`readings` says what a run folder says, from its `sources`, with `metrics` for each step; `tables` how that is
kept; `database` opens it; `keeper` follows the daemon's jobs by `following`; `upkeep` makes the whole of it
again or compares it. One database holds one base folder.

The table `local_training_jobs` has the columns by which other tools know such a table, but for these:

- user_id, job_token, agent_id: one machine, one user; nobody hands jobs to strangers.
- process_pid, claimed_at, elapsed_seconds, remaining_seconds: of the moment, or follow from the others.
- gpu_memory_*, gpu_utilization_percent: no event carries them.
- num_gpus, distributed_strategy: a job is trained by one process.
- parameter_updates, last_parameter_update_at: a run's settings never change; they are in `config`.

best_checkpoint_score is null until an event carries a score. A row of `training_metrics` leaves out gpu_*,
what follows from the rows before it (loss_trend, best_*), and samples_per_second: the job has its mean.
"""
