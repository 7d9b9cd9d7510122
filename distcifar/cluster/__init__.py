"""Ray: the composition root that runs on each rank, and the launch that puts it there."""

# For the environment of the program before it imports ray and torch (jobs/ sets it) and of all its workers.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report waits for this poll: 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # for places only; after a lost node it is waited in vain
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they mean where the command was typed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less to start
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default: beside any other program workers would wait, unlike a single one
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it --deterministic is refused by cuBLAS; 32 MB, as by default
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep's folder holds all of it already
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "RAY_AIR_NEW_OUTPUT": "0",  # which tells of its set-up even when it is to be silent
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not read: it has no rungs, and it is a pickle
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
