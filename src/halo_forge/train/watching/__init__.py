"""What is told while a run trains: metrics, findings, losses by source, sample answers, trackers."""
