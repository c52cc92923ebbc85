"""What is learned and how: models, losses, optimizers, schedules."""
