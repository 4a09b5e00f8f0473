"""What every long run is made of: events, checkpoints, draws, schedules, loss scale, processes that share a batch."""
