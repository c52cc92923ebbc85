"""What stands in a run's folder, and the states that its `status.json` knows."""

JOB = "job.toml"
STATUS = "status.json"
RESULT = "model.safetensors"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
LOCK = "lock"
GENERATION = "generation"

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
