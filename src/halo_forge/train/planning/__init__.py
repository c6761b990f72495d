"""What a run will need, before it needs it: memory by part, time, disk, and what to change where it does not fit."""
